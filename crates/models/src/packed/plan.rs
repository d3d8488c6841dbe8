//! What a packed file holds, and in which order.
//!
//! Sections of one kind lie together, and in each kind the matrices in the order in which a forward pass reads them. So
//! what kernels read as one matrix (queries, keys and values; gate and up) is one range of every kind, and what needs
//! the largest alignment comes first.

use std::collections::HashSet;
use std::sync::Arc;

use marlin_backend::{BackendError, Op, Program, Weight, WeightSource, stacks};
use marlin_formats::fragment::FragmentLayout;

use super::{MatrixShape, SECTIONS};
use crate::error::{At, ModelError};
use crate::source::ModelSource;
use crate::tensor::StoredTensor;

/// The greatest alignment of a tensor: a cache line, or what a SIMD-group loads at once, of any device.
const MOST_ALIGNMENT: u64 = 256;
/// GGUF's default.
const LEAST_ALIGNMENT: u64 = 32;

/// A tensor of the file to be.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) contents: Contents,
    /// Whether the next one must begin where this one ends.
    followed: bool,
}

/// Where a tensor's bytes come from. Numbers are indices in [`Plan::matrices`].
#[derive(Debug)]
pub(crate) enum Contents {
    /// A section (0 to 3) of a matrix.
    Section { matrix: usize, section: usize },
    /// A vector's values as f32.
    Floats(StoredTensor),
    /// A tensor that no kernel reads, as it is.
    Unchanged(StoredTensor),
}

/// A matrix that will be packed.
#[derive(Debug)]
pub(crate) struct PlannedMatrix {
    pub(crate) tensor: StoredTensor,
    pub(crate) layout: FragmentLayout,
}

impl PlannedMatrix {
    pub(crate) fn shape(&self) -> MatrixShape {
        let FragmentLayout { rows, cols, .. } = self.layout;
        MatrixShape { format: self.tensor.format, rows, cols }
    }
}

/// The tensors of a packed file.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) matrices: Vec<PlannedMatrix>,
    pub(crate) entries: Vec<Entry>,
}

impl Plan {
    /// The plan for `source`, whose forward pass says what is read, as what, and in which order.
    pub(crate) fn new(source: &ModelSource) -> Result<Self, ModelError> {
        let program = source.forward(&mut |weight| Ok(Arc::new(weight.clone())))?;
        let refuse = |error| ModelError::backend(source.path(), error);
        let tensor = |weight: &Weight| source.tensors().get(weight.name()).cloned();
        let mut matrices = Vec::new();
        let mut followed = Vec::new();
        let mut known = HashSet::new();
        for matrix in program.matrices(|weight| layout_of(weight).map_err(refuse))? {
            let last = matrix.weights.len() - 1;
            for (i, weight) in matrix.weights.iter().enumerate() {
                // A weight can be part of one matrix only; where another program would have it, it is copied.
                if !known.insert(weight.name().to_owned()) {
                    continue;
                }
                let layout = layout_of(weight).map_err(refuse)?;
                matrices.push(PlannedMatrix { tensor: tensor(weight)?, layout });
                followed.push(i < last);
            }
        }
        let mut entries = Vec::new();
        for (section, suffix) in SECTIONS.iter().enumerate() {
            for (matrix, (planned, &followed)) in matrices.iter().zip(&followed).enumerate() {
                let bytes = planned.layout.sizes()[section] as u64;
                if bytes > 0 {
                    entries.push(Entry {
                        name: format!("{}.{suffix}", planned.tensor.name_in_file),
                        bytes,
                        contents: Contents::Section { matrix, section },
                        followed,
                    });
                }
            }
        }
        let biases = followed_biases(&program).map_err(refuse)?;
        for vector in program.vectors() {
            if !known.insert(vector.name().to_owned()) {
                continue;
            }
            let tensor = tensor(&vector)?;
            let elements: usize = tensor.shape.iter().product();
            entries.push(Entry {
                name: tensor.name_in_file.clone(),
                bytes: 4 * elements as u64,
                contents: Contents::Floats(tensor),
                followed: biases.contains(vector.name()),
            });
        }
        for tensor in source.tensors().iter().filter(|tensor| !known.contains(&tensor.name)) {
            entries.push(Entry {
                name: tensor.name_in_file.clone(),
                bytes: tensor.bytes(),
                contents: Contents::Unchanged(tensor.clone()),
                followed: false,
            });
        }
        Ok(Self { matrices, entries })
    }

    /// What offsets of tensors are multiples of: as large as leaves nothing between those that must follow each other.
    pub(crate) fn alignment(&self) -> u64 {
        let followed = self.entries.iter().filter(|entry| entry.followed);
        let shared = followed.fold(MOST_ALIGNMENT, |alignment, entry| {
            alignment.min(1 << entry.bytes.trailing_zeros())
        });
        shared.max(LEAST_ALIGNMENT)
    }
}

fn layout_of(weight: &Weight) -> Result<FragmentLayout, BackendError> {
    let Some(source) = weight.as_any().downcast_ref::<WeightSource>() else {
        unreachable!("every weight of the program was noted")
    };
    source.fragment_layout().map_err(|error| BackendError::Weight {
        name: source.name.clone(),
        rows: source.rows,
        cols: source.cols,
        format: source.format,
        problem: error.to_string(),
    })
}

/// The biases that the next bias must follow directly, because their products are one.
fn followed_biases(program: &Program) -> Result<HashSet<String>, BackendError> {
    let mut followed = HashSet::new();
    for (index, op) in program.ops.iter().enumerate() {
        let Op::Linear { parts, .. } = op else { continue };
        let layouts: Vec<FragmentLayout> =
            parts.iter().map(|part| layout_of(&part.weight)).collect::<Result<_, _>>()?;
        let mut rest = &parts[..];
        for count in stacks(&layouts, program.joins_parts(index)) {
            let (now, later) = rest.split_at(count);
            let biases: Option<Vec<&Weight>> = now.iter().map(|p| p.bias.as_ref()).collect();
            if let Some((_, before)) = biases.as_deref().and_then(<[_]>::split_last) {
                followed.extend(before.iter().map(|bias| bias.name().to_owned()));
            }
            rest = later;
        }
    }
    Ok(followed)
}

/// Refuses a model that is packed already.
pub(crate) fn check_original(source: &ModelSource) -> Result<(), ModelError> {
    match source.tensors().iter().find(|tensor| tensor.fragments.is_some()) {
        None => Ok(()),
        Some(tensor) => Err(ModelError::unsupported(
            &tensor.file,
            At::File,
            "a packed model",
            "one that is not packed yet",
        )),
    }
}
