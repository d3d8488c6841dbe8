//! The audit of a run, from what a ledger counted.

use marlin_placement::audit::{
    Budget, BudgetLine, Category, CopyKind, CopyLimits, Limit, RunAudit, RunFacts, Severity,
};
use marlin_placement::{
    AccessPattern, Accesses, Device, DeviceAccess, Direction, HostAccess, Ledger, Phase, policy,
};

fn audit(ledger: &Ledger) -> RunAudit {
    RunAudit::new(&ledger.report(), RunFacts::default(), &|_, _| None)
}

/// What was found, without notes.
fn problems(audit: &RunAudit) -> Vec<(Option<&str>, &str)> {
    let findings = audit.findings.iter().filter(|f| f.severity > Severity::Note);
    findings.map(|f| (f.rule.as_deref(), f.message.as_str())).collect()
}

/// `steps` decode steps of one sequence; a step touches what `uses` says, and then `each` happens.
fn decode(ledger: &Ledger, steps: u64, uses: impl FnOnce(&mut Accesses), mut each: impl FnMut()) {
    let mut accesses = Accesses::new();
    uses(&mut accesses);
    let accesses = ledger.accesses(accesses);
    let submissions = ledger.submissions("step");
    for _ in 0..steps {
        ledger.begin_step(Phase::Decode, 1, 1);
        submissions.record(0);
        accesses.record();
        each();
    }
}

#[test]
fn a_buffer_that_is_used_as_was_said_has_the_mode_that_the_policy_suggests() {
    use DeviceAccess as D;
    use HostAccess as H;
    for memory in [Device::Unified, Device::Discrete] {
        for host in [H::None, H::WritesOnce, H::WritesEachStep, H::ReadsBack] {
            for device in [D::Reads, D::Writes, D::ReadsWrites] {
                let ledger = Ledger::for_memory(memory);
                let pattern = AccessPattern::new(host, device);
                let buffer = ledger.buffer("x", pattern, 1 << 20);
                // What belongs to the device is filled through staging memory.
                if host == H::WritesOnce && !policy(&pattern, None).staged {
                    buffer.host_wrote(1 << 20);
                }
                decode(
                    &ledger,
                    3,
                    |uses| {
                        if device != D::Writes {
                            uses.reads(&buffer, "kernel");
                        }
                        if device != D::Reads {
                            uses.writes(&buffer, "kernel");
                        }
                    },
                    || match host {
                        H::WritesEachStep => buffer.host_wrote(4),
                        H::ReadsBack => buffer.host_read(4),
                        _ => {}
                    },
                );
                let audit = audit(&ledger);
                assert_eq!(problems(&audit), [], "{memory:?}, {host:?}, {device:?}");
                assert!(audit.modes_agree());
                assert_eq!(audit.buffers[0].suggested_mode, audit.buffers[0].mode);
            }
        }
    }
}

#[test]
fn a_buffer_that_is_used_otherwise_is_found() {
    let ledger = Ledger::for_memory(Device::Discrete);
    let never_read = ledger.buffer("never read", AccessPattern::READ_BACK, 64);
    let touched = ledger.buffer("touched", AccessPattern::DEVICE_ONLY, 64);
    let read_too = ledger.buffer("read too", AccessPattern::STEP_INPUT, 64);
    let written = ledger.buffer("written", AccessPattern::ADOPTED, 64);
    let constant = AccessPattern::new(HostAccess::WritesEachStep, DeviceAccess::Reads).constant();
    let parameters = ledger.buffer("parameters", constant, 16);
    let _unused = ledger.buffer("unused", AccessPattern::DEVICE_ONLY, 64);
    let _empty = ledger.buffer("empty", AccessPattern::DEVICE_ONLY, 0);
    decode(
        &ledger,
        2,
        |uses| {
            uses.writes(&never_read, "arg_max");
            uses.writes(&touched, "arg_max");
            uses.reads(&read_too, "arg_max");
            uses.writes(&read_too, "arg_max");
            uses.writes(&written, "scale");
            uses.reads(&parameters, "scale");
        },
        || {
            touched.host_read(4);
            read_too.host_wrote(4);
            read_too.host_read(4);
            parameters.host_wrote(16);
        },
    );
    let audit = audit(&ledger);
    let expect = |rule: Option<&str>, parts: &[&str]| {
        let matches = |message: &str| parts.iter().all(|part| message.contains(part));
        let found = problems(&audit).into_iter().any(|(r, m)| r == rule && matches(m));
        assert!(found, "{rule:?} {parts:?} in {:#?}", audit.findings);
    };
    expect(Some("MS001"), &["`never read` is Shared", "Private", "no CPU read observed"]);
    expect(Some("MS005"), &["host touched `touched`", "Private"]);
    expect(Some("MS004"), &["`read too` is Managed", "Shared", "CPU read"]);
    expect(None, &["`arg_max` writes `read too`", "CPU write, GPU read"]);
    expect(None, &["`scale` writes `written`"]);
    expect(Some("MS003"), &["`parameters`", "constants of one dispatch"]);
    assert_eq!(problems(&audit).len(), 6, "{:#?}", problems(&audit));
    let notes: Vec<_> = audit.findings.iter().filter(|f| f.severity == Severity::Note).collect();
    assert!(notes[0].message.contains("`unused` (64 bytes) was not used"), "{notes:?}");
    assert_eq!(notes.len(), 1);
    assert!(!audit.modes_agree());
    assert!(audit.buffers.iter().all(|b| b.name != "empty"), "nothing is nowhere");
    assert!(audit.findings.windows(2).all(|f| f[0].severity >= f[1].severity));
}

