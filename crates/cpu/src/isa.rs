//! Which instruction set runs, and the table of its kernels.

use std::fmt;
use std::str::FromStr;

use marlin_formats::tile::TileLayout;

use crate::kernels::attention::{self, AttendCall, KvElement, KvF16, KvF32, KvHead, KvQ8};
use crate::kernels::float::{self, Bf16, E4m3, F16, F32, FloatCall};
use crate::kernels::quantise::{self, Bias, RowOut};
use crate::kernels::tile::{self, Bits2, Bits3, Bits4, Bits5, Bits6, Bits8, Table4, TileCall};
use crate::kernels::{ceiling, elementwise};
use crate::simd::Simd;

/// An instruction set that the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// Plain Rust.
    Portable,
    /// AVX2, FMA and F16C (x86-64).
    Avx2,
    /// AVX-512 F, BW, DQ, VL and VNNI (x86-64).
    Avx512Vnni,
    /// The same with 8-bit matrix units for prompts: AMX INT8 (x86-64, Linux).
    Amx,
    /// NEON with dot products (AArch64).
    Neon,
    /// NEON with dot products and 8-bit matrix products (AArch64).
    NeonI8mm,
}

/// The environment variable that overrides the choice: `MARLIN_CPU=avx2`.
pub const ISA_VARIABLE: &str = "MARLIN_CPU";

impl Isa {
    /// All of them, best first.
    pub const ALL: [Self; 6] =
        [Self::Amx, Self::Avx512Vnni, Self::Avx2, Self::NeonI8mm, Self::Neon, Self::Portable];

    /// The name that [`ISA_VARIABLE`] takes.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512Vnni => "avx512",
            Self::Amx => "amx",
            Self::Neon => "neon",
            Self::NeonI8mm => "neon-i8mm",
        }
    }

    /// Whether this processor has it.
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
                    && is_x86_feature_detected!("f16c")
                    && is_x86_feature_detected!("fma")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Amx => Self::Avx512Vnni.is_available() && crate::kernels::amx::is_available(),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => std::arch::is_aarch64_feature_detected!("dotprod"),
            #[cfg(target_arch = "aarch64")]
            Self::NeonI8mm => {
                std::arch::is_aarch64_feature_detected!("dotprod")
                    && std::arch::is_aarch64_feature_detected!("i8mm")
            }
            #[allow(unreachable_patterns)]
            _ => false,
        }
    }

    /// The best that this processor has.
    pub fn best() -> Self {
        Self::ALL.into_iter().find(|isa| isa.is_available()).unwrap_or(Self::Portable)
    }

    /// What [`ISA_VARIABLE`] asks for, or else the best.
    ///
    /// # Errors
    /// If the variable names no instruction set, or one that this processor lacks.
    pub fn from_environment() -> Result<Self, IsaError> {
        match std::env::var(ISA_VARIABLE) {
            Ok(name) if !name.is_empty() => {
                let isa: Self = name.parse()?;
                if isa.is_available() { Ok(isa) } else { Err(IsaError::Unavailable(isa)) }
            }
            _ => Ok(Self::best()),
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Isa {
    type Err = IsaError;

    fn from_str(name: &str) -> Result<Self, IsaError> {
        Self::ALL
            .into_iter()
            .find(|isa| isa.name() == name)
            .ok_or_else(|| IsaError::Unknown(name.to_owned()))
    }
}

/// Why an instruction set cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IsaError {
    /// No such name.
    #[error(
        "unknown instruction set `{0}`, expected amx, avx512, avx2, neon, neon-i8mm or portable"
    )]
    Unknown(String),
    /// The processor lacks it.
    #[error("this processor does not have the instruction set `{0}`")]
    Unavailable(Isa),
}

/// How the codes of a tile are stored; see [`tile::Codes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CodeKind {
    Bits2,
    Bits3,
    Bits4,
    Bits5,
    Bits6,
    Bits8,
    Table4,
}

impl CodeKind {
    pub(crate) fn of(layout: &TileLayout) -> Self {
        match layout.bits {
            2 => Self::Bits2,
            3 => Self::Bits3,
            4 if layout.table.is_some() => Self::Table4,
            4 => Self::Bits4,
            5 => Self::Bits5,
            6 => Self::Bits6,
            _ => Self::Bits8,
        }
    }
}

/// How a float weight is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FloatKind {
    F32,
    F16,
    Bf16,
    E4m3,
}

