// Retention over a sequence in chunks, on tensor cores; fp16 and bf16 activations, fp32 states and sums.
//
//   o_i = scale_i (sum_{j <= i} d^(i-j) (q_i k_j) v_j + d^(i+1) q_i S)      S <- d^C S + sum_j d^(C-1-j) k_j v_j
//
// `prepare` rotates q and k, computes the scores of each chunk, (q k) with their decays, and gives each k its decay.
// The main kernel holds the transposed state of `TILE` columns in registers as sums of the tensor cores, [values, keys]:
// rounded to the activations' type these are at once the left operand of S^T q^T. A warp has 16 columns and half of the
// keys. All tiles of a head read the same q and k, so wide tiles keep the traffic from the L2 cache low. Long prompts of
// few rows are divided into segments: a first launch of `states_only` computes what each adds.
#include "mma.cuh"
#include "retention.cuh"

constexpr int CHUNK = 64;
constexpr int TILE = VALUES % 96 == 0 ? 96 : VALUES % 80 == 0 ? 80 : 64;  // columns of a block
constexpr int THREADS = 2 * TILE / 16 * 32;
constexpr int PREPARE_THREADS = 256;
constexpr int HALF = KEYS / 2;      // keys of a warp
constexpr int TILES = HALF / 8;     // tiles of eight of them
constexpr int WIDE = KEYS + 8;      // a row of q or k in shared memory, padded against bank conflicts
constexpr int NARROW = CHUNK + 8;   // a row of scores
constexpr int COLUMNS = TILE + 8;   // a row of v
constexpr int SUMS = TILE + 4;      // a row of o
static_assert(KEYS % 32 == 0 && VALUES % TILE == 0, "sizes of a head");

extern __shared__ __align__(16) char dynamic[];

__device__ __forceinline__ int chunk_length(int length, int chunk) { return max(0, min(CHUNK, length - chunk * CHUNK)); }

// A pair of numbers, rotated and multiplied.
__device__ __forceinline__ u32 rotated(u32 pair, float cosine, float sine, float factor) {
    float a = to_float(act{(u16)pair}), b = to_float(act{(u16)(pair >> 16)});
    return pack(factor * (a * cosine - b * sine), factor * (b * cosine + a * sine));
}

