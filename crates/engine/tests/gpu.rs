//! A model on a GPU says what it says on the CPU.
//!
//! On the emulated device, whose checks make every mistake of placement an error; with `MARLIN_TEST_DEVICE=cuda` and
//! the feature `cuda` on an NVIDIA GPU. Needs the feature `emulated`, which tests of the whole workspace have.
#![cfg(feature = "emulated")]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use marlin_backend::{
    Activation, AttentionSpec, Backend, BackendError, Batch, ExecutorOptions, FragmentBytes,
    HostBytes, KvFormat, Norm, Program, ProgramBuilder, Rope, RopeStyle, SamplingSettings,
    StepToken, Weight, WeightSource,
};
use marlin_cpu::CpuBackend;
use marlin_engine::{
    DeviceChoice, GenerateOptions, Generated, Model, ModelOptions, Request, SessionOptions,
};
use marlin_formats::fragment::{FragmentLayout, FragmentMatrix};
use marlin_formats::{Format, encode};
use marlin_gpu::Device;
use marlin_gpu::emulated::{Emulated, EmulatedOptions};
use marlin_gpu::model::{Activations, GpuBackend};
use marlin_models::ModelSource;
use marlin_placement::{Direction, Phase};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/architectures").join(name)
}

#[cfg(all(feature = "cuda", any(target_os = "linux", windows)))]
fn gpu() -> Option<Arc<dyn Device>> {
    let asked = std::env::var_os("MARLIN_TEST_DEVICE").is_some_and(|device| device == "cuda");
    asked.then(|| -> Arc<dyn Device> {
        Arc::new(marlin_gpu::cuda::Cuda::open(0).expect("an NVIDIA GPU, its driver and NVRTC"))
    })
}

#[cfg(not(all(feature = "cuda", any(target_os = "linux", windows))))]
fn gpu() -> Option<Arc<dyn Device>> {
    None
}

/// The device under test: with `unified`, memory that it shares with the host, where it can choose.
fn device(unified: bool) -> Arc<dyn Device> {
    gpu().unwrap_or_else(|| {
        let options = EmulatedOptions { unified, ..EmulatedOptions::default() };
        Arc::new(Emulated::new(options).expect("an emulated device"))
    })
}

fn device_choice() -> DeviceChoice {
    if gpu().is_some() { DeviceChoice::Cuda(0) } else { DeviceChoice::Emulated }
}

