// One token of a whole DenseRetNet model for few rows, as one persistent kernel.
//
// A decode step has to read all weights, and to read and write all states, once. Each of the `OWNERS` blocks owns the
// same part of every layer: `PAIRS` pairs of q and of k, `COLUMNS` columns of v, of g and of their head's states, and
// `OUT` outputs of the out product; four further blocks own the rows of the gates' first layers. v and g never leave
// their block. What blocks tell each other in a layer:
//
//   1  x -> norm -> gates' first layers (their blocks) -> the middles
//                -> q, k of own pairs, v, g of own columns; rotation -> q
//      with the middles: gates of own k and v, neighbours, rotation -> k, sums of squares of k and v
//   2  q and k of the head, all sums -> own columns of the states, their readout o -> o g and sums of squares of o
//   3  all o g, all sums -> own rows of the out product -> x
//
// A norm's factor is a scalar for each row (and head), so products with what it scales begin before it is known.
// The middles and q travel while a block still has rows of v and g to multiply. Meanwhile a warp of its own copies weights to a ring of pieces in shared memory, in the
// order of their use and as far ahead as the ring is long, with `FLIGHT` pieces under way.
// States pass through registers: while a row of the batch is computed, the next row's are loaded.
//
// What is exchanged are 64-bit words whose upper bits are a phase, written and read as one; a reader polls the words
// themselves. Words of x, q and k hold two numbers of 24 bits, those of o g three of 20 bits, which have the range of
// fp32. A word is written again only after all its readers have told something that depends on it, so one buffer of
// each kind suffices. The products use the tensor cores with up to eight rows of the batch as columns; the lanes of a
// quad take eight consecutive numbers of k each, which is a permutation of k that both operands share.
#include "retnet_step_products.cuh"

// A block has parts of cache lines, its neighbours the others at about the same time: the whole line goes to the L2 cache.
__device__ __forceinline__ float4 load_state(const float *p) {
    float4 v;
    asm volatile("ld.global.L1::no_allocate.L2::128B.v4.f32 {%0,%1,%2,%3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "l"(p));
    return v;
}
__device__ __forceinline__ void store_state(float *p, float4 v) {
    asm volatile("st.global.cs.v4.f32 [%0], {%1,%2,%3,%4};" ::"l"(p), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w) : "memory");
}

// A gate block: nothing in layers without gates.
__device__ __forceinline__ void compute_gates(Step &step, u32 base, float epsilon) {
    for (int l = 0; l < LAYERS; l++) {
        if (!step.p.layers[l].key_gate) continue;
        step.normed(base + l, l == 0, epsilon);
        step.free_small();
#pragma unroll
        for (int tile = 0; tile + GATES_AT_ONCE <= GATE_ROWS; tile += GATES_AT_ONCE) step.middles<GATES_AT_ONCE>(tile, base + l);
        constexpr int LEFT = GATE_ROWS % GATES_AT_ONCE;
        if constexpr (LEFT > 0) step.middles<LEFT>(GATE_ROWS - LEFT, base + l);
    }
}

