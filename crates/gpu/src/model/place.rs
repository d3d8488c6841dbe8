//! From the file to the device. A packed file's weights stay where they are, if the device can read them there.
//! Otherwise slices of a few megabytes are put into the kernels' order, unless the file has them in it, and uploaded, by
//! all cores at once: the host never holds more than the slices in work.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use half::f16;
use marlin_backend::{BackendError, HostBytes, Union, Weight};
use marlin_formats::Format;
use marlin_formats::fragment::{BLOCK_ROWS, FragmentLayout, FragmentMatrix};
use marlin_kernels::{Allocation, Element};
use marlin_placement::AccessPattern;

use super::Shared;
use super::weight::GpuWeight;
use crate::ops::linear::FragmentWeights;
use crate::{Buffer, GpuError};

/// Bytes of codes in a slice: long enough for the bus, short enough that all that are in work are little beside
/// what a driver takes.
const SLICE_BYTES: usize = 2 << 20;

/// The most slices that are in work at once: more cores than these only take memory from each other.
const MAX_WORKERS: usize = 16;

/// A part of one weight.
struct Slice {
    weight: usize,
    row_blocks: Range<usize>,
    /// Row block of the whole at which it begins.
    at: usize,
}

/// The layout of each part, and how many there are, if `weights` can be one matrix.
pub(super) fn layout_of(
    shared: &Arc<Shared>,
    weights: &[Weight],
    union: Union,
) -> Result<Option<(FragmentLayout, usize)>, BackendError> {
    let mut layouts = Vec::with_capacity(weights.len());
    for weight in weights {
        layouts.push(GpuWeight::of(weight, shared)?.layout()?);
    }
    Ok(union.of(&layouts))
}

/// The matrix that `weights` are together, brought to the device unless it is there. `layout` is [`layout_of`]'s.
pub(super) fn matrix(
    shared: &Arc<Shared>,
    weights: &[Weight],
    (layout, parts): (FragmentLayout, usize),
    progress: &mut dyn FnMut(u64),
) -> Result<Arc<FragmentWeights>, BackendError> {
    let own: Vec<&GpuWeight> =
        weights.iter().map(|w| GpuWeight::of(w, shared)).collect::<Result<_, _>>()?;
    let ids: Vec<u64> = own.iter().map(|w| w.id).collect();
    let Some(first) = own.first() else {
        return Err(shared.unsupported("a matrix of no weights".to_owned()));
    };
    if let Some(placed) = first.placed_matrix(&ids) {
        return Ok(placed);
    }
    let placed = Arc::new(match adopted(shared, &own, layout, parts) {
        Some(adopted) => adopted,
        None => upload(shared, &own, layout, parts)?,
    });
    progress(own.iter().map(|w| w.source.bytes()).sum());
    first.keep_matrix(ids, placed.clone());
    Ok(placed)
}

/// The sections of the matrix that `weights` are in the file, each in one piece: codes, scales, minimums, super-blocks,
/// those that it does not have empty. `None` if the file does not have them so.
pub(super) fn sections(weights: &[&GpuWeight]) -> Option<[HostBytes; 4]> {
    let mut all: Option<[HostBytes; 4]> = None;
    for weight in weights {
        let next = weight.source.fragments.as_ref()?.sections();
        let Some(all) = &mut all else {
            all = Some(next.map(HostBytes::clone));
            continue;
        };
        for (section, next) in all.iter_mut().zip(next) {
            if !next.is_empty() {
                *section = section.joined(next)?;
            }
        }
    }
    all
}

/// The matrix in the file's own pages, if the device has adopted them.
fn adopted(
    shared: &Shared,
    weights: &[&GpuWeight],
    layout: FragmentLayout,
    parts: usize,
) -> Option<FragmentWeights> {
    let [codes, scales, mins, supers] = sections(weights)?;
    fn part<T: Element>(shared: &Shared, bytes: &HostBytes) -> Option<Option<Buffer<T>>> {
        if bytes.is_empty() { Some(None) } else { Some(Some(shared.adopted.buffer(bytes)?)) }
    }
    Some(FragmentWeights::from_buffers(
        layout,
        parts,
        shared.adopted.buffer(&codes)?,
        [part(shared, &scales)?, part(shared, &mins)?],
        part(shared, &supers)?,
    ))
}

