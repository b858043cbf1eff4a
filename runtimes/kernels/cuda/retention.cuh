// What the kernels of retention over a sequence share.
#pragma once
#include "common.cuh"

struct Retention {
    const act *q, *k;        // [batch, time, heads * keys]
    const act *v;            // [batch, time, heads * values]
    const float *cosines, *sines;  // [batch, time, keys / 2]
    const float *scale;      // [batch, time, heads]
    const float *state;      // [batch, heads, keys, values]
    const act *gate;         // [batch, time, heads * values]
    const float *norm;       // [values]
    const int *lengths;      // [batch] or null
    act *y;                  // [batch, time, heads * values]
    float *present;          // [batch, heads, keys, values], not `state`
    void *queries, *keys;    // rotated, [batch, heads, padded time, keys]
    act *scores;             // [batch, heads, chunks, chunk, chunk]
    float *segment_states;   // [segments, batch, heads, keys, values]
    u64 time, padded, heads, segments, segment_tokens, epsilon;
};

__device__ __forceinline__ int length_of(const Retention &p, int row) {
    return valid_tokens(p.lengths, row, (int)p.time);
}

// y <- RMSNorm(y) gate for each head of each token, in place; zeros past a row's end. The grid is [time, batch * heads].
constexpr int FINISH_THREADS = 128;
constexpr int FINISH_EACH = (VALUES + FINISH_THREADS * 4 - 1) / (FINISH_THREADS * 4);

extern "C" __global__ void __launch_bounds__(FINISH_THREADS) retention_finish(const __grid_constant__ Retention p) {
    __shared__ float shared[FINISH_THREADS / 32];
    int heads = (int)p.heads, row = blockIdx.y / heads, head = blockIdx.y % heads, token = blockIdx.x;
    size_t at = (((size_t)row * p.time + token) * heads + head) * VALUES;
    bool valid = token < length_of(p, row);
    constexpr bool WHOLE = VALUES % 4 == 0;
    float x[FINISH_EACH][4], squares = 0.0f;
#pragma unroll
    for (int j = 0; j < FINISH_EACH; j++) {
        int first = (j * FINISH_THREADS + threadIdx.x) * 4;
#pragma unroll
        for (int i = 0; i < 4; i++) x[j][i] = 0.0f;
        if (first >= VALUES || !valid) continue;
        if (WHOLE) {
            load4(x[j], p.y + at + first);
        } else {
            for (int i = 0; i < 4; i++)
                if (first + i < VALUES) x[j][i] = to_float(p.y[at + first + i]);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) squares = fmaf(x[j][i], x[j][i], squares);
    }
    squares = block_sum<FINISH_THREADS / 32>(squares, shared);
    float factor = rsqrtf(squares / VALUES + __uint_as_float((u32)p.epsilon));
#pragma unroll
    for (int j = 0; j < FINISH_EACH; j++) {
        int first = (j * FINISH_THREADS + threadIdx.x) * 4;
        if (first >= VALUES) continue;
        float gate[4];
        if (WHOLE) {
            load4(gate, p.gate + at + first);
#pragma unroll
            for (int i = 0; i < 4; i++) x[j][i] = valid ? x[j][i] * factor * p.norm[first + i] * gate[i] : 0.0f;
            store4(p.y + at + first, x[j]);
        } else {
            for (int i = 0; i < 4; i++)
                if (first + i < VALUES) {
                    float gated = x[j][i] * factor * p.norm[first + i] * to_float(p.gate[at + first + i]);
                    p.y[at + first + i] = to_act(valid ? gated : 0.0f);
                }
        }
    }
}
