struct Block {
    float scale;
};

static inline float scaled(DEVICE(const Block) block, float x) {
    return block->scale * x;
}

kernel void apply(
    INOUT(float) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    DEVICE(const Block) block = device_cast(const Block, y);
    y[thread_index] = scaled(block, 2.0f);
}
