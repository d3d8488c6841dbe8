//! Which division of a product is the fastest on a device: measured once, kept in the user's cache folder.
//!
//! A product is tuned per device, format, shape and number of tokens. What was not measured gets
//! [`GemmShape::choose`]'s answer, so nothing ever waits for a measurement that was not asked for.

mod file;
mod measure;

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use serde::{Deserialize, Serialize};

use crate::DeviceProperties;
use crate::ops::linear::{FragmentWeights, GemmShape};

pub(crate) use measure::{Operands, measure};

/// The product of a matrix with some tokens, as far as its speed depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Product {
    /// [`FragmentCode`](marlin_formats::fragment::FragmentCode) of the codes.
    pub code: u32,
    /// [`FragmentScale`](marlin_formats::fragment::FragmentScale) of the scales.
    pub scale: u32,
    /// [`FragmentMin`](marlin_formats::fragment::FragmentMin) of the minimums.
    pub min: u32,
    /// Columns of a scale.
    pub group: usize,
    /// Rows of the matrix, or of each of gate and up.
    pub rows: usize,
    /// Columns of the matrix.
    pub columns: usize,
    /// Whether the weights are gate and up.
    pub gated: bool,
    /// Tokens, as [`token_class`] puts them together.
    pub tokens: usize,
}

/// Numbers of tokens that are divided alike: one, and powers of two from 8, which is one tile, to 512.
pub fn token_class(tokens: usize) -> usize {
    if tokens <= 1 { 1 } else { tokens.next_power_of_two().clamp(8, 512) }
}

impl Product {
    /// The product of `weights` with `tokens` tokens.
    pub fn new(weights: &FragmentWeights, tokens: usize, gated: bool) -> Self {
        let layout = weights.layout();
        Self {
            code: layout.code as u32,
            scale: layout.scale as u32,
            min: layout.min as u32,
            group: layout.group,
            rows: layout.rows,
            columns: layout.cols,
            gated,
            tokens: token_class(tokens),
        }
    }
}

/// A measured product.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tuned {
    /// What was measured.
    pub product: Product,
    /// The fastest division.
    pub shape: GemmShape,
    /// Its time, in microseconds.
    pub microseconds: f64,
    /// The time of [`GemmShape::choose`]'s answer.
    pub default_microseconds: f64,
}

/// What is known of one device.
#[derive(Debug)]
pub struct Tuning {
    file: Option<std::path::PathBuf>,
    shapes: RwLock<HashMap<Product, Tuned>>,
}

impl Tuning {
    /// What the user's cache folder has on a device; nothing where there is no such file, or it is of another
    /// version of the kernels.
    pub fn of_user(properties: &DeviceProperties) -> Self {
        let file = file::path(properties);
        let known = file.as_deref().map(file::read).unwrap_or_default();
        let shapes = known.into_iter().map(|tuned| (tuned.product, tuned)).collect();
        Self { file, shapes: RwLock::new(shapes) }
    }

    /// The division of a product, with room for so many partial sums.
    pub fn shape(
        &self,
        properties: &DeviceProperties,
        weights: &FragmentWeights,
        tokens: usize,
        gated: bool,
        room: usize,
    ) -> GemmShape {
        let product = Product::new(weights, tokens, gated);
        let shapes = self.shapes.read().unwrap_or_else(PoisonError::into_inner);
        match shapes.get(&product) {
            Some(tuned) if tuned.shape.fits(weights, tokens, gated, room) => tuned.shape,
            _ => GemmShape::choose(properties, weights, tokens, gated, room),
        }
    }

    /// Whether a product was measured.
    pub fn knows(&self, product: &Product) -> bool {
        self.shapes.read().unwrap_or_else(PoisonError::into_inner).contains_key(product)
    }

    /// Takes measured products in, and keeps everything for the next run. A folder that cannot be written costs the
    /// next run its tuning: the caller may want to say so.
    ///
    /// # Errors
    /// The system's.
    pub fn keep(&self, tuned: &[Tuned]) -> std::io::Result<()> {
        let mut shapes = self.shapes.write().unwrap_or_else(PoisonError::into_inner);
        shapes.extend(tuned.iter().map(|t| (t.product, *t)));
        let Some(file) = &self.file else { return Ok(()) };
        let mut all: Vec<Tuned> = shapes.values().copied().collect();
        // The same file for the same knowledge.
        all.sort_by_key(|t| {
            let p = t.product;
            (p.code, p.scale, p.min, p.group, p.rows, p.columns, p.gated, p.tokens)
        });
        file::write(file, &all)
    }
}
