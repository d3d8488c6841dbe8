//! One layer and the choice of a token, for one sequence.

use half::f16;
use marlin_backend::{RopeStyle, SamplingSettings};
use marlin_formats::{Format, encode};
use marlin_gpu::metal::api::BufferMode;
use marlin_gpu::metal::double::{Call, Options};
use marlin_gpu::ops::attention::{Attention, DecodeShape, workspace_len};
use marlin_gpu::ops::kv_cache::{AppendKv, KvAddressing, KvLayout, KvStorage};
use marlin_gpu::ops::linear::{Activation, Epilogue, FragmentWeights, linear};
use marlin_gpu::ops::norm::{NormWeight, add_rms_norm, rms_norm};
use marlin_gpu::ops::rope::{HeadLayout, HeadValues, Heads, Rotation, rope};
use marlin_gpu::ops::sample::{SETTINGS_WORDS, Sample, SampleScratch, sample, settings_record};
use marlin_gpu::{Buffer, CommandList, Device, GpuError};
use marlin_placement::{AccessPattern, Phase};

const HIDDEN: usize = 128;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const DIM: usize = 32;
const FEED: usize = 256;
const VOCABULARY: usize = 512;
const SLOTS: usize = 1;
const HISTORY: usize = 32;

/// Weights, state and activations of a layer.
struct Layer {
    norms: [Buffer<f32>; 2],
    q: FragmentWeights,
    k: FragmentWeights,
    v: FragmentWeights,
    o: FragmentWeights,
    gate_up: FragmentWeights,
    down: FragmentWeights,
    head: FragmentWeights,
    frequencies: Buffer<f32>,
    cache: Buffer<[u32; 4]>,
    layout: KvLayout,
    scratch: SampleScratch,
    settings: Buffer<u32>,
    history: Buffer<u32>,
    draws: Buffer<u64>,
    last: Buffer<u32>,
    /// Sequence, position, and the row that is sampled from; written by the host before each step.
    step: Buffer<u32>,
    /// Read by the host after each step.
    token: Buffer<u32>,
    x: [Buffer<f16>; 9],
    workspace: Buffer<f32>,
}

impl Layer {
    fn new(device: &dyn Device) -> Result<Self, GpuError> {
        let matrix = |name: &str, rows: usize, cols: usize, count: usize| {
            let format = Format::INT4_G128;
            let one = encode(format, rows, cols, &vec![0.25; rows * cols]).expect("a matrix");
            FragmentWeights::upload(device, name, &vec![one.view(); count])
        };
        let own =
            |name: &str, len: usize| device.allocate::<f16>(name, len, AccessPattern::DEVICE_ONLY);
        let layout = KvLayout::new(KvStorage::F16, KV_HEADS as u32, DIM as u32)?;
        Ok(Self {
            norms: [
                device.upload_new("attention norm", &[1.0f32; HIDDEN])?,
                device.upload_new("feed norm", &[1.0f32; HIDDEN])?,
            ],
            q: matrix("q", HEADS * DIM, HIDDEN, 1)?,
            k: matrix("k", KV_HEADS * DIM, HIDDEN, 1)?,
            v: matrix("v", KV_HEADS * DIM, HIDDEN, 1)?,
            o: matrix("o", HIDDEN, HEADS * DIM, 1)?,
            gate_up: matrix("gate up", FEED, HIDDEN, 2)?,
            down: matrix("down", HIDDEN, FEED, 1)?,
            head: matrix("head", VOCABULARY, HIDDEN, 1)?,
            frequencies: device.upload_new("frequencies", &[0.5f32; DIM / 2])?,
            cache: device.allocate(
                "cache",
                2 * layout.block_pieces(),
                AccessPattern::DEVICE_ONLY,
            )?,
            layout,
            scratch: SampleScratch::new(device, SLOTS, VOCABULARY)?,
            settings: device
                .upload_new("settings", &settings_record(&SamplingSettings::default()))?,
            history: device.upload_new("history", &[0u32; SLOTS * HISTORY])?,
            draws: device.upload_new("draws", &[0u64; SLOTS])?,
            last: device.allocate("last", SLOTS, AccessPattern::DEVICE_ONLY)?,
            step: device.allocate("step", 4, AccessPattern::STEP_INPUT)?,
            token: device.allocate("token", SLOTS, AccessPattern::READ_BACK)?,
            x: [
                own("residual", HIDDEN)?,
                own("normed", HIDDEN)?,
                own("queries", HEADS * DIM)?,
                own("keys", KV_HEADS * DIM)?,
                own("values", KV_HEADS * DIM)?,
                own("attended", HEADS * DIM)?,
                own("projected", HIDDEN)?,
                own("fed", FEED)?,
                own("logits", VOCABULARY)?,
            ],
            workspace: device.allocate(
                "workspace",
                workspace_len(1, HEADS as u32, 1, DIM as u32),
                AccessPattern::DEVICE_ONLY,
            )?,
        })
    }

