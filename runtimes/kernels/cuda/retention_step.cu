// One token of retention: S <- decay S + k v, o = RMSNorm(scale q S) gate.
//
// Bound by the states' traffic: they are read and written once, 16 bytes a lane, past the caches. A block has the
// columns of a tile and the rows of a split; what it adds to o goes to memory, and the last block of a head to arrive
// adds it up and computes the norm. `present` may be `state`.
#include "common.cuh"

constexpr int WARPS = 8;
constexpr int THREADS = 32 * WARPS;
constexpr int COLUMNS = 128;
constexpr int ROWS = 8;  // rows that a warp loads before it uses the first
constexpr bool WHOLE = VALUES % 4 == 0;

struct Step {
    const act *q, *k;              // [batch, heads * keys]
    const act *v;                  // [batch, heads * values]
    const float *cosines, *sines;  // [batch, keys / 2]
    const float *scale;            // [batch, heads]
    const float *state;            // [batch, heads, keys, values]
    const act *gate;               // [batch, heads * values]
    const float *norm;             // [values]
    act *y;                        // [batch, heads * values]
    float *present;                // [batch, heads, keys, values]
    float *partial;                // [batch, heads, splits, values]
    u32 *arrived;                  // [batch, heads], zero before and after
    u64 heads, epsilon;
};

__device__ __forceinline__ float4 load_state(const float *p, int columns) {
    float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (WHOLE) {
        asm volatile("ld.global.cs.v4.f32 {%0,%1,%2,%3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "l"(p));
        return v;
    }
    if (columns > 0) v.x = p[0];
    if (columns > 1) v.y = p[1];
    if (columns > 2) v.z = p[2];
    if (columns > 3) v.w = p[3];
    return v;
}
__device__ __forceinline__ void store_state(float *p, float4 v, int columns) {
    if (WHOLE) {
        asm volatile("st.global.cs.v4.f32 [%0], {%1,%2,%3,%4};" ::"l"(p), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w) : "memory");
        return;
    }
    if (columns > 0) p[0] = v.x;
    if (columns > 1) p[1] = v.y;
    if (columns > 2) p[2] = v.z;
    if (columns > 3) p[3] = v.w;
}

// The grid is [tiles of columns, splits, batch * heads].
extern "C" __global__ void __launch_bounds__(THREADS) retention_step(const __grid_constant__ Step p) {
    __shared__ float q[KEYS], k[KEYS], sums[WARPS][COLUMNS], shared[WARPS];
    __shared__ bool last;
    int heads = (int)p.heads, head = blockIdx.z % heads, row = blockIdx.z / heads, splits = gridDim.y;
    int each = (KEYS + splits - 1) / splits, begin = blockIdx.y * each, end = min(begin + each, KEYS);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, column = blockIdx.x * COLUMNS + lane * 4;
    int columns = VALUES - column;
    float decay = head_decay(head);
    const float *state = p.state + (size_t)blockIdx.z * KEYS * VALUES + column;
    float *present = p.present + (size_t)blockIdx.z * KEYS * VALUES + column;

    // The first rows are asked for before anything else.
    float4 s[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        int r = begin + i * WARPS + warp;
        if (r < end && columns > 0) s[i] = load_state(state + (size_t)r * VALUES, columns);
    }
    // Where the launch allows it, the states are asked for while the kernel before this one ends: it does not write them.
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
    size_t of_keys = (size_t)blockIdx.z * KEYS;
    for (int j = begin / 2 + threadIdx.x; j < (end + 1) / 2; j += THREADS) {
        float c = p.cosines[(size_t)row * (KEYS / 2) + j], d = p.sines[(size_t)row * (KEYS / 2) + j];
        float a = to_float(p.q[of_keys + 2 * j]), b = to_float(p.q[of_keys + 2 * j + 1]);
        q[2 * j] = a * c - b * d, q[2 * j + 1] = b * c + a * d;
        a = to_float(p.k[of_keys + 2 * j]), b = to_float(p.k[of_keys + 2 * j + 1]);
        k[2 * j] = a * c - b * d, k[2 * j + 1] = b * c + a * d;
    }
    float v[4];
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] = i < columns ? to_float(p.v[(size_t)blockIdx.z * VALUES + column + i]) : 0.0f;
    __syncthreads();

    float o[4] = {};
    for (int first = begin; first < end; first += ROWS * WARPS) {
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            int r = first + i * WARPS + warp;
            if (r >= end || columns <= 0) continue;
            float key = k[r], query = q[r];
            s[i].x = fmaf(decay, s[i].x, key * v[0]), s[i].y = fmaf(decay, s[i].y, key * v[1]);
            s[i].z = fmaf(decay, s[i].z, key * v[2]), s[i].w = fmaf(decay, s[i].w, key * v[3]);
            o[0] = fmaf(query, s[i].x, o[0]), o[1] = fmaf(query, s[i].y, o[1]);
            o[2] = fmaf(query, s[i].z, o[2]), o[3] = fmaf(query, s[i].w, o[3]);
            store_state(present + (size_t)r * VALUES, s[i], columns);
            int next = r + ROWS * WARPS;
            if (next < end) s[i] = load_state(state + (size_t)next * VALUES, columns);
        }
    }
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
#pragma unroll
    for (int i = 0; i < 4; i++) sums[warp][lane * 4 + i] = o[i];
    __syncthreads();
    if (threadIdx.x < COLUMNS && blockIdx.x * COLUMNS + threadIdx.x < VALUES) {
        float sum = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; w++) sum += sums[w][threadIdx.x];
        p.partial[((size_t)blockIdx.z * splits + blockIdx.y) * VALUES + blockIdx.x * COLUMNS + threadIdx.x] = sum;
    }
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last = atomicAdd(p.arrived + blockIdx.z, 1u) == gridDim.x * gridDim.y - 1;
    __syncthreads();
    if (!last) return;
    __threadfence();

    constexpr int EACH = (VALUES + THREADS - 1) / THREADS;
    float x[EACH] = {}, squares = 0.0f, scale = p.scale[blockIdx.z];
    const float *from = p.partial + (size_t)blockIdx.z * splits * VALUES + threadIdx.x;
#pragma unroll 4
    for (int split = 0; split < splits; split++, from += VALUES)
#pragma unroll
        for (int j = 0; j < EACH; j++)
            if (j * THREADS + threadIdx.x < VALUES) x[j] += __ldcg(from + j * THREADS);
#pragma unroll
    for (int j = 0; j < EACH; j++) {
        x[j] *= scale;
        squares = fmaf(x[j], x[j], squares);
    }
    squares = block_sum<WARPS>(squares, shared);
    float factor = rsqrtf(squares / VALUES + __uint_as_float((u32)p.epsilon));
#pragma unroll
    for (int j = 0; j < EACH; j++) {
        int at = j * THREADS + threadIdx.x;
        if (at >= VALUES) continue;
        size_t to = (size_t)blockIdx.z * VALUES + at;
        p.y[to] = to_act(x[j] * factor * p.norm[at] * to_float(p.gate[to]));
    }
    if (threadIdx.x == 0) p.arrived[blockIdx.z] = 0;
}
