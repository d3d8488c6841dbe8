//! Weights as the CPU backend holds them: floats where they lie in the file, quantised
//! matrices repacked once into tiles.

use std::any::Any;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use marlin_backend::{BackendError, FragmentBytes, HostBytes, Weight, WeightSource, WeightStorage};
use marlin_formats::fragment::{BLOCK_ROWS, Fragments};
use marlin_formats::group::read_scale;
use marlin_formats::tile::{TileLayout, TileScratch};
use marlin_formats::{Code, Format, GroupFormat, Matrix};
use marlin_placement::{AccessPattern, BufferTally, Direction, Ledger};

use crate::isa::FloatKind;
use crate::memory::{Buffer, WeightMemory};
use crate::pool::Pool;

/// A placed weight.
pub(crate) struct CpuWeight {
    name: String,
    format: Format,
    rows: usize,
    cols: usize,
    file_bytes: u64,
    pub(crate) storage: Storage,
}

/// Where its values are.
pub(crate) enum Storage {
    /// Integer codes in tiles, in memory of our own.
    Tiles {
        /// How they lie.
        layout: TileLayout,
        /// The tiles.
        packed: Buffer,
    },
    /// Floats as they lie in the file.
    Float {
        /// How one is stored.
        kind: FloatKind,
        /// Row after row.
        data: HostBytes,
        /// Scales of FP8, expanded to f32, and their rectangle; otherwise none.
        scales: Option<Scales>,
        /// Adopted memory has an entry in the ledger too.
        tally: BufferTally,
    },
}

/// Scales of an FP8 matrix.
pub(crate) struct Scales {
    pub(crate) values: Buffer,
    pub(crate) group_rows: usize,
    pub(crate) group_cols: usize,
}