#[test]
fn without_a_device_that_tells_its_accesses_what_was_said_of_it_stands() {
    let ledger = Ledger::new();
    let x = ledger.buffer("x", AccessPattern::STEP_INPUT, 64);
    (0..2).for_each(|_| x.host_wrote(4));
    let audit = audit(&ledger);
    assert_eq!(problems(&audit), []);
    assert_eq!(audit.buffers[0].access_pattern, "CPU write, GPU read");
}

#[test]
fn buffers_that_differ_in_a_number_only_are_one_row() {
    let ledger = Ledger::new();
    let weight = AccessPattern::DEVICE_ONLY.with_initial_data();
    let make = |name: &str, bytes| ledger.buffer(name, weight, bytes);
    let all: Vec<_> = (0..3).map(|i| make(&format!("blk.{i}.attn_q.weight"), 100)).collect();
    let other = make("blk.0.attn_k.weight", 7);
    drop(all);
    let audit = audit(&ledger);
    let rows: Vec<_> = audit
        .buffers
        .iter()
        .map(|b| (b.name.as_str(), b.count, b.bytes, b.live, b.category))
        .collect();
    let weights = Category::Weights;
    assert_eq!(
        rows,
        [("blk.0.attn_k.weight", 1, 7, 1, weights), ("blk.*.attn_q.weight", 3, 300, 0, weights)]
    );
    assert_eq!(audit.buffers[0].site.module, "crates/placement/tests/audit.rs");
    let [total] = &audit.summary.by_category[..] else { panic!("one category") };
    assert_eq!((total.buffers, total.live_bytes, total.peak_bytes), (1, 7, 307));
    drop(other);
}

#[test]
fn what_the_host_needs_is_told_from_what_it_does_not() {
    let ledger = Ledger::for_memory(Device::Discrete);
    let upload = ledger.copies(Direction::HostToDevice, "weights");
    let token = ledger.buffer("step.sampled", AccessPattern::READ_BACK, 4);
    let logits = ledger.copies(Direction::DeviceToHost, "logits");
    let blit = ledger.copies(Direction::DeviceToDevice, "blit");
    upload.record(1000);
    decode(
        &ledger,
        10,
        |uses| uses.writes(&token, "arg_max"),
        || {
            token.host_read(4);
            logits.record(400);
            blit.record(8);
        },
    );
    let audit = audit(&ledger);
    let verdicts: Vec<_> = audit
        .copies
        .iter()
        .map(|c| (c.reason.as_str(), c.kind, c.avoidable, c.bytes_per_token))
        .collect();
    let (copy, in_place) = (CopyKind::Copy, CopyKind::ReadInPlace);
    assert_eq!(
        verdicts,
        [
            ("weights", copy, false, None),
            ("step.sampled", in_place, false, Some(4.0)),
            ("logits", copy, true, Some(400.0)),
            ("blit", copy, true, Some(8.0)),
        ]
    );
    let token = audit.summary.per_token.unwrap();
    assert_eq!((token.submissions, token.read_back_bytes), (1.0, 404.0));
    assert_eq!(problems(&audit).len(), 2, "{:?}", problems(&audit));
}

/// The line of a budget by the limit's name.
fn line<'a>(lines: &'a [BudgetLine], name: &str) -> &'a BudgetLine {
    lines.iter().find(|line| line.limit == name).unwrap_or_else(|| panic!("no {name}: {lines:?}"))
}

