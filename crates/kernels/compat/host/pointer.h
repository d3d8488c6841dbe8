// Pointers that know their bounds, and references that tell a read from a write.
#pragma once

#include "execution.h"

namespace marlin {

struct Device {};
struct Threadgroup {};

template<class T> struct Plain { typedef T Type; };
template<class T> struct Plain<const T> { typedef T Type; };
template<class A, class B> struct Same { static constexpr bool value = false; };
template<class A> struct Same<A, A> { static constexpr bool value = true; };
template<bool, class T = int> struct If {};
template<class T> struct If<true, T> { typedef T Type; };

template<class T> struct Number { static constexpr bool value = false; };
#define MARLIN_NUMBER(T) template<> struct Number<T> { static constexpr bool value = true; };
MARLIN_NUMBER(bool) MARLIN_NUMBER(uchar) MARLIN_NUMBER(char) MARLIN_NUMBER(signed char)
MARLIN_NUMBER(ushort) MARLIN_NUMBER(short) MARLIN_NUMBER(uint) MARLIN_NUMBER(int)
MARLIN_NUMBER(ulong) MARLIN_NUMBER(long) MARLIN_NUMBER(float)
#undef MARLIN_NUMBER

static inline uint64_t offset_in(const MarlinRegion *region, const unsigned char *at, uint size,
    uint align, bool write) {
    uint64_t offset = uint64_t(at - region->base);
    bool inside = offset < region->bytes && region->bytes - offset >= size;
    if (__builtin_expect(!inside || (uintptr_t(at) & (align - 1)) != 0, 0)) {
        fault_access(region, at, size, align, write);
    }
    return offset;
}

template<class T> static inline T load(const MarlinRegion *region, const unsigned char *at) {
    uint64_t offset = offset_in(region, at, sizeof(T), alignof(T), false);
    if (region->checked) {
        check_read(region, offset, sizeof(T));
    }
    T value;
    __builtin_memcpy(&value, at, sizeof(T));
    return value;
}

template<class T>
static inline void store(const MarlinRegion *region, unsigned char *at, const T &value) {
    uint64_t offset = offset_in(region, at, sizeof(T), alignof(T), true);
    check_write(region, offset, sizeof(T));
    __builtin_memcpy(at, &value, sizeof(T));
}

template<class T, class Space> struct Pointer;

// What an element's reference and its members have in common: where it is.
template<class T, class Space> struct Place {
    unsigned char *at;
    const MarlinRegion *region;
};

// Reading, writing and changing what stands at a place. `Self` finds the place.
template<class Self, class T, class Space> struct Access {
    typedef typename Plain<T>::Type Value;

    operator Value() const { return get(); }
    // `float(p[i])` of a half: a conversion that the value has, asked for by name.
    template<class U,
        typename If<Number<U>::value && !Same<U, Value>::value>::Type = 0>
    explicit operator U() const { return U(get()); }

    Pointer<T, Space> operator&() const { return Pointer<T, Space>{place().at, place().region}; }

protected:
    Value get() const { return load<Value>(place().region, place().at); }
    void set(const Value &value) const {
        static_assert(!Same<T, const Value>::value, "an element of a const pointer is written");
        store<Value>(place().region, place().at, value);
    }
    Place<T, Space> place() const { return static_cast<const Self *>(this)->place(); }
};

#define MARLIN_ASSIGNMENTS(Self) \
    const Self &operator=(const Value &value) const { this->set(value); return *this; } \
    const Self &operator=(const Self &o) const { this->set(Value(o)); return *this; } \
    template<class U> const Self &operator+=(const U &u) const { \
        Value v = this->get(); v += u; this->set(v); return *this; \
    } \
    template<class U> const Self &operator-=(const U &u) const { \
        Value v = this->get(); v -= u; this->set(v); return *this; \
    } \
    template<class U> const Self &operator*=(const U &u) const { \
        Value v = this->get(); v *= u; this->set(v); return *this; \
    } \
    template<class U> const Self &operator/=(const U &u) const { \
        Value v = this->get(); v /= u; this->set(v); return *this; \
    } \
    template<class U> const Self &operator|=(const U &u) const { \
        Value v = this->get(); v |= u; this->set(v); return *this; \
    } \
    template<class U> const Self &operator&=(const U &u) const { \
        Value v = this->get(); v &= u; this->set(v); return *this; \
    } \
    template<class U> const Self &operator^=(const U &u) const { \
        Value v = this->get(); v ^= u; this->set(v); return *this; \
    } \
    template<class U> const Self &operator<<=(const U &u) const { \
        Value v = this->get(); v <<= u; this->set(v); return *this; \
    } \
    template<class U> const Self &operator>>=(const U &u) const { \
        Value v = this->get(); v >>= u; this->set(v); return *this; \
    } \
    const Self &operator++() const { Value v = this->get(); ++v; this->set(v); return *this; } \
    const Self &operator--() const { Value v = this->get(); --v; this->set(v); return *this; } \
    Value operator++(int) const { Value v = this->get(); Value old = v; ++v; this->set(v); return old; } \
    Value operator--(int) const { Value v = this->get(); Value old = v; --v; this->set(v); return old; }

// A member of a vector element. It lies in a union with the element's place and adds its own offset.
template<class T, class Space, uint index>
struct Component : Access<Component<T, Space, index>, T, Space> {
    typedef typename Plain<T>::Type Value;
    Place<T, Space> here;

