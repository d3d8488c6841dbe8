//! Mixture-of-experts layers against `transformers` (tests/fixtures/make_moe.py) and against plain loops.

mod common;

use std::collections::HashMap;

use half::{bf16, f16};
use marlin_formats::{Format, OwnedMatrix, encode};
use marlin_gpu::ops::linear::{Activation, FragmentWeights};
use marlin_gpu::ops::moe::{self, Experts, Groups, Routing, Scoring};
use marlin_gpu::{Buffer, CommandList, Device};
use marlin_kernels::Element;

/// The tensors of `moe.safetensors`: shape and values.
struct Fixture {
    floats: HashMap<String, (Vec<usize>, Vec<f32>)>,
    integers: HashMap<String, Vec<u32>>,
}

impl Fixture {
    fn load() -> Self {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/moe.safetensors");
        let bytes = std::fs::read(path).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let (mut floats, mut integers) = (HashMap::new(), HashMap::new());
        for (name, tensor) in tensors.tensors() {
            let words = tensor.data().chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]);
            if tensor.dtype() == safetensors::Dtype::F32 {
                let values = words.map(f32::from_le_bytes).collect();
                floats.insert(name, (tensor.shape().to_vec(), values));
            } else {
                integers.insert(name, words.map(u32::from_le_bytes).collect());
            }
        }
        Self { floats, integers }
    }

    fn shape(&self, name: &str) -> &[usize] {
        &self.floats[name].0
    }

    fn values(&self, name: &str) -> &[f32] {
        &self.floats[name].1
    }

    fn optional(&self, name: &str) -> Option<&[f32]> {
        self.floats.get(name).map(|(_, values)| &values[..])
    }
}

/// DeepSeek-V3's routing, as its `config.json` has it, for so many experts.
fn deepseek(experts: usize, chosen: usize, groups: usize, kept_groups: usize) -> Routing {
    Routing {
        scoring: Scoring::Sigmoid,
        groups,
        kept_groups,
        scaling: 2.5,
        ..Routing::mixtral(experts, chosen)
    }
}

fn routings() -> Vec<(&'static str, Routing)> {
    vec![
        ("mixtral", Routing::mixtral(8, 2)),
        ("qwen3", Routing::qwen3(128, 8, true)),
        ("qwen3_not_renormalised", Routing::qwen3(128, 8, false)),
        ("deepseek_v3", deepseek(256, 8, 8, 4)),
        ("mixtral_layer", Routing::mixtral(8, 2)),
        ("qwen3_layer", Routing::qwen3(12, 3, false)),
        ("deepseek_v3_layer", deepseek(16, 4, 4, 2)),
    ]
}

fn route<T: Element>(
    device: &dyn Device,
    routing: &Routing,
    logits: &[T],
    bias: Option<&[f32]>,
) -> (Vec<u32>, Vec<f32>) {
    let pairs = logits.len() / routing.experts * routing.chosen;
    let logits = device.upload_new("logits", logits).unwrap();
    let bias = bias.map(|b| device.upload_new("bias", b).unwrap());
    let chosen = common::output::<u32>(device, pairs);
    let weights = common::output::<f32>(device, pairs);
    let mut list = CommandList::new("route");
    moe::route(
        &mut list,
        routing,
        logits.view(),
        bias.as_ref().map(Buffer::view),
        chosen.view_mut().unwrap(),
        weights.view_mut().unwrap(),
    )
    .unwrap();
    device.run(list).unwrap();
    (device.download_all(&chosen).unwrap(), device.download_all(&weights).unwrap())
}

/// A token's experts with their weights, by expert.
fn by_expert(chosen: &[u32], weights: &[f32]) -> Vec<(u32, f32)> {
    let mut pairs: Vec<_> = chosen.iter().copied().zip(weights.iter().copied()).collect();
    pairs.sort_by_key(|p| p.0);
    pairs
}

