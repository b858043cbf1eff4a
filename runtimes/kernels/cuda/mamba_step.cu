// One token of a whole Mamba or DenseMamba model for few rows, as one persistent kernel.
//
// A decode step has to read all weights once, in an order that its dependencies fix: three exchanges between all blocks
// for each layer. Nothing here waits for a barrier of the whole grid. Each block owns 16 channels of every layer and
// 8 outputs of every out_proj (and `GATE_BLOCKS` further blocks own the rows of the gates' first layers), so the states
// of its channels, and those of the layers below, stay in its registers. Its weights come through shared memory, copied
// two layers ahead by the bulk copy engine, whatever the exchanges do meanwhile.
//
//   1  x -> norm -> in_proj of own channels -> convolution -> own channels' part of x_proj
//   2  all parts of x_proj -> dt_proj and gates of own channels -> scan step -> y of own channels
//   3  all y -> own rows of out_proj -> x
//
// What is exchanged are 64-bit words {value, phase}, written and read as one; a reader polls the words themselves. The
// parts of x_proj are added up by atomic additions of fixed-point numbers, whose order does not matter: the low 8 bits
// of a sum count its parts. The products use the tensor cores with up to eight rows of the batch as columns; the lanes
// of a quad take eight consecutive numbers of k each, which is a permutation of k that both operands share.
#include "mma.cuh"

constexpr int THREADS = 256, WARPS = 8;
constexpr int CHANNELS = 16;                            // of a block
constexpr int CHANNEL_BLOCKS = INNER / CHANNELS;
constexpr int ROWS = 2 * CHANNELS;                      // of in_proj, or of the gates' first layers
constexpr int GATE_BLOCKS = NEIGHBOURS ? 2 * GATE / ROWS : 0;
constexpr int BLOCKS = CHANNEL_BLOCKS + GATE_BLOCKS;
constexpr int OUT = HIDDEN / CHANNEL_BLOCKS;            // rows of out_proj of a block
constexpr int SUMS = RANK + 2 * STATES;                 // outputs of x_proj
constexpr int REPLICAS = 4;                             // of each sum, against contention
constexpr int PARTS = CHANNEL_BLOCKS / REPLICAS;        // of each replica
constexpr int BACK = TAPS - 1;
constexpr int WIDE = HIDDEN * 2 + 64, WIDER = INNER * 2 + 64;  // bytes of a row in shared memory, without bank conflicts
constexpr int IN_STAGES = 2, OUT_STAGES = BATCH <= 4 ? 2 : 1, RED_STAGES = BATCH <= 4 ? 2 : 1;
constexpr float FIXED = 17179869184.0f;                 // 2^34
constexpr int VALUES = HIDDEN / THREADS, PAIRS = INNER / 2 / THREADS;  // words that a thread polls, of each row
static_assert(STATES == 16 && OUT == 8 && HIDDEN % 1024 == 0 && INNER % 1024 == 0, "sizes");
static_assert(RANK % 32 == 0 && SUMS % 16 == 0 && SUMS <= 128 && GATE % 32 == 0 && BATCH >= 1 && BATCH <= 8, "sizes");
static_assert(2 * GATE <= 128 && PARTS < 256, "sizes");

struct Layer {
    const float *norm;             // [hidden]
    const act *in_proj;            // [2 inner, hidden]
    const act *gates;              // [2 gate, hidden], the channels' first; null in the first layer
    const float *conv_weight;      // [inner, taps]
    const float *conv_bias;        // [inner]
    const act *x_proj;             // [rank + 2 states, inner]
    const act *dt_proj;            // [inner, rank]
    const float *dt_bias;          // [inner]
    const act *channel_gate;       // [inner, gate]
    const act *state_gate;         // [states, gate]
    const float *a;                // [inner, states]
    const float *skip;             // [inner]
    const act *out_proj;           // [hidden, inner]
    const float *conv, *state;     // [batch, inner, taps - 1], [batch, inner, states]
    float *next_conv, *next_state; // likewise; may be the same memory
};

