// The parts of a layer between its exchanges.
#pragma once
#include "mamba_step_products.cuh"
#include "mamba_step_words.cuh"

// A thread's weights for two roles, which warps have both or one of.
template <bool BOTH, typename First, typename Second>
struct Roles {
    First first;
    Second second;
};
template <typename First, typename Second>
struct Roles<false, First, Second> {
    union {
        First first;
        Second second;
    };
};

// Weights and states of a layer that a thread keeps in registers; they are loaded an exchange before they are used.
struct Ahead {
    // Of the warps from CONV_WARP on, of which warp n has row n: channel `lane`; of the gates, which are not convolved,
    // weights that change nothing.
    struct Conv {
        float weight[TAPS], bias, inputs[BACK];
    };
    // Of the other warps: warp w has outputs 16 w ... of x_proj, warps from SMALL_WARP on have dt_proj, channel gate and
    // state gate; `dt_bias` is that of channels lane / 4 and lane / 4 + 8.
    struct Projections {
        uint2 x_proj[2];
        uint4 small[SMALL][2];
        float dt_bias[2];
    };
    float norm[VALUES];
    Roles<GROUPS == 1, Conv, Projections> roles;
    float a, skip, state[GROUP_ROWS];  // channel 2 (warp % 8) + lane / 16, state lane % 16

    __device__ __forceinline__ void load(const Layer &layer, const Place &place) {
        const int warp = place.warp, lane = place.lane, first = place.block * CHANNELS;
#pragma unroll
        for (int i = 0; i < VALUES; i += 4) {
            float4 v = *reinterpret_cast<const float4 *>(layer.norm + place.thread * VALUES + i);
            norm[i] = v.x, norm[i + 1] = v.y, norm[i + 2] = v.z, norm[i + 3] = v.w;
        }
        if (!place.has_channels()) return;
        if (warp >= CONV_WARP && warp < CONV_WARP + BATCH) load_conv(layer, warp - CONV_WARP, first, lane);
        if (GROUPS == 1 || warp < CONV_WARP) load_projections(layer, warp, first, lane);
        int channel = first + 2 * (warp % GROUP_WARPS) + lane / 16;
        a = layer.a[channel * STATES + lane % 16];
        skip = layer.skip[channel];
#pragma unroll
        for (int i = 0; i < GROUP_ROWS; i++)
            if (place.has_row(i)) state[i] = __ldcg(layer.state + ((size_t)(place.first_row + i) * INNER + channel) * STATES + lane % 16);
    }
    __device__ __forceinline__ void load_conv(const Layer &layer, int row, int first, int lane) {
        const bool convolved = lane < CHANNELS;
        const int channel = first + lane % CHANNELS;
#pragma unroll
        for (int k = 0; k < TAPS; k++) roles.first.weight[k] = convolved ? layer.conv_weight[k * INNER + channel] : k == BACK ? 1.0f : 0.0f;
        roles.first.bias = convolved ? layer.conv_bias[channel] : 0.0f;
#pragma unroll
        for (int k = 0; k < BACK; k++)
            roles.first.inputs[k] = convolved ? __ldcg(layer.conv + ((size_t)row * INNER + channel) * BACK + k) : 0.0f;
    }
    __device__ __forceinline__ void load_projections(const Layer &layer, int warp, int first, int lane) {
        if (warp < SUMS / 16)
#pragma unroll
            for (int half = 0; half < 2; half++)
                roles.second.x_proj[half] = load_weights8(layer.x_proj + (size_t)(warp * 16 + half * 8 + lane / 4) * INNER + first + lane % 4 * 4);
        const int matrix = warp - SMALL_WARP, width = matrix == 0 ? RANK : GATE;
        const act *from = matrix == 0 ? layer.dt_proj + (size_t)first * RANK
                        : matrix == 1 ? layer.channel_gate + (size_t)first * GATE : layer.state_gate;
        if (matrix == 0 || (NEIGHBOURS && matrix > 0 && matrix < 3 && layer.gates))
#pragma unroll
            for (int j = 0; j < SMALL; j++)
#pragma unroll
                for (int half = 0; half < 2; half++)
                    if (j * 32 < width)
                        roles.second.small[j][half] = load_weights(from + (lane / 4 + half * 8) * width + j * 32 + lane % 4 * 8);
        if (matrix == 0) roles.second.dt_bias[0] = layer.dt_bias[first + lane / 4], roles.second.dt_bias[1] = layer.dt_bias[first + lane / 4 + 8];
    }
};

