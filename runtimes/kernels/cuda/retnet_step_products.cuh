// The products of the decode step of DenseRetNet: what every block does with the weights that have been copied.
#pragma once
#include "retnet_step_copies.cuh"
#include "retnet_step_words.cuh"

__device__ __forceinline__ uint4 load_shared16(const void *from) { return *reinterpret_cast<const uint4 *>(from); }
// The right operand of a lane: eight numbers of row lane / 4 of the batch.
__device__ __forceinline__ uint4 load_row(const char *rows, int stride, int offset, int lane) {
    return lane / 4 < BATCH ? load_shared16(rows + lane / 4 * stride + offset) : make_uint4(0, 0, 0, 0);
}
// Two steps of k; `low` and `high` are eight numbers of rows lane / 4 and lane / 4 + 8.
__device__ __forceinline__ void multiply(float (&c)[4], uint4 low, uint4 high, uint4 b) {
    mma(c, low.x, high.x, low.y, high.y, b.x, b.y);
    mma(c, low.z, high.z, low.w, high.w, b.z, b.w);
}
// Sixteen rows of WIDTH numbers by the rows of the batch, by one warp; rows past `count` repeat the last.
template <int WIDTH, int STRIDE>
__device__ __forceinline__ void small_product(float (&c)[4], const char *rows, int count, const act *batch, int batch_stride, int lane) {
    const char *low = rows + min(lane / 4, count - 1) * STRIDE, *high = rows + min(lane / 4 + 8, count - 1) * STRIDE;
    const uint4 none = make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int j = 0; j < WIDTH; j += 32) {
        bool valid = j + lane % 4 * 8 < WIDTH;
        int offset = (j + lane % 4 * 8) * 2;
        multiply(c, valid ? load_shared16(low + offset) : none, valid ? load_shared16(high + offset) : none,
                 valid ? load_row((const char *)batch, batch_stride, offset, lane) : none);
    }
}

// The warps that compute.
struct Step {
    const Model &p;
    Shared &shared;
    Rest &rest;
    const int block, warp, lane;
    u32 pieces, smalls, turn;  // used so far; which of the two `parts`

    __device__ __forceinline__ Step(const Model &p, Shared &shared)
        : p(p), shared(shared), rest(shared.rest), block(blockIdx.x), warp(threadIdx.x / 32), lane(threadIdx.x % 32), pieces(0),
          smalls(0), turn(0) {}

    // The input of a layer, normed, into shared memory as the right operand. The first layer's is the embedding.
    __device__ __forceinline__ void normed(u32 phase, bool embedded, float epsilon) {
        const int thread = fresh(threadIdx.x) & (THREADS - 1), warp = thread / 32;
        u64 words[X_ROUNDS][2];
        if (embedded) {
#pragma unroll
            for (int i = 0; i < X_ROUNDS; i++) {
                int part = i * WARPS + warp, row = part / X_WARPS;
                if (part >= BATCH * X_WARPS) continue;
                float x[4];
                load4(x, p.embedding + (size_t)p.tokens[row] * HIDDEN + (part % X_WARPS * 32 + lane) * 4);
                words[i][0] = two24(x[0], x[1]), words[i][1] = two24(x[2], x[3]);
            }
        } else {
            await<BATCH * X_PAIRS, 16>(words, thread, phase, [&](int i) { return p.x + i * 2; }, no_others);
        }
#pragma unroll
        for (int i = 0; i < X_ROUNDS; i++) {
            int part = i * WARPS + warp;
            if (part >= BATCH * X_WARPS) continue;
            float a = first24(words[i][0]), b = second24(words[i][0]), c = first24(words[i][1]), d = second24(words[i][1]);
            float squares = warp_sum(fmaf(a, a, b * b) + fmaf(c, c, d * d));
            if (lane == 0) rest.squares[part] = squares;
        }
        await_barrier(&rest.small_full, smalls++ & 1);
        synchronize();
#pragma unroll
        for (int i = 0; i < X_ROUNDS; i++) {
            int part = i * WARPS + warp, row = part / X_WARPS, column = (part % X_WARPS * 32 + lane) * 4;
            if (part >= BATCH * X_WARPS) continue;
            float squares = 0.0f;
#pragma unroll
            for (int w = 0; w < X_WARPS; w++) squares += rest.squares[row * X_WARPS + w];
            float factor = rsqrtf(squares / HIDDEN + epsilon);
            float4 weight = *reinterpret_cast<const float4 *>(rest.norm + column);
            uint2 y = make_uint2(pack(first24(words[i][0]) * factor * weight.x, second24(words[i][0]) * factor * weight.y),
                                 pack(first24(words[i][1]) * factor * weight.z, second24(words[i][1]) * factor * weight.w));
            *reinterpret_cast<uint2 *>(rest.rows + row * WIDE + column * 2) = y;
        }
        synchronize();
    }
    // `norm`, `key_gate` and `value_gate` in shared memory have been used.
    __device__ __forceinline__ void free_small() {
        __syncwarp();
        if (lane == 0) arrive(&rest.small_free);
    }

