//! Reports: SARIF against its schema, JSON's keys, the documents' shape, and what a project needs
//! to adopt the audit: suppressions, baselines, a configuration, exit conditions.

use std::fs;
use std::path::Path;

use marlin_audit::ir::Language;
use marlin_audit::report::{Report, html, json, markdown, sarif, text};
use marlin_audit::rules::{Code, Severity};
use marlin_audit::source::{Baseline, Config, FailOn, Options, TargetDevice, audit, audit_text};
use serde_json::Value;

fn seeds() -> Report {
    let modules = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/seeds/metal_marlin");
    audit(&[modules], &Options::default()).expect("the modules are readable")
}

fn python(source: &str) -> Report {
    audit_text(&[("a.py", Language::Python, source)], &Options::default())
}

const SCRATCH: &str = "import Metal\ndef f(device, blit):\n    tmp = device.newBufferWithLength_options_(64, 0)\n    blit.fillBuffer_range_value_(tmp, r, 0)\n";

#[test]
fn sarif_is_valid_by_its_schema() {
    let schema = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/sarif-schema-2.1.0.json");
    let mut schema: Value =
        serde_json::from_str(&fs::read_to_string(schema).expect("the schema is beside this test"))
            .expect("the schema is JSON");
    // The published schema has a malformed regular expression, for a field that is not used here.
    for definition in ["run", "toolComponent"] {
        schema["definitions"][definition]["properties"]["language"]
            .as_object_mut()
            .expect("the schema describes `language`")
            .remove("pattern");
    }
    let validator = jsonschema::validator_for(&schema).expect("the schema is a schema");
    let suppressed = python(&SCRATCH.replace("64, 0)", "64, 0)  # marlin: allow(MS001): measured"));
    assert_eq!(suppressed.suppressed.len(), 1);
    let broken =
        audit_text(&[("b.py", Language::Python, "def f(:\n  ]]]\n(((")], &Options::default());
    for report in [seeds(), suppressed, broken] {
        let log: Value = serde_json::from_str(&sarif(&report)).expect("SARIF is JSON");
        let errors: Vec<String> = validator.iter_errors(&log).map(|e| e.to_string()).collect();
        assert!(errors.is_empty(), "{errors:#?}");
        let results = log["runs"][0]["results"].as_array().map_or(0, Vec::len);
        assert_eq!(results, report.findings.len() + report.suppressed.len());
    }
}

#[test]
fn json_has_the_documented_keys() {
    let value: Value = serde_json::from_str(&json(&seeds())).expect("JSON");
    for key in ["buffers", "copies", "zero_copy", "findings", "suppressed", "skipped", "files"] {
        assert!(value[key].is_array(), "{key}");
    }
    for key in [
        "file",
        "function",
        "line",
        "buffer",
        "current_mode",
        "access_pattern",
        "host",
        "device",
        "suggested_mode",
        "inline_candidate",
        "confidence",
        "reason",
    ] {
        assert!(!value["buffers"][0][key].is_null(), "{key}");
    }
    for key in [
        "file",
        "function",
        "line",
        "rule",
        "direction",
        "in_hot_path",
        "avoidable",
        "what",
        "instead",
    ] {
        assert!(!value["copies"][0][key].is_null(), "{key}");
    }
    assert_eq!(value["totals"]["buffers"], value["buffers"].as_array().map_or(0, Vec::len));
}

#[test]
fn markdown_has_the_shape_of_the_two_documents() {
    let text = markdown(&seeds());
    let headings: Vec<&str> =
        text.lines().filter(|l| l.starts_with("# ") || l.starts_with("## ")).collect();
    assert_eq!(headings[0], "# Storage Mode Audit (Metal buffers)");
    let second =
        headings.iter().position(|h| *h == "# Buffer Copy Audit").expect("the second document");
    assert_eq!(
        headings[second + 1..],
        ["## Scope", "## Summary", "## Findings by file", "## Notable copy hotspots (by pattern)"]
    );
    let table = "\n\n\
        | Buffer | Current mode | Purpose | Access pattern | Suggested mode |\n| --- | --- | --- | --- | --- |\n\
        | `_scalar_buf` | Shared | Reserved (unused in code) | Unknown (no observed use) | Private if GPU-only; otherwise Shared |\n";
    assert!(text.contains("\n## `") && text.contains("\nFunction: `_init_buffers` (around line "));
    assert!(text.contains(table), "{text}");
}

#[test]
fn html_is_one_page_and_escapes_the_source() {
    let report = python(
        "import Metal\ndef f(device):\n    a = device.newBufferWithLength_options_(n if n < 4 else \"&\", 0)\n",
    );
    let page = html(&report);
    assert!(page.starts_with("<!doctype html>") && page.trim_end().ends_with("</html>"));
    assert!(!page.contains("src=\"http") && !page.contains("href=\"http"));
    assert!(page.contains("n &lt; 4 else &quot;&amp;&quot;"));
}

