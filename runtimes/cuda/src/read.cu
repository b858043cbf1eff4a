// Reads a buffer, for measuring how fast a GPU reads its memory. Every thread keeps several loads in flight.
constexpr int LOADS = 4;

__device__ unsigned total(uint4 word) { return word.x + word.y + word.z + word.w; }

extern "C" __global__ void __launch_bounds__(512, 2) read(const uint4* words, unsigned long long count, unsigned* result) {
    const unsigned long long threads = (unsigned long long)gridDim.x * blockDim.x;
    unsigned long long at = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x;
    unsigned sum = 0;
    for (; at + (LOADS - 1) * threads < count; at += LOADS * threads) {
        uint4 loaded[LOADS];
#pragma unroll
        for (int i = 0; i < LOADS; ++i) loaded[i] = words[at + i * threads];
#pragma unroll
        for (int i = 0; i < LOADS; ++i) sum += total(loaded[i]);
    }
    for (; at < count; at += threads) sum += total(words[at]);
    // The result depends on every load.
    atomicAdd(result, sum);
}
