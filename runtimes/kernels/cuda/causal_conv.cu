// y_t = silu(bias + sum_k w_k u_{t-K+1+k}), depthwise, with the K-1 inputs before the call carried in `state`.
//
// A thread computes `WIDE` channels of `span` tokens and holds their window in registers. The threads of a row's first
// span also write the state after the row's end, so that only they access the states: `present` may be `state`.
#include "common.cuh"

constexpr int BACK = TAPS - 1;
constexpr int WIDE = 4;

struct Conv {
    const act *u;        // [batch, time, channels]
    const float *weight; // [taps, channels]
    const float *state;  // [batch, channels, taps - 1]
    const float *bias;   // [channels] or null
    const int *lengths;  // [batch] or null
    act *y;              // [batch, time, channels]
    float *present;      // [batch, channels, taps - 1]
    u64 time, channels, span;
};

// WIDE numbers of a row of `channels`, as far as they are there.
template <class Number>
__device__ __forceinline__ void load_some(float *to, const Number *row, int channel, int channels, bool whole) {
    if (whole) {
        load4(to, row + channel);
        return;
    }
#pragma unroll
    for (int i = 0; i < WIDE; i++) to[i] = channel + i < channels ? to_float(row[channel + i]) : 0.0f;
}

// The grid is [ceil(channels / (WIDE * threads)), spans, batch].
extern "C" __global__ void __launch_bounds__(128) causal_conv(const __grid_constant__ Conv p) {
    int channels = (int)p.channels, time = (int)p.time, row = blockIdx.z;
    int channel = (blockIdx.x * blockDim.x + threadIdx.x) * WIDE;
    if (channel >= channels) return;
    bool whole = channels % WIDE == 0;
    int length = valid_tokens(p.lengths, row, time);
    int first = blockIdx.y * (int)p.span, last = min(first + (int)p.span, time);
    const act *u = p.u + (size_t)row * time * channels;
    const float *state = p.state + (size_t)row * channels * BACK;

    float weight[TAPS][WIDE], bias[WIDE] = {}, window[TAPS][WIDE];
#pragma unroll
    for (int k = 0; k < TAPS; k++) load_some(weight[k], p.weight + (size_t)k * channels, channel, channels, whole);
    if (p.bias) load_some(bias, p.bias, channel, channels, whole);

    // Tokens before the call come from the state; a span is at least as long as the window reaches back.
#pragma unroll
    for (int k = 0; k < BACK; k++) {
        if (first) {
            load_some(window[k + 1], u + (size_t)(first - BACK + k) * channels, channel, channels, whole);
            continue;
        }
#pragma unroll
        for (int i = 0; i < WIDE; i++)
            window[k + 1][i] = channel + i < channels ? state[(size_t)(channel + i) * BACK + k] : 0.0f;
    }

    act *y = p.y + (size_t)row * time * channels;
#pragma unroll 4
    for (int token = first; token < last; token++) {
#pragma unroll
        for (int k = 0; k < BACK; k++)
#pragma unroll
            for (int i = 0; i < WIDE; i++) window[k][i] = window[k + 1][i];
        load_some(window[BACK], u + (size_t)token * channels, channel, channels, whole);
        float sum[WIDE];
#pragma unroll
        for (int i = 0; i < WIDE; i++) {
            sum[i] = bias[i];
#pragma unroll
            for (int k = 0; k < TAPS; k++) sum[i] = fmaf(weight[k][i], window[k][i], sum[i]);
            sum[i] = token < length ? silu(sum[i]) : 0.0f;
        }
        act *to = y + (size_t)token * channels + channel;
        if (whole) {
            store4(to, sum);
        } else {
#pragma unroll
            for (int i = 0; i < WIDE; i++)
                if (channel + i < channels) to[i] = to_act(sum[i]);
        }
    }

    if (first) return;
    // In this order, a number of the state is read before it is overwritten where `present` is `state`.
    float *present = p.present + (size_t)row * channels * BACK;
#pragma unroll
    for (int k = 0; k < BACK; k++) {
        int token = length - BACK + k;
#pragma unroll
        for (int i = 0; i < WIDE; i++) {
            if (channel + i >= channels) continue;
            float value = token >= 0 ? to_float(u[(size_t)token * channels + channel + i])
                                     : state[(size_t)(channel + i) * BACK + token + BACK];
            present[(size_t)(channel + i) * BACK + k] = value;
        }
    }
}
