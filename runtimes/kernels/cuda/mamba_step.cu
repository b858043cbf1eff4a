// One token of a whole Mamba or DenseMamba model for few rows, as one persistent kernel.
//
// A decode step has to read all weights once, in an order that its dependencies fix: three exchanges between all blocks
// for each layer. Nothing here waits for a barrier of the whole grid. Each block owns 16 channels of every layer and
// 8 outputs of every out_proj (and `OTHER_BLOCKS` further blocks own the rows of the gates' first layers), so the states
// of its channels, and those of the layers below, stay in its registers. The rows of the head are spread over all blocks.
//
//   1  x -> norm -> in_proj of own channels -> convolution -> own channels' part of x_proj
//   2  all parts of x_proj -> dt_proj and gates of own channels -> scan step -> y of own channels
//   3  all y -> own rows of out_proj -> x
//
// mamba_step_shape.cuh has the sizes, mamba_step_words.cuh the exchanges, mamba_step_copies.cuh the copies of large
// weights to shared memory, mamba_step_products.cuh the large products, and mamba_step_layer.cuh the rest of a layer.
// All other weights and the states are read into registers; they are asked for into the L2 cache when the copies of
// their layer begin, because loads from the memory would delay the polls that follow them in the same multiprocessor.
#include "mamba_step_layer.cuh"

// The grid has BLOCKS blocks, all resident at once; `Shared` is dynamic shared memory.
extern "C" __global__ void __launch_bounds__(THREADS + 32, 1) mamba_step(const __grid_constant__ Model p) {
    Shared &shared = *reinterpret_cast<Shared *>(dynamic);
    const Place place;
    const int block = place.block, warp = place.warp, lane = place.lane;
    const bool has_channels = place.has_channels();
    const u32 step = *p.step, base = step * (LAYERS + 2) + 1;

    if (threadIdx.x == 0) init_barriers(shared);
    __syncthreads();
    if (warp == WARPS) {
        Copies(p, shared, place).all();
        return;
    }

    Ahead ahead;
    ahead.load(p.layers[0], place);

    // The sums of the next step are zeroed while nobody uses them.
    constexpr int ALL_SUMS = LAYERS * REPLICAS * BATCH * SUMS;
    for (int i = block * THREADS + threadIdx.x; i < ALL_SUMS; i += BLOCKS * THREADS)
        p.sums[(size_t)((step + 1) & 1) * ALL_SUMS + i] = 0;
    // A block without any part in the layers says that it has read `step`.
    if (!NEIGHBOURS && !has_channels && threadIdx.x == 0) put(p.g + block - CHANNEL_BLOCKS, 0, base);

    // A token that is not in the vocabulary makes its row of logits NaN.
    auto embedding = [&](int n) {
        i64 token = p.tokens[n];
        return token >= 0 && token < (i64)p.vocabulary ? p.embedding + (size_t)token * HIDDEN : nullptr;
    };
    const float nan = __uint_as_float(0x7fc00000);
    float x[GROUP_ROWS][VALUES], residual = 0.0f;
    Below below;
    if (has_channels && warp < BATCH) {
        const act *row = embedding(warp);
        residual = row ? to_float(row[block * OUT + lane % OUT]) : nan;
    }

    for (int l = 0; l < LAYERS; l++) {
        const Layer &layer = p.layers[l];
        const Layer &next_layer = p.layers[l + 1 < LAYERS ? l + 1 : l];
        const u32 phase = base + l;
        const int side = l & 1;
        if (!has_channels && !layer.gates) {
            // Without gates, as in the first layer, the stage is empty.
            await_in(shared, l);
            synchronize();
            if (threadIdx.x == 0) arrive(&shared.in_free[l % IN_STAGES]);
            ahead.load(next_layer, place);
            continue;
        }
        if (l) {
            await_x(x, place, p.x + (size_t)side * BATCH * HIDDEN / 2, phase);
        } else {
#pragma unroll
            for (int i = 0; i < GROUP_ROWS; i++) {
                const act *row = embedding(min(place.first_row + i, BATCH - 1));
#pragma unroll
                for (int j = 0; j < VALUES; j++) x[i][j] = row ? to_float(row[place.thread * VALUES + j]) : nan;
            }
        }
        norm(shared, place, x, ahead.norm);
        rows_product(shared, place, l);
        if (!has_channels) {
            if (warp < BATCH) {
                float value = silu(row_sum(shared, l, warp, lane, p.epsilon));
                put(p.g + ((size_t)side * BATCH + warp) * G_WORDS + (block - CHANNEL_BLOCKS) * ROWS + lane, __float_as_uint(value), phase);
            }
            ahead.load(next_layer, place);
            continue;
        }
        const float input = convolve(shared, place, ahead, l, p.epsilon);
        synchronize();
        u64 *sums = p.sums + ((size_t)(step & 1) * LAYERS + l) * REPLICAS * BATCH * SUMS;
        add_parts(shared, place, ahead, sums);

        const bool dense = NEIGHBOURS && layer.gates;
        if (place.has_row(0)) {
            if (place.thread < SUMS) await_sums(shared, place, sums);
            else if (dense && place.thread >= 128 && place.thread < 128 + 2 * GATE)
                await_gates(shared, place, p.g + (size_t)side * BATCH * G_WORDS, phase);
        }
        synchronize();
        small_products(shared, place, ahead, dense);
        synchronize();
        u64 *y = p.y + ((size_t)side * GROUPS + threadIdx.x / GROUP_THREADS) * GROUP_THREADS * Y_WORDS;
        scan(shared, place, ahead, below, dense, y, phase);
        store_states(layer, place, below);
        store_conv(layer, place, ahead, input);
        if (LOAD_AT == 2) ahead.load(next_layer, place);

        await_y(shared.rows, place, y, phase);
        synchronize_part();
        if (LOAD_AT == 0) ahead.load(next_layer, place);
        out_product(shared, place, l);
        if (warp < BATCH) {
            residual += out_sum(shared, warp, lane);
            u32 own = upper24(residual), next = __shfl_down_sync(~0u, own, 1);
            u64 *to = p.x + ((size_t)(side ^ 1) * BATCH + warp) * (HIDDEN / 2);
            if (lane < OUT && lane % 2 == 0) put(to + x_word(block * OUT + lane), (u64)next << 24 | own, phase + 1);
        }
        if (LOAD_AT == 1) ahead.load(next_layer, place);
    }

    // The head: stages go on as if they were layers.
    const HeadRows head(p, block);
    float weight[VALUES];
#pragma unroll
    for (int i = 0; i < VALUES; i++) weight[i] = p.norm[place.thread * VALUES + i];
    await_x(x, place, p.x + (size_t)(LAYERS & 1) * BATCH * HIDDEN / 2, base + LAYERS);
    norm(shared, place, x, weight);
    for (int tile = 0; tile < head.tiles(); tile++) {
        rows_product(shared, place, LAYERS + tile);
        int row = head.first + tile * ROWS + lane;
        if (warp < BATCH && row < head.last) p.logits[(size_t)warp * p.vocabulary + row] = row_sum(shared, LAYERS + tile, warp, lane, p.epsilon);
        if (RED_STAGES == 1) synchronize();
    }
    if (block == 0 && threadIdx.x == 0) {
        for (int i = 0; !NEIGHBOURS && i < OTHER_BLOCKS; i++) {
            u64 word = 0;
            do get(word, p.g + i, 1);
            while (!has_phase(word, base));
        }
        *p.step = step + 1;
    }
}
