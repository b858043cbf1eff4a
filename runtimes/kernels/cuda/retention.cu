// Retention over a sequence in its recurrent form, token by token in fp32: for fp32 activations, and for heads whose
// sizes the tensor core kernels do not take.
//
// A block holds 64 columns of a head's state in registers: warp w has 8 of them, lane l the rows l, l + 32, ... The
// rotated q and k of some tokens come through shared memory, the next ones asynchronously while these are in use.
#include "mma.cuh"
#include "retention.cuh"

constexpr int THREADS = 256;
constexpr int COLUMNS = 8;                       // of a warp
constexpr int TILE = 8 * COLUMNS;                // of a block
constexpr int ROWS = (KEYS + 31) / 32;           // of a lane
constexpr int STRIDE = (KEYS + 3) / 4 * 4;       // numbers from one rotated token to the next, padded with zeros
constexpr int TOKENS = 8;                        // that lie in shared memory together

// Rotates and converts q and k. The grid is [padded time, batch * heads].
extern "C" __global__ void __launch_bounds__(128) retention_rotate(const __grid_constant__ Retention p) {
    int heads = (int)p.heads, row = blockIdx.y / heads, head = blockIdx.y % heads, token = blockIdx.x;
    size_t to = ((size_t)blockIdx.y * p.padded + token) * STRIDE;
    size_t from = (((size_t)row * p.time + token) * heads + head) * KEYS, angles = ((size_t)row * p.time + token) * (KEYS / 2);
    float *queries = (float *)p.queries + to, *keys = (float *)p.keys + to;
    for (int j = threadIdx.x; j < STRIDE / 2; j += 128) {
        float q[2] = {}, k[2] = {};
        if (token < (int)p.time && 2 * j < KEYS) {
            float c = p.cosines[angles + j], d = p.sines[angles + j];
            float a = to_float(p.q[from + 2 * j]), b = to_float(p.q[from + 2 * j + 1]);
            q[0] = a * c - b * d, q[1] = b * c + a * d;
            a = to_float(p.k[from + 2 * j]), b = to_float(p.k[from + 2 * j + 1]);
            k[0] = a * c - b * d, k[1] = b * c + a * d;
        }
        queries[2 * j] = q[0], queries[2 * j + 1] = q[1];
        keys[2 * j] = k[0], keys[2 * j + 1] = k[1];
    }
}

// Adds the numbers of two lanes, half of them in each.
template <int HALF>
__device__ __forceinline__ void fold(float (&o)[32], int lane) {
    bool upper = lane & HALF;
#pragma unroll
    for (int i = 0; i < HALF; i++) {
        float mine = upper ? o[i + HALF] : o[i], theirs = upper ? o[i] : o[i + HALF];
        o[i] = mine + __shfl_xor_sync(~0u, theirs, HALF);
    }
}

struct Stage {
    float q[TOKENS][STRIDE], k[TOKENS][STRIDE], v[TOKENS][TILE];
};

// The grid is [ceil(values / 64), batch * heads]; two stages of dynamic shared memory.
extern "C" __global__ void __launch_bounds__(THREADS, 1) retention(const __grid_constant__ Retention p) {
    extern __shared__ __align__(16) char dynamic[];
    Stage *stages = reinterpret_cast<Stage *>(dynamic);
    int heads = (int)p.heads, row = blockIdx.y / heads, head = blockIdx.y % heads;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, time = (int)p.time, length = length_of(p, row);
    int tile = blockIdx.x * TILE, column = tile + warp * COLUMNS;
    float decay = head_decay(head);

    float s[ROWS][COLUMNS];
    const float *state = p.state + (size_t)blockIdx.y * KEYS * VALUES;
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
            int key = r * 32 + lane;
            s[r][c] = key < KEYS && column + c < VALUES ? state[(size_t)key * VALUES + column + c] : 0.0f;
        }

    auto fetch = [&](int first, Stage &to) {
        size_t from = ((size_t)blockIdx.y * p.padded + first) * STRIDE;
        for (int i = threadIdx.x; i < TOKENS * STRIDE / 4; i += THREADS) {
            copy_async(&to.q[0][0] + i * 4, (const float *)p.queries + from + i * 4, true);
            copy_async(&to.k[0][0] + i * 4, (const float *)p.keys + from + i * 4, true);
        }
        for (int i = threadIdx.x; i < TOKENS * TILE; i += THREADS) {
            int token = first + i / TILE, c = tile + i % TILE;
            bool valid = token < length && c < VALUES;
            to.v[i / TILE][i % TILE] = valid ? to_float(p.v[(((size_t)row * time + token) * heads + head) * VALUES + c]) : 0.0f;
        }
        commit_copies();
    };

    if (length > 0) fetch(0, stages[0]);
    for (int first = 0; first < length; first += TOKENS) {
        Stage &stage = stages[first / TOKENS % 2];
        if (first + TOKENS < length) fetch(first + TOKENS, stages[(first / TOKENS + 1) % 2]);
        else commit_copies();
        await_copies<1>();
        __syncthreads();
#pragma unroll
        for (int group = 0; group < TOKENS; group += 4) {
            float o[32];
#pragma unroll
            for (int t = 0; t < 4; t++) {
                int token = group + t;
                // Past the row's end k must not count and the state must not decay.
                bool valid = first + token < length;
                float factor = valid ? decay : 1.0f;
                float v[COLUMNS];
#pragma unroll
                for (int c = 0; c < COLUMNS; c++) v[c] = stage.v[token][warp * COLUMNS + c], o[t * COLUMNS + c] = 0.0f;
#pragma unroll
                for (int r = 0; r < ROWS; r++) {
                    bool there = KEYS % 32 == 0 || r * 32 + lane < KEYS;
                    float q = there ? stage.q[token][r * 32 + lane] : 0.0f, k = there ? stage.k[token][r * 32 + lane] : 0.0f;
#pragma unroll
                    for (int c = 0; c < COLUMNS; c++) {
                        s[r][c] = fmaf(factor, s[r][c], k * v[c]);
                        o[t * COLUMNS + c] = fmaf(q, s[r][c], o[t * COLUMNS + c]);
                    }
                }
            }
            // Adds up over the lanes; lane l is left with the sum of number l, which is token l / 8 and column l % 8.
            fold<16>(o, lane);
            fold<8>(o, lane);
            fold<4>(o, lane);
            fold<2>(o, lane);
            fold<1>(o, lane);
            int token = first + group + lane / COLUMNS, c = column + lane % COLUMNS;
            if (token < length && c < VALUES) {
                size_t at = ((size_t)row * time + token) * heads + head;
                p.y[at * VALUES + c] = to_act(o[0] * p.scale[at]);
            }
        }
        __syncthreads();
    }
    float *present = p.present + (size_t)blockIdx.y * KEYS * VALUES;
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
            int key = r * 32 + lane;
            if (key < KEYS && column + c < VALUES) present[(size_t)key * VALUES + column + c] = s[r][c];
        }
}
