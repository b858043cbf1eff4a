// One token of a whole Mamba or DenseMamba model for few rows, as one persistent kernel.
//
// A decode step has to read all weights once, in an order that its dependencies fix: three exchanges between all blocks
// for each layer. Nothing here waits for a barrier of the whole grid. Each block owns 16 channels of every layer and
// 8 outputs of every out_proj (and `GATE_BLOCKS` further blocks own the rows of the gates' first layers), so the states
// of its channels, and those of the layers below, stay in its registers.
//
//   1  x -> norm -> in_proj of own channels -> convolution -> own channels' part of x_proj
//   2  all parts of x_proj -> dt_proj and gates of own channels -> scan step -> y of own channels
//   3  all y -> own rows of out_proj -> x
//
// A warp of its own copies the weights of in_proj and out_proj to shared memory, up to two layers ahead, whatever the
// exchanges do meanwhile. It copies piece by piece with `FLIGHT` pieces under way: enough for the bandwidth of the
// memory, and no more, because the polls of the exchanges queue behind the pieces. All other weights and the states
// are read into registers; they are asked for into the L2 cache when the copies of their layer begin, because loads
// from the memory would delay the polls that follow them in the same multiprocessor.
//
// What is exchanged are 64-bit words whose upper 16 bits are a phase, written and read as one; a reader polls the words
// themselves. Words of x hold two numbers of 24 bits, those of y up to three of 16 bits; thread t reads the words 2 t and
// 2 t + 1 of each 2 `THREADS`. The parts of x_proj are added up by atomic additions of fixed-point numbers, whose order
// does not matter: the low 8 bits of a sum count its parts. The products use the tensor cores with up to eight rows of
// the batch as columns; the lanes of a quad take eight consecutive numbers of k each, which is a permutation of k that
// both operands share.
#include "mma.cuh"

constexpr int THREADS = 256, WARPS = 8;                 // that compute; one more warp copies
constexpr int CHANNELS = 16;                            // of a block
constexpr int CHANNEL_BLOCKS = INNER / CHANNELS;
constexpr int ROWS = 2 * CHANNELS;                      // of in_proj, or of the gates' first layers
constexpr int GATE_BLOCKS = NEIGHBOURS ? 2 * GATE / ROWS : 0;
constexpr int BLOCKS = CHANNEL_BLOCKS + GATE_BLOCKS;
constexpr int OUT = HIDDEN / CHANNEL_BLOCKS;            // rows of out_proj of a block
constexpr int SUMS = RANK + 2 * STATES;                 // outputs of x_proj
constexpr int REPLICAS = BATCH <= 2 ? 4 : 2;            // of each sum, against contention
constexpr int PARTS = CHANNEL_BLOCKS / REPLICAS;        // of each replica
constexpr int BACK = TAPS - 1;
constexpr int WIDE = HIDDEN * 2 + 64, WIDER = INNER * 2 + 64;  // bytes of a row in shared memory, without bank conflicts
constexpr int IN_STAGES = 2, OUT_STAGES = BATCH <= 4 ? 2 : 1, RED_STAGES = BATCH <= 4 ? 2 : 1;
constexpr int IN_PIECE = 4, OUT_PIECE = 2;              // rows of a piece
constexpr int IN_PIECES = ROWS / IN_PIECE, OUT_PIECES = OUT / OUT_PIECE;  // of a stage
constexpr int FLIGHT = 3;                               // pieces under way
constexpr float FIXED = 17179869184.0f;                 // 2^34

