struct Block {
    float scale;
    float scaled(float x) const {
        return scale * x;
    }
};

kernel void apply(
    IN(uint4) x [[buffer(0)]],
    OUT(float) y [[buffer(1)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    DEVICE(Block) blocks = device_cast(Block, y);
    Block block = blocks[0];
    y[thread_index] = block.scaled(float(x[0].x));
}