    Place<T, Space> place() const {
        return Place<T, Space>{here.at + index * sizeof(T), here.region};
    }
    MARLIN_ASSIGNMENTS(Component)
};

template<class T> struct Lanes { static constexpr uint count = 1; typedef T Scalar; };
#define MARLIN_LANES(V, T, n) \
    template<> struct Lanes<V> { static constexpr uint count = n; typedef T Scalar; }; \
    template<> struct Lanes<const V> { static constexpr uint count = n; typedef const T Scalar; };
MARLIN_LANES(uchar2, uchar, 2) MARLIN_LANES(uchar4, uchar, 4)
MARLIN_LANES(ushort2, ushort, 2) MARLIN_LANES(ushort4, ushort, 4)
MARLIN_LANES(uint2, uint, 2) MARLIN_LANES(uint4, uint, 4)
MARLIN_LANES(int2, int, 2) MARLIN_LANES(int4, int, 4)
MARLIN_LANES(half2, half, 2) MARLIN_LANES(half4, half, 4)
MARLIN_LANES(float2, float, 2) MARLIN_LANES(float4, float, 4)
#undef MARLIN_LANES

// `p[i]` and `*p`. Reads when it is used as a value; `auto` would name this and not the value, so the
// build refuses `auto` in kernels.
template<class T, class Space, uint lanes = Lanes<T>::count>
struct Reference : Access<Reference<T, Space, lanes>, T, Space> {
    typedef typename Plain<T>::Type Value;
    Place<T, Space> here;

    explicit Reference(Place<T, Space> p) : here(p) {}
    Place<T, Space> place() const { return here; }
    MARLIN_ASSIGNMENTS(Reference)
};

template<class T, class Space>
struct Reference<T, Space, 2> : Access<Reference<T, Space, 2>, T, Space> {
    typedef typename Plain<T>::Type Value;
    typedef typename Lanes<T>::Scalar Scalar;
    union {
        Place<T, Space> here;
        Component<Scalar, Space, 0> x;
        Component<Scalar, Space, 1> y;
    };

    explicit Reference(Place<T, Space> p) : here(p) {}
    Reference(const Reference &o) : here(o.here) {}
    Place<T, Space> place() const { return here; }
    MARLIN_ASSIGNMENTS(Reference)
};

template<class T, class Space>
struct Reference<T, Space, 4> : Access<Reference<T, Space, 4>, T, Space> {
    typedef typename Plain<T>::Type Value;
    typedef typename Lanes<T>::Scalar Scalar;
    union {
        Place<T, Space> here;
        Component<Scalar, Space, 0> x;
        Component<Scalar, Space, 1> y;
        Component<Scalar, Space, 2> z;
        Component<Scalar, Space, 3> w;
    };

