// One token of a whole DenseRetNet model for few rows, as one persistent kernel.
//
// A decode step has to read all weights, and to read and write all states, once. Each of the `OWNERS` blocks owns the
// same part of every layer: `PAIRS` pairs of q and of k, `COLUMNS` columns of v, of g and of their head's states, and
// `OUT` outputs of the out product; four further blocks own the rows of the gates' first layers. v and g never leave
// their block. What blocks tell each other in a layer:
//
//   1  x -> norm -> gates' first layers (their blocks) -> the middles
//                -> q, k of own pairs, v, g of own columns; rotation -> q
//      with the middles: gates of own k and v, neighbours, rotation -> k, sums of squares of k and v
//   2  q and k of the head, all sums -> own columns of the states, their readout o -> o g and sums of squares of o
//   3  all o g, all sums -> own rows of the out product -> x
//
// A norm's factor is a scalar for each row (and head), so products with what it scales begin before it is known.
// The middles and q travel while a block still has rows of v and g to multiply. Meanwhile a warp of its own copies weights to a ring of pieces in shared memory, in the
// order of their use and as far ahead as the ring is long, with `FLIGHT` pieces under way.
// States pass through registers: while a row of the batch is computed, the next row's are loaded.
//
// What is exchanged are 64-bit words whose upper bits are a phase, written and read as one; a reader polls the words
// themselves. Words of x, q and k hold two numbers of 24 bits, those of o g three of 20 bits, which have the range of
// fp32. A word is written again only after all its readers have told something that depends on it, so one buffer of
// each kind suffices. The products use the tensor cores with up to eight rows of the batch as columns; the lanes of a
// quad take eight consecutive numbers of k each, which is a permutation of k that both operands share.
#include "mma.cuh"

#ifndef FLIGHT
#define FLIGHT 2   // pieces under way
#endif
#ifndef LOAD_AT
#define LOAD_AT 0  // when the first row's states are loaded: 0 when x is there, 1 when o g of the layer before is
#endif
#ifndef MOST_ROWS
#define MOST_ROWS 4  // of the batch whose o g a thread holds at once
#endif
#ifndef PRODUCT_UNROLL
#define PRODUCT_UNROLL 6
#endif

constexpr int THREADS = 256, WARPS = 8;          // that compute; one more warp copies
constexpr int OWNERS = 128;                      // blocks that own columns of the states
constexpr bool GATED = NEIGHBOURS > 0;
constexpr int GATE_BLOCKS = GATED ? 4 : 0;
constexpr int BLOCKS = OWNERS + GATE_BLOCKS;
constexpr int KEYS = QUERY_KEYS / HEADS, VALUES = INNER / HEADS;  // of a head
constexpr int OF_HEAD = OWNERS / HEADS;          // blocks of a head
constexpr int PAIRS = QUERY_KEYS / OWNERS / 2;
constexpr int QUERIES = 2 * PAIRS;               // rows of q, and of k, of a block
constexpr int COLUMNS = INNER / OWNERS;
constexpr int OUT = HIDDEN / OWNERS;
constexpr int MIDDLES = KEY_GATE + VALUE_GATE;
constexpr int GATE_ROWS = MIDDLES / 4;           // of a gate block
constexpr int EACH = (COLUMNS + 31) / 32;        // columns of a lane

constexpr int padded(int bytes) { return (bytes + 63) / 128 * 128 + 64; }  // rows in shared memory, without bank conflicts
constexpr int WIDE = HIDDEN * 2 + 64, WIDER = INNER * 2 + 64;
constexpr int KEY_STRIDE = padded(KEY_GATE * 2), VALUE_STRIDE = padded(VALUE_GATE * 2);
#ifndef PIECE_ROWS
#define PIECE_ROWS 4
#endif
constexpr int UNROLL = PRODUCT_UNROLL;          // of the steps of k in a product
constexpr int PIECE = PIECE_ROWS, OUT_PIECE = PIECE / 2;  // rows of a piece
constexpr int SLOT = PIECE * WIDE;               // bytes of one
constexpr int TILE = 24;                         // rows of the head at once
#ifndef GATE_TILE
#define GATE_TILE (BATCH <= 2 ? 64 : 32)
#endif
constexpr int GATES_AT_ONCE = GATE_ROWS < GATE_TILE ? GATE_ROWS : GATE_TILE;  // rows of the gates
constexpr int LARGER = COLUMNS > TILE ? COLUMNS : TILE, LARGEST = GATED && GATES_AT_ONCE > LARGER ? (GATES_AT_ONCE + 3) / 4 * 4 : LARGER;

// The states: a warp reads KEYS_AT_ONCE rows of COLUMNS columns at once, 16 bytes a lane.
constexpr int QUADS = COLUMNS / 4;
constexpr int KEYS_AT_ONCE = 32 / QUADS < 8 ? 32 / QUADS : 8;
constexpr int ROUNDS = (KEYS + WARPS * KEYS_AT_ONCE - 1) / (WARPS * KEYS_AT_ONCE);

// Pairs of words of an exchange, for one row of the batch.
constexpr int X_PAIRS = HIDDEN / 4, G_PAIRS = MIDDLES / 4, Y_PAIRS = (COLUMNS + 5) / 6, QK_PAIRS = KEYS / 2;
constexpr int X_WARPS = X_PAIRS / 32;            // that read a row of x
constexpr int X_ROUNDS = (BATCH * X_WARPS + WARPS - 1) / WARPS;

