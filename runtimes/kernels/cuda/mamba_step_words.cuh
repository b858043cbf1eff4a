// The exchange of values between blocks: 64-bit words whose upper 16 bits are a phase, written and read as one. A reader
// polls the words themselves. Words of x hold two numbers of 24 bits, those of y up to three of 16 bits; thread t of a
// group reads the words 2 t and 2 t + 1 of each 2 `GROUP_THREADS`.
#pragma once
#include "mamba_step_shape.cuh"

constexpr int VALUES = HIDDEN / GROUP_THREADS;          // numbers of x that a thread reads, of each row
constexpr int X_WORDS = VALUES / 2;                     // words of them
constexpr int OWN_CHANNELS = INNER / GROUP_THREADS;     // channels of y that a thread reads
constexpr int Y_CHANNELS = GROUP_ROWS == 1 ? 2 : 1;     // channels in a word of y
constexpr int Y_ROWS = GROUP_ROWS <= 3 ? GROUP_ROWS : 2;                // rows in a word of y
constexpr int Y_PARTS = (GROUP_ROWS + Y_ROWS - 1) / Y_ROWS;             // words of y for all rows of a group
static_assert(OWN_CHANNELS == 8, "sizes");
constexpr int Y_WORDS = OWN_CHANNELS / Y_CHANNELS * Y_PARTS;            // words of a thread
constexpr int G_WORDS = 2 * GATE > OTHER_BLOCKS ? 2 * GATE : OTHER_BLOCKS;

// What the host has to launch and to allocate: blocks, threads of a block, bytes of dynamic shared memory; words of x,
// g, y and sums.
extern "C" __device__ const u32 mamba_step_shape[7] = {
    BLOCKS, THREADS + 32, sizeof(Shared), 2 * BATCH * HIDDEN / 2, 2 * BATCH * G_WORDS, 2 * GROUPS * GROUP_THREADS * Y_WORDS,
    2 * LAYERS * REPLICAS * BATCH * SUMS,
};

__device__ __forceinline__ void put(u64 *to, u64 value, u32 phase) {
    u64 word = (u64)phase << 48 | value;
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(word) : "memory");
}
// Reads a word, or two, if `wanted`.
__device__ __forceinline__ void get(u64 &to, const u64 *from, u32 wanted) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %2, 0;\n@p ld.relaxed.gpu.global.u64 %0, [%1];\n}"
                 : "+l"(to)
                 : "l"(from), "r"(wanted)
                 : "memory");
}
__device__ __forceinline__ void get_two(u64 &first, u64 &second, const u64 *from, u32 wanted) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %3, 0;\n@p ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];\n}"
                 : "+l"(first), "+l"(second)
                 : "l"(from), "r"(wanted)
                 : "memory");
}
__device__ __forceinline__ bool has_phase(u64 word, u32 phase) { return (u32)(word >> 48) == (phase & 0xffff); }
__device__ __forceinline__ void poll_gap() {
    if (POLL_GAP) __nanosleep(POLL_GAP);
}

// The upper 24 bits of a number, rounded to even.
__device__ __forceinline__ u32 upper24(float x) {
    u32 bits = __float_as_uint(x);
    return x != x ? 0x7fc000 : (bits + 0x7f + (bits >> 8 & 1)) >> 8;
}
__device__ __forceinline__ float first24(u64 word) { return __uint_as_float((u32)word << 8); }
__device__ __forceinline__ float second24(u64 word) { return __uint_as_float((u32)(word >> 16) & 0xffffff00u); }

// Waits for pairs of words, the i-th at `at(i)`. Only words that have not come are read again. Where they are many, the
// last pair is waited for first, as polling all of them would keep the path to the L2 cache busy.
template <int PAIRS, typename At>
__device__ __forceinline__ void await(u64 (&words)[2 * PAIRS], At at, u32 phase) {
    u32 missing = (1u << PAIRS) - 1;
#pragma unroll
    for (int i = 0; i < 2 * PAIRS; i++) words[i] = 0;
    auto arrived = [&](int i) { return has_phase(words[2 * i], phase) && has_phase(words[2 * i + 1], phase); };
    if (PAIRS > (POLL == 3 ? 1 : 2)) {
        while (true) {
            get_two(words[2 * PAIRS - 2], words[2 * PAIRS - 1], at(PAIRS - 1), 1);
            if (arrived(PAIRS - 1) || NOWAIT) break;
            poll_gap();
        }
        missing &= ~(1u << (PAIRS - 1));
    }
    while (true) {
#pragma unroll
        for (int i = 0; i < PAIRS; i++) get_two(words[2 * i], words[2 * i + 1], at(i), POLL == 0 ? 1 : missing >> i & 1);
#pragma unroll
        for (int i = 0; i < PAIRS; i++)
            if (arrived(i)) missing &= ~(1u << i);
        if (!missing || NOWAIT) break;
        poll_gap();
    }
}