// The grid is [chunks, batch * heads]; 2 CHUNK WIDE activations of dynamic shared memory.
extern "C" __global__ void __launch_bounds__(PREPARE_THREADS) retention_chunks_prepare(const __grid_constant__ Retention p) {
    act *q = reinterpret_cast<act *>(dynamic), *k = q + CHUNK * WIDE;
    int heads = (int)p.heads, row = blockIdx.y / heads, head = blockIdx.y % heads, chunk = blockIdx.x;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, valid = chunk_length(length_of(p, row), chunk);
    float rate = head_decay_log2(head);
    uint4 *queries = (uint4 *)p.queries + ((size_t)blockIdx.y * p.padded + chunk * CHUNK) * (KEYS / 8);
    uint4 *keys = (uint4 *)p.keys + ((size_t)blockIdx.y * p.padded + chunk * CHUNK) * (KEYS / 8);
    for (int i = threadIdx.x; i < CHUNK * KEYS / 8; i += PREPARE_THREADS) {
        int token = i / (KEYS / 8), j = i % (KEYS / 8);
        uint4 query = make_uint4(0, 0, 0, 0), key = query, decayed = query;
        if (token < valid) {
            size_t at = (size_t)row * p.time + chunk * CHUNK + token, of_head = (at * heads + head) * KEYS + j * 8;
            float4 c = *reinterpret_cast<const float4 *>(p.cosines + at * (KEYS / 2) + j * 4);
            float4 d = *reinterpret_cast<const float4 *>(p.sines + at * (KEYS / 2) + j * 4);
            uint4 q8 = *reinterpret_cast<const uint4 *>(p.q + of_head), k8 = *reinterpret_cast<const uint4 *>(p.k + of_head);
            float left = power_of_two(rate * (float)(valid - 1 - token));
            query = make_uint4(rotated(q8.x, c.x, d.x, 1.0f), rotated(q8.y, c.y, d.y, 1.0f), rotated(q8.z, c.z, d.z, 1.0f), rotated(q8.w, c.w, d.w, 1.0f));
            key = make_uint4(rotated(k8.x, c.x, d.x, 1.0f), rotated(k8.y, c.y, d.y, 1.0f), rotated(k8.z, c.z, d.z, 1.0f), rotated(k8.w, c.w, d.w, 1.0f));
            decayed = make_uint4(rotated(k8.x, c.x, d.x, left), rotated(k8.y, c.y, d.y, left), rotated(k8.z, c.z, d.z, left), rotated(k8.w, c.w, d.w, left));
        }
        *reinterpret_cast<uint4 *>(q + token * WIDE + j * 8) = query;
        *reinterpret_cast<uint4 *>(k + token * WIDE + j * 8) = key;
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
    act q[2][CHUNK * WIDE], k[CHUNK * WIDE], v[CHUNK * COLUMNS], scores[CHUNK * NARROW];
    float o[2][CHUNK * SUMS];  // of each half of the keys
    float decays[CHUNK];       // of the state before the chunk, for each token
};

// What the host has to launch: threads, columns of a block, bytes of dynamic shared memory; the same of `prepare` but
// the columns.
extern "C" __device__ const u32 retention_chunks_shape[5] = {
    THREADS, TILE, sizeof(Shared), PREPARE_THREADS, 2 * CHUNK * WIDE * sizeof(act),
};

// Copies CHUNK rows of WIDTH activations to shared memory, with rows of STRIDE.
template <int WIDTH, int STRIDE>
__device__ __forceinline__ void copy_rows(act *to, const act *from) {
    constexpr int EACH = WIDTH / 8;
    if (THREADS % EACH == 0) {
        int row = threadIdx.x / EACH, column = threadIdx.x % EACH * 8;
#pragma unroll
        for (int i = 0; i < CHUNK; i += THREADS / EACH)
            if (CHUNK % (THREADS / EACH) == 0 || i + row < CHUNK)
                copy_async(to + (i + row) * STRIDE + column, from + (i + row) * WIDTH + column, true);
    } else {
        for (int i = threadIdx.x; i < CHUNK * EACH; i += THREADS)
            copy_async(to + i / EACH * STRIDE + i % EACH * 8, from + i * 8, true);
    }
}

template <bool STATES_ONLY>
__device__ __forceinline__ void chunks(const Retention &p) {
    Shared &shared = *reinterpret_cast<Shared *>(dynamic);
    int heads = (int)p.heads, row = blockIdx.y / heads, head = blockIdx.y % heads, segment = blockIdx.z;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, length = length_of(p, row);
    int column = blockIdx.x * TILE, own = warp % (TILE / 16) * 16, half = warp / (TILE / 16) * HALF;
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
        copy_rows<KEYS, WIDE>(shared.q[chunk % 2], (const act *)p.queries + ((size_t)blockIdx.y * p.padded + chunk * CHUNK) * KEYS);
    };
    auto fetch_rest = [&](int chunk) {
        copy_rows<KEYS, WIDE>(shared.k, (const act *)p.keys + ((size_t)blockIdx.y * p.padded + chunk * CHUNK) * KEYS);
        for (int i = threadIdx.x; i < CHUNK * TILE / 8; i += THREADS) {
            int token = chunk * CHUNK + i / (TILE / 8);
            bool valid = token < (int)p.time;
            size_t at = (((size_t)row * p.time + (valid ? token : 0)) * heads + head) * VALUES + column + i % (TILE / 8) * 8;
            copy_async(shared.v + i / (TILE / 8) * COLUMNS + i % (TILE / 8) * 8, p.v + at, valid);
        }
        if (!STATES_ONLY)
            copy_rows<CHUNK, NARROW>(shared.scores, p.scores + ((size_t)blockIdx.y * count + chunk) * CHUNK * CHUNK);
    };

    if (threadIdx.x < CHUNK) shared.decays[threadIdx.x] = power_of_two(rate * (float)(threadIdx.x + 1));
    if (begin < end) {
        if (!STATES_ONLY) fetch_q(begin);
        commit_copies();
        fetch_rest(begin);
        commit_copies();
    }
    for (int chunk = begin; chunk < end; chunk++) {
        int valid = chunk_length(length, chunk);
        // The copies under way: q of this chunk and then the rest of it.
        if (!STATES_ONLY) {
            float o[8][4] = {};
            await_copies<1>();
            __syncthreads();
            // o^T = S^T q^T: tiles of 16 columns and 8 tokens.
            const act *q = shared.q[chunk % 2];
#pragma unroll
            for (int step = 0; step < HALF / 16; step++) {
                float *low = s[2 * step], *high = s[2 * step + 1];
                u32 a0 = pack(low[0], low[1]), a1 = pack(low[2], low[3]), a2 = pack(high[0], high[1]), a3 = pack(high[2], high[3]);
#pragma unroll
                for (int pair = 0; pair < 4; pair++) {
                    u32 b[4];
                    int token = pair * 16 + lane % 8 + lane / 16 * 8;
                    load_matrices(b, shared_address(q + token * WIDE + half + step * 16 + lane / 8 % 2 * 8));
                    mma(o[2 * pair], a0, a1, a2, a3, b[0], b[1]);
                    mma(o[2 * pair + 1], a0, a1, a2, a3, b[2], b[3]);
                }
            }
#pragma unroll
            for (int n = 0; n < 8; n++) {
                float2 decay = *reinterpret_cast<const float2 *>(shared.decays + n * 8 + lane % 4 * 2);
                o[n][0] *= decay.x, o[n][1] *= decay.y, o[n][2] *= decay.x, o[n][3] *= decay.y;
            }
            await_copies<0>();
            __syncthreads();
            // Within the chunk: the warps of the first half of the keys take the tokens j of steps 0 and 3, the others
            // those of 1 and 2, which is as much work.
#pragma unroll
            for (int step = 0; step < 4; step++) {
                if ((step == 0 || step == 3) != (half == 0)) continue;
                u32 v[4];
                load_matrices_transposed(v, shared_address(shared.v + (step * 16 + lane % 8 + lane / 16 * 8) * COLUMNS + own + lane / 8 % 2 * 8));
#pragma unroll
                for (int pair = step; pair < 4; pair++) {
                    u32 b[4];
                    int token = pair * 16 + lane % 8 + lane / 16 * 8;
                    load_matrices(b, shared_address(shared.scores + token * NARROW + step * 16 + lane / 8 % 2 * 8));
                    mma(o[2 * pair], v[0], v[1], v[2], v[3], b[0], b[1]);
                    mma(o[2 * pair + 1], v[0], v[1], v[2], v[3], b[2], b[3]);
                }
            }
            float *to = shared.o[half != 0] + lane % 4 * 2 * SUMS + own + lane / 4;
#pragma unroll
            for (int n = 0; n < 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) to[(n * 8 + i % 2) * SUMS + i / 2 * 8] = o[n][i];
            if (chunk + 1 < end) fetch_q(chunk + 1);
        } else {
            await_copies<0>();
            __syncthreads();
        }
        commit_copies();

        // S^T <- d^C S^T + v^T k.
        u32 v[4][4];
#pragma unroll
        for (int step = 0; step < 4; step++)
            load_matrices_transposed(v[step], shared_address(shared.v + (step * 16 + lane % 8 + lane / 16 * 8) * COLUMNS + own + lane / 8 % 2 * 8));
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
        __syncthreads();
        if (chunk + 1 < end) fetch_rest(chunk + 1);
        commit_copies();
        if (!STATES_ONLY) {
            for (int i = threadIdx.x; i < CHUNK * TILE / 4; i += THREADS) {
                int token = i / (TILE / 4), c = i % (TILE / 4) * 4;
                if (token >= valid) continue;
                size_t to = ((size_t)row * p.time + chunk * CHUNK + token) * heads + head;
                float4 first = *reinterpret_cast<const float4 *>(shared.o[0] + token * SUMS + c);
                float4 second = *reinterpret_cast<const float4 *>(shared.o[1] + token * SUMS + c);
                float scale = p.scale[to];
                float x[4] = {(first.x + second.x) * scale, (first.y + second.y) * scale, (first.z + second.z) * scale, (first.w + second.w) * scale};
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

// The grid is [values / TILE, batch * heads, segments - 1] and [.., segments].
extern "C" __global__ void __launch_bounds__(THREADS, 1) retention_chunks_states(const __grid_constant__ Retention p) {
    chunks<true>(p);
}
extern "C" __global__ void __launch_bounds__(THREADS, 1) retention_chunks(const __grid_constant__ Retention p) {
    chunks<false>(p);
}