impl WeightStorage for CpuWeight {
    fn name(&self) -> &str {
        &self.name
    }
    fn format(&self) -> Format {
        self.format
    }
    fn rows(&self) -> usize {
        self.rows
    }
    fn cols(&self) -> usize {
        self.cols
    }
    fn file_bytes(&self) -> u64 {
        self.file_bytes
    }
    fn held_bytes(&self) -> u64 {
        match &self.storage {
            Storage::Tiles { packed, .. } => packed.len() as u64,
            Storage::Float { data, .. } => data.len() as u64,
        }
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl CpuWeight {
    /// Bytes of one row in the file.
    pub(crate) fn row_bytes(&self) -> u64 {
        self.file_bytes / self.rows.max(1) as u64
    }

    /// Row `row` as f32.
    ///
    /// # Panics
    /// If `row` is out of range or `out` is not `cols` long.
    pub(crate) fn decode_row(&self, row: usize, out: &mut [f32]) {
        match &self.storage {
            Storage::Tiles { layout, packed } => {
                layout.decode_row(&packed.bytes()[..layout.bytes()], row, out);
            }
            Storage::Float { kind, data, scales, .. } => {
                decode_float(*kind, data, scales.as_ref(), row, out);
            }
        }
    }

    /// All values of a vector (one row, or one column) as f32, read by the host.
    pub(crate) fn vector(&self) -> Vec<f32> {
        match &self.storage {
            Storage::Tiles { packed, .. } => packed.tally().host_read(self.file_bytes),
            Storage::Float { tally, .. } => tally.host_read(self.file_bytes),
        }
        let mut values = vec![0.0; self.rows * self.cols];
        for (row, chunk) in values.chunks_mut(self.cols.max(1)).enumerate() {
            self.decode_row(row, chunk);
        }
        values
    }
}

fn decode_float(
    kind: FloatKind,
    data: &[u8],
    scales: Option<&Scales>,
    row: usize,
    out: &mut [f32],
) {
    use half::{bf16, f16};
    let cols = out.len();
    match kind {
        FloatKind::F32 => {
            for (x, b) in out.iter_mut().zip(data[row * cols * 4..].chunks_exact(4)) {
                *x = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            }
        }
        FloatKind::F16 => {
            for (x, b) in out.iter_mut().zip(data[row * cols * 2..].chunks_exact(2)) {
                *x = f16::from_le_bytes([b[0], b[1]]).to_f32();
            }
        }
        FloatKind::Bf16 => {
            for (x, b) in out.iter_mut().zip(data[row * cols * 2..].chunks_exact(2)) {
                *x = bf16::from_le_bytes([b[0], b[1]]).to_f32();
            }
        }
        FloatKind::E4m3 => {
            for (k, (x, &b)) in out.iter_mut().zip(&data[row * cols..]).enumerate() {
                let scale = scales.map_or(1.0, |s| {
                    let grid_cols = cols.div_ceil(s.group_cols);
                    let at = row / s.group_rows * grid_cols + k / s.group_cols;
                    let bytes = &s.values.bytes()[4 * at..];
                    f32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
                });
                *x = marlin_formats::fp8::decode_e4m3(b) * scale;
            }
        }
    }
}

/// Adopts a weight, or repacks it into `memory`.
pub(crate) fn place(
    source: &WeightSource,
    pool: &Pool,
    memory: &WeightMemory,
    ledger: &Ledger,
) -> Result<CpuWeight, BackendError> {
    let bad = |problem: String| BackendError::Weight {
        name: source.name.clone(),
        rows: source.rows,
        cols: source.cols,
        format: source.format,
        problem,
    };
    let fragments = source.packed_matrix().map_err(|e| bad(e.to_string()))?;
    let file_bytes = source.bytes();
    let WeightSource { name, format, rows, cols, .. } = source.clone();
    let storage = if let (Some(kind), Some(fragments)) = (float_kind(format), fragments) {
        float_rows(source, kind, &fragments, pool, ledger)?
    } else if let Some(kind) = float_kind(format) {
        source.matrix().map_err(|e| bad(e.to_string()))?;
        // Read in place: no copy.
        let tally = ledger.buffer(name.clone(), AccessPattern::ADOPTED, file_bytes);
        let scales = match format {
            Format::Group(g) => Some(expand_scales(source, g, ledger)?),
            _ => None,
        };
        Storage::Float { kind, data: source.data.clone(), scales, tally }
    } else {
        let layout = TileLayout::new(format, rows, cols, source.tensor_scale).ok_or_else(|| {
            BackendError::Unsupported {
                backend: "cpu",
                what: format!("`{name}`: format {format} with this group size"),
            }
        })?;
        let matrix = match fragments {
            Some(fragments) => PackFrom::Fragments(fragments),
            None => PackFrom::Rows(source.matrix().map_err(|e| bad(e.to_string()))?),
        };
        let packed = memory.buffer(ledger, name.clone(), layout.bytes())?;
        let next = AtomicUsize::new(0);
        let failure = Mutex::new(None);
        let destination = Destination(packed.as_ptr());
        pool.run(&|_| {
            let mut scratch = TileScratch::default();
            loop {
                let tile = next.fetch_add(1, Relaxed);
                if tile >= layout.tiles() {
                    return;
                }
                // SAFETY: each tile is taken by one thread, tiles do not overlap, and the
                // buffer holds all of them.
                let out = unsafe {
                    let start = destination.get().add(tile * layout.tile_bytes());
                    std::slice::from_raw_parts_mut(start, layout.tile_bytes())
                };
                let packed = match &matrix {
                    PackFrom::Rows(matrix) => layout.pack_tile(matrix, tile, out, &mut scratch),
                    PackFrom::Fragments(matrix) => {
                        layout.pack_tile_of_fragments(matrix, tile, out, &mut scratch)
                    }
                };
                if let Err(error) = packed {
                    *failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner) =
                        Some(error);
                    return;
                }
            }
        });
        let failure = failure.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(error) = failure {
            return Err(bad(error.to_string()));
        }
        ledger
            .copies(Direction::HostToHost, "interleave rows for the register tile")
            .record(file_bytes);
        // The file's pages are not needed again: without this, peak memory would be twice
        // the model.
        release(source);
        Storage::Tiles { layout, packed }
    };
    Ok(CpuWeight { name, format, rows, cols, file_bytes, storage })
}

/// Says that the file's bytes are not needed again.
fn release(source: &WeightSource) {
    let rows = [&source.data, &source.scales, &source.zeros];
    let fragments = source.fragments.as_ref().map(FragmentBytes::sections);
    rows.into_iter().chain(fragments.into_iter().flatten()).for_each(HostBytes::release);
}

/// The order in which the file has a matrix.
enum PackFrom<'a> {
    Rows(Matrix<'a>),
    Fragments(Fragments<'a>),
}

/// Floats that the file has in the order of GPU kernels, row after row in memory of our own.
fn float_rows(
    source: &WeightSource,
    kind: FloatKind,
    fragments: &Fragments<'_>,
    pool: &Pool,
    ledger: &Ledger,
) -> Result<Storage, BackendError> {
    let (name, layout) = (&source.name, fragments.layout());
    let row_bytes = layout.cols * layout.code.bits() / 8;
    let bytes = layout.rows * row_bytes;
    let mut data: Vec<u8> = Vec::new();
    data.try_reserve_exact(bytes).map_err(|_| BackendError::OutOfMemory {
        what: format!("`{name}`"),
        bytes: bytes as u64,
    })?;
    let destination = Destination(data.as_mut_ptr());
    let next = AtomicUsize::new(0);
    pool.run(&|_| {
        loop {
            let row_block = next.fetch_add(1, Relaxed);
            if row_block >= layout.row_blocks() {
                return;
            }
            let rows = row_block * BLOCK_ROWS..((row_block + 1) * BLOCK_ROWS).min(layout.rows);
            // SAFETY: each row block is taken by one thread, row blocks do not overlap, and room for all rows was
            // reserved. The bytes are zeroed before anything reads them.
            let out = unsafe {
                let start = destination.get().add(rows.start * row_bytes);
                start.write_bytes(0, rows.len() * row_bytes);
                std::slice::from_raw_parts_mut(start, rows.len() * row_bytes)
            };
            for (row, out) in rows.zip(out.chunks_exact_mut(row_bytes)) {
                fragments.copy_row_data(row, out);
            }
            if let Some(packed) = &source.fragments {
                let size = layout.row_block_sizes()[0];
                let done = packed.codes.slice(row_block * size..(row_block + 1) * size);
                done.iter().for_each(HostBytes::release);
            }
        }
    });
    // SAFETY: every row was written above, and as many bytes were reserved.
    unsafe { data.set_len(bytes) };
    ledger.copies(Direction::HostToHost, "put floats back into rows").record(bytes as u64);
    let pattern = AccessPattern::DEVICE_ONLY.with_initial_data();
    let tally = ledger.buffer(name.clone(), pattern, bytes as u64);
    let scales = match kind {
        FloatKind::E4m3 => Some(fragment_scales(name, fragments, ledger)?),
        _ => None,
    };
    Ok(Storage::Float { kind, data: HostBytes::from(data), scales, tally })
}

/// The scales of an FP8 matrix in fragments as f32, one for each group of each row.
fn fragment_scales(
    name: &str,
    fragments: &Fragments<'_>,
    ledger: &Ledger,
) -> Result<Scales, BackendError> {
    let layout = fragments.layout();
    let groups = layout.cols.div_ceil(layout.group);
    let count = layout.rows * groups;
    let name = format!("{name}.scales");
    let pattern = AccessPattern::DEVICE_ONLY.with_initial_data();
    let values = Buffer::new(ledger, name, pattern, 4 * count)?;
    for i in 0..count {
        let scale = fragments.group_scale(i / groups, i % groups) * layout.factor;
        // SAFETY: i is below count.
        unsafe { values.as_ptr::<f32>().add(i).write(scale) };
    }
    ledger
        .copies(Direction::HostToHost, "expand FP8 scales to f32")
        .record((count * layout.scale_bytes()) as u64);
    Ok(Scales { values, group_rows: 1, group_cols: layout.group })
}

struct Destination(*mut u8);

// SAFETY: threads write disjoint tiles through it.
unsafe impl Sync for Destination {}

impl Destination {
    fn get(&self) -> *mut u8 {
        self.0
    }
}

fn float_kind(format: Format) -> Option<FloatKind> {
    match format {
        Format::F32 => Some(FloatKind::F32),
        Format::F16 => Some(FloatKind::F16),
        Format::BF16 => Some(FloatKind::Bf16),
        Format::Group(g) if g.code == Code::Fp8 => Some(FloatKind::E4m3),
        _ => None,
    }
}

/// The scales of an FP8 matrix as f32, the tensor's own factor included.
fn expand_scales(
    source: &WeightSource,
    format: GroupFormat,
    ledger: &Ledger,
) -> Result<Scales, BackendError> {
    let (group_rows, group_cols) = (format.group_rows(), format.group_cols(source.cols));
    let count = source.scales.len() / format.scale.bytes();
    let name = format!("{}.scales", source.name);
    let values =
        Buffer::new(ledger, name, AccessPattern::DEVICE_ONLY.with_initial_data(), 4 * count)?;
    for i in 0..count {
        let scale = read_scale(format.scale, &source.scales, i) * source.tensor_scale;
        // SAFETY: i is below count.
        unsafe { values.as_ptr::<f32>().add(i).write(scale) };
    }
    ledger
        .copies(Direction::HostToHost, "expand FP8 scales to f32")
        .record(source.scales.len() as u64);
    Ok(Scales { values, group_rows, group_cols })
}

/// This backend's view of a weight that it placed.
pub(crate) fn downcast(weight: &Weight) -> Result<&CpuWeight, BackendError> {
    weight.as_any().downcast_ref().ok_or_else(|| BackendError::Unsupported {
        backend: "cpu",
        what: format!("`{}`, placed by another backend", weight.name()),
    })
}
