//! Models of real shapes with random weights, for measuring speed where no real ones are at hand: speed does not
//! depend on what the weights are.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::Instant;

use marlin_backend::{
    Activation, AttentionSpec, Backend, BackendError, Batch, Executor, ExecutorOptions, HostBytes,
    KvFormat, Norm, Program, ProgramBuilder, Rope, RopeStyle, SamplingSettings, StepToken, Weight,
    WeightSource,
};
use marlin_formats::{Format, OwnedMatrix, encode};

use crate::benchmark::Benchmark;

/// The sizes of a Llama-like model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelShape {
    /// What it is called on a command line.
    pub name: &'static str,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width inside the feed-forward layers.
    pub ffn: usize,
    /// Layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Values per head.
    pub head_dim: usize,
    /// Tokens.
    pub vocabulary: usize,
    /// Whether the embedding is the output head as well.
    pub tied: bool,
}

impl ModelShape {
    /// Shapes by name, from the configurations that the models are published with.
    pub const ALL: [Self; 4] = [
        Self {
            name: "llama-3-8b",
            hidden: 4096,
            ffn: 14336,
            layers: 32,
            heads: 32,
            kv_heads: 8,
            head_dim: 128,
            vocabulary: 128_256,
            tied: false,
        },
        Self {
            name: "llama-3.2-1b",
            hidden: 2048,
            ffn: 8192,
            layers: 16,
            heads: 32,
            kv_heads: 8,
            head_dim: 64,
            vocabulary: 128_256,
            tied: true,
        },
        Self {
            name: "smollm2-135m",
            hidden: 576,
            ffn: 1536,
            layers: 30,
            heads: 9,
            kv_heads: 3,
            head_dim: 64,
            vocabulary: 49_152,
            tied: true,
        },
        Self {
            name: "tiny",
            hidden: 128,
            ffn: 256,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 32,
            vocabulary: 512,
            tied: true,
        },
    ];

    /// The shape of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|shape| shape.name == name)
    }

    /// Its forward pass with random weights in `format`, placed on `backend`; matrices of one shape have the same
    /// numbers.
    ///
    /// # Errors
    /// A format that has no such matrix, or the backend refuses it.
    pub fn program(&self, backend: &dyn Backend, format: Format) -> Result<Program, BackendError> {
        let mut weights = Weights { backend, format, known: HashMap::new() };
        let norm = |weights: &Weights<'_>| -> Result<Norm, BackendError> {
            Ok(Norm { weight: weights.ones(self.hidden)?, eps: 1e-5, offset: 0.0 })
        };
        let spec = AttentionSpec {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            scale: 1.0 / (self.head_dim as f32).sqrt(),
            window: None,
            softcap: None,
            rope: Some(Rope {
                inverse_frequencies: (0..self.head_dim / 2)
                    .map(|i| 500_000_f32.powf(-2.0 * i as f32 / self.head_dim as f32))
                    .collect(),
                style: RopeStyle::HalfSplit,
                magnitude: 1.0,
            }),
            q_norm: None,
            k_norm: None,
        };
        let mut b = ProgramBuilder::new();
        let table = weights.matrix("embedding", self.vocabulary, self.hidden)?;
        let x = b.embed(&table, 1.0);
        for layer in 0..self.layers {
            let mut matrix =
                |part: &str, rows, cols| weights.matrix(&format!("{part} {layer}"), rows, cols);
            let q = matrix("q", self.heads * self.head_dim, self.hidden)?;
            let k = matrix("k", self.kv_heads * self.head_dim, self.hidden)?;
            let v = matrix("v", self.kv_heads * self.head_dim, self.hidden)?;
            let output = matrix("output", self.hidden, self.heads * self.head_dim)?;
            let gate = matrix("gate", self.ffn, self.hidden)?;
            let up = matrix("up", self.ffn, self.hidden)?;
            let down = matrix("down", self.hidden, self.ffn)?;
            let h = b.rms_norm(x, &norm(&weights)?)?;
            let [q, k, v] = b.linear(h, [(&q, None), (&k, None), (&v, None)])?;
            let a = b.attention(q, k, v, &spec)?;
            b.linear_add(a, &output, None, x)?;
            let h = b.rms_norm(x, &norm(&weights)?)?;
            let m = b.gated_linear(h, &gate, &up, Activation::Silu)?;
            b.linear_add(m, &down, None, x)?;
        }
        let outputs = b.select_outputs(x);
        let h = b.rms_norm(outputs, &norm(&weights)?)?;
        let head =
            if self.tied { table } else { weights.matrix("head", self.vocabulary, self.hidden)? };
        let [logits] = b.linear(h, [(&head, None)])?;
        b.finish(logits, None)
    }
}