#[test]
fn weights_are_uploaded_once_whatever_else_was() {
    for (memory, allowed) in [(Device::Discrete, 1.0), (Device::Unified, 0.0)] {
        let ledger = Ledger::for_memory(memory);
        let upload = ledger.copies(Direction::HostToDevice, "upload");
        let filled = AccessPattern::DEVICE_ONLY.with_initial_data();
        let _weights = ledger.buffer("output.weight", filled, 1000);
        let _table = ledger.buffer("rotary frequencies", filled, 64);
        let settings = ledger.buffer("sampler settings", AccessPattern::STEP_INPUT, 32);
        upload.record(1000);
        upload.record(64);
        settings.host_wrote(32);
        upload.record(32);
        let once = Budget::design().check(&audit(&ledger));
        let copies = line(&once, "weight_copies");
        assert_eq!((copies.allowed, copies.found), (allowed, Some(1.0)));
        assert_eq!(copies.exceeded, memory == Device::Unified);
        upload.record(1000);
        let twice = Budget::design().check(&audit(&ledger));
        assert_eq!(line(&twice, "weight_copies").found, Some(2.0));
        assert!(line(&twice, "weight_copies").exceeded);
    }
}

#[test]
fn a_limit_that_is_exceeded_names_the_lines_that_did_it() {
    let ledger = Ledger::new();
    let token = ledger.buffer("step.sampled", AccessPattern::READ_BACK, 4);
    let logits = ledger.copies(Direction::DeviceToHost, "logits that the host asked for");
    let mut made = Vec::new();
    let each = || {
        token.host_read(4);
        logits.record(100);
        made.push(ledger.buffer("scratch", AccessPattern::DEVICE_ONLY, 10));
    };
    decode(&ledger, 4, |_| {}, each);
    let lines = Budget::design().check(&audit(&ledger));
    let over: Vec<_> = lines.iter().filter(|l| l.exceeded).map(|l| l.limit.as_str()).collect();
    assert_eq!(over, ["read_back_bytes_per_token", "decode.allocations"]);
    let text = line(&lines, "read_back_bytes_per_token").to_string();
    let mut text = text.lines();
    assert_eq!(text.next(), Some("read_back_bytes_per_token: 104, at most 4"));
    let first = text.next().unwrap();
    assert!(first.starts_with("  crates/placement/tests/audit.rs:"), "{first}");
    assert!(first.ends_with(": 100 logits that the host asked for"), "{first}");
    assert!(text.next().unwrap().ends_with(": 4 step.sampled"));
    let made = line(&lines, "decode.allocations").to_string();
    assert!(made.starts_with("decode.allocations: 4, at most 0\n"), "{made}");
    assert!(made.contains(": 4 `scratch`"), "{made}");
}

#[test]
fn results_that_are_read_one_step_late_keep_the_budget() {
    let ledger = Ledger::for_memory(Device::Discrete);
    let token = ledger.buffer("step.sampled", AccessPattern::READ_BACK, 4);
    // The prompt's token is read when the first decode step is under way, and the last decode step's
    // token is read too.
    ledger.begin_step(Phase::Prefill, 5, 1);
    decode(&ledger, 3, |_| {}, || token.host_read(4));
    token.host_read(4);
    let lines = Budget::design().check(&audit(&ledger));
    let read_back = line(&lines, "read_back_bytes_per_token");
    assert_eq!((read_back.found, read_back.exceeded), (Some(4.0), false));
}

#[test]
fn what_did_not_happen_is_not_measured() {
    let lines = Budget::design().check(&audit(&Ledger::new()));
    for name in ["decode.submissions_per_token", "read_back_bytes_per_token", "weight_copies"] {
        let line = line(&lines, name);
        assert_eq!((line.found, line.exceeded), (None, false), "{name}");
        assert!(line.to_string().contains("not measured"), "{line}");
    }
}

#[test]
fn limits_for_a_token_are_for_each_sequence() {
    let ledger = Ledger::for_memory(Device::Discrete);
    let input = ledger.copies(Direction::HostToDevice, "did_modify");
    for _ in 0..5 {
        ledger.begin_step(Phase::Decode, 8, 8);
        input.record(96);
    }
    let mut budget = Budget::default();
    let limits = CopyLimits {
        bytes_per_token: Some(Limit::of(12.0)),
        count: Some(Limit { unified: None, discrete: Some(4.0) }),
        ..CopyLimits::default()
    };
    budget.decode.copies.insert(Direction::HostToDevice, limits);
    let lines = budget.check(&audit(&ledger));
    let found: Vec<_> = lines.iter().map(|l| (l.limit.as_str(), l.found, l.exceeded)).collect();
    assert_eq!(
        found,
        [
            ("decode.copies.host-to-device.count", Some(5.0), true),
            ("decode.copies.host-to-device.bytes_per_token", Some(12.0), false),
        ]
    );
}
