//! Hadamard transforms: `hadamard.metal`.

use std::marker::PhantomData;

use marlin_formats::Hadamard as Reference;
use marlin_kernels::hadamard::{
    Hadamard as Launcher, HadamardAcross, HadamardArgs, HadamardConstants, HadamardQuantise,
};
use marlin_kernels::{Element, Grid, View, ViewMut};

use super::lengths::{expect_len, refuse};
use super::quantise_activations::{ActivationCode, check_group};
use super::vectors::{groups_of, starts_whole, starts_whole_mut};
use crate::{CommandList, DeviceProperties, GpuError};

const KERNEL: &str = "hadamard";
/// Threads of a tile: the kernel's own number.
const TILE_THREADS: u32 = 64;
/// Threads of a tile of `hadamard` with order 1: the kernel's own number.
const WIDE_THREADS: u32 = 128;
const ACROSS_THREADS: u32 = 256;
/// Levels that `hadamard_across` does at once.
const ACROSS_LEVELS: u32 = 4;

/// A transform of one size: the matrix of [`marlin_formats::Hadamard`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HadamardSize {
    size: usize,
    order: u32,
    levels: u32,
}

/// What one dispatch does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    /// `hadamard`: B ⊗ S, or S alone, of consecutive elements.
    Tile { order: u32, levels: u32 },
    /// `hadamard_across`: over runs of `stride` elements.
    Across { order: u32, levels: u32, stride: u32 },
}

impl Pass {
    /// Elements that the pass adds up.
    fn size(self) -> usize {
        match self {
            Self::Tile { order, levels } | Self::Across { order, levels, .. } => {
                (order as usize) << levels
            }
        }
    }
}

impl HadamardSize {
    /// The transform of `size` elements.
    ///
    /// # Errors
    /// [`GpuError::Launch`] unless `size` is 2^k, 12·2^k or 20·2^k.
    pub fn new(size: usize) -> Result<Self, GpuError> {
        let shape = [1, 12, 20].into_iter().find_map(|order: usize| {
            let run = size / order;
            (size.is_multiple_of(order) && run.is_power_of_two())
                .then(|| (order as u32, run.trailing_zeros()))
        });
        match shape {
            Some((order, levels)) if levels < 32 => Ok(Self { size, order, levels }),
            _ => Err(refuse(
                KERNEL,
                format!("no transform of size {size}, expected 2^k, 12·2^k or 20·2^k"),
            )),
        }
    }

    /// Elements that are transformed together.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The same transform on the host.
    ///
    /// # Errors
    /// Never, for a size that [`Self::new`] took.
    pub fn reference(&self, normalized: bool) -> Result<Reference, GpuError> {
        Reference::new(self.size, normalized).map_err(|e| refuse(KERNEL, e.to_string()))
    }

    /// Whether memory is read and written once.
    pub fn is_one_pass(&self, properties: &DeviceProperties) -> bool {
        self.passes(properties).len() == 1
    }

    fn passes(&self, properties: &DeviceProperties) -> Vec<Pass> {
        let Self { order, levels, .. } = *self;
        let tile = Pass::Tile { order, levels };
        // A tile of 8192 takes all of the threadgroup memory that every device has.
        let fits = match order {
            1 => levels <= 12 || (levels == 13 && properties.threadgroup_bytes >= 32 << 10),
            12 => (3..=9).contains(&levels),
            _ => (2..=8).contains(&levels),
        };
        if fits {
            return vec![tile];
        }
        let mut done = levels.min(12);
        let mut passes = vec![Pass::Tile { order: 1, levels: done }];
        while done < levels {
            let step = (levels - done).min(ACROSS_LEVELS);
            passes.push(Pass::Across { order: 1, levels: step, stride: 1 << done });
            done += step;
        }
        if order > 1 {
            passes.push(Pass::Across { order, levels: 0, stride: 1 << levels });
        }
        passes
    }
}

/// Elements of a tile.
fn tile_elements(order: u32, levels: u32) -> usize {
    match order {
        1 if levels > 12 => 8192,
        1 => 4096,
        12 => 6144,
        _ => 5120,
    }
}

fn factor(normalized: bool, size: usize) -> f32 {
    if normalized { (1.0 / (size as f64).sqrt()) as f32 } else { 1.0 }
}

fn expect_divisible(elements: usize, size: usize) -> Result<(), GpuError> {
    if elements.is_multiple_of(size) {
        return Ok(());
    }
    Err(refuse(KERNEL, format!("{elements} elements do not divide into transforms of {size}")))
}