static_assert(OWNERS % HEADS == 0 && HEADS >= 2 && HEADS <= 32, "heads");
static_assert(QUERY_KEYS % (2 * OWNERS) == 0 && QUERIES <= 16 && HIDDEN % 256 == 0 && INNER == 2 * HIDDEN, "sizes");
static_assert(COLUMNS % 4 == 0 && COLUMNS <= 64 && OUT % 2 == 0 && OUT <= 32 && OUT <= LARGEST && 2 * QUERIES <= LARGEST, "sizes");
static_assert(!GATED || (MIDDLES % 8 == 0 && KEY_GATE % 8 == 0 && VALUE_GATE % 8 == 0), "sizes of the gates");
static_assert(LARGEST % 4 == 0 && WIDE % 16 == 0 && WIDER % 16 == 0, "alignment");
static_assert(BATCH >= 1 && BATCH <= WARPS && OUT_PIECE * WIDER <= SLOT, "rows");

struct Layer {
    const float *norm;                        // [hidden]
    const act *q, *k;                         // [query_keys, hidden]
    const act *v, *g;                         // [inner, hidden]
    const act *key_gate_in, *value_gate_in;   // [key_gate, hidden], [value_gate, hidden]; null without neighbours
    const act *key_gate, *value_gate;         // [query_keys, key_gate], [inner, value_gate]; null without neighbours
    const float *key_norm, *value_norm;       // [query_keys], [inner]; null in the first layer
    const float *group_norm;                  // [values]
    const act *out;                           // [hidden, inner]
    const float *state;                       // [batch, heads, keys, values]
    float *next_state;                        // likewise; may be the same memory
};

struct Model {
    const int *tokens;           // [batch]
    const long long *past;       // [batch]: tokens before this one
    const act *embedding;        // [vocabulary, hidden]
    const float *norm;           // [hidden]
    const act *head;             // [vocabulary, hidden]
    float *logits;               // [batch, vocabulary]
    u64 *x, *g, *qk, *sums, *y;  // words as many as `retnet_step_shape` says, zero at first and whenever `step` is set to zero
    u32 *step;                   // steps so far
    u64 vocabulary, epsilon;
    Layer layers[LAYERS];
};

// What is copied, or read or written 16 bytes at a time, is aligned so; the sizes of rows keep it.
struct __align__(128) Rest {
    __align__(16) char rows[BATCH * WIDER];         // normed x; q and k; o g
    __align__(16) float norm[HIDDEN];               // these three are copied together
    __align__(16) char key_gate[GATED ? QUERIES * KEY_STRIDE : 16];
    __align__(16) char value_gate[GATED ? COLUMNS * VALUE_STRIDE : 16];
    __align__(16) float parts[2][WARPS][BATCH][LARGEST];
    __align__(16) act key_middle[BATCH][KEY_GATE + 32];
    __align__(16) act value_middle[BATCH][VALUE_GATE + 32];
    __align__(16) float v[BATCH][COLUMNS];          // v, then o g
    float squares[BATCH * X_WARPS];
    float gates[BATCH][QUERIES + COLUMNS], g[BATCH][COLUMNS];
    float factor[BATCH], factors[BATCH][HEADS];     // of k v, of o
    // What stays the same from layer to layer, or is handed on, of a row of the batch: its rotation (of own pairs), its
    // normaliser, own part of x, and own keys and values of the layers before.
    float cosine[BATCH][PAIRS], sine[BATCH][PAIRS], scale[BATCH], x[BATCH][OUT];
    float below[GATED ? NEIGHBOURS : 1][BATCH][QUERIES + COLUMNS];
    u64 small_full, small_free;
};

constexpr int SLOTS_FIT = ((227 << 10) - (int)sizeof(Rest) - 1024) / SLOT, SLOTS = SLOTS_FIT < 40 ? SLOTS_FIT : 40;
static_assert(SLOTS >= FLIGHT && SLOTS >= 2 * LARGER / PIECE - 2 && SLOTS * PIECE >= LARGEST, "shared memory");

struct __align__(128) Shared {
    char ring[SLOTS][SLOT];
    Rest rest;
    u64 full[SLOTS], free[SLOTS];
};
static_assert(sizeof(Shared) <= 227 << 10, "shared memory");

extern __shared__ __align__(128) char dynamic[];

// What the host has to launch and to allocate: blocks, threads of a block, bytes of dynamic shared memory; words of x,
// g, qk, sums and y.
extern "C" __device__ const u32 retnet_step_shape[8] = {
    BLOCKS, THREADS + 32, sizeof(Shared), BATCH * X_PAIRS * 2, BATCH * G_PAIRS * 2, BATCH * HEADS * QK_PAIRS * 2,
    2 * BATCH * OWNERS, BATCH * OWNERS * Y_PAIRS * 2,
};

// ---- Words. ----

// The phase is in the upper 16 bits, or 4 bits.
template <int BITS = 16>
__device__ __forceinline__ void put(u64 *to, u64 value, u32 phase) {
    u64 word = (u64)phase << (64 - BITS) | value;
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(word) : "memory");
}
__device__ __forceinline__ void get_two(u64 *to, const u64 *from) {
    asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];" : "=l"(to[0]), "=l"(to[1]) : "l"(from) : "memory");
}
template <int BITS>
__device__ __forceinline__ bool has_phase(u64 word, u32 phase) { return (u32)(word >> (64 - BITS)) == (phase & ((1 << BITS) - 1)); }

// The upper 24 or 20 bits of a number, rounded to even.
__device__ __forceinline__ u64 upper24(float x) {
    u32 bits = __float_as_uint(x);
    return (bits + 0x7f + (bits >> 8 & 1)) >> 8;
}
__device__ __forceinline__ u64 two24(float first, float second) { return upper24(second) << 24 | upper24(first); }
__device__ __forceinline__ u64 upper20(float x) {
    u32 bits = __float_as_uint(x);
    return (bits + 0x7ff + (bits >> 12 & 1)) >> 12;
}
__device__ __forceinline__ float first24(u64 word) { return __uint_as_float((u32)word << 8); }
__device__ __forceinline__ float second24(u64 word) { return __uint_as_float((u32)(word >> 16) & 0xffffff00u); }
template <int PLACE>
__device__ __forceinline__ float number20(u64 word) { return __uint_as_float((u32)(word >> (20 * PLACE)) << 12); }

