//! What a buffer is for.

use serde::{Deserialize, Serialize};

use crate::AccessPattern;

/// What a buffer is for. Follows from its name and access pattern: see [`Category::of`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Category {
    /// The model's tensors.
    Weights,
    /// Keys and values of the tokens so far.
    KvCache,
    /// Tensors between ops.
    Activations,
    /// Memory of one op or thread, and tables made from the configuration.
    Scratch,
    /// What choosing tokens needs.
    Sampler,
    /// What a step is told, and what it tells.
    Step,
    /// Memory between the host's and the device's.
    Staging,
}

impl Category {
    /// All of them, in the order of reports.
    pub const ALL: [Self; 7] = [
        Self::Weights,
        Self::KvCache,
        Self::Activations,
        Self::Scratch,
        Self::Sampler,
        Self::Step,
        Self::Staging,
    ];

    /// The name as it stands in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::KvCache => "KV cache",
            Self::Activations => "activations",
            Self::Scratch => "scratch",
            Self::Sampler => "sampler",
            Self::Step => "step data",
            Self::Staging => "staging",
        }
    }

    /// The category of a buffer by the first word of its name (up to a dot or a space), or else by its
    /// pattern:
    ///
    /// | name | category |
    /// |---|---|
    /// | `kv …` | KV cache |
    /// | `sample …`, `sampler …` | sampler |
    /// | `step …`, `logits for …` | step data |
    /// | `staging …` | staging |
    /// | `thread.…`, `linear.…`, `attention.…`, `… workspace`, `rotations`, `rotary …` | scratch |
    /// | adopted, or with initial data | weights |
    /// | anything else | activations |
    pub fn of(name: &str, pattern: &AccessPattern) -> Self {
        let mut words = name.splitn(2, ['.', ' ']);
        let first = words.next().unwrap_or(name);
        let is_part = words.next().is_some();
        match first {
            "kv" => Self::KvCache,
            "sample" | "sampler" => Self::Sampler,
            "step" => Self::Step,
            "staging" => Self::Staging,
            "thread" | "rotations" | "rotary" | "workspace" => Self::Scratch,
            "linear" | "attention" if is_part => Self::Scratch,
            _ if name.ends_with(" workspace") => Self::Scratch,
            "logits" if is_part => Self::Step,
            _ if pattern.aliases_host || pattern.initial_data => Self::Weights,
            _ => Self::Activations,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table() {
        let own = AccessPattern::DEVICE_ONLY;
        let weight = own.with_initial_data();
        for (name, pattern, category) in [
            ("kv.keys", own, Category::KvCache),
            ("kv cache 3", own, Category::KvCache),
            ("sample.maxima", own, Category::Sampler),
            ("sampler draws", weight, Category::Sampler),
            ("step 1 input", AccessPattern::STEP_INPUT, Category::Step),
            ("step.sampled", AccessPattern::READ_BACK, Category::Step),
            ("logits for the host", AccessPattern::READ_BACK, Category::Step),
            ("staging 2", AccessPattern::STEP_INPUT, Category::Staging),
            ("thread.quantised.codes", own, Category::Scratch),
            ("attention workspace", own, Category::Scratch),
            ("rotary frequencies", weight, Category::Scratch),
            ("attention", own, Category::Activations),
            ("attention.partial", own, Category::Scratch),
            ("linear", own, Category::Activations),
            ("logits", own, Category::Activations),
            ("activations residual", own, Category::Activations),
            ("blk.0.attn_q.weight", weight, Category::Weights),
            ("output.weight", AccessPattern::ADOPTED, Category::Weights),
        ] {
            assert_eq!(Category::of(name, &pattern), category, "{name}");
        }
    }
}