// Puts x into shared memory, as the right operand, multiplied with the norm's weights. The factor of the norm, which
// needs all of x, is applied to the products; that their operands fit into 16 bits, each warp scales its part of k by a
// power of two.
__device__ __forceinline__ void norm(Shared &shared, const Place &place, const float (&x)[GROUP_ROWS][VALUES], const float (&weight)[VALUES]) {
    const int part = place.warp % GROUP_WARPS;
#pragma unroll
    for (int i = 0; i < GROUP_ROWS; i++) {
        if (!place.has_row(i)) continue;
        const int n = place.first_row + i;
        float squares = 0.0f;
#pragma unroll
        for (int j = 0; j < VALUES; j++) squares = fmaf(x[i][j], x[i][j], squares);
        squares = warp_sum(squares);
        // Half the exponent of the mean square.
        const int exponent = ((int)(__float_as_uint(squares * ((float)GROUP_WARPS / HIDDEN)) >> 23) - 127) >> 1;
        const float scale = __uint_as_float((u32)(127 - exponent) << 23);
        if (place.lane == 0) shared.squares[n][part] = squares, shared.scales[n][part] = __uint_as_float((u32)(127 + exponent) << 23);
        u32 *to = reinterpret_cast<u32 *>(shared.rows + n * WIDE) + place.thread * VALUES / 2;
#pragma unroll
        for (int j = 0; j < VALUES; j += 2)
            to[j / 2] = pack(x[i][j] * scale * weight[j], x[i][j + 1] * scale * weight[j + 1]);
    }
    synchronize_part();
}

// The end of in_proj: the convolution and silu. Returns the newest input of the convolution.
__device__ __forceinline__ float convolve(Shared &shared, const Place &place, const Ahead &ahead, int layer, u64 epsilon) {
    const int n = place.warp - CONV_WARP;
    if (n < 0 || n >= BATCH) return 0.0f;
    float value = row_sum(shared, layer, n, place.lane, epsilon);
    float sum = fmaf(ahead.roles.first.weight[BACK], value, ahead.roles.first.bias);
#pragma unroll
    for (int k = 0; k < BACK; k++) sum = fmaf(ahead.roles.first.weight[k], ahead.roles.first.inputs[k], sum);
    float u = silu(sum);
    shared.uz[n][place.lane] = u;
    shared.u[n][place.lane] = to_act(u);
    return value;
}
__device__ __forceinline__ void store_conv(const Layer &layer, const Place &place, const Ahead &ahead, float value) {
    const int n = place.warp - CONV_WARP;
    if (n < 0 || n >= BATCH || place.lane >= CHANNELS) return;
    float *next = layer.next_conv + ((size_t)n * INNER + place.block * CHANNELS + place.lane) * BACK;
#pragma unroll
    for (int k = 0; k < BACK; k++) next[k] = k + 1 < BACK ? ahead.roles.first.inputs[k + 1] : value;
}

// The sums of x_proj are added up by atomic additions of fixed-point numbers, whose order does not matter: the low 8
// bits of a sum count its parts. There are `REPLICAS` of each sum, against contention.
constexpr float FIXED = 17179869184.0f;  // 2^34
constexpr float LARGEST_PART = 16000.0f; // 128 of them are no overflow

