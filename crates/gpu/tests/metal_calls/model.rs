//! A model's decode step through the backend that all models run on.

use std::sync::Arc;

use marlin_backend::{
    Activation, AttentionSpec, Backend, BackendError, Batch, Executor, ExecutorOptions, HostBytes,
    KvFormat, Norm, ProgramBuilder, Rope, RopeStyle, SamplingSettings, StepToken, Weight,
    WeightSource,
};
use marlin_formats::{Format, encode};
use marlin_gpu::metal::api::Failure;
use marlin_gpu::metal::double::{Call, Options};
use marlin_gpu::model::{Activations, GpuBackend};
use marlin_placement::{Direction, Phase};

use super::{device, discrete};

const HIDDEN: usize = 128;
const DIM: usize = 32;
const VOCABULARY: usize = 256;
const LAYERS: usize = 2;

fn place(backend: &dyn Backend, name: &str, rows: usize, cols: usize) -> Weight {
    let format = if rows == 1 { Format::F32 } else { Format::INT4_G128 };
    let matrix = encode(format, rows, cols, &vec![0.5; rows * cols]).expect("a matrix");
    let source = WeightSource {
        name: name.to_owned(),
        format,
        rows,
        cols,
        data: HostBytes::from(matrix.data),
        scales: HostBytes::from(matrix.scales),
        zeros: HostBytes::from(matrix.zeros),
        tensor_scale: matrix.tensor_scale,
        fragments: None,
    };
    backend.place(&source).expect("a place")
}

fn program(backend: &dyn Backend) -> Result<marlin_backend::Program, BackendError> {
    let norm =
        |name: &str| Norm { weight: place(backend, name, 1, HIDDEN), eps: 1e-5, offset: 0.0 };
    let mut b = ProgramBuilder::new();
    let x = b.embed(&place(backend, "table", VOCABULARY, HIDDEN), 1.0);
    for layer in 0..LAYERS {
        let named = |what: &str, rows: usize, cols: usize| {
            place(backend, &format!("{layer}.{what}"), rows, cols)
        };
        let h = b.rms_norm(x, &norm(&format!("{layer}.attention norm")))?;
        let (q, k, v) =
            (named("q", 4 * DIM, HIDDEN), named("k", 2 * DIM, HIDDEN), named("v", 2 * DIM, HIDDEN));
        let [q, k, v] = b.linear(h, [(&q, None), (&k, None), (&v, None)])?;
        let spec = AttentionSpec {
            heads: 4,
            kv_heads: 2,
            head_dim: DIM,
            scale: 0.2,
            window: None,
            softcap: None,
            rope: Some(Rope {
                inverse_frequencies: vec![0.5; DIM / 2].into(),
                style: RopeStyle::HalfSplit,
                magnitude: 1.0,
            }),
            q_norm: None,
            k_norm: None,
        };
        let a = b.attention(q, k, v, &spec)?;
        b.linear_add(a, &named("o", HIDDEN, 4 * DIM), None, x)?;
        let h = b.rms_norm(x, &norm(&format!("{layer}.feed norm")))?;
        let (gate, up) = (named("gate", 256, HIDDEN), named("up", 256, HIDDEN));
        let m = b.gated_linear(h, &gate, &up, Activation::Silu)?;
        b.linear_add(m, &named("down", HIDDEN, 256), None, x)?;
    }
    let x = b.select_outputs(x);
    let h = b.rms_norm(x, &norm("norm"))?;
    let [logits] = b.linear(h, [(&place(backend, "head", VOCABULARY, HIDDEN), None)])?;
    b.finish(logits, None)
}

