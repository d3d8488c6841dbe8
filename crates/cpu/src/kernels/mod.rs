//! The kernels, each written once over [`Simd`](crate::simd::Simd).

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
pub(crate) mod attention;
pub(crate) mod ceiling;
pub(crate) mod elementwise;
pub(crate) mod float;
pub(crate) mod prefetch;
pub(crate) mod quantise;
pub(crate) mod tile;