/// Numbers between -1 and 1, the same in every run.
fn numbers(seed: u32, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// Tokens that mean nothing, the same in every run.
fn tokens(count: usize, vocabulary: usize) -> Vec<u32> {
    (0..count).map(|i| ((i * 7919 + 13) % vocabulary) as u32).collect()
}

const POSITIONS: usize = 40;

/// The logits after every token of one sequence, in steps of `step`.
fn logits(
    backend: &dyn Backend,
    program: Program,
    kv: KvFormat,
    ids: &[u32],
    step: usize,
) -> Result<Vec<Vec<f32>>, BackendError> {
    let options = ExecutorOptions {
        max_tokens: POSITIONS,
        max_outputs: POSITIONS,
        max_sequences: 2,
        context: POSITIONS,
        kv,
    };
    let mut executor = backend.compile(program, &options)?;
    executor.begin_sequence(1, &SamplingSettings::GREEDY, &[])?;
    let all: Vec<StepToken> = (0..)
        .zip(ids)
        .map(|(position, &id)| StepToken { id, sequence: 1, position, output: true })
        .collect();
    let mut found = Vec::new();
    for tokens in all.chunks(step) {
        executor.step(&Batch { tokens, logits: true })?;
        found.extend((0..tokens.len()).map(|o| executor.logits(o).expect("asked for").to_vec()));
    }
    Ok(found)
}

/// The greatest difference of two rows, relative to the greatest of the first.
fn assert_close(expected: &[Vec<f32>], found: &[Vec<f32>], most: f32, what: &str) {
    assert_eq!(expected.len(), found.len(), "{what}");
    for (position, (expected, found)) in expected.iter().zip(found).enumerate() {
        let greatest = expected.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
        let far = expected.iter().zip(found).fold(0.0_f32, |m, (a, b)| m.max((a - b).abs()));
        // A comparison that NaN fails.
        assert!(far <= most * greatest, "{what}: {} at {position}", far / greatest);
    }
}

fn program(name: &str, backend: &dyn Backend) -> Program {
    let source = ModelSource::open(&fixture(name)).unwrap();
    source.forward(&mut |weight| backend.place(weight)).unwrap()
}

/// A model of the fixtures, with the prompt at once, in sevens and token by token.
fn compare_model(name: &str) {
    let cpu = CpuBackend::new(None).unwrap();
    let vocabulary = {
        let program = program(name, &cpu);
        program.tensors[program.logits.index()].width
    };
    let ids = tokens(POSITIONS, vocabulary);
    let expected = logits(&cpu, program(name, &cpu), KvFormat::F32, &ids, POSITIONS).unwrap();
    // At its last token the tiny Gemma makes ten times as much of every rounding as elsewhere, bf16's included.
    let half = if name.starts_with("gemma") { 3e-2 } else { 1e-2 };
    for (activations, most) in
        [(Activations::F32, 1e-3), (Activations::F16, half), (Activations::Bf16, 1e-1)]
    {
        for (step, unified) in [(POSITIONS, true), (7, false), (1, true)] {
            let gpu = GpuBackend::new(device(unified), activations);
            let found = logits(&gpu, program(name, &gpu), KvFormat::F32, &ids, step)
                .unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_close(&expected, &found, most, &format!("{name}, {activations:?}, by {step}"));
        }
    }
}

macro_rules! models {
    ($($name:ident: $file:literal;)*) => {
        $(#[test] fn $name() { compare_model($file); })*
    };
}

models! {
    llama: "llama";
    llama_in_bf16: "llama_bf16";
    llama_in_f16: "llama_f16";
    llama_3_with_scaled_rope: "llama3_rope";
    llama_3_as_gguf_with_interleaved_pairs: "llama3_rope.gguf";
    mistral_with_a_sliding_window: "mistral";
    qwen2_with_biases: "qwen2";
    qwen2_as_gguf: "qwen2.gguf";
    qwen3_with_head_norms_in_two_shards: "qwen3";
    gemma3: "gemma3";
    gemma3_as_gguf: "gemma3.gguf";
    gemma3_with_linear_scaling: "gemma3_linear";
}

/// Places matrices in a format.
struct Weights<'a> {
    backend: &'a dyn Backend,
    format: Format,
    numbers: Numbers,
    seed: u32,
}

/// What a matrix's numbers are given as.
#[derive(Clone, Copy, PartialEq)]
enum Numbers {
    /// Rows of the format.
    Rows,
    /// The format in the order that GPU kernels read.
    Packed,
    /// The f32 numbers that the format's codes stand for.
    Decoded,
}

impl Weights<'_> {
    fn matrix(&mut self, rows: usize, cols: usize) -> Weight {
        self.seed += 1;
        let size = 2.0 / (cols as f32).sqrt();
        let values: Vec<f32> =
            numbers(self.seed, rows * cols).into_iter().map(|x| x * size).collect();
        let matrix = encode(self.format, rows, cols, &values).unwrap();
        if self.numbers == Numbers::Decoded {
            return self.floats(rows, cols, &matrix.view().decode());
        }
        if self.numbers == Numbers::Packed {
            let view = matrix.view();
            let layout = FragmentLayout::new(self.format, rows, cols, view.tensor_scale).unwrap();
            let FragmentMatrix { codes, scales, mins, supers } = layout.pack(&view).unwrap();
            let [codes, scales, mins, supers] = [codes, scales, mins, supers].map(HostBytes::from);
            let fragments = FragmentBytes { codes, scales, mins, supers };
            let name = format!("matrix {}", self.seed);
            let source = WeightSource::packed(name, self.format, rows, cols, fragments);
            let source = WeightSource { tensor_scale: view.tensor_scale, ..source };
            return self.backend.place(&source).unwrap();
        }
        let source = WeightSource {
            name: format!("matrix {}", self.seed),
            format: self.format,
            rows,
            cols,
            data: matrix.data.into(),
            scales: matrix.scales.into(),
            zeros: matrix.zeros.into(),
            tensor_scale: matrix.tensor_scale,
            fragments: None,
        };
        self.backend.place(&source).unwrap()
    }

    fn vector(&mut self, len: usize) -> Weight {
        self.seed += 1;
        let values: Vec<f32> = numbers(self.seed, len).into_iter().map(|x| 1.0 + 0.1 * x).collect();
        self.floats(1, len, &values)
    }

    fn floats(&self, rows: usize, cols: usize, values: &[f32]) -> Weight {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let bytes = HostBytes::from(bytes);
        let source = WeightSource::plain("floats", Format::F32, rows, cols, bytes);
        self.backend.place(&source).unwrap()
    }
}

