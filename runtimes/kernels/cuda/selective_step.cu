// One token of the selective scan; the neighbours' states have just been computed and are read as they are.
//
// LANES lanes share a channel, and each holds PER of its states, which it reads and writes as 16 bytes where possible.
// `present` may be `state`.
#include "common.cuh"

constexpr int THREADS = 128;
constexpr bool QUADS = STATES % 4 == 0 && STATES <= 128 && (STATES / 4 & (STATES / 4 - 1)) == 0;
constexpr int PER = QUADS ? 4 : STATES;
constexpr int LANES = STATES / PER;

struct Step {
    const act *u, *delta;          // [batch, channels]
    const float *bias, *a;         // [channels], [channels, states]
    const act *b;                  // [batch, states]
    const float *state;            // [batch, channels, states]
    const act *c;                  // [batch, states]
    const float *skip;             // [channels]
    const act *z;                  // [batch, channels]
    const act *channel_gate;       // [batch, channels] or null
    const act *state_gate;         // [batch, states] or null
    const float *neighbours[NEIGHBOURS ? NEIGHBOURS : 1];  // [batch, channels, states]
    const float *projections[NEIGHBOURS ? NEIGHBOURS : 1];   // [states, states], or null for identities
    act *y;                        // [batch, channels]
    float *present;                // [batch, channels, states]
    u64 channels;
};

__device__ __forceinline__ void load_states(float *to, const float *from) {
    if (QUADS) {
        float4 v = *reinterpret_cast<const float4 *>(from);
        to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
    } else {
#pragma unroll
        for (int n = 0; n < PER; n++) to[n] = from[n];
    }
}

// The grid is [ceil(channels * LANES / THREADS), batch].
extern "C" __global__ void __launch_bounds__(THREADS) selective_step(const __grid_constant__ Step p) {
    int channels = (int)p.channels, row = blockIdx.y, thread = blockIdx.x * THREADS + threadIdx.x;
    int channel = min(thread / LANES, channels - 1), first = thread % LANES * PER;
    bool valid = thread / LANES < channels;
    size_t at = (size_t)row * channels + channel;

    float h[PER], a[PER], dense[PER] = {};
    load_states(h, p.state + at * STATES + first);
    load_states(a, p.a + (size_t)channel * STATES + first);
#if NEIGHBOURS
    __shared__ float gated[STATES], readout[NEIGHBOURS][STATES];
    bool projected = p.projections[0] != nullptr;
    for (int n = threadIdx.x; n < STATES; n += THREADS) {
        float vector = to_float(p.c[(size_t)row * STATES + n]);
        if (p.state_gate) vector *= silu(to_float(p.state_gate[(size_t)row * STATES + n]));
        gated[n] = vector;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < NEIGHBOURS * STATES; i += THREADS) {
        int n = i % STATES, r = i / STATES;
        float sum = gated[n];
        if (projected) {
            sum = 0.0f;
            for (int k = 0; k < STATES; k++) sum = fmaf(gated[k], p.projections[r][k * STATES + n], sum);
        }
        readout[r][n] = sum;
    }
    __syncthreads();
    float dense_sum = 0.0f;
#pragma unroll
    for (int r = 0; r < NEIGHBOURS; r++) {
        load_states(dense, p.neighbours[r] + at * STATES + first);
#pragma unroll
        for (int n = 0; n < PER; n++) dense_sum = fmaf(dense[n], readout[r][first + n], dense_sum);
    }
    if (p.channel_gate) dense_sum *= silu(to_float(p.channel_gate[at]));
#endif
    float u = to_float(p.u[at]), delta = softplus(to_float(p.delta[at]) + p.bias[channel]);
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < PER; n++) {
        float b = to_float(p.b[(size_t)row * STATES + first + n]), c = to_float(p.c[(size_t)row * STATES + first + n]);
        h[n] = fmaf(power_of_two(LOG2_E * delta * a[n]), h[n], delta * u * b);
        sum = fmaf(h[n], c, sum);
    }
#if NEIGHBOURS
    sum += dense_sum;
#endif
#pragma unroll
    for (int distance = LANES / 2; distance; distance >>= 1) sum += __shfl_xor_sync(~0u, sum, distance);
    if (!valid) return;
    float *present = p.present + at * STATES + first;
    if (QUADS) {
        *reinterpret_cast<float4 *>(present) = make_float4(h[0], h[1 % PER], h[2 % PER], h[3 % PER]);
    } else {
#pragma unroll
        for (int n = 0; n < PER; n++) present[n] = h[n];
    }
    if (first == 0) p.y[at] = to_act(fmaf(p.skip[channel], u, sum) * silu(to_float(p.z[at])));
}