// The first warp of a group waits for some words before all of its threads read.
__device__ __forceinline__ void scout(const Place &place, const u64 *from, u32 phase) {
    if (place.warp % GROUP_WARPS == 0 && place.has_row(0)) {
        u64 words[2];
        await<1>(words, [&](int) { return from + place.lane * 8 * 2; }, phase);
    }
    synchronize();
}

// Waits for x: all words of each row of the group.
__device__ __forceinline__ void await_x(float (&x)[GROUP_ROWS][VALUES], const Place &place, const u64 *from, u32 phase) {
    constexpr int ROW_PAIRS = X_WORDS / 2;
    from += (size_t)place.first_row * (HIDDEN / 2);
    if (POLL == 2) scout(place, from, phase);
    if (!place.has_row(0)) return;
    u64 words[GROUP_ROWS * X_WORDS];
    // A row that the batch does not have is read as its last one.
    const int last = min(GROUP_ROWS, BATCH - place.first_row) - 1;
    auto at = [&](int i) {
        return from + min(i / ROW_PAIRS, last) * (HIDDEN / 2) + i % ROW_PAIRS * 2 * GROUP_THREADS + place.thread * 2;
    };
    await<GROUP_ROWS * ROW_PAIRS>(words, at, phase);
#pragma unroll
    for (int n = 0; n < GROUP_ROWS; n++)
#pragma unroll
        for (int i = 0; i < X_WORDS; i++) {
            u64 word = words[n * X_WORDS + i];
            x[n][2 * i] = first24(word), x[n][2 * i + 1] = second24(word);
        }
}
// Where the words of two numbers of a row of x lie.
__device__ __forceinline__ int x_word(int number) {
    int word = number % VALUES / 2;
    return word / 2 * 2 * GROUP_THREADS + number / VALUES * 2 + word % 2;
}

// Number r of a word of y, in the lower half of the result, and the same of another word in the upper half.
__device__ __forceinline__ u32 pair_of(u64 word, u64 other, int r) {
    return r == 0 ? __byte_perm((u32)word, (u32)other, 0x5410)
         : r == 1 ? __byte_perm((u32)word, (u32)other, 0x7632)
                  : __byte_perm((u32)(word >> 32), (u32)(other >> 32), 0x5410);
}

// Waits for y of the group's rows and puts it into shared memory, as the right operand. More than three rows are waited
// for in two parts, as registers do not suffice for one.
__device__ __forceinline__ void await_y(char *rows, const Place &place, const u64 *from, u32 phase) {
    constexpr int PARTS = GROUP_ROWS > 3 ? 2 : 1, WORDS = Y_WORDS / PARTS, COUNT = OWN_CHANNELS / PARTS;
    if (POLL == 2) scout(place, from, phase);
    if (!place.has_row(0)) return;
    from += place.thread * 2;
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
        u64 words[WORDS];
        await<WORDS / 2>(words, [&](int i) { return from + (part * WORDS + 2 * i) * GROUP_THREADS; }, phase);
#pragma unroll
        for (int n = 0; n < GROUP_ROWS; n++) {
            if (!place.has_row(n)) continue;
            u32 v[COUNT / 2];
#pragma unroll
            for (int i = 0; i < COUNT / 2; i++) {
                const int channel = 2 * i;
                if (Y_CHANNELS == 2) v[i] = (u32)words[i];
                else v[i] = pair_of(words[channel * Y_PARTS + n / Y_ROWS], words[(channel + 1) * Y_PARTS + n / Y_ROWS], n % Y_ROWS);
            }
            char *to = rows + (place.first_row + n) * WIDER + (place.thread * OWN_CHANNELS + part * COUNT) * 2;
#pragma unroll
            for (int i = 0; i < COUNT / 2; i += 4) {
                if (COUNT % 8) *reinterpret_cast<uint2 *>(to) = make_uint2(v[i], v[i + 1]);
                else *reinterpret_cast<uint4 *>(to + i * 4) = make_uint4(v[i], v[i + 1], v[i + 2], v[i + 3]);
            }
        }
    }
}
// Where a channel's words of y lie.
__device__ __forceinline__ int y_word(int channel, int part) {
    int word = channel % OWN_CHANNELS / Y_CHANNELS * Y_PARTS + part;
    return word / 2 * 2 * GROUP_THREADS + channel / OWN_CHANNELS * 2 + word % 2;
}