// A number of which the compiler knows nothing: what is derived from it is not kept in registers from layer to layer.
__device__ __forceinline__ int fresh(int x) {
    asm volatile("" : "+r"(x));
    return x;
}

// Waits for COUNT pairs of words, which threads take in turn. `at(i)` is where the i-th pair of this thread lies. Where
// a thread has many, polling them all would keep the path to the L2 cache busy: the last is polled first. `others` polls
// other words and returns whether they are there.
template <int COUNT, int BITS, int ROUND, typename At, typename Others>
__device__ __forceinline__ void await(u64 (&words)[ROUND][2], int thread, u32 phase, At at, Others others) {
    static_assert(ROUND == (COUNT + THREADS - 1) / THREADS, "rounds");
    constexpr int WHOLE = COUNT / THREADS;  // rounds in which every thread has a pair
    bool all;
#if defined(NO_WAIT)
    constexpr bool AGAIN = false;
#else
    constexpr bool AGAIN = true;
#endif
    if (WHOLE > 2) {
        do {
            u64 last[2];
            get_two(last, at((WHOLE - 1) * THREADS + thread));
            all = has_phase<BITS>(last[0], phase) && has_phase<BITS>(last[1], phase);
        } while (AGAIN && !all);
    }
    do {
        all = others();
#pragma unroll
        for (int i = 0; i < ROUND; i++)
            if (i < WHOLE || i * THREADS + thread < COUNT) get_two(words[i], at(i * THREADS + thread));
#pragma unroll
        for (int i = 0; i < ROUND; i++)
            if (i < WHOLE || i * THREADS + thread < COUNT)
                all &= has_phase<BITS>(words[i][0], phase) && has_phase<BITS>(words[i][1], phase);
    } while (AGAIN && !all);
}

__device__ __forceinline__ bool no_others() { return true; }
// Polls a row's words of all owners: two pairs for each lane.
__device__ __forceinline__ bool poll_owners(u64 (&words)[2][2], const u64 *from, u32 phase, int lane) {
#pragma unroll
    for (int i = 0; i < 2; i++) get_two(words[i], from + (i * 32 + lane) * 2);
    bool all = true;
#pragma unroll
    for (int i = 0; i < 2; i++) all &= has_phase<16>(words[i][0], phase) && has_phase<16>(words[i][1], phase);
    return all;
}

// ---- Bulk copies. ----

__device__ __forceinline__ void init_barrier(u64 *barrier, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}
__device__ __forceinline__ void expect_bytes(u64 *barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
}
__device__ __forceinline__ void await_barrier(u64 *barrier, u32 parity) {
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
// A barrier of the warps that compute.
__device__ __forceinline__ void synchronize() { asm volatile("bar.sync 1, %0;" ::"n"(THREADS) : "memory"); }

// The warp that copies weights.
struct Copies {
    const Model &p;
    Shared &shared;
    const int block, lane, first_row, rows;  // of the head
    u64 policy;
    u32 count, smalls;

    __device__ __forceinline__ Copies(const Model &p, Shared &shared, int first_row, int rows)
        : p(p), shared(shared), block(blockIdx.x), lane(threadIdx.x % 32), first_row(first_row), rows(rows), count(0), smalls(0) {
        asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    }

    // The next piece of the ring: up to PIECE rows, one for each lane.
    __device__ __forceinline__ void piece(const act *from, int width, int stride, int rows) {
        u32 slot = count % SLOTS, use = count / SLOTS;
        if (use) await_barrier(&shared.free[slot], use - 1 & 1);
        if (count >= FLIGHT) await_barrier(&shared.full[(count - FLIGHT) % SLOTS], (count - FLIGHT) / SLOTS & 1);
        u64 *barrier = &shared.full[slot];
#if defined(NO_COPY)
        rows = 0;
#endif
        if (lane == 0) expect_bytes(barrier, rows * width * 2);
        __syncwarp();
        if (lane < rows) bulk_copy(shared.ring[slot] + lane * stride, from, width * 2, barrier, policy);
        count++;
    }
    // `total` rows of which `row(i)` is the i-th, in pieces.
    template <typename Row>
    __device__ __forceinline__ void pieces(int total, int whole, Row row) {
        for (int i = 0; i < whole; i += PIECE) piece(row(min(i + lane, whole - 1)), HIDDEN, WIDE, max(0, min(PIECE, total - i)));
    }

    // The norm of a layer's input, and own rows of the gates' second layers.
    __device__ __forceinline__ void small(const float *norm, const Layer *gated) {
        Rest &rest = shared.rest;
        if (smalls) await_barrier(&rest.small_free, smalls - 1 & 1);
        smalls++;
        if (lane == 0) {
            u32 bytes = HIDDEN * 4;
            if (gated) bytes += QUERIES * KEY_GATE * 2 + COLUMNS * VALUE_GATE * 2;
            expect_bytes(&rest.small_full, bytes);
            bulk_copy(rest.norm, norm, HIDDEN * 4, &rest.small_full, policy);
        }
        __syncwarp();
        if (!gated) return;
        if (lane < QUERIES)
            bulk_copy(rest.key_gate + lane * KEY_STRIDE, gated->key_gate + (size_t)(block * QUERIES + lane) * KEY_GATE, KEY_GATE * 2,
                      &rest.small_full, policy);
        for (int c = lane; c < COLUMNS; c += 32)
            bulk_copy(rest.value_gate + c * VALUE_STRIDE, gated->value_gate + (size_t)(block * COLUMNS + c) * VALUE_GATE, VALUE_GATE * 2,
                      &rest.small_full, policy);
    }

    __device__ __forceinline__ void all() {
        for (int l = 0; l < LAYERS; l++) {
            const Layer &layer = p.layers[l];
            bool gated = GATED && layer.key_gate;
            if (block >= OWNERS) {
                if (!gated) continue;
                small(layer.norm, nullptr);
                int first = (block - OWNERS) * GATE_ROWS;
                pieces(GATE_ROWS, GATE_ROWS, [&](int i) {
                    int row = first + i;
                    return row < KEY_GATE ? layer.key_gate_in + (size_t)row * HIDDEN : layer.value_gate_in + (size_t)(row - KEY_GATE) * HIDDEN;
                });
                continue;
            }
            small(layer.norm, gated ? &layer : nullptr);
            pieces(2 * QUERIES, 2 * QUERIES, [&](int i) {
                return i < QUERIES ? layer.q + (size_t)(block * QUERIES + i) * HIDDEN : layer.k + (size_t)(block * QUERIES + i - QUERIES) * HIDDEN;
            });
            pieces(COLUMNS, COLUMNS, [&](int i) { return layer.v + (size_t)(block * COLUMNS + i) * HIDDEN; });
            pieces(COLUMNS, COLUMNS, [&](int i) { return layer.g + (size_t)(block * COLUMNS + i) * HIDDEN; });
            for (int i = 0; i < OUT; i += OUT_PIECE)
                piece(layer.out + (size_t)(block * OUT + i + lane % OUT_PIECE) * INNER, INNER, WIDER, OUT_PIECE);
        }
        small(p.norm, nullptr);
        for (int tile = 0; tile < rows; tile += TILE)
            pieces(rows - tile, TILE, [&](int i) { return p.head + (size_t)(first_row + min(tile + i, rows - 1)) * HIDDEN; });
    }
};

// ---- Products. ----

__device__ __forceinline__ uint4 load_shared16(const void *from) { return *reinterpret_cast<const uint4 *>(from); }
// The right operand of a lane: eight numbers of row lane / 4 of the batch.
__device__ __forceinline__ uint4 load_row(const char *rows, int stride, int offset, int lane) {
    return lane / 4 < BATCH ? load_shared16(rows + lane / 4 * stride + offset) : make_uint4(0, 0, 0, 0);
}
// Two steps of k; `low` and `high` are eight numbers of rows lane / 4 and lane / 4 + 8.
__device__ __forceinline__ void multiply(float (&c)[4], uint4 low, uint4 high, uint4 b) {
    mma(c, low.x, high.x, low.y, high.y, b.x, b.y);
    mma(c, low.z, high.z, low.w, high.w, b.z, b.w);
}
// Sixteen rows of WIDTH numbers by the rows of the batch, by one warp; rows past `count` repeat the last.
template <int WIDTH, int STRIDE>
__device__ __forceinline__ void small_product(float (&c)[4], const char *rows, int count, const act *batch, int batch_stride, int lane) {
    const char *low = rows + min(lane / 4, count - 1) * STRIDE, *high = rows + min(lane / 4 + 8, count - 1) * STRIDE;
    const uint4 none = make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int j = 0; j < WIDTH; j += 32) {
        bool valid = j + lane % 4 * 8 < WIDTH;
        int offset = (j + lane % 4 * 8) * 2;
        multiply(c, valid ? load_shared16(low + offset) : none, valid ? load_shared16(high + offset) : none,
                 valid ? load_row((const char *)batch, batch_stride, offset, lane) : none);
    }
}

