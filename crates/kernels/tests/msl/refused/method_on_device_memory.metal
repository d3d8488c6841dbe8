// refused by the search: a method whose `this` is thread is called on `device Block`

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
    y[thread_index] = blocks[0].scaled(float(x[0].x));
}