struct Model {
    const int *tokens;     // [batch]
    const act *embedding;  // [vocabulary, hidden]
    const float *norm;     // [hidden]
    const act *head;       // [vocabulary, hidden]
    float *logits;         // [batch, vocabulary]
    u64 *x;                // [2, batch, hidden], words
    u64 *g;                // [2, batch, 2 gate], words
    u64 *y;                // [2, batch, inner / 2], words of two numbers
    u64 *sums;             // [2, layers, replicas, batch, sums], zero at first
    u32 *step;             // steps so far
    u64 vocabulary, epsilon;
    Layer layers[LAYERS];
};

struct __align__(128) Shared {
    char in[IN_STAGES][ROWS * WIDE];
    char out[OUT_STAGES][OUT * WIDER];
    char rows[BATCH * WIDER];                    // normed x, then y
    float parts[RED_STAGES][WARPS][BATCH][ROWS];
    float squares[WARPS][BATCH];
    act u[BATCH][24];
    float own_u[BATCH][CHANNELS], own_z[BATCH][CHANNELS];
    act d[BATCH][RANK + 32], g[BATCH][128 + 32];
    float b[BATCH][STATES], c[BATCH][STATES];
    float projected[3][BATCH][CHANNELS];         // dt, channel gate, state gate
    u64 in_full[IN_STAGES], out_full[OUT_STAGES];
};

extern __shared__ __align__(128) char dynamic[];

// What the host has to launch: blocks, and bytes of dynamic shared memory.
extern "C" __device__ const u32 mamba_step_shape[2] = {BLOCKS, sizeof(Shared)};

// ---- Words. ----

__device__ __forceinline__ void put(u64 *to, u32 value, u32 phase) {
    u64 word = (u64)phase << 32 | value;
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(word) : "memory");
}
__device__ __forceinline__ u64 get(const u64 *from) {
    u64 word;
    asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(word) : "l"(from) : "memory");
    return word;
}
__device__ __forceinline__ void get_two(u64 *to, const u64 *from) {
    asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];" : "=l"(to[0]), "=l"(to[1]) : "l"(from) : "memory");
}
__device__ __forceinline__ u32 phase_of(u64 word) { return (u32)(word >> 32); }

// Waits for COUNT consecutive words of each row of the batch.
template <int COUNT>
__device__ __forceinline__ void await(u64 (&words)[BATCH][COUNT], const u64 *from, int stride, u32 phase) {
    bool all;
    do {
        all = true;
#pragma unroll
        for (int n = 0; n < BATCH; n++)
#pragma unroll
            for (int i = 0; i < COUNT; i += 2) get_two(&words[n][i], from + n * stride + i);
#pragma unroll
        for (int n = 0; n < BATCH; n++)
#pragma unroll
            for (int i = 0; i < COUNT; i++) all &= phase_of(words[n][i]) == phase;
    } while (!all);
}

// ---- Bulk copies. ----

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
__device__ __forceinline__ void bulk_copy(void *to, const void *from, u32 bytes, u64 *barrier, u64 policy) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::
                     "r"(shared_address(to)), "l"(from), "r"(bytes), "r"(shared_address(barrier)), "l"(policy)
                 : "memory");
}

// ---- Products. ----

__device__ __forceinline__ uint4 load_shared16(const void *from) { return *reinterpret_cast<const uint4 *>(from); }
// The right operand of a lane: eight numbers of row lane / 4 of the batch.
__device__ __forceinline__ uint4 load_row(const char *rows, int stride, int offset, int lane) {
    return lane / 4 < BATCH ? load_shared16(rows + lane / 4 * stride + offset) : make_uint4(0, 0, 0, 0);
}
// Two steps of k; `low` and `high` are eight numbers of rows lane / 4 and lane / 4 + 8.
__device__ __forceinline__ void product(float (&c)[4], uint4 low, uint4 high, uint4 b) {
    mma(c, low.x, high.x, low.y, high.y, b.x, b.y);
    mma(c, low.z, high.z, low.w, high.w, b.z, b.w);
}
__device__ __forceinline__ uint4 load_weights(const void *from) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from));
    return v;
}
__device__ __forceinline__ uint2 load_weights8(const void *from) {
    uint2 v;
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(from));
    return v;
}