    // Multiplies the next COUNT rows of the ring with the batch, a warp an eighth of k; `sum` adds the parts.
    template <int COUNT, int OF_PIECE, int WIDTH>
    __device__ __forceinline__ void product() {
        constexpr int STRIDE = WIDTH * 2 + 64, GROUPS = (COUNT + 7) / 8, TILES = (GROUPS + 1) / 2, PIECES = (COUNT + OF_PIECE - 1) / OF_PIECE;
        if (lane < PIECES) await_barrier(&shared.full[(pieces + lane) % SLOTS], (pieces + lane) / SLOTS & 1);
        __syncwarp();
        const char *rows[2 * TILES];
#pragma unroll
        for (int g = 0; g < GROUPS; g++) {
            int row = min(g * 8 + lane / 4, COUNT - 1);
            rows[g] = shared.ring[(pieces + row / OF_PIECE) % SLOTS] + row % OF_PIECE * STRIDE;
        }
        float c[TILES][4] = {};
#pragma unroll 6
        for (int j = 0; j < WIDTH / WARPS / 32; j++) {
            int offset = (warp * (WIDTH / WARPS) + j * 32 + lane % 4 * 8) * 2;
            uint4 b = load_row(rest.rows, STRIDE, offset, lane);
#pragma unroll
            for (int t = 0; t < TILES; t++)
                multiply(c[t], load_shared16(rows[2 * t] + offset), 2 * t + 1 < GROUPS ? load_shared16(rows[2 * t + 1] + offset) : make_uint4(0, 0, 0, 0), b);
        }
        auto &parts = rest.parts[turn & 1][warp];
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int n = lane % 4 * 2 + i % 2, row = t * 16 + lane / 4 + i / 2 * 8;
                if (n < BATCH && row < COUNT) parts[n][row] = c[t][i];
            }
        __syncwarp();
        if (lane < PIECES) arrive(&shared.free[(pieces + lane) % SLOTS]);
        pieces += PIECES;
        turn++;
        synchronize();
    }
    // The sum of the last product's parts, for the warp's row of the batch.
    __device__ __forceinline__ float sum(int row) const {
        float sum = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; w++) sum += rest.parts[turn - 1 & 1][w][warp][row];
        return sum;
    }

    // A gate block's rows in a layer.
    template <int COUNT>
    __device__ __forceinline__ void middles(int first, u32 phase) {
        product<COUNT, PIECE, HIDDEN>();
        if (warp >= BATCH) return;
#pragma unroll
        for (int i = 0; i < COUNT; i += 32) {
            float value = i + lane < COUNT ? silu(sum(i + lane)) : 0.0f, next = __shfl_down_sync(~0u, value, 1);
            int row = (block - OWNERS) * GATE_ROWS + first + i + lane;
            if (i + lane < COUNT && lane % 2 == 0) put(p.g + (warp * MIDDLES + row) / 2, pack(value, next), phase);
        }
    }

    // The gates of own rows of k and columns of v, from the middles.
    __device__ __forceinline__ void gates(u32 phase) {
        constexpr int COUNT = BATCH * G_PAIRS, ROUND = (COUNT + THREADS - 1) / THREADS;
        const int thread = fresh(threadIdx.x) & (THREADS - 1);
        u64 words[ROUND][2];
        await<COUNT, 16>(words, thread, phase, [&](int i) { return p.g + i * 2; }, no_others);
#pragma unroll
        for (int i = 0; i < ROUND; i++) {
            int at = i * THREADS + thread, row = at / G_PAIRS, middle = at % G_PAIRS * 4;
            if (at >= COUNT) continue;
            act *to = middle < KEY_GATE ? &rest.key_middle[row][middle] : &rest.value_middle[row][middle - KEY_GATE];
            *reinterpret_cast<uint2 *>(to) = make_uint2((u32)words[i][0], (u32)words[i][1]);
        }
        synchronize();
        constexpr int VALUE_TILES = (COLUMNS + 15) / 16;
        if (warp <= VALUE_TILES) {
            float c[4] = {};
            int first = warp == 0 ? 0 : QUERIES + (warp - 1) * 16, count = warp == 0 ? QUERIES : min(16, COLUMNS - (warp - 1) * 16);
            if (warp == 0) small_product<KEY_GATE, KEY_STRIDE>(c, rest.key_gate, count, rest.key_middle[0], sizeof(rest.key_middle[0]), lane);
            else small_product<VALUE_GATE, VALUE_STRIDE>(c, rest.value_gate + (warp - 1) * 16 * VALUE_STRIDE, count, rest.value_middle[0], sizeof(rest.value_middle[0]), lane);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int n = lane % 4 * 2 + i % 2, row = lane / 4 + i / 2 * 8;
                if (n < BATCH && row < count) rest.gates[n][first + row] = silu(c[i]);
            }
        }
        synchronize();
    }
};
