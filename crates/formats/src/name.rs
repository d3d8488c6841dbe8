//! Names of the formats, as in file metadata and on the command line.
//!
//! Floats and ggml types have ggml's names in lower case (`f16`, `q4_k`); ggml's MXFP4 block is
//! `mxfp4_ggml`, because `mxfp4` is the same numbers in OCP's own layout. Group formats are
//! `code[-asym]-group[-scale][-scaled]`: code `fp4 int2 int3 int4 int8 fp8`; group `g32`,
//! `channel`, `block` (128×128) or `block64x32`; the scale's type only where it is not the usual
//! one (f16, and f32 for 8-bit codes); `scaled` for a scale per tensor. `mxfp4` and `nvfp4` have no
//! other name.

use std::fmt;
use std::str::FromStr;

use crate::{Code, Format, FormatError, GgmlType, Group, GroupFormat, ScaleType};

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            GgmlType::Q4_0 => "q4_0",
            GgmlType::Q4_1 => "q4_1",
            GgmlType::Q5_0 => "q5_0",
            GgmlType::Q5_1 => "q5_1",
            GgmlType::Q8_0 => "q8_0",
            GgmlType::Q2K => "q2_k",
            GgmlType::Q3K => "q3_k",
            GgmlType::Q4K => "q4_k",
            GgmlType::Q5K => "q5_k",
            GgmlType::Q6K => "q6_k",
            GgmlType::MxFp4 => "mxfp4_ggml",
        })
    }
}

const CODES: [(Code, &str); 6] = [
    (Code::Fp4, "fp4"),
    (Code::Int2, "int2"),
    (Code::Int3, "int3"),
    (Code::Int4, "int4"),
    (Code::Int8, "int8"),
    (Code::Fp8, "fp8"),
];

const SCALES: [(ScaleType, &str); 4] = [
    (ScaleType::F16, "f16"),
    (ScaleType::F32, "f32"),
    (ScaleType::E8M0, "e8m0"),
    (ScaleType::E4M3, "e4m3"),
];

fn name_of<T: PartialEq>(table: &[(T, &'static str)], value: T) -> &'static str {
    table.iter().find_map(|(v, name)| (*v == value).then_some(*name)).unwrap_or("?")
}

fn value_of<T: Copy>(table: &[(T, &str)], name: &str) -> Option<T> {
    table.iter().find_map(|(v, n)| (*n == name).then_some(*v))
}

fn usual_scale(code: Code) -> ScaleType {
    match code {
        Code::Int8 | Code::Fp8 => ScaleType::F32,
        _ => ScaleType::F16,
    }
}

impl fmt::Display for GroupFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Format::Group(*self) {
            Format::MXFP4 => return f.write_str("mxfp4"),
            Format::NVFP4 => return f.write_str("nvfp4"),
            _ => {}
        }
        f.write_str(name_of(&CODES, self.code))?;
        if self.zero {
            f.write_str("-asym")?;
        }
        match self.group {
            Group::Size(size) => write!(f, "-g{size}")?,
            Group::Channel => f.write_str("-channel")?,
            Group::Block { rows: 128, cols: 128 } => f.write_str("-block")?,
            Group::Block { rows, cols } => write!(f, "-block{rows}x{cols}")?,
        }
        if self.scale != usual_scale(self.code) {
            write!(f, "-{}", name_of(&SCALES, self.scale))?;
        }
        if self.tensor_scale {
            f.write_str("-scaled")?;
        }
        Ok(())
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Format::F32 => f.write_str("f32"),
            Format::F16 => f.write_str("f16"),
            Format::BF16 => f.write_str("bf16"),
            Format::Ggml(t) => t.fmt(f),
            Format::Group(g) => g.fmt(f),
        }
    }
}

fn parse_group(name: &str) -> Option<Group> {
    if name == "channel" {
        return Some(Group::Channel);
    }
    if let Some(size) = name.strip_prefix('g') {
        return Some(Group::Size(size.parse().ok()?));
    }
    let tile = name.strip_prefix("block")?;
    if tile.is_empty() {
        return Some(Group::Block { rows: 128, cols: 128 });
    }
    let (rows, cols) = tile.split_once('x')?;
    Some(Group::Block { rows: rows.parse().ok()?, cols: cols.parse().ok()? })
}

fn parse_group_format(name: &str) -> Option<GroupFormat> {
    let mut parts = name.split('-').peekable();
    let code = value_of(&CODES, parts.next()?)?;
    let zero = parts.next_if_eq(&"asym").is_some();
    let group = parse_group(parts.next()?)?;
    let scale = match parts.peek().and_then(|name| value_of(&SCALES, name)) {
        Some(scale) => {
            parts.next();
            scale
        }
        None => usual_scale(code),
    };
    let tensor_scale = parts.next_if_eq(&"scaled").is_some();
    parts.next().is_none().then_some(GroupFormat { code, group, scale, zero, tensor_scale })
}

impl FromStr for Format {
    type Err = FormatError;

    /// Case does not matter; `-` and `_` are the same in ggml's names.
    fn from_str(s: &str) -> Result<Self, FormatError> {
        let name = s.to_ascii_lowercase();
        let float_or_ggml = match name.as_str() {
            "f32" => Some(Format::F32),
            "f16" => Some(Format::F16),
            "bf16" => Some(Format::BF16),
            "mxfp4" => Some(Format::MXFP4),
            "nvfp4" => Some(Format::NVFP4),
            _ => {
                let ggml = name.replace('-', "_");
                GgmlType::ALL.into_iter().find(|t| t.to_string() == ggml).map(Format::Ggml)
            }
        };
        float_or_ggml
            .or_else(|| parse_group_format(&name).map(Format::Group))
            .ok_or_else(|| FormatError::UnknownName(s.to_owned()))
    }
}