// Weights and states of a layer that a thread keeps in registers, asked for long before they are used.
struct Ahead {
    float norm[VALUES];
    float conv_weight[TAPS], conv_bias, conv[BACK];   // warp n, lane c: channel c of row n
    uint2 x_proj[2];                                  // warp w: outputs 16 w ...
    uint4 small[(RANK > GATE ? RANK : GATE) / 32][2]; // warps 0 to 2: dt_proj, channel gate, state gate
    float a, dt_bias, skip, state[BATCH];             // channel 2 warp + lane / 16, state lane % 16

    __device__ __forceinline__ void load(const Layer &layer, int block, int warp, int lane) {
#pragma unroll
        for (int i = 0; i < VALUES; i++) norm[i] = layer.norm[threadIdx.x * VALUES + i];
        if (block >= CHANNEL_BLOCKS) return;
        int first = block * CHANNELS;
        if (warp < BATCH && lane < CHANNELS) {
            int channel = first + lane;
#pragma unroll
            for (int k = 0; k < TAPS; k++) conv_weight[k] = layer.conv_weight[channel * TAPS + k];
            conv_bias = layer.conv_bias[channel];
#pragma unroll
            for (int k = 0; k < BACK; k++) conv[k] = layer.conv[((size_t)warp * INNER + channel) * BACK + k];
        }
        if (warp < SUMS / 16)
#pragma unroll
            for (int half = 0; half < 2; half++)
                x_proj[half] = load_weights8(layer.x_proj + (size_t)(warp * 16 + half * 8 + lane / 4) * INNER + first + lane % 4 * 4);
        int width = warp == 0 ? RANK : GATE;
        const act *matrix = warp == 0 ? layer.dt_proj + (size_t)first * RANK
                          : warp == 1 ? layer.channel_gate + (size_t)first * GATE : layer.state_gate;
        if (warp == 0 || (NEIGHBOURS && warp < 3 && layer.gates))
#pragma unroll
            for (int j = 0; j < (RANK > GATE ? RANK : GATE) / 32; j++)
#pragma unroll
                for (int half = 0; half < 2; half++)
                    if (j * 32 < width)
                        small[j][half] = load_weights(matrix + (lane / 4 + half * 8) * width + j * 32 + lane % 4 * 8);
        int channel = first + 2 * warp + lane / 16;
        a = layer.a[channel * STATES + lane % 16] * LOG2_E;
        dt_bias = layer.dt_bias[channel], skip = layer.skip[channel];
#pragma unroll
        for (int n = 0; n < BATCH; n++) state[n] = __ldcg(layer.state + ((size_t)n * INNER + channel) * STATES + lane % 16);
    }
};

