//! Weights to group formats on the device: `pack.metal`. What comes out is what [`marlin_formats::encode`] gives, to the
//! bit.

use std::marker::PhantomData;

use marlin_formats::{
    Code, Format, FormatError, Group, GroupFormat, OwnedMatrix, ScaleType, Sizes,
};
use marlin_kernels::pack::{PackArgs, PackConstants, PackExtent, PackGroups, PackRegions};
use marlin_kernels::{Atomic, Element, Grid, View, ViewMut};
use marlin_placement::AccessPattern;

use super::lengths::{expect_len, refuse};
use super::vectors::{EIGHT, starts_whole};
use crate::{Buffer, Command, CommandList, Device, GpuError, Region};

const KERNEL: &str = "pack";
/// Columns that a threadgroup of `pack_groups` takes, eight a thread.
const STRIP: usize = 1024;
const STRIP_THREADS: u32 = 128;
const REGION_THREADS: u32 = 256;

/// Device memory for a packed matrix in the formats' canonical buffers ([`marlin_formats::group`]), and what the kernels
/// report.
#[derive(Clone, Debug)]
pub struct PackedMatrix {
    format: Format,
    group: GroupFormat,
    rows: usize,
    cols: usize,
    sizes: Sizes,
    data: Buffer<u8>,
    scales: Buffer<u8>,
    zeros: Option<Buffer<u8>>,
    tensor_scale: Option<Buffer<f32>>,
    greatest: Buffer<u32>,
    status: Buffer<Atomic>,
}

impl PackedMatrix {
    /// Room for a `rows × cols` matrix of `format`.
    ///
    /// # Errors
    /// Not a group format, columns that do not divide into groups, codes narrower than a byte in tiles that are not a
    /// multiple of eight columns wide, 2³² elements or more, no memory.
    #[track_caller]
    pub fn allocate(
        device: &dyn Device,
        label: &str,
        format: Format,
        rows: usize,
        cols: usize,
    ) -> Result<Self, GpuError> {
        let Format::Group(group) = format else {
            return Err(refuse(KERNEL, format!("{format} has no groups")));
        };
        let sizes = format.sizes(rows, cols).map_err(|e| refuse(KERNEL, e.to_string()))?;
        if rows.saturating_mul(cols) > (u32::MAX - 8) as usize {
            return Err(refuse(
                KERNEL,
                format!("{rows}×{cols} elements, expected fewer than 2^32"),
            ));
        }
        let group_cols = group.group_cols(cols);
        if group.code.bits() < 8 && !group_cols.is_multiple_of(EIGHT) && group_cols < cols {
            return Err(refuse(
                KERNEL,
                format!("{format}: tiles of {group_cols} columns, expected a multiple of 8"),
            ));
        }
        let bytes = |part: &str, n: usize| {
            // An empty part is never read; a device has no empty memory.
            device.allocate(&format!("{label} {part}"), n.max(1), AccessPattern::DEVICE_ONLY)
        };
        let word = AccessPattern::DEVICE_ONLY;
        Ok(Self {
            format,
            group,
            rows,
            cols,
            sizes,
            data: bytes("data", sizes.data)?,
            scales: bytes("scales", sizes.scales)?,
            zeros: match group.zero {
                true => Some(bytes("zero points", sizes.zeros)?),
                false => None,
            },
            tensor_scale: match group.tensor_scale {
                true => Some(device.allocate(&format!("{label} tensor scale"), 1, word)?),
                false => None,
            },
            greatest: device.allocate(&format!("{label} greatest magnitude"), 1, word)?,
            status: device.allocate(&format!("{label} status"), 2, word)?,
        })
    }

    /// The format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Codes: [`marlin_formats::Matrix::data`].
    pub fn data(&self) -> &Buffer<u8> {
        &self.data
    }

    /// Scales: [`marlin_formats::Matrix::scales`].
    pub fn scales(&self) -> &Buffer<u8> {
        &self.scales
    }

    /// Zero points, where the format has them: [`marlin_formats::Matrix::zeros`].
    pub fn zeros(&self) -> Option<&Buffer<u8>> {
        self.zeros.as_ref()
    }

    /// The factor of the whole matrix, where the format has one: [`marlin_formats::Matrix::tensor_scale`].
    pub fn tensor_scale(&self) -> Option<&Buffer<f32>> {
        self.tensor_scale.as_ref()
    }