// A block that owns columns of the states.
__device__ __forceinline__ void compute_layers(Step &step, u32 base, float epsilon) {
    const Model &p = step.p;
    Rest &rest = step.rest;
    const int block = step.block, warp = step.warp, lane = step.lane, head = block / OF_HEAD;

    // Warp n has row n of the batch.
    if (warp < BATCH) {
        u64 position = (u64)p.past[warp];
        if (lane < PAIRS) {
            // Angles in units of 2^-40 turns, so that late positions are as precise as early ones.
            int pair = (block * PAIRS + lane) % (KEYS / 2);
            double turns = exp(-9.210340371976184 * pair / (KEYS / 2 > 2 ? KEYS / 2 - 1 : 1)) * 0.15915494309189535;
            u64 angle = position * (u64)__double2ll_rn(turns * 1099511627776.0) & ((1ull << 40) - 1);
            float halves = (float)angle * (1.0f / 549755813888.0f);
            rest.cosine[warp][lane] = cospif(halves), rest.sine[warp][lane] = sinpif(halves);
        }
        double gap = exp2((double)(-5 - head));
        if (lane == 0) rest.scale[warp] = (float)rsqrt(-expm1((double)(position + 1) * log1p(-gap)) / gap);
        if (lane < OUT) rest.x[warp][lane] = to_float(p.embedding[(size_t)p.tokens[warp] * HIDDEN + block * OUT + lane]);
        for (int i = 0; i < NEIGHBOURS; i++)
            for (int c = lane; c < QUERIES + COLUMNS; c += 32) rest.below[i][warp][c] = 0.0f;
        __syncwarp();
    }
    // The sum of number `c` of the own keys and values of the layers before, into which layer l's takes its place.
    auto neighbours = [&](int c, float own, int l) {
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < NEIGHBOURS; i++) sum += rest.below[i][warp][c];
        if (GATED) rest.below[GATED ? l % NEIGHBOURS : 0][warp][c] = own;
        return sum;
    };
    const float decay = head_decay(head);

    // The states of a row of the batch, as the lanes hold them.
    float4 state[ROUNDS];
    const int key_of = warp * KEYS_AT_ONCE + lane / QUADS;
    const bool active = lane < KEYS_AT_ONCE * QUADS;
    const size_t own_state = ((size_t)head * KEYS + key_of) * VALUES + block % OF_HEAD * COLUMNS + lane % QUADS * 4;
    constexpr size_t ROW = (size_t)HEADS * KEYS * VALUES, ROUND = (size_t)WARPS * KEYS_AT_ONCE * VALUES;
    auto has = [&](int i) { return active && (KEYS % (WARPS * KEYS_AT_ONCE) == 0 || i * WARPS * KEYS_AT_ONCE + key_of < KEYS); };
    auto load_states = [&](const Layer &layer) {
#pragma unroll
        for (int i = 0; i < ROUNDS; i++)
            if (has(i)) state[i] = load_state(layer.state + own_state + i * ROUND);
    };

    for (int l = 0; l < LAYERS; l++) {
        const Layer &layer = p.layers[l];
        const u32 phase = base + l;
        const bool gated = GATED && layer.key_gate;
        step.normed(phase, l == 0, epsilon);
        if (!gated) step.free_small();
        load_states(layer);
        float key_weight = 1.0f, value_weight[EACH], group_weight[EACH];
        if (layer.key_norm && lane >= QUERIES && lane < 2 * QUERIES) key_weight = layer.key_norm[block * QUERIES + lane - QUERIES];
#pragma unroll
        for (int e = 0; e < EACH; e++) {
            int c = min(lane + 32 * e, COLUMNS - 1);
            value_weight[e] = layer.key_norm ? layer.value_norm[block * COLUMNS + c] : 1.0f;
            group_weight[e] = layer.group_norm[block % OF_HEAD * COLUMNS + c];
        }

        // q and k. Two lanes have a pair.
        auto qk = [&](int lane) {
            int own = fresh(block);
            return p.qk + ((warp * HEADS + own / OF_HEAD) * QK_PAIRS + own % OF_HEAD * PAIRS + lane / 2) * 2;
        };
        auto rotate = [&](float x) {
            float other = __shfl_xor_sync(~0u, x, 1), cosine = rest.cosine[warp][lane % QUERIES / 2], sine = rest.sine[warp][lane % QUERIES / 2];
            return lane % 2 == 0 ? x * cosine - other * sine : x * cosine + other * sine;
        };
        auto put_pair = [&](float x, bool here, u64 *to) {
            float next = __shfl_down_sync(~0u, x, 1);
            if (here && lane % 2 == 0) put(to, two24(x, next), phase);
        };
        step.product<2 * QUERIES, PIECE, HIDDEN>();
        float k = 0.0f;
        if (warp < BATCH) {
            float value = lane < 2 * QUERIES ? silu(step.sum(lane)) : 0.0f;
            put_pair(rotate(value), lane < QUERIES, qk(lane));
            if (lane >= QUERIES && lane < 2 * QUERIES) k = value * rsqrtf((float)KEYS);
        }
        // v and g.
        step.product<COLUMNS, PIECE, HIDDEN>();
        float v[EACH] = {};
        if (warp < BATCH)
#pragma unroll
            for (int e = 0; e < EACH; e++)
                if (lane + 32 * e < COLUMNS) v[e] = silu(step.sum(lane + 32 * e));
        step.product<COLUMNS, PIECE, HIDDEN>();
        if (warp < BATCH)
#pragma unroll
            for (int e = 0; e < EACH; e++)
                if (lane + 32 * e < COLUMNS) rest.g[warp][lane + 32 * e] = silu(step.sum(lane + 32 * e)) * group_weight[e];

        // The neighbours of k and v.
        if (gated) {
            step.gates(phase);
            step.free_small();
        }
        if (warp < BATCH) {
            float squares_k = 0.0f, squares_v = 0.0f;
            if (lane >= QUERIES && lane < 2 * QUERIES) {
                float below = neighbours(lane - QUERIES, k, l);
                if (gated) k = fmaf(rest.gates[warp][lane - QUERIES], below, k);
                squares_k = k * k;
            }
            put_pair(rotate(k * key_weight), lane >= QUERIES && lane < 2 * QUERIES, qk(lane - QUERIES) + 1);
#pragma unroll
            for (int e = 0; e < EACH; e++) {
                int c = lane + 32 * e;
                if (c >= COLUMNS) continue;
                float below = neighbours(QUERIES + c, v[e], l), fused = v[e];
                if (gated) fused = fmaf(rest.gates[warp][QUERIES + c], below, fused);
                squares_v = fmaf(fused, fused, squares_v);
                rest.v[warp][c] = fused * value_weight[e];
            }
            squares_k = warp_sum(squares_k), squares_v = warp_sum(squares_v);
            if (lane == 0) put(p.sums + warp * OWNERS + block, two24(squares_k, squares_v), phase);
        }

        // q and k of the head: pairs of float2 {q, k}; the factor of k v.
        float2 *all_qk = reinterpret_cast<float2 *>(rest.rows);
        {
            constexpr int COUNT = BATCH * QK_PAIRS, ROUND = (COUNT + THREADS - 1) / THREADS;
            const int thread = fresh(threadIdx.x) & (THREADS - 1);
            u64 words[ROUND][2], sums[2][2];
            await<COUNT, 16>(words, thread, phase,
                             [&](int i) { return p.qk + ((size_t)(i / QK_PAIRS * HEADS + head) * QK_PAIRS + i % QK_PAIRS) * 2; },
                             [&] { return warp >= BATCH || poll_owners(sums, p.sums + warp * OWNERS, phase, lane); });
#pragma unroll
            for (int i = 0; i < ROUND; i++) {
                int at = i * THREADS + thread;
                if (at >= COUNT) continue;
                float4 pair = make_float4(first24(words[i][0]), first24(words[i][1]), second24(words[i][0]), second24(words[i][1]));
                reinterpret_cast<float4 *>(all_qk)[at] = pair;
            }
            if (warp < BATCH) {
                float of_k = warp_sum(first24(sums[0][0]) + first24(sums[0][1]) + (first24(sums[1][0]) + first24(sums[1][1])));
                float of_v = warp_sum(second24(sums[0][0]) + second24(sums[0][1]) + (second24(sums[1][0]) + second24(sums[1][1])));
                float factor = layer.key_norm ? rsqrtf(of_k / QUERY_KEYS + epsilon) * rsqrtf(of_v / INNER + epsilon) : 1.0f;
                if (lane == 0) rest.factor[warp] = factor;
            }
            synchronize();
        }

        // The states, and their readout.
        auto &parts = rest.parts[step.turn & 1][warp];
        const float *from = layer.state + own_state;
        float *to = layer.next_state + own_state;
#pragma unroll 1
        for (int n = 0; n < BATCH; n++, from += ROW, to += ROW) {
            float4 o = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (active) {
                float4 v = *reinterpret_cast<const float4 *>(&rest.v[n][lane % QUADS * 4]);
                float factor = rest.factor[n];
                v.x *= factor, v.y *= factor, v.z *= factor, v.w *= factor;
                const float2 *qk = all_qk + n * KEYS + key_of;
#pragma unroll
                for (int i = 0; i < ROUNDS; i++) {
                    if (!has(i)) continue;
                    float2 both = qk[i * WARPS * KEYS_AT_ONCE];
                    float4 s = state[i];
                    s.x = fmaf(decay, s.x, both.y * v.x), s.y = fmaf(decay, s.y, both.y * v.y);
                    s.z = fmaf(decay, s.z, both.y * v.z), s.w = fmaf(decay, s.w, both.y * v.w);
                    o.x = fmaf(both.x, s.x, o.x), o.y = fmaf(both.x, s.y, o.y);
                    o.z = fmaf(both.x, s.z, o.z), o.w = fmaf(both.x, s.w, o.w);
                    store_state(to + i * ROUND, s);
                    if (n + 1 < BATCH) state[i] = load_state(from + ROW + i * ROUND);
                }
            }
            float4 sum = o;
#pragma unroll
            for (int j = 1; j < KEYS_AT_ONCE; j++) {
                sum.x += __shfl_down_sync(~0u, o.x, j * QUADS), sum.y += __shfl_down_sync(~0u, o.y, j * QUADS);
                sum.z += __shfl_down_sync(~0u, o.z, j * QUADS), sum.w += __shfl_down_sync(~0u, o.w, j * QUADS);
            }
            if (lane < QUADS) *reinterpret_cast<float4 *>(&parts[n][lane * 4]) = sum;
        }
        step.turn++;
        synchronize();
        u64 *squares_words = p.sums + (BATCH + warp) * OWNERS;
        if (warp < BATCH) {
            float squares = 0.0f;
#pragma unroll
            for (int e = 0; e < EACH; e++) {
                int c = lane + 32 * e;
                if (c >= COLUMNS) continue;
                float o = step.sum(c) * rest.scale[warp];
                squares = fmaf(o, o, squares);
                rest.v[warp][c] = o * rest.g[warp][c];
            }
            squares = warp_sum(squares);
            if (lane == 0) put(squares_words + block, __float_as_uint(squares), phase);
            __syncwarp();
            if (lane < 2 * Y_PAIRS) {
                auto number = [&](int i) { return lane * 3 + i < COLUMNS ? upper20(rest.v[warp][lane * 3 + i]) : 0; };
                put<4>(p.y + (warp * OWNERS + fresh(block)) * (2 * Y_PAIRS) + lane, number(2) << 40 | number(1) << 20 | number(0), phase);
            }
        }

        // All o g, normed, as the right operand. Many rows are waited for in parts, as registers do not suffice for all.
        {
            constexpr int GROUPS = BATCH > MOST_ROWS ? 2 : 1, GROUP = (BATCH + GROUPS - 1) / GROUPS, OF_ROW = OWNERS * Y_PAIRS;
#pragma unroll
            for (int group = 0; group < GROUPS; group++) {
                constexpr int COUNT = GROUP * OF_ROW, ROUND = (COUNT + THREADS - 1) / THREADS;
                const int thread = fresh(threadIdx.x) & (THREADS - 1);
                // The last rows are taken twice where the batch is no multiple.
                const int first = group * (BATCH - GROUP);
                u64 words[ROUND][2], squares[2][2];
                const bool sums = group == 0 && warp < BATCH;
                await<COUNT, 4>(words, thread, phase, [&](int i) { return p.y + (size_t)(first * OF_ROW + i) * 2; },
                                [&] { return !sums || poll_owners(squares, squares_words, phase, lane); });
                if (sums)
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        float sum = __uint_as_float((u32)squares[i][0]) + __uint_as_float((u32)squares[i][1]);
#pragma unroll
                        for (int distance = OF_HEAD / 4; distance; distance >>= 1) sum += __shfl_xor_sync(~0u, sum, distance);
                        if (lane % (OF_HEAD / 2) == 0) rest.factors[warp][(i * 32 + lane) / (OF_HEAD / 2)] = rsqrtf(sum / VALUES + epsilon);
                    }
                if (group == 0) synchronize();
#pragma unroll
                for (int i = 0; i < ROUND; i++) {
                    int at = i * THREADS + thread, row = first + at / OF_ROW, owner = at / Y_PAIRS % OWNERS, c = at % Y_PAIRS * 6;
                    if (at >= COUNT) continue;
                    float factor = rest.factors[row][owner / OF_HEAD];
                    u32 *into = reinterpret_cast<u32 *>(rest.rows + row * WIDER + (owner * COLUMNS + c) * 2);
                    u64 first = words[i][0], second = words[i][1];
                    into[0] = pack(number20<0>(first) * factor, number20<1>(first) * factor);
                    if (c + 2 < COLUMNS) into[1] = pack(number20<2>(first) * factor, number20<0>(second) * factor);
                    if (c + 4 < COLUMNS) into[2] = pack(number20<1>(second) * factor, number20<2>(second) * factor);
                }
            }
            synchronize();
        }
        step.product<OUT, OUT_PIECE, INNER>();
        if (warp < BATCH) {
            float residual = lane < OUT ? rest.x[warp][lane] + step.sum(lane) : 0.0f;
            if (lane < OUT) rest.x[warp][lane] = residual;
            float next = __shfl_down_sync(~0u, residual, 1);
            if (lane < OUT && lane % 2 == 0)
                put(p.x + (warp * HIDDEN + fresh(block) * OUT + lane) / 2, two24(residual, next), phase + 1);
        }
    }
}

