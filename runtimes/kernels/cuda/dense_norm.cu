// y = RMSNorm(own + silu(gate) sum_i neighbour_i): one block for a token's vector, which it holds in registers.
#include "common.cuh"

constexpr int THREADS = WIDTH >= 2048 ? 256 : 128;
constexpr int EACH = (WIDTH + THREADS * 4 - 1) / (THREADS * 4);

struct Norm {
    const act *own;       // [rows, width]
    const float *weight;  // [width]
    const act *gate;      // [rows, width]
    const act *neighbours[NEIGHBOURS ? NEIGHBOURS : 1];  // [rows, width]
    act *y;               // [rows, width]
    u64 epsilon;          // the bits of a float
};

__device__ __forceinline__ void load_some(float *to, const act *row, int at) {
    if constexpr (WIDTH % 4 == 0) {
        load4(to, row + at);
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++) to[i] = at + i < WIDTH ? to_float(row[at + i]) : 0.0f;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) dense_norm(const __grid_constant__ Norm p) {
    __shared__ float shared[THREADS / 32];
    size_t row = (size_t)blockIdx.x * WIDTH;
    float x[EACH][4], squares = 0.0f;
#pragma unroll
    for (int j = 0; j < EACH; j++) {
        int at = (j * THREADS + threadIdx.x) * 4;
#pragma unroll
        for (int i = 0; i < 4; i++) x[j][i] = 0.0f;
        if (at >= WIDTH) continue;
        load_some(x[j], p.own + row, at);
#if NEIGHBOURS
        float sum[4] = {}, gate[4], other[4];
#pragma unroll
        for (int r = 0; r < NEIGHBOURS; r++) {
            load_some(other, p.neighbours[r] + row, at);
#pragma unroll
            for (int i = 0; i < 4; i++) sum[i] += other[i];
        }
        load_some(gate, p.gate + row, at);
#pragma unroll
        for (int i = 0; i < 4; i++) x[j][i] = fmaf(silu(gate[i]), sum[i], x[j][i]);
#endif
#pragma unroll
        for (int i = 0; i < 4; i++) squares = fmaf(x[j][i], x[j][i], squares);
    }
    squares = block_sum<THREADS / 32>(squares, shared);
    float factor = rsqrtf(squares / WIDTH + __uint_as_float((u32)p.epsilon));
#pragma unroll
    for (int j = 0; j < EACH; j++) {
        int at = (j * THREADS + threadIdx.x) * 4;
        if (at >= WIDTH) continue;
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (at + i < WIDTH) x[j][i] *= factor * p.weight[at + i];
        if constexpr (WIDTH % 4 == 0) {
            store4(p.y + row + at, x[j]);
        } else {
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (at + i < WIDTH) p.y[row + at + i] = to_act(x[j][i]);
        }
    }
}
