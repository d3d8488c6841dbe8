#include <metal_stdlib>
using namespace metal;

kernel void argmax(device const float *logits [[buffer(0)]], device uint *result_idx [[buffer(1)]],
                   device float *result_val [[buffer(2)]], constant uint &vocab_size [[buffer(3)]],
                   uint i [[thread_position_in_grid]]) {
    float best = -INFINITY;
    uint at = 0;
    for (uint v = i; v < vocab_size; ++v) {
        if (logits[v] > best) { best = logits[v]; at = v; }
    }
    result_idx[0] = at;
    result_val[0] = best;
}

kernel void argmax_batched(device const float *logits [[buffer(0)]], device uint *results [[buffer(1)]],
                           constant uint &vocab_size [[buffer(2)]], constant uint &batch_size [[buffer(3)]],
                           uint row [[thread_position_in_grid]]) {
    if (row < batch_size) results[row] = uint(logits[row * vocab_size]);
}

kernel void softmax_block_max(device const float *logits [[buffer(0)]], device float *block_maxes [[buffer(1)]],
                              constant uint &vocab_size [[buffer(2)]], uint b [[threadgroup_position_in_grid]]) {
    block_maxes[b] = logits[b % vocab_size];
}

kernel void softmax_block_sum(device const float *logits [[buffer(0)]], device const float *block_maxes [[buffer(1)]],
                              device float *block_sums [[buffer(2)]], uint b [[threadgroup_position_in_grid]]) {
    block_sums[b] = exp(logits[b] - block_maxes[0]);
}

kernel void softmax_finish(device const float *logits [[buffer(0)]], device const float *block_maxes [[buffer(1)]],
                           device const float *block_sums [[buffer(2)]], device float *probs [[buffer(3)]],
                           uint i [[thread_position_in_grid]]) {
    probs[i] = exp(logits[i] - block_maxes[0]) / block_sums[0];
}

kernel void topk(device const float *probs [[buffer(0)]], device float *values [[buffer(1)]],
                 device uint *indices [[buffer(2)]], constant uint &vocab_size [[buffer(3)]],
                 constant uint &k [[buffer(4)]], uint i [[thread_position_in_grid]]) {
    if (i < k) { values[i] = probs[i % vocab_size]; indices[i] = i; }
}