// Words of an exchange.
constexpr int VALUES = HIDDEN / THREADS;                // numbers of x that a thread reads, of each row
constexpr int X_WORDS = VALUES / 2;                     // words of them
constexpr int OWN_CHANNELS = INNER / THREADS;           // channels of y that a thread reads
constexpr int Y_ROWS = BATCH == 1 ? 1 : BATCH <= 6 ? 3 : 2;            // rows of the batch in a word of y
constexpr int Y_GROUPS = BATCH == 1 ? 1 : BATCH <= 3 ? 1 : BATCH <= 6 ? 2 : 4;  // words of y for each channel ..
constexpr int Y_CHANNELS = BATCH == 1 ? 2 : 1;                         // .. or for two, of one row
constexpr int Y_WORDS = OWN_CHANNELS / Y_CHANNELS * Y_GROUPS;          // words of a thread
static_assert(STATES == 16 && OUT == 8 && HIDDEN % 1024 == 0 && INNER % 2048 == 0, "sizes");
static_assert(RANK % 32 == 0 && SUMS % 16 == 0 && SUMS <= 128 && GATE % 32 == 0 && BATCH >= 1 && BATCH <= 8, "sizes");
static_assert(2 * GATE <= 128 && PARTS < 256, "sizes");
static_assert(FLIGHT <= IN_PIECES, "no more pieces under way than a stage has");

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
    u64 *x, *g, *y, *sums; // words as many as `mamba_step_shape` says, zero at first and whenever `step` is set to zero
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
    u64 in_full[IN_STAGES][IN_PIECES], out_full[OUT_STAGES][OUT_PIECES];  // a piece has arrived
    u64 in_free[IN_STAGES], out_free[OUT_STAGES];                         // a stage has been used
};

static_assert(sizeof(Shared) <= 227 << 10, "shared memory");

extern __shared__ __align__(128) char dynamic[];

// What the host has to launch and to allocate: blocks, threads of a block, bytes of dynamic shared memory; words of x,
// g, y and sums.
extern "C" __device__ const u32 mamba_step_shape[7] = {
    BLOCKS, THREADS + 32, sizeof(Shared), 2 * BATCH * HIDDEN / 2, 2 * BATCH * 2 * GATE, 2 * THREADS * Y_WORDS,
    2 * LAYERS * REPLICAS * BATCH * SUMS,
};

// ---- Words. ----

// The phase is the upper 16 bits.
__device__ __forceinline__ void put(u64 *to, u64 value, u32 phase) {
    u64 word = (u64)phase << 48 | value;
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
__device__ __forceinline__ bool has_phase(u64 word, u32 phase) { return (u32)(word >> 48) == (phase & 0xffff); }

// The upper 24 bits of a number, rounded to even.
__device__ __forceinline__ u32 upper24(float x) {
    u32 bits = __float_as_uint(x);
    return (bits + 0x7f + (bits >> 8 & 1)) >> 8;
}
__device__ __forceinline__ float first24(u64 word) { return __uint_as_float((u32)word << 8); }
__device__ __forceinline__ float second24(u64 word) { return __uint_as_float((u32)(word >> 16) & 0xffffff00u); }

// Waits for a thread's words. Where they are many, polling them all would keep the path to the L2 cache busy: the last
// two are polled first.
template <int COUNT>
__device__ __forceinline__ void await(u64 (&words)[COUNT], const u64 *from, u32 phase) {
    bool all;
    from += threadIdx.x * 2;
    if (COUNT > 4) {
        do {
            u64 last[2];
            get_two(last, from + (COUNT - 2) * THREADS);
            all = has_phase(last[0], phase) && has_phase(last[1], phase);
        } while (!all);
    }
    do {
        all = true;
#pragma unroll
        for (int i = 0; i < COUNT; i += 2) get_two(&words[i], from + i * THREADS);
#pragma unroll
        for (int i = 0; i < COUNT; i++) all &= has_phase(words[i], phase);
    } while (!all);
}

// Waits for x: all words of each row of the batch.
__device__ __forceinline__ void await_x(float (&x)[BATCH][VALUES], const u64 *from, u32 phase) {
    u64 words[BATCH * X_WORDS];
    await(words, from, phase);
#pragma unroll
    for (int n = 0; n < BATCH; n++)
#pragma unroll
        for (int i = 0; i < X_WORDS; i++) {
            u64 word = words[n * X_WORDS + i];
            x[n][2 * i] = first24(word), x[n][2 * i + 1] = second24(word);
        }
}

// Number r of a word of y, in the lower half of the result, and the same of another word in the upper half.
__device__ __forceinline__ u32 pair_of(u64 word, u64 other, int r) {
    return r == 0 ? __byte_perm((u32)word, (u32)other, 0x5410)
         : r == 1 ? __byte_perm((u32)word, (u32)other, 0x7632)
                  : __byte_perm((u32)(word >> 32), (u32)(other >> 32), 0x5410);
}

// Waits for y and puts it into shared memory, as the right operand. More than six rows are waited for in two parts, as
// registers do not suffice for one.
__device__ __forceinline__ void await_y(char *rows, const u64 *from, u32 phase) {
    constexpr int PARTS = BATCH > 6 ? 2 : 1, WORDS = Y_WORDS / PARTS, COUNT = OWN_CHANNELS / PARTS;
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
        u64 words[WORDS];
        await(words, from + part * WORDS * THREADS, phase);
#pragma unroll
        for (int n = 0; n < BATCH; n++)
#pragma unroll
            for (int c = 0; c < COUNT; c += 4) {
                u32 v[2];
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    int channel = c + 2 * i;
                    if (Y_CHANNELS == 2) v[i] = (u32)words[channel / 2];
                    else v[i] = pair_of(words[channel * Y_GROUPS + n / Y_ROWS], words[(channel + 1) * Y_GROUPS + n / Y_ROWS], n % Y_ROWS);
                }
                int at = threadIdx.x * OWN_CHANNELS + part * COUNT + c;
                *reinterpret_cast<uint2 *>(rows + n * WIDER + at * 2) = make_uint2(v[0], v[1]);
            }
    }
}

