//! The kernels, each written once over [`Simd`](crate::simd::Simd).

pub(crate) mod attention;
pub(crate) mod ceiling;
pub(crate) mod elementwise;
pub(crate) mod float;
pub(crate) mod quantise;
#[cfg_attr(
    not(target_arch = "x86_64"),
    allow(dead_code, reason = "only AVX-512 has faster products of 16-bit integers")
)]
pub(crate) mod short_attention;
pub(crate) mod tile;
