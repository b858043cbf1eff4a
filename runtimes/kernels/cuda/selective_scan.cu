// The selective scan over a sequence, with dense neighbours, whose states are computed again from their inputs:
//
//   h_t = exp(D_t a) h_{t-1} + (D_t u_t) b_t                      D = softplus(delta + bias)
//   y_t = (h_t c_t + silu(g_t) sum_i h_t^i r_t^i + skip u_t) silu(z_t)
//   r^i = P_i^T (silu(s) c)
//
// A thread holds one channel's states in registers and goes through the tokens in order; b, c and r of some tokens,
// which all channels share, lie in shared memory. Where the rows and channels do not fill the GPU, the tokens are
// divided into segments: `selective_scan_segments` computes what each segment adds to a state of zero, and by how much
// it lets a state decay (the sum of its D); `selective_scan` computes a segment's start from those before it.
#include "common.cuh"

constexpr int THREADS = 128;
constexpr int TILE = 16;  // tokens whose b, c and r lie in shared memory
constexpr int QUAD = 4;   // tokens whose inputs are loaded together

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
    const act *projections[NEIGHBOURS ? NEIGHBOURS : 1];  // [states, states], or null for identities
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

// A channel's recurrence in registers.
struct Running {
    float h[STATES], a[STATES], bias;

    __device__ __forceinline__ void rates(const Recurrence &of, int channel) {
        bias = of.bias[channel];
#pragma unroll
        for (int n = 0; n < STATES; n++) a[n] = of.a[(size_t)channel * STATES + n] * LOG2_E;
    }
    // One token: `delta` and `driven` are D and D u.
    __device__ __forceinline__ void advance(float delta, float driven, const float *b) {
#pragma unroll
        for (int n = 0; n < STATES; n++) h[n] = fmaf(power_of_two(delta * a[n]), h[n], driven * b[n]);
    }
};

// Inputs of some tokens of a channel.
struct Inputs {
    act u[QUAD], delta[QUAD];

    __device__ __forceinline__ void load(const Recurrence &of, size_t at, int channels, int count) {
#pragma unroll
        for (int t = 0; t < QUAD; t++)
            if (t < count) u[t] = of.u[at + (size_t)t * channels], delta[t] = of.delta[at + (size_t)t * channels];
    }
};

// Tokens of a segment that are valid.
struct Range {
    int row, segment, first, last, length;

    __device__ __forceinline__ Range(const Scan &p) {
        row = blockIdx.y / (int)p.segments, segment = blockIdx.y % (int)p.segments;
        length = p.lengths ? min(p.lengths[row], (int)p.time) : (int)p.time;
        first = segment * (int)p.segment_tokens;
        last = min(first + (int)p.segment_tokens, length);
    }
};

// What a segment adds to a state of zero. The grid is [channel blocks, batch * segments, 1 + neighbours].
extern "C" __global__ void __launch_bounds__(THREADS) selective_scan_segments(const __grid_constant__ Scan p) {
    __shared__ __align__(16) float b[TILE][STATES];
    Range range(p);
    int channels = (int)p.channels, channel = blockIdx.x * THREADS + threadIdx.x, which = blockIdx.z;
    bool valid = channel < channels;
    if (range.segment + 1 == (int)p.segments) return;
    const Recurrence &of = p.of[which];
    Running own;
    if (valid) own.rates(of, channel);
#pragma unroll
    for (int n = 0; n < STATES; n++) own.h[n] = 0.0f;
    float sum = 0.0f;
    for (int tile = range.first; tile < range.last; tile += TILE) {
        __syncthreads();
        int tokens = min(TILE, range.last - tile);
        for (int i = threadIdx.x; i < tokens * STATES; i += THREADS)
            b[0][i] = to_float(of.b[((size_t)range.row * p.time + tile) * STATES + i]);
        __syncthreads();
        if (!valid) continue;
        for (int quad = 0; quad < tokens; quad += QUAD) {
            Inputs in;
            int count = min(QUAD, tokens - quad);
            in.load(of, ((size_t)range.row * p.time + tile + quad) * channels + channel, channels, count);
#pragma unroll
            for (int t = 0; t < QUAD; t++) {
                if (t >= count) break;
                float delta = softplus(to_float(in.delta[t]) + own.bias);
                sum += delta;
                own.advance(delta, delta * to_float(in.u[t]), b[quad + t]);
            }
        }
    }
    if (!valid) return;
    size_t at = ((size_t)which * p.segments + range.segment) * p.batch + range.row;
    p.segment_deltas[at * channels + channel] = sum;
#pragma unroll
    for (int n = 0; n < STATES; n++) p.segment_states[(at * STATES + n) * channels + channel] = own.h[n];
}

