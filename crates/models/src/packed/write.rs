//! Writing packed files: all cores pack slices of a few megabytes and put them where they belong. A file appears under its
//! name only when it is whole.

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use marlin_formats::Format;
use marlin_formats::fragment::{BLOCK_ROWS, FragmentMatrix};

use super::plan::check_original;
use super::{Contents, FILE_ALIGNMENT, Plan};
use crate::error::{At, ModelError};
use crate::source::{ModelSource, Origin};
use crate::{gguf, hf};

/// Bytes of codes in a slice.
const SLICE_BYTES: usize = 4 << 20;

/// How to pack a model.
#[derive(Clone, Copy, Debug, Default)]
pub struct PackOptions {
    /// Replaces what is there.
    pub force: bool,
}

/// What was packed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackSummary {
    /// The file or folder that was written.
    pub path: PathBuf,
    /// Matrices in the kernels' order.
    pub matrices: usize,
    /// Vectors as f32.
    pub vectors: usize,
    /// Tensors that are as they were.
    pub unchanged: usize,
    /// Bytes of the weights before.
    pub source_bytes: u64,
    /// Bytes of the written weights, with their header and padding.
    pub bytes: u64,
}

/// Called with the bytes of the source that are done, and all; ends the work with `Break`.
pub type PackProgress<'a> = &'a mut dyn FnMut(u64, u64) -> ControlFlow<()>;

/// A packed file's header, and where its tensors are.
pub(crate) struct Layout {
    /// Everything before the first tensor.
    pub(crate) header: Vec<u8>,
    /// Of each of the plan's entries, from the file's beginning.
    pub(crate) offsets: Vec<u64>,
    /// Bytes of the file.
    pub(crate) len: u64,
}

/// Writes `source` with its matrices in the order that GPU kernels read: as a GGUF file if it is one, otherwise as a
/// folder like its own.
///
/// # Errors
/// [`ModelError`]: a model that is packed already, a format that has no such order, something at `out` without
/// [`force`](PackOptions::force) (with it, a folder that is no packed model), a full disk; or `progress` ended it. What was
/// at `out` stays as it was then.
pub fn pack(
    source: &ModelSource,
    out: &Path,
    options: PackOptions,
    progress: PackProgress<'_>,
) -> Result<PackSummary, ModelError> {
    check_original(source)?;
    check_place(source, out, options.force)?;
    let plan = Plan::new(source)?;
    let bytes = match source.origin() {
        Origin::Gguf(metadata) => {
            let layout = gguf::packed_layout(metadata, &plan)?;
            let part = Partial::file(out)?;
            write_tensors(part.path(), source, &plan, &layout, progress)?;
            part.keep(out)?;
            layout.len
        }
        Origin::HuggingFace(folder) => {
            let layout = hf::packed_layout(folder.path(), &plan)?;
            let part = Partial::folder(out)?;
            folder.copy_beside_weights(part.path())?;
            let weights = part.path().join(hf::WEIGHTS);
            write_tensors(&weights, source, &plan, &layout, progress)?;
            part.keep(out)?;
            layout.len
        }
    };
    let count = |of: fn(&Contents) -> bool| plan.entries.iter().filter(|e| of(&e.contents)).count();
    Ok(PackSummary {
        path: out.to_owned(),
        matrices: plan.matrices.len(),
        vectors: count(|contents| matches!(contents, Contents::Floats(_))),
        unchanged: count(|contents| matches!(contents, Contents::Unchanged(_))),
        source_bytes: source.bytes(),
        bytes,
    })
}

/// Refuses a place where something is that must not be replaced.
fn check_place(source: &ModelSource, out: &Path, force: bool) -> Result<(), ModelError> {
    let Ok(there) = fs::metadata(out) else { return Ok(()) };
    let refuse =
        |found: &str, expected: &str| Err(ModelError::invalid(out, At::File, found, expected));
    let real = |path: &Path| path.canonicalize().ok();
    let own = |path: &Path| real(path).is_some() && real(path) == real(out);
    let mut files = source.tensors().iter().map(|tensor| &*tensor.file);
    if own(source.path()) || files.any(own) {
        return refuse("the model that is to be packed", "another path");
    }
    if !force {
        return refuse("something there already", "nothing, or to be told to replace it");
    }
    let folder_wanted = matches!(source.origin(), Origin::HuggingFace(_));
    match (folder_wanted, there.is_dir()) {
        (true, true) if !hf::is_packed_folder(out) => {
            refuse("a folder that is no packed model", "a packed model to replace")
        }
        (true, false) => refuse("a file", "a folder to replace"),
        (false, true) => refuse("a folder", "a file to replace"),
        _ => Ok(()),
    }
}

