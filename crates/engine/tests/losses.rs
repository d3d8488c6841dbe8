//! Runs that end badly: the device is lost, memory is short, somebody has heard enough. Each ends with an error that
//! names the device and what happened, or cleanly, and gives back what it held.
//!
//! Needs the feature `emulated`, which tests of the whole workspace have.
#![cfg(feature = "emulated")]

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use marlin_backend::{Backend, BackendError, SamplingSettings};
use marlin_engine::{
    EngineError, GenerateOptions, Generated, KvFormat, Model, ModelOptions, Session,
    SessionOptions, StopReason,
};
use marlin_gpu::Device;
use marlin_gpu::emulated::{Emulated, EmulatedOptions};
use marlin_gpu::model::{Activations, GpuBackend};
use marlin_models::ModelSource;
use marlin_placement::Ledger;

fn source() -> ModelSource {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
    ModelSource::open(&fixtures.join("architectures/llama3_rope.gguf")).unwrap()
}

fn backend(options: EmulatedOptions) -> (Box<dyn Backend>, Arc<Ledger>) {
    let device = Arc::new(Emulated::new(options).unwrap());
    let ledger = device.ledger().clone();
    (Box::new(GpuBackend::new(device, Activations::F16)), ledger)
}

fn model(options: EmulatedOptions) -> (Arc<Model>, Arc<Ledger>) {
    let (backend, ledger) = backend(options);
    (Model::load_on(source(), backend, &mut |_, _| {}).unwrap(), ledger)
}

fn session(model: &Arc<Model>) -> Result<Session, EngineError> {
    let options = SessionOptions {
        ctx: 96,
        max_sequences: 2,
        batch: 16,
        kv: KvFormat::F32,
        ..SessionOptions::default()
    };
    model.session(options)
}

fn live_bytes(ledger: &Ledger) -> u64 {
    ledger.report().buffers.iter().filter(|b| b.live).map(|b| b.bytes).sum()
}

fn generate(session: &mut Session, count: usize) -> Result<Generated, EngineError> {
    let prompt: Vec<u32> = (30..60).collect();
    session.generate(&prompt, &greedy(count), &mut |_| ControlFlow::Continue(()))
}

fn greedy(max_tokens: usize) -> GenerateOptions {
    GenerateOptions {
        sampling: SamplingSettings::GREEDY,
        max_tokens,
        stop_at_end: false,
        ..GenerateOptions::default()
    }
}

fn assert_lost(error: &EngineError) {
    let EngineError::Backend(BackendError::DeviceLost { device, reason }) = error else {
        panic!("{error}");
    };
    assert_eq!(device, "emulated");
    assert!(reason.contains("did not come back"), "{reason}");
    assert!(error.to_string().contains("the device emulated was lost"), "{error}");
}

/// Submissions that making a session and generating so many tokens take.
fn submissions(count: usize) -> u64 {
    let (model, ledger) = model(EmulatedOptions::default());
    let mut session = session(&model).unwrap();
    generate(&mut session, count).unwrap();
    marlin_placement::Phase::ALL.iter().map(|&phase| ledger.report().submissions(phase)).sum()
}

#[test]
fn a_lost_device_ends_every_run_on_it_and_frees_what_they_held() {
    let needed = submissions(20);
    // While the session is made, in the prompt, and at each stage of decoding.
    for lost_after in 0..needed {
        for unified in [true, false] {
            let options =
                EmulatedOptions { unified, lost_after: Some(lost_after), ..Default::default() };
            let (model, ledger) = model(options);
            let weights = live_bytes(&ledger);
            let outcome = session(&model).map(|mut session| {
                let error = generate(&mut session, 20).unwrap_err();
                assert_lost(&error);
                // It stays lost, for this session and for others.
                assert_lost(&generate(&mut session, 20).unwrap_err());
            });
            if let Err(error) = outcome {
                assert_lost(&error);
            }
            assert_eq!(live_bytes(&ledger), weights, "lost after {lost_after}");
            assert_lost(&session(&model).err().expect("no device"));
            assert_eq!(live_bytes(&ledger), weights, "lost after {lost_after}");
            drop(model);
            assert_eq!(live_bytes(&ledger), 0);
        }
    }
}