// Where a channel's words of y lie.
__device__ __forceinline__ int y_word(int channel, int group) {
    int word = channel % OWN_CHANNELS / Y_CHANNELS * Y_GROUPS + group;
    return word / 2 * 2 * THREADS + channel / OWN_CHANNELS * 2 + word % 2;
}
// Where the words of two numbers of a row of x lie.
__device__ __forceinline__ int x_word(int number) {
    int word = number % VALUES / 2;
    return word / 2 * 2 * THREADS + number / VALUES * 2 + word % 2;
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

__device__ __forceinline__ void arrive(u64 *barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
// Asks for memory into the L2 cache; address and length are multiples of 16.
__device__ __forceinline__ void prefetch(const void *from, u32 bytes) {
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
}
// A barrier of the warps that compute.
__device__ __forceinline__ void synchronize() { asm volatile("bar.sync 1, %0;" ::"n"(THREADS) : "memory"); }
// Waits for the pieces of a stage, one for each lane.
template <int PIECES>
__device__ __forceinline__ void await_pieces(u64 (&barriers)[PIECES], u32 parity) {
    if (threadIdx.x % 32 < PIECES) await_bytes(&barriers[threadIdx.x % 32], parity);
    __syncwarp();
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

// Weights and states of a layer that a thread keeps in registers; they are loaded an exchange before they are used.
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

// The warp that copies weights.
struct Copies {
    const Model &p;
    Shared &shared;
    const int block, lane, tiles;
    const bool has_channels;
    u64 policy;
    u64 *under_way[FLIGHT];   // barriers of the last pieces, the oldest first
    u32 parities;             // of these, bit i for piece i

    __device__ __forceinline__ Copies(const Model &p, Shared &shared, int tiles)
        : p(p), shared(shared), block(blockIdx.x), lane(threadIdx.x % 32), tiles(tiles), has_channels(blockIdx.x < CHANNEL_BLOCKS) {
        asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
#pragma unroll
        for (int i = 0; i < FLIGHT; i++) under_way[i] = nullptr;
        parities = 0;
    }

    // A piece of `rows` rows, one for each lane, after the oldest piece under way.
    __device__ __forceinline__ void piece(char *to, int stride, const act *from, int width, int rows, u64 *barrier, u32 parity) {
        if (under_way[0]) await_bytes(under_way[0], parities & 1);
#pragma unroll
        for (int i = 0; i + 1 < FLIGHT; i++) under_way[i] = under_way[i + 1];
        under_way[FLIGHT - 1] = barrier;
        parities = parities >> 1 | parity << (FLIGHT - 1);
        if (lane == 0) expect_bytes(barrier, rows * width * 2);
        __syncwarp();
        if (lane < rows) bulk_copy(to + lane * stride, from, width * 2, barrier, policy);
    }

    // The rows of in_proj (or of the gates) of a layer; past the last layer, those of the head.
    __device__ __forceinline__ void in(int stage) {
        int slot = stage % IN_STAGES, use = stage / IN_STAGES, rows = ROWS, tile = (stage - LAYERS) * BLOCKS + block;
        if (use) await_bytes(&shared.in_free[slot], use - 1 & 1);
        if (stage >= LAYERS) rows = min(ROWS, (int)p.vocabulary - tile * ROWS);
        else if (!has_channels && !p.layers[stage].gates) rows = 0;
        for (int i = 0; i < IN_PIECES; i++) {
            int row = i * IN_PIECE + lane;
            const act *from = stage >= LAYERS ? p.head + ((size_t)tile * ROWS + row) * HIDDEN
                            : has_channels    ? p.layers[stage].in_proj + (size_t)(block * CHANNELS + row % CHANNELS + row / CHANNELS * INNER) * HIDDEN
                                              : p.layers[stage].gates + (size_t)((block - CHANNEL_BLOCKS) * ROWS + row) * HIDDEN;
            piece(shared.in[slot] + i * IN_PIECE * WIDE, WIDE, from, HIDDEN, max(0, min(IN_PIECE, rows - i * IN_PIECE)),
                  &shared.in_full[slot][i], use & 1);
        }
    }
    __device__ __forceinline__ void out(int stage) {
        int slot = stage % OUT_STAGES, use = stage / OUT_STAGES;
        if (use) await_bytes(&shared.out_free[slot], use - 1 & 1);
        for (int i = 0; i < OUT_PIECES; i++)
            piece(shared.out[slot] + i * OUT_PIECE * WIDER, WIDER,
                  p.layers[stage].out_proj + (size_t)(block * OUT + i * OUT_PIECE + lane) * INNER, INNER, OUT_PIECE,
                  &shared.out_full[slot][i], use & 1);
    }

    // Asks for what `Ahead` loads: the block's own part, and of what blocks share an equal part.
    __device__ __forceinline__ void rest(const Layer &layer) {
        constexpr int FIXED_ITEMS = 10;
        const size_t first = (size_t)block * CHANNELS;
        for (int item = lane; item < FIXED_ITEMS + 2 * BATCH; item += 32) {
            const void *from = nullptr;
            int bytes = 0;
            auto own = [&](const auto *matrix, int width) { from = matrix + first * width, bytes = CHANNELS * width * (int)sizeof(*matrix); };
            auto part = [&](const auto *matrix, int count) { from = matrix + block * (count / CHANNEL_BLOCKS), bytes = count / CHANNEL_BLOCKS * (int)sizeof(*matrix); };
            if (item == 0) part(layer.x_proj, SUMS * INNER);
            else if (item == 1) own(layer.dt_proj, RANK);
            else if (item == 2) own(layer.a, STATES);
            else if (item == 3) own(layer.conv_weight, TAPS);
            else if (item == 4) own(layer.conv_bias, 1);
            else if (item == 5) own(layer.dt_bias, 1);
            else if (item == 6) own(layer.skip, 1);
            else if (item == 7) part(layer.norm, HIDDEN);
            else if (item == 8 && NEIGHBOURS && layer.gates) own(layer.channel_gate, GATE);
            else if (item == 9 && NEIGHBOURS && layer.gates) part(layer.state_gate, STATES * GATE);
            else if (item >= FIXED_ITEMS && item < FIXED_ITEMS + BATCH) own(layer.state + (size_t)(item - FIXED_ITEMS) * INNER * STATES, STATES);
            else if (item >= FIXED_ITEMS + BATCH) own(layer.conv + (size_t)(item - FIXED_ITEMS - BATCH) * INNER * BACK, BACK);
            if (bytes >= 16) prefetch(from, bytes / 16 * 16);
        }
    }

    __device__ __forceinline__ void all() {
        // Where there is one stage for out_proj, it becomes free at the end of a layer: the next layer's in_proj first.
        constexpr int BEHIND = OUT_STAGES == 1 ? 1 : 0;
        for (int l = 0; l < LAYERS + BEHIND; l++) {
            if (l < LAYERS) {
                if (has_channels && l) rest(p.layers[l]);
                in(l);
            }
            if (has_channels && l >= BEHIND) out(l - BEHIND);
        }
        for (int stage = LAYERS; (stage - LAYERS) * BLOCKS + block < tiles; stage++) in(stage);
    }
};

// The grid has BLOCKS blocks, all resident at once; `Shared` is dynamic shared memory.
extern "C" __global__ void __launch_bounds__(THREADS + 32, 1) mamba_step(const __grid_constant__ Model p) {
    Shared &shared = *reinterpret_cast<Shared *>(dynamic);
    const int block = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const bool has_channels = block < CHANNEL_BLOCKS;
    const u32 step = *p.step, base = step * (LAYERS + 2) + 1;
    const float epsilon = __uint_as_float((u32)p.epsilon);
    const int tiles = ((int)p.vocabulary + ROWS - 1) / ROWS;

    if (threadIdx.x == 0) {
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
    __syncthreads();
    if (warp == WARPS) {
        Copies(p, shared, tiles).all();
        return;
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
        synchronize();
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
        synchronize();
    };
    // Products of the 32 rows of a stage with the normed x, a warp an eighth of k; then the sums over the warps.
    auto rows_product = [&](int stage) {
        await_pieces(shared.in_full[stage % IN_STAGES], stage / IN_STAGES & 1);
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
        synchronize();
        if (threadIdx.x == 0) arrive(&shared.in_free[stage % IN_STAGES]);
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
        if (l) await_x(x, p.x + (size_t)side * BATCH * HIDDEN / 2, phase);
        if (!has_channels && !layer.gates) {
            // The first layer has no gates: its stage is empty.
            await_pieces(shared.in_full[l % IN_STAGES], l / IN_STAGES & 1);
            synchronize();
            if (threadIdx.x == 0) arrive(&shared.in_free[l % IN_STAGES]);
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
        synchronize();
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
            if (BATCH > 2) {
                do {
                    all = (u32)(get(sums + (BATCH - 1) * SUMS + threadIdx.x) & 255) == PARTS;
                } while (!all);
            }
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
                for (int n = 0; n < BATCH; n++) all &= has_phase(words[n], phase);
            } while (!all);
#pragma unroll
            for (int n = 0; n < BATCH; n++) shared.g[n][at] = to_act(__uint_as_float((u32)words[n]));
        }
        synchronize();
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
        synchronize();

        // The scan's step: lane / 16 chooses one of the warp's two channels, lane % 16 the state.
        const int own = 2 * warp + lane / 16, n_state = lane % 16;
        u64 *to_y = p.y + (size_t)side * THREADS * Y_WORDS;
        u64 words[Y_GROUPS] = {};
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
            if (Y_CHANNELS == 2) words[0] = pack(y, __shfl_down_sync(~0u, y, 16));
            else words[n / Y_ROWS] |= (u64)(pack(y, 0.0f) & 0xffff) << (n % Y_ROWS * 16);
        }
        if (Y_CHANNELS == 2 ? lane == 0 : lane % 16 == 0)
#pragma unroll
            for (int i = 0; i < Y_GROUPS; i++) put(to_y + y_word(block * CHANNELS + own, i), words[i], phase);

        // out_proj.
        await_y(shared.rows, to_y, phase);
        synchronize();
        ahead.load(p.layers[l + 1 < LAYERS ? l + 1 : l], block, warp, lane);
        await_pieces(shared.out_full[l % OUT_STAGES], l / OUT_STAGES & 1);
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
        synchronize();
        if (threadIdx.x == 0) arrive(&shared.out_free[l % OUT_STAGES]);
        if (warp < BATCH) {
            if (lane < OUT)
#pragma unroll
                for (int w = 0; w < WARPS; w++) residual += parts[w][warp][lane];
            u32 own24 = upper24(residual), next = __shfl_down_sync(~0u, own24, 1);
            u64 *to = p.x + ((size_t)(side ^ 1) * BATCH + warp) * (HIDDEN / 2);
            if (lane < OUT && lane % 2 == 0) put(to + x_word(block * OUT + lane), (u64)next << 24 | own24, phase + 1);
        }
    }

    // The head: stages go on as if they were layers.
    float weight[VALUES];
#pragma unroll
    for (int i = 0; i < VALUES; i++) weight[i] = p.norm[threadIdx.x * VALUES + i];
    await_x(x, p.x + (size_t)(LAYERS & 1) * BATCH * HIDDEN / 2, base + LAYERS);
    norm(weight);
    int tile = block, stage = LAYERS;
    for (; tile < tiles; tile += BLOCKS, stage++) {
        rows_product(stage);
        int row = tile * ROWS + lane;
        if (warp < BATCH && row < (int)p.vocabulary) p.logits[(size_t)warp * p.vocabulary + row] = row_sum(stage, warp);
        if (RED_STAGES == 1) synchronize();
    }
    if (block == 0 && threadIdx.x == 0) *p.step = step + 1;
}