    /// What went wrong in the pack that has run, if anything did: eight bytes are read.
    ///
    /// # Errors
    /// The device failed.
    pub fn fault(&self, device: &dyn Device) -> Result<Option<PackFault>, GpuError> {
        let status = device.download_all(&self.status)?;
        let place = |word: Atomic, cols: usize| {
            (word.0 != u32::MAX)
                .then(|| (word.0 as usize / cols.max(1), word.0 as usize % cols.max(1)))
        };
        let (_, grid_cols) = self.group.grid(self.rows, self.cols);
        let value = place(status[0], self.cols);
        let group = place(status[1], grid_cols);
        // The order in which formats::encode looks: with a scale per tensor at all values first, otherwise at one row
        // of the grid after the other, at values before scales.
        let band = |row: usize| {
            if self.group.tensor_scale && self.group.scale == ScaleType::E4M3 {
                0
            } else {
                row / self.group.group_rows()
            }
        };
        Ok(match (value, group) {
            (Some((row, _)), Some((grid_row, grid_col))) if band(row) > grid_row => {
                Some(PackFault::ScaleOverflow { grid_row, grid_col })
            }
            (Some((row, col)), _) => Some(PackFault::NotFinite { row, col }),
            (None, Some((grid_row, grid_col))) => {
                Some(PackFault::ScaleOverflow { grid_row, grid_col })
            }
            (None, None) => None,
        })
    }

    /// The fault as the error that [`marlin_formats::encode`] gives; `value` is the source's element at a row and column.
    pub fn format_error(
        &self,
        fault: PackFault,
        value: impl Fn(usize, usize) -> f32,
    ) -> FormatError {
        match fault {
            PackFault::NotFinite { row, col } => {
                FormatError::NotFinite { format: self.format, value: value(row, col), row, col }
            }
            PackFault::ScaleOverflow { grid_row, grid_col } => {
                let (height, width) = (self.group.group_rows(), self.group.group_cols(self.cols));
                let mut largest = (0.0f32, grid_row * height, grid_col * width);
                for row in grid_row * height..self.rows.min((grid_row + 1) * height) {
                    for col in grid_col * width..self.cols.min((grid_col + 1) * width) {
                        let x = value(row, col);
                        if x.abs() > largest.0.abs() {
                            largest = (x, row, col);
                        }
                    }
                }
                let (value, row, col) = largest;
                let max_scale = self.group.scale.max();
                FormatError::ScaleOverflow { format: self.format, value, row, col, max_scale }
            }
        }
    }

    /// A copy on the host, through [`Device::download`].
    ///
    /// # Errors
    /// The device failed.
    pub fn download(&self, device: &dyn Device) -> Result<OwnedMatrix, GpuError> {
        let part = |buffer: &Buffer<u8>, len: usize| {
            let mut bytes = vec![0; len];
            if len > 0 {
                device.download(buffer.allocation(), 0, &mut bytes)?;
            }
            Ok::<_, GpuError>(bytes)
        };
        // Nothing is written for a matrix without elements.
        let tensor_scale = match &self.tensor_scale {
            Some(scale) if self.sizes.data > 0 => device.download_all(scale)?[0],
            _ => 1.0,
        };
        Ok(OwnedMatrix {
            format: self.format,
            rows: self.rows,
            cols: self.cols,
            data: part(&self.data, self.sizes.data)?,
            scales: part(&self.scales, self.sizes.scales)?,
            zeros: self.zeros.as_ref().map_or(Ok(Vec::new()), |z| part(z, self.sizes.zeros))?,
            tensor_scale,
        })
    }
}

/// Why a matrix cannot be packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackFault {
    /// NaN or an infinity where the format has no code for it: the first one.
    NotFinite {
        /// Its row.
        row: usize,
        /// Its column.
        col: usize,
    },
    /// A group whose scale is larger than the format's largest: the first one.
    ScaleOverflow {
        /// Its row in the grid of groups.
        grid_row: usize,
        /// Its column in the grid of groups.
        grid_col: usize,
    },
}

/// The kernels' number of a code.
pub(super) const fn code_constant(code: Code) -> u32 {
    match code {
        Code::Fp4 => 0,
        Code::Fp8 => 1,
        Code::Int2 | Code::Int3 | Code::Int4 | Code::Int8 => 2,
    }
}