__device__ __forceinline__ float4 load_state(const float *p) {
    float4 v;
#ifndef STATE_READ
#define STATE_READ ".L1::no_allocate.L2::128B"
#endif
#ifndef STATE_WRITE
#define STATE_WRITE ".cs"
#endif
#if defined(NO_STATE)
    v = make_float4(1.0f, 0.0f, 0.0f, 0.0f);
#else
    asm volatile("ld.global" STATE_READ ".v4.f32 {%0,%1,%2,%3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "l"(p));
#endif
    return v;
}
__device__ __forceinline__ void store_state(float *p, float4 v) {
#if defined(NO_STATE)
    if (v.x != 1.2345f) return;
#endif
    asm volatile("st.global" STATE_WRITE ".v4.f32 [%0], {%1,%2,%3,%4};" ::"l"(p), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w) : "memory");
}

// The warps that compute.
struct Step {
    const Model &p;
    Shared &shared;
    Rest &rest;
    const int block, warp, lane;
    u32 pieces, smalls, turn;  // used so far; which of the two `parts`

    __device__ __forceinline__ Step(const Model &p, Shared &shared)
        : p(p), shared(shared), rest(shared.rest), block(blockIdx.x), warp(threadIdx.x / 32), lane(threadIdx.x % 32), pieces(0),
          smalls(0), turn(0) {}

    // The input of a layer, normed, into shared memory as the right operand. The first layer's is the embedding.
    __device__ __forceinline__ void normed(u32 phase, bool embedded, float epsilon) {
        const int thread = fresh(threadIdx.x) & (THREADS - 1), warp = thread / 32;
        u64 words[X_ROUNDS][2];
        if (embedded) {
#pragma unroll
            for (int i = 0; i < X_ROUNDS; i++) {
                int part = i * WARPS + warp, row = part / X_WARPS;
                if (part >= BATCH * X_WARPS) continue;
                float x[4];
                load4(x, p.embedding + (size_t)p.tokens[row] * HIDDEN + (part % X_WARPS * 32 + lane) * 4);
                words[i][0] = two24(x[0], x[1]), words[i][1] = two24(x[2], x[3]);
            }
        } else {
            await<BATCH * X_PAIRS, 16>(words, thread, phase, [&](int i) { return p.x + i * 2; }, no_others);
        }
#pragma unroll
        for (int i = 0; i < X_ROUNDS; i++) {
            int part = i * WARPS + warp;
            if (part >= BATCH * X_WARPS) continue;
            float a = first24(words[i][0]), b = second24(words[i][0]), c = first24(words[i][1]), d = second24(words[i][1]);
            float squares = warp_sum(fmaf(a, a, b * b) + fmaf(c, c, d * d));
            if (lane == 0) rest.squares[part] = squares;
        }
        await_barrier(&rest.small_full, smalls++ & 1);
        synchronize();
#pragma unroll
        for (int i = 0; i < X_ROUNDS; i++) {
            int part = i * WARPS + warp, row = part / X_WARPS, column = (part % X_WARPS * 32 + lane) * 4;
            if (part >= BATCH * X_WARPS) continue;
            float squares = 0.0f;
#pragma unroll
            for (int w = 0; w < X_WARPS; w++) squares += rest.squares[row * X_WARPS + w];
            float factor = rsqrtf(squares / HIDDEN + epsilon);
            float4 weight = *reinterpret_cast<const float4 *>(rest.norm + column);
            uint2 y = make_uint2(pack(first24(words[i][0]) * factor * weight.x, second24(words[i][0]) * factor * weight.y),
                                 pack(first24(words[i][1]) * factor * weight.z, second24(words[i][1]) * factor * weight.w));
            *reinterpret_cast<uint2 *>(rest.rows + row * WIDE + column * 2) = y;
        }
        synchronize();
    }
    // `norm`, `key_gate` and `value_gate` in shared memory have been used.
    __device__ __forceinline__ void free_small() {
        __syncwarp();
        if (lane == 0) arrive(&rest.small_free);
    }