#[test]
fn text_shows_the_line_and_a_caret() {
    let shown = text(&python(SCRATCH), false);
    assert!(shown.contains("warning[MS001]"), "{shown}");
    assert!(shown.contains("a.py:3:18"), "{shown}");
    assert!(shown.contains("3 |     tmp = device.newBufferWithLength_options_(64, 0)"), "{shown}");
    assert!(shown.contains("^^^^"), "{shown}");
    assert!(!shown.contains('\u{1b}'));
    assert!(text(&python(SCRATCH), true).contains('\u{1b}'));
}

#[test]
fn suppressions_need_a_reason() {
    let with_reason =
        python(&SCRATCH.replace("    tmp", "    # marlin: allow(MS001): measured\n    tmp"));
    assert!(with_reason.findings.iter().all(|f| f.rule != Code::MS001));
    assert_eq!(with_reason.suppressed[0].reason, "measured");
    let without = python(&SCRATCH.replace("64, 0)", "64, 0)  # marlin: allow(MS001)"));
    let kept = without.findings.iter().find(|f| f.rule == Code::MS001).expect("the finding stays");
    assert!(kept.help.contains("gives no reason"));
    let other_rule =
        python(&SCRATCH.replace("64, 0)", "64, 0)  # marlin: allow(MS002): wrong rule"));
    assert!(other_rule.findings.iter().any(|f| f.rule == Code::MS001));
}

#[test]
fn a_baseline_hides_what_it_knows_and_survives_edits_elsewhere() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("baseline.json");
    let report = python(SCRATCH);
    Baseline::write(&path, &report).expect("a baseline");
    let baseline = Baseline::read(&path).expect("the same baseline");
    let mut moved = python(&SCRATCH.replace("import Metal\n", "import Metal\n\nX = 1\n"));
    moved.apply_baseline(&baseline);
    assert_eq!((moved.findings.len(), moved.totals.in_baseline), (0, report.findings.len()));
    let mut grown = python(&SCRATCH.replace("tmp", "other"));
    grown.apply_baseline(&baseline);
    assert_eq!(grown.findings.len(), report.findings.len());
    fs::write(&path, "{\"version\": 99, \"findings\": []}").expect("a file");
    let error = Baseline::read(&path).expect_err("another version").to_string();
    assert!(error.contains("version 99, expected 1"), "{error}");
}

#[test]
fn what_fails_an_audit() {
    let report = python(SCRATCH);
    assert!(report.fails(&[FailOn::Severity(Severity::Warning)]));
    assert!(report.fails(&[FailOn::Rule(Code::MS001)]));
    assert!(!report.fails(&[FailOn::Severity(Severity::Error)]));
    assert!(!report.fails(&[FailOn::Rule(Code::MC001)]));
    assert!(!report.fails(&[FailOn::Never]));
}

#[test]
fn the_device_adjusts_the_advice() {
    let source = "import Metal\ndef f(device, encoder, data):\n    b = device.newBufferWithLength_options_(65536, MTLResourceStorageModeManaged)\n    b.contents().as_buffer(4)[:] = data\n    b.didModifyRange_((0, 4))\n    encoder.setVertexBuffer_offset_atIndex_(b, 0, 0)\n    encoder.drawPrimitives_vertexStart_vertexCount_(3, 0, 3)\n";
    let files = [("a.py", Language::Python, source)];
    let rules = |device| {
        let report = audit_text(&files, &Options { device, ..Options::default() });
        let rules: Vec<Code> = report.findings.iter().map(|f| f.rule).collect();
        (report.buffers[0].suggested_mode.clone(), rules)
    };
    assert_eq!(rules(TargetDevice::Discrete), ("Managed".into(), vec![]));
    assert_eq!(
        rules(TargetDevice::AppleSilicon),
        ("Shared".into(), vec![Code::MS011, Code::MS013])
    );
}

#[test]
fn a_configuration_names_helpers_and_excludes() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        fs::write(path, text).expect("a file");
    };
    write(
        "marlin-audit.toml",
        "exclude = [\"vendor\"]\ndispatch_helpers = [\"go\"]\nignore = [\"MC016\"]\n",
    );
    write(
        "k.metal",
        "kernel void k(device const float *a [[buffer(0)]], device float *b [[buffer(1)]]) { b[0] = a[0]; }",
    );
    let source = "import Metal\ndef f(device, go):\n    a = device.newBufferWithLength_options_(4, 0)\n    b = device.newBufferWithLength_options_(4, 0)\n    go(\"k\", a, b)\n";
    write("a.py", source);
    write("vendor/b.py", source);
    write("ignored/c.py", source);
    write(".gitignore", "ignored/\n");
    let config =
        Config::read(&Config::find(folder.path()).expect("the file is found")).expect("it is read");
    assert_eq!(config.ignored(), [Code::MC016]);
    let options = Options {
        exclude: config.exclude,
        dispatch_helpers: config.dispatch_helpers,
        ..Options::default()
    };
    let report = audit(&[folder.path().to_path_buf()], &options).expect("an audit");
    let rows: Vec<_> = report.buffers.iter().map(|b| (b.buffer.as_str(), b.device)).collect();
    assert_eq!(rows, [("a", "reads"), ("b", "writes")]);
    write("marlin-audit.toml", "exclud = []\n");
    let error = Config::read(&folder.path().join("marlin-audit.toml"))
        .expect_err("a wrong key")
        .to_string();
    assert!(error.contains("exclud"), "{error}");
}
