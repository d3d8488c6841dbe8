//! A small model from token to token: every op of a decoder layer, one after the other, on a backend.

use marlin_backend::{
    Activation, AttentionSpec, Backend, Batch, ExecutorOptions, HostBytes, KvFormat, Norm, Program,
    ProgramBuilder, Rope, RopeStyle, SamplingSettings, StepToken, Weight, WeightSource,
};
use marlin_formats::{Format, GgmlType, OwnedMatrix, encode};

use super::cache::softmax_mean;
use super::elementwise::rotation;
use super::values::{Measured, compare, equal, numbers};
use super::{Checked, Problem, Runner};

const HIDDEN: usize = 256;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const DIM: usize = 64;
const FEED: usize = 512;
const VOCABULARY: usize = 320;
const EPSILON: f32 = 1e-5;
/// Tokens of the prompt, given together, and tokens after it, one by one.
const PROMPT: [u32; 7] = [5, 300, 17, 17, 2, 250, 90];
const STEPS: usize = 4;

pub(super) fn run(backend: &dyn Backend, runner: &mut Runner<'_>) {
    for format in [
        Format::F16,
        Format::Ggml(GgmlType::Q8_0),
        Format::Ggml(GgmlType::Q4_0),
        Format::Ggml(GgmlType::Q4K),
        Format::Ggml(GgmlType::Q6K),
        Format::INT4_G128,
    ] {
        runner.check("model", format!("logits and tokens, weights of {format}"), || {
            answers(backend, format)
        });
    }
}

/// The weights of one layer and the two ends.
struct Weights {
    table: OwnedMatrix,
    norms: [Vec<f32>; 3],
    q: OwnedMatrix,
    k: OwnedMatrix,
    v: OwnedMatrix,
    o: OwnedMatrix,
    gate: OwnedMatrix,
    up: OwnedMatrix,
    down: OwnedMatrix,
    head: OwnedMatrix,
}

impl Weights {
    fn new(format: Format) -> Result<Self, Problem> {
        let mut seed = 50;
        let mut matrix = |format: Format, rows: usize, cols: usize| {
            seed += 1;
            // So that sums stay about as large as what is summed.
            let scale = (3.0 / cols as f32).sqrt();
            let values: Vec<f32> =
                numbers(seed, rows * cols).into_iter().map(|x| x * scale).collect();
            encode(format, rows, cols, &values)
        };
        Ok(Self {
            table: matrix(Format::F16, VOCABULARY, HIDDEN)?,
            norms: [1, 2, 3].map(|i| numbers(i, HIDDEN).iter().map(|x| 1.0 + 0.2 * x).collect()),
            q: matrix(format, HEADS * DIM, HIDDEN)?,
            k: matrix(format, KV_HEADS * DIM, HIDDEN)?,
            v: matrix(format, KV_HEADS * DIM, HIDDEN)?,
            o: matrix(format, HIDDEN, HEADS * DIM)?,
            gate: matrix(format, FEED, HIDDEN)?,
            up: matrix(format, FEED, HIDDEN)?,
            down: matrix(format, HIDDEN, FEED)?,
            head: matrix(format, VOCABULARY, HIDDEN)?,
        })
    }

    fn program(&self, backend: &dyn Backend) -> Result<Program, Problem> {
        let place = |name: &str, matrix: &OwnedMatrix| -> Result<Weight, Problem> {
            let source = WeightSource {
                name: name.to_owned(),
                format: matrix.format,
                rows: matrix.rows,
                cols: matrix.cols,
                data: HostBytes::from(matrix.data.clone()),
                scales: HostBytes::from(matrix.scales.clone()),
                zeros: HostBytes::from(matrix.zeros.clone()),
                tensor_scale: matrix.tensor_scale,
                fragments: None,
            };
            Ok(backend.place(&source)?)
        };
        let norm = |which: usize| -> Result<Norm, Problem> {
            let bytes: Vec<u8> = self.norms[which].iter().flat_map(|x| x.to_le_bytes()).collect();
            let name = format!("norm {which}");
            let source = WeightSource::plain(name, Format::F32, 1, HIDDEN, HostBytes::from(bytes));
            Ok(Norm { weight: backend.place(&source)?, eps: EPSILON, offset: 0.0 })
        };
        let mut b = ProgramBuilder::new();
        let x = b.embed(&place("table", &self.table)?, 1.0);
        let h = b.rms_norm(x, &norm(0)?)?;
        let (q, k, v) = (place("q", &self.q)?, place("k", &self.k)?, place("v", &self.v)?);
        let [q, k, v] = b.linear(h, [(&q, None), (&k, None), (&v, None)])?;
        let spec = AttentionSpec {
            heads: HEADS,
            kv_heads: KV_HEADS,
            head_dim: DIM,
            scale: 1.0 / (DIM as f32).sqrt(),
            window: None,
            softcap: None,
            rope: Some(Rope {
                inverse_frequencies: frequencies().into(),
                style: RopeStyle::HalfSplit,
                magnitude: 1.0,
            }),
            q_norm: None,
            k_norm: None,
        };
        let a = b.attention(q, k, v, &spec)?;
        b.linear_add(a, &place("o", &self.o)?, None, x)?;
        let h = b.rms_norm(x, &norm(1)?)?;
        let (gate, up) = (place("gate", &self.gate)?, place("up", &self.up)?);
        let m = b.gated_linear(h, &gate, &up, Activation::Silu)?;
        b.linear_add(m, &place("down", &self.down)?, None, x)?;
        let x = b.select_outputs(x);
        let h = b.rms_norm(x, &norm(2)?)?;
        let [logits] = b.linear(h, [(&place("head", &self.head)?, None)])?;
        Ok(b.finish(logits, None)?)
    }