    // Multiplies the next COUNT rows of the ring with the batch, a warp an eighth of k; `sum` adds the parts.
    template <int COUNT, int OF_PIECE, int WIDTH>
    __device__ __forceinline__ void product() {
        constexpr int STRIDE = WIDTH * 2 + 64, GROUPS = (COUNT + 7) / 8, TILES = (GROUPS + 1) / 2, PIECES = (COUNT + OF_PIECE - 1) / OF_PIECE;
        if (lane < PIECES) await_barrier(&shared.full[(pieces + lane) % SLOTS], (pieces + lane) / SLOTS & 1);
        __syncwarp();
        const char *rows[2 * TILES];
#pragma unroll
        for (int g = 0; g < GROUPS; g++) {
            int row = min(g * 8 + lane / 4, COUNT - 1);
            rows[g] = shared.ring[(pieces + row / OF_PIECE) % SLOTS] + row % OF_PIECE * STRIDE;
        }
        float c[TILES][4] = {};
#pragma unroll UNROLL
        for (int j = 0; j < WIDTH / WARPS / 32; j++) {
            int offset = (warp * (WIDTH / WARPS) + j * 32 + lane % 4 * 8) * 2;
            uint4 b = load_row(rest.rows, STRIDE, offset, lane);
#pragma unroll
            for (int t = 0; t < TILES; t++)
                multiply(c[t], load_shared16(rows[2 * t] + offset), 2 * t + 1 < GROUPS ? load_shared16(rows[2 * t + 1] + offset) : make_uint4(0, 0, 0, 0), b);
        }
        auto &parts = rest.parts[turn & 1][warp];
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int n = lane % 4 * 2 + i % 2, row = t * 16 + lane / 4 + i / 2 * 8;
                if (n < BATCH && row < COUNT) parts[n][row] = c[t][i];
            }
        __syncwarp();
        if (lane < PIECES) arrive(&shared.free[(pieces + lane) % SLOTS]);
        pieces += PIECES;
        turn++;
        synchronize();
    }
    // The sum of the last product's parts, for the warp's row of the batch.
    __device__ __forceinline__ float sum(int row) const {
        float sum = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; w++) sum += rest.parts[turn - 1 & 1][w][warp][row];
        return sum;
    }

    // A gate block's rows in a layer.
    template <int COUNT>
    __device__ __forceinline__ void middles(int first, u32 phase) {
        product<COUNT, PIECE, HIDDEN>();
        if (warp >= BATCH) return;
#pragma unroll
        for (int i = 0; i < COUNT; i += 32) {
            float value = i + lane < COUNT ? silu(sum(i + lane)) : 0.0f, next = __shfl_down_sync(~0u, value, 1);
            int row = (block - OWNERS) * GATE_ROWS + first + i + lane;
            if (i + lane < COUNT && lane % 2 == 0) put(p.g + (warp * MIDDLES + row) / 2, pack(value, next), phase);
        }
    }

    // The gates of own rows of k and columns of v, from the middles.
    __device__ __forceinline__ void gates(u32 phase) {
        constexpr int COUNT = BATCH * G_PAIRS, ROUND = (COUNT + THREADS - 1) / THREADS;
        const int thread = fresh(threadIdx.x) & (THREADS - 1);
        u64 words[ROUND][2];
        await<COUNT, 16>(words, thread, phase, [&](int i) { return p.g + i * 2; }, no_others);
#pragma unroll
        for (int i = 0; i < ROUND; i++) {
            int at = i * THREADS + thread, row = at / G_PAIRS, middle = at % G_PAIRS * 4;
            if (at >= COUNT) continue;
            act *to = middle < KEY_GATE ? &rest.key_middle[row][middle] : &rest.value_middle[row][middle - KEY_GATE];
            *reinterpret_cast<uint2 *>(to) = make_uint2((u32)words[i][0], (u32)words[i][1]);
        }
        synchronize();
        constexpr int VALUE_TILES = (COLUMNS + 15) / 16;
        if (warp <= VALUE_TILES) {
            float c[4] = {};
            int first = warp == 0 ? 0 : QUERIES + (warp - 1) * 16, count = warp == 0 ? QUERIES : min(16, COLUMNS - (warp - 1) * 16);
            if (warp == 0) small_product<KEY_GATE, KEY_STRIDE>(c, rest.key_gate, count, rest.key_middle[0], sizeof(rest.key_middle[0]), lane);
            else small_product<VALUE_GATE, VALUE_STRIDE>(c, rest.value_gate + (warp - 1) * 16 * VALUE_STRIDE, count, rest.value_middle[0], sizeof(rest.value_middle[0]), lane);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int n = lane % 4 * 2 + i % 2, row = lane / 4 + i / 2 * 8;
                if (n < BATCH && row < count) rest.gates[n][first + row] = silu(c[i]);
            }
        }
        synchronize();
    }
};