/// Makes and places weights.
struct Weights<'a> {
    backend: &'a dyn Backend,
    format: Format,
    known: HashMap<(usize, usize), [HostBytes; 3]>,
}

/// Rows that are made; the others repeat them. A multiple of the rows that any format gives one scale.
const MADE_ROWS: usize = 128;

impl Weights<'_> {
    fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<Weight, BackendError> {
        let format = self.format;
        let made = match self.known.entry((rows, cols)) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                let parts = make(format, rows, cols).map_err(|error| BackendError::Weight {
                    name: name.to_owned(),
                    rows,
                    cols,
                    format,
                    problem: error.to_string(),
                })?;
                place.insert(parts)
            }
        };
        let [data, scales, zeros] = made.clone();
        let tensor_scale = 1.0;
        let name = name.to_owned();
        self.backend.place(&WeightSource {
            name,
            format,
            rows,
            cols,
            data,
            scales,
            zeros,
            tensor_scale,
            fragments: None,
        })
    }

    fn ones(&self, len: usize) -> Result<Weight, BackendError> {
        let bytes: Vec<u8> = std::iter::repeat_n(1.0_f32.to_le_bytes(), len).flatten().collect();
        let bytes = HostBytes::from(bytes);
        self.backend.place(&WeightSource::plain("norm", Format::F32, 1, len, bytes))
    }
}

/// Codes, scales and zero points of a matrix whose product with a vector of unit variance has about unit variance.
fn make(
    format: Format,
    rows: usize,
    cols: usize,
) -> Result<[HostBytes; 3], marlin_formats::FormatError> {
    let made = rows.min(MADE_ROWS);
    let spread = (3.0 / cols as f32).sqrt();
    let mut state = 1_u32;
    let values: Vec<f32> = (0..made * cols)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 8) as f32 / (1 << 23) as f32 - 1.0) * spread
        })
        .collect();
    let OwnedMatrix { data, scales, zeros, .. } = encode(format, made, cols, &values)?;
    let sizes = format.sizes(rows, cols)?;
    let repeat = |part: Vec<u8>, len: usize| -> HostBytes {
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            let count = part.len().min(len - bytes.len());
            bytes.extend_from_slice(&part[..count]);
        }
        HostBytes::from(bytes)
    };
    Ok([repeat(data, sizes.data), repeat(scales, sizes.scales), repeat(zeros, sizes.zeros)])
}

/// What to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShapeBenchmark {
    /// Tokens of the prompt; 0 leaves it out.
    pub prompt: usize,
    /// Tokens to decode; 0 leaves it out.
    pub decode: usize,
    /// Tokens per step of the prompt.
    pub batch: usize,
    /// Positions before the first decoded token, of which the cache holds zeros.
    pub depth: usize,
    /// How often.
    pub repetitions: usize,
    /// How keys and values are kept.
    pub kv: KvFormat,
}

