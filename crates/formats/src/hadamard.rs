//! Walsh–Hadamard transforms of sizes 2^k, 12·2^k and 20·2^k.
//!
//! The matrix is `H = B ⊗ S`, with `S` Sylvester's matrix of order 2^k and `B` of order 1, 12 or 20
//! by Paley's second construction (R. Paley, "On orthogonal matrices", 1933): for a prime power `q
//! ≡ 1 (mod 4)`, here 5 and 9, with `Q[i, j] = χ(i − j)` the quadratic character of the differences
//! in the field of `q` elements and `C` the matrix `Q` bordered by ones and a zero in the corner,
//! `B = C ⊗ [[1, 1], [1, −1]] + I ⊗ [[1, −1], [−1, −1]]`.
//!
//! All of these are symmetric, so `H·H = n·I`: the normalised transform, `H/√n`, is its own
//! inverse, and the transform without normalisation is its own inverse up to the factor `n`. It
//! takes `n·k` additions for `S` and `n·12` or `n·20` for `B`.

use crate::FormatError;

/// A transform of one size, in place.
#[derive(Clone, Debug)]
pub struct Hadamard {
    size: usize,
    base: Base,
    factor: f32,
}

/// The rows of `B` as signs, `order × order`; empty for order 1.
#[derive(Clone, Debug)]
struct Base {
    order: usize,
    signs: Vec<f32>,
}

impl Hadamard {
    /// The transform of `size` elements, with the factor `1/√size` if `normalized`.
    ///
    /// # Errors
    /// [`FormatError::HadamardSize`] unless `size` is 2^k, 12·2^k or 20·2^k.
    pub fn new(size: usize, normalized: bool) -> Result<Self, FormatError> {
        let order = [1, 12, 20]
            .into_iter()
            .find(|order| size.is_multiple_of(*order) && (size / order).is_power_of_two());
        let base = match order {
            Some(1) => Base { order: 1, signs: Vec::new() },
            Some(12) => Base::paley(5),
            Some(20) => Base::paley(9),
            _ => return Err(FormatError::HadamardSize(size)),
        };
        let factor = if normalized { (1.0 / (size as f64).sqrt()) as f32 } else { 1.0 };
        Ok(Hadamard { size, base, factor })
    }

    /// Elements that are transformed together.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Transforms every run of [`Self::size`] elements of `x` in place.
    ///
    /// # Panics
    /// The length of `x` is not a multiple of the size.
    pub fn apply(&self, x: &mut [f32]) {
        assert!(
            x.len().is_multiple_of(self.size),
            "{} elements do not divide into transforms of {}",
            x.len(),
            self.size
        );
        let run = self.size / self.base.order;
        for x in x.chunks_exact_mut(self.size) {
            for x in x.chunks_exact_mut(run) {
                sylvester(x);
            }
            self.base.apply(x, run);
            if self.factor != 1.0 {
                x.iter_mut().for_each(|x| *x *= self.factor);
            }
        }
    }
}

/// Sylvester's transform of a power of two elements: butterflies over ever larger halves.
fn sylvester(x: &mut [f32]) {
    let mut half = 1;
    while half < x.len() {
        for pair in x.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
}

/// The field of 5 or of 9 elements: differences and squares are all that the construction needs.
#[derive(Clone, Copy)]
enum Field {
    /// The integers modulo 5.
    Five,
    /// `a + b·i` modulo 3 with `i² = −1`, numbered `a + 3b`.
    Nine,
}

impl Field {
    fn difference(self, x: usize, y: usize) -> usize {
        match self {
            Field::Five => (x + 5 - y) % 5,
            Field::Nine => (x % 3 + 3 - y % 3) % 3 + 3 * ((x / 3 + 3 - y / 3) % 3),
        }
    }

    fn square(self, x: usize) -> usize {
        match self {
            Field::Five => x * x % 5,
            Field::Nine => {
                // (a + b·i)² = a² − b² + 2ab·i
                let (a, b) = (x % 3, x / 3);
                (a * a + 2 * b * b) % 3 + 3 * (2 * a * b % 3)
            }
        }
    }
}

impl Base {
    /// Paley's matrix of order `2(q + 1)`, `q` being 5 or 9.
    fn paley(q: usize) -> Self {
        let field = if q == 5 { Field::Five } else { Field::Nine };
        let character = |x: usize| -> i8 {
            match x {
                0 => 0,
                _ if (1..q).any(|root| field.square(root) == x) => 1,
                _ => -1,
            }
        };
        let conference = |i: usize, j: usize| match (i, j) {
            (0, 0) => 0,
            (0, _) | (_, 0) => 1,
            _ => character(field.difference(i - 1, j - 1)),
        };
        let order = 2 * (q + 1);
        let mut signs = Vec::with_capacity(order * order);
        for i in 0..order {
            for j in 0..order {
                let c = conference(i / 2, j / 2);
                let block = [[1, 1], [1, -1]][i % 2][j % 2];
                let diagonal = [[1, -1], [-1, -1]][i % 2][j % 2];
                let sign = c * block + if i / 2 == j / 2 { diagonal } else { 0 };
                signs.push(f32::from(sign));
            }
        }
        Base { order, signs }
    }

    /// Multiplies `x`, as `order` runs of `run` elements, by the matrix.
    fn apply(&self, x: &mut [f32], run: usize) {
        if self.order == 1 {
            return;
        }
        let mut column = [0.0f32; 20];
        let column = &mut column[..self.order];
        for i in 0..run {
            for (j, value) in column.iter_mut().enumerate() {
                *value = x[j * run + i];
            }
            for (j, signs) in self.signs.chunks_exact(self.order).enumerate() {
                x[j * run + i] = signs.iter().zip(&*column).map(|(s, v)| s * v).sum();
            }
        }
    }
}
