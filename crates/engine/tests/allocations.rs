//! A decode step allocates nothing, reads back four bytes a sequence, and is one submission.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use marlin_engine::{KvFormat, Model, ModelOptions, SamplingSettings, SessionOptions};
use marlin_placement::{Direction, Phase};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: forwards to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        // SAFETY: forwarded from the caller.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: forwarded from the caller.
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        // SAFETY: forwarded from the caller.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn steady_decode_keeps_the_budgets() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fixtures/architectures/llama3_rope.gguf");
    // Greedy, and everything that a sampler can be asked for.
    let everything = SamplingSettings {
        repeat_penalty: 1.1,
        presence_penalty: 0.1,
        frequency_penalty: 0.1,
        ..SamplingSettings::default()
    };
    let open = SamplingSettings { top_k: 0, ..SamplingSettings::default() };
    for kv in [KvFormat::F16, KvFormat::Q8] {
        for sampling in [SamplingSettings::GREEDY, everything.clone(), open.clone()] {
            let model = Model::load(&path, &ModelOptions::default()).unwrap();
            let options = SessionOptions { ctx: 512, kv, ..Default::default() };
            let mut session = model.session(options).unwrap();
            session.begin(&sampling).unwrap();
            let prompt: Vec<u32> = (10..60).collect();
            let mut token = session.feed(&prompt, 0).unwrap().unwrap();
            // The first decode steps may touch memory for the first time.
            for position in 50..60 {
                token = session.feed(&[token], position).unwrap().unwrap();
            }
            // Recording a step takes its memory before the step.
            model.ledger().trace_next_step();
            let before = model.ledger().report();
            let allocations = ALLOCATIONS.load(Relaxed);
            // Past 256 positions a look-back has several spans.
            for position in 60..400 {
                token = session.feed(&[token], position).unwrap().unwrap();
            }
            let allocations = ALLOCATIONS.load(Relaxed) - allocations;
            assert_eq!(allocations, 0, "{kv:?}, {sampling:?}");

            let after = model.ledger().report();
            assert!(
                after
                    .trace
                    .as_ref()
                    .is_some_and(|trace| trace.events.len() > 10 && trace.dropped == 0)
            );
            let (phase, steps) = (Phase::Decode, 340);
            assert_eq!(after.allocations(phase), 0);
            let read_back = after.read_back_bytes(phase) - before.read_back_bytes(phase);
            assert_eq!(read_back, 4 * steps);
            for direction in Direction::ALL {
                assert_eq!(after.copied_bytes(phase, direction), 0, "{direction:?}");
            }
            assert_eq!(after.submissions(phase) - before.submissions(phase), steps);
            assert_eq!(after.steps(phase).steps - before.steps(phase).steps, steps);
            // The device is the host: there is nobody to wait for.
            assert_eq!(after.waits(phase), 0);
            for buffer in &after.buffers {
                let expected = marlin_placement::policy(&buffer.pattern, Some(buffer.bytes)).mode;
                assert_eq!(buffer.mode, expected, "{}", buffer.name);
            }
        }
    }
}