/// A file or folder under another name, removed unless it is kept.
struct Partial {
    path: Option<PathBuf>,
}

impl Partial {
    /// The name next to `out`; files there are on the same disk, so that they can be renamed.
    fn name(out: &Path) -> PathBuf {
        let name = out.file_name().unwrap_or(out.as_os_str()).to_string_lossy();
        out.with_file_name(format!(".{name}.{}.partial", std::process::id()))
    }

    fn file(out: &Path) -> Result<Self, ModelError> {
        let path = Self::name(out);
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .map_err(|e| ModelError::io(&path, "create", e))?;
        Ok(Self { path: Some(path) })
    }

    fn folder(out: &Path) -> Result<Self, ModelError> {
        let path = Self::name(out);
        // What a process of the same number left behind.
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).map_err(|e| ModelError::io(&path, "create", e))?;
        Ok(Self { path: Some(path) })
    }

    fn path(&self) -> &Path {
        self.path.as_deref().unwrap_or(Path::new(""))
    }

    /// Gives it its name, in place of what is there.
    fn keep(mut self, out: &Path) -> Result<(), ModelError> {
        let rename = |from: &Path, to: &Path| {
            fs::rename(from, to).map_err(|e| ModelError::io(to, "replace", e))
        };
        let new = self.path().to_owned();
        if new.is_dir() && out.is_dir() {
            // A folder cannot be renamed onto another: the old one makes way, and comes back if that was in vain.
            let old = new.with_extension("old");
            rename(out, &old)?;
            if let Err(error) = rename(&new, out) {
                let _ = fs::rename(&old, out);
                return Err(error);
            }
            self.path = Some(old);
            return Ok(());
        }
        rename(&new, out)?;
        self.path = None;
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // Nothing more can be done about what cannot be removed.
            let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        }
    }
}

/// A piece of work: a few row blocks of a matrix, or all of another tensor.
enum Job {
    Slice { matrix: usize, row_blocks: Range<usize> },
    Whole { entry: usize },
}

fn write_tensors(
    path: &Path,
    source: &ModelSource,
    plan: &Plan,
    layout: &Layout,
    progress: PackProgress<'_>,
) -> Result<(), ModelError> {
    let io = |e| ModelError::io(path, "write", e);
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).open(path).map_err(io)?;
    // What nothing is written to is zeros.
    file.set_len(layout.len).map_err(io)?;
    file.write_all(&layout.header).map_err(io)?;
    let work = Work {
        path,
        file: Mutex::new(file),
        plan,
        layout,
        jobs: jobs(plan),
        next: AtomicUsize::new(0),
        ended: AtomicBool::new(false),
        done: AtomicU64::new(0),
        failure: Mutex::new(None),
        places: places(plan, layout),
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 1..cores.min(work.jobs.len()) {
            scope.spawn(|| work.run(&mut || {}));
        }
        let mut show = || {
            let ended = work.ended.load(Relaxed);
            if !ended && progress(work.done.load(Relaxed), source.bytes()).is_break() {
                work.fail(ModelError::Cancelled { path: path.to_owned() });
            }
        };
        show();
        work.run(&mut show);
    });
    if let Some(error) = work.failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let file = work.file.into_inner().unwrap_or_else(PoisonError::into_inner);
    file.sync_all().map_err(io)
}

fn jobs(plan: &Plan) -> Vec<Job> {
    let mut jobs = Vec::new();
    for (matrix, planned) in plan.matrices.iter().enumerate() {
        let row_blocks = planned.layout.row_blocks();
        let step = (SLICE_BYTES / planned.layout.row_block_sizes()[0].max(1)).max(1);
        for start in (0..row_blocks).step_by(step) {
            jobs.push(Job::Slice { matrix, row_blocks: start..(start + step).min(row_blocks) });
        }
    }
    for (entry, of) in plan.entries.iter().enumerate() {
        if !matches!(of.contents, Contents::Section { .. }) {
            jobs.push(Job::Whole { entry });
        }
    }
    jobs
}

