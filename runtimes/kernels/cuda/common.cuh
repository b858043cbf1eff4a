// Types and functions that all kernels share. No header of the CUDA toolkit is needed: fp16 and bf16 are converted by
// PTX instructions.
#pragma once

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// ---- Activations: fp32, fp16 or bf16. ----

#if ACTIVATION == 32
typedef float act;
__device__ __forceinline__ float to_float(act x) { return x; }
__device__ __forceinline__ act to_act(float x) { return x; }
#elif ACTIVATION == 16
struct act {
    u16 bits;
};
__device__ __forceinline__ float to_float(act x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}
__device__ __forceinline__ act to_act(float x) {
    act y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}
// The numbers first (low half) and second (high half), packed.
__device__ __forceinline__ u32 pack(float first, float second) {
    u32 y;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(second), "f"(first));
    return y;
}
#elif ACTIVATION == 17
struct act {
    u16 bits;
};
__device__ __forceinline__ float to_float(act x) { return __uint_as_float((u32)x.bits << 16); }
__device__ __forceinline__ act to_act(float x) {
    act y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}
__device__ __forceinline__ u32 pack(float first, float second) {
    u32 y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(second), "f"(first));
    return y;
}
#else
#error "ACTIVATION: expected 32 (fp32), 16 (fp16) or 17 (bf16)"
#endif

// Four activations at an address that is a multiple of their size.
__device__ __forceinline__ void load4(float *to, const act *from) {
#if ACTIVATION == 32
    float4 v = *reinterpret_cast<const float4 *>(from);
    to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
#else
    uint2 v = *reinterpret_cast<const uint2 *>(from);
    to[0] = to_float(act{(u16)v.x}), to[1] = to_float(act{(u16)(v.x >> 16)});
    to[2] = to_float(act{(u16)v.y}), to[3] = to_float(act{(u16)(v.y >> 16)});
#endif
}
#if ACTIVATION != 32
// Operands that are fp32 whatever the activations are, in code that is written for both.
__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ void load4(float *to, const float *from) {
    float4 v = *reinterpret_cast<const float4 *>(from);
    to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
}
#endif
__device__ __forceinline__ void store4(act *to, const float *from) {
#if ACTIVATION == 32
    *reinterpret_cast<float4 *>(to) = make_float4(from[0], from[1], from[2], from[3]);
#else
    *reinterpret_cast<uint2 *>(to) = make_uint2(pack(from[0], from[1]), pack(from[2], from[3]));
#endif
}

// The valid tokens of a row of `time` tokens: all if there are no lengths. Lengths lie on the device, where nothing
// checks them: those out of range are limited to it.
__device__ __forceinline__ int valid_tokens(const int *lengths, int row, int time) {
    return lengths ? max(0, min(lengths[row], time)) : time;
}

// ---- Functions of numbers. ----

constexpr float LOG2_E = 1.4426950408889634f;

__device__ __forceinline__ float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
// x / (1 + exp(-x)); the exponential of a very negative x is infinite, its reciprocal 0.
__device__ __forceinline__ float silu(float x) { return x * reciprocal(1.0f + power_of_two(-LOG2_E * x)); }

// log(1 + exp(x)) = max(x, 0) + log1p(e) with e = exp(-|x|), and log1p(e) = 2 atanh(s) with s = e / (2 + e) <= 1/3:
// small results keep their relative precision.
__device__ __forceinline__ float softplus(float x) {
    float e = power_of_two(-LOG2_E * fabsf(x));
    float s = e * reciprocal(2.0f + e);
    float q = s * s;
    float p = fmaf(q, 1.0f / 13, 1.0f / 11);
    p = fmaf(p, q, 1.0f / 9);
    p = fmaf(p, q, 1.0f / 7);
    p = fmaf(p, q, 1.0f / 5);
    p = fmaf(p, q, 1.0f / 3);
    p = fmaf(p, q, 1.0f);
    return fmaf(2.0f * s, p, fmaxf(x, 0.0f));
}

// ---- Sums over threads. ----

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int distance = 16; distance; distance >>= 1) x += __shfl_xor_sync(~0u, x, distance);
    return x;
}

// The sum over a block of WARPS warps, in every thread. `shared` has WARPS numbers and must not be in use.
template <int WARPS>
__device__ __forceinline__ float block_sum(float x, float *shared) {
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0.0f;
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) sum += shared[warp];
    return sum;
}

// The decay of a head of retention: 1 - 2^(-5 - head).
__device__ __forceinline__ float head_decay(int head) { return 1.0f - power_of_two((float)(-5 - head)); }
// decay^n. The logarithm is taken of 1 - e with e = 2^(-5-h) as a series, which is exact to fp32 for e <= 1/32.
__device__ __forceinline__ float head_decay_log2(int head) {
    float e = power_of_two((float)(-5 - head));
    float p = fmaf(e, 1.0f / 6, 1.0f / 5);
    p = fmaf(p, e, 1.0f / 4);
    p = fmaf(p, e, 1.0f / 3);
    p = fmaf(p, e, 1.0f / 2);
    p = fmaf(p, e, 1.0f);
    return -LOG2_E * e * p;
}