const HIDDEN: usize = 256;
const HEAD: usize = 32;
const VOCABULARY: usize = 80;

/// One layer of a Llama with an untied head, its matrices in `format`.
fn small(backend: &dyn Backend, format: Format, numbers: Numbers) -> Program {
    let mut weights = Weights { backend, format, numbers, seed: 0 };
    let (heads, kv_heads, ffn) = (8, 4, 512);
    let norm =
        |weights: &mut Weights<'_>| Norm { weight: weights.vector(HIDDEN), eps: 1e-5, offset: 0.0 };
    let mut b = ProgramBuilder::new();
    let table = weights.matrix(VOCABULARY, HIDDEN);
    let x = b.embed(&table, 1.0);
    let attention_norm = norm(&mut weights);
    let h = b.rms_norm(x, &attention_norm).unwrap();
    let [q, k, v] = [heads, kv_heads, kv_heads].map(|heads| weights.matrix(heads * HEAD, HIDDEN));
    let [q, k, v] = b.linear(h, [(&q, None), (&k, None), (&v, None)]).unwrap();
    let spec = AttentionSpec {
        heads,
        kv_heads,
        head_dim: HEAD,
        scale: 1.0 / (HEAD as f32).sqrt(),
        window: None,
        softcap: None,
        rope: Some(Rope {
            inverse_frequencies: (0..HEAD / 2).map(|i| 0.5_f32.powi(i as i32)).collect(),
            style: RopeStyle::HalfSplit,
            magnitude: 1.0,
        }),
        q_norm: None,
        k_norm: None,
    };
    let a = b.attention(q, k, v, &spec).unwrap();
    let output = weights.matrix(HIDDEN, heads * HEAD);
    b.linear_add(a, &output, None, x).unwrap();
    let ffn_norm = norm(&mut weights);
    let h = b.rms_norm(x, &ffn_norm).unwrap();
    let [gate, up] = [(); 2].map(|()| weights.matrix(ffn, HIDDEN));
    let m = b.gated_linear(h, &gate, &up, Activation::Silu).unwrap();
    let down = weights.matrix(HIDDEN, ffn);
    b.linear_add(m, &down, None, x).unwrap();
    let outputs = b.select_outputs(x);
    let last = norm(&mut weights);
    let h = b.rms_norm(outputs, &last).unwrap();
    let head = weights.matrix(VOCABULARY, HIDDEN);
    let [logits] = b.linear(h, [(&head, None)]).unwrap();
    b.finish(logits, None).unwrap()
}

/// The reference is the CPU with the same numbers as f32: it rounds no activation.
#[test]
fn every_format_gives_the_logits_of_its_numbers() {
    let cpu = CpuBackend::new(None).unwrap();
    let ids = tokens(4, VOCABULARY);
    for format in Format::ALL {
        let kv = KvFormat::F32;
        let expected = logits(&cpu, small(&cpu, format, Numbers::Decoded), kv, &ids, 4).unwrap();
        for (activations, most) in [(Activations::F32, 1e-3), (Activations::F16, 2e-2)] {
            let gpu = GpuBackend::new(device(false), activations);
            // Three tokens at once, then one.
            let found = logits(&gpu, small(&gpu, format, Numbers::Rows), kv, &ids, 3)
                .unwrap_or_else(|e| panic!("{format}: {e}"));
            assert_close(&expected, &found, most, &format!("{format}, {activations:?}"));
        }
    }
}

/// The order in which a file has them changes nothing: a device that packs gets the same bytes, and the processor takes them
/// apart without loss.
#[test]
fn every_format_gives_the_same_logits_packed() {
    let ids = tokens(4, VOCABULARY);
    let of = |backend: &dyn Backend, format, numbers| {
        logits(backend, small(backend, format, numbers), KvFormat::F32, &ids, 3)
            .unwrap_or_else(|e| panic!("{format}: {e}"))
    };
    for format in Format::ALL {
        let cpu = CpuBackend::new(None).unwrap();
        let [rows, packed] = [Numbers::Rows, Numbers::Packed].map(|n| of(&cpu, format, n));
        assert_eq!(packed, rows, "{format} on the processor");
        let gpu = GpuBackend::new(device(false), Activations::F16);
        let [rows, packed] = [Numbers::Rows, Numbers::Packed].map(|n| of(&gpu, format, n));
        assert_eq!(packed, rows, "{format} on the device");
    }
}