// The grid has BLOCKS blocks, all resident at once; `Shared` is dynamic shared memory.
extern "C" __global__ void __launch_bounds__(THREADS, 1) mamba_step(const __grid_constant__ Model p) {
    Shared &shared = *reinterpret_cast<Shared *>(dynamic);
    const int block = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const bool has_channels = block < CHANNEL_BLOCKS;
    const u32 step = *p.step, base = step * (LAYERS + 2) + 1;
    const float epsilon = __uint_as_float((u32)p.epsilon);
    const int tiles = ((int)p.vocabulary + ROWS - 1) / ROWS;
    u64 policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));

    if (threadIdx.x == 0) {
        for (int i = 0; i < IN_STAGES; i++) init_barrier(&shared.in_full[i]);
        for (int i = 0; i < OUT_STAGES; i++) init_barrier(&shared.out_full[i]);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
    __syncthreads();

    // One warp copies the rows of in_proj (or of the gates) of a layer; past the last layer, those of the head.
    auto copy_in = [&](int stage) {
        const act *from = nullptr;
        int rows = 0;
        if (stage < LAYERS) {
            const Layer &layer = p.layers[stage];
            if (has_channels) {
                rows = ROWS;
                from = layer.in_proj + (size_t)(block * CHANNELS + lane % CHANNELS + lane / CHANNELS * INNER) * HIDDEN;
            } else {
                rows = layer.gates ? ROWS : 0;
                from = layer.gates + (size_t)((block - CHANNEL_BLOCKS) * ROWS + lane) * HIDDEN;
            }
        } else {
            int tile = (stage - LAYERS) * BLOCKS + block;
            if (tile < tiles) rows = min(ROWS, (int)p.vocabulary - tile * ROWS);
            from = p.head + ((size_t)tile * ROWS + lane) * HIDDEN;
        }
        u64 *barrier = &shared.in_full[stage % IN_STAGES];
        if (lane == 0) expect_bytes(barrier, rows * HIDDEN * 2);
        __syncwarp();
        if (lane < rows) bulk_copy(shared.in[stage % IN_STAGES] + lane * WIDE, from, HIDDEN * 2, barrier, policy);
    };
    auto copy_out = [&](int stage) {
        if (stage >= LAYERS || !has_channels) return;
        u64 *barrier = &shared.out_full[stage % OUT_STAGES];
        if (lane == 0) expect_bytes(barrier, OUT * INNER * 2);
        __syncwarp();
        const act *from = p.layers[stage].out_proj + (size_t)(block * OUT + lane) * INNER;
        if (lane < OUT) bulk_copy(shared.out[stage % OUT_STAGES] + lane * WIDER, from, INNER * 2, barrier, policy);
    };
    if (warp == WARPS - 1) {
        copy_in(0);
        copy_out(0);
        for (int stage = 1; stage < IN_STAGES; stage++) copy_in(stage);
        for (int stage = 1; stage < OUT_STAGES; stage++) copy_out(stage);
    }
    Ahead ahead;
    ahead.load(p.layers[0], block, warp, lane);

    // The sums of the next step are zeroed while nobody uses them.
    constexpr int ALL_SUMS = LAYERS * REPLICAS * BATCH * SUMS;
    for (int i = block * THREADS + threadIdx.x; i < ALL_SUMS; i += BLOCKS * THREADS)
        p.sums[(size_t)((step + 1) & 1) * ALL_SUMS + i] = 0;

    float x[BATCH][VALUES], residual = 0.0f, below[NEIGHBOURS ? NEIGHBOURS : 1][BATCH];
#pragma unroll
    for (int n = 0; n < BATCH; n++) {
        const act *row = p.embedding + (size_t)p.tokens[n] * HIDDEN;
#pragma unroll
        for (int i = 0; i < VALUES; i++) x[n][i] = to_float(row[threadIdx.x * VALUES + i]);
        if (has_channels && warp == n && lane < OUT) residual = to_float(row[block * OUT + lane]);
#pragma unroll
        for (int i = 0; i < NEIGHBOURS; i++) below[i][n] = 0.0f;
    }

    // Norms x into shared memory, as the right operand.
    auto norm = [&](const float *weight) {
#pragma unroll
        for (int n = 0; n < BATCH; n++) {
            float squares = 0.0f;
#pragma unroll
            for (int i = 0; i < VALUES; i++) squares = fmaf(x[n][i], x[n][i], squares);
            squares = warp_sum(squares);
            if (lane == 0) shared.squares[warp][n] = squares;
        }
        __syncthreads();
#pragma unroll
        for (int n = 0; n < BATCH; n++) {
            float squares = 0.0f;
#pragma unroll
            for (int w = 0; w < WARPS; w++) squares += shared.squares[w][n];
            float factor = rsqrtf(squares / HIDDEN + epsilon);
            u32 *to = reinterpret_cast<u32 *>(shared.rows + n * WIDE) + threadIdx.x * VALUES / 2;
#pragma unroll
            for (int i = 0; i < VALUES; i += 2)
                to[i / 2] = pack(x[n][i] * factor * weight[i], x[n][i + 1] * factor * weight[i + 1]);
        }
        __syncthreads();
    };
    // Products of the 32 rows of a stage with the normed x, a warp an eighth of k; then the sums over the warps.
    auto rows_product = [&](int stage) {
        await_bytes(&shared.in_full[stage % IN_STAGES], stage / IN_STAGES & 1);
        const char *rows = shared.in[stage % IN_STAGES] + lane / 4 * WIDE;
        float c[2][4] = {};
#pragma unroll
        for (int j = 0; j < HIDDEN / WARPS / 32; j++) {
            int offset = (warp * (HIDDEN / WARPS) + j * 32 + lane % 4 * 8) * 2;
            uint4 b = load_row(shared.rows, WIDE, offset, lane);
#pragma unroll
            for (int tile = 0; tile < 2; tile++)
                product(c[tile], load_shared16(rows + tile * 16 * WIDE + offset), load_shared16(rows + (tile * 16 + 8) * WIDE + offset), b);
        }
        auto &parts = shared.parts[stage % RED_STAGES][warp];
#pragma unroll
        for (int tile = 0; tile < 2; tile++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int n = lane % 4 * 2 + i % 2;
                if (n < BATCH) parts[n][tile * 16 + lane / 4 + i / 2 * 8] = c[tile][i];
            }
        __syncthreads();
        if (warp == WARPS - 1) copy_in(stage + IN_STAGES);
    };
    auto row_sum = [&](int stage, int n) {
        float sum = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; w++) sum += shared.parts[stage % RED_STAGES][w][n][lane];
        return sum;
    };

    for (int l = 0; l < LAYERS; l++) {
        const Layer &layer = p.layers[l];
        const u32 phase = base + l;
        const int side = l & 1;
        if (l) {
            u64 words[BATCH][VALUES];
            await(words, p.x + (size_t)side * BATCH * HIDDEN + threadIdx.x * VALUES, HIDDEN, phase);
#pragma unroll
            for (int n = 0; n < BATCH; n++)
#pragma unroll
                for (int i = 0; i < VALUES; i++) x[n][i] = __uint_as_float((u32)words[n][i]);
        }
        if (!has_channels && !layer.gates) {
            // The first layer has no gates: its stage is empty.
            if (warp == WARPS - 1) {
                await_bytes(&shared.in_full[l % IN_STAGES], l / IN_STAGES & 1);
                copy_in(l + IN_STAGES);
            }
            __syncthreads();
            ahead.load(p.layers[l + 1 < LAYERS ? l + 1 : l], block, warp, lane);
            continue;
        }
        norm(ahead.norm);
        rows_product(l);

        if (!has_channels) {
            if (warp < BATCH) {
                float value = silu(row_sum(l, warp));
                int row = (block - CHANNEL_BLOCKS) * ROWS + lane;
                put(p.g + ((size_t)side * BATCH + warp) * 2 * GATE + row, __float_as_uint(value), phase);
            }
            ahead.load(p.layers[l + 1 < LAYERS ? l + 1 : l], block, warp, lane);
            continue;
        }

        // The convolution, and own channels' part of x_proj.
        if (warp < BATCH) {
            float value = row_sum(l, warp);
            if (lane < CHANNELS) {
                float sum = fmaf(ahead.conv_weight[BACK], value, ahead.conv_bias);
#pragma unroll
                for (int k = 0; k < BACK; k++) sum = fmaf(ahead.conv_weight[k], ahead.conv[k], sum);
                float u = silu(sum);
                shared.own_u[warp][lane] = u;
                shared.u[warp][lane] = to_act(u);
                float *next = layer.next_conv + ((size_t)warp * INNER + block * CHANNELS + lane) * BACK;
#pragma unroll
                for (int k = 0; k < BACK; k++) next[k] = k + 1 < BACK ? ahead.conv[k + 1] : value;
            } else {
                shared.own_z[warp][lane - CHANNELS] = silu(value);
            }
        }
        __syncthreads();
        u64 *sums = p.sums + ((size_t)(step & 1) * LAYERS + l) * REPLICAS * BATCH * SUMS;
        if (warp < SUMS / 16) {
            uint2 b = make_uint2(0, 0);
            if (lane / 4 < BATCH) b = *reinterpret_cast<const uint2 *>(&shared.u[lane / 4][lane % 4 * 4]);
            float c[4] = {};
            mma(c, ahead.x_proj[0].x, ahead.x_proj[1].x, ahead.x_proj[0].y, ahead.x_proj[1].y, b.x, b.y);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int n = lane % 4 * 2 + i % 2, output = warp * 16 + lane / 4 + i / 2 * 8;
                u64 part = ((u64)__float2ll_rn(c[i] * FIXED) << 8) + 1;
                u64 *to = sums + ((size_t)(block % REPLICAS) * BATCH + n) * SUMS + output;
                if (n < BATCH) asm volatile("red.relaxed.gpu.global.add.u64 [%0], %1;" ::"l"(to), "l"(part) : "memory");
            }
        }

        // All parts of x_proj, and the gates' hidden values.
        const bool dense = NEIGHBOURS && layer.gates;
        if (threadIdx.x < SUMS) {
            u64 words[BATCH][REPLICAS];
            bool all;
            do {
                all = true;
#pragma unroll
                for (int n = 0; n < BATCH; n++)
#pragma unroll
                    for (int r = 0; r < REPLICAS; r++) words[n][r] = get(sums + (r * BATCH + n) * SUMS + threadIdx.x);
#pragma unroll
                for (int n = 0; n < BATCH; n++)
#pragma unroll
                    for (int r = 0; r < REPLICAS; r++) all &= (u32)(words[n][r] & 255) == PARTS;
            } while (!all);
#pragma unroll
            for (int n = 0; n < BATCH; n++) {
                long long total = 0;
#pragma unroll
                for (int r = 0; r < REPLICAS; r++) total += (long long)words[n][r] >> 8;
                float value = (float)total * (1.0f / FIXED);
                if (threadIdx.x < RANK) shared.d[n][threadIdx.x] = to_act(value);
                else if (threadIdx.x < RANK + STATES) shared.b[n][threadIdx.x - RANK] = value;
                else shared.c[n][threadIdx.x - RANK - STATES] = value;
            }
        } else if (dense && threadIdx.x >= 128 && threadIdx.x < 128 + 2 * GATE) {
            int at = threadIdx.x - 128;
            u64 words[BATCH];
            bool all;
            do {
                all = true;
#pragma unroll
                for (int n = 0; n < BATCH; n++) words[n] = get(p.g + ((size_t)side * BATCH + n) * 2 * GATE + at);
#pragma unroll
                for (int n = 0; n < BATCH; n++) all &= phase_of(words[n]) == phase;
            } while (!all);
#pragma unroll
            for (int n = 0; n < BATCH; n++) shared.g[n][at] = to_act(__uint_as_float((u32)words[n]));
        }
        __syncthreads();
        if (warp == 0 || (dense && warp < 3)) {
            const char *rows = warp == 0 ? (const char *)shared.d : (const char *)shared.g + (warp - 1) * GATE * 2;
            int stride = warp == 0 ? sizeof(shared.d[0]) : sizeof(shared.g[0]), width = warp == 0 ? RANK : GATE;
            float c[4] = {};
#pragma unroll
            for (int j = 0; j < (RANK > GATE ? RANK : GATE) / 32; j++)
                if (j * 32 < width)
                    product(c, ahead.small[j][0], ahead.small[j][1], load_row(rows, stride, (j * 32 + lane % 4 * 8) * 2, lane));
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int n = lane % 4 * 2 + i % 2;
                if (n < BATCH) shared.projected[warp][n][lane / 4 + i / 2 * 8] = warp == 0 ? c[i] : silu(c[i]);
            }
        }
        __syncthreads();

        // The scan's step: lane / 16 chooses one of the warp's two channels, lane % 16 the state.
        const int own = 2 * warp + lane / 16, n_state = lane % 16;