/// Appends the transform of every run of `size` elements of x, in place, with the factor 1/√size if `normalized`.
///
/// Sizes up to 8192, 12·2⁹ and 20·2⁸ are one pass over memory. Larger ones are two or three, and with 16-bit elements
/// are rounded in between; each pass of a normalised transform is itself normalised, so that none overflows.
///
/// # Errors
/// A length that does not divide into transforms, or more than one dispatch numbers.
pub fn hadamard<T: Element>(
    list: &mut CommandList,
    properties: &DeviceProperties,
    transform: HadamardSize,
    normalized: bool,
    x: ViewMut<'_, T>,
) -> Result<(), GpuError> {
    let elements = x.len();
    expect_divisible(elements, transform.size)?;
    let whole = starts_whole_mut(&x);
    for pass in transform.passes(properties) {
        let constants =
            |order, levels| HadamardConstants { order, levels, whole, code: 0, group: 0 };
        let args = |stride| HadamardArgs {
            elements: elements as u64,
            stride,
            factor: factor(normalized, pass.size()),
        };
        match pass {
            Pass::Tile { order, levels } => {
                let tile = tile_elements(order, levels);
                let launcher = Launcher {
                    x,
                    args: args(0),
                    tile: tile as u32,
                    constants: constants(order, levels),
                    elements: PhantomData,
                };
                let tiles = groups_of(KERNEL, elements.div_ceil(tile), 1)?;
                let threads = if order == 1 { WIDE_THREADS } else { TILE_THREADS };
                list.launch(launcher, Grid::x(tiles, threads));
            }
            Pass::Across { order, levels, stride } => {
                let count = if stride.is_multiple_of(4) { 4 } else { 1 };
                let threads = elements / pass.size() / count;
                let launcher = HadamardAcross {
                    x,
                    args: args(stride),
                    constants: constants(order, levels),
                    elements: PhantomData,
                };
                let groups = groups_of(KERNEL, threads, ACROSS_THREADS)?;
                list.launch(launcher, Grid::x(groups, ACROSS_THREADS));
            }
        }
    }
    Ok(())
}

/// Appends the transform of every run of `size` elements of x as 8-bit codes, with a scale for every `group` values (16, 32,
/// 64 or 128). x: any number of transforms; codes: as many elements; scales: one for every `group`.
///
/// # Errors
/// A size that is not one pass ([`HadamardSize::is_one_pass`]), views of other lengths or whose codes do not start at a
/// multiple of 16 bytes, a group that does not divide the elements.
#[allow(clippy::too_many_arguments, reason = "the kernel's own operands")]
pub fn hadamard_quantise<T: Element>(
    list: &mut CommandList,
    properties: &DeviceProperties,
    transform: HadamardSize,
    normalized: bool,
    code: ActivationCode,
    group: usize,
    x: View<'_, T>,
    codes: ViewMut<'_, u8>,
    scales: ViewMut<'_, f32>,
) -> Result<(), GpuError> {
    const KERNEL: &str = "hadamard_quantise";
    let elements = x.len();
    expect_divisible(elements, transform.size)?;
    check_group(KERNEL, group)?;
    if !elements.is_multiple_of(group) {
        return Err(refuse(
            KERNEL,
            format!("{elements} elements do not divide into groups of {group}"),
        ));
    }
    expect_len(KERNEL, "codes", codes.len(), elements)?;
    expect_len(KERNEL, "scales", scales.len(), elements / group)?;
    if !starts_whole_mut(&codes) {
        return Err(refuse(KERNEL, "codes do not start at a multiple of 16 bytes".to_owned()));
    }
    let passes = transform.passes(properties);
    let &[Pass::Tile { order, levels }] = passes.as_slice() else {
        let size = transform.size;
        return Err(refuse(
            KERNEL,
            format!("size {size} takes {} passes, expected 1", passes.len()),
        ));
    };
    let tile = tile_elements(order, levels);
    let launcher = HadamardQuantise {
        x,
        codes,
        scales,
        args: HadamardArgs {
            elements: elements as u64,
            stride: 0,
            factor: factor(normalized, transform.size),
        },
        tile: tile as u32,
        constants: HadamardConstants {
            order,
            levels,
            whole: starts_whole(&x),
            code: code.constant(),
            group: group as u32,
        },
        elements: PhantomData,
    };
    let tiles = groups_of(KERNEL, elements.div_ceil(tile), 1)?;
    list.launch(launcher, Grid::x(tiles, TILE_THREADS));
    Ok(())
}
