// The weights of in_proj, out_proj and the head, copied to shared memory by a warp of its own, up to two layers ahead,
// whatever the exchanges do meanwhile. It copies piece by piece with `FLIGHT` pieces under way: enough for the bandwidth
// of the memory, and no more, because the polls of the exchanges queue behind the pieces.
#pragma once
#include "mamba_step_shape.cuh"

__device__ __forceinline__ void init_barrier(u64 *barrier) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
}
__device__ __forceinline__ void expect_bytes(u64 *barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
}
__device__ __forceinline__ void await_bytes(u64 *barrier, u32 parity) {
    u32 done;
    do {
        asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                     : "=r"(done)
                     : "r"(shared_address(barrier)), "r"(parity)
                     : "memory");
    } while (!done);
}
__device__ __forceinline__ void arrive(u64 *barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
__device__ __forceinline__ void bulk_copy(void *to, const void *from, u32 bytes, u64 *barrier, u64 policy) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::
                     "r"(shared_address(to)), "l"(from), "r"(bytes), "r"(shared_address(barrier)), "l"(policy)
                 : "memory");
}
// Asks for memory into the L2 cache; address and length are multiples of 16.
__device__ __forceinline__ void prefetch(const void *from, u32 bytes) {
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
}
__device__ __forceinline__ u32 clock_now() {
    u32 now;
    asm volatile("mov.u32 %0, %%clock;" : "=r"(now) : : "memory");
    return now;
}