    fn commands(&self, device: &dyn Device) -> Result<CommandList, GpuError> {
        let properties = device.properties();
        let mut list = CommandList::new("decode");
        let [residual, normed, queries, keys, values, attended, projected, fed, logits] = &self.x;
        let norm = |which: usize| NormWeight {
            weight: self.norms[which].view(),
            epsilon: 1e-5,
            offset: 0.0,
        };
        let plain = Epilogue::default();
        rms_norm(&mut list, residual.view(), norm(0), normed.view_mut()?, 1)?;
        for (weights, out) in [(&self.q, queries), (&self.k, keys), (&self.v, values)] {
            linear(&mut list, properties, weights, normed.view(), out.view_mut()?, 1, plain)?;
        }
        let heads = |count| Heads { layout: HeadLayout::contiguous(count, DIM), norm: None };
        rope(
            &mut list,
            properties,
            HeadValues::Apart { q: queries.view_mut()?, k: keys.view_mut()? },
            heads(HEADS),
            heads(KV_HEADS),
            self.step.slice(1..2)?,
            Rotation {
                head_dim: DIM,
                style: RopeStyle::Interleaved,
                inverse_frequencies: self.frequencies.view(),
                magnitude: 1.0,
            },
        )?;
        let addressing = KvAddressing::Contiguous { blocks: 2 };
        let width = (KV_HEADS * DIM) as u32;
        AppendKv {
            keys: keys.view(),
            key_stride: width,
            values: values.view(),
            value_stride: width,
            sequences: self.step.slice(0..1)?,
            positions: self.step.slice(1..2)?,
            cache: self.cache.view_mut()?,
            layout: self.layout,
            addressing,
        }
        .encode(properties, &mut list)?;
        Attention {
            query: queries.view(),
            query_stride: (HEADS * DIM) as u32,
            heads: HEADS as u32,
            cache: self.cache.view(),
            layout: self.layout,
            addressing,
            sequences: self.step.slice(0..1)?,
            positions: self.step.slice(1..2)?,
            tiles: None,
            scale: 0.125,
            window: None,
            softcap: None,
            shape: DecodeShape::WHOLE,
            workspace: self.workspace.view_mut()?,
            out: attended.view_mut()?,
            out_stride: (HEADS * DIM) as u32,
        }
        .encode(properties, &mut list)?;
        let out = projected.view_mut()?;
        linear(&mut list, properties, &self.o, attended.view(), out, 1, plain)?;
        let (x, sum) = (projected.view(), residual.view_mut()?);
        add_rms_norm(&mut list, x, sum, norm(1), normed.view_mut()?, 1)?;
        let gated = Epilogue { gated: Some(Activation::Silu), ..plain };
        linear(&mut list, properties, &self.gate_up, normed.view(), fed.view_mut()?, 1, gated)?;
        let added = Epilogue { accumulate: true, ..plain };
        linear(&mut list, properties, &self.down, fed.view(), residual.view_mut()?, 1, added)?;
        linear(&mut list, properties, &self.head, residual.view(), logits.view_mut()?, 1, plain)?;
        let io = Sample {
            logits: logits.view(),
            outputs: self.step.slice(2..4)?,
            settings: self.settings.view(),
            history: self.history.view(),
            history_length: HISTORY,
            draws: self.draws.view_mut()?,
            tokens: self.token.view_mut()?,
            sampled: self.last.view_mut()?,
            softcap: None,
        };
        sample(&mut list, 1, io, &self.scratch)?;
        Ok(list)
    }

    /// What the host does for a step: writes the step's numbers, submits, and reads a token.
    fn run(
        &self,
        device: &dyn Device,
        recording: &std::sync::Arc<dyn marlin_gpu::Recording>,
        position: u32,
    ) -> Result<u32, GpuError> {
        let numbers = [0, position, 0, position];
        let bytes: &[u8] = bytemuck::cast_slice(&numbers);
        device.write(self.step.allocation(), 0, bytes)?;
        device.did_modify(self.step.allocation(), 4..16)?;
        device.submit(recording)?.wait()?;
        let mut token = [0; 4];
        device.read(self.token.allocation(), 0, &mut token)?;
        Ok(u32::from_le_bytes(token))
    }
}

