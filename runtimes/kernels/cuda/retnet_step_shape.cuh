// The sizes of the decode step of DenseRetNet, what the host hands over, and what a block keeps in shared memory.
#pragma once
#include "mma.cuh"

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
constexpr int PIECE = 4, OUT_PIECE = PIECE / 2;  // rows of a piece
constexpr int SLOT = PIECE * WIDE;               // bytes of one
constexpr int FLIGHT = 2;                        // pieces under way
constexpr int TILE = 24;                         // rows of the head at once
constexpr int GATE_TILE = BATCH <= 2 ? 64 : 32, GATES_AT_ONCE = GATE_ROWS < GATE_TILE ? GATE_ROWS : GATE_TILE;  // of the gates
constexpr int MOST_ROWS = 4;                     // of the batch whose o g a thread holds at once
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