pub(crate) type TileKernel = unsafe fn(&TileCall<'_>);
pub(crate) type FloatKernel = unsafe fn(&FloatCall);
pub(crate) type AppendKernel = unsafe fn(&KvHead, usize, *const f32, *const f32);
pub(crate) type AttendKernel = unsafe fn(&AttendCall);
/// Does a number of rounds of multiply-adds and returns how many those were.
pub(crate) type MultiplyKernel = unsafe fn(u64) -> u64;

/// The kernels of one instruction set.
///
/// # Safety of the functions
/// A table is only handed out by [`kernels`] when the processor has the instruction set;
/// what remains for callers are the pointers, as each kernel documents.
pub(crate) struct Kernels {
    pub(crate) isa: Isa,
    /// Whether products with 8-bit codes take them as signed; see [`Simd::SIGNED_8BIT`].
    pub(crate) signed_8bit: bool,
    /// For a width of codes, groups of 16 or not, and minimums or not.
    pub(crate) tile: fn(CodeKind, bool, bool) -> TileKernel,
    pub(crate) float: fn(FloatKind) -> FloatKernel,
    pub(crate) quantise_row: unsafe fn(*const f32, usize, &[Bias], &RowOut),
    pub(crate) rms_norm: unsafe fn(*const f32, *const f32, f32, f32, *mut f32, usize),
    pub(crate) gate_silu: unsafe fn(*const f32, *const f32, *mut f32, usize),
    pub(crate) gate_gelu: unsafe fn(*const f32, *const f32, *mut f32, usize),
    pub(crate) axpy: unsafe fn(f32, *const f32, *mut f32, usize),
    pub(crate) arg_max: unsafe fn(*const f32, usize) -> usize,
    pub(crate) max: unsafe fn(*const f32, usize) -> f32,
    pub(crate) sum_exp: unsafe fn(*const f32, usize, f32, f32) -> f32,
    pub(crate) append: [AppendKernel; 3],
    pub(crate) attend: [AttendKernel; 3],
    pub(crate) read: unsafe fn(*const u8, usize, usize) -> u64,
    pub(crate) multiply: MultiplyKernel,
    /// The same for a matrix unit, where tile kernels use one.
    pub(crate) multiply_matrix: Option<MultiplyKernel>,
}

impl Kernels {
    /// Whether tile kernels use a matrix unit, for which they want room for unpacked codes.
    pub(crate) fn has_matrix_unit(&self) -> bool {
        self.multiply_matrix.is_some()
    }
}

/// `tile`, which finds the instance of a kernel of tiles.
macro_rules! tile_kernels {
    ($kernel:ident) => {
        fn tile_of<C: tile::Codes>(halves: bool, min: bool) -> TileKernel {
            match (halves, min) {
                (false, false) => $kernel::<C, false, false>,
                (false, true) => $kernel::<C, false, true>,
                (true, false) => $kernel::<C, true, false>,
                (true, true) => $kernel::<C, true, true>,
            }
        }

        fn tile(kind: CodeKind, halves: bool, min: bool) -> TileKernel {
            match kind {
                CodeKind::Bits2 => tile_of::<Bits2>(halves, min),
                CodeKind::Bits3 => tile_of::<Bits3>(halves, min),
                CodeKind::Bits4 => tile_of::<Bits4>(halves, min),
                CodeKind::Bits5 => tile_of::<Bits5>(halves, min),
                CodeKind::Bits6 => tile_of::<Bits6>(halves, min),
                CodeKind::Bits8 => tile_of::<Bits8>(halves, min),
                CodeKind::Table4 => tile_of::<Table4>(halves, min),
            }
        }
    };
}

/// Compiles every kernel for one implementation of [`Simd`], with its features enabled.
macro_rules! table {
    ($(#[$features:meta])* $module:ident, $simd:ty, $isa:expr) => {
        #[allow(clippy::undocumented_unsafe_blocks, reason = "each function forwards its contract")]
        mod $module {
            use super::*;

            type S = $simd;

            $(#[$features])*
            unsafe fn tile_kernel<C: tile::Codes, const HALVES: bool, const MIN: bool>(
                call: &TileCall<'_>,
            ) {
                unsafe { tile::tile::<S, C, HALVES, MIN>(call) }
            }

            tile_kernels!(tile_kernel);

            $(#[$features])*
            unsafe fn float_kernel<E: float::Element>(call: &FloatCall) {
                unsafe { float::rows::<S, E>(call) }
            }
            $(#[$features])*
            unsafe fn quantise_row(x: *const f32, cols: usize, biases: &[Bias], out: &RowOut) {
                unsafe { quantise::quantise_row::<S>(x, cols, biases, out) }
            }
            $(#[$features])*
            unsafe fn rms_norm(
                x: *const f32, weight: *const f32, eps: f32, offset: f32, out: *mut f32, n: usize,
            ) {
                unsafe { elementwise::rms_norm::<S>(x, weight, eps, offset, out, n) }
            }
            $(#[$features])*
            unsafe fn gate<const GELU: bool>(
                gate: *const f32, up: *const f32, out: *mut f32, n: usize,
            ) {
                unsafe { elementwise::gate::<S, GELU>(gate, up, out, n) }
            }
            $(#[$features])*
            unsafe fn axpy(a: f32, x: *const f32, y: *mut f32, n: usize) {
                unsafe { elementwise::axpy::<S>(a, x, y, n) }
            }
            $(#[$features])*
            unsafe fn arg_max(x: *const f32, n: usize) -> usize {
                unsafe { elementwise::arg_max::<S>(x, n) }
            }
            $(#[$features])*
            unsafe fn max(x: *const f32, n: usize) -> f32 {
                unsafe { elementwise::max::<S>(x, n) }
            }
            $(#[$features])*
            unsafe fn sum_exp(x: *const f32, n: usize, max: f32, scale: f32) -> f32 {
                unsafe { elementwise::sum_exp::<S>(x, n, max, scale) }
            }
            $(#[$features])*
            unsafe fn append<E: KvElement>(
                head: &KvHead, position: usize, key: *const f32, value: *const f32,
            ) {
                unsafe { attention::append::<S, E>(head, position, key, value) }
            }
            $(#[$features])*
            unsafe fn attend<E: KvElement>(call: &AttendCall) {
                unsafe { attention::attend::<S, E>(call) }
            }
            $(#[$features])*
            unsafe fn read(p: *const u8, bytes: usize, ahead: usize) -> u64 {
                unsafe { ceiling::read::<S>(p, bytes, ahead) }
            }
            $(#[$features])*
            unsafe fn multiply(rounds: u64) -> u64 {
                unsafe { ceiling::multiply::<S>(rounds) }
            }

            fn float(kind: FloatKind) -> FloatKernel {
                match kind {
                    FloatKind::F32 => float_kernel::<F32>,
                    FloatKind::F16 => float_kernel::<F16>,
                    FloatKind::Bf16 => float_kernel::<Bf16>,
                    FloatKind::E4m3 => float_kernel::<E4m3>,
                }
            }

            pub(super) static KERNELS: Kernels = TABLE;

            pub(super) const TABLE: Kernels = Kernels {
                isa: $isa,
                signed_8bit: <S as Simd>::SIGNED_8BIT,
                tile,
                float,
                quantise_row,
                rms_norm,
                gate_silu: gate::<false>,
                gate_gelu: gate::<true>,
                axpy,
                arg_max,
                max,
                sum_exp,
                append: [append::<KvF32>, append::<KvF16>, append::<KvQ8>],
                attend: [attend::<KvF32>, attend::<KvF16>, attend::<KvQ8>],
                read,
                multiply,
                multiply_matrix: None,
            };
        }
    };
}

table!(portable, crate::simd::portable::Portable, Isa::Portable);
#[cfg(target_arch = "x86_64")]
table!(
    #[target_feature(enable = "avx2,fma,f16c")]
    avx2,
    crate::simd::avx2::Avx2,
    Isa::Avx2
);
#[cfg(target_arch = "x86_64")]
table!(
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    avx512,
    crate::simd::avx512::Avx512,
    Isa::Avx512Vnni
);

/// AVX-512's kernels, but for the products of prompts.
#[cfg(target_arch = "x86_64")]
#[allow(clippy::undocumented_unsafe_blocks, reason = "each function forwards its contract")]
mod amx {
    use super::*;
    use crate::kernels::amx;

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    unsafe fn tile_kernel<C: tile::Codes, const HALVES: bool, const MIN: bool>(
        call: &TileCall<'_>,
    ) {
        unsafe { amx::tile::<C, HALVES, MIN>(call) }
    }

    tile_kernels!(tile_kernel);

    pub(super) static KERNELS: Kernels =
        Kernels { isa: Isa::Amx, multiply_matrix: Some(amx::ceiling), tile, ..avx512::TABLE };
}

#[cfg(target_arch = "aarch64")]
table!(
    #[target_feature(enable = "neon,dotprod")]
    neon,
    crate::simd::neon::Neon<false>,
    Isa::Neon
);
#[cfg(target_arch = "aarch64")]
table!(
    #[target_feature(enable = "neon,dotprod,i8mm")]
    neon_i8mm,
    crate::simd::neon::Neon<true>,
    Isa::NeonI8mm
);

/// The kernels of `isa`.
///
/// # Errors
/// If this processor lacks it.
pub(crate) fn kernels(isa: Isa) -> Result<&'static Kernels, IsaError> {
    if !isa.is_available() {
        return Err(IsaError::Unavailable(isa));
    }
    Ok(match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => &avx2::KERNELS,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni => &avx512::KERNELS,
        #[cfg(target_arch = "x86_64")]
        Isa::Amx => &amx::KERNELS,
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => &neon::KERNELS,
        #[cfg(target_arch = "aarch64")]
        Isa::NeonI8mm => &neon_i8mm::KERNELS,
        _ => &portable::KERNELS,
    })
}