// A gate block: nothing in layers without gates.
__device__ __forceinline__ void compute_gates(Step &step, u32 base, float epsilon) {
    for (int l = 0; l < LAYERS; l++) {
        if (!step.p.layers[l].key_gate) continue;
        step.normed(base + l, l == 0, epsilon);
        step.free_small();
#pragma unroll
        for (int tile = 0; tile + GATES_AT_ONCE <= GATE_ROWS; tile += GATES_AT_ONCE) step.middles<GATES_AT_ONCE>(tile, base + l);
        constexpr int LEFT = GATE_ROWS % GATES_AT_ONCE;
        if constexpr (LEFT > 0) step.middles<LEFT>(GATE_ROWS - LEFT, base + l);
    }
}

// A block that owns columns of the states.
__device__ __forceinline__ void compute_layers(Step &step, u32 base, float epsilon) {
    const Model &p = step.p;
    Rest &rest = step.rest;
    const int block = step.block, warp = step.warp, lane = step.lane, head = block / OF_HEAD;

    // Warp n has row n of the batch.
    if (warp < BATCH) {
        u64 position = (u64)p.past[warp];
        if (lane < PAIRS) {
            // Angles in units of 2^-40 turns, so that late positions are as precise as early ones.
            int pair = (block * PAIRS + lane) % (KEYS / 2);
            double turns = exp(-9.210340371976184 * pair / (KEYS / 2 > 2 ? KEYS / 2 - 1 : 1)) * 0.15915494309189535;
            u64 angle = position * (u64)__double2ll_rn(turns * 1099511627776.0) & ((1ull << 40) - 1);
            float halves = (float)angle * (1.0f / 549755813888.0f);
            rest.cosine[warp][lane] = cospif(halves), rest.sine[warp][lane] = sinpif(halves);
        }
        double gap = exp2((double)(-5 - head));
        if (lane == 0) rest.scale[warp] = (float)rsqrt(-expm1((double)(position + 1) * log1p(-gap)) / gap);
        if (lane < OUT) rest.x[warp][lane] = to_float(p.embedding[(size_t)p.tokens[warp] * HIDDEN + block * OUT + lane]);
        for (int i = 0; i < NEIGHBOURS; i++)
            for (int c = lane; c < QUERIES + COLUMNS; c += 32) rest.below[i][warp][c] = 0.0f;
        __syncwarp();
    }
    // The sum of number `c` of the own keys and values of the layers before, into which layer l's takes its place.
    auto neighbours = [&](int c, float own, int l) {
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < NEIGHBOURS; i++) sum += rest.below[i][warp][c];
        if (GATED) rest.below[GATED ? l % NEIGHBOURS : 0][warp][c] = own;
        return sum;
    };
    const float decay = head_decay(head);

    // The states of a row of the batch, as the lanes hold them.
    float4 state[ROUNDS];
    const int key_of = warp * KEYS_AT_ONCE + lane / QUADS;
    const bool active = lane < KEYS_AT_ONCE * QUADS;
    const size_t own_state = ((size_t)head * KEYS + key_of) * VALUES + block % OF_HEAD * COLUMNS + lane % QUADS * 4;
    constexpr size_t ROW = (size_t)HEADS * KEYS * VALUES, ROUND = (size_t)WARPS * KEYS_AT_ONCE * VALUES;
    auto has = [&](int i) { return active && (KEYS % (WARPS * KEYS_AT_ONCE) == 0 || i * WARPS * KEYS_AT_ONCE + key_of < KEYS); };
    auto load_states = [&](const Layer &layer) {
#pragma unroll
        for (int i = 0; i < ROUNDS; i++)
            if (has(i)) state[i] = load_state(layer.state + own_state + i * ROUND);
    };
    if (LOAD_AT == 1) load_states(p.layers[0]);

    for (int l = 0; l < LAYERS; l++) {
        const Layer &layer = p.layers[l];
        const u32 phase = base + l;
        const bool gated = GATED && layer.key_gate;
        step.normed(phase, l == 0, epsilon);
        if (!gated) step.free_small();
        if (LOAD_AT == 0) load_states(layer);
        float key_weight = 1.0f, value_weight[EACH], group_weight[EACH];
        if (layer.key_norm && lane >= QUERIES && lane < 2 * QUERIES) key_weight = layer.key_norm[block * QUERIES + lane - QUERIES];
#pragma unroll
        for (int e = 0; e < EACH; e++) {
            int c = min(lane + 32 * e, COLUMNS - 1);
            value_weight[e] = layer.key_norm ? layer.value_norm[block * COLUMNS + c] : 1.0f;
            group_weight[e] = layer.group_norm[block % OF_HEAD * COLUMNS + c];
        }

        // q and k. Two lanes have a pair.
        auto qk = [&](int lane) {
            int own = fresh(block);
            return p.qk + ((warp * HEADS + own / OF_HEAD) * QK_PAIRS + own % OF_HEAD * PAIRS + lane / 2) * 2;
        };
        auto rotate = [&](float x) {
            float other = __shfl_xor_sync(~0u, x, 1), cosine = rest.cosine[warp][lane % QUERIES / 2], sine = rest.sine[warp][lane % QUERIES / 2];
            return lane % 2 == 0 ? x * cosine - other * sine : x * cosine + other * sine;
        };
        auto put_pair = [&](float x, bool here, u64 *to) {
            float next = __shfl_down_sync(~0u, x, 1);
            if (here && lane % 2 == 0) put(to, two24(x, next), phase);
        };
        step.product<2 * QUERIES, PIECE, HIDDEN>();
        float k = 0.0f;
        if (warp < BATCH) {
            float value = lane < 2 * QUERIES ? silu(step.sum(lane)) : 0.0f;
            put_pair(rotate(value), lane < QUERIES, qk(lane));
            if (lane >= QUERIES && lane < 2 * QUERIES) k = value * rsqrtf((float)KEYS);
        }
        // v and g.
        step.product<COLUMNS, PIECE, HIDDEN>();
        float v[EACH] = {};
        if (warp < BATCH)
#pragma unroll
            for (int e = 0; e < EACH; e++)
                if (lane + 32 * e < COLUMNS) v[e] = silu(step.sum(lane + 32 * e));
        step.product<COLUMNS, PIECE, HIDDEN>();
        if (warp < BATCH)
#pragma unroll
            for (int e = 0; e < EACH; e++)
                if (lane + 32 * e < COLUMNS) rest.g[warp][lane + 32 * e] = silu(step.sum(lane + 32 * e)) * group_weight[e];

        // The neighbours of k and v.
        if (gated) {
            step.gates(phase);
            step.free_small();
        }
        if (warp < BATCH) {
            float squares_k = 0.0f, squares_v = 0.0f;
            if (lane >= QUERIES && lane < 2 * QUERIES) {
                float below = neighbours(lane - QUERIES, k, l);
                if (gated) k = fmaf(rest.gates[warp][lane - QUERIES], below, k);
                squares_k = k * k;
            }
            put_pair(rotate(k * key_weight), lane >= QUERIES && lane < 2 * QUERIES, qk(lane - QUERIES) + 1);
#pragma unroll
            for (int e = 0; e < EACH; e++) {
                int c = lane + 32 * e;
                if (c >= COLUMNS) continue;
                float below = neighbours(QUERIES + c, v[e], l), fused = v[e];
                if (gated) fused = fmaf(rest.gates[warp][QUERIES + c], below, fused);
                squares_v = fmaf(fused, fused, squares_v);
                rest.v[warp][c] = fused * value_weight[e];
            }
            squares_k = warp_sum(squares_k), squares_v = warp_sum(squares_v);
            if (lane == 0) put(p.sums + warp * OWNERS + block, two24(squares_k, squares_v), phase);
        }

        // q and k of the head: pairs of float2 {q, k}; the factor of k v.
        float2 *all_qk = reinterpret_cast<float2 *>(rest.rows);
        {
            constexpr int COUNT = BATCH * QK_PAIRS, ROUND = (COUNT + THREADS - 1) / THREADS;
            const int thread = fresh(threadIdx.x) & (THREADS - 1);
            u64 words[ROUND][2], sums[2][2];
            await<COUNT, 16>(words, thread, phase,
                             [&](int i) { return p.qk + ((size_t)(i / QK_PAIRS * HEADS + head) * QK_PAIRS + i % QK_PAIRS) * 2; },
                             [&] { return warp >= BATCH || poll_owners(sums, p.sums + warp * OWNERS, phase, lane); });
#pragma unroll
            for (int i = 0; i < ROUND; i++) {
                int at = i * THREADS + thread;
                if (at >= COUNT) continue;
                float4 pair = make_float4(first24(words[i][0]), first24(words[i][1]), second24(words[i][0]), second24(words[i][1]));
                reinterpret_cast<float4 *>(all_qk)[at] = pair;
            }
            if (warp < BATCH) {
                float of_k = warp_sum(first24(sums[0][0]) + first24(sums[0][1]) + (first24(sums[1][0]) + first24(sums[1][1])));
                float of_v = warp_sum(second24(sums[0][0]) + second24(sums[0][1]) + (second24(sums[1][0]) + second24(sums[1][1])));
                float factor = layer.key_norm ? rsqrtf(of_k / QUERY_KEYS + epsilon) * rsqrtf(of_v / INNER + epsilon) : 1.0f;
                if (lane == 0) rest.factor[warp] = factor;
            }
            synchronize();
        }

        // The states, and their readout.
        auto &parts = rest.parts[step.turn & 1][warp];
        const float *from = layer.state + own_state;
        float *to = layer.next_state + own_state;
#pragma unroll 1
        for (int n = 0; n < BATCH; n++, from += ROW, to += ROW) {
            float4 o = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (active) {
                float4 v = *reinterpret_cast<const float4 *>(&rest.v[n][lane % QUADS * 4]);
                float factor = rest.factor[n];
                v.x *= factor, v.y *= factor, v.z *= factor, v.w *= factor;
                const float2 *qk = all_qk + n * KEYS + key_of;
#pragma unroll
                for (int i = 0; i < ROUNDS; i++) {
                    if (!has(i)) continue;
                    float2 both = qk[i * WARPS * KEYS_AT_ONCE];
                    float4 s = state[i];
                    s.x = fmaf(decay, s.x, both.y * v.x), s.y = fmaf(decay, s.y, both.y * v.y);
                    s.z = fmaf(decay, s.z, both.y * v.z), s.w = fmaf(decay, s.w, both.y * v.w);
                    o.x = fmaf(both.x, s.x, o.x), o.y = fmaf(both.x, s.y, o.y);
                    o.z = fmaf(both.x, s.z, o.z), o.w = fmaf(both.x, s.w, o.w);
                    store_state(to + i * ROUND, s);
                    if (n + 1 < BATCH) state[i] = load_state(from + ROW + i * ROUND);
                }
            }
            float4 sum = o;
#pragma unroll
            for (int j = 1; j < KEYS_AT_ONCE; j++) {
                sum.x += __shfl_down_sync(~0u, o.x, j * QUADS), sum.y += __shfl_down_sync(~0u, o.y, j * QUADS);
                sum.z += __shfl_down_sync(~0u, o.z, j * QUADS), sum.w += __shfl_down_sync(~0u, o.w, j * QUADS);
            }
            if (lane < QUADS) *reinterpret_cast<float4 *>(&parts[n][lane * 4]) = sum;
        }
        step.turn++;
        synchronize();
        u64 *squares_words = p.sums + (BATCH + warp) * OWNERS;
        if (warp < BATCH) {
            float squares = 0.0f;
#pragma unroll
            for (int e = 0; e < EACH; e++) {
                int c = lane + 32 * e;
                if (c >= COLUMNS) continue;
                float o = step.sum(c) * rest.scale[warp];
                squares = fmaf(o, o, squares);
                rest.v[warp][c] = o * rest.g[warp][c];
            }
            squares = warp_sum(squares);
            if (lane == 0) put(squares_words + block, __float_as_uint(squares), phase);
            __syncwarp();
            if (lane < 2 * Y_PAIRS) {
                auto number = [&](int i) { return lane * 3 + i < COLUMNS ? upper20(rest.v[warp][lane * 3 + i]) : 0; };
                put<4>(p.y + (warp * OWNERS + fresh(block)) * (2 * Y_PAIRS) + lane, number(2) << 40 | number(1) << 20 | number(0), phase);
            }
        }

        // All o g, normed, as the right operand. Many rows are waited for in parts, as registers do not suffice for all.
        {
            constexpr int GROUPS = BATCH > MOST_ROWS ? 2 : 1, GROUP = (BATCH + GROUPS - 1) / GROUPS, OF_ROW = OWNERS * Y_PAIRS;
#pragma unroll
            for (int group = 0; group < GROUPS; group++) {
                constexpr int COUNT = GROUP * OF_ROW, ROUND = (COUNT + THREADS - 1) / THREADS;
                const int thread = fresh(threadIdx.x) & (THREADS - 1);
                // The last rows are taken twice where the batch is no multiple.
                const int first = group * (BATCH - GROUP);
                u64 words[ROUND][2], squares[2][2];
                const bool sums = group == 0 && warp < BATCH;
                await<COUNT, 4>(words, thread, phase, [&](int i) { return p.y + (size_t)(first * OF_ROW + i) * 2; },
                                [&] { return !sums || poll_owners(squares, squares_words, phase, lane); });
                if (sums)
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        float sum = __uint_as_float((u32)squares[i][0]) + __uint_as_float((u32)squares[i][1]);
#pragma unroll
                        for (int distance = OF_HEAD / 4; distance; distance >>= 1) sum += __shfl_xor_sync(~0u, sum, distance);
                        if (lane % (OF_HEAD / 2) == 0) rest.factors[warp][(i * 32 + lane) / (OF_HEAD / 2)] = rsqrtf(sum / VALUES + epsilon);
                    }
                if (group == 0) synchronize();
                if (LOAD_AT == 1 && group + 1 == GROUPS && l + 1 < LAYERS) load_states(p.layers[l + 1]);
#pragma unroll
                for (int i = 0; i < ROUND; i++) {
                    int at = i * THREADS + thread, row = first + at / OF_ROW, owner = at / Y_PAIRS % OWNERS, c = at % Y_PAIRS * 6;
                    if (at >= COUNT) continue;
                    float factor = rest.factors[row][owner / OF_HEAD];
                    u32 *into = reinterpret_cast<u32 *>(rest.rows + row * WIDER + (owner * COLUMNS + c) * 2);
                    u64 first = words[i][0], second = words[i][1];
                    into[0] = pack(number20<0>(first) * factor, number20<1>(first) * factor);
                    if (c + 2 < COLUMNS) into[1] = pack(number20<2>(first) * factor, number20<0>(second) * factor);
                    if (c + 4 < COLUMNS) into[2] = pack(number20<1>(second) * factor, number20<2>(second) * factor);
                }
            }
            synchronize();
        }
        step.product<OUT, OUT_PIECE, INNER>();
        if (warp < BATCH) {
            float residual = lane < OUT ? rest.x[warp][lane] + step.sum(lane) : 0.0f;
            if (lane < OUT) rest.x[warp][lane] = residual;
            float next = __shfl_down_sync(~0u, residual, 1);
            if (lane < OUT && lane % 2 == 0)
                put(p.x + (warp * HIDDEN + fresh(block) * OUT + lane) / 2, two24(residual, next), phase + 1);
        }
    }
}