// Adds own channels' part of x_proj.
__device__ __forceinline__ void add_parts(const Shared &shared, const Place &place, const Ahead &ahead, u64 *sums) {
    if (place.warp >= SUMS / 16) return;
    const int lane = place.lane;
    uint2 b = make_uint2(0, 0);
    if (lane / 4 < BATCH) b = *reinterpret_cast<const uint2 *>(&shared.u[lane / 4][lane % 4 * 4]);
    float c[4] = {};
    mma(c, ahead.roles.second.x_proj[0].x, ahead.roles.second.x_proj[1].x, ahead.roles.second.x_proj[0].y, ahead.roles.second.x_proj[1].y, b.x, b.y);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (BATCH == 1 && i % 2) continue;
        int n = lane % 4 * 2 + i % 2, output = place.warp * 16 + lane / 4 + i / 2 * 8;
        float part = fminf(fmaxf(c[i], -LARGEST_PART), LARGEST_PART);
        u64 fixed = ((u64)__float2ll_rn(part * FIXED) << 8) + 1;
        u64 *to = sums + ((size_t)(place.block % REPLICAS) * BATCH + n) * SUMS + output;
        if (n < BATCH) asm volatile("red.relaxed.gpu.global.add.u64 [%0], %1;" ::"l"(to), "l"(fixed) : "memory");
    }
}
// Waits for all parts of the sums of the group's rows.
__device__ __forceinline__ void await_sums(Shared &shared, const Place &place, const u64 *sums) {
    constexpr int COUNT = GROUP_ROWS * REPLICAS;
    const int last = min(GROUP_ROWS, BATCH - place.first_row) - 1, output = place.thread;
    u64 words[COUNT] = {};
    u32 missing = (1u << COUNT) - 1;
    auto at = [&](int i) { return sums + ((size_t)(i % REPLICAS) * BATCH + place.first_row + min(i / REPLICAS, last)) * SUMS + output; };
    auto arrived = [&](int i) { return (u32)(words[i] & 255) == PARTS; };
    if (COUNT > 4) {
        while (true) {
            get(words[COUNT - 1], at(COUNT - 1), 1);
            if (arrived(COUNT - 1) || NOWAIT) break;
            poll_gap();
        }
        missing &= ~(1u << (COUNT - 1));
    }
    while (true) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) get(words[i], at(i), POLL == 0 ? 1 : missing >> i & 1);
#pragma unroll
        for (int i = 0; i < COUNT; i++)
            if (arrived(i)) missing &= ~(1u << i);
        if (!missing || NOWAIT) break;
        poll_gap();
    }
#pragma unroll
    for (int i = 0; i < GROUP_ROWS; i++) {
        i64 total = 0;
#pragma unroll
        for (int r = 0; r < REPLICAS; r++) total += (i64)words[i * REPLICAS + r] >> 8;
        float value = (float)total * (1.0f / FIXED);
        if (!place.has_row(i)) continue;
        if (output < RANK) shared.d[place.first_row + i][output] = to_act(value);
        else shared.bc[place.first_row + i][output - RANK] = value;
    }
}
// Waits for the hidden values of the gates.
__device__ __forceinline__ void await_gates(Shared &shared, const Place &place, const u64 *from, u32 phase) {
    const int last = min(GROUP_ROWS, BATCH - place.first_row) - 1, at = place.thread - 128;
    u64 words[GROUP_ROWS] = {};
    u32 missing = (1u << GROUP_ROWS) - 1;
    while (true) {
#pragma unroll
        for (int i = 0; i < GROUP_ROWS; i++)
            get(words[i], from + (size_t)(place.first_row + min(i, last)) * G_WORDS + at, POLL == 0 ? 1 : missing >> i & 1);
#pragma unroll
        for (int i = 0; i < GROUP_ROWS; i++)
            if (has_phase(words[i], phase)) missing &= ~(1u << i);
        if (!missing || NOWAIT) break;
        poll_gap();
    }
#pragma unroll
    for (int i = 0; i < GROUP_ROWS; i++)
        if (place.has_row(i)) shared.g[place.first_row + i][at] = to_act(__uint_as_float((u32)words[i]));
}

// The step sizes and the gates of own channels: a warp for each.
__device__ __forceinline__ void small_products(Shared &shared, const Place &place, const Ahead &ahead, bool dense) {
    const int matrix = place.warp - SMALL_WARP, lane = place.lane;
    if (matrix != 0 && !(dense && matrix > 0 && matrix < 3)) return;
    const char *rows = matrix == 0 ? (const char *)shared.d : (const char *)shared.g + (matrix - 1) * GATE * 2;
    const int stride = matrix == 0 ? sizeof(shared.d[0]) : sizeof(shared.g[0]), width = matrix == 0 ? RANK : GATE;
    Sums<2> sums;
#pragma unroll
    for (int j = 0; j < SMALL; j++)
        if (j * 32 < width) sums.add(2 * j, ahead.roles.second.small[j][0], ahead.roles.second.small[j][1], load_row(rows, stride, (j * 32 + lane % 4 * 8) * 2, lane));
    float value[4];
#pragma unroll
    for (int i = 0; i < 4; i++) value[i] = sums.sum(i);
    if (matrix == 0) {
#pragma unroll
        for (int i = 0; i < 4; i++) value[i] = softplus(value[i] + ahead.roles.second.dt_bias[i / 2]);
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++) value[i] = silu(value[i]);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int n = lane % 4 * 2 + i % 2;
        if (n < BATCH) shared.projected[matrix][n][lane / 4 + i / 2 * 8] = value[i];
    }
}

