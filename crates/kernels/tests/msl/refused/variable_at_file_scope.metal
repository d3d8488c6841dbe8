// refused by clang: program scope variable must reside in constant address space

const float HALF_PI = 1.5707964f;

kernel void fill(
    OUT(float) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    y[thread_index] = HALF_PI;
}
