//! Values of specialisation constants that kernels are compiled with in tests.

use marlin_kernels::signature::ScalarType;
use marlin_kernels::{ConstantValues, Kernel, MAX_CONSTANTS};

/// Names and values of constants; the rest are the ordinary ones.
type Set = &'static [(&'static str, u32)];

/// A short context of a model with heads of 128 values, on 32 lanes.
const SHORT: Set =
    &[("SLICES", 4), ("TAKEN", 8), ("LANE_ROWS", 2), ("WHOLE", 1), ("BLOCKS_PER_PAGE", 0)];

/// The same in parts, with four heads of a key head together.
const SHORT_SPLIT: Set = &[
    ("SLICES", 4),
    ("TAKEN", 8),
    ("LANE_ROWS", 2),
    ("ROW_HEADS", 4),
    ("SPLIT", 1),
    ("WHOLE", 1),
    ("BLOCKS_PER_PAGE", 0),
];

/// By kernel, or else by kernel file: sets of constants that are worth a compilation of their own, each as the values
/// that differ from [`ordinary`]. What is not here is compiled with the ordinary values alone.
const INTERESTING: &[(&str, &[Set])] = &[
    ("activation", &[&[("ACTIVATION", 0)], &[("ACTIVATION", 1)], &[("ACTIVATION", 2)]]),
    (
        "attention",
        &[
            &[("ROW_HEADS", 4), ("SPLIT", 1), ("BLOCKS_PER_PAGE", 0)],
            &[("KV_FORMAT", 1), ("ROW_HEADS", 3), ("ROW_TOKENS", 2), ("SOFTCAP", 1)],
            &[("KV_FORMAT", 2), ("HEAD_DIM", 80), ("ROW_HEADS", 8), ("SPLIT", 1)],
            &[("KV_FORMAT", 3), ("HEAD_DIM", 256), ("COLUMNS", 2)],
        ],
    ),
    (
        "attention_prefill",
        &[
            &[("ROW_HEADS", 4), ("ROW_TOKENS", 16)],
            &[("KV_FORMAT", 1), ("HEAD_DIM", 64), ("SOFTCAP", 1)],
            &[("KV_FORMAT", 2), ("HEAD_DIM", 80)],
            &[("KV_FORMAT", 3), ("HEAD_DIM", 192)],
        ],
    ),
    ("attention_append", &[SHORT, SHORT_SPLIT]),
    (
        "attention_short",
        &[
            SHORT,
            SHORT_SPLIT,
            &[("KV_FORMAT", 1), ("SLICES", 4), ("TAKEN", 8), ("ROW_HEADS", 3), ("SOFTCAP", 1)],
            &[("KV_FORMAT", 2), ("HEAD_DIM", 80), ("SLICES", 4), ("TAKEN", 8), ("LANE_ROWS", 2)],
            &[("KV_FORMAT", 3), ("HEAD_DIM", 256), ("SLICES", 4), ("TAKEN", 8), ("COLUMNS", 2)],
        ],
    ),
    (
        "dequant_groups",
        &[
            &[("CODE", 0), ("SCALE", 3), ("TENSOR_SCALE", 1), ("WHOLE", 1)],
            &[("CODE", 1), ("BITS", 8), ("SCALE", 1)],
            &[("CODE", 2), ("BITS", 3), ("SCALE", 0), ("ZERO", 1), ("EIGHTS_SHARE", 1)],
            &[("CODE", 2), ("BITS", 2), ("SCALE", 2)],
        ],
    ),
    (
        "embed_weights",
        &[
            &[("CODE", 2), ("OFFSET", 8), ("SCALE", 1)],
            &[("CODE", 4), ("OFFSET", 32), ("SCALE", 5), ("GROUP", 16)],
            &[("CODE", 6), ("SCALE", 3), ("GROUP", 32)],
            &[("CODE", 9), ("GROUP", 0)],
        ],
    ),
    (
        "gemm",
        &[
            &[
                ("CODE", 2),
                ("OFFSET", 8),
                ("SCALE", 1),
                ("ROW_BLOCKS", 2),
                ("DEPTH", 2),
                ("WIDE", 1),
            ],
            &[
                ("CODE", 6),
                ("SCALE", 1),
                ("TILES", 8),
                ("ROW_BLOCKS", 2),
                ("STAGED", 1),
                ("STAGES", 3),
                ("PRESCALED", 1),
            ],
            &[("CODE", 2), ("SCALE", 5), ("MIN", 3), ("GROUP", 32), ("TILES", 2), ("STAGED", 1)],
            &[
                ("CODE", 4),
                ("OFFSET", 32),
                ("SCALE", 5),
                ("GROUP", 16),
                ("GATED", 1),
                ("ROW_BLOCKS", 2),
            ],
            &[("CODE", 8), ("GROUP", 0), ("TILES", 4), ("STAGED", 1), ("STAGES", 4)],
            &[("CODE", 0), ("SCALE", 1), ("MIN", 1), ("GROUP", 64), ("ACCUMULATE", 1)],
            &[("CODE", 1), ("SCALE", 2), ("MIN", 2), ("HAS_BIAS", 1), ("SPLITS", 2)],
            &[("CODE", 3), ("SCALE", 5), ("MIN", 3), ("GROUP", 32), ("ROW_GROUPS", 2)],
            &[("CODE", 5), ("SCALE", 1), ("GROUP", 32), ("K_GROUPS", 4), ("DEPTH", 4)],
            &[("CODE", 6), ("SCALE", 3), ("GROUP", 32), ("GATED", 1), ("ACTIVATION", 1)],
            &[("CODE", 6), ("SCALE", 4), ("GROUP", 16), ("TILES", 8), ("STAGED", 1)],
            &[("CODE", 7), ("SCALE", 2), ("GROUP", 0), ("WIDE", 1)],
            &[("CODE", 9), ("GROUP", 0)],
            &[("CODE", 10), ("GROUP", 0)],
            &[
                ("CODE", 6),
                ("SCALE", 1),
                ("WIDE", 1),
                ("RING", 4),
                ("K_GROUPS", 4),
                ("ACCUMULATE", 1),
                ("NORM_IN", 1),
                ("NORM_OUT", 1),
            ],
        ],
    ),
    (
        "gemm_batch",
        &[
            &[
                ("CODE", 2),
                ("OFFSET", 8),
                ("SCALE", 1),
                ("TILES", 16),
                ("ROW_GROUPS", 4),
                ("DEPTH", 2),
            ],
            &[
                ("CODE", 6),
                ("SCALE", 1),
                ("TILES", 2),
                ("ROW_GROUPS", 4),
                ("DEPTH", 4),
                ("AHEAD", 2),
            ],
            &[
                ("CODE", 2),
                ("SCALE", 5),
                ("MIN", 3),
                ("GROUP", 32),
                ("TILES", 8),
                ("ROW_GROUPS", 4),
            ],
            &[
                ("CODE", 6),
                ("SCALE", 4),
                ("GROUP", 16),
                ("TILES", 4),
                ("GATED", 1),
                ("ROW_BLOCKS", 2),
            ],
            &[("CODE", 8), ("SCALE", 0), ("GROUP", 0), ("HAS_BIAS", 1), ("SPLITS", 2)],
        ],
    ),
    ("gemm_batch_reduce", &[&[("SPLITS", 2)], &[("SPLITS", 2), ("GATED", 1), ("ACCUMULATE", 1)]]),
    (
        "gemv",
        &[
            &[("CODE", 2), ("SCALE", 1), ("MIN", 1), ("GROUP", 32), ("TOKENS", 1)],
            &[("CODE", 7), ("SCALE", 2), ("GROUP", 0), ("TOKENS", 8), ("GATED", 1)],
            &[("CODE", 0), ("SCALE", 2), ("MIN", 2), ("GROUP", 64), ("ACCUMULATE", 1)],
            &[("CODE", 1), ("SCALE", 1), ("HAS_BIAS", 1), ("TOKENS", 2)],
            &[("CODE", 3), ("SCALE", 5), ("MIN", 3), ("GROUP", 32), ("TOKENS", 4)],
            &[("CODE", 4), ("OFFSET", 32), ("SCALE", 5), ("GROUP", 16)],
            &[("CODE", 5), ("SCALE", 1), ("GROUP", 32), ("GATED", 1), ("ACTIVATION", 1)],
            &[("CODE", 6), ("SCALE", 3), ("GROUP", 32)],
            &[("CODE", 6), ("SCALE", 4), ("GROUP", 16)],
            &[("CODE", 8), ("GROUP", 0)],
            &[("CODE", 9), ("GROUP", 0)],
            &[("CODE", 10), ("GROUP", 0)],
        ],
    ),
    (
        "hadamard",
        &[
            &[("ORDER", 1), ("LEVELS", 12), ("WHOLE", 1)],
            &[("ORDER", 12), ("LEVELS", 8), ("WHOLE", 1)],
            &[("ORDER", 20), ("LEVELS", 8), ("WHOLE", 1)],
        ],
    ),
    // One pass has at most four levels: more would ask the compiler to unroll thousands of them.
    ("hadamard_across", &[&[("ORDER", 1), ("LEVELS", 4), ("WHOLE", 1)], &[("ORDER", 20)]]),
    (
        "kv_append",
        &[
            &[("HEAD_DIM", 80)],
            &[("KV_FORMAT", 1)],
            &[("KV_FORMAT", 2), ("HEAD_DIM", 80)],
            &[("KV_FORMAT", 3)],
        ],
    ),
    (
        "mla",
        &[
            &[
                ("CODE", 2),
                ("OFFSET", 8),
                ("SCALE", 1),
                ("LATENT", 512),
                ("ROPE", 64),
                ("PIECES", 2),
            ],
            &[
                ("CODE", 6),
                ("SCALE", 1),
                ("NORM", 1),
                ("LATENT", 512),
                ("ROPE", 64),
                ("PIECES", 2),
                ("ROW_HEADS", 2),
                ("SPLIT", 1),
            ],
        ],
    ),
    (
        "moe",
        &[
            &[("SCORING", 0), ("RENORMALISE", 1), ("ACCUMULATE", 1)],
            &[("SCORING", 1), ("RENORMALISE", 1), ("HAS_BIAS", 1)],
        ],
    ),
    (
        "moe_gemm",
        &[
            &[("CODE", 2), ("SCALE", 1), ("TILES", 4), ("GATED", 1)],
            &[("CODE", 4), ("SCALE", 5), ("MIN", 3), ("GROUP", 16), ("TILES", 2)],
        ],
    ),
    (
        "moe_product",
        &[
            &[("CODE", 2), ("SCALE", 1), ("TILE", 8), ("GATED", 1), ("GATHER", 1)],
            &[("CODE", 4), ("SCALE", 5), ("MIN", 3), ("GROUP", 16), ("TILE", 4)],
        ],
    ),
    ("norm", &[&[("WHOLE", 1)]]),
    (
        "pack",
        &[
            &[("CODE", 0), ("BITS", 4), ("SCALE", 3), ("TENSOR_SCALE", 1), ("WHOLE", 1)],
            &[("CODE", 2), ("BITS", 3), ("ZERO", 1)],
            &[("CODE", 2), ("BITS", 8), ("SCALE", 1), ("WHOLE", 1)],
        ],
    ),
    ("quantise_activations", &[&[("WHOLE", 1)], &[("CODE", 1), ("GROUP", 32)]]),
    ("rope", &[&[("Q_NORM", 1), ("K_NORM", 1)], &[("Q_NORM", 0), ("K_NORM", 0)]]),
    (
        "rope_append",
        &[
            &[("TOGETHER", 1), ("WHOLE", 1), ("BLOCKS_PER_PAGE", 0)],
            &[("KV_FORMAT", 1), ("HEAD_DIM", 256), ("Q_NORM", 1), ("K_NORM", 1), ("WHOLE", 1)],
            &[("KV_FORMAT", 2), ("HEAD_DIM", 80), ("INTERLEAVED", 1), ("K_NORM", 1)],
            &[("KV_FORMAT", 3), ("TOGETHER", 1), ("Q_NORM", 1)],
        ],
    ),
];