#[test]
fn every_cache_gives_the_logits_of_f32_nearly() {
    let cpu = CpuBackend::new(None).unwrap();
    let ids = tokens(POSITIONS, VOCABULARY);
    let program = |backend: &dyn Backend| small(backend, Format::F32, Numbers::Rows);
    let expected = logits(&cpu, program(&cpu), KvFormat::F32, &ids, POSITIONS).unwrap();
    for (kv, most) in [(KvFormat::F32, 1e-3), (KvFormat::F16, 2e-3), (KvFormat::Q8, 3e-2)] {
        for step in [POSITIONS, 1] {
            let gpu = GpuBackend::new(device(true), Activations::F32);
            let found = logits(&gpu, program(&gpu), kv, &ids, step).unwrap();
            assert_close(&expected, &found, most, &format!("{kv:?} by {step}"));
        }
    }
}

fn load(choice: DeviceChoice) -> Arc<Model> {
    let options = ModelOptions {
        device: choice,
        activations: Some(marlin_engine::Activations::F32),
        ..Default::default()
    };
    Model::load(&fixture("qwen2.gguf"), &options).unwrap()
}

fn generate(model: &Arc<Model>, requests: &[Request]) -> Vec<Generated> {
    let options = SessionOptions {
        ctx: 96,
        max_sequences: 3,
        batch: 16,
        kv: KvFormat::F32,
        ..SessionOptions::default()
    };
    let mut session = model.session(options).unwrap();
    session.generate_batch(requests, &mut |_, _| ControlFlow::Continue(())).unwrap()
}

/// Prompts of several lengths, continued together while the device runs a step ahead: one sequence ends early, and
/// what was computed for it in vain changes nothing.
#[test]
fn generated_tokens_are_the_cpus() {
    let request = |start: u32, len: u32, max_tokens, sampling: SamplingSettings| Request {
        prompt: (0..len).map(|i| 20 + (start + 7 * i) % 200).collect(),
        options: GenerateOptions { sampling, max_tokens, stop_at_end: false, ..Default::default() },
    };
    let penalised = SamplingSettings {
        seed: 11,
        repeat_penalty: 1.2,
        presence_penalty: 0.1,
        frequency_penalty: 0.1,
        ..Default::default()
    };
    let seeded = SamplingSettings { seed: 5, ..Default::default() };
    let requests = [
        request(3, 40, 30, SamplingSettings::GREEDY),
        request(50, 5, 8, penalised),
        request(90, 21, 40, seeded),
    ];
    let expected = generate(&load(DeviceChoice::Cpu), &requests);
    let found = generate(&load(device_choice()), &requests);
    for (expected, found) in expected.iter().zip(&found) {
        assert_eq!(found.tokens, expected.tokens);
        assert_eq!(found.stop_reason, expected.stop_reason);
    }
}

#[test]
fn a_second_turn_continues_from_the_cache() {
    let model = load(device_choice());
    let options = SessionOptions { ctx: 96, kv: KvFormat::F32, ..SessionOptions::default() };
    let prompt: Vec<u32> = (0..12).map(|i| 30 + 5 * i).collect();
    let greedy = |max_tokens| GenerateOptions {
        sampling: SamplingSettings::GREEDY,
        max_tokens,
        stop_at_end: false,
        ..Default::default()
    };
    let go = &mut |_: &str| ControlFlow::Continue(());
    let mut session = model.session(options.clone()).unwrap();
    let first = session.generate(&prompt, &greedy(10), go).unwrap();
    let longer = [&prompt[..], &first.tokens].concat();
    let second = session.generate(&longer, &greedy(6), go).unwrap();
    assert!(second.cached_tokens >= longer.len() - 1, "{}", second.cached_tokens);
    let whole = model.session(options).unwrap().generate(&prompt, &greedy(16), go).unwrap();
    assert_eq!([first.tokens, second.tokens].concat(), whole.tokens);
}