impl ShapeBenchmark {
    /// Measures `program` on `backend`, after one round that does not count.
    ///
    /// # Errors
    /// If there is no room for it, or the device fails.
    pub fn run(&self, backend: &dyn Backend, program: Program) -> Result<Benchmark, BackendError> {
        let options = ExecutorOptions {
            max_tokens: self.batch.min(self.prompt.max(1)),
            max_outputs: 1,
            max_sequences: 1,
            context: self.prompt.max(self.depth + self.decode).max(1),
            kv: self.kv,
        };
        let mut executor = backend.compile(program, &options)?;
        let weights = executor.weight_bytes_per_token();
        let positions = self.depth..self.depth + self.decode;
        let mut times = Benchmark {
            prompt_tokens: self.prompt,
            decode_tokens: self.decode,
            decode_bytes: positions.map(|at| weights + executor.kv_bytes_per_token(at)).sum(),
            multiply_adds: executor.multiply_adds_per_token() * self.prompt as u64,
            ..Benchmark::default()
        };
        for round in 0..=self.repetitions {
            executor.begin_sequence(0, &SamplingSettings::GREEDY, &[])?;
            let start = Instant::now();
            self.prefill(&mut *executor, options.max_tokens)?;
            let prefill = start.elapsed().as_secs_f64();
            let start = Instant::now();
            self.decode(&mut *executor)?;
            let decode = start.elapsed().as_secs_f64();
            times.ceilings.push(backend.measure_ceilings());
            if round > 0 {
                times.prefill.extend((self.prompt > 0).then_some(prefill));
                times.decode.extend((self.decode > 0).then_some(decode));
            }
        }
        Ok(times)
    }

    fn prefill(&self, executor: &mut dyn Executor, batch: usize) -> Result<(), BackendError> {
        let tokens: Vec<StepToken> = (0..self.prompt as u32)
            .map(|position| StepToken {
                id: position % 100,
                sequence: 0,
                position,
                output: position as usize + 1 == self.prompt,
            })
            .collect();
        let mut in_flight = 0;
        for tokens in tokens.chunks(batch) {
            if in_flight == executor.max_in_flight() {
                executor.finish()?;
                in_flight -= 1;
            }
            executor.submit(&Batch { tokens, logits: false })?;
            in_flight += 1;
        }
        (0..in_flight).try_for_each(|_| executor.finish())
    }

    fn decode(&self, executor: &mut dyn Executor) -> Result<(), BackendError> {
        let ahead = executor.max_in_flight();
        let mut last = 1;
        for step in 0..self.decode + ahead - 1 {
            if step < self.decode {
                let id = if step == 0 || ahead == 1 { last } else { StepToken::SAMPLED };
                let position = (self.depth + step) as u32;
                let tokens = [StepToken { id, sequence: 0, position, output: true }];
                executor.submit(&Batch { tokens: &tokens, logits: false })?;
            }
            if step + 1 >= ahead {
                executor.finish()?;
                last = executor.sampled().first().copied().unwrap_or(last);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;

    #[test]
    fn a_shape_runs_and_is_timed_as_often_as_was_asked() {
        let cpu = marlin_cpu::CpuBackend::new(NonZeroUsize::new(1)).unwrap();
        let shape = ModelShape::named("tiny").unwrap();
        for format in ["int4-g128", "q8_0", "fp8-block", "f16"] {
            let program = shape.program(&cpu, format.parse().unwrap()).unwrap();
            let benchmark = ShapeBenchmark {
                prompt: 9,
                decode: 3,
                batch: 4,
                depth: 5,
                repetitions: 2,
                kv: KvFormat::F16,
            };
            let times = benchmark.run(&cpu, program).unwrap();
            assert_eq!((times.prefill.len(), times.decode.len()), (2, 2), "{format}");
            // A layer's products: q, k, v, output, gate, up and down.
            let layer = 128 * (128 + 64 + 64 + 128) + 3 * 128 * 256;
            assert_eq!(times.multiply_adds, 9 * 2 * layer, "{format}");
            assert!(times.decode_bytes > 3 * layer, "{format}");
        }
    }
}
