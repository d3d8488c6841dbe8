// Tiles of a grouped product: rows of one expert, at most TILE of them, found on the device by the
// offsets that moe_group.metal leaves.

// A tile: rows first…first + count − 1 of y, all of one expert.
struct MoeTile {
    uint expert;
    uint first;
    uint count;
};

// Tile `index`, for tiles of `height` rows. tiles, offsets: [experts + 1].
//
// The expert is the last one whose first tile is not after `index`: experts without tokens have no tile, and
// begin where the next one does.
static inline MoeTile tile_at(
    DEVICE(const uint) tiles, DEVICE(const uint) offsets, uint experts, uint height, uint index) {
    uint low = 0u;
    uint high = experts;
    while (high - low > 1u) {
        uint middle = (low + high) / 2u;
        if (tiles[middle] <= index) {
            low = middle;
        } else {
            high = middle;
        }
    }
    MoeTile out;
    out.expert = low;
    out.first = offsets[low] + (index - tiles[low]) * height;
    out.count = min(height, offsets[low + 1u] - out.first);
    return out;
}

// A gate's activation: 0 is SiLU, 1 GELU with tanh (Hendrycks & Gimpel 2016, eq. 2).
static inline float gate_activation(uint which, float x) {
    if (which == 0u) {
        return x / (1.0f + exp(-x));
    }
    float inner = 0.7978845608f * fma(0.044715f * x * x, x, x);
    return 0.5f * x * (1.0f + tanh(inner));
}
