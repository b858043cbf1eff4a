// Retention over a sequence in chunks, on tensor cores; fp16 and bf16 activations, fp32 states and sums.
//
//   o_i = scale_i (sum_{j <= i} d^(i-j) (q_i k_j) v_j + d^(i+1) q_i S)      S <- d^C S + sum_j d^(C-1-j) k_j v_j
//
// `prepare` rotates q and k, computes the scores of each chunk, (q k) with their decays, and gives each k its decay.
// The main kernel holds the transposed state of 64 columns in registers as sums of the tensor cores, [values, keys]:
// rounded to the activations' type these are at once the left operand of S^T q^T. Warp w has 16 columns and half of the
// keys. Long prompts of few rows are divided into segments: a first launch of `states_only` computes what each adds.
#include "mma.cuh"
#include "retention.cuh"

constexpr int CHUNK = 64;
constexpr int THREADS = 256;
constexpr int TILE = 64;            // columns of a block
constexpr int HALF = KEYS / 2;      // keys of a warp
constexpr int TILES = HALF / 8;     // tiles of eight of them
constexpr int WIDE = KEYS + 8;      // a row of q or k in shared memory, padded against bank conflicts
constexpr int NARROW = 64 + 8;      // a row of v or of scores
constexpr int SUMS = TILE + 4;      // a row of o
static_assert(KEYS % 32 == 0 && VALUES % TILE == 0, "sizes of a head");

extern __shared__ __align__(16) char dynamic[];

__device__ __forceinline__ int chunk_length(int length, int chunk) { return max(0, min(CHUNK, length - chunk * CHUNK)); }

// The grid is [chunks, batch * heads]; 2 CHUNK WIDE activations of dynamic shared memory.
extern "C" __global__ void __launch_bounds__(THREADS) retention_chunks_prepare(const __grid_constant__ Retention p) {
    act *q = reinterpret_cast<act *>(dynamic), *k = q + CHUNK * WIDE;
    int heads = (int)p.heads, row = blockIdx.y / heads, head = blockIdx.y % heads, chunk = blockIdx.x;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, valid = chunk_length(length_of(p, row), chunk);
    float rate = head_decay_log2(head);
    u32 *queries = (u32 *)p.queries + ((size_t)blockIdx.y * p.padded + chunk * CHUNK) * (KEYS / 2);
    u32 *keys = (u32 *)p.keys + ((size_t)blockIdx.y * p.padded + chunk * CHUNK) * (KEYS / 2);
    for (int i = threadIdx.x; i < CHUNK * KEYS / 2; i += THREADS) {
        int token = i / (KEYS / 2), j = i % (KEYS / 2);
        u32 query = 0, key = 0, decayed = 0;
        if (token < valid) {
            size_t at = (size_t)row * p.time + chunk * CHUNK + token;
            float c = p.cosines[at * (KEYS / 2) + j], d = p.sines[at * (KEYS / 2) + j];
            u32 pair = reinterpret_cast<const u32 *>(p.q)[((at * heads + head) * KEYS) / 2 + j];
            float a = to_float(act{(u16)pair}), b = to_float(act{(u16)(pair >> 16)});
            query = pack(a * c - b * d, b * c + a * d);
            pair = reinterpret_cast<const u32 *>(p.k)[((at * heads + head) * KEYS) / 2 + j];
            a = to_float(act{(u16)pair}), b = to_float(act{(u16)(pair >> 16)});
            float left = power_of_two(rate * (float)(valid - 1 - token));
            key = pack(a * c - b * d, b * c + a * d);
            decayed = pack(left * (a * c - b * d), left * (b * c + a * d));
        }
        reinterpret_cast<u32 *>(q + token * WIDE)[j] = query;
        reinterpret_cast<u32 *>(k + token * WIDE)[j] = key;
        queries[i] = query;
        keys[i] = decayed;
    }
    __syncthreads();

    // Warp w computes 16 rows and 32 columns of the scores.
    int i0 = warp % 4 * 16, j0 = warp / 4 * 32;
    float sums[4][4] = {};
    for (int step = 0; step < KEYS; step += 16) {
        u32 a[4], b[4];
        load_matrices(a, shared_address(q + (i0 + lane % 16) * WIDE + step + lane / 16 * 8));
#pragma unroll
        for (int pair = 0; pair < 2; pair++) {
            int j = j0 + pair * 16 + lane % 8 + lane / 16 * 8;
            load_matrices(b, shared_address(k + j * WIDE + step + lane / 8 % 2 * 8));
            mma(sums[2 * pair], a[0], a[1], a[2], a[3], b[0], b[1]);
            mma(sums[2 * pair + 1], a[0], a[1], a[2], a[3], b[2], b[3]);
        }
    }
    u32 *scores = (u32 *)(p.scores + ((size_t)blockIdx.y * gridDim.x + chunk) * CHUNK * CHUNK);
#pragma unroll
    for (int n = 0; n < 4; n++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int i = i0 + lane / 4 + half * 8, j = j0 + n * 8 + lane % 4 * 2;
            float first = i >= j ? sums[n][2 * half] * power_of_two(rate * (float)(i - j)) : 0.0f;
            float second = i > j ? sums[n][2 * half + 1] * power_of_two(rate * (float)(i - j - 1)) : 0.0f;
            scores[(i * CHUNK + j) / 2] = pack(first, second);
        }
}

