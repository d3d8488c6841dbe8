//! A session's run audits itself: nothing is where it does not belong, nothing is copied that need not
//! be, and the project's own budgets are kept.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use marlin_engine::{
    Budget, DeviceChoice, GenerateOptions, KvFormat, Model, ModelOptions, Request, RunAudit,
    SamplingSettings, SessionOptions,
};
use marlin_placement::audit::{Category, CopyKind, Severity, TimelineKind};
use marlin_placement::{Direction, Phase, StorageMode};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/architectures").join(name)
}

/// `count` prompts of different lengths, continued together for `tokens` tokens on the processor.
fn run(name: &str, count: usize, tokens: usize, kv: KvFormat) -> RunAudit {
    run_on(DeviceChoice::Cpu, name, count, tokens, kv)
}

fn run_on(device: DeviceChoice, name: &str, count: usize, tokens: usize, kv: KvFormat) -> RunAudit {
    let options = ModelOptions { device, ..ModelOptions::default() };
    let model = Model::load(&fixture(name), &options).unwrap();
    let options = SessionOptions { ctx: 96, max_sequences: count, kv, ..SessionOptions::default() };
    let mut session = model.session(options).unwrap();
    model.ledger().trace_next_step();
    let sampling = SamplingSettings { repeat_penalty: 1.1, ..SamplingSettings::default() };
    let options = GenerateOptions {
        sampling,
        max_tokens: tokens,
        stop_at_end: false,
        ..GenerateOptions::default()
    };
    let requests: Vec<Request> = (0..count)
        .map(|i| Request { prompt: (10..20 + 3 * i as u32).collect(), options: options.clone() })
        .collect();
    session.generate_batch(&requests, &mut |_, _| ControlFlow::Continue(())).unwrap();
    session.audit()
}

#[test]
fn every_buffer_is_where_its_use_puts_it_and_the_budgets_are_kept() {
    for (name, count, kv) in [
        ("llama3_rope.gguf", 1, KvFormat::F16),
        ("qwen2.gguf", 3, KvFormat::Q8),
        ("gemma3.gguf", 2, KvFormat::F32),
        ("qwen2", 1, KvFormat::F16),
    ] {
        let audit = run(name, count, 12, kv);
        assert!(audit.modes_agree(), "{name}: {:#?}", audit.findings);
        let bad: Vec<_> = audit.findings.iter().filter(|f| f.severity > Severity::Note).collect();
        assert!(bad.is_empty(), "{name}: {bad:#?}");
        for line in Budget::design().check(&audit) {
            assert!(!line.exceeded, "{name}: {line}");
            assert!(line.found.is_some(), "{name}: {line}");
        }
        let decode = audit.summary.phase(Phase::Decode);
        assert_eq!((decode.steps, decode.tokens), (11, 11 * count as u64), "{name}");
        assert_eq!(decode.read_back_bytes, 4 * decode.tokens, "{name}");
        assert_eq!(audit.summary.per_token.unwrap().submissions, 1.0);
        // What the processor reads in place, it neither repacks nor uploads.
        let weights = audit.summary.weights;
        assert!(weights.adopted_bytes > 0 && weights.uploaded_bytes == 0, "{name}: {weights:?}");
    }
}

#[test]
fn the_tables_say_who_used_what_where_and_how_often() {
    let audit = run("llama3_rope.gguf", 1, 12, KvFormat::F16);
    let row = |name: &str| {
        audit.buffers.iter().find(|b| b.name == name).unwrap_or_else(|| panic!("no {name}"))
    };
    let cache = row("kv.cache");
    assert_eq!(cache.site.module, "crates/cpu/src/executor/kv_cache.rs");
    assert_eq!(cache.site.function.as_deref(), Some("KvCache::new"));
    assert_eq!((cache.count, cache.live, cache.category), (1, 1, Category::KvCache));
    assert_eq!((cache.mode, cache.suggested_mode), (StorageMode::Private, StorageMode::Private));
    let attention = cache.accessed_by.iter().find(|a| a.phase == Phase::Decode).unwrap();
    // Two layers, eleven steps.
    assert_eq!((attention.by.as_str(), attention.reads, attention.writes), ("attention", 22, 22));

    let sampled = row("step.sampled");
    assert_eq!(sampled.access_pattern, "GPU write, CPU read");
    assert_eq!(sampled.mode, StorageMode::Shared);
    let host = sampled.accessed_by.iter().find(|a| a.by == "host" && a.phase == Phase::Decode);
    assert_eq!(host.map(|a| (a.reads, a.read_bytes)), Some((11, 44)));

    let weight = row("blk.*.ffn_up.weight");
    assert!(weight.adopted && weight.count == 2);
    assert_eq!(weight.access_pattern, "GPU read, CPU access not used here");

    // The token is read where it is; the norms' conversion is what was copied.
    let decode: Vec<_> = audit.copies.iter().filter(|c| c.phase == Phase::Decode).collect();
    assert_eq!(decode.len(), 1);
    assert_eq!((decode[0].kind, decode[0].bytes_per_token), (CopyKind::ReadInPlace, Some(4.0)));
    let load: Vec<_> = audit.copies.iter().filter(|c| c.phase == Phase::Load).collect();
    assert!(load.iter().all(|c| c.direction == Direction::HostToHost && c.avoidable));
}