#[test]
fn a_session_beside_the_one_that_notices_gets_the_same_error() {
    let both = 2 * submissions(4);
    let options = EmulatedOptions { lost_after: Some(both), ..EmulatedOptions::default() };
    let (model, ledger) = model(options);
    let weights = live_bytes(&ledger);
    let (mut first, mut second) = (session(&model).unwrap(), session(&model).unwrap());
    assert_eq!(generate(&mut second, 2).unwrap().tokens.len(), 2);
    assert_lost(&generate(&mut first, 60).unwrap_err());
    assert_lost(&generate(&mut second, 4).unwrap_err());
    drop((first, second));
    assert_eq!(live_bytes(&ledger), weights);
}

#[test]
fn a_device_that_is_lost_while_weights_are_uploaded_is_named() {
    let (backend, ledger) =
        backend(EmulatedOptions { unified: false, lost_after: Some(0), ..Default::default() });
    // Another user's submission finds out.
    let gpu = Model::load_on(source(), backend, &mut |_, _| {}).unwrap();
    drop(session(&gpu));
    assert_lost(&session(&gpu).err().expect("no device"));
    drop(gpu);
    assert_eq!(live_bytes(&ledger), 0);
}

#[test]
fn a_session_without_room_says_how_much_is_missing_and_holds_nothing() {
    let (fitting, ledger) = model(EmulatedOptions::default());
    let weights = live_bytes(&ledger);
    let held = session(&fitting).map(|session| session.held_bytes()).unwrap();
    for total_bytes in [weights, weights + held / 2] {
        let (model, ledger) = model(EmulatedOptions { total_bytes, ..Default::default() });
        let error = session(&model).err().expect("no room");
        let EngineError::Backend(BackendError::DoesNotFit { device, needed, free, .. }) = &error
        else {
            panic!("{error}");
        };
        assert_eq!((device.as_str(), *free), ("emulated", total_bytes - weights));
        assert!(needed > free && error.to_string().contains("too few"), "{error}");
        assert_eq!(live_bytes(&ledger), weights);
    }
    // Room in all, but not for activations in one piece: noticed when the caches have been made.
    let weight = ledger.report().buffers.iter().filter(|b| b.live).map(|b| b.bytes).max().unwrap();
    let (model, ledger) = model(EmulatedOptions { max_buffer_bytes: weight, ..Default::default() });
    let options = SessionOptions { ctx: 64, batch: 16_384, ..SessionOptions::default() };
    let made = ledger.report().buffers.len();
    let error = model.session(options).err().expect("no room");
    let EngineError::Backend(BackendError::DoesNotFit { what, free, .. }) = &error else {
        panic!("{error}");
    };
    assert!(what.starts_with("\"activations ") && *free == weight, "{error}");
    assert!(ledger.report().buffers.len() > made, "nothing was begun");
    assert_eq!(live_bytes(&ledger), weights);
}

/// Logits for the host need memory that is made when they are first asked for.
#[test]
fn memory_that_runs_out_in_the_middle_of_a_run_is_named_and_the_session_goes_on() {
    let (fitting, ledger) = model(EmulatedOptions::default());
    let session_of = |model: &Arc<Model>| session(model);
    let kept = session_of(&fitting).unwrap();
    // What is asked for beforehand is some rounding more than what is taken.
    let total_bytes = live_bytes(&ledger) + 640;
    drop(kept);
    let (model, ledger) = model(EmulatedOptions { total_bytes, ..Default::default() });
    let mut session = session(&model).unwrap();
    let before = live_bytes(&ledger);
    let expected = generate(&mut session, 6).unwrap().tokens;
    let error = session.score(&[30, 31, 32], 0).unwrap_err();
    let EngineError::Backend(BackendError::DoesNotFit { what, device, .. }) = &error else {
        panic!("{error}");
    };
    assert_eq!((what.as_str(), device.as_str()), ("\"logits for the host\"", "emulated"));
    assert_eq!(live_bytes(&ledger), before);
    session.reset();
    assert_eq!(generate(&mut session, 6).unwrap().tokens, expected);
}

