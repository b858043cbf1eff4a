// The selective scan over a sequence, with dense neighbours, whose states are computed again from their inputs:
//
//   h_t = exp(D_t a) h_{t-1} + (D_t u_t) b_t                      D = softplus(delta + bias)
//   y_t = (h_t c_t + silu(g_t) sum_i h_t^i r_t^i + skip u_t) silu(z_t)
//   r^i = P_i^T (silu(s) c)
//
// `LANES` threads hold one channel's states in registers and go through the tokens in order, four at a time. Each of
// them prepares the inputs of its own part of the four tokens (softplus, gates), which the others get by shuffles, and
// finishes the outputs of the same tokens. b, c and r of some tokens, which all channels share, lie in shared memory. Where the rows and channels do not fill the GPU, the tokens are
// divided into segments: `selective_scan_segments` computes what each segment adds to a state of zero, and by how much
// it lets a state decay (the sum of its D); `selective_scan` computes a segment's start from those before it.
#include "common.cuh"

constexpr int THREADS = 128;
constexpr int TILE = 16;  // tokens whose b, c and r lie in shared memory
constexpr int QUAD = 4;   // tokens whose inputs are loaded together
constexpr int LANES = STATES % 4 == 0 ? 4 : 1;  // that share a channel
constexpr int CHANNELS = THREADS / LANES;       // of a block
constexpr int EACH = STATES / LANES;            // states of a lane
constexpr int OWN = QUAD / LANES;               // tokens of a quad whose inputs a lane prepares
static_assert(STATES % LANES == 0 && QUAD % LANES == 0 && TILE % (2 * QUAD) == 0 && NEIGHBOURS <= 3, "sizes");

struct Recurrence {
    const act *u;        // [batch, time, channels]
    const act *delta;    // [batch, time, channels]
    const float *bias;   // [channels]
    const float *a;      // [channels, states]
    const act *b;        // [batch, time, states]
    const float *state;  // [batch, channels, states]
};

struct Scan {
    Recurrence of[1 + NEIGHBOURS];  // the layer's own first
    const float *projections[NEIGHBOURS ? NEIGHBOURS : 1];  // [states, states], or null for identities
    const act *c;                   // [batch, time, states]
    const float *skip;              // [channels]
    const act *z;                   // [batch, time, channels]
    const int *lengths;             // [batch] or null
    const act *channel_gate;        // [batch, time, channels] or null
    const act *state_gate;          // [batch, time, states] or null
    act *y;                         // [batch, time, channels]
    float *present;                 // [batch, channels, states], not `state`
    float *segment_states;          // [1 + neighbours, segments, batch, states, channels]
    float *segment_deltas;          // [1 + neighbours, segments, batch, channels]
    u64 batch, time, channels, segments, segment_tokens;
};

// What the host has to launch: channels of a block, threads of a block.
extern "C" __device__ const u32 selective_scan_shape[2] = {CHANNELS, THREADS};

// A lane's part of a channel's recurrence in registers.
struct Running {
    float h[EACH], a[EACH], bias;

    __device__ __forceinline__ void rates(const Recurrence &of, int channel, int part) {
        bias = of.bias[channel];
#pragma unroll
        for (int n = 0; n < EACH; n++) a[n] = of.a[(size_t)channel * STATES + part * EACH + n] * LOG2_E;
    }
    // One token: `delta` and `driven` are D and D u.
    __device__ __forceinline__ void advance(float delta, float driven, const float *b) {
#pragma unroll
        for (int n = 0; n < EACH; n++) h[n] = fmaf(power_of_two(delta * a[n]), h[n], driven * b[n]);
    }
};

// Inputs of a lane's tokens of a quad.
struct Inputs {
    act u[OWN], delta[OWN];

    // `at` is the lane's first token; `count` tokens are left from there.
    __device__ __forceinline__ void load(const Recurrence &of, size_t at, int channels, int count) {
#pragma unroll
        for (int i = 0; i < OWN; i++)
            if (i < count) u[i] = of.u[at + (size_t)i * channels], delta[i] = of.delta[at + (size_t)i * channels];
    }
};

