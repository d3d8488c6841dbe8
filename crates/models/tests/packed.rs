//! Packed files: what is written is read again as the same model, and nothing that is wrong with one goes unnoticed.

mod support;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use marlin_formats::{Format, Matrix};
use marlin_models::{ModelError, ModelSource, PackOptions, PackSummary, StoredTensor, pack};
use support::{Gguf, place};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/architectures").join(name)
}

fn packed(source: &ModelSource, out: &Path, force: bool) -> Result<PackSummary, ModelError> {
    pack(source, out, PackOptions { force }, &mut |_, _| ControlFlow::Continue(()))
}

fn values(tensor: &StoredTensor) -> Vec<f32> {
    tensor.weight().decode().unwrap()
}

/// The fixtures in both containers, single and in shards, with biases, head norms and tied embeddings.
const MODELS: [&str; 8] = [
    "llama",
    "llama_bf16",
    "llama_f16",
    "llama3_rope.gguf",
    "qwen2.gguf",
    "qwen2",
    "qwen3",
    "gemma3.gguf",
];

#[test]
fn a_packed_model_is_the_same_model() {
    let folder = tempfile::tempdir().unwrap();
    for name in MODELS {
        let original = ModelSource::open(&fixture(name)).unwrap();
        let out = folder.path().join(name);
        let summary = packed(&original, &out, false).unwrap();
        let found = ModelSource::open(&out).unwrap();
        assert!(found.is_packed() && !original.is_packed(), "{name}");
        assert_eq!(format!("{:?}", found.config()), format!("{:?}", original.config()), "{name}");
        assert_eq!(found.tensors().len(), original.tensors().len(), "{name}");
        let matrices = found.tensors().iter().filter(|t| t.fragments.is_some()).count();
        assert_eq!(matrices, summary.matrices, "{name}");
        for tensor in original.tensors().iter() {
            let again = found.tensors().get(&tensor.name).unwrap();
            assert_eq!(again.shape, tensor.shape, "{name}: {}", tensor.name);
            assert_eq!(again.name_in_file, tensor.name_in_file, "{name}");
            if tensor.shape.len() == 2 {
                assert_eq!(again.format, tensor.format, "{name}: {}", tensor.name);
            }
            assert_eq!(values(again), values(tensor), "{name}: {}", tensor.name);
        }
        // The same program, the same tokens, the same template.
        assert!(found.forward(&mut place).is_ok(), "{name}");
        let text = "Hello there, 123";
        let tokens = |source: &ModelSource| {
            source.tokenizer().ok().map(|t| t.encode(text, true, true).unwrap())
        };
        assert_eq!(tokens(&found), tokens(&original), "{name}");
        let length = |path: &Path| std::fs::metadata(path).unwrap().len();
        let weights = if out.is_dir() { out.join("model.safetensors") } else { out.clone() };
        assert_eq!(length(&weights), summary.bytes, "{name}");
        assert_eq!(summary.bytes % 16_384, 0, "{name}: whole pages");
    }
}

/// What a GPU needs in order to use the file as it is: one range for each section of what it multiplies as one matrix.
#[test]
fn what_kernels_read_as_one_lies_together() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["qwen2.gguf", "qwen2", "llama3_rope.gguf"] {
        let out = folder.path().join(name);
        packed(&ModelSource::open(&fixture(name)).unwrap(), &out, false).unwrap();
        let source = ModelSource::open(&out).unwrap();
        let tensor = |part: &str| source.tensors().find(&format!("blk.1.{part}"));
        let together = |parts: &[&str]| {
            let sections = parts.iter().map(|p| tensor(p).unwrap().fragments.as_ref().unwrap());
            let sections: Vec<_> = sections.map(|fragments| fragments.sections()).collect();
            for pair in sections.windows(2) {
                for (a, b) in pair[0].iter().zip(pair[1]) {
                    assert!(
                        a.is_empty() && b.is_empty() || a.joined(b).is_some(),
                        "{name}: {parts:?}"
                    );
                }
            }
            // At least a SIMD-group's loads; more where no section in between is shorter.
            assert_eq!(sections[0][0].as_ptr() as usize % 128, 0, "{name}: {parts:?}");
        };
        together(&["attn_q.weight", "attn_k.weight", "attn_v.weight"]);
        together(&["ffn_gate.weight", "ffn_up.weight"]);
        if let Some(bias) = tensor("attn_q.bias") {
            let [k, v] = ["attn_k.bias", "attn_v.bias"].map(|name| tensor(name).unwrap());
            assert!(bias.data.joined(&k.data).unwrap().joined(&v.data).is_some(), "{name}");
        }
    }
}