// The grid has BLOCKS blocks, all resident at once; `Shared` is dynamic shared memory.
extern "C" __global__ void __launch_bounds__(THREADS + 32, 1) retnet_step(const __grid_constant__ Model p) {
    Shared &shared = *reinterpret_cast<Shared *>(dynamic);
    const int block = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32, vocabulary = (int)p.vocabulary;
    const u32 steps = *p.step, base = steps * (LAYERS + 2) + 1;
    const float epsilon = __uint_as_float((u32)p.epsilon);
    // Own rows of the head.
    const int first_row = (int)((long long)vocabulary * block / BLOCKS), rows = (int)((long long)vocabulary * (block + 1) / BLOCKS) - first_row;

    if (threadIdx.x == 0) {
        for (int i = 0; i < SLOTS; i++) init_barrier(&shared.full[i], 1), init_barrier(&shared.free[i], WARPS);
        init_barrier(&shared.rest.small_full, 1), init_barrier(&shared.rest.small_free, WARPS);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
    __syncthreads();
    if (warp == WARPS) {
        Copies(p, shared, first_row, rows).all();
        return;
    }
    Step step(p, shared);
    if (GATED && block >= OWNERS) compute_gates(step, base, epsilon);
    else compute_layers(step, base, epsilon);

    step.normed(base + LAYERS, false, epsilon);
    for (int tile = 0; tile < rows; tile += TILE) {
        step.product<TILE, PIECE, HIDDEN>();
        if (warp < BATCH && lane < TILE && tile + lane < rows)
            p.logits[(size_t)warp * vocabulary + first_row + tile + lane] = step.sum(lane);
    }
    if (block == 0 && threadIdx.x == 0) *p.step = steps + 1;
}
