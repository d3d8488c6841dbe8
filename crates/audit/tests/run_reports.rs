//! The report of a run in every form, over a ledger's report that was made by hand. What is expected is
//! in `tests/run/`; with `UPDATE_EXPECTED=1` the files are written anew, to be read before they are
//! committed.

use std::fs;
use std::path::{Path, PathBuf};

use marlin_audit::run::{Exchange, RunReport, html, json, markdown, text};
use marlin_placement::audit::{Budget, RunAudit, RunFacts};
use marlin_placement::{
    AccessLine, AccessPattern, BufferLine, CopyLine, Device, Direction, EventLine, LedgerReport,
    Phase, StepLine, StepTrace, TraceEvent, TraceKind, policy,
};
use serde_json::Value;

const PLACE: &str = "crates/gpu/src/model/place.rs:91:20";
const MEMORY: &str = "crates/gpu/src/model/memory.rs:182:33";
const STEP: &str = "/home/me/registry/src/index/marlin-gpu-0.1.0/src/model/memory.rs:205:20";
const NORM: &str = "crates/gpu/src/ops/norm.rs:40:10";
const UPLOAD: &str = "crates/gpu/src/cuda/device.rs:170:29";

fn functions(module: &str, line: u32) -> Option<String> {
    let name = match (module, line) {
        ("crates/gpu/src/model/place.rs", _) => "place",
        ("crates/gpu/src/model/memory.rs", _) => "Memory::allocate",
        ("crates/gpu/src/ops/norm.rs", _) => "rms_norm",
        _ => return None,
    };
    Some(name.to_owned())
}

fn buffer(name: &str, pattern: AccessPattern, bytes: u64, site: &str, made_ns: u64) -> BufferLine {
    BufferLine {
        name: name.to_owned(),
        mode: policy(&pattern, Some(bytes)).mode,
        pattern,
        bytes,
        phase: Phase::Load,
        live: true,
        made_ns,
        freed_ns: None,
        host_writes: 0,
        host_write_bytes: 0,
        host_reads: 0,
        host_read_bytes: 0,
        host_reads_by_phase: Default::default(),
        host_writes_by_phase: Default::default(),
        accesses: Vec::new(),
        site: site.to_owned(),
    }
}

fn used(mut line: BufferLine, kernel: &'static str, reads: u64, writes: u64) -> BufferLine {
    line.accesses.push(AccessLine { kernel, phase: Phase::Decode, reads, writes });
    line
}

fn event(phase: Phase, label: &'static str, count: u64, bytes: u64, site: &str) -> EventLine {
    EventLine { phase, label, count, bytes, site: site.to_owned() }
}

fn traced(
    kind: TraceKind,
    label: &str,
    at: (u64, Option<u64>),
    bytes: u64,
    site: &str,
) -> TraceEvent {
    let (start_ns, took_ns) = at;
    let (label, site) = (label.to_owned(), site.to_owned());
    TraceEvent { kind, label, start_ns, took_ns, bytes, site }
}

