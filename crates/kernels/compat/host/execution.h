// What the running thread knows, and the interface between this code and the emulated device.
#pragma once

#include "scalar.h"
#include "vector.h"

extern "C" {

// Flags of a region.
enum : uint32_t {
    MARLIN_WRITABLE = 1,    // Kernels may write it.
    MARLIN_OUTPUT = 2,      // Only what this dispatch wrote may be read.
    MARLIN_ABSENT = 4,      // An optional buffer that is not bound.
    MARLIN_THREADGROUP = 8, // Threadgroup memory.
    MARLIN_CHANGES = 16,    // Some command wrote it: not what stays the same from dispatch to dispatch.
};

// Memory that a kernel's pointer may reach: one bound view, or one array of threadgroup memory.
struct MarlinRegion {
    unsigned char *base;
    uint64_t bytes;
    // One byte a byte, 0 where nothing was ever written. Null: everything was.
    unsigned char *initialised;
    // One stamp a byte, of the last write and the last read; see check.cpp. Null: nobody writes it
    // in this dispatch.
    uint32_t *writes;
    uint32_t *reads;
    const char *name;
    uint32_t flags;
    // Whether an access must be looked at beyond its bounds.
    uint32_t checked;
};

// One dispatch. The layout is repeated in src/host.rs.
struct MarlinLaunch {
    MarlinRegion *regions;        // By binding index; unused where bytes are bound inline.
    const void *const *inlines;   // By binding index.
    const uint32_t *constants;    // Bits of the specialisation constants.
    uint32_t threadgroups[3];
    uint32_t threads[3];
    uint32_t simd_width;
    uint32_t region_count;
    uint32_t threadgroup_bytes;   // Of the memory that the launcher sizes.
    uint32_t clock;               // In and out; see check.cpp.
    uint32_t generation;          // Out: goes up when the clock starts again.
    uint32_t fault_bytes;
    char *fault;                  // Where a fault is described, ends in a zero.
};

} // extern "C"

namespace marlin {

struct Thread {
    uint3 position;
    uint index;
    uint lane;
    uint group;
};

// A value that a lane gives to its SIMD-group.
union SimdValue {
    ulong bits;
    float as_f32;
    int as_i32;
    uint as_u32;
};

enum class SimdOp : uint {
    SumF32, SumI32, SumU32, MaxF32, MaxI32, MaxU32, MinF32, MinI32, MinU32,
    Shuffle, ShuffleXor, ShuffleDown, ShuffleUp, Broadcast, Any, All, Ballot, PrefixSum, Barrier,
};

// What the thread that runs now knows of itself and its dispatch.
struct Context {
    const MarlinLaunch *launch;
    Thread thread;
    uint3 group_position;
    uint3 groups;
    uint3 threads;
    uint simd_width;
    uint simd_groups;
};

extern thread_local Context context;

typedef void (*Body)();

// Runs the body once for each thread of the launch. 0, or 1 with a fault described.
int run(MarlinLaunch *launch, Body body);

// The k-th array of the threadgroup for a thread that asks for the k-th time.
const MarlinRegion *threadgroup_region(uint64_t bytes, uint align, const char *name, uint line);
// The memory that the launcher sizes.
const MarlinRegion *dynamic_region();

// Ends the launch. The fibers are abandoned where they stand: nothing on their stacks needs destruction.
[[noreturn]] void fault_access(const MarlinRegion *region, const unsigned char *at, uint size,
    uint align, bool write);
void check_read(const MarlinRegion *region, uint64_t offset, uint size);
void check_write(const MarlinRegion *region, uint64_t offset, uint size);
void check_atomic(const MarlinRegion *region, uint64_t offset, bool reads, bool writes);

void barrier(bool device, uint line);
void wait_for_previous(uint line);
// All lanes of the SIMD-group meet here. Gives the values by lane, good until the lanes meet again; for
// a reduction, the result alone.
const SimdValue *simd_exchange(SimdOp op, SimdValue value, uint line);
// What a lane reads from another that is not there.
[[noreturn]] void fault_lane(SimdOp op, uint lane, uint line);

void copy_async_start(const MarlinRegion *to, unsigned char *at, const MarlinRegion *from,
    const unsigned char *source, uint line);
void copy_async_close();
void copy_async_finish(uint pending);

} // namespace marlin
