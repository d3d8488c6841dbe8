use super::*;
use crate::StorageMode;

#[test]
fn events_are_counted_in_the_phase_in_which_they_happen() {
    let ledger = Ledger::new();
    let readback = ledger.copies(Direction::DeviceToHost, "sampled token");
    readback.record(100);
    ledger.enter(Phase::Decode);
    readback.record(4);
    readback.record(4);
    let report = ledger.report();
    assert_eq!(report.copied_bytes(Phase::Load, Direction::DeviceToHost), 100);
    assert_eq!(report.copied_bytes(Phase::Decode, Direction::DeviceToHost), 8);
    assert_eq!(report.copied_bytes(Phase::Decode, Direction::HostToDevice), 0);
    let decode = report.copies.iter().find(|c| c.event.phase == Phase::Decode);
    assert_eq!(decode.map(|c| c.event.count), Some(2));
}

#[test]
fn one_line_of_code_is_one_entry_however_often_it_registers() {
    let ledger = Ledger::new();
    for _ in 0..3 {
        ledger.dispatches("rms_norm").record(0);
    }
    let report = ledger.report();
    assert_eq!(report.dispatches.len(), 1);
    assert_eq!(report.dispatches[0].count, 3);
    assert!(report.dispatches[0].site.contains("tests.rs"));
}

#[test]
fn a_submission_is_not_a_wait() {
    let ledger = Ledger::new();
    let (submissions, waits) = (ledger.submissions("step"), ledger.waits("sampled token"));
    for _ in 0..3 {
        ledger.begin_step(Phase::Decode, 2, 2);
        submissions.record(0);
    }
    waits.record(0);
    let report = ledger.report();
    assert_eq!((report.submissions(Phase::Decode), report.waits(Phase::Decode)), (3, 1));
    let expected = StepLine { steps: 3, tokens: 6, outputs: 6 };
    assert_eq!(report.steps(Phase::Decode), expected);
    assert_eq!(report.steps(Phase::Prefill), StepLine::default());
}

#[test]
fn buffers_carry_the_mode_of_the_policy_and_know_when_they_are_freed() {
    let ledger = Ledger::new();
    let kv = ledger.buffer("kv cache", AccessPattern::DEVICE_ONLY, 1 << 20);
    let token = ledger.buffer("token", AccessPattern::READ_BACK, 4);
    token.host_read(4);
    assert_eq!(kv.mode(), StorageMode::Private);
    drop(kv);
    let report = ledger.report();
    assert_eq!(report.allocations(Phase::Load), 2);
    let [kv, token] = &report.buffers[..] else { panic!("two buffers") };
    assert!(!kv.live && token.live);
    assert_eq!(token.mode, StorageMode::Shared);
    assert_eq!((token.host_reads, token.host_read_bytes), (1, 4));
    assert!(kv.made_ns <= token.made_ns && token.made_ns <= kv.freed_ns.unwrap());
    assert!(kv.freed_ns.unwrap() <= report.elapsed_ns);
    assert_eq!(token.freed_ns, None);
}

#[test]
fn what_the_host_reads_in_place_is_read_back_too() {
    let ledger = Ledger::new();
    let token = ledger.buffer("token", AccessPattern::READ_BACK, 4);
    let logits = ledger.copies(Direction::DeviceToHost, "logits");
    ledger.begin_step(Phase::Decode, 1, 1);
    token.host_read(4);
    logits.record(100);
    let report = ledger.report();
    assert_eq!(report.read_back_bytes(Phase::Decode), 104);
    assert_eq!(report.read_back_bytes(Phase::Load), 0);
}

#[test]
fn threads_count_into_the_same_entry() {
    let ledger = Ledger::new();
    let tally = ledger.dispatches("gemv");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..1000).for_each(|_| tally.record(2)));
        }
    });
    let report = ledger.report();
    assert_eq!((report.dispatches[0].count, report.dispatches[0].bytes), (4000, 8000));
}