#[test]
fn routers_choose_and_weigh_as_transformers_does() {
    let fixture = Fixture::load();
    for device in common::devices() {
        for (name, routing) in routings() {
            let logits = fixture.values(&format!("{name}.logits"));
            let bias = fixture.optional(&format!("{name}.bias"));
            let (chosen, weights) = route(&*device, &routing, logits, bias);
            let expected_chosen = &fixture.integers[&format!("{name}.chosen")];
            let expected_weights = fixture.values(&format!("{name}.weights"));
            let k = routing.chosen;
            for token in 0..logits.len() / routing.experts {
                let range = token * k..(token + 1) * k;
                let found = by_expert(&chosen[range.clone()], &weights[range.clone()]);
                let expected = by_expert(&expected_chosen[range.clone()], &expected_weights[range]);
                for ((e, w), (expected_e, expected_w)) in found.iter().zip(&expected) {
                    assert_eq!(e, expected_e, "{name}, token {token}");
                    let error = (w - expected_w).abs();
                    assert!(error <= 2e-6 * expected_w.abs(), "{name}: {w}, {expected_w}");
                }
            }
        }
    }
}

/// Equal scores go to the lower expert; infinite and absent ones come last, and no expert twice.
#[test]
fn experts_are_distinct_whatever_the_logits() {
    let rows = [
        [1.0_f32; 20],
        [f32::NEG_INFINITY; 20],
        std::array::from_fn(|e| if e == 7 { f32::NEG_INFINITY } else { -200.0 }),
        std::array::from_fn(|e| if e % 2 == 0 { f32::NEG_INFINITY } else { 0.0 }),
    ];
    for device in common::devices() {
        let routing = Routing::qwen3(20, 8, true);
        let (chosen, _) = route(&*device, &routing, rows.as_flattened(), None);
        let expected: [[u32; 8]; 4] = [
            [0, 1, 2, 3, 4, 5, 6, 7],
            [0, 1, 2, 3, 4, 5, 6, 7],
            [0, 1, 2, 3, 4, 5, 6, 8],
            [1, 3, 5, 7, 9, 11, 13, 15],
        ];
        assert_eq!(chosen, expected.as_flattened());
        // Limited to the best two of five groups, which the bias decides.
        let routing = deepseek(20, 8, 5, 2);
        let mut bias = [0.0; 20];
        bias[9] = 0.5;
        bias[18] = 0.25;
        let (chosen, weights) = route(&*device, &routing, &rows[0], Some(&bias));
        assert_eq!(chosen, [9, 18, 8, 10, 11, 16, 17, 19]);
        // The bias is for the choice only.
        for weight in weights {
            assert!((weight - 2.5 / 8.0).abs() < 1e-6, "{weight}");
        }
    }
}

#[test]
fn routers_take_half_precision_logits() {
    let values: Vec<f32> = (0..3 * 64).map(|i| ((i * 29 % 97) as f32) * 0.125 - 6.0).collect();
    let halves: Vec<f16> = values.iter().map(|&x| f16::from_f32(x)).collect();
    let brains: Vec<bf16> = values.iter().map(|&x| bf16::from_f32(x)).collect();
    let back: Vec<f32> = brains.iter().map(|x| x.to_f32()).collect();
    let routing = Routing::qwen3(64, 6, true);
    for device in common::devices() {
        // Multiples of 1/8 are exact in half precision.
        let expected = route(&*device, &routing, &values, None);
        assert_eq!(route(&*device, &routing, &halves, None), expected);
        let expected = route(&*device, &routing, &back, None);
        assert_eq!(route(&*device, &routing, &brains, None), expected);
    }
}

/// Sorts on the device and checks every buffer against a stable sort.
fn assert_grouped(device: &dyn Device, chosen: &[u32], experts: usize, tile: usize) {
    let groups = Groups::new(device, experts, chosen.len()).unwrap();
    // An empty buffer cannot be bound: a view of nothing of one element is.
    let buffer =
        device.upload_new("chosen", if chosen.is_empty() { &[0] } else { chosen }).unwrap();
    let mut list = CommandList::new("group");
    let view = buffer.slice(0..chosen.len()).unwrap();
    moe::group(&mut list, view, tile, &groups).unwrap();
    device.run(list).unwrap();
    let mut order: Vec<u32> = (0..chosen.len() as u32).collect();
    order.sort_by_key(|&pair| chosen[pair as usize]);
    let mut places = vec![0; chosen.len()];
    for (row, &pair) in order.iter().enumerate() {
        places[pair as usize] = row as u32;
    }
    let mut offsets = vec![0];
    let mut tiles = vec![0];
    for e in 0..experts {
        let count = chosen.iter().filter(|&&c| c as usize == e).count();
        offsets.push(offsets[e] + count as u32);
        tiles.push(tiles[e] + count.div_ceil(tile) as u32);
    }
    let width = device.properties().simd_width;
    let name = format!("{} pairs, {experts} experts, width {width}", chosen.len());
    assert_eq!(device.download_all(groups.offsets()).unwrap(), offsets, "{name}");
    assert_eq!(device.download_all(groups.tiles()).unwrap(), tiles, "{name}");
    if !chosen.is_empty() {
        assert_eq!(device.download_all(groups.order()).unwrap(), order, "{name}");
        assert_eq!(device.download_all(groups.places()).unwrap(), places, "{name}");
    }
}