/// The kernels' number of a type of scales.
pub(super) const fn scale_constant(scale: ScaleType) -> u32 {
    match scale {
        ScaleType::F16 => 0,
        ScaleType::F32 => 1,
        ScaleType::E8M0 => 2,
        ScaleType::E4M3 => 3,
    }
}

fn constants(group: &GroupFormat, whole: bool) -> PackConstants {
    PackConstants {
        code: code_constant(group.code),
        bits: group.code.bits(),
        scale: scale_constant(group.scale),
        zero: group.zero,
        tensor_scale: group.tensor_scale,
        whole,
    }
}

/// Sets every byte of `buffer`.
fn fill<T: Element>(list: &mut CommandList, buffer: &Buffer<T>, value: u8) {
    let region = Region {
        allocation: buffer.allocation().clone(),
        offset: 0,
        bytes: (buffer.len() * size_of::<T>()) as u64,
    };
    list.push(Command::Fill { region, value });
}

/// Appends the packing of x, `[rows, cols]` row-major, into `out`. Look at [`PackedMatrix::fault`] when it has run: `out`
/// is meaningless if there is one.
///
/// # Errors
/// x is not as long as the matrix.
pub fn pack<T: Element>(
    list: &mut CommandList,
    x: View<'_, T>,
    out: &PackedMatrix,
) -> Result<(), GpuError> {
    let PackedMatrix { group, rows, cols, .. } = *out;
    expect_len(KERNEL, "x", x.len(), rows * cols)?;
    fill(list, &out.status, 0xff);
    fill(list, &out.greatest, 0);
    let (grid_rows, grid_cols) = group.grid(rows, cols);
    let group_cols = group.group_cols(cols);
    let whole = starts_whole(&x)
        && cols.is_multiple_of(EIGHT)
        && (group_cols.is_multiple_of(EIGHT) || group_cols >= cols);
    let constants = constants(&group, whole);
    // Zero points narrower than a byte share bytes with their neighbours.
    let together = if group.zero && group.code.bits() < 8 { 8 } else { 1 };
    let args = PackArgs {
        rows: rows as u32,
        columns: cols as u32,
        group_rows: group.group_rows() as u32,
        group_columns: group_cols as u32,
        grid_columns: grid_cols as u32,
        row_bytes: out.sizes.row as u32,
        zero_bytes: out.sizes.zeros.checked_div(grid_rows).unwrap_or(0) as u32,
        groups_together: together as u32,
    };
    let status = ViewMut::new(out.status.allocation(), 0, 2)?;
    if rows == 0 || cols == 0 {
        // Rows without columns still have scales: zeros, as formats::encode gives.
        fill(list, &out.scales, 0);
        out.zeros.iter().for_each(|zeros| fill(list, zeros, 0));
        return Ok(());
    }
    if group.tensor_scale {
        let launcher = PackExtent {
            x,
            greatest: ViewMut::new(out.greatest.allocation(), 0, 1)?,
            status,
            args,
            constants,
            elements: PhantomData,
        };
        let groups = (rows * cols).div_ceil(EIGHT * REGION_THREADS as usize).min(1024);
        list.launch(launcher, Grid::x(groups as u32, REGION_THREADS));
    }
    let greatest = Some(out.greatest.view());
    let (data, scales) = (out.data.view_mut()?, out.scales.view_mut()?);
    let zeros = out.zeros.as_ref().map(Buffer::view_mut).transpose()?;
    let tensor_scale = out.tensor_scale.as_ref().map(Buffer::view_mut).transpose()?;
    let elements = PhantomData;
    if matches!(group.group, Group::Size(8 | 16 | 32 | 64 | 128)) {
        let launcher = PackGroups {
            x,
            greatest,
            data,
            scales,
            zeros,
            tensor_scale,
            status,
            args,
            constants,
            elements,
        };
        let strips = rows * cols.div_ceil(STRIP);
        list.launch(launcher, Grid::x(strips as u32, STRIP_THREADS));
    } else {
        let launcher = PackRegions {
            x,
            greatest,
            data,
            scales,
            zeros,
            tensor_scale,
            status,
            args,
            constants,
            elements,
        };
        let regions = grid_rows * grid_cols.div_ceil(together);
        list.launch(launcher, Grid::x(regions as u32, REGION_THREADS));
    }
    Ok(())
}