/// A discrete GPU, two layers, three decode steps; a staging buffer that is gone, logits that somebody
/// asked for, a buffer that nobody used.
fn ledger_report() -> LedgerReport {
    let filled = AccessPattern::DEVICE_ONLY.with_initial_data();
    let weight = |name: &str, at| used(buffer(name, filled, 500_000, PLACE, at), "matmul", 4, 0);
    let mut staging = buffer("staging 0", AccessPattern::STEP_INPUT, 4_194_304, UPLOAD, 1_000_000);
    (staging.live, staging.freed_ns) = (false, Some(400_000_000));
    (staging.host_writes, staging.host_write_bytes) = (2, 1_000_000);
    staging.host_writes_by_phase[Phase::Load as usize] = (2, 1_000_000);
    staging.accesses.push(AccessLine {
        kernel: "copy command",
        phase: Phase::Load,
        reads: 2,
        writes: 0,
    });
    let mut input = used(
        buffer("step 0 input", AccessPattern::STEP_INPUT, 96, STEP, 420_000_000),
        "embed",
        4,
        0,
    );
    (input.host_writes, input.host_write_bytes) = (4, 96);
    input.host_writes_by_phase = [(0, 0), (1, 24), (3, 72)];
    let mut chosen = used(
        buffer("step 0 sampled", AccessPattern::READ_BACK, 4, STEP, 421_000_000),
        "arg_max",
        0,
        4,
    );
    (chosen.host_reads, chosen.host_read_bytes) = (4, 16);
    chosen.host_reads_by_phase = [(0, 0), (1, 4), (3, 12)];
    let (prefill, decode) = (Phase::Prefill, Phase::Decode);
    LedgerReport {
        memory: Device::Discrete,
        elapsed_ns: 1_000_000_000,
        steps: [
            StepLine::default(),
            StepLine { steps: 1, tokens: 7, outputs: 1 },
            StepLine { steps: 3, tokens: 3, outputs: 3 },
        ],
        buffers: vec![
            staging,
            weight("blk.0.attn_q.weight", 2_000_000),
            weight("blk.1.attn_q.weight", 200_000_000),
            used(
                buffer("kv cache 0", AccessPattern::DEVICE_ONLY, 65_536, MEMORY, 410_000_000),
                "attention",
                4,
                4,
            ),
            used(
                buffer(
                    "activations residual",
                    AccessPattern::DEVICE_ONLY,
                    8192,
                    MEMORY,
                    411_000_000,
                ),
                "rms_norm",
                8,
                0,
            ),
            buffer("activations <unused>", AccessPattern::DEVICE_ONLY, 4096, MEMORY, 412_000_000),
            input,
            chosen,
        ],
        copies: vec![
            CopyLine {
                direction: Direction::HostToDevice,
                event: event(Phase::Load, "upload", 2, 2_000_000, UPLOAD),
            },
            CopyLine {
                direction: Direction::HostToDevice,
                event: event(decode, "did_modify", 3, 72, UPLOAD),
            },
            CopyLine {
                direction: Direction::DeviceToHost,
                event: event(decode, "logits that the host asked for", 3, 6000, STEP),
            },
        ],
        dispatches: vec![
            event(prefill, "rms_norm", 2, 0, NORM),
            event(decode, "rms_norm", 6, 0, NORM),
        ],
        waits: vec![event(decode, "submission", 3, 0, UPLOAD)],
        submissions: vec![
            event(prefill, "graph", 1, 0, UPLOAD),
            event(decode, "graph", 3, 0, UPLOAD),
        ],
        trace: Some(StepTrace {
            start_ns: 900_000_000,
            took_ns: 250_000,
            events: vec![
                traced(TraceKind::HostWrite, "step 0 input", (1_000, None), 24, STEP),
                traced(
                    TraceKind::Copy(Direction::HostToDevice),
                    "did_modify",
                    (2_000, None),
                    24,
                    UPLOAD,
                ),
                traced(TraceKind::Submission, "graph", (5_000, None), 0, UPLOAD),
                traced(TraceKind::Dispatch, "rms_norm", (5_100, None), 0, NORM),
                traced(TraceKind::Dispatch, "rms_norm", (5_100, None), 0, NORM),
                traced(TraceKind::Wait, "submission", (6_000, Some(200_000)), 0, UPLOAD),
                traced(TraceKind::DeviceTime, "graph", (16_000, Some(190_000)), 0, UPLOAD),
                traced(TraceKind::HostRead, "step 0 sampled", (207_000, None), 4, STEP),
            ],
            dropped: 0,
        }),
    }
}

fn audit() -> RunAudit {
    let run = RunFacts {
        model: "tiny".to_owned(),
        device: "cuda".to_owned(),
        device_description: "A GPU (sm_90a), f16 activations".to_owned(),
        context: 128,
        sequences: 1,
    };
    RunAudit::new(&ledger_report(), run, &functions)
}