// D and D u of a quad's tokens, in all lanes of a channel.
struct Steps {
    float delta[QUAD], driven[QUAD];

    __device__ __forceinline__ Steps(const Inputs &in, float bias) {
        float own_delta[OWN], own_driven[OWN];
#pragma unroll
        for (int i = 0; i < OWN; i++) {
            own_delta[i] = softplus(to_float(in.delta[i]) + bias);
            own_driven[i] = own_delta[i] * to_float(in.u[i]);
        }
#pragma unroll
        for (int t = 0; t < QUAD; t++) {
            delta[t] = __shfl_sync(~0u, own_delta[t % OWN], t / OWN, LANES);
            driven[t] = __shfl_sync(~0u, own_driven[t % OWN], t / OWN, LANES);
        }
    }
};

// Adds up each of a quad's numbers over the lanes of a channel; each lane gets the sums of its own tokens, at the front.
__device__ __forceinline__ void sum_lanes(float (&x)[QUAD], int part) {
    int count = QUAD;
#pragma unroll
    for (int distance = LANES / 2; distance; distance /= 2) {
        count /= 2;
        bool upper = part & distance;
#pragma unroll
        for (int i = 0; i < QUAD / 2; i++) {
            if (i >= count) break;
            float keep = upper ? x[i + count] : x[i], send = upper ? x[i] : x[i + count];
            x[i] = keep + __shfl_xor_sync(~0u, send, distance);
        }
    }
}

// Tokens of a segment that are valid.
struct Range {
    int row, segment, first, last, length;

    __device__ __forceinline__ Range(const Scan &p) {
        row = blockIdx.y / (int)p.segments, segment = blockIdx.y % (int)p.segments;
        length = valid_tokens(p.lengths, row, (int)p.time);
        first = segment * (int)p.segment_tokens;
        last = min(first + (int)p.segment_tokens, length);
    }
};

// What a segment adds to a state of zero. The grid is [channel blocks, batch * segments, 1 + neighbours].
extern "C" __global__ void __launch_bounds__(THREADS) selective_scan_segments(const __grid_constant__ Scan p) {
    __shared__ __align__(16) float b[TILE][STATES];
    Range range(p);
    int channels = (int)p.channels, which = blockIdx.z, part = threadIdx.x % LANES;
    int wanted = blockIdx.x * CHANNELS + threadIdx.x / LANES, channel = min(wanted, channels - 1);
    if (range.segment + 1 == (int)p.segments) return;
    const Recurrence &of = p.of[which];
    Running own;
    own.rates(of, channel, part);
#pragma unroll
    for (int n = 0; n < EACH; n++) own.h[n] = 0.0f;
    float sum = 0.0f;
    Inputs next[2];
    auto fetch = [&](Inputs &to, int token) {
        int first = token + part * OWN;
        to.load(of, ((size_t)range.row * p.time + first) * channels + channel, channels, range.last - first);
    };
    fetch(next[0], range.first);
    fetch(next[1], range.first + QUAD);
    for (int tile = range.first; tile < range.last; tile += TILE) {
        __syncthreads();
        int tokens = min(TILE, range.last - tile);
        for (int i = threadIdx.x; i < tokens * STATES; i += THREADS)
            b[i / STATES][i % STATES] = to_float(of.b[((size_t)range.row * p.time + tile) * STATES + i]);
        __syncthreads();
#pragma unroll
        for (int quad = 0; quad < TILE; quad += QUAD) {
            if (quad >= tokens) break;
            int count = min(QUAD, tokens - quad);
            Inputs &in = next[quad / QUAD % 2];
            Steps steps(in, own.bias);
            fetch(in, tile + quad + 2 * QUAD);
#pragma unroll
            for (int t = 0; t < QUAD; t++) {
                if (t >= count) break;
                sum += steps.delta[t];
                own.advance(steps.delta[t], steps.driven[t], b[quad + t] + part * EACH);
            }
        }
    }
    if (wanted >= channels) return;
    size_t at = ((size_t)which * p.segments + range.segment) * p.batch + range.row;
    if (part == 0) p.segment_deltas[at * channels + channel] = sum;
#pragma unroll
    for (int n = 0; n < EACH; n++) p.segment_states[(at * STATES + part * EACH + n) * channels + channel] = own.h[n];
}