// The state at a segment's start.
__device__ __forceinline__ void start(Running &own, const Scan &p, int which, const Range &range, int channel) {
    int channels = (int)p.channels;
    own.rates(p.of[which], channel);
    const float *state = p.of[which].state + ((size_t)range.row * channels + channel) * STATES;
#pragma unroll
    for (int n = 0; n < STATES; n++) own.h[n] = state[n];
    for (int segment = 0; segment < range.segment; segment++) {
        size_t at = ((size_t)which * p.segments + segment) * p.batch + range.row;
        float sum = p.segment_deltas[at * channels + channel];
#pragma unroll
        for (int n = 0; n < STATES; n++) {
            float added = p.segment_states[(at * STATES + n) * channels + channel];
            own.h[n] = fmaf(power_of_two(sum * own.a[n]), own.h[n], added);
        }
    }
}

// The grid is [channel blocks, batch * segments].
extern "C" __global__ void __launch_bounds__(THREADS) selective_scan(const __grid_constant__ Scan p) {
    __shared__ __align__(16) float b[1 + NEIGHBOURS][TILE][STATES], c[TILE][STATES];
#if NEIGHBOURS
    __shared__ __align__(16) float gated[TILE][STATES], readout[NEIGHBOURS][TILE][STATES];
    bool projected = p.projections[0] != nullptr;
#endif
    Range range(p);
    int channels = (int)p.channels, channel = blockIdx.x * THREADS + threadIdx.x;
    bool valid = channel < channels;
    Running own, other[NEIGHBOURS ? NEIGHBOURS : 1];
    float skip = 0.0f;
    if (valid) {
        skip = p.skip[channel];
        start(own, p, 0, range, channel);
#pragma unroll
        for (int i = 0; i < NEIGHBOURS; i++) start(other[i], p, i + 1, range, channel);
    }
    size_t row = (size_t)range.row * p.time;

    Inputs next, next_other[NEIGHBOURS ? NEIGHBOURS : 1];
    act next_z[QUAD];
    [[maybe_unused]] act next_gate[QUAD];
    // Asks for the inputs of the tokens from `token` on.
    auto fetch = [&](int token) {
        int count = min(QUAD, range.last - token);
        if (!valid || count <= 0) return;
        size_t at = (row + token) * channels + channel;
        next.load(p.of[0], at, channels, count);
#pragma unroll
        for (int i = 0; i < NEIGHBOURS; i++) next_other[i].load(p.of[i + 1], at, channels, count);
#pragma unroll
        for (int t = 0; t < QUAD; t++) {
            if (t >= count) break;
            next_z[t] = p.z[at + (size_t)t * channels];
#if NEIGHBOURS
            if (p.channel_gate) next_gate[t] = p.channel_gate[at + (size_t)t * channels];
#endif
        }
    };

    fetch(range.first);
    for (int tile = range.first; tile < range.last; tile += TILE) {
        int tokens = min(TILE, range.last - tile);
        __syncthreads();
        for (int i = threadIdx.x; i < tokens * STATES; i += THREADS) {
            size_t at = (row + tile) * STATES + i;
            c[0][i] = to_float(p.c[at]);
#pragma unroll
            for (int r = 0; r <= NEIGHBOURS; r++) b[r][0][i] = to_float(p.of[r].b[at]);
#if NEIGHBOURS
            float vector = c[0][i];
            if (p.state_gate) vector *= silu(to_float(p.state_gate[at]));
            gated[0][i] = vector;
            if (!projected)
#pragma unroll
                for (int r = 0; r < NEIGHBOURS; r++) readout[r][0][i] = vector;
#endif
        }
        __syncthreads();
#if NEIGHBOURS
        if (projected) {
            for (int i = threadIdx.x; i < NEIGHBOURS * tokens * STATES; i += THREADS) {
                int n = i % STATES, token = i / STATES % tokens, r = i / STATES / tokens;
                float sum = 0.0f;
                for (int k = 0; k < STATES; k++)
                    sum = fmaf(gated[token][k], to_float(p.projections[r][k * STATES + n]), sum);
                readout[r][token][n] = sum;
            }
            __syncthreads();
        }
#endif
        if (!valid) continue;
        for (int quad = 0; quad < tokens; quad += QUAD) {
            int count = min(QUAD, tokens - quad);
            float delta[1 + NEIGHBOURS][QUAD], driven[1 + NEIGHBOURS][QUAD], through[QUAD], z[QUAD];
            [[maybe_unused]] float gate[QUAD];
#pragma unroll
            for (int t = 0; t < QUAD; t++) {
                float u = to_float(next.u[t]);
                delta[0][t] = softplus(to_float(next.delta[t]) + own.bias);
                driven[0][t] = delta[0][t] * u;
                through[t] = skip * u;
                z[t] = silu(to_float(next_z[t]));
#if NEIGHBOURS
                gate[t] = p.channel_gate ? silu(to_float(next_gate[t])) : 1.0f;
#pragma unroll
                for (int i = 0; i < NEIGHBOURS; i++) {
                    delta[i + 1][t] = softplus(to_float(next_other[i].delta[t]) + other[i].bias);
                    driven[i + 1][t] = delta[i + 1][t] * to_float(next_other[i].u[t]);
                }
#endif
            }
            fetch(tile + quad + QUAD);
#pragma unroll
            for (int t = 0; t < QUAD; t++) {
                if (t >= count) break;
                int token = quad + t;
                own.advance(delta[0][t], driven[0][t], b[0][token]);
                float sums[4] = {through[t], 0.0f, 0.0f, 0.0f};
#pragma unroll
                for (int n = 0; n < STATES; n++) sums[n % 4] = fmaf(own.h[n], c[token][n], sums[n % 4]);
                float sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
#if NEIGHBOURS
                float dense[4] = {};
#pragma unroll
                for (int i = 0; i < NEIGHBOURS; i++) {
                    other[i].advance(delta[i + 1][t], driven[i + 1][t], b[i + 1][token]);
#pragma unroll
                    for (int n = 0; n < STATES; n++)
                        dense[n % 4] = fmaf(other[i].h[n], readout[i][token][n], dense[n % 4]);
                }
                sum = fmaf(gate[t], (dense[0] + dense[1]) + (dense[2] + dense[3]), sum);
#endif
                p.y[(row + tile + token) * channels + channel] = to_act(sum * z[t]);
            }
        }
    }
    if (!valid) return;
    int end = min(range.first + (int)p.segment_tokens, (int)p.time);
    for (int token = max(range.first, range.length); token < end; token++)
        p.y[(row + token) * channels + channel] = to_act(0.0f);
    if (range.segment + 1 == (int)p.segments) {
        float *present = p.present + ((size_t)range.row * channels + channel) * STATES;
#pragma unroll
        for (int n = 0; n < STATES; n++) present[n] = own.h[n];
    }
}