#[test]
fn quantised_matrices_come_back_exactly() {
    let folder = tempfile::tempdir().unwrap();
    for format in [
        "q4_0",
        "q4_1",
        "q5_0",
        "q5_1",
        "q8_0",
        "q2_k",
        "q3_k",
        "q4_k",
        "q5_k",
        "q6_k",
        "mxfp4_ggml",
    ] {
        let format: Format = format.parse().unwrap();
        let file = Gguf::quantised(format);
        let path = file.write(folder.path(), &format!("{format}.gguf"));
        let original = ModelSource::open(&path).unwrap();
        let out = folder.path().join(format!("{format} packed.gguf"));
        packed(&original, &out, false).unwrap();
        let found = ModelSource::open(&out).unwrap();
        for tensor in original.tensors().iter().filter(|t| t.format == format) {
            let (rows, cols) = (tensor.rows(), tensor.cols());
            let matrix = Matrix::plain(format, rows, cols, &tensor.data).unwrap();
            let weight = found.tensors().get(&tensor.name).unwrap().weight();
            let fragments = weight.packed_matrix().unwrap().unwrap();
            let (mut expected, mut again) = Default::default();
            for row in 0..rows {
                matrix.affine_row(row, &mut expected);
                fragments.affine_row(row, &mut again);
                assert_eq!(again, expected, "{format}: {} row {row}", tensor.name);
            }
        }
    }
}

#[test]
fn what_is_there_is_not_replaced_unasked() {
    let folder = tempfile::tempdir().unwrap();
    let original = ModelSource::open(&fixture("qwen2.gguf")).unwrap();
    let out = folder.path().join("out.gguf");
    std::fs::write(&out, "mine").unwrap();
    let error = packed(&original, &out, false).unwrap_err().to_string();
    assert!(error.contains("something there already"), "{error}");
    assert_eq!(std::fs::read(&out).unwrap(), b"mine");
    packed(&original, &out, true).unwrap();
    let again = ModelSource::open(&out).unwrap();
    assert!(again.is_packed());
    // Neither onto itself, nor a second time.
    let error = packed(&again, &folder.path().join("twice.gguf"), false).unwrap_err().to_string();
    assert!(error.contains("not packed yet"), "{error}");
    let copy = folder.path().join("copy.gguf");
    std::fs::copy(fixture("qwen2.gguf"), &copy).unwrap();
    let error = packed(&ModelSource::open(&copy).unwrap(), &copy, true).unwrap_err().to_string();
    assert!(error.contains("another path"), "{error}");
    // A folder is replaced by a folder, and only if it holds a packed model.
    let model = ModelSource::open(&fixture("qwen2")).unwrap();
    let place = folder.path().join("model");
    std::fs::create_dir(&place).unwrap();
    std::fs::write(place.join("letter.txt"), "dear").unwrap();
    let error = packed(&model, &place, true).unwrap_err().to_string();
    assert!(error.contains("no packed model"), "{error}");
    assert!(place.join("letter.txt").exists());
    let new = folder.path().join("new");
    packed(&model, &new, false).unwrap();
    packed(&model, &new, true).unwrap();
    assert!(ModelSource::open(&new).unwrap().is_packed());
    assert!(packed(&original, &new, true).unwrap_err().to_string().contains("a folder"));
    assert_eq!(leftovers(folder.path()), Vec::<String>::new());
}

fn leftovers(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap();
    let names = names.map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with('.')).collect()
}