// The state at a segment's start.
__device__ __forceinline__ void start(Running &own, const Scan &p, int which, const Range &range, int channel, int part) {
    int channels = (int)p.channels;
    own.rates(p.of[which], channel, part);
    const float *state = p.of[which].state + ((size_t)range.row * channels + channel) * STATES + part * EACH;
#pragma unroll
    for (int n = 0; n < EACH; n++) own.h[n] = state[n];
    for (int segment = 0; segment < range.segment; segment++) {
        size_t at = ((size_t)which * p.segments + segment) * p.batch + range.row;
        float sum = p.segment_deltas[at * channels + channel];
#pragma unroll
        for (int n = 0; n < EACH; n++) {
            float added = p.segment_states[(at * STATES + part * EACH + n) * channels + channel];
            own.h[n] = fmaf(power_of_two(sum * own.a[n]), own.h[n], added);
        }
    }
}

// All inputs of a lane's tokens of a quad.
struct QuadInputs {
    Inputs of[1 + NEIGHBOURS];
    act z[OWN], gate[OWN];
};

// The grid is [channel blocks, batch * segments].
extern "C" __global__ void __launch_bounds__(THREADS) selective_scan(const __grid_constant__ Scan p) {
    __shared__ __align__(16) float b[1 + NEIGHBOURS][TILE][STATES], c[TILE][STATES];
#if NEIGHBOURS
    __shared__ __align__(16) float gated[TILE][STATES], readout[NEIGHBOURS][TILE][STATES];
    bool projected = p.projections[0] != nullptr;
#endif
    Range range(p);
    int channels = (int)p.channels, part = threadIdx.x % LANES;
    int wanted = blockIdx.x * CHANNELS + threadIdx.x / LANES, channel = min(wanted, channels - 1);
    bool valid = wanted < channels;
    Running own, other[NEIGHBOURS ? NEIGHBOURS : 1];
    float skip = p.skip[channel];
    start(own, p, 0, range, channel, part);
#pragma unroll
    for (int i = 0; i < NEIGHBOURS; i++) start(other[i], p, i + 1, range, channel, part);
    size_t row = (size_t)range.row * p.time;

    // Inputs are asked for two quads ahead.
    QuadInputs next[2];
    auto fetch = [&](QuadInputs &to, int token) {
        int first = token + part * OWN, count = range.last - first;
        size_t at = (row + first) * channels + channel;
#pragma unroll
        for (int r = 0; r <= NEIGHBOURS; r++) to.of[r].load(p.of[r], at, channels, count);
#pragma unroll
        for (int i = 0; i < OWN; i++) {
            if (i >= count) break;
            to.z[i] = p.z[at + (size_t)i * channels];
#if NEIGHBOURS
            if (p.channel_gate) to.gate[i] = p.channel_gate[at + (size_t)i * channels];
#endif
        }
    };

    fetch(next[0], range.first);
    fetch(next[1], range.first + QUAD);
    for (int tile = range.first; tile < range.last; tile += TILE) {
        int tokens = min(TILE, range.last - tile);
        __syncthreads();
        for (int i = threadIdx.x; i < tokens * STATES; i += THREADS) {
            size_t at = (row + tile) * STATES + i;
            c[i / STATES][i % STATES] = to_float(p.c[at]);
#pragma unroll
            for (int r = 0; r <= NEIGHBOURS; r++) b[r][i / STATES][i % STATES] = to_float(p.of[r].b[at]);
#if NEIGHBOURS
            float vector = c[i / STATES][i % STATES];
            if (p.state_gate) vector *= silu(to_float(p.state_gate[at]));
            gated[i / STATES][i % STATES] = vector;
            if (!projected)
#pragma unroll
                for (int r = 0; r < NEIGHBOURS; r++) readout[r][i / STATES][i % STATES] = vector;
#endif
        }
        __syncthreads();
#if NEIGHBOURS
        if (projected) {
            for (int i = threadIdx.x; i < NEIGHBOURS * tokens * STATES; i += THREADS) {
                int n = i % STATES, token = i / STATES % tokens, r = i / STATES / tokens;
                float sum = 0.0f;
                for (int k = 0; k < STATES; k++)
                    sum = fmaf(gated[token][k], p.projections[r][k * STATES + n], sum);
                readout[r][token][n] = sum;
            }
            __syncthreads();
        }
#endif
#pragma unroll
        for (int quad = 0; quad < TILE; quad += QUAD) {
            if (quad >= tokens) break;
            int count = min(QUAD, tokens - quad);
            QuadInputs &in = next[quad / QUAD % 2];
            Steps steps(in.of[0], own.bias);
            float through[OWN], z[OWN];
#pragma unroll
            for (int i = 0; i < OWN; i++) through[i] = skip * to_float(in.of[0].u[i]), z[i] = silu(to_float(in.z[i]));
#if NEIGHBOURS
            float gate[OWN];
#pragma unroll
            for (int i = 0; i < OWN; i++) gate[i] = p.channel_gate ? silu(to_float(in.gate[i])) : 1.0f;
            Steps others[NEIGHBOURS] = {
                Steps(in.of[1], other[0].bias),
#if NEIGHBOURS > 1
                Steps(in.of[2], other[1].bias),
#endif
#if NEIGHBOURS > 2
                Steps(in.of[3], other[2].bias),
#endif
            };
            float dense[QUAD] = {};
#endif
            fetch(in, tile + quad + 2 * QUAD);
            float sums[QUAD] = {};
#pragma unroll
            for (int t = 0; t < QUAD; t++) {
                if (t >= count) break;
                int token = quad + t;
                own.advance(steps.delta[t], steps.driven[t], b[0][token] + part * EACH);
#pragma unroll
                for (int n = 0; n < EACH; n++) sums[t] = fmaf(own.h[n], c[token][part * EACH + n], sums[t]);
#if NEIGHBOURS
#pragma unroll
                for (int i = 0; i < NEIGHBOURS; i++) {
                    other[i].advance(others[i].delta[t], others[i].driven[t], b[i + 1][token] + part * EACH);
#pragma unroll
                    for (int n = 0; n < EACH; n++)
                        dense[t] = fmaf(other[i].h[n], readout[i][token][part * EACH + n], dense[t]);
                }
#endif
            }
            sum_lanes(sums, part);
#if NEIGHBOURS
            sum_lanes(dense, part);
#endif
#pragma unroll
            for (int i = 0; i < OWN; i++) {
                int token = quad + part * OWN + i;
                float sum = sums[i] + through[i];
#if NEIGHBOURS
                sum = fmaf(gate[i], dense[i], sum);
#endif
                if (valid && token < tokens) p.y[(row + tile + token) * channels + channel] = to_act(sum * z[i]);
            }
        }
    }
    if (!valid) return;
    int end = min(range.first + (int)p.segment_tokens, (int)p.time);
    for (int token = max(range.first, range.length) + part; token < end; token += LANES)
        p.y[(row + token) * channels + channel] = to_act(0.0f);
    if (range.segment + 1 == (int)p.segments) {
        float *present = p.present + ((size_t)range.row * channels + channel) * STATES + part * EACH;
#pragma unroll
        for (int n = 0; n < EACH; n++) present[n] = own.h[n];
    }
}
