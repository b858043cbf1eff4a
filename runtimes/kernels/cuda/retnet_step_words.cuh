// The words that the blocks of the decode step of DenseRetNet exchange.
#pragma once
#include "retnet_step_shape.cuh"

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
    if (WHOLE > 2) {
        do {
            u64 last[2];
            get_two(last, at((WHOLE - 1) * THREADS + thread));
            all = has_phase<BITS>(last[0], phase) && has_phase<BITS>(last[1], phase);
        } while (!all);
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
    } while (!all);
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