fn upload(
    shared: &Shared,
    weights: &[&GpuWeight],
    layout: FragmentLayout,
    parts: usize,
) -> Result<FragmentWeights, BackendError> {
    let device = &*shared.device;
    let label = name_of(weights);
    let [codes, scales, mins, supers] = layout.sizes().map(|bytes| bytes * parts);
    let pattern = AccessPattern::DEVICE_ONLY.with_initial_data();
    let allocate = || -> Result<FragmentWeights, GpuError> {
        let bytes = |part: &str, len: usize| match len {
            0 => Ok(None),
            len => device.allocate::<u8>(&format!("{label} {part}"), len, pattern).map(Some),
        };
        Ok(FragmentWeights::from_buffers(
            layout,
            parts,
            device.allocate(&format!("{label} codes"), codes / 4, pattern)?,
            [bytes("scales", scales)?, bytes("minimums", mins)?],
            match supers {
                0 => None,
                len => Some(device.allocate::<f16>(
                    &format!("{label} super-blocks"),
                    len / 2,
                    pattern,
                )?),
            },
        ))
    };
    let placed = allocate().map_err(|e| shared.error(e))?;
    fill(shared, weights, &layout, &placed)?;
    Ok(placed)
}

/// What a matrix of several weights is called.
fn name_of(weights: &[&GpuWeight]) -> String {
    let names: Vec<&str> = weights.iter().map(|w| w.source.name.as_str()).collect();
    names.join(" + ")
}