/// A call without what tuning decides: sizes of grids and of threadgroup memory, and which optional buffers there are.
fn line(call: &Call) -> Option<String> {
    match call {
        Call::SetThreadgroupMemory { .. } => None,
        Call::SetBuffer { buffer, .. } if buffer == "absent" => None,
        Call::SetBytes { index, .. } => Some(format!("{index}: bytes")),
        Call::Dispatch { .. } => Some("dispatch".to_owned()),
        other => Some(other.to_string()),
    }
}

#[test]
fn the_calls_of_a_step() -> Result<(), GpuError> {
    let (device, double) = super::device(Options::default());
    let layer = Layer::new(&*device)?;
    let recording = device.record(layer.commands(&*device)?)?;
    layer.run(&*device, &recording, 0)?;
    double.take_calls();

    layer.run(&*device, &recording, 1)?;
    let found: Vec<String> = double.take_calls().iter().filter_map(line).collect();
    let expected: Vec<&str> = include_str!("decode_step.txt").lines().collect();
    assert_eq!(found, expected, "\n{}\n", found.join("\n"));
    Ok(())
}

#[test]
fn modes_follow_from_the_access_patterns() -> Result<(), GpuError> {
    for (options, managed) in
        [(Options::default(), BufferMode::Shared), (super::discrete(), BufferMode::Managed)]
    {
        let (device, double) = super::device(options);
        let layer = Layer::new(&*device)?;
        let mut checked = 0;
        for call in double.take_calls() {
            if let Call::NewBuffer { label, mode, .. } = call {
                let expected = match label.as_str() {
                    "step" => managed,
                    "token" | "staging 0" => BufferMode::Shared,
                    _ => BufferMode::Private,
                };
                assert_eq!(mode, expected, "{label}");
                checked += 1;
            }
        }
        assert!(checked > 30, "{checked} buffers");
        drop(layer);
    }
    Ok(())
}

#[test]
fn on_a_discrete_device_the_step_buffer_alone_is_marked_and_in_the_range_that_was_said()
-> Result<(), GpuError> {
    let (device, double) = super::device(super::discrete());
    let layer = Layer::new(&*device)?;
    let recording = device.record(layer.commands(&*device)?)?;
    double.take_calls();
    layer.run(&*device, &recording, 1)?;
    let marked: Vec<Call> = double
        .take_calls()
        .into_iter()
        .filter(|call| matches!(call, Call::DidModify { .. }))
        .collect();
    assert_eq!(marked, [Call::DidModify { buffer: "step".to_owned(), range: 4..16 }]);
    Ok(())
}

#[test]
fn a_step_allocates_nothing_and_reads_back_four_bytes_after_one_submission() -> Result<(), GpuError>
{
    let (device, _) = super::device(Options::default());
    let layer = Layer::new(&*device)?;
    let recording = device.record(layer.commands(&*device)?)?;
    device.ledger().enter(Phase::Decode);
    for position in 0..3 {
        layer.run(&*device, &recording, position)?;
    }
    let report = device.ledger().report();
    assert_eq!(report.allocations(Phase::Decode), 0);
    assert_eq!(report.submissions(Phase::Decode), 3);
    assert_eq!(report.waits(Phase::Decode), 3);
    assert!(report.copies.iter().all(|copy| copy.event.phase != Phase::Decode));
    let token = report.buffers.iter().find(|buffer| buffer.name == "token").expect("the token");
    assert_eq!((token.host_reads, token.host_read_bytes), (3, 12));
    Ok(())
}

#[test]
fn constants_are_bytes_in_the_command_and_what_is_absent_is_a_stand_in() -> Result<(), GpuError> {
    let (device, double) = super::device(Options::default());
    let layer = Layer::new(&*device)?;
    let list = layer.commands(&*device)?;
    let dispatches = list.commands().len();
    let recording = device.record(list)?;
    double.take_calls();
    layer.run(&*device, &recording, 0)?;
    let calls = double.take_calls();
    let count = |wanted: fn(&Call) -> bool| calls.iter().filter(|call| wanted(call)).count();
    assert_eq!(count(|call| matches!(call, Call::Dispatch { .. })), dispatches);
    assert!(count(|call| matches!(call, Call::SetBytes { .. })) > 5);
    assert!(count(|call| matches!(call, Call::SetBuffer { buffer, .. } if buffer == "absent")) > 0);
    assert_eq!(count(|call| matches!(call, Call::NewBuffer { .. })), 0);
    assert_eq!(SETTINGS_WORDS, 10);
    Ok(())
}