/// Calls `check` with the whole report.
fn with_report<T>(check: impl FnOnce(&RunReport<'_>) -> T) -> T {
    let audit = audit();
    let budget = Budget::design().check(&audit);
    check(&RunReport {
        audit: &audit,
        budget_name: "design",
        budget: &budget,
        exchange: Some(Exchange { prompt: "Why <b>not</b>?", answer: "Because `it` is.\nSo." }),
    })
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/run")
}

fn expect(name: &str, found: &str) {
    let path = folder().join(name);
    if std::env::var_os("UPDATE_EXPECTED").is_some() {
        fs::write(&path, found).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap();
    for (i, (found, expected)) in found.lines().zip(expected.lines()).enumerate() {
        assert_eq!(found, expected, "{name}, line {}", i + 1);
    }
    assert_eq!(found.len(), expected.len(), "{name}");
}

#[test]
fn every_form_is_as_expected() {
    with_report(|report| {
        expect("report.txt", &text(report));
        expect("report.md", &markdown(report));
        expect("report.json", &json(report));
        expect("report.html", &html(report));
    });
}

#[test]
fn json_is_valid_by_its_schema_and_reads_back() {
    let schema = Path::new(env!("CARGO_MANIFEST_DIR")).join("run.schema.json");
    let schema: Value = serde_json::from_str(&fs::read_to_string(schema).unwrap()).unwrap();
    let validator = jsonschema::validator_for(&schema).expect("the schema is a schema");
    let check = |text: &str| {
        let value: Value = serde_json::from_str(text).unwrap();
        let errors: Vec<String> =
            validator.iter_errors(&value).map(|e| format!("{}: {e}", e.instance_path())).collect();
        assert!(errors.is_empty(), "{errors:#?}");
    };
    let text = with_report(json);
    check(&text);
    let back: RunAudit = serde_json::from_str(&text).unwrap();
    assert_eq!(back, audit());
    // A run that never decoded, without a budget.
    let empty = RunAudit::new(&LedgerReport::default(), RunFacts::default(), &functions);
    let report = RunReport { audit: &empty, budget_name: "none", budget: &[], exchange: None };
    check(&json(&report));
    let changed = text.replacen("\"schema\": 1", "\"schema\": 2", 1);
    assert!(!validator.is_valid(&serde_json::from_str(&changed).unwrap()));
}

#[test]
fn the_documents_have_the_shape_of_an_audit_by_hand() {
    let text = with_report(markdown);
    for line in [
        "# Storage Mode Audit (Metal buffers)",
        "# Buffer Copy Audit",
        "## `crates/gpu/src/model/memory.rs`",
        "Function: `Memory::allocate` (around line 182)",
        "## Findings by file",
        "## Notable copy hotspots (by pattern)",
    ] {
        assert!(text.lines().any(|l| l == line), "no {line:?}");
    }
    let header = "| Buffer | Current mode | Purpose | Access pattern | Suggested mode |";
    assert!(text.contains(header));
}

/// Elements that are open at the end, and what is wrong.
fn open_elements(page: &str) -> Result<Vec<String>, String> {
    let mut open: Vec<String> = Vec::new();
    let mut rest = page;
    while let Some(start) = rest.find('<') {
        rest = &rest[start + 1..];
        let end = rest.find('>').ok_or("an element without an end")?;
        let (element, after) = rest.split_at(end);
        rest = after;
        if element.starts_with('!') {
            continue;
        }
        if let Some(name) = element.strip_prefix('/') {
            let last = open.pop();
            if last.as_deref() != Some(name) {
                return Err(format!("</{name}> closes {last:?}"));
            }
            continue;
        }
        let name: String = element.chars().take_while(|c| c.is_alphanumeric()).collect();
        if !element.ends_with('/') && !["meta", "br"].contains(&name.as_str()) {
            open.push(name);
        }
    }
    Ok(open)
}

#[test]
fn the_page_is_whole_needs_nothing_else_and_can_be_read_aloud() {
    let page = with_report(html);
    assert_eq!(open_elements(&page), Ok(Vec::new()));
    for foreign in ["http://", "https://", "<script", "<link", "@import", "url("] {
        assert!(!page.contains(foreign), "{foreign}");
    }
    // Names and texts cannot become elements.
    assert!(page.contains("Why &lt;b&gt;not&lt;/b&gt;?"));
    assert!(page.contains("activations &lt;unused&gt;"));
    let charts = page.matches("<svg ").count();
    assert_eq!(charts, 2);
    assert_eq!(page.matches("role=\"img\" aria-label=\"").count(), charts);
    assert_eq!(page.matches("<caption>").count(), page.matches("<table>").count());
    assert!(page.contains("<html lang=\"en\">") && page.contains("prefers-color-scheme: dark"));
}
