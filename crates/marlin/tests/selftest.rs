//! `marlin selftest`, as the person with the unknown hardware sees it.

use std::process::{Command, Output};

use serde_json::Value;

fn selftest(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_marlin"));
    command.arg("selftest").args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn the_processor_passes_and_the_report_says_which_it_was() {
    let output = selftest(&["--device", "cpu"]);
    let report = text(&output.stdout);
    assert!(output.status.success(), "{report}{}", text(&output.stderr));
    let first = report.lines().next().unwrap();
    assert!(first.starts_with("metal-marlin ") && first.contains(std::env::consts::OS), "{first}");
    assert!(report.contains("kind: cpu\n"), "{report}");
    let checks = report.lines().filter(|line| line.starts_with("ok ")).count();
    let last = report.lines().last().unwrap();
    assert_eq!(last, format!("{checks} ok, 0 failed, 0 skipped"));
    assert!(checks >= 6, "{report}");
}

#[test]
fn json_is_the_same_report() {
    let output = selftest(&["--device", "cpu", "--json"]);
    assert!(output.status.success());
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["failed"], 0);
    let checks = report["checks"].as_array().unwrap();
    assert_eq!(report["passed"], checks.len());
    for check in checks {
        assert_eq!(check["outcome"], "ok");
        assert!(check["error"].as_f64() <= check["allowed"].as_f64(), "{check}");
    }
    assert_eq!(report["device"][1], serde_json::json!(["kind", "cpu"]));
}

#[cfg(not(target_vendor = "apple"))]
#[test]
fn elsewhere_there_is_no_metal_device_and_that_is_said() {
    let output = selftest(&["--device", "metal"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    let error = text(&output.stderr);
    assert!(error.starts_with("error: no metal device") && error.contains("Apple"), "{error}");
}

#[cfg(feature = "emulated")]
#[test]
fn the_emulated_device_passes() {
    let output = selftest(&["--device", "emulated"]);
    let report = text(&output.stdout);
    assert!(output.status.success(), "{report}{}", text(&output.stderr));
    assert!(report.contains("kind: emulated\n"), "{report}");
}