__device__ __forceinline__ void init_barriers(Shared &shared) {
    for (int i = 0; i < IN_STAGES; i++) {
        for (int j = 0; j < IN_PIECES; j++) init_barrier(&shared.in_full[i][j]);
        init_barrier(&shared.in_free[i]);
    }
    for (int i = 0; i < OUT_STAGES; i++) {
        for (int j = 0; j < OUT_PIECES; j++) init_barrier(&shared.out_full[i][j]);
        init_barrier(&shared.out_free[i]);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
// Waits for the pieces of a stage, one for each lane.
template <int PIECES>
__device__ __forceinline__ void await_pieces(u64 (&barriers)[PIECES], u32 parity) {
    if (threadIdx.x % 32 < PIECES) await_bytes(&barriers[threadIdx.x % 32], parity);
    __syncwarp();
}
__device__ __forceinline__ void await_in(Shared &shared, int stage) { await_pieces(shared.in_full[stage % IN_STAGES], stage / IN_STAGES & 1); }
__device__ __forceinline__ void await_out(Shared &shared, int stage) { await_pieces(shared.out_full[stage % OUT_STAGES], stage / OUT_STAGES & 1); }

// The rows of the head that a block owns: as many pieces as any other block, or one more.
struct HeadRows {
    int first, last;

    __device__ __forceinline__ HeadRows(const Model &p, int block) {
        const int rows = (int)p.vocabulary, pieces = (rows + IN_PIECE - 1) / IN_PIECE;
        first = (int)((long long)pieces * block / BLOCKS) * IN_PIECE;
        last = min(rows, (int)((long long)pieces * (block + 1) / BLOCKS) * IN_PIECE);
    }
    __device__ __forceinline__ int tiles() const { return (last - first + ROWS - 1) / ROWS; }
};

struct Copies {
    const Model &p;
    Shared &shared;
    const HeadRows head;
    const int block, lane;
    const bool has_channels;
    u64 policy;
    u64 *under_way[MAX_FLIGHT];  // barriers of the last pieces, the oldest first
    u32 parities;                // of these, bit i for piece i
    u32 last;                    // when the last piece was begun
    bool paced = false;          // pieces follow each other after `GAP` clocks at the earliest

    __device__ __forceinline__ Copies(const Model &p, Shared &shared, const Place &place)
        : p(p), shared(shared), head(p, place.block), block(place.block), lane(place.lane), has_channels(place.has_channels()) {
        asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
#pragma unroll
        for (int i = 0; i < MAX_FLIGHT; i++) under_way[i] = nullptr;
        parities = 0;
        last = clock_now();
    }

    // A piece of `rows` rows, one for each lane, while no more than `FLIGHT` are under way.
    template <int FLYING>
    __device__ __forceinline__ void piece(char *to, int stride, const act *from, int width, int rows, u64 *barrier, u32 parity) {
        constexpr int OLDEST = MAX_FLIGHT - FLYING;
        if (under_way[OLDEST]) await_bytes(under_way[OLDEST], parities >> OLDEST & 1);
        if (GAP && paced) {
            while ((int)(clock_now() - last) < GAP) {
            }
            last = clock_now();
        }
#pragma unroll
        for (int i = 0; i + 1 < MAX_FLIGHT; i++) under_way[i] = under_way[i + 1];
        under_way[MAX_FLIGHT - 1] = barrier;
        parities = parities >> 1 | parity << (MAX_FLIGHT - 1);
        if (lane == 0) expect_bytes(barrier, NOCOPY ? 0 : rows * width * 2);
        __syncwarp();
        if (lane < rows && !NOCOPY) bulk_copy(to + lane * stride, from, width * 2, barrier, policy);
    }

    // The rows of in_proj (or of the gates) of a layer; past the last layer, those of the head.
    template <int FLYING>
    __device__ __forceinline__ void in(int stage) {
        int slot = stage % IN_STAGES, use = stage / IN_STAGES, rows = ROWS, first = head.first + (stage - LAYERS) * ROWS;
        if (use) await_bytes(&shared.in_free[slot], use - 1 & 1);
        if (stage >= LAYERS) rows = min(ROWS, head.last - first);
        else if (!has_channels && !p.layers[stage].gates) rows = 0;
        for (int i = 0; i < IN_PIECES; i++) {
            int row = i * IN_PIECE + lane;
            const act *from = stage >= LAYERS ? p.head + (size_t)(first + row) * HIDDEN
                            : has_channels    ? p.layers[stage].in_proj + (size_t)(block * CHANNELS + row % CHANNELS + row / CHANNELS * INNER) * HIDDEN
                                              : p.layers[stage].gates + (size_t)((block - CHANNEL_BLOCKS) * ROWS + row) * HIDDEN;
            piece<FLYING>(shared.in[slot] + i * IN_PIECE * WIDE, WIDE, from, HIDDEN, max(0, min(IN_PIECE, rows - i * IN_PIECE)),
                          &shared.in_full[slot][i], use & 1);
        }
    }
    __device__ __forceinline__ void out(int stage) {
        int slot = stage % OUT_STAGES, use = stage / OUT_STAGES;
        if (use) await_bytes(&shared.out_free[slot], use - 1 & 1);
        for (int i = 0; i < OUT_PIECES; i++)
            piece<FLIGHT>(shared.out[slot] + i * OUT_PIECE * WIDER, WIDER,
                          p.layers[stage].out_proj + (size_t)(block * OUT + i * OUT_PIECE + lane) * INNER, INNER, OUT_PIECE,
                          &shared.out_full[slot][i], use & 1);
    }

    // Asks for what is loaded into registers: the block's own part, and of what blocks share an equal part.
    __device__ __forceinline__ void rest(const Layer &layer) {
        constexpr int FIXED_ITEMS = 9 + TAPS;
        const size_t first = (size_t)block * CHANNELS;
        for (int item = lane; item < FIXED_ITEMS + 2 * BATCH; item += 32) {
            const void *from = nullptr;
            int bytes = 0;
            auto own = [&](const auto *matrix, int width) { from = matrix + first * width, bytes = CHANNELS * width * (int)sizeof(*matrix); };
            auto part = [&](const auto *matrix, int count) { from = matrix + block * (count / CHANNEL_BLOCKS), bytes = count / CHANNEL_BLOCKS * (int)sizeof(*matrix); };
            if (item == 0) part(layer.x_proj, SUMS * INNER);
            else if (item == 1) own(layer.dt_proj, RANK);
            else if (item == 2) own(layer.a, STATES);
            else if (item == 3) own(layer.conv_bias, 1);
            else if (item == 4) own(layer.dt_bias, 1);
            else if (item == 5) own(layer.skip, 1);
            else if (item == 6) part(layer.norm, HIDDEN);
            else if (item == 7 && NEIGHBOURS && layer.gates) own(layer.channel_gate, GATE);
            else if (item == 8 && NEIGHBOURS && layer.gates) part(layer.state_gate, STATES * GATE);
            else if (item >= 9 && item < FIXED_ITEMS) own(layer.conv_weight + (size_t)(item - 9) * INNER, 1);
            else if (item >= FIXED_ITEMS && item < FIXED_ITEMS + BATCH) own(layer.state + (size_t)(item - FIXED_ITEMS) * INNER * STATES, STATES);
            else if (item >= FIXED_ITEMS + BATCH) own(layer.conv + (size_t)(item - FIXED_ITEMS - BATCH) * INNER * BACK, BACK);
            if (bytes >= 16) prefetch(from, bytes / 16 * 16);
        }
    }

    __device__ __forceinline__ void all() {
        // Where there is one stage for out_proj, it becomes free at the end of a layer: the next layer's in_proj first, or
        // the first tile of the head. This also keeps two uses of a barrier more than `MAX_FLIGHT` pieces apart, as the
        // parity of a piece under way requires.
        constexpr int BEHIND = OUT_STAGES == 1 ? 1 : 0;
        for (int l = 0; l < LAYERS + BEHIND; l++) {
            if (has_channels && l && l < LAYERS) rest(p.layers[l]);
            in<FLIGHT>(l);
            paced = l >= 1;
            if (has_channels && l >= BEHIND) out(l - BEHIND);
        }
        paced = false;
        for (int tile = BEHIND; tile < head.tiles(); tile++) in<HEAD_FLIGHT>(LAYERS + tile);
    }
};
