//! The exact integer view of a quantised matrix, for kernels that multiply integers.

use half::f16;

use crate::{Code, Format, GgmlType, Group, GroupFormat, ScaleType, fp4};

/// How a format's values follow from unsigned integer codes: `value = scale × V(code) + min`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Affine {
    /// Width of a code: 2, 3, 4, 5, 6 or 8.
    pub bits: u32,
    /// Columns that share a scale; `None` where the whole row does. A row whose length it does not
    /// divide (only in [`Group::Block`]) ends with a shorter group.
    pub group: Option<usize>,
    /// What a code stands for at scale 1.
    pub values: Values,
    /// What the scales are stored as.
    pub scale: ScaleStorage,
    /// Whether groups have minimums: a stored one, or −scale × zero point.
    pub has_min: bool,
}

/// What a code stands for at scale 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Values {
    /// `code − offset`.
    Offset(i32),
    /// `table[code]`; for E2M1 twice its value, with the scales in [`AffineRow`] halved
    /// accordingly.
    Table(&'static [i8; 16]),
}

impl Values {
    /// What `code` stands for.
    #[inline]
    pub fn of(&self, code: u8) -> i32 {
        match self {
            Values::Offset(offset) => i32::from(code) - offset,
            Values::Table(table) => i32::from(table[usize::from(code & 15)]),
        }
    }
}

/// What a format's scales are stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScaleStorage {
    /// One f16 per group.
    F16,
    /// One f32 per group.
    F32,
    /// One power of two per group.
    E8M0,
    /// One E4M3 per group.
    E4M3,
    /// One f16 per super-block of 256 columns times a small integer per group; minimums likewise.
    SuperBlock {
        /// Groups per super-block: 8 or 16.
        groups: usize,
    },
}

impl ScaleStorage {
    /// Of one scale per group.
    pub(crate) const fn per_group(scale: ScaleType) -> Self {
        match scale {
            ScaleType::F16 => Self::F16,
            ScaleType::F32 => Self::F32,
            ScaleType::E8M0 => Self::E8M0,
            ScaleType::E4M3 => Self::E4M3,
        }
    }
}

/// One row in the integer view; [`crate::Matrix::affine_row`] fills it, reusing its memory.
///
/// `value[k] = scales[g] × V(codes[k]) + mins[g]` with `g = k / group`, times the matrix's
/// `tensor_scale`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AffineRow {
    /// `[cols]` unsigned codes.
    pub codes: Vec<u8>,
    /// `[groups]`; a table's factor ½ is in them, the matrix's `tensor_scale` is not.
    pub scales: Vec<f32>,
    /// `[groups]`, or empty where the format has no minimums.
    pub mins: Vec<f32>,
    /// `[cols / 256]`, only for [`ScaleStorage::SuperBlock`]: `scales[g] = super_scales[s] ×
    /// sub_scales[g]`.
    pub super_scales: Vec<f16>,
    /// `[cols / 256]`, only for super-blocks with minimums: `mins[g] = −super_mins[s] ×
    /// sub_mins[g]`.
    pub super_mins: Vec<f16>,
    /// `[groups]`, only for super-blocks.
    pub sub_scales: Vec<i8>,
    /// `[groups]`, only for super-blocks with minimums.
    pub sub_mins: Vec<u8>,
}

impl AffineRow {
    /// Empties every part, keeping its memory.
    pub fn clear(&mut self) {
        self.codes.clear();
        self.scales.clear();
        self.mins.clear();
        self.super_scales.clear();
        self.super_mins.clear();
        self.sub_scales.clear();
        self.sub_mins.clear();
    }
}

impl Format {
    /// The integer view of the format; `None` for floats and FP8.
    pub const fn affine(&self) -> Option<Affine> {
        match self {
            Format::F32 | Format::F16 | Format::BF16 => None,
            Format::Ggml(t) => Some(t.affine()),
            Format::Group(g) => g.affine(),
        }
    }
}

impl GgmlType {
    /// The integer view of the type.
    pub const fn affine(self) -> Affine {
        use ScaleStorage::{E8M0, F16, SuperBlock};
        use Values::{Offset, Table};
        let (bits, group, values, scale, has_min) = match self {
            GgmlType::Q4_0 => (4, 32, Offset(8), F16, false),
            GgmlType::Q4_1 => (4, 32, Offset(0), F16, true),
            GgmlType::Q5_0 => (5, 32, Offset(16), F16, false),
            GgmlType::Q5_1 => (5, 32, Offset(0), F16, true),
            GgmlType::Q8_0 => (8, 32, Offset(128), F16, false),
            GgmlType::Q2K => (2, 16, Offset(0), SuperBlock { groups: 16 }, true),
            GgmlType::Q3K => (3, 16, Offset(4), SuperBlock { groups: 16 }, false),
            GgmlType::Q4K => (4, 32, Offset(0), SuperBlock { groups: 8 }, true),
            GgmlType::Q5K => (5, 32, Offset(0), SuperBlock { groups: 8 }, true),
            GgmlType::Q6K => (6, 16, Offset(32), SuperBlock { groups: 16 }, false),
            GgmlType::MxFp4 => (4, 32, Table(&fp4::E2M1_DOUBLED), E8M0, false),
        };
        Affine { bits, group: Some(group), values, scale, has_min }
    }
}

impl GroupFormat {
    /// The integer view of the format; `None` for FP8.
    pub const fn affine(&self) -> Option<Affine> {
        let values = match self.code {
            Code::Fp8 => return None,
            Code::Fp4 => Values::Table(&fp4::E2M1_DOUBLED),
            _ => Values::Offset(self.offset() as i32),
        };
        Some(Affine {
            bits: self.code.bits(),
            group: match self.group {
                Group::Size(size) => Some(size as usize),
                Group::Channel => None,
                Group::Block { cols, .. } => Some(cols as usize),
            },
            values,
            scale: ScaleStorage::per_group(self.scale),
            has_min: self.zero,
        })
    }
}
