// The warp that copies the weights of the decode step of DenseRetNet to shared memory.
#pragma once
#include "retnet_step_shape.cuh"

__device__ __forceinline__ void init_barrier(u64 *barrier, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}
__device__ __forceinline__ void expect_bytes(u64 *barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
}
__device__ __forceinline__ void await_barrier(u64 *barrier, u32 parity) {
    u32 done;
    do {
        asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                     : "=r"(done)
                     : "r"(shared_address(barrier)), "r"(parity)
                     : "memory");
    } while (!done);
}
__device__ __forceinline__ void arrive(u64 *barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
__device__ __forceinline__ void bulk_copy(void *to, const void *from, u32 bytes, u64 *barrier, u64 policy) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::
                     "r"(shared_address(to)), "l"(from), "r"(bytes), "r"(shared_address(barrier)), "l"(policy)
                 : "memory");
}
// A barrier of the warps that compute.
__device__ __forceinline__ void synchronize() { asm volatile("bar.sync 1, %0;" ::"n"(THREADS) : "memory"); }

// The warp that copies weights.
struct Copies {
    const Model &p;
    Shared &shared;
    const int block, lane, first_row, rows;  // of the head
    u64 policy;
    u32 count, smalls;

    __device__ __forceinline__ Copies(const Model &p, Shared &shared, int first_row, int rows)
        : p(p), shared(shared), block(blockIdx.x), lane(threadIdx.x % 32), first_row(first_row), rows(rows), count(0), smalls(0) {
        asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    }

    // The next piece of the ring: up to PIECE rows, one for each lane.
    __device__ __forceinline__ void piece(const act *from, int width, int stride, int rows) {
        u32 slot = count % SLOTS, use = count / SLOTS;
        if (use) await_barrier(&shared.free[slot], use - 1 & 1);
        if (count >= FLIGHT) await_barrier(&shared.full[(count - FLIGHT) % SLOTS], (count - FLIGHT) / SLOTS & 1);
        u64 *barrier = &shared.full[slot];
        if (lane == 0) expect_bytes(barrier, rows * width * 2);
        __syncwarp();
        if (lane < rows) bulk_copy(shared.ring[slot] + lane * stride, from, width * 2, barrier, policy);
        count++;
    }
    // `total` rows of which `row(i)` is the i-th, in pieces.
    template <typename Row>
    __device__ __forceinline__ void pieces(int total, int whole, Row row) {
        for (int i = 0; i < whole; i += PIECE) piece(row(min(i + lane, whole - 1)), HIDDEN, WIDE, max(0, min(PIECE, total - i)));
    }

    // The norm of a layer's input, and own rows of the gates' second layers.
    __device__ __forceinline__ void small(const float *norm, const Layer *gated) {
        Rest &rest = shared.rest;
        if (smalls) await_barrier(&rest.small_free, smalls - 1 & 1);
        smalls++;
        if (lane == 0) {
            u32 bytes = HIDDEN * 4;
            if (gated) bytes += QUERIES * KEY_GATE * 2 + COLUMNS * VALUE_GATE * 2;
            expect_bytes(&rest.small_full, bytes);
            bulk_copy(rest.norm, norm, HIDDEN * 4, &rest.small_full, policy);
        }
        __syncwarp();
        if (!gated) return;
        if (lane < QUERIES)
            bulk_copy(rest.key_gate + lane * KEY_STRIDE, gated->key_gate + (size_t)(block * QUERIES + lane) * KEY_GATE, KEY_GATE * 2,
                      &rest.small_full, policy);
        for (int c = lane; c < COLUMNS; c += 32)
            bulk_copy(rest.value_gate + c * VALUE_STRIDE, gated->value_gate + (size_t)(block * COLUMNS + c) * VALUE_GATE, VALUE_GATE * 2,
                      &rest.small_full, policy);
    }

    __device__ __forceinline__ void all() {
        for (int l = 0; l < LAYERS; l++) {
            const Layer &layer = p.layers[l];
            bool gated = GATED && layer.key_gate;
            if (block >= OWNERS) {
                if (!gated) continue;
                small(layer.norm, nullptr);
                int first = (block - OWNERS) * GATE_ROWS;
                pieces(GATE_ROWS, GATE_ROWS, [&](int i) {
                    int row = first + i;
                    return row < KEY_GATE ? layer.key_gate_in + (size_t)row * HIDDEN : layer.value_gate_in + (size_t)(row - KEY_GATE) * HIDDEN;
                });
                continue;
            }
            small(layer.norm, gated ? &layer : nullptr);
            pieces(2 * QUERIES, 2 * QUERIES, [&](int i) {
                return i < QUERIES ? layer.q + (size_t)(block * QUERIES + i) * HIDDEN : layer.k + (size_t)(block * QUERIES + i - QUERIES) * HIDDEN;
            });
            pieces(COLUMNS, COLUMNS, [&](int i) { return layer.v + (size_t)(block * COLUMNS + i) * HIDDEN; });
            pieces(COLUMNS, COLUMNS, [&](int i) { return layer.g + (size_t)(block * COLUMNS + i) * HIDDEN; });
            for (int i = 0; i < OUT; i += OUT_PIECE)
                piece(layer.out + (size_t)(block * OUT + i + lane % OUT_PIECE) * INNER, INNER, WIDER, OUT_PIECE);
        }
        small(p.norm, nullptr);
        for (int tile = 0; tile < rows; tile += TILE)
            pieces(rows - tile, TILE, [&](int i) { return p.head + (size_t)(first_row + min(tile + i, rows - 1)) * HIDDEN; });
    }
};