#[test]
fn a_run_of_a_prepared_list_counts_all_its_accesses() {
    let ledger = Ledger::new();
    let x = ledger.buffer("x", AccessPattern::DEVICE_ONLY, 64);
    let unused = ledger.buffer("unused", AccessPattern::DEVICE_ONLY, 64);
    let list = |norms: usize| {
        let mut accesses = Accesses::new();
        for _ in 0..norms {
            accesses.reads(&x, "rms_norm");
        }
        accesses.reads(&x, "gemv_add");
        accesses.writes(&x, "gemv_add");
        ledger.accesses(accesses)
    };
    let (steps, prefill) = (list(3), list(1));
    ledger.begin_step(Phase::Prefill, 7, 1);
    prefill.record();
    for _ in 0..10 {
        ledger.begin_step(Phase::Decode, 1, 1);
        steps.record();
    }
    let expected = [
        AccessLine { kernel: "gemv_add", phase: Phase::Prefill, reads: 1, writes: 1 },
        AccessLine { kernel: "gemv_add", phase: Phase::Decode, reads: 10, writes: 10 },
        AccessLine { kernel: "rms_norm", phase: Phase::Prefill, reads: 1, writes: 0 },
        AccessLine { kernel: "rms_norm", phase: Phase::Decode, reads: 30, writes: 0 },
    ];
    assert_eq!(ledger.report().buffers[0].accesses, expected);
    assert_eq!(ledger.report().buffers[1].accesses, []);
    // What ran stays counted when the lists are gone, and a list that goes does not count twice.
    drop(steps);
    assert_eq!(ledger.report().buffers[0].accesses, expected);
    drop((prefill, unused));
    assert_eq!(ledger.report().buffers[0].accesses, expected);
}

#[test]
fn a_traced_step_has_its_events_in_order_and_nobody_elses() {
    let ledger = Ledger::new();
    let input = ledger.buffer("input", AccessPattern::STEP_INPUT, 12);
    let (gemv, token) =
        (ledger.dispatches("gemv"), ledger.copies(Direction::DeviceToHost, "token"));
    let submissions = ledger.submissions("step");
    let step = |phase| {
        ledger.begin_step(phase, 1, 1);
        input.host_wrote(12);
        let started = gemv.start();
        submissions.record(0);
        gemv.record_since(started, 0);
        token.record(4);
    };
    step(Phase::Decode);
    assert_eq!(ledger.report().trace, None);
    ledger.trace_next_step();
    step(Phase::Prefill);
    assert_eq!(ledger.report().trace, None, "only decode steps are traced");
    step(Phase::Decode);
    let open = ledger.report().trace.unwrap();
    step(Phase::Decode);
    let trace = ledger.report().trace.unwrap();
    assert_eq!(trace.events, open.events, "the step after the traced one adds nothing");
    let mut seen: Vec<_> =
        trace.events.iter().map(|e| (e.kind, e.label.as_str(), e.bytes)).collect();
    // The dispatch began before the submission, by less than a clock may show.
    seen[1..3].sort_by_key(|event| event.1);
    let expected = [
        (TraceKind::HostWrite, "input", 12),
        (TraceKind::Dispatch, "gemv", 0),
        (TraceKind::Submission, "step", 0),
        (TraceKind::Copy(Direction::DeviceToHost), "token", 4),
    ];
    assert_eq!(seen, expected);
    assert!(trace.events.windows(2).all(|e| e[0].start_ns <= e[1].start_ns));
    assert!(trace.events.iter().all(|e| e.start_ns + e.took_ns.unwrap_or(0) <= trace.took_ns));
    let measured = trace.events.iter().filter(|e| e.took_ns.is_some()).count();
    assert_eq!(measured, 1, "the dispatch alone was timed");
    // The counters know nothing of the trace.
    assert_eq!(ledger.report().dispatches(Phase::Decode), 3);
}

#[test]
fn another_trace_replaces_the_last_one_when_its_step_begins() {
    let ledger = Ledger::new();
    let (first, second) = (ledger.dispatches("first"), ledger.dispatches("second"));
    let labels = || -> Vec<String> {
        let trace = ledger.report().trace.unwrap();
        trace.events.into_iter().map(|event| event.label).collect()
    };
    ledger.trace_next_step();
    ledger.begin_step(Phase::Decode, 1, 1);
    first.record(0);
    first.record(0);
    ledger.trace_next_step();
    assert_eq!(labels(), ["first", "first"]);
    ledger.begin_step(Phase::Decode, 1, 1);
    second.record(0);
    second.device_took(std::time::Duration::from_nanos(1));
    assert_eq!(labels(), ["second", "second"]);
    ledger.enter(Phase::Load);
    second.record(0);
    assert_eq!(labels().len(), 2, "what the host does after a step is no part of it");
    assert_eq!(ledger.report().dispatches(Phase::Decode), 3);
}

#[test]
fn a_step_with_more_events_than_there_is_room_for_says_so() {
    let ledger = Ledger::new();
    let tally = ledger.dispatches("gemv");
    ledger.trace_next_step();
    ledger.begin_step(Phase::Decode, 1, 1);
    (0..20_000).for_each(|_| tally.record(0));
    let trace = ledger.report().trace.unwrap();
    assert_eq!(trace.events.len() as u64 + trace.dropped, 20_000);
    assert!(trace.dropped > 0);
}