#pragma unroll
        for (int n = 0; n < BATCH; n++) {
            float u = shared.own_u[n][own], c = shared.c[n][n_state];
            float delta = softplus(shared.projected[0][n][own] + ahead.dt_bias);
            float h = fmaf(power_of_two(delta * ahead.a), ahead.state[n], delta * u * shared.b[n][n_state]);
            float read = h * c;
            if (dense) {
                float sum = 0.0f;
#pragma unroll
                for (int i = 0; i < NEIGHBOURS; i++) sum += below[i][n];
                read = fmaf(shared.projected[1][n][own] * shared.projected[2][n][n_state] * c, sum, read);
            }
            layer.next_state[((size_t)n * INNER + block * CHANNELS + own) * STATES + n_state] = h;
#pragma unroll
            for (int i = NEIGHBOURS - 1; i > 0; i--) below[i][n] = below[i - 1][n];
            below[0][n] = h;
#pragma unroll
            for (int distance = 8; distance; distance >>= 1) read += __shfl_xor_sync(~0u, read, distance);
            float y = fmaf(ahead.skip, u, read) * shared.own_z[n][own];
            float other = __shfl_down_sync(~0u, y, 16);
            if (lane == 0) put(p.y + ((size_t)side * BATCH + n) * (INNER / 2) + block * (CHANNELS / 2) + warp, pack(y, other), phase);
        }
        ahead.load(p.layers[l + 1 < LAYERS ? l + 1 : l], block, warp, lane);

        // out_proj.
        {
            u64 words[BATCH][PAIRS];
            await(words, p.y + (size_t)side * BATCH * (INNER / 2) + threadIdx.x * PAIRS, INNER / 2, phase);
#pragma unroll
            for (int n = 0; n < BATCH; n++) {
                u32 *to = reinterpret_cast<u32 *>(shared.rows + n * WIDER) + threadIdx.x * PAIRS;
#pragma unroll
                for (int i = 0; i < PAIRS; i++) to[i] = (u32)words[n][i];
            }
        }
        __syncthreads();
        await_bytes(&shared.out_full[l % OUT_STAGES], l / OUT_STAGES & 1);
        float c[4] = {};
        const uint4 none = make_uint4(0, 0, 0, 0);
        const char *rows = shared.out[l % OUT_STAGES] + lane / 4 * WIDER;