#[test]
fn work_that_is_ended_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["qwen2.gguf", "qwen2"] {
        let original = ModelSource::open(&fixture(name)).unwrap();
        let out = folder.path().join(name);
        let error =
            pack(&original, &out, PackOptions::default(), &mut |_, _| ControlFlow::Break(()));
        assert!(matches!(error, Err(ModelError::Cancelled { .. })), "{error:?}");
        assert!(!out.exists());
        assert_eq!(leftovers(folder.path()), Vec::<String>::new());
    }
    let nowhere = folder.path().join("no such folder/out.gguf");
    let original = ModelSource::open(&fixture("qwen2.gguf")).unwrap();
    let error = packed(&original, &nowhere, false).unwrap_err().to_string();
    assert!(error.contains("cannot create"), "{error}");
}

#[test]
fn progress_reaches_the_end_and_never_goes_back() {
    let folder = tempfile::tempdir().unwrap();
    let original = ModelSource::open(&fixture("qwen2.gguf")).unwrap();
    let mut last = 0;
    let mut progress = |done, total| {
        assert!(last <= done && done <= total, "{last}, {done} of {total}");
        last = done;
        ControlFlow::Continue(())
    };
    let out = folder.path().join("out.gguf");
    pack(&original, &out, PackOptions::default(), &mut progress).unwrap();
    assert!(last > 0);
}

/// Each file differs from a good one in one thing, and the error names it.
#[test]
fn mistakes_in_packed_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("good.gguf");
    packed(&ModelSource::open(&fixture("qwen2.gguf")).unwrap(), &out, false).unwrap();
    let good = std::fs::read(&out).unwrap();
    let broken = |what: &str, from: &[u8], to: &[u8], expected: &str| {
        assert_eq!(from.len(), to.len());
        let mut bytes = good.clone();
        let at = bytes.windows(from.len()).position(|w| w == from);
        let at = at.unwrap_or_else(|| panic!("{what}: nothing to change"));
        bytes[at..at + to.len()].copy_from_slice(to);
        let path = folder.path().join("broken.gguf");
        std::fs::write(&path, bytes).unwrap();
        let error = ModelSource::open(&path).map(drop).unwrap_err().to_string();
        assert!(error.contains("broken.gguf") && error.contains(expected), "{what}: {error}");
    };
    let version = |number: u32| {
        let mut bytes = b"marlin.layout.version".to_vec();
        bytes.extend(4_u32.to_le_bytes());
        bytes.extend(number.to_le_bytes());
        bytes
    };
    broken(
        "a newer version",
        &version(1),
        &version(2),
        "version 2 is not supported, expected version 1",
    );
    broken("version 0", &version(1), &version(0), "version 0 is not supported");
    broken(
        "no version",
        b"marlin.layout.version",
        b"marlin.layout.versiom",
        "`marlin.layout.version` is missing",
    );
    broken("another layout", b"fragment", b"segments", "`segments` is not supported");
    broken(
        "a section of another matrix",
        b"blk.0.attn_k.weight.codes",
        b"blk.0.attn_z.weight.codes",
        "sections that fit the matrix",
    );
    let description = |name: &str| {
        let source = ModelSource::open(&out).unwrap();
        let tensor = source.tensors().get(name).unwrap();
        format!("{} {}x{}", tensor.format, tensor.rows(), tensor.cols())
    };
    let key = "marlin.fragment.blk.0.attn_k.weight";
    let text = description("blk.0.attn_k.weight");
    let pair = |text: &str| {
        let mut bytes = key.as_bytes().to_vec();
        bytes.extend(8_u32.to_le_bytes());
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.as_bytes());
        bytes
    };
    let mut more_rows = text.clone();
    more_rows.replace_range(text.find(' ').unwrap() + 1..text.find(' ').unwrap() + 2, "9");
    broken("other sizes", &pair(&text), &pair(&more_rows), "sections that fit the matrix");
    let nonsense = "?".repeat(text.len());
    broken("nonsense", &pair(&text), &pair(&nonsense), "a number format and sizes");
}