// The grid has BLOCKS blocks, all resident at once; `Shared` is dynamic shared memory.
extern "C" __global__ void __launch_bounds__(THREADS + 32, 1) retnet_step(const __grid_constant__ Model p) {
    Shared &shared = *reinterpret_cast<Shared *>(dynamic);
    const int block = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32, vocabulary = (int)p.vocabulary;
    const u32 steps = *p.step, base = steps * (LAYERS + 2) + 1;
    const float epsilon = __uint_as_float((u32)p.epsilon);
    // Own rows of the head.
    const int first_row = (int)((long long)vocabulary * block / BLOCKS), rows = (int)((long long)vocabulary * (block + 1) / BLOCKS) - first_row;

    if (threadIdx.x == 0) {
        for (int i = 0; i < SLOTS; i++) init_barrier(&shared.full[i], 1), init_barrier(&shared.free[i], WARPS);
        init_barrier(&shared.rest.small_full, 1), init_barrier(&shared.rest.small_free, WARPS);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
    __syncthreads();
    if (warp == WARPS) {
        Copies(p, shared, first_row, rows).all();
        return;
    }
    Step step(p, shared);
    if (GATED && block >= OWNERS) compute_gates(step, base, epsilon);
    else compute_layers(step, base, epsilon);

    step.normed(base + LAYERS, false, epsilon);
    for (int tile = 0; tile < rows; tile += TILE) {
        step.product<TILE, PIECE, HIDDEN>();
        if (warp < BATCH && lane < TILE && tile + lane < rows)
            p.logits[(size_t)warp * vocabulary + first_row + tile + lane] = step.sum(lane);
    }
    if (block == 0 && threadIdx.x == 0) *p.step = steps + 1;
}