/// For each matrix where its sections begin.
fn places(plan: &Plan, layout: &Layout) -> Vec<[u64; 4]> {
    let mut places = vec![[0; 4]; plan.matrices.len()];
    for (entry, &offset) in plan.entries.iter().zip(&layout.offsets) {
        if let Contents::Section { matrix, section } = entry.contents {
            places[matrix][section] = offset;
        }
    }
    places
}

struct Work<'a> {
    path: &'a Path,
    file: Mutex<File>,
    plan: &'a Plan,
    layout: &'a Layout,
    jobs: Vec<Job>,
    next: AtomicUsize,
    ended: AtomicBool,
    done: AtomicU64,
    failure: Mutex<Option<ModelError>>,
    places: Vec<[u64; 4]>,
}

impl Work<'_> {
    fn run(&self, after_each: &mut dyn FnMut()) {
        let mut packed = FragmentMatrix::default();
        while !self.ended.load(Relaxed)
            && let Some(job) = self.jobs.get(self.next.fetch_add(1, Relaxed))
        {
            let done = match job {
                Job::Slice { matrix, row_blocks } => self.slice(*matrix, row_blocks, &mut packed),
                Job::Whole { entry } => self.whole(*entry),
            };
            match done {
                Ok(bytes) => drop(self.done.fetch_add(bytes, Relaxed)),
                Err(error) => self.fail(error),
            }
            after_each();
        }
    }

    fn fail(&self, error: ModelError) {
        self.ended.store(true, Relaxed);
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    fn put(&self, offset: u64, bytes: &[u8]) -> Result<(), ModelError> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(offset))
            .and_then(|_| file.write_all(bytes))
            .map_err(|e| ModelError::io(self.path, "write", e))
    }

    /// Packs and writes row blocks of a matrix. Returns the bytes of the source that they were made from.
    fn slice(
        &self,
        matrix: usize,
        row_blocks: &Range<usize>,
        packed: &mut FragmentMatrix,
    ) -> Result<u64, ModelError> {
        let planned = &self.plan.matrices[matrix];
        let tensor = &planned.tensor;
        let weight = tensor.weight();
        weight
            .matrix()
            .and_then(|matrix| planned.layout.pack_row_blocks(&matrix, row_blocks.clone(), packed))
            .map_err(|error| {
                let expected = "a matrix that can be packed";
                ModelError::invalid(
                    &tensor.file,
                    At::tensor(&tensor.name),
                    error.to_string(),
                    expected,
                )
            })?;
        let parts = [&packed.codes, &packed.scales, &packed.mins, &packed.supers];
        let sizes = planned.layout.row_block_sizes();
        for ((part, size), &at) in parts.into_iter().zip(sizes).zip(&self.places[matrix]) {
            if size > 0 {
                self.put(at + (row_blocks.start * size) as u64, part)?;
            }
        }
        let row = tensor.format.row_bytes(tensor.cols());
        let end = (row_blocks.end * BLOCK_ROWS).min(tensor.rows());
        let rows = row_blocks.start * BLOCK_ROWS * row..end * row;
        if let Some(done) = tensor.data.slice(rows.clone()) {
            done.release();
        }
        Ok(rows.len() as u64)
    }

    /// Writes a vector, or what is as it was.
    fn whole(&self, entry: usize) -> Result<u64, ModelError> {
        let offset = self.layout.offsets[entry];
        match &self.plan.entries[entry].contents {
            Contents::Section { .. } => Ok(0),
            Contents::Unchanged(tensor) => {
                self.put(offset, &tensor.data)?;
                Ok(tensor.bytes())
            }
            Contents::Floats(tensor) if tensor.format == Format::F32 => {
                self.put(offset, &tensor.data)?;
                Ok(tensor.bytes())
            }
            Contents::Floats(tensor) => {
                let values = tensor.weight().decode().map_err(|error| {
                    let at = At::tensor(&tensor.name);
                    ModelError::invalid(&tensor.file, at, error.to_string(), "a vector of numbers")
                })?;
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                self.put(offset, &bytes)?;
                Ok(tensor.bytes())
            }
        }
    }
}

/// `len` as a multiple of what a file's length is one of.
pub(crate) fn whole_pages(len: u64) -> u64 {
    len.next_multiple_of(FILE_ALIGNMENT)
}
