template <uint n>
struct Halvings {
    static constexpr constant uint value = 1u + Halvings<n / 2u>::value;
};

template <>
struct Halvings<0u> {
    static constexpr constant uint value = 0u;
};

kernel void logarithms(
    OUT(uint) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    y[thread_index] = Halvings<1024u>::value;
}
