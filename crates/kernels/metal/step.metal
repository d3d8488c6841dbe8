// The start of a step: which tokens it works on.

// Sizes of one call.
struct BeginStepArgs {
    uint tokens;         // Tokens of the step.
    uint history_length; // Tokens of a sequence's history, a ring.
};

// The id that stands for "what the last step sampled for this sequence": the host has not seen it yet.
#define SAMPLED_TOKEN 0xffffffffu

// Finds the tokens' ids and writes them into their sequences' histories, which penalties read. The ring must be
// longer than the penalties' window by the tokens of a step, so that no token of the step overwrites another that
// counts.
//
// given: [tokens], ids from the host; places: [tokens, 2], slot and position; sampled: [slots]; ids: [tokens];
// history: [slots, history_length].
kernel void begin_step(
    IN(uint) given [[buffer(0)]],
    IN(uint) places [[buffer(1)]],
    IN(uint) sampled [[buffer(2)]],
    OUT(uint) ids [[buffer(3)]],
    INOUT(uint) history [[buffer(4)]],
    INLINE(BeginStepArgs) args [[buffer(5)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    allow_next();
    wait_for_previous();
    uint i = group.x * threads.x + thread_index;
    if (i < args.tokens) {
        uint slot = places[2u * i];
        uint id = given[i];
        if (id == SAMPLED_TOKEN) {
            id = sampled[slot];
        }
        ids[i] = id;
        history[slot * args.history_length + places[2u * i + 1u] % args.history_length] = id;
    }
}