#pragma unroll
        for (int j = 0; j < INNER / WARPS / 32; j++) {
            int offset = (warp * (INNER / WARPS) + j * 32 + lane % 4 * 8) * 2;
            product(c, load_shared16(rows + offset), none, load_row(shared.rows, WIDER, offset, lane));
        }
        auto &parts = shared.parts[(l + 1) % RED_STAGES];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int n = lane % 4 * 2 + i;
            if (n < BATCH) parts[warp][n][lane / 4] = c[i];
        }
        __syncthreads();
        if (warp == WARPS - 1) copy_out(l + OUT_STAGES);
        if (warp < BATCH && lane < OUT) {
            float sum = residual;
#pragma unroll
            for (int w = 0; w < WARPS; w++) sum += parts[w][warp][lane];
            residual = sum;
            put(p.x + ((size_t)(side ^ 1) * BATCH + warp) * HIDDEN + block * OUT + lane, __float_as_uint(sum), phase + 1);
        }
    }

    // The head: stages go on as if they were layers.
    float weight[VALUES];
#pragma unroll
    for (int i = 0; i < VALUES; i++) weight[i] = p.norm[threadIdx.x * VALUES + i];
    u64 words[BATCH][VALUES];
    await(words, p.x + (size_t)(LAYERS & 1) * BATCH * HIDDEN + threadIdx.x * VALUES, HIDDEN, base + LAYERS);
#pragma unroll
    for (int n = 0; n < BATCH; n++)
#pragma unroll
        for (int i = 0; i < VALUES; i++) x[n][i] = __uint_as_float((u32)words[n][i]);
    norm(weight);
    int tile = block, stage = LAYERS;
    for (; tile < tiles; tile += BLOCKS, stage++) {
        rows_product(stage);
        int row = tile * ROWS + lane;
        if (warp < BATCH && row < (int)p.vocabulary) p.logits[(size_t)warp * p.vocabulary + row] = row_sum(stage, warp);
        if (RED_STAGES == 1) __syncthreads();
    }
    // No copy may be under way when the block ends; those past the last tile are empty.
    for (int i = 0; i < IN_STAGES; i++, stage++) await_bytes(&shared.in_full[stage % IN_STAGES], stage / IN_STAGES & 1);
    if (block == 0 && threadIdx.x == 0) *p.step = step + 1;
}