/// Design §1: the budgets of a steady decode step.
#[test]
fn steady_decode_keeps_the_budgets() {
    let everything = SamplingSettings { repeat_penalty: 1.1, ..SamplingSettings::default() };
    for sampling in [SamplingSettings::GREEDY, everything] {
        let model = load(device_choice());
        let options = SessionOptions { ctx: 96, ..SessionOptions::default() };
        let mut session = model.session(options).unwrap();
        session.begin(&sampling).unwrap();
        let first = session.feed(&tokens(20, 200), 0).unwrap().unwrap();
        session.decode(first, 20, 4).unwrap();
        let before = model.ledger().report();
        let steps = 30;
        session.decode(first, 24, steps).unwrap();
        let after = model.ledger().report();
        let phase = Phase::Decode;
        assert_eq!(after.buffers.len(), before.buffers.len(), "allocations");
        let copied = |direction| {
            after.copied_bytes(phase, direction) - before.copied_bytes(phase, direction)
        };
        let read_back = after.read_back_bytes(phase) - before.read_back_bytes(phase);
        assert_eq!(read_back, 4 * steps as u64);
        assert_eq!(copied(Direction::HostToHost), 0);
        assert_eq!(copied(Direction::DeviceToDevice), 0);
        // Id, slot and position of the token and its output: no parameter buffers beside them.
        assert!(copied(Direction::HostToDevice) <= 64 * steps as u64);
        assert_eq!(after.submissions(phase) - before.submissions(phase), steps as u64);
        assert_eq!(after.steps(phase).steps - before.steps(phase).steps, steps as u64);
        for buffer in &after.buffers {
            let expected = marlin_placement::policy(&buffer.pattern, Some(buffer.bytes)).mode;
            assert_eq!(buffer.mode, expected, "{}", buffer.name);
        }
    }
}

#[test]
fn a_model_that_is_too_large_says_how_much_is_missing_before_anything_is_uploaded() {
    let options = EmulatedOptions { total_bytes: 200_000, ..EmulatedOptions::default() };
    let device = Arc::new(Emulated::new(options).unwrap());
    let gpu = GpuBackend::new(device.clone(), Activations::F16);
    let program = small(&gpu, Format::F32, Numbers::Rows);
    let error = gpu.load(&program, &mut |_| {}).unwrap_err();
    let BackendError::DoesNotFit { needed, free, .. } = error else { panic!("{error}") };
    assert_eq!(free, 200_000);
    assert!(needed > 1_500_000, "{needed}");
    assert!(error.to_string().contains("too few"), "{error}");
    assert_eq!(device.ledger().report().buffers.len(), 0);
}

/// Of three norms the first alone has no product before it. Prompts do each by itself.
#[test]
fn products_share_the_norms_between_them_in_steps_of_few_tokens() {
    let gpu = GpuBackend::new(device(true), Activations::F16);
    let ids = tokens(12, VOCABULARY);
    let norms = |phase| -> u64 {
        let report = gpu.ledger().report();
        let of_phase = report.dispatches.iter().filter(|d| d.phase == phase);
        of_phase.filter(|d| d.label.starts_with("rms_norm")).map(|d| d.count).sum()
    };
    logits(&gpu, small(&gpu, Format::F16, Numbers::Rows), KvFormat::F16, &ids, 11).unwrap();
    assert_eq!((norms(Phase::Prefill), norms(Phase::Decode)), (3, 1));
}

#[test]
fn batches_that_do_not_fit_are_refused_by_name() {
    let gpu = GpuBackend::new(device(true), Activations::F16);
    let options = ExecutorOptions {
        max_tokens: 4,
        max_outputs: 2,
        max_sequences: 2,
        context: 8,
        kv: KvFormat::F16,
    };
    let mut executor = gpu.compile(small(&gpu, Format::F16, Numbers::Rows), &options).unwrap();
    let token = |sequence, position, output| StepToken { id: 1, sequence, position, output };
    let mut refused = |tokens: &[StepToken]| {
        let error = executor.step(&Batch { tokens, logits: false }).unwrap_err();
        error.to_string()
    };
    assert!(refused(&[token(0, 0, false); 5]).contains("tokens is 5"));
    assert!(refused(&[token(2, 0, true)]).contains("sequence is 2"));
    assert!(refused(&[token(0, 8, true)]).contains("position is 8"));
    assert!(refused(&[token(0, 0, true), token(0, 2, true)]).contains("position"));
    let split = [token(0, 0, false), token(1, 0, false), token(0, 1, false)];
    assert!(refused(&split).contains("not in one piece"));
    let id = StepToken { id: VOCABULARY as u32, ..token(0, 0, true) };
    assert!(refused(&[id]).contains("token is 80"));
    executor.step(&Batch { tokens: &[token(0, 0, true)], logits: false }).unwrap();
    assert_eq!(executor.sampled().len(), 1);
}