#[test]
fn pairs_are_sorted_by_expert_and_stay_in_order() {
    for device in common::devices() {
        for (pairs, experts, tile) in
            [(0, 8, 8), (1, 1, 1), (16, 8, 2), (255, 60, 8), (257, 512, 4), (1024, 3, 8)]
        {
            let chosen: Vec<u32> = (0..pairs).map(|i| ((i * i + i / 3) % experts) as u32).collect();
            assert_grouped(&*device, &chosen, experts, tile);
        }
        // Three dispatches; all to one expert; a last block that is not full.
        let chosen: Vec<u32> = (0..2001_u32).map(|i| (i * 7919 % 131) % 96).collect();
        assert_grouped(&*device, &chosen, 96, 8);
        assert_grouped(&*device, &[5; 1300], 6, 4);
    }
}

fn close(found: &[f32], expected: &[f32], tolerance: f32, name: &str) {
    assert_eq!(found.len(), expected.len());
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f - e).abs() <= tolerance * e.abs().max(1.0), "{name}, {i}: {f}, expected {e}");
    }
}

/// Weights of experts × matrices, each `[rows, cols]`, in a format.
fn upload_experts(
    device: &dyn Device,
    format: Format,
    rows: usize,
    cols: usize,
    values: &[f32],
) -> (FragmentWeights, Vec<OwnedMatrix>) {
    let owned: Vec<OwnedMatrix> = values
        .chunks(rows * cols)
        .map(|matrix| encode(format, rows, cols, matrix).unwrap())
        .collect();
    let views: Vec<_> = owned.iter().map(OwnedMatrix::view).collect();
    (FragmentWeights::upload(device, "experts", &views).unwrap(), owned)
}

/// Whole layers, in f32: the device's result is that of `transformers`.
#[test]
fn layers_give_what_transformers_gives() {
    let fixture = Fixture::load();
    for device in common::devices() {
        let device = &*device;
        for (name, routing) in routings().into_iter().filter(|(n, _)| n.ends_with("_layer")) {
            let of = |part: &str| fixture.values(&format!("{name}.{part}"));
            let [tokens, hidden] = fixture.shape(&format!("{name}.hidden"))[..] else { panic!() };
            let [experts, double, _] = fixture.shape(&format!("{name}.gate_up"))[..] else {
                panic!()
            };
            let inner = double / 2;
            let pairs = tokens * routing.chosen;
            let (gate_up, _) = upload_experts(device, Format::F32, inner, hidden, of("gate_up"));
            let (down, _) = upload_experts(device, Format::F32, hidden, inner, of("down"));

            let x = device.upload_new("x", of("hidden")).unwrap();
            let logits = device.upload_new("logits", of("logits")).unwrap();
            let bias = fixture
                .optional(&format!("{name}.bias"))
                .map(|b| device.upload_new("bias", b).unwrap());
            let chosen = common::output::<u32>(device, pairs);
            let weights = common::output::<f32>(device, pairs);
            let middle = common::output::<f32>(device, pairs * inner);
            let y = common::output::<f32>(device, pairs * hidden);
            let shared = fixture.optional(&format!("{name}.shared"));
            let zeros = vec![0.0; tokens * hidden];
            let out = device.upload_new("out", shared.unwrap_or(&zeros)).unwrap();
            let groups = Groups::new(device, experts, pairs).unwrap();
            let tile = moe::tile_rows::<f32>(device.properties(), pairs, experts);
            let first = Experts {
                weights: &gate_up,
                experts,
                chosen: routing.chosen,
                gated: Some(Activation::Silu),
                gather: true,
            };
            let second = Experts { weights: &down, gated: None, gather: false, ..first };

            let mut list = CommandList::new("layer");
            moe::route(
                &mut list,
                &routing,
                logits.view(),
                bias.as_ref().map(Buffer::view),
                chosen.view_mut().unwrap(),
                weights.view_mut().unwrap(),
            )
            .unwrap();
            moe::group(&mut list, chosen.view(), tile, &groups).unwrap();
            let into = middle.view_mut().unwrap();
            moe::product(&mut list, device.properties(), first, &groups, tile, x.view(), into)
                .unwrap();
            let into = y.view_mut().unwrap();
            moe::product(
                &mut list,
                device.properties(),
                second,
                &groups,
                tile,
                middle.view(),
                into,
            )
            .unwrap();
            let into = out.view_mut().unwrap();
            let accumulate = shared.is_some();
            moe::combine(&mut list, &groups, hidden, y.view(), weights.view(), into, accumulate)
                .unwrap();
            device.run(list).unwrap();
            close(&device.download_all(&out).unwrap(), of("output"), 5e-6, name);
        }
    }
}

