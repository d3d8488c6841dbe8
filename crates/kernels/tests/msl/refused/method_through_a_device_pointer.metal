// refused by the search: a method whose `this` is thread is called on

struct Block {
    float scale;
    float scaled(float x) const {
        return scale * x;
    }
};

kernel void apply(
    INOUT(float) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    DEVICE(const Block) block = device_cast(const Block, y);
    y[thread_index] = block->scaled(2.0f);
}
