//! `marlin audit run`, as scripts and people at a terminal see it. Runs on the processor, so the budgets
//! that the project holds itself to are checked wherever the tests are.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn path(relative: &str) -> String {
    repository().join(relative).to_str().expect("a readable path").to_owned()
}

fn marlin(args: &[&str]) -> Command {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("audit-run-cache");
    let mut command = Command::new(env!("CARGO_BIN_EXE_marlin"));
    command.args(args).env("MARLIN_CACHE", cache).stdin(Stdio::null());
    command
}

/// Audits a run of a model with 12 tokens.
fn audit_on(device: &str, model: &str, args: &[&str]) -> Output {
    marlin(&["audit", "run", "--device", device, "--raw", "--temperature", "0"])
        .args(["--max-tokens", "12", "-m", model])
        .args(args)
        .output()
        .unwrap()
}

/// Audits a run of a tiny model on the processor.
fn audit(args: &[&str]) -> Output {
    audit_on("cpu", &path("tests/fixtures/architectures/llama3_rope.gguf"), args)
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_designs_budget_is_kept() {
    let output = audit(&["--budget", &path("budgets/design.toml"), "Hello world"]);
    assert_eq!(output.status.code(), Some(0), "{}{}", stdout(&output), stderr(&output));
    let text = stdout(&output);
    for part in [
        "a decoded token: 1 submission, 14 dispatches, 0 waits, 4 bytes read back, 0 bytes uploaded",
        "ok decode.submissions_per_token: 1, at most 1",
        "ok read_back_bytes_per_token: 4, at most 4",
        "ok decode.allocations: 0, at most 0",
        "findings: 0 errors, 0 warnings",
        "crates/cpu/src/executor/kv_cache.rs: KvCache::new",
    ] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
}

/// On memory that device and host share a packed file is used where it is mapped: the budget allows no copy of a weight.
#[test]
fn the_designs_budget_is_kept_by_a_packed_file_on_a_gpu() {
    let folder = tempfile::tempdir().unwrap();
    let packed = folder.path().join("packed.gguf");
    let packed = packed.to_str().unwrap();
    let original = path("tests/fixtures/architectures/llama3_rope.gguf");
    assert!(marlin(&["pack", &original, "-o", packed]).output().unwrap().status.success());
    let budget = path("budgets/design.toml");
    let run = |model: &str| audit_on("emulated", model, &["--budget", &budget, "Hello world"]);
    let output = run(packed);
    assert_eq!(output.status.code(), Some(0), "{}{}", stdout(&output), stderr(&output));
    let text = stdout(&output);
    for part in
        ["ok weight_copies: 0, at most 0", "mapped weights", "findings: 0 errors, 0 warnings"]
    {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    // The original's weights are reordered and uploaded: what packing is for.
    let output = run(&original);
    assert_eq!(output.status.code(), Some(1), "{}", stdout(&output));
    assert!(stderr(&output).contains("weight_copies: 1, at most 0"), "{}", stderr(&output));
}

#[test]
fn over_a_budget_the_report_still_comes_and_the_lines_that_spent_it_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let budget = folder.path().join("tight.toml");
    fs::write(
        &budget,
        "read_back_bytes_per_token = 3\n\
         [load.copies.host-to-host]\nbytes = 0\n\
         [decode]\ndispatches_per_token = 100\n",
    )
    .unwrap();
    let output = audit(&["--format", "json", "--budget", budget.to_str().unwrap(), "Hello"]);
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["budget"]["exceeded"], true);
    assert_eq!(report["budget"]["name"], budget.to_str().unwrap());
    let message = stderr(&output);
    for part in [
        "error: over the budget",
        "tight.toml",
        "read_back_bytes_per_token: 4, at most 3",
        "crates/cpu/src/executor/mod.rs:",
        " step.sampled",
        "load.copies.host-to-host.bytes: 1280, at most 0",
        "crates/cpu/src/executor/plan.rs:",
        "1280 norms and biases as f32",
    ] {
        assert!(message.contains(part), "no {part:?} in {message}");
    }
    assert!(!message.contains("dispatches_per_token"), "{message}");
}

#[test]
fn the_answer_does_not_mix_with_the_report() {
    let output = audit(&["--format", "json", "Hello"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["schema"], 1);
    assert_eq!(report["exchange"]["prompt"], "Hello");
    let answer = report["exchange"]["answer"].as_str().unwrap();
    assert!(!answer.is_empty());
    assert_eq!(stderr(&output).trim_end_matches('\n'), answer.trim_end_matches('\n'));
    assert_eq!(report["summary"]["per_token"]["submissions"], 1.0);
    assert_eq!(report["summary"]["phases"][2]["steps"], 11);
    assert_eq!(report["run"]["device"], "cpu");
    let modules = report["buffers"].as_array().unwrap().iter().map(|b| &b["site"]["module"]);
    for module in modules {
        assert!(module.as_str().unwrap().starts_with("crates/"), "{module}");
    }
}

#[test]
fn the_report_goes_to_a_file_in_every_form() {
    let folder = tempfile::tempdir().unwrap();
    for (format, part) in [
        ("text", "storage modes"),
        ("markdown", "# Storage Mode Audit (Metal buffers)"),
        ("json", "\"memory_over_time\""),
        ("html", "One decode step"),
    ] {
        let file = folder.path().join(format);
        let output = audit(&["--format", format, "-o", file.to_str().unwrap(), "Hello"]);
        assert!(output.status.success(), "{}", stderr(&output));
        assert_eq!(stdout(&output), "");
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.contains(part), "{format}");
    }
    let nowhere = folder.path().join("no/such/folder/report");
    let output = audit(&["-o", nowhere.to_str().unwrap(), "Hello"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("cannot be written"), "{}", stderr(&output));
}

#[test]
fn a_budget_with_a_mistake_is_wrong_usage() {
    let folder = tempfile::tempdir().unwrap();
    let budget = folder.path().join("budget.toml");
    for (text, part) in [
        ("[decode]\nallocation = 0", "unknown field `allocation`"),
        ("parameter_buffers = \"few\"", "expected a number of 0 or more"),
        ("[decode", "budget.toml"),
    ] {
        fs::write(&budget, text).unwrap();
        let output = audit(&["--budget", budget.to_str().unwrap(), "x"]);
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(stderr(&output).contains(part), "{}", stderr(&output));
        assert_eq!(stdout(&output), "");
    }
    let output = audit(&["--budget", "./no/such.toml", "x"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("./no/such.toml: cannot be read"), "{}", stderr(&output));
}

#[test]
fn help_has_runs_options_and_examples() {
    let output = audit(&["--help"]);
    assert!(output.status.success());
    let help = stdout(&output);
    for part in ["--budget", "--format", "--output", "--model", "--max-tokens", "Examples:"] {
        assert!(help.contains(part), "no {part} in {help}");
    }
}
