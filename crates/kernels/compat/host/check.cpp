// Whether an access is one that every GPU gives the same answer to.
//
// Time is a counter that moves on at every barrier. Each byte of memory that a dispatch may write carries
// a stamp of its last write and one of its last read: the moment in the upper 21 bits, who in the lower 11.
// Two accesses are ordered if one thread made both, or if a barrier that both took part in lies between
// them. Two that are not ordered and of which one is a write are a race, whether or not they would have
// gone well this time.

#include "state.h"

#include <stdio.h>
#include <string.h>

namespace marlin {

namespace {

constexpr uint WHO_BITS = 11;
constexpr uint WHO_MASK = (1u << WHO_BITS) - 1;
constexpr uint LAST_MOMENT = (1u << (32 - WHO_BITS)) - 1;
// Threads count from 0; then come several threads of one SIMD-group, and the two below.
constexpr uint SEVERAL_OF_GROUP = MAX_THREADS;
constexpr uint ATOMIC = WHO_MASK - 1;
constexpr uint SEVERAL = WHO_MASK;
static_assert(SEVERAL_OF_GROUP + MAX_GROUPS <= ATOMIC, "every thread and group has a number");

uint group_of(uint who) {
    if (who < MAX_THREADS) {
        return who >> state->simd_shift;
    }
    return who < ATOMIC ? who - SEVERAL_OF_GROUP : MAX_GROUPS;
}

bool is_threadgroup(const MarlinRegion *region) { return (region->flags & MARLIN_THREADGROUP) != 0; }

// Past the barriers: whether one thread made both accesses, or a SIMD-group's own barrier lies between.
bool ordered_in_group(uint stamp) {
    uint who = stamp & WHO_MASK;
    if (who == context.thread.index) {
        return true;
    }
    uint group = group_of(who);
    return group == context.thread.group && (stamp >> WHO_BITS) < state->simd_fence[group];
}

inline bool ordered(const MarlinRegion *region, uint stamp) {
    const State &s = *state;
    if (is_threadgroup(region)) {
        // Stamps of other threadgroups are older than this one's start, and no matter.
        return stamp < s.threadgroup_fence << WHO_BITS || ordered_in_group(stamp);
    }
    if (stamp < s.launch_start << WHO_BITS) {
        return true;
    }
    if (stamp < s.group_start << WHO_BITS) {
        return false; // Another threadgroup of this dispatch.
    }
    return stamp < s.device_fence << WHO_BITS || ordered_in_group(stamp);
}

void where(const MarlinRegion *region, uint64_t offset, uint size, char *out, size_t bytes) {
    snprintf(out, bytes, "%s\"%s\"[%llu]", is_threadgroup(region) ? "threadgroup memory " : "",
        region->name, static_cast<unsigned long long>(offset / size));
}

[[noreturn]] void race(const MarlinRegion *region, uint64_t offset, uint size, uint stamp,
    const char *now, const char *before) {
    char place[160];
    where(region, offset, size, place, sizeof(place));
    uint who = stamp & WHO_MASK;
    char other[64];
    if (who < MAX_THREADS) {
        snprintf(other, sizeof(other), "thread %u", who);
    } else if (who == ATOMIC) {
        snprintf(other, sizeof(other), "an atomic operation");
    } else {
        snprintf(other, sizeof(other), "several threads");
    }
    bool outside = (stamp >> WHO_BITS) < state->group_start;
    fault("data race: %s is %s, and %s by %s%s with no barrier between", place, now, before, other,
        outside ? " of another threadgroup" : "");
}

} // namespace

// Before the clock starts again: what was before this dispatch is forgotten, what was in it becomes one
// moment.
static void restart_stamps(uint32_t *stamps, uint64_t count) {
    uint first = state->launch_start << WHO_BITS;
    for (uint64_t i = 0; i < count; i++) {
        stamps[i] = stamps[i] < first ? 0 : 1u << WHO_BITS | SEVERAL;
    }
}

uint tick() {
    State &s = *state;
    if (s.clock == LAST_MOMENT) {
        // A race across this moment is missed. Once in two million barriers.
        for (uint i = 0; i < s.launch->region_count; i++) {
            const MarlinRegion &region = s.launch->regions[i];
            if (region.writes != nullptr) {
                restart_stamps(region.writes, region.bytes);
                restart_stamps(region.reads, region.bytes);
            }
        }
        memset(s.threadgroup_writes, 0, sizeof(s.threadgroup_writes));
        memset(s.threadgroup_reads, 0, sizeof(s.threadgroup_reads));
        s.launch->generation++;
        s.launch_start = 1;
        s.group_start = 1;
        s.clock = 2;
        s.device_fence = 2;
        s.threadgroup_fence = 2;
        for (uint g = 0; g < MAX_GROUPS; g++) {
            s.simd_fence[g] = 2;
        }
    }
    return ++s.clock;
}

void fault_access(const MarlinRegion *region, const unsigned char *at, uint size, uint align,
    bool write) {
    const char *kind = is_threadgroup(region) ? "threadgroup memory " : "";
    const char *what = write ? "written" : "read";
    if ((region->flags & MARLIN_ABSENT) != 0) {
        fault("\"%s\" is %s, but nothing is bound to it", region->name, what);
    }
    long long offset = at - region->base;
    if (offset >= 0 && uint64_t(offset) < region->bytes && region->bytes - uint64_t(offset) >= size) {
        fault("%s\"%s\" is %s at byte %lld, which is not a multiple of %u", kind, region->name, what,
            offset, align);
    }
    long long index = offset >= 0 ? offset / size : -((-offset + size - 1) / size);
    fault("out of bounds: %s\"%s\"[%lld] is %s; it has %llu elements of %u bytes", kind, region->name,
        index, what, static_cast<unsigned long long>(region->bytes / size), size);
}

// Whether the bytes of an access, as nearly always, have one stamp.
static inline bool all_equal(const uint32_t *stamps, uint size) {
    uint32_t differences = 0;
    for (uint i = 1; i < size; i++) {
        differences |= stamps[i] ^ stamps[0];
    }
    return differences == 0;
}

// The same of bytes that are 1 where something was written, 0 elsewhere.
static inline bool all_written(const unsigned char *initialised, uint size) {
    static const unsigned char ones[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    for (; size > 16; size -= 16, initialised += 16) {
        if (memcmp(initialised, ones, 16) != 0) {
            return false;
        }
    }
    return memcmp(initialised, ones, size) == 0;
}

// Remembers, for wait_for_previous, an access that the dispatch before may not be done with.
static inline void touch(const MarlinRegion *region, bool write) {
    if ((region->flags & MARLIN_THREADGROUP) == 0
        && (write || (region->flags & MARLIN_CHANGES) != 0)) {
        ThreadState &t = state->threads[context.thread.index];
        t.touched = region;
        t.touched_by_write = write;
    }
}

// What the stamp of the last read becomes with this one.
static uint stamp_of_read(const MarlinRegion *region, uint last) {
    const State &s = *state;
    uint now = s.clock << WHO_BITS;
    uint mine = now | context.thread.index;
    if (last == (now | SEVERAL)) {
        return last;
    }
    if (last == mine || ordered(region, last)) {
        return mine;
    }
    if ((last >> WHO_BITS) < s.group_start) {
        // A read by another threadgroup stays: it makes every write a race, and no barrier changes that.
        return last;
    }
    return now
        | (group_of(last & WHO_MASK) == context.thread.group ? SEVERAL_OF_GROUP + context.thread.group
                                                              : SEVERAL);
}

// Inlined for each size that accesses have, so that the loops over bytes go away.
__attribute__((always_inline)) static inline void check_read_of(
    const MarlinRegion *region, uint64_t offset, uint size) {
    const State &s = *state;
    if (region->initialised != nullptr && !all_written(region->initialised + offset, size)) {
        char place[160];
        where(region, offset, size, place, sizeof(place));
        fault("uninitialised: %s is read, and nothing has written it", place);
    }
    touch(region, false);
    if (region->writes == nullptr) {
        return;
    }
    const uint32_t *writes = region->writes + offset;
    uint32_t *reads = region->reads + offset;
    uint first = s.launch_start << WHO_BITS;
    bool output = (region->flags & MARLIN_OUTPUT) != 0;
    uint distinct = all_equal(writes, size) ? 1 : size;
    for (uint i = 0; i < distinct; i++) {
        if (output && writes[i] < first) {
            char place[160];
            where(region, offset, size, place, sizeof(place));
            fault("uninitialised: output %s is read before this dispatch has written it", place);
        }
        if (!ordered(region, writes[i])) {
            race(region, offset, size, writes[i], "read", "was written");
        }
    }
    if (all_equal(reads, size)) {
        uint stamp = stamp_of_read(region, reads[0]);
        for (uint i = 0; i < size; i++) {
            reads[i] = stamp;
        }
    } else {
        for (uint i = 0; i < size; i++) {
            reads[i] = stamp_of_read(region, reads[i]);
        }
    }
}

__attribute__((always_inline)) static inline void check_write_of(
    const MarlinRegion *region, uint64_t offset, uint size) {
    const State &s = *state;
    if ((region->flags & MARLIN_WRITABLE) == 0) {
        char place[160];
        where(region, offset, size, place, sizeof(place));
        fault("%s is written, but it is an input", place);
    }
    touch(region, true);
    uint32_t *writes = region->writes + offset;
    const uint32_t *reads = region->reads + offset;
    uint distinct = all_equal(writes, size) && all_equal(reads, size) ? 1 : size;
    for (uint i = 0; i < distinct; i++) {
        if (!ordered(region, writes[i])) {
            race(region, offset, size, writes[i], "written", "was written");
        }
        if (!ordered(region, reads[i])) {
            race(region, offset, size, reads[i], "written", "was read");
        }
    }
    uint now = (s.clock << WHO_BITS) | context.thread.index;
    for (uint i = 0; i < size; i++) {
        writes[i] = now;
    }
    memset(region->initialised + offset, 1, size);
}

#define MARLIN_BY_SIZE(function) \
    switch (size) { \
    case 1: return function(region, offset, 1); \
    case 2: return function(region, offset, 2); \
    case 4: return function(region, offset, 4); \
    case 8: return function(region, offset, 8); \
    case 16: return function(region, offset, 16); \
    default: return function(region, offset, size); \
    }

void check_read(const MarlinRegion *region, uint64_t offset, uint size) {
    MARLIN_BY_SIZE(check_read_of)
}

void check_write(const MarlinRegion *region, uint64_t offset, uint size) {
    MARLIN_BY_SIZE(check_write_of)
}

#undef MARLIN_BY_SIZE

void check_atomic(const MarlinRegion *region, uint64_t offset, bool reads, bool writes) {
    const State &s = *state;
    if (writes && (region->flags & MARLIN_WRITABLE) == 0) {
        fault("\"%s\"[%llu] is changed, but it is an input", region->name,
            static_cast<unsigned long long>(offset / 4));
    }
    touch(region, writes);
    uint now = (s.clock << WHO_BITS) | ATOMIC;
    uint first = s.launch_start << WHO_BITS;
    for (uint i = 0; i < 4; i++) {
        uint64_t at = offset + i;
        if (reads && region->initialised != nullptr && region->initialised[at] == 0) {
            fault("uninitialised: \"%s\"[%llu] is changed atomically, and nothing has written it",
                region->name, static_cast<unsigned long long>(offset / 4));
        }
        if (region->writes == nullptr) {
            continue;
        }
        uint write = region->writes[at];
        if (reads && (region->flags & MARLIN_OUTPUT) != 0 && write < first) {
            fault("uninitialised: output \"%s\"[%llu] is changed atomically before this dispatch has "
                  "written it",
                region->name, static_cast<unsigned long long>(offset / 4));
        }
        if ((write & WHO_MASK) != ATOMIC && !ordered(region, write)) {
            race(region, offset, 4, write, "used atomically", "was written");
        }
        uint read = region->reads[at];
        if (!writes) {
            region->reads[at] = now;
            continue;
        }
        if ((read & WHO_MASK) != ATOMIC && !ordered(region, read)) {
            race(region, offset, 4, read, "changed atomically", "was read");
        }
        region->writes[at] = now;
        region->initialised[at] = 1;
    }
}

void wait_for_previous(uint line) {
    const ThreadState &t = state->threads[context.thread.index];
    if (t.touched != nullptr) {
        fault("\"%s\" is %s before wait_for_previous in line %u, %s", t.touched->name,
            t.touched_by_write ? "written" : "read", line,
            t.touched_by_write ? "when the dispatch before may still use it"
                               : "and another command wrote it, which may not be done");
    }
}

void copy_async_start(const MarlinRegion *to, unsigned char *at, const MarlinRegion *from,
    const unsigned char *source, uint line) {
    State &s = *state;
    uint64_t offset = uint64_t(at - to->base);
    uint64_t source_offset = uint64_t(source - from->base);
    if (offset >= to->bytes || to->bytes - offset < 16 || (uintptr_t(at) & 15) != 0) {
        fault_access(to, at, 16, 16, true);
    }
    if (source_offset >= from->bytes || from->bytes - source_offset < 16
        || (uintptr_t(source) & 15) != 0) {
        fault_access(from, source, 16, 16, false);
    }
    if (from->checked) {
        check_read(from, source_offset, 16);
    }
    check_write(to, offset, 16);
    // Until it has arrived there is nothing to read.
    memset(to->initialised + offset, 0, 16);
    ThreadState &t = s.threads[context.thread.index];
    if (t.pending == MAX_PENDING_COPIES) {
        fault("copy_async in line %u: %u copies of this thread are pending already", line,
            MAX_PENDING_COPIES);
    }
    PendingCopy &copy = s.copies[context.thread.index][(t.first_pending + t.pending) % MAX_PENDING_COPIES];
    t.pending++;
    copy.region = to;
    copy.offset = offset;
    copy.number = t.commits;
    memcpy(copy.data, source, 16);
}

void copy_async_close() { state->threads[context.thread.index].commits++; }

void copy_async_finish(uint pending) {
    State &s = *state;
    ThreadState &t = s.threads[context.thread.index];
    while (t.pending > 0) {
        const PendingCopy &copy = s.copies[context.thread.index][t.first_pending];
        if (copy.number + pending >= t.commits) {
            return;
        }
        check_write(copy.region, copy.offset, 16);
        memcpy(copy.region->base + copy.offset, copy.data, 16);
        t.first_pending = (t.first_pending + 1) % MAX_PENDING_COPIES;
        t.pending--;
    }
}

} // namespace marlin