// States of the layers below, the nearest first, of channel 2 (warp % 8) + lane / 16 and state lane % 16.
struct Below {
    float state[NEIGHBOURS ? NEIGHBOURS : 1][GROUP_ROWS] = {};

    __device__ __forceinline__ float sum(int i) const {
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < NEIGHBOURS; j++) sum += state[j][i];
        return sum;
    }
    __device__ __forceinline__ void push(int i, float h) {
#pragma unroll
        for (int j = NEIGHBOURS - 1; j > 0; j--) state[j][i] = state[j - 1][i];
        state[0][i] = h;
    }
};

// The scan's step. `to` are the words of y of the group; `below` gets the new states as its nearest.
__device__ __forceinline__ void scan(Shared &shared, const Place &place, const Ahead &ahead, Below &below, bool dense, u64 *to, u32 phase) {
    const int lane = place.lane, own = 2 * (place.warp % GROUP_WARPS) + lane / 16, state = lane % 16;
    if (!place.has_row(0)) return;
    float y[GROUP_ROWS];
#pragma unroll
    for (int i = 0; i < GROUP_ROWS; i++) {
        if (!place.has_row(i)) continue;
        const int n = place.first_row + i;
        float u = shared.uz[n][own], delta = shared.projected[0][n][own], c = shared.bc[n][STATES + state];
        float h = fmaf(power_of_two(delta * (ahead.a * LOG2_E)), ahead.state[i], delta * u * shared.bc[n][state]);
        y[i] = h * c;
        if (dense) y[i] = fmaf(shared.projected[1][n][own] * shared.projected[2][n][state] * c, below.sum(i), y[i]);
        below.push(i, h);
    }
#pragma unroll
    for (int distance = 8; distance; distance >>= 1)
#pragma unroll
        for (int i = 0; i < GROUP_ROWS; i++) y[i] += __shfl_xor_sync(~0u, y[i], distance);
    const float *uz = &shared.uz[place.first_row][own];
#pragma unroll
    for (int i = 0; i < GROUP_ROWS; i++)
        y[i] = place.has_row(i) ? fmaf(ahead.skip, uz[i * ROWS], y[i]) * uz[i * ROWS + CHANNELS] : 0.0f;
    if (Y_CHANNELS == 2) {
        u64 word = pack(y[0], __shfl_down_sync(~0u, y[0], 16));
        if (lane == 0) put(to + y_word(place.block * CHANNELS + own, 0), word, phase);
    } else if (lane % 16 < Y_PARTS) {
        // A lane for each word of the channel.
#pragma unroll
        for (int part = 0; part < Y_PARTS; part++) {
            auto row = [&](int i) { return i < Y_ROWS && part * Y_ROWS + i < GROUP_ROWS ? y[part * Y_ROWS + i] : 0.0f; };
            u64 word = pack(row(0), row(1));
            if (Y_ROWS == 3) word |= (u64)(pack(row(2), 0.0f) & 0xffff) << 32;
            if (lane % 16 == part) put(to + y_word(place.block * CHANNELS + own, part), word, phase);
        }
    }
}
__device__ __forceinline__ void store_states(const Layer &layer, const Place &place, const Below &below) {
    const int channel = place.block * CHANNELS + 2 * (place.warp % GROUP_WARPS) + place.lane / 16;
#pragma unroll
    for (int i = 0; i < GROUP_ROWS; i++)
        if (place.has_row(i)) layer.next_state[((size_t)(place.first_row + i) * INNER + channel) * STATES + place.lane % 16] = below.state[0][i];
}