    /// The logits after each token, in f64.
    fn reference(&self, tokens: &[u32]) -> Vec<Vec<f64>> {
        let decoded = |m: &OwnedMatrix| m.view().decode();
        let [table, q, k, v, o, gate, up, down, head] = [
            &self.table,
            &self.q,
            &self.k,
            &self.v,
            &self.o,
            &self.gate,
            &self.up,
            &self.down,
            &self.head,
        ]
        .map(decoded);
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        let mut out = Vec::new();
        for (position, token) in tokens.iter().enumerate() {
            let row = &table[*token as usize * HIDDEN..][..HIDDEN];
            let mut x: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
            let h = self.norm(0, &x);
            let turned = |heads: Vec<f64>| -> Vec<Vec<f64>> {
                let turn = |head: &[f64]| {
                    rotation(head, RopeStyle::HalfSplit, position as u32, &frequencies())
                };
                heads.chunks(DIM).map(turn).collect()
            };
            let queries = turned(product(&q, &h));
            keys.extend(turned(product(&k, &h)));
            values.extend(product(&v, &h).chunks(DIM).map(<[f64]>::to_vec));
            let scale = 1.0 / (DIM as f64).sqrt();
            let attended: Vec<f64> = queries
                .iter()
                .enumerate()
                .flat_map(|(head, query)| {
                    let kv_head = head / (HEADS / KV_HEADS);
                    let rows: Vec<usize> = (0..=position).map(|p| p * KV_HEADS + kv_head).collect();
                    softmax_mean(query, &keys, &values, &rows, scale)
                })
                .collect();
            add(&mut x, &product(&o, &attended));
            let h = self.norm(1, &x);
            let fed: Vec<f64> = product(&gate, &h)
                .iter()
                .zip(product(&up, &h))
                .map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up)
                .collect();
            add(&mut x, &product(&down, &fed));
            out.push(product(&head, &self.norm(2, &x)));
        }
        out
    }

    fn norm(&self, which: usize, x: &[f64]) -> Vec<f64> {
        let mean = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
        let scale = 1.0 / (mean + f64::from(EPSILON)).sqrt();
        x.iter().zip(&self.norms[which]).map(|(v, w)| v * scale * f64::from(*w)).collect()
    }
}

fn frequencies() -> Vec<f32> {
    let pairs = DIM / 2;
    (0..pairs).map(|i| 10_000f32.powf(-(i as f32) / pairs as f32)).collect()
}

fn product(weights: &[f32], x: &[f64]) -> Vec<f64> {
    let dot = |row: &[f32]| row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum();
    weights.chunks(x.len()).map(dot).collect()
}

fn add(x: &mut [f64], more: &[f64]) {
    for (x, more) in x.iter_mut().zip(more) {
        *x += more;
    }
}

fn greatest(logits: &[f32]) -> u32 {
    (0..logits.len()).rev().max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap_or(0) as u32
}

fn answers(backend: &dyn Backend, format: Format) -> Checked {
    let weights = Weights::new(format)?;
    let program = weights.program(backend)?;
    backend.load(&program, &mut |_| {})?;
    let options = ExecutorOptions {
        max_tokens: PROMPT.len(),
        max_outputs: PROMPT.len(),
        max_sequences: 1,
        context: 64,
        kv: KvFormat::F16,
    };
    let mut executor = backend.compile(program, &options)?;
    executor.begin_sequence(0, &SamplingSettings::GREEDY, &[])?;

    let mut tokens = PROMPT.to_vec();
    let mut logits: Vec<Vec<f32>> = Vec::new();
    let (mut sampled, mut greedy) = (Vec::new(), Vec::new());
    let mut next: Vec<StepToken> = Vec::new();
    for (position, id) in PROMPT.into_iter().enumerate() {
        next.push(StepToken { id, sequence: 0, position: position as u32, output: true });
    }
    for _ in 0..=STEPS {
        executor.step(&Batch { tokens: &next, logits: true })?;
        for output in 0..next.len() {
            let row = executor.logits(output).ok_or_else(|| {
                Problem::Failed("it gives no logits although they were asked for".to_owned())
            })?;
            greedy.push(greatest(row));
            logits.push(row.to_vec());
        }
        sampled.extend_from_slice(executor.sampled());
        let id = executor.sampled()[next.len() - 1];
        let position = tokens.len() as u32;
        tokens.push(id);
        next = vec![StepToken { id, sequence: 0, position, output: true }];
    }
    tokens.pop();
    let expected: Vec<f64> = weights.reference(&tokens).into_iter().flatten().collect();
    // The CPU multiplies activations as 8-bit codes, GPUs as 16-bit floats.
    let allowed = if backend.name() == "cpu" { 6e-2 } else { 2e-2 };
    let near: Measured = compare(&logits.concat(), &expected, allowed);
    Ok(near.and(equal(&sampled, &greedy)))
}
