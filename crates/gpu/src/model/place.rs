//! From the file to the device: slices of a few megabytes are put into the kernels' order and uploaded, by all
//! cores at once. The host never holds more than the slices in work.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use half::f16;
use marlin_backend::{BackendError, Weight};
use marlin_formats::fragment::{BLOCK_ROWS, FragmentLayout, FragmentMatrix};
use marlin_kernels::{Allocation, Element};
use marlin_placement::AccessPattern;

use super::Shared;
use super::weight::GpuWeight;
use crate::ops::linear::FragmentWeights;
use crate::{Buffer, GpuError};

/// Bytes of codes in a slice: long enough for the bus, short enough that as many as there are cores are nothing
/// beside the model.
const SLICE_BYTES: usize = 4 << 20;

/// How several weights are one matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Union {
    /// Rows under rows.
    Stacked,
    /// Gate and up, which one kernel multiplies side by side.
    Gated,
}

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
    let Some((first, others)) = layouts.split_first() else { return Ok(None) };
    Ok(match union {
        Union::Stacked => {
            others.iter().try_fold(*first, |above, below| above.stacked(below)).map(|all| (all, 1))
        }
        Union::Gated => others.iter().all(|l| l == first).then_some((*first, layouts.len())),
    })
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
    let placed = Arc::new(upload(shared, &own, layout, parts)?);
    progress(own.iter().map(|w| w.source.bytes()).sum());
    first.keep_matrix(ids, placed.clone());
    Ok(placed)
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
            let done = pack(weight, layout, slice, &mut packed)
                .and_then(|()| send(shared, placed, &packed, slice.at, sizes));
            if let Err(error) = done {
                failed.store(true, Relaxed);
                failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
            shared.pack.record(packed.codes.len() as u64 + packed.scales.len() as u64);
            release(weight, &slice.row_blocks);
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = cores.min(slices.len());
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
    packed: &FragmentMatrix,
    at: usize,
    sizes: [usize; 4],
) -> Result<(), BackendError> {
    fn allocation<T: Element>(buffer: Option<&Buffer<T>>) -> Option<&Arc<dyn Allocation>> {
        buffer.map(Buffer::allocation)
    }
    let parts = [
        (allocation(Some(&placed.codes)), &packed.codes),
        (allocation(placed.scales.as_ref()), &packed.scales),
        (allocation(placed.mins.as_ref()), &packed.mins),
        (allocation(placed.supers.as_ref()), &packed.supers),
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

/// A vector of several weights, one after the other, as f32; places without a weight are zero.
pub(super) fn vector(
    shared: &Arc<Shared>,
    parts: &[(Option<Weight>, usize)],
    progress: &mut dyn FnMut(u64),
) -> Result<Arc<Buffer<f32>>, BackendError> {
    let own: Vec<(Option<&GpuWeight>, usize)> = parts
        .iter()
        .map(|(weight, len)| {
            Ok((weight.as_ref().map(|w| GpuWeight::of(w, shared)).transpose()?, *len))
        })
        .collect::<Result<_, BackendError>>()?;
    let ids: Vec<u64> = own.iter().map(|(weight, _)| weight.map_or(u64::MAX, |w| w.id)).collect();
    let keeper = own.iter().find_map(|(weight, _)| *weight);
    if let Some(placed) = keeper.and_then(|w| w.placed_vector(&ids)) {
        return Ok(placed);
    }
    let mut values = Vec::with_capacity(parts.iter().map(|(_, len)| len).sum());
    let mut names = Vec::new();
    let mut bytes = 0;
    for (weight, len) in own {
        match weight {
            Some(weight) => {
                values.extend(weight.matrix()?.decode());
                names.push(weight.source.name.as_str());
                bytes += weight.source.bytes();
            }
            None => values.resize(values.len() + len, 0.0),
        }
    }
    let placed = shared.device.upload_new(&names.join(" + "), &values);
    let placed = Arc::new(placed.map_err(|e| shared.error(e))?);
    shared.pack.record(bytes);
    progress(bytes);
    if let Some(keeper) = keeper {
        keeper.keep_vector(ids, placed.clone());
    }
    Ok(placed)
}