#[test]
fn a_cancelled_run_ends_cleanly_and_frees_what_it_held() {
    let (model, ledger) = model(EmulatedOptions::default());
    let weights = live_bytes(&ledger);
    let mut session = session(&model).unwrap();
    let held = live_bytes(&ledger);
    let expected = generate(&mut session, 40).unwrap().tokens;
    session.reset();
    let prompt: Vec<u32> = (30..60).collect();
    // By the callback, while the device is a step ahead.
    let mut pieces = 0;
    let stopped = session.generate(&prompt, &greedy(40), &mut |_| {
        pieces += 1;
        if pieces == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let stopped = stopped.unwrap();
    assert_eq!(stopped.stop_reason, StopReason::Cancelled);
    assert!(stopped.tokens.len() < 40);
    assert_eq!(stopped.tokens, expected[..stopped.tokens.len()]);
    // By the flag, before anything ran.
    let cancel = Arc::new(AtomicBool::new(true));
    let options = GenerateOptions { cancel: Some(cancel.clone()), ..greedy(40) };
    let none = session.generate(&prompt, &options, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!((none.stop_reason, none.tokens.len()), (StopReason::Cancelled, 0));
    // The session is as good as new.
    cancel.store(false, Ordering::Relaxed);
    let again = session.generate(&prompt, &options, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(again.tokens, expected);
    assert_eq!(live_bytes(&ledger), held);
    drop(session);
    assert_eq!(live_bytes(&ledger), weights);
}

#[test]
fn what_the_device_has_no_room_for_runs_on_the_processor_which_says_so() {
    let (gpu, ledger) = backend(EmulatedOptions { total_bytes: 50_000, ..Default::default() });
    let options = ModelOptions::default();
    let model = Model::load_preferring(source(), gpu, &options, &mut |_, _| {}).unwrap();
    assert_eq!(model.device(), "cpu");
    let passed_over = model.passed_over().expect("a device that was passed over");
    let text = passed_over.to_string();
    assert_eq!(passed_over.device, "emulated");
    assert!(
        text.starts_with("the processor runs the model, not emulated: out of memory"),
        "{text}"
    );
    assert!(text.contains("too few"), "{text}");
    assert_eq!(live_bytes(&ledger), 0);
    assert_eq!(generate(&mut session(&model).unwrap(), 5).unwrap().tokens.len(), 5);
    // With room for the weights, but not for the session that is to be made: before any of them is loaded.
    let fitting =
        Model::load_on(source(), backend(EmulatedOptions::default()).0, &mut |_, _| {}).unwrap();
    let weights = live_bytes(fitting.ledger());
    let (gpu, ledger) = backend(EmulatedOptions { total_bytes: weights, ..Default::default() });
    let wanting = ModelOptions { session: Some(SessionOptions::default()), ..Default::default() };
    let model = Model::load_preferring(source(), gpu, &wanting, &mut |_, _| {}).unwrap();
    assert_eq!(model.device(), "cpu");
    let text = model.passed_over().expect("a device that was passed over").to_string();
    assert!(text.contains("KV cache") && text.contains("too few"), "{text}");
    assert!(ledger.report().buffers.is_empty(), "something was loaded");
    // With room it runs where it was meant to; other errors are not the processor's business.
    let (gpu, _) = backend(EmulatedOptions::default());
    let model = Model::load_preferring(source(), gpu, &options, &mut |_, _| {}).unwrap();
    assert!(model.device() == "emulated" && model.passed_over().is_none());
}