#[test]
fn one_decode_step_is_told_event_by_event() {
    let audit = run("llama3_rope.gguf", 1, 12, KvFormat::F16);
    let step = audit.step.as_ref().unwrap();
    assert_eq!(step.dropped, 0);
    let of = |kind| step.events.iter().filter(move |e| e.kind == kind);
    let decode = audit.summary.phase(Phase::Decode);
    let dispatches: Vec<&str> = of(TimelineKind::Dispatch).map(|e| e.label.as_str()).collect();
    assert_eq!(dispatches.len() as u64, decode.dispatches / decode.steps);
    assert_eq!((dispatches.first(), dispatches.last()), (Some(&"embed"), Some(&"sample")));
    assert!(of(TimelineKind::Dispatch).all(|e| e.took_ns.is_some()));
    assert_eq!(of(TimelineKind::Submission).count(), 1);
    assert_eq!(of(TimelineKind::Wait).count(), 0);
    let read: Vec<_> = of(TimelineKind::HostRead).map(|e| (e.label.as_str(), e.bytes)).collect();
    assert_eq!(read, [("step.sampled", 4)]);
    assert!(step.events.iter().all(|e| e.start_ns + e.took_ns.unwrap_or(0) <= step.took_ns));
}

#[test]
fn a_session_that_ran_nothing_has_an_audit_too() {
    let model = Model::load(&fixture("llama3_rope.gguf"), &ModelOptions::default()).unwrap();
    let session = model.session(SessionOptions { ctx: 16, ..Default::default() }).unwrap();
    let audit = session.audit();
    assert_eq!((audit.run.device.as_str(), audit.run.context), ("cpu", 16));
    assert!(audit.summary.per_token.is_none() && audit.step.is_none());
    assert!(Budget::design().check(&audit).iter().all(|line| !line.exceeded));
    assert_eq!(model.audit().run.context, 0);
}

#[test]
#[cfg(feature = "emulated")]
fn a_run_on_the_emulated_device_audits_itself_too() {
    let audit = run_on(DeviceChoice::Emulated, "llama3_rope.gguf", 2, 8, KvFormat::F16);
    assert!(audit.modes_agree(), "{:#?}", audit.findings);
    let bad: Vec<_> = audit.findings.iter().filter(|f| f.severity > Severity::Note).collect();
    assert!(bad.is_empty(), "{bad:#?}");
    for line in Budget::design().check(&audit) {
        // A GGUF file's weights are not in the order that the kernels read: they cannot be adopted, and
        // are uploaded in that order, once.
        if line.limit == "weight_copies" {
            assert!(line.found.is_some_and(|copies| copies <= 1.0), "{line}");
        } else {
            assert!(!line.exceeded && line.found.is_some(), "{line}");
        }
    }
    // What each kernel touches is known from its recording: every layer's cache is written by each step.
    let cache = audit.buffers.iter().find(|b| b.category == Category::KvCache).unwrap();
    let decode = audit.summary.phase(Phase::Decode);
    let writes = cache.accessed_by.iter().filter(|a| a.phase == Phase::Decode).map(|a| a.writes);
    assert!(writes.sum::<u64>() >= decode.steps * cache.count, "{cache:#?}");
    let step = audit.step.as_ref().unwrap();
    let dispatches = step.events.iter().filter(|e| e.kind == TimelineKind::Dispatch);
    let sites: Vec<&str> = dispatches.map(|e| e.site.module.as_str()).collect();
    assert!(
        sites.len() > 10 && sites.iter().all(|s| s.starts_with("crates/gpu/src/ops/")),
        "{sites:?}"
    );
}