/// Packs and uploads everything, slice by slice.
fn fill(
    shared: &Shared,
    weights: &[&GpuWeight],
    layout: &FragmentLayout,
    placed: &FragmentWeights,
) -> Result<(), BackendError> {
    let sizes = layout.row_block_sizes();
    let step = (SLICE_BYTES / sizes[0].max(1)).max(1);
    let mut slices = Vec::new();
    let mut at = 0;
    let mut layouts = Vec::with_capacity(weights.len());
    for (weight, own) in weights.iter().enumerate() {
        let own = own.layout()?;
        for start in (0..own.row_blocks()).step_by(step) {
            let row_blocks = start..(start + step).min(own.row_blocks());
            slices.push(Slice { weight, at: at + start, row_blocks });
        }
        at += own.row_blocks();
        layouts.push(own);
    }
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let failure = Mutex::new(None);
    let work = || {
        let mut packed = FragmentMatrix::default();
        while !failed.load(Relaxed)
            && let Some(slice) = slices.get(next.fetch_add(1, Relaxed))
        {
            let (weight, layout) = (weights[slice.weight], &layouts[slice.weight]);
            let done = match in_file(weight, sizes, &slice.row_blocks) {
                Some(parts) => {
                    let bytes = parts.each_ref().map(|part| &part[..]);
                    let done = send(shared, placed, bytes, slice.at, sizes);
                    parts.iter().for_each(HostBytes::release);
                    done
                }
                None => pack(weight, layout, slice, &mut packed).and_then(|()| {
                    let FragmentMatrix { codes, scales, mins, supers } = &packed;
                    let bytes = [&codes[..], scales, mins, supers];
                    shared.pack.record(bytes.iter().map(|part| part.len() as u64).sum());
                    release(weight, &slice.row_blocks);
                    send(shared, placed, bytes, slice.at, sizes)
                }),
            };
            if let Err(error) = done {
                failed.store(true, Relaxed);
                failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = cores.min(MAX_WORKERS).min(slices.len());
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// Row blocks of a weight that the file has in the kernels' order.
fn in_file(
    weight: &GpuWeight,
    sizes: [usize; 4],
    row_blocks: &Range<usize>,
) -> Option<[HostBytes; 4]> {
    let sections = weight.source.fragments.as_ref()?.sections();
    let mut parts = sections.map(HostBytes::clone);
    for (part, size) in parts.iter_mut().zip(sizes) {
        *part = part.slice(row_blocks.start * size..row_blocks.end * size)?;
    }
    Some(parts)
}

fn pack(
    weight: &GpuWeight,
    layout: &FragmentLayout,
    slice: &Slice,
    out: &mut FragmentMatrix,
) -> Result<(), BackendError> {
    layout
        .pack_row_blocks(&weight.matrix()?, slice.row_blocks.clone(), out)
        .map_err(|error| weight.bad(error.to_string()))
}

/// Uploads a slice to its places.
fn send(
    shared: &Shared,
    placed: &FragmentWeights,
    [codes, scales, mins, supers]: [&[u8]; 4],
    at: usize,
    sizes: [usize; 4],
) -> Result<(), BackendError> {
    fn allocation<T: Element>(buffer: Option<&Buffer<T>>) -> Option<&Arc<dyn Allocation>> {
        buffer.map(Buffer::allocation)
    }
    let parts = [
        (allocation(Some(&placed.codes)), codes),
        (allocation(placed.scales.as_ref()), scales),
        (allocation(placed.mins.as_ref()), mins),
        (allocation(placed.supers.as_ref()), supers),
    ];
    for ((allocation, bytes), size) in parts.into_iter().zip(sizes) {
        if let Some(allocation) = allocation {
            let offset = (at * size) as u64;
            shared.device.upload(allocation, offset, bytes).map_err(|e| shared.error(e))?;
        }
    }
    Ok(())
}

/// Says that the file's pages of these rows are not needed again: without this the host would hold the whole file.
fn release(weight: &GpuWeight, row_blocks: &Range<usize>) {
    let source = &weight.source;
    let bytes = source.format.row_bytes(source.cols);
    let end = (row_blocks.end * BLOCK_ROWS).min(source.rows);
    if let Some(part) = source.data.slice(row_blocks.start * BLOCK_ROWS * bytes..end * bytes) {
        part.release();
    }
}

/// The parts of a vector as this backend knows them.
pub(super) fn parts_of<'a>(
    shared: &Arc<Shared>,
    parts: &'a [(Option<Weight>, usize)],
) -> Result<Vec<(Option<&'a GpuWeight>, usize)>, BackendError> {
    let own = |(weight, len): &'a (Option<Weight>, usize)| {
        Ok((weight.as_ref().map(|w| GpuWeight::of(w, shared)).transpose()?, *len))
    };
    parts.iter().map(own).collect()
}

/// A vector of several weights, one after the other, as f32; places without a weight are zero.
pub(super) fn vector(
    shared: &Arc<Shared>,
    parts: &[(Option<Weight>, usize)],
    progress: &mut dyn FnMut(u64),
) -> Result<Arc<Buffer<f32>>, BackendError> {
    let own = parts_of(shared, parts)?;
    if let Some(placed) = placed_vector(&own) {
        return Ok(placed);
    }
    let names: Vec<&str> =
        own.iter().filter_map(|(weight, _)| weight.map(|w| w.source.name.as_str())).collect();
    let bytes = own.iter().filter_map(|(weight, _)| *weight).map(|w| w.source.bytes()).sum();
    let adopted = vector_in_file(&own).and_then(|bytes| shared.adopted.buffer(&bytes));
    let placed = Arc::new(match adopted {
        Some(adopted) => adopted,
        None => upload_vector(shared, &names.join(" + "), &own)?,
    });
    progress(bytes);
    if let Some(keeper) = own.iter().find_map(|(weight, _)| *weight) {
        keeper.keep_vector(ids_of(&own), placed.clone());
    }
    Ok(placed)
}

/// The numbers of a vector's weights; places without one have none.
fn ids_of(parts: &[(Option<&GpuWeight>, usize)]) -> Vec<u64> {
    parts.iter().map(|(weight, _)| weight.map_or(u64::MAX, |w| w.id)).collect()
}

/// The vector of these parts, if it is on the device.
pub(super) fn placed_vector(parts: &[(Option<&GpuWeight>, usize)]) -> Option<Arc<Buffer<f32>>> {
    parts.iter().find_map(|(weight, _)| *weight)?.placed_vector(&ids_of(parts))
}

/// The f32 values of a vector in the file, if they are there in one piece.
pub(super) fn vector_in_file(parts: &[(Option<&GpuWeight>, usize)]) -> Option<HostBytes> {
    let mut all: Option<HostBytes> = None;
    for (weight, len) in parts {
        let source = &(*weight)?.source;
        if source.format != Format::F32 || source.data.len() != 4 * len {
            return None;
        }
        all = Some(match all {
            None => source.data.clone(),
            Some(all) => all.joined(&source.data)?,
        });
    }
    all
}

/// Uploads a vector's parts; those that the file has as f32 go past the host's memory.
fn upload_vector(
    shared: &Shared,
    label: &str,
    parts: &[(Option<&GpuWeight>, usize)],
) -> Result<Buffer<f32>, BackendError> {
    let device = &*shared.device;
    let pattern = AccessPattern::DEVICE_ONLY.with_initial_data();
    let all = parts.iter().map(|(_, len)| len).sum();
    let placed = device.allocate::<f32>(label, all, pattern).map_err(|e| shared.error(e))?;
    let mut at = 0;
    for (weight, len) in parts {
        let converted: Vec<f32>;
        let bytes: &[u8] = match weight {
            Some(w) if w.source.format == Format::F32 && w.source.data.len() == 4 * len => {
                &w.source.data
            }
            Some(w) => {
                converted = w.source.decode().map_err(|error| w.bad(error.to_string()))?;
                shared.pack.record(w.source.bytes());
                bytemuck::cast_slice(&converted)
            }
            None => {
                converted = vec![0.0; *len];
                bytemuck::cast_slice(&converted)
            }
        };
        let to = placed.allocation();
        device.upload(to, 4 * at as u64, bytes).map_err(|e| shared.error(e))?;
        at += len;
    }
    Ok(placed)
}