#[test]
fn a_decode_step_of_a_model_is_one_command_buffer_with_one_encoder() -> Result<(), BackendError> {
    for (options, unified) in [(Options::default(), true), (discrete(), false)] {
        let (device, double) = device(options);
        let backend = GpuBackend::new(Arc::from(device), Activations::F16);
        let program = program(&backend)?;
        backend.load(&program, &mut |_| {})?;
        let mut executor = backend.compile(
            program,
            &ExecutorOptions {
                max_tokens: 8,
                max_outputs: 1,
                max_sequences: 1,
                context: 64,
                kv: KvFormat::F16,
            },
        )?;
        executor.begin_sequence(0, &SamplingSettings::default(), &[])?;
        let mut step = |position: u32| {
            let token = StepToken { id: 3, sequence: 0, position, output: true };
            executor.step(&Batch { tokens: &[token], logits: false })
        };
        step(0)?;
        double.take_calls();
        for position in 1..4 {
            step(position)?;
            let calls = double.take_calls();
            let count = |wanted: fn(&Call) -> bool| calls.iter().filter(|c| wanted(c)).count();
            assert_eq!(count(|c| matches!(c, Call::NewCommandBuffer { retained: false, .. })), 1);
            assert_eq!(count(|c| matches!(c, Call::NewCommandBuffer { .. })), 1);
            assert_eq!(count(|c| matches!(c, Call::Commit { .. })), 1);
            assert_eq!(count(|c| matches!(c, Call::ComputeEncoder { .. })), 1);
            assert_eq!(count(|c| matches!(c, Call::BlitEncoder { .. })), 0);
            assert_eq!(count(|c| matches!(c, Call::NewBuffer { .. } | Call::FreeBuffer { .. })), 0);
            assert_eq!(
                count(|c| matches!(c, Call::NewLibrary { .. } | Call::NewPipeline { .. })),
                0
            );
            assert_eq!(count(|c| matches!(c, Call::UsedAfterFree { .. })), 0);
            // On memory of its own the step's numbers are marked, on the host's they need not be.
            let marks = count(|c| matches!(c, Call::DidModify { .. }));
            assert_eq!(marks == 0, unified, "{marks} marks");
            // Products of one input overlap: there are fewer barriers than dispatches that could wait.
            let dispatches = count(|c| matches!(c, Call::Dispatch { .. }));
            let barriers = count(|c| matches!(c, Call::Barrier { .. }));
            assert!(dispatches > 8 * LAYERS && barriers < dispatches, "{barriers} of {dispatches}");
        }
        let report = backend.ledger().report();
        assert_eq!(report.allocations(Phase::Decode), 0);
        assert_eq!(report.submissions(Phase::Decode), 4);
        assert_eq!(report.read_back_bytes(Phase::Decode), 4 * 4);
        assert_eq!(report.copied_bytes(Phase::Decode, Direction::DeviceToDevice), 0);
    }
    Ok(())
}

#[test]
fn a_model_on_a_device_that_is_removed_says_so_and_frees_what_it_held() -> Result<(), BackendError>
{
    let (device, double) = device(Options::default());
    let backend = GpuBackend::new(Arc::from(device), Activations::F16);
    let program = program(&backend)?;
    backend.load(&program, &mut |_| {})?;
    let live = || -> u64 {
        let report = backend.ledger().report();
        report.buffers.iter().filter(|b| b.live).map(|b| b.bytes).sum()
    };
    let weights = live();
    let options = ExecutorOptions {
        max_tokens: 8,
        max_outputs: 1,
        max_sequences: 1,
        context: 64,
        kv: KvFormat::F16,
    };
    let mut executor = backend.compile(program.clone(), &options)?;
    executor.begin_sequence(0, &SamplingSettings::GREEDY, &[])?;
    let step = |executor: &mut Box<dyn Executor>, position: u32| {
        let token = StepToken { id: 3, sequence: 0, position, output: true };
        executor.step(&Batch { tokens: &[token], logits: false })
    };
    step(&mut executor, 0)?;
    double.fail_next(Failure {
        code: 11,
        message: "the device was removed".to_owned(),
        encoders: Vec::new(),
    });
    let error = step(&mut executor, 1).unwrap_err();
    let BackendError::DeviceLost { device, reason } = &error else { panic!("{error}") };
    assert_eq!(device, "Apple M1");
    assert!(reason.contains("the device was removed"), "{reason}");
    assert!(live() > weights);
    drop(executor);
    assert_eq!(live(), weights);
    assert!(!double.take_calls().iter().any(|call| matches!(call, Call::UsedAfterFree { .. })));
    Ok(())
}
