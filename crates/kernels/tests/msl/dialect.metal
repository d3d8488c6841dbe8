ELEMENTS(T, half, bf16, float);
struct XArgs { uint n; ulong m; float f[4]; };
SPECIALISE(uint, WIDE, 0);
SPECIALISE(bool, FLAG, 1);
SPECIALISE(float, SCALE, 2);
CONSTANT_TABLE(float, table, 4) = {0.0f, 0.5f, 1.0f, 1.5f};
static inline float helper(DEVICE(const half) p, THREAD(float) out) { *out = load_float(p, 0u); return *out; }
REQUIRES_SIMD_WIDTH(32)
kernel void everything(IN(T) x [[buffer(0)]], IN_OPTIONAL(float) w [[buffer(1)]], OUT(T) y [[buffer(2)]], INOUT(atomic_uint) c [[buffer(3)]], INLINE(XArgs) args [[buffer(4)]],
  IN(uint4) q [[buffer(5)]], IN(half) h [[buffer(6)]], INOUT(uint) u [[buffer(7)]],
  THREADGROUP(half) dyn [[threadgroup(0)]], uint3 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]], uint tid [[thread_index_in_threadgroup]]) {
  THREADGROUP_ARRAY(float, partial, 32);
  THREADGROUP_ARRAY(bf16, pb, 32);
  THREADGROUP_ARRAY(atomic_uint, ta, 2);
  THREADGROUP_ARRAY(uint4, tq, 64);
  store_float(pb, tid, load_float(x, tid));
  float sum = 0.0f;
  UNROLL
  for (uint i = 0; i < 4u; i++) { sum = fma(table[i], args.f[i], sum); }
  if (FLAG) { sum += w[0]; }
  for (uint i = 0; i < WIDE; i++) sum *= SCALE;
  uint4 v = load_streaming(q + tid);
  half2 a = as_half2(v.x); half2 b = as_half2(v.y);
  half2 d = half2_fma(a, b, make_half2(half(1.0f), half(sum)));
  float2 f2 = float2_from_half2(d);
  f2 = f2 * make_float2(1.0f, 2.0f) + f2;
  copy_async(tq + tid, q + tid); copy_async_commit(); copy_async_wait<0>();
  barrier_threadgroup(); barrier_device(); barrier_simdgroup();
  sum += simd_sum(sum) + simd_shuffle(sum, 3u) + simd_shuffle_xor(sum, 1u) + simd_shuffle_down(sum, 2u) + simd_broadcast(sum, 0u);
  d = simd_shuffle_xor(d, 4u);
  ulong m = simd_ballot(sum > 0.0f);
  uint pre = simd_prefix_exclusive_sum(uint(m & 1ul));
  uint old = atomic_add(c, pre); old += atomic_load(c); atomic_store(ta, old); old += atomic_max(ta + 1, 3u);
  atomic_exchange(c, 1u);
  if (simd_any(sum > 1.0f) || simd_all(FLAG)) sum = exp(sum) + fast_exp(sum) + exp2(sum) + tanh(sum) + rint(sum) + rsqrt(sum) + pow(sum, 2.0f) + max(sum, 0.0f) + abs(sum) + clamp(sum, 0.0f, 1.0f);
  uint z = popcount(old) + clz(old) + mulhi(old, 5u) + select(1u, 2u, FLAG) + min(old, 3u);
  int dd = dot4_i8(int(v.x), int(v.y), 0);
  float loc[4]; loc[0] = helper(h, &loc[1]);
  DEVICE(const uint) words = device_cast(const uint, q);
  THREADGROUP(const half) th = threadgroup_cast(const half, partial);
  partial[tid] = sum + f2.x + float(z) + float(dd) + loc[0] + float(words[0]) + float(th[0]) + float(dyn[0]);
  bf16 bb = bf16_from_float(sum); pb[0] = bb; sum += float_from_bf16(pb[1]);
  u[0] = as_uint(d) + as_uint(sum) + uint(as_ushort(d.x)) + uint(as_half(ushort(3)) > half(0.0f)) + uint(lane) + uint(group.x) + uint(isnan(sum)) + uint(as_int(sum));
  simdgroup_half8x8 ma, mb; simdgroup_float8x8 mc = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  simdgroup_load(ma, dyn, 8); simdgroup_load(mb, h, 16, ulong2(0, 0), true);
  simdgroup_multiply_accumulate(mc, ma, mb, mc);
  mc.thread_elements()[0] = 1.0f; sum += mc.thread_elements().y;
  simdgroup_store(mc, partial, 8);
  store_float(y, tid, sum);
}