struct Shared {
    act q[CHUNK * WIDE], k[CHUNK * WIDE], v[2][CHUNK * NARROW], scores[2][CHUNK * NARROW];
    float o[CHUNK * SUMS];
};

template <bool STATES_ONLY>
__device__ __forceinline__ void chunks(const Retention &p) {
    Shared &shared = *reinterpret_cast<Shared *>(dynamic);
    int heads = (int)p.heads, row = blockIdx.y / heads, head = blockIdx.y % heads, segment = blockIdx.z;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, length = length_of(p, row);
    int column = blockIdx.x * TILE, own = warp % 4 * 16, half = warp / 4 * HALF;
    int count = (int)p.padded / CHUNK, each = (int)p.segment_tokens / CHUNK;
    int begin = segment * each, end = min(begin + each, count);
    float rate = head_decay_log2(head);
    size_t size = (size_t)KEYS * VALUES;

    // s[n] is a tile of 16 columns (values) and 8 keys: lane / 4 (and + 8) and lane % 4 * 2 (and + 1).
    float s[TILES][4];
    size_t own_state = (size_t)(half + lane % 4 * 2) * VALUES + column + own + lane / 4;
    auto each_number = [&](auto apply) {
#pragma unroll
        for (int n = 0; n < TILES; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) apply(s[n][i], own_state + (size_t)(n * 8 + i % 2) * VALUES + i / 2 * 8);
    };
    if (STATES_ONLY) {
        each_number([&](float &number, size_t) { number = 0.0f; });
    } else {
        int before = min(length, begin * CHUNK);
        float factor = power_of_two(rate * (float)before);
        const float *state = p.state + blockIdx.y * size;
        each_number([&](float &number, size_t at) { number = factor * state[at]; });
        for (int other = 0; other < segment; other++) {
            float left = power_of_two(rate * (float)(before - min(length, (other + 1) * each * CHUNK)));
            const float *added = p.segment_states + ((size_t)other * gridDim.y + blockIdx.y) * size;
            each_number([&](float &number, size_t at) { number = fmaf(left, added[at], number); });
        }
    }

    auto fetch_q = [&](int chunk) {
        const act *from = (const act *)p.queries + ((size_t)blockIdx.y * p.padded + chunk * CHUNK) * KEYS;
        for (int i = threadIdx.x; i < CHUNK * KEYS / 8; i += THREADS)
            copy_async(shared.q + i / (KEYS / 8) * WIDE + i % (KEYS / 8) * 8, from + i * 8, true);
    };
    auto fetch_rest = [&](int chunk) {
        const act *from = (const act *)p.keys + ((size_t)blockIdx.y * p.padded + chunk * CHUNK) * KEYS;
        for (int i = threadIdx.x; i < CHUNK * KEYS / 8; i += THREADS)
            copy_async(shared.k + i / (KEYS / 8) * WIDE + i % (KEYS / 8) * 8, from + i * 8, true);
        const act *scores = p.scores + ((size_t)blockIdx.y * count + chunk) * CHUNK * CHUNK;
        for (int i = threadIdx.x; i < CHUNK * 8; i += THREADS) {
            int token = chunk * CHUNK + i / 8;
            bool valid = token < (int)p.time;
            size_t at = (((size_t)row * p.time + (valid ? token : 0)) * heads + head) * VALUES + column + i % 8 * 8;
            copy_async(shared.v[chunk % 2] + i / 8 * NARROW + i % 8 * 8, p.v + at, valid);
            if (!STATES_ONLY) copy_async(shared.scores[chunk % 2] + i / 8 * NARROW + i % 8 * 8, scores + i * 8, true);
        }
    };

    if (begin < end) {
        if (!STATES_ONLY) fetch_q(begin);
        commit_copies();
        fetch_rest(begin);
        commit_copies();
    }
    for (int chunk = begin; chunk < end; chunk++) {
        int valid = chunk_length(length, chunk);
        float o[8][4] = {};
        if (!STATES_ONLY) {
            await_copies<1>();
            __syncthreads();
            // o^T = S^T q^T: tiles of 16 columns and 8 tokens.
#pragma unroll
            for (int step = 0; step < HALF / 16; step++) {
                float *low = s[2 * step], *high = s[2 * step + 1];
                u32 a0 = pack(low[0], low[1]), a1 = pack(low[2], low[3]), a2 = pack(high[0], high[1]), a3 = pack(high[2], high[3]);
#pragma unroll
                for (int pair = 0; pair < 4; pair++) {
                    u32 b[4];
                    int token = pair * 16 + lane % 8 + lane / 16 * 8;
                    load_matrices(b, shared_address(shared.q + token * WIDE + half + step * 16 + lane / 8 % 2 * 8));
                    mma(o[2 * pair], a0, a1, a2, a3, b[0], b[1]);
                    mma(o[2 * pair + 1], a0, a1, a2, a3, b[2], b[3]);
                }
            }
#pragma unroll
            for (int n = 0; n < 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) o[n][i] *= power_of_two(rate * (float)(n * 8 + lane % 4 * 2 + i % 2 + 1));
            __syncthreads();
            if (chunk + 1 < end) fetch_q(chunk + 1);
        }
        commit_copies();
        await_copies<1>();
        __syncthreads();

        // S^T <- d^C S^T + v^T k.
        const act *values = shared.v[chunk % 2];
        u32 v[4][4];
#pragma unroll
        for (int step = 0; step < 4; step++)
            load_matrices_transposed(v[step], shared_address(values + (step * 16 + lane % 8 + lane / 16 * 8) * NARROW + own + lane / 8 % 2 * 8));
        float decay = power_of_two(rate * (float)valid);
#pragma unroll
        for (int pair = 0; pair < TILES / 2; pair++) {
#pragma unroll
            for (int i = 0; i < 4; i++) s[2 * pair][i] *= decay, s[2 * pair + 1][i] *= decay;
#pragma unroll
            for (int step = 0; step < 4; step++) {
                u32 b[4];
                load_matrices_transposed(b, shared_address(shared.k + (step * 16 + lane % 16) * WIDE + half + pair * 16 + lane / 16 * 8));
                mma(s[2 * pair], v[step][0], v[step][1], v[step][2], v[step][3], b[0], b[1]);
                mma(s[2 * pair + 1], v[step][0], v[step][1], v[step][2], v[step][3], b[2], b[3]);
            }
        }
        if (!STATES_ONLY) {
            // Within the chunk: the warps of the first half of the keys take the tokens j of steps 0 and 3, the others
            // those of 1 and 2, which is as much work.
            const act *scores = shared.scores[chunk % 2];
#pragma unroll
            for (int step = 0; step < 4; step++) {
                if ((step == 0 || step == 3) != (half == 0)) continue;
#pragma unroll
                for (int pair = step; pair < 4; pair++) {
                    u32 b[4];
                    int token = pair * 16 + lane % 8 + lane / 16 * 8;
                    load_matrices(b, shared_address(scores + token * NARROW + step * 16 + lane / 8 % 2 * 8));
                    mma(o[2 * pair], v[step][0], v[step][1], v[step][2], v[step][3], b[0], b[1]);
                    mma(o[2 * pair + 1], v[step][0], v[step][1], v[step][2], v[step][3], b[2], b[3]);
                }
            }
            auto at = [&](int n, int i) { return (n * 8 + lane % 4 * 2 + i % 2) * SUMS + own + lane / 4 + i / 2 * 8; };
            if (half)
#pragma unroll
                for (int n = 0; n < 8; n++)
#pragma unroll
                    for (int i = 0; i < 4; i++) shared.o[at(n, i)] = o[n][i];
            __syncthreads();
            if (!half)
#pragma unroll
                for (int n = 0; n < 8; n++)
#pragma unroll
                    for (int i = 0; i < 4; i++) shared.o[at(n, i)] += o[n][i];
        }
        __syncthreads();
        if (chunk + 1 < end) fetch_rest(chunk + 1);
        commit_copies();
        if (!STATES_ONLY) {
            for (int i = threadIdx.x; i < CHUNK * TILE / 4; i += THREADS) {
                int token = i / (TILE / 4), c = i % (TILE / 4) * 4;
                if (token >= valid) continue;
                size_t to = ((size_t)row * p.time + chunk * CHUNK + token) * heads + head;
                float scale = p.scale[to], x[4];
#pragma unroll
                for (int j = 0; j < 4; j++) x[j] = shared.o[token * SUMS + c + j] * scale;
                store4(p.y + to * VALUES + column + c, x);
            }
        }
    }
    if (STATES_ONLY) {
        float *to = p.segment_states + ((size_t)segment * gridDim.y + blockIdx.y) * size;
        each_number([&](float &number, size_t at) { to[at] = number; });
    } else if (segment + 1 == (int)p.segments) {
        float *present = p.present + blockIdx.y * size;
        each_number([&](float &number, size_t at) { present[at] = number; });
    }
}

// The grid is [values / 64, batch * heads, segments - 1] and [.., segments].
extern "C" __global__ void __launch_bounds__(THREADS, 1) retention_chunks_states(const __grid_constant__ Retention p) {
    chunks<true>(p);
}
extern "C" __global__ void __launch_bounds__(THREADS, 1) retention_chunks(const __grid_constant__ Retention p) {
    chunks<false>(p);
}