/// To and from an element type, and how far its results may be off.
#[derive(Clone, Copy)]
struct Conversion<T> {
    from: fn(f32) -> T,
    to: fn(T) -> f32,
    tolerance: f64,
}

const FLOATS: Conversion<f32> = Conversion { from: |x| x, to: |x| x, tolerance: 2e-5 };
const HALVES: Conversion<f16> =
    Conversion { from: f16::from_f32, to: f16::to_f32, tolerance: 4e-3 };
const BRAINS: Conversion<bf16> =
    Conversion { from: bf16::from_f32, to: bf16::to_f32, tolerance: 2e-2 };

/// A product of rows in order of experts against decoded matrices, in f64.
fn assert_product<T: Element>(
    device: &dyn Device,
    format: Format,
    shape: (usize, usize, usize),
    chosen: &[u32],
    tile: usize,
    gated: bool,
    convert: Conversion<T>,
) {
    let (experts, rows, cols) = shape;
    let Conversion { from, to, tolerance } = convert;
    let parts = if gated { 2 } else { 1 };
    let values: Vec<f32> = (0..experts * parts * rows * cols)
        .map(|i| ((i * 7919 % 1013) as f32 / 506.0 - 1.0) * 0.2)
        .collect();
    let (weights, owned) = upload_experts(device, format, rows, cols, &values);
    let decoded: Vec<Vec<f32>> = owned.iter().map(OwnedMatrix::decode).collect();
    let tokens = chosen.len();
    let x: Vec<T> = (0..tokens * cols).map(|i| from((i * 31 % 127) as f32 / 64.0 - 1.0)).collect();
    let input = device.upload_new("x", &x).unwrap();
    let experts_of = device.upload_new("chosen", chosen).unwrap();
    let groups = Groups::new(device, experts, tokens).unwrap();
    let y = common::output::<T>(device, tokens * rows);
    let gathered = common::output::<T>(device, tokens * cols);
    let again = common::output::<T>(device, tokens * rows);
    let mut list = CommandList::new("product");
    moe::group(&mut list, experts_of.view(), tile, &groups).unwrap();
    let product = Experts {
        weights: &weights,
        experts,
        chosen: 1,
        gated: gated.then_some(Activation::Gelu),
        gather: true,
    };
    let properties = device.properties();
    // Both ways, where there are two: rows that the product finds itself, and rows in order of experts.
    let gathers = tile <= 8;
    if gathers {
        let into = y.view_mut().unwrap();
        moe::product(&mut list, properties, product, &groups, tile, input.view(), into).unwrap();
    }
    moe::gather(&mut list, &groups, cols, 1, input.view(), gathered.view_mut().unwrap()).unwrap();
    let sorted = Experts { gather: false, ..product };
    let into = again.view_mut().unwrap();
    moe::product(&mut list, properties, sorted, &groups, tile, gathered.view(), into).unwrap();
    device.run(list).unwrap();
    let again = device.download_all(&again).unwrap();
    let found = if gathers { device.download_all(&y).unwrap() } else { again.clone() };
    let order = device.download_all(groups.order()).unwrap();
    for (row, &token) in order.iter().enumerate() {
        let token = token as usize;
        let matrix = |part: usize| &decoded[chosen[token] as usize * parts + part];
        let dot = |part: usize, n: usize| -> f64 {
            let w = &matrix(part)[n * cols..(n + 1) * cols];
            w.iter().zip(&x[token * cols..]).map(|(&w, &x)| f64::from(w) * f64::from(to(x))).sum()
        };
        for n in 0..rows {
            let expected = if gated {
                let g = dot(0, n);
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (g + 0.044715 * g.powi(3));
                0.5 * g * (1.0 + inner.tanh()) * dot(1, n)
            } else {
                dot(0, n)
            };
            for found in [found[row * rows + n], again[row * rows + n]] {
                let f = f64::from(to(found));
                assert!(
                    (f - expected).abs() <= tolerance * expected.abs().max(1.0),
                    "{format}, tile {tile}, row {row}, output {n}: {f}, expected {expected}"
                );
            }
        }
    }
}