/// A value that makes sense for a constant of this name in any kernel.
fn ordinary(name: &str, ty: ScalarType) -> u32 {
    match name {
        "GROUP" | "HEAD_DIM" => 128,
        "STAGES" => 2,
        "ORDER" => 64,
        "BITS" => 4,
        "BLOCKS_PER_PAGE" => 4,
        "RING" | "ACTIVATION" | "CODE" | "SCALE" | "MIN" | "OFFSET" | "KV_FORMAT" => 0,
        _ => match ty {
            ScalarType::Bool => 0,
            ScalarType::Float => 1f32.to_bits(),
            ScalarType::Uint | ScalarType::Int | ScalarType::Ulong => 1,
        },
    }
}

/// Every set of constants to compile `kernel` with.
pub(crate) fn of(kernel: &Kernel) -> Vec<ConstantValues> {
    let listed = INTERESTING
        .iter()
        .find(|(name, _)| *name == kernel.name)
        .or_else(|| INTERESTING.iter().find(|(file, _)| *file == kernel.file));
    let sets: &[&[(&str, u32)]] = listed.map_or(&[&[]], |(_, sets)| sets);
    for (name, _) in sets.iter().copied().flatten() {
        let known = kernel.constants.iter().any(|(constant, _)| constant == name);
        assert!(known, "{}.metal has no constant {name}", kernel.file);
    }
    sets.iter()
        .map(|set| {
            let mut bits = [0; MAX_CONSTANTS];
            for (place, (name, ty)) in bits.iter_mut().zip(kernel.constants) {
                let chosen = set.iter().find(|(constant, _)| constant == name);
                *place = chosen.map_or_else(|| ordinary(name, *ty), |(_, value)| *value);
            }
            ConstantValues::new(bits)
        })
        .collect()
}
