// Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3", §3.3),
// as crates/backend/src/philox.rs: the same bits.
static inline uint4 philox4x32(uint4 counter, uint2 key) {
    UNROLL
    for (uint round = 0u; round < 10u; ++round) {
        uint high_x = mulhi(counter.x, 0xD2511F53u);
        uint low_x = counter.x * 0xD2511F53u;
        uint high_z = mulhi(counter.z, 0xCD9E8D57u);
        uint low_z = counter.z * 0xCD9E8D57u;
        counter = make_uint4(
            high_z ^ counter.y ^ key.x, low_z, high_x ^ counter.w ^ key.y, low_x);
        key = make_uint2(key.x + 0x9E3779B9u, key.y + 0xBB67AE85u);
    }
    return counter;
}

// 24 random bits, number `draw` of the stream `seed`; times 2^-24 they are `uniform`.
static inline uint philox_bits(uint2 seed, ulong draw) {
    uint4 counter = make_uint4(uint(draw & 0xffffffffu), uint(draw >> 32u), 0u, 0u);
    return philox4x32(counter, seed).x >> 8u;
}