    explicit Reference(Place<T, Space> p) : here(p) {}
    Reference(const Reference &o) : here(o.here) {}
    Place<T, Space> place() const { return here; }
    MARLIN_ASSIGNMENTS(Reference)
};
#undef MARLIN_ASSIGNMENTS

// What `p->member` reads: a copy of the element.
template<class T> struct Copied {
    T value;
    const T *operator->() const { return &value; }
};

template<class T, class Space> struct Pointer {
    typedef typename Plain<T>::Type Value;
    unsigned char *at;
    const MarlinRegion *region;

    Reference<T, Space> operator[](long i) const {
        return Reference<T, Space>(Place<T, Space>{at + i * long(sizeof(T)), region});
    }
    Reference<T, Space> operator*() const { return Reference<T, Space>(Place<T, Space>{at, region}); }
    Copied<Value> operator->() const { return Copied<Value>{load<Value>(region, at)}; }
    operator Pointer<const T, Space>() const { return Pointer<const T, Space>{at, region}; }

    Pointer operator+(long n) const { return Pointer{at + n * long(sizeof(T)), region}; }
    Pointer operator-(long n) const { return Pointer{at - n * long(sizeof(T)), region}; }
    friend Pointer operator+(long n, Pointer p) { return p + n; }
    Pointer &operator+=(long n) { return *this = *this + n; }
    Pointer &operator-=(long n) { return *this = *this - n; }
    Pointer &operator++() { return *this += 1; }
    Pointer &operator--() { return *this -= 1; }
    Pointer operator++(int) { Pointer p = *this; *this += 1; return p; }
    Pointer operator--(int) { Pointer p = *this; *this -= 1; return p; }
    long operator-(Pointer o) const { return (at - o.at) / long(sizeof(T)); }
    bool operator==(Pointer o) const { return at == o.at; }
    bool operator!=(Pointer o) const { return at != o.at; }
    bool operator<(Pointer o) const { return at < o.at; }
    bool operator<=(Pointer o) const { return at <= o.at; }
    bool operator>(Pointer o) const { return at > o.at; }
    bool operator>=(Pointer o) const { return at >= o.at; }
};

// `const` elements have no second conversion to themselves.
template<class T, class Space> struct Pointer<const T, Space> {
    typedef T Value;
    unsigned char *at;
    const MarlinRegion *region;

    Reference<const T, Space> operator[](long i) const {
        return Reference<const T, Space>(Place<const T, Space>{at + i * long(sizeof(T)), region});
    }
    Reference<const T, Space> operator*() const {
        return Reference<const T, Space>(Place<const T, Space>{at, region});
    }
    Copied<T> operator->() const { return Copied<T>{load<T>(region, at)}; }

    Pointer operator+(long n) const { return Pointer{at + n * long(sizeof(T)), region}; }
    Pointer operator-(long n) const { return Pointer{at - n * long(sizeof(T)), region}; }
    friend Pointer operator+(long n, Pointer p) { return p + n; }
    Pointer &operator+=(long n) { return *this = *this + n; }
    Pointer &operator-=(long n) { return *this = *this - n; }
    Pointer &operator++() { return *this += 1; }
    Pointer &operator--() { return *this -= 1; }
    Pointer operator++(int) { Pointer p = *this; *this += 1; return p; }
    Pointer operator--(int) { Pointer p = *this; *this -= 1; return p; }
    long operator-(Pointer o) const { return (at - o.at) / long(sizeof(T)); }
    bool operator==(Pointer o) const { return at == o.at; }
    bool operator!=(Pointer o) const { return at != o.at; }
    bool operator<(Pointer o) const { return at < o.at; }
    bool operator<=(Pointer o) const { return at <= o.at; }
    bool operator>(Pointer o) const { return at > o.at; }
    bool operator>=(Pointer o) const { return at >= o.at; }
};

template<class T> static inline Pointer<T, Device> as_device(Pointer<T, Device> p) { return p; }
template<class T> static inline Pointer<T, Threadgroup> as_threadgroup(Pointer<T, Threadgroup> p) {
    return p;
}
template<class U, class T, class Space> static inline Pointer<U, Space> cast(Pointer<T, Space> p) {
    return Pointer<U, Space>{p.at, p.region};
}

template<class T>
static inline Pointer<T, Threadgroup> threadgroup_array(uint64_t n, const char *name, uint line) {
    const MarlinRegion *region = threadgroup_region(n * sizeof(T), alignof(T), name, line);
    return Pointer<T, Threadgroup>{region->base, region};
}
template<class T> static inline Pointer<T, Threadgroup> dynamic_threadgroup() {
    const MarlinRegion *region = dynamic_region();
    return Pointer<T, Threadgroup>{region->base, region};
}
template<class T> static inline Pointer<T, Device> bound(uint index) {
    const MarlinRegion *region = &context.launch->regions[index];
    return Pointer<T, Device>{region->base, region};
}
static inline void set_constant(uint &constant, uint32_t bits) { constant = bits; }
static inline void set_constant(int &constant, uint32_t bits) { constant = int(bits); }
static inline void set_constant(float &constant, uint32_t bits) { constant = as_float(bits); }
static inline void set_constant(bool &constant, uint32_t bits) { constant = bits != 0; }
template<class T> static inline const T &inlined(uint index) {
    return *static_cast<const T *>(context.launch->inlines[index]);
}

} // namespace marlin

template<class Space> static inline float load_float(marlin::Pointer<const float, Space> p, long i) {
    return p[i];
}
template<class Space> static inline float load_float(marlin::Pointer<float, Space> p, long i) {
    return p[i];
}
template<class Space> static inline float load_float(marlin::Pointer<const half, Space> p, long i) {
    half h = p[i];
    return float(h);
}
template<class Space> static inline float load_float(marlin::Pointer<half, Space> p, long i) {
    half h = p[i];
    return float(h);
}
template<class Space> static inline float load_float(marlin::Pointer<const bf16, Space> p, long i) {
    return float_from_bf16(p[i]);
}
template<class Space> static inline float load_float(marlin::Pointer<bf16, Space> p, long i) {
    return float_from_bf16(p[i]);
}
template<class Space> static inline void store_float(marlin::Pointer<float, Space> p, long i, float v) {
    p[i] = v;
}
template<class Space> static inline void store_float(marlin::Pointer<half, Space> p, long i, float v) {
    p[i] = half(v);
}
template<class Space> static inline void store_float(marlin::Pointer<bf16, Space> p, long i, float v) {
    p[i] = bf16_from_float(v);
}

template<class T, class Space>
static inline typename marlin::Plain<T>::Type load_streaming(marlin::Pointer<T, Space> p) {
    return *p;
}
template<class T, class Space>
static inline typename marlin::Plain<T>::Type load_constant(marlin::Pointer<T, Space> p) {
    return *p;
}
