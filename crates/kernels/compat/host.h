// The dialect of docs/kernels.md on the host: every thread is a fiber, every pointer is checked.
//
// What a name means is in docs/kernels.md; how it is done here:
//
//   host/scalar.h     half and bf16 with correctly rounded arithmetic, bit casts
//   host/vector.h     vectors
//   host/execution.h  what the running thread knows; the interface between this code and Rust's
//   host/pointer.h    DEVICE, THREADGROUP: pointers that know their bounds; elements as references
//   host/simd.h       SIMD-group operations, barriers, atomics, asynchronous copies
//   host/math.h       mathematics
//   host/*.cpp        fibers and access checks, compiled once for all kernels
//
// No header of the C++ library is included: a kernel would see its names, and each of the many small
// translation units would compile it again.
#pragma once

#define MARLIN_TARGET_HOST 1

#include "host/scalar.h"
#include "host/vector.h"
#include "host/execution.h"
#include "host/pointer.h"
#include "host/simd.h"
#include "host/math.h"

// Signatures. A kernel is an ordinary function; the generated wrapper calls it once for each thread.
#define kernel static
#define IN(T) marlin::Pointer<const T, marlin::Device>
#define IN_OPTIONAL(T) marlin::Pointer<const T, marlin::Device>
#define OUT(T) marlin::Pointer<T, marlin::Device>
#define INOUT(T) marlin::Pointer<T, marlin::Device>
#define INOUT_OPTIONAL(T) marlin::Pointer<T, marlin::Device>
#define INLINE(T) const T &
#define DEVICE(T) marlin::Pointer<T, marlin::Device>
#define THREADGROUP(T) marlin::Pointer<T, marlin::Threadgroup>
#define THREAD(T) T *
#define ELEMENTS(...) static_assert(true, "")
#define REQUIRES_SIMD_WIDTH(n)
#define CONSTANT_TABLE(T, name, n) static const T name[n]
#define UNROLL
#define ROLLED

// Set by the launcher before the threads start. One for each OS thread, since tests launch
// the same kernel side by side with different constants.
#define SPECIALISE(type, name, index) static thread_local type name

// One array for the threadgroup: the first thread to come here makes it, the others find it by its order.
#define THREADGROUP_ARRAY(T, name, n) \
    const marlin::Pointer<T, marlin::Threadgroup> name = \
        marlin::threadgroup_array<T>(n, #name, __LINE__)

#define device_cast(T, p) (marlin::cast<T>(marlin::as_device(p)))
#define threadgroup_cast(T, p) (marlin::cast<T>(marlin::as_threadgroup(p)))
