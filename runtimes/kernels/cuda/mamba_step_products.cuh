// Products on tensor cores, with up to eight rows of the batch as columns. The lanes of a quad take eight consecutive
// numbers of k each, which is a permutation of k that both operands share.
#pragma once
#include "mamba_step_copies.cuh"

__device__ __forceinline__ uint4 load_shared16(const void *from) { return *reinterpret_cast<const uint4 *>(from); }
// The right operand of a lane: eight numbers of row lane / 4 of the batch.
__device__ __forceinline__ uint4 load_row(const char *rows, int stride, int offset, int lane) {
    return lane / 4 < BATCH ? load_shared16(rows + lane / 4 * stride + offset) : make_uint4(0, 0, 0, 0);
}

// Sums of a product of 16 rows, in `CHAINS` parts that do not wait for each other.
template <int CHAINS>
struct Sums {
    float c[CHAINS][4] = {};

    // Two steps of k; `low` and `high` are eight numbers of rows lane / 4 and lane / 4 + 8. The steps go to parts `j`
    // and `j + 1`.
    __device__ __forceinline__ void add(int j, uint4 low, uint4 high, uint4 b) {
        mma(c[j % CHAINS], low.x, high.x, low.y, high.y, b.x, b.y);
        mma(c[(j + 1) % CHAINS], low.z, high.z, low.w, high.w, b.z, b.w);
    }
    // The sum for row lane / 4 + i / 2 * 8 and row lane % 4 * 2 + i % 2 of the batch.
    __device__ __forceinline__ float sum(int i) const {
        float sum = c[0][i];
#pragma unroll
        for (int j = 1; j < CHAINS; j++) sum += c[j][i];
        return sum;
    }
};

__device__ __forceinline__ uint4 load_weights(const void *from) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from));
    return v;
}
__device__ __forceinline__ uint2 load_weights8(const void *from) {
    uint2 v;
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(from));
    return v;
}

// Products of the 32 rows of a stage with the normed x: a warp takes an eighth of k, and with two groups one half of the
// rows. The partial sums of the warps go to shared memory.
__device__ __forceinline__ void rows_product(Shared &shared, const Place &place, int stage) {
    constexpr int TILES = 2 / GROUPS, SLICE = HIDDEN / GROUP_WARPS;
    const int first = place.warp / GROUP_WARPS * TILES, slice = place.warp % GROUP_WARPS, lane = place.lane;
    await_in(shared, stage);
    const char *rows = shared.in[stage % IN_STAGES] + (first * 16 + lane / 4) * WIDE;
    float scales[2];
#pragma unroll
    for (int i = 0; i < 2; i++) scales[i] = shared.scales[min(lane % 4 * 2 + i, BATCH - 1)][slice];
    Sums<4> sums[TILES];
#pragma unroll
    for (int j = 0; j < SLICE / 32; j++) {
        int offset = (slice * SLICE + j * 32 + lane % 4 * 8) * 2;
        uint4 b = load_row(shared.rows, WIDE, offset, lane);
#pragma unroll
        for (int tile = 0; tile < TILES; tile++)
            sums[tile].add(2 * j, load_shared16(rows + tile * 16 * WIDE + offset), load_shared16(rows + (tile * 16 + 8) * WIDE + offset), b);
    }
    float *parts = shared.parts[stage % RED_STAGES] + slice * BATCH * IN_PART;
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int n = lane % 4 * 2 + i % 2;
            if (n < BATCH) parts[n * IN_PART + (first + tile) * 16 + lane / 4 + i / 2 * 8] = sums[tile].sum(i) * scales[i % 2];
        }
    synchronize();
    if (threadIdx.x == 0) arrive(&shared.in_free[stage % IN_STAGES]);
}
// The product of row `lane` of a stage with row n of the batch, normed.
__device__ __forceinline__ float row_sum(const Shared &shared, int stage, int n, int lane, u64 epsilon) {
    const float *parts = shared.parts[stage % RED_STAGES] + n * IN_PART + lane;
    float sum = 0.0f, squares = 0.0f;
#pragma unroll
    for (int w = 0; w < GROUP_WARPS; w++) sum += parts[w * BATCH * IN_PART], squares += shared.squares[n][w];
    return sum * rsqrtf(squares * (1.0f / HIDDEN) + __uint_as_float((u32)epsilon));
}

// Products of the block's rows of out_proj with y: a warp takes an equal part of k, of
// those that it has itself read with `await_y`, or the warp that `synchronize_part` waits for.
__device__ __forceinline__ void out_product(Shared &shared, const Place &place, int layer) {
    constexpr int SLICE = INNER / WARPS;
    const int lane = place.lane, slice = place.warp % GROUP_WARPS * GROUPS + place.warp / GROUP_WARPS;
    await_out(shared, layer);
    Sums<4> sums;
    const char *rows = shared.out[layer % OUT_STAGES] + lane / 4 * WIDER;
#pragma unroll
    for (int j = 0; j < SLICE / 32; j++) {
        int offset = (slice * SLICE + j * 32 + lane % 4 * 8) * 2;
        sums.add(2 * j, load_shared16(rows + offset), make_uint4(0, 0, 0, 0), load_row(shared.rows, WIDER, offset, lane));
    }
    float *parts = shared.out_parts + place.warp * BATCH * OUT_PART;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int n = lane % 4 * 2 + i;
        if (n < BATCH) parts[n * OUT_PART + lane / 4] = sums.sum(i);
    }
    synchronize();
    if (threadIdx.x == 0) arrive(&shared.out_free[layer % OUT_STAGES]);
}
// The product of row lane % 8 of the block's rows of out_proj with row n of the batch.
__device__ __forceinline__ float out_sum(const Shared &shared, int n, int lane) {
    const float *parts = shared.out_parts + (lane / OUT * BATCH + n) * OUT_PART + lane % OUT;
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; w += 4) sum += parts[w * BATCH * OUT_PART];
    sum += __shfl_xor_sync(~0u, sum, 8);
    return sum + __shfl_xor_sync(~0u, sum, 16);
}