#[test]
fn products_in_every_kind_of_format() {
    // Minimums, super-blocks, every kind of scale, floats; one scale a row; padded rows and columns.
    let formats = [
        "int4-g128",
        "int4-channel",
        "fp4-g32",
        "mxfp4",
        "q4_1",
        "q6_k",
        "q2_k",
        "int8-channel",
        "int3-g64",
        "int2-g32",
        "bf16",
        "f16",
    ];
    let chosen: Vec<u32> = (0..13).map(|i| [4, 0, 2, 2][i % 4]).collect();
    for device in common::devices() {
        for name in formats {
            let Ok(format) = name.parse::<Format>() else { panic!("no format {name}") };
            assert_product(&*device, format, (5, 24, 256), &chosen, 4, false, FLOATS);
        }
    }
}

#[test]
fn products_in_tiles_of_every_height_gated_and_in_half_precision() {
    let format: Format = "int4-g128".parse().unwrap();
    let chosen: Vec<u32> = (0..21).map(|i| (i * i % 7) % 3).collect();
    for device in common::devices() {
        for tile in [1, 2, 4, 8] {
            assert_product(&*device, format, (3, 16, 128), &chosen, tile, true, HALVES);
        }
        assert_product(&*device, format, (3, 40, 384), &chosen, 8, false, BRAINS);
    }
}

/// Matrix fragments: every kind of format, tiles of every height, more rows than a tile and fewer, gate and up.
#[test]
fn products_by_matrix_fragments() {
    let formats =
        ["int4-g128", "int4-channel", "fp4-g32", "mxfp4", "q4_1", "q6_k", "int8-channel", "f16"];
    let chosen: Vec<u32> = (0..67).map(|i| [1, 3, 1, 1, 0][i % 5]).collect();
    for device in common::devices_of_width(32) {
        for name in formats {
            let format: Format = name.parse().unwrap();
            assert_product(&*device, format, (4, 24, 256), &chosen, 16, false, HALVES);
        }
        let format: Format = "int4-g32".parse().unwrap();
        for tile in [8, 16, 32] {
            assert_product(&*device, format, (4, 88, 96), &chosen, tile, true, HALVES);
            assert_product(&*device, format, (4, 16, 320), &chosen, tile, false, BRAINS);
        }
    }
}

#[test]
fn what_cannot_be_is_refused_with_both_numbers() {
    for device in common::devices_of_width(32) {
        let logits = common::output::<f32>(&*device, 31);
        let words = common::output::<u32>(&*device, 8);
        let floats = common::output::<f32>(&*device, 8);
        let refused = |routing: Routing| {
            let mut list = CommandList::new("wrong");
            let chosen = words.view_mut().unwrap();
            let weights = floats.view_mut().unwrap();
            moe::route(&mut list, &routing, logits.view(), None, chosen, weights)
                .unwrap_err()
                .to_string()
        };
        let text = refused(Routing::mixtral(8, 2));
        assert!(text.contains("logits has 31 elements, expected 32"), "{text}");
        let text = refused(Routing::mixtral(513, 2));
        assert!(text.contains("513 experts, expected 1 to 512"), "{text}");
        let text = refused(deepseek(16, 8, 4, 1));
        assert!(text.contains("8 experts of a token, expected 1 to 4"), "{text}");
        let groups = Groups::new(&*device, 4, 7).unwrap();
        let mut list = CommandList::new("wrong");
        let text = moe::group(&mut list, words.view(), 1, &groups).unwrap_err().to_string();
        assert!(text.contains("7 pairs of room, expected at least 8"), "{text}");
    }
}
