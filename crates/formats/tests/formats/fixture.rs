//! The reference tensors in `tests/fixtures` at the root of the workspace; its README says what
//! made each of them.

use std::path::Path;

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};

/// One of the fixture files.
pub(crate) struct Fixture(Vec<u8>);

impl Fixture {
    pub(crate) fn open(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name);
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Fixture(bytes)
    }

    /// Little-endian elements of a tensor.
    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        self.find(name).unwrap_or_else(|| panic!("no tensor {name}")).2
    }

    pub(crate) fn shape(&self, name: &str) -> Vec<usize> {
        self.find(name).unwrap_or_else(|| panic!("no tensor {name}")).1
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// A tensor of floats, widened to f32.
    pub(crate) fn floats(&self, name: &str) -> Vec<f32> {
        let (dtype, _, bytes) = self.find(name).unwrap_or_else(|| panic!("no tensor {name}"));
        let pairs = || bytes.as_chunks::<2>().0.iter();
        match dtype {
            Dtype::F32 => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Dtype::F16 => pairs().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
            Dtype::BF16 => pairs().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
            other => panic!("{name} is {other:?}"),
        }
    }

    fn find(&self, name: &str) -> Option<(Dtype, Vec<usize>, Vec<u8>)> {
        let tensors = SafeTensors::deserialize(&self.0).expect("a safetensors file");
        let tensor = tensors.tensor(name).ok()?;
        Some((tensor.dtype(), tensor.shape().to_vec(), tensor.data().to_vec()))
    }
}

/// Equality to the bit, but for NaN, whose payload no format defines.
pub(crate) fn assert_same(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        let same = f.to_bits() == e.to_bits() || f.is_nan() && e.is_nan();
        assert!(same, "{what}, element {i}: {f:e}, expected {e:e}");
    }
}
