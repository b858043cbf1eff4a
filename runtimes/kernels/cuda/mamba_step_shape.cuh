// The sizes of mamba_step.cu, its parameters and its shared memory.
#pragma once
#include "mma.cuh"

typedef long long i64;

// What may be tuned; the defaults are the fastest values on an H100.
#ifndef GROUPS
#define GROUPS (BATCH <= 2 ? 1 : 2)
#endif
#ifndef REPLICAS
#define REPLICAS (BATCH <= 2 ? 4 : 2)
#endif
#ifndef IN_PIECE
#define IN_PIECE 4
#endif
#ifndef OUT_PIECE
#define OUT_PIECE 2
#endif
#ifndef FLIGHT
#define FLIGHT 3
#endif
#ifndef HEAD_FLIGHT
#define HEAD_FLIGHT 6
#endif
#ifndef GAP
#define GAP 0
#endif
#ifndef POLL
#define POLL 1
#endif
#ifndef POLL_GAP
#define POLL_GAP 0
#endif
#ifndef NOWAIT
#define NOWAIT 0
#endif
#ifndef NOCOPY
#define NOCOPY 0
#endif
#ifndef LOAD_AT
#define LOAD_AT 1
#endif

constexpr int GROUP_THREADS = 256, GROUP_WARPS = 8;     // a group exchanges and scans its own rows of the batch
constexpr int THREADS = GROUPS * GROUP_THREADS, WARPS = GROUPS * GROUP_WARPS;  // that compute; one more warp copies
constexpr int GROUP_ROWS = (BATCH + GROUPS - 1) / GROUPS;
constexpr int CHANNELS = 16;                            // of a block
constexpr int CHANNEL_BLOCKS = INNER / CHANNELS;
constexpr int ROWS = 2 * CHANNELS;                      // of in_proj, or of the gates' first layers
constexpr int OTHER_BLOCKS = NEIGHBOURS ? 2 * GATE / ROWS : 4;  // own rows of the gates' first layers, or of the head only
constexpr int BLOCKS = CHANNEL_BLOCKS + OTHER_BLOCKS;
constexpr int OUT = HIDDEN / CHANNEL_BLOCKS;            // rows of out_proj of a block
constexpr int SUMS = RANK + 2 * STATES;                 // outputs of x_proj
constexpr int PARTS = CHANNEL_BLOCKS / REPLICAS;        // of each replica of a sum
constexpr int BACK = TAPS - 1;
constexpr int WIDE = HIDDEN * 2 + 64, WIDER = INNER * 2 + 64;  // bytes of a row in shared memory, without bank conflicts
constexpr int IN_STAGES = 2, OUT_STAGES = BATCH <= 4 ? 2 : 1, RED_STAGES = BATCH <= 2 ? 2 : 1;
constexpr int IN_PIECES = ROWS / IN_PIECE, OUT_PIECES = OUT / OUT_PIECE;  // of a stage
constexpr int MAX_FLIGHT = FLIGHT > HEAD_FLIGHT ? FLIGHT : HEAD_FLIGHT;   // pieces under way
constexpr int IN_PART = ROWS + 4, OUT_PART = OUT + 4;   // numbers of a row of partial sums, without bank conflicts
constexpr int SMALL = (RANK > GATE ? RANK : GATE) / 32; // steps of the small products

// Roles of warps.
constexpr int CONV_WARP = GROUPS == 2 ? GROUP_WARPS : 0;  // the first of BATCH warps that finish in_proj
constexpr int SMALL_WARP = 0;                             // the first of three: dt_proj, channel gate, state gate

static_assert(STATES == 16 && OUT == 8 && HIDDEN % 1024 == 0 && INNER % 2048 == 0, "sizes");
static_assert(RANK % 32 == 0 && SUMS % 16 == 0 && SUMS <= 128 && GATE % 32 == 0 && BATCH >= 1 && BATCH <= 8, "sizes");
static_assert(2 * GATE <= 128 && PARTS < 256 && OTHER_BLOCKS >= 1, "sizes");
static_assert((GROUPS == 1 && BATCH <= 4) || GROUPS == 2, "groups");
static_assert(MAX_FLIGHT <= IN_PIECES, "no more pieces under way than a stage has");

struct Layer {
    const float *norm;             // [hidden]
    const act *in_proj;            // [2 inner, hidden]
    const act *gates;              // [2 gate, hidden], the channels' first; null in the first layer
    const float *conv_weight;      // [taps, inner]
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
    const i64 *tokens;     // [batch]
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
    float parts[RED_STAGES][GROUP_WARPS * BATCH * IN_PART], out_parts[WARPS * BATCH * OUT_PART];
    float squares[BATCH][GROUP_WARPS], scales[BATCH][GROUP_WARPS];  // of x, for each part of k
    act u[BATCH][40];                            // convolved channels; then, unused, their gates
    float uz[BATCH][ROWS];                       // likewise in fp32
    act d[BATCH][RANK + 32], g[BATCH][128 + 32];
    float bc[BATCH][2 * STATES];
    float projected[3][BATCH][CHANNELS];         // step size, channel gate, state gate
    u64 in_full[IN_STAGES][IN_PIECES], out_full[OUT_STAGES][OUT_PIECES];  // a piece has arrived
    u64 in_free[IN_STAGES], out_free[OUT_STAGES];                         // a stage has been used
};

static_assert(sizeof(Shared) <= 227 << 10, "shared memory");

extern __shared__ __align__(128) char dynamic[];

// A barrier of the warps that compute.
__device__ __forceinline__ void synchronize() { asm volatile("bar.sync 1, %0;" ::"n"(THREADS) : "memory"); }

// A barrier of the warps that share a part of k: warp w of each group.
__device__ __forceinline__ void synchronize_part() {
    if (GROUPS == 1) __syncwarp();
    else asm volatile("bar.sync %0, 64;" ::"r"(2 + threadIdx.x / 32 % GROUP_WARPS) : "memory");
}

// The thread's place: row i of its group is row `first_row + i` of the batch, if there is one.
struct Place {
    const int block = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int thread = threadIdx.x % GROUP_THREADS, first_row = threadIdx.x / GROUP_THREADS * GROUP_ROWS;

    __device__ __forceinline__ bool has_channels() const { return block < CHANNEL_BLOCKS; }
    __device__ __forceinline__ bool has_row(int i) const { return i < BATCH - (GROUPS - 1) * GROUP_ROWS || first_row + i < BATCH; }
};
