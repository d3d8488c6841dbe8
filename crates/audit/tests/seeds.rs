//! The storage table of the audit that this project starts from, row by row.

use std::path::Path;

use marlin_audit::report::Report;
use marlin_audit::source::{Options, audit};

fn report() -> Report {
    let modules = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/seeds/metal_marlin");
    audit(&[modules], &Options::default()).expect("the modules are readable")
}

const MANAGED: (&str, &str) = ("CPU write, GPU read", "Managed");
const READ_BACK: (&str, &str) = ("GPU write, CPU read", "Shared");
const STATE: (&str, &str) = ("GPU write/read", "Private");

#[test]
fn every_row_of_the_storage_table() {
    let rows = [
        ("autotune.py", "run_kernel", &["M_buf", "N_buf", "K_buf", "gs_buf"][..], MANAGED),
        ("kernels.py", "marlin_gemm_fp4", &["params_buf"], MANAGED),
        ("kernels.py", "marlin_gemm_int4", &["params_buf"], MANAGED),
        ("kernels.py", "dequant_fp4", &["params_buf"], MANAGED),
        ("kernels.py", "hadamard_transform", &["params_buf"], MANAGED),
        ("kernels.py", "decode_gemv_fp4", &["params_buf"], MANAGED),
        ("mla_kernels.py", "_dispatch_mla_proj", &["M_buf", "N_buf", "K_buf", "gs_buf"], MANAGED),
        ("mla_kernels.py", "_dispatch_mla_decode", &["K_buf", "N_buf", "gs_buf"], MANAGED),
        (
            "mla_kernels.py",
            "_dispatch_mla_fused",
            &["M_buf", "Kh_buf", "Kl_buf", "Nout_buf", "gsa_buf", "gsb_buf"],
            MANAGED,
        ),
        (
            "sampler_metal.py",
            "_init_buffers",
            &["_scalar_buf"],
            ("Unknown (no observed use)", "Private if GPU-only; otherwise Shared"),
        ),
        ("sampler_metal.py", "_init_buffers", &["_result_idx_buf"], READ_BACK),
        (
            "sampler_metal.py",
            "_init_buffers",
            &["_result_val_buf"],
            ("GPU write, no CPU read observed", "Private"),
        ),
        ("sampler_metal.py", "_init_buffers", &["_block_maxes_buf", "_block_sums_buf"], STATE),
        ("sampler_metal.py", "_init_buffers", &["_topk_vals_buf", "_topk_idxs_buf"], READ_BACK),
        ("sampler_metal.py", "_create_buffer_from_numpy", &["buf"], MANAGED),
        (
            "sampler_metal.py",
            "_mps_tensor_to_buffer",
            &["buffer"],
            ("GPU read, CPU access not used here", "Shared (required for no-copy)"),
        ),
        ("sampler_metal.py", "_greedy_sample_metal", &["results_buf"], READ_BACK),
    ];
    let report = report();
    let mut listed = 0;
    for (file, function, names, (pattern, suggested)) in rows {
        let found: Vec<_> = report
            .buffers
            .iter()
            .filter(|b| {
                b.file.ends_with(file)
                    && b.function == function
                    && names.contains(&b.buffer.as_str())
            })
            .collect();
        assert_eq!(found.len(), names.len(), "{file}: {function}: {names:?}");
        for row in found {
            assert_eq!(row.current_mode, "Shared", "{}", row.buffer);
            assert_eq!(row.access_pattern, pattern, "{}", row.buffer);
            assert_eq!(row.suggested_mode, suggested, "{}", row.buffer);
        }
        listed += names.len();
    }
    // Nothing else in those files; the dispatcher, which the audit left out, has three of its own.
    let others = report.buffers.iter().filter(|b| b.file.ends_with("metal_dispatch.py")).count();
    assert_eq!((report.buffers.len(), others), (listed + 3, 3));
}

#[test]
fn small_constants_are_better_bound_inline() {
    for row in report().buffers {
        let constant = row.buffer.ends_with("_buf") && row.suggested_mode == "Managed";
        assert_eq!(row.inline_candidate, constant, "{} in {}", row.buffer, row.function);
    }
}

#[test]
fn every_finding_of_the_copy_audit() {
    let report = report();
    let found = |file: &str, function: &str, rule: &str| {
        report
            .copies
            .iter()
            .filter(|c| c.file.ends_with(file) && c.function == function && c.rule.as_str() == rule)
            .count()
    };
    assert_eq!(found("_compat.py", "to_numpy", "MC003"), 1);
    assert_eq!(found("_compat.py", "from_numpy", "MC012"), 1);
    assert_eq!(found("sampler_metal.py", "_create_buffer_from_numpy", "MC011"), 1);
    assert_eq!(found("sampler_metal.py", "_create_buffer_from_tensor", "MC003"), 1);
    assert_eq!(found("sampler_metal.py", "argmax", "MC009"), 1);
    assert_eq!(found("sampler_metal.py", "argmax", "MC007"), 1);
    assert_eq!(found("sampler_metal.py", "top_k", "MC010"), 2);
    assert_eq!(found("sampler_metal.py", "_topp_sample", "MC003"), 1);
    assert_eq!(found("autotune.py", "run_kernel", "MC001"), 4);
    for packer in ["pack_fp4_weights", "pack_int2_weights", "pack_int3_weights"] {
        assert_eq!(found("kernels.py", packer, "MC003"), 1);
    }
    assert_eq!(found("kernels.py", "dequant_u4_standalone", "MC006"), 1);
    assert_eq!(found("mla_kernels.py", "mla_proj", "MC006"), 1);
    assert_eq!(found("metal_dispatch.py", "buffer_to_numpy", "MC009"), 1);
    assert_eq!(found("metal_dispatch.py", "private_from_bytes", "MC015"), 1);
    assert_eq!(found("metal_dispatch.py", "dispatch", "MC016"), 1);
    let zero_copy = |file: &str| report.zero_copy.iter().filter(|z| z.file.ends_with(file)).count();
    assert_eq!((zero_copy("sampler_metal.py"), zero_copy("metal_dispatch.py")), (1, 1));
    assert!(!report.copies.iter().any(|c| c.file.ends_with("inference_metal.py")));
}
