//! Uploads, downloads, adoption, copies and fills, and what happens to memory that is let go.

use std::sync::Arc;

use marlin_backend::{HostBytes, HostOwner};
use marlin_gpu::metal::double::{Call, Options};
use marlin_gpu::{Command, CommandList, GpuError};
use marlin_kernels::BindError;
use marlin_placement::{AccessPattern, Direction, Phase, StorageMode};

use super::{device, discrete, region, text};

/// Bytes of a staging slot.
const SLOT: usize = 4 << 20;

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 % 253) as u8).collect()
}

#[test]
fn small_uploads_share_a_command_buffer_that_comes_before_the_submission() -> Result<(), GpuError> {
    let (device, double) = device(Options::default());
    let a = device.upload_new("a", &pattern(100))?;
    let b = device.upload_new("b", &pattern(16))?;
    let mut list = CommandList::new("use");
    list.push(Command::Copy {
        source: region(a.allocation(), 0, 16),
        destination: region(b.allocation(), 0, 16),
    });
    device.run(list)?;
    assert_eq!(
        text(&double.take_calls()),
        [
            "buffer a: 112 bytes, Private",
            "resident a",
            "buffer staging 0: 4194304 bytes, Shared",
            "resident staging 0",
            "buffer b: 16 bytes, Private",
            "resident b",
            "commit residency",
            "command buffer upload, retained",
            "blit encoder upload",
            "copy staging 0 + 0 to a + 0: 100 bytes",
            "copy staging 0 + 112 to b + 0: 16 bytes",
            "end",
            "commit upload",
            "command buffer use, unretained",
            "blit encoder use",
            "copy a + 0 to b + 0: 16 bytes",
            "end",
            "commit use",
            "wait use",
            "wait upload",
        ]
    );
    let report = device.ledger().report();
    assert_eq!(report.copied_bytes(Phase::Load, Direction::HostToDevice), 116);
    assert_eq!(report.copied_bytes(Phase::Load, Direction::DeviceToDevice), 16);
    Ok(())
}

#[test]
fn a_large_upload_goes_round_the_ring_and_waits_for_a_slot_before_it_is_filled_again()
-> Result<(), GpuError> {
    let (device, double) = device(Options::default());
    let values = pattern(6 * SLOT + 10);
    let buffer = device.upload_new("weights", &values)?;
    let calls = text(&double.take_calls());
    let staging = calls.iter().filter(|call| call.starts_with("buffer staging")).count();
    assert_eq!(staging, 4);
    // Slots 0 and 1 are used again, and the third time round only slot 2.
    assert_eq!(calls.iter().filter(|call| *call == "wait upload").count(), 3);
    assert_eq!(device.download_all(&buffer)?, values);
    Ok(())
}

#[test]
fn bytes_at_any_place_arrive_and_their_neighbours_stay() -> Result<(), GpuError> {
    let (device, _) = device(Options::default());
    let mut expected = pattern(67);
    let buffer = device.upload_new("odd", &expected)?;
    for (offset, len) in [(0, 1), (1, 1), (3, 2), (5, 59), (64, 3), (66, 1), (4, 4), (9, 0)] {
        let bytes = vec![0xee; len];
        device.upload(buffer.allocation(), offset as u64, &bytes)?;
        expected[offset..offset + len].copy_from_slice(&bytes);
        let mut part = vec![0; 67 - offset];
        device.download(buffer.allocation(), offset as u64, &mut part)?;
        assert_eq!(part, expected[offset..], "from {offset}");
        assert_eq!(device.download_all(&buffer)?, expected);
    }
    Ok(())
}

#[test]
fn shared_memory_is_read_where_it_is_and_private_memory_through_staging() -> Result<(), GpuError> {
    let (device, double) = device(Options::default());
    let shared = device.allocate::<u32>("shared", 4, AccessPattern::READ_BACK)?;
    device.write(shared.allocation(), 0, &pattern(16))?;
    double.take_calls();
    assert_eq!(bytemuck::cast_slice::<u32, u8>(&device.download_all(&shared)?), pattern(16));
    assert!(double.take_calls().is_empty());

    let private = device.upload_new("private", &pattern(16))?;
    double.take_calls();
    device.download_all(&private)?;
    assert_eq!(
        text(&double.take_calls()),
        [
            "commit residency",
            "command buffer upload, retained",
            "blit encoder upload",
            "copy staging 0 + 0 to private + 0: 16 bytes",
            "end",
            "commit upload",
            "command buffer download, retained",
            "blit encoder download",
            "copy private + 0 to staging 0 + 16: 16 bytes",
            "end",
            "commit download",
            "wait download",
        ]
    );
    Ok(())
}

#[test]
fn managed_memory_reaches_the_device_where_it_was_marked() -> Result<(), GpuError> {
    let (device, double) = device(discrete());
    let managed = device.allocate::<u8>("managed", 16, AccessPattern::STEP_INPUT)?;
    device.write(managed.allocation(), 0, &[1; 16])?;
    device.did_modify(managed.allocation(), 0..16)?;
    device.write(managed.allocation(), 0, &[2; 16])?;
    device.did_modify(managed.allocation(), 8..12)?;
    let marks: Vec<String> = text(&double.take_calls())
        .into_iter()
        .filter(|call| call.starts_with("didModify"))
        .collect();
    assert_eq!(marks, ["didModify managed 0..16", "didModify managed 8..12"]);
    let mut host = [0; 16];
    device.read(managed.allocation(), 0, &mut host)?;
    assert_eq!(host, [2; 16]);
    let seen = device.download_all(&managed)?;
    assert_eq!(seen, [1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 1, 1, 1, 1]);
    Ok(())
}

#[test]
fn on_unified_memory_marking_costs_nothing() -> Result<(), GpuError> {
    let (device, double) = device(Options::default());
    let managed = device.allocate::<u8>("managed", 16, AccessPattern::STEP_INPUT)?;
    double.take_calls();
    device.write(managed.allocation(), 0, &[1; 16])?;
    device.did_modify(managed.allocation(), 0..16)?;
    assert!(double.take_calls().is_empty());
    assert_eq!(device.ledger().report().copied_bytes(Phase::Load, Direction::HostToDevice), 0);
    Ok(())
}

/// Pages, at a page's address.
struct Pages {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Pages {
    const PAGE: usize = 16384;

    fn new(count: usize) -> Self {
        let len = count * Self::PAGE;
        let bytes = pattern(len + Self::PAGE);
        let start = bytes.as_ptr().align_offset(Self::PAGE);
        Self { bytes, start, len }
    }
}

impl HostOwner for Pages {
    fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..][..self.len]
    }
}

#[test]
fn whole_pages_are_adopted_without_a_copy_and_let_go_with_the_allocation() -> Result<(), GpuError> {
    let (device, double) = device(Options::default());
    let pages = Arc::new(Pages::new(2));
    let bytes = HostBytes::new(pages.clone());
    let adopted = device.adopt_at("file", bytes, std::panic::Location::caller())?;
    assert_eq!(text(&double.take_calls()), ["buffer file: 32768 bytes, no copy", "resident file"]);
    let mut out = vec![0; 5];
    device.download(&adopted, 3, &mut out)?;
    assert_eq!(out, pages.bytes()[3..8]);
    let report = device.ledger().report();
    assert_eq!(report.copied_bytes(Phase::Load, Direction::HostToDevice), 0);
    assert_eq!(report.buffers[0].mode, StorageMode::Shared);
    let refused = device.write(&adopted, 0, &[0]).unwrap_err();
    assert!(matches!(refused, GpuError::HostAccess { access: "write", .. }), "{refused}");

    assert_eq!(Arc::strong_count(&pages), 2);
    drop(adopted);
    assert_eq!(Arc::strong_count(&pages), 1);
    assert_eq!(text(&double.take_calls()), ["not resident file", "commit residency", "free file"]);
    Ok(())
}

#[test]
fn memory_that_is_no_whole_pages_is_not_adopted() {
    let (device, _) = device(Options::default());
    let pages = HostBytes::new(Arc::new(Pages::new(2)));
    let site = std::panic::Location::caller();
    for (range, part) in [
        (64..64 + Pages::PAGE, "its address is 64 past a multiple of 16384"),
        (0..Pages::PAGE + 1, "its length is 1 past a multiple of 16384"),
        (0..0, "it has no bytes"),
    ] {
        let bytes = pages.slice(range).unwrap();
        let error = device.adopt_at("file", bytes, site).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    }
    let (discrete, _) = super::device(discrete());
    let error = discrete.adopt_at("file", pages, site).unwrap_err();
    assert!(error.to_string().contains("memory of its own"), "{error}");
}

#[test]
fn copies_and_fills_that_are_no_whole_words_are_dispatches() -> Result<(), GpuError> {
    let (device, double) = device(Options::default());
    let a = device.upload_new("a", &pattern(64))?;
    let mut list = CommandList::new("bytes");
    list.push(Command::Fill { region: region(a.allocation(), 0, 64), value: 1 });
    list.push(Command::Fill { region: region(a.allocation(), 1, 2), value: 2 });
    list.push(Command::Copy {
        source: region(a.allocation(), 0, 6),
        destination: region(a.allocation(), 32, 6),
    });
    list.push(Command::Fill { region: region(a.allocation(), 8, 0), value: 3 });
    let recording = device.record(list)?;
    double.take_calls();
    device.submit(&recording)?.wait()?;
    let calls = text(&double.take_calls());
    let from = calls.iter().position(|call| call.starts_with("command buffer bytes")).unwrap();
    assert_eq!(
        calls[from..],
        [
            "command buffer bytes, unretained",
            "blit encoder bytes",
            "fill a 0..64 with 1",
            "end",
            "concurrent compute encoder bytes",
            "pipeline fill_bytes",
            "0: a + 1",
            "1: 16 bytes",
            "dispatch 1x1x1 of 256x1x1",
            "barrier a",
            "pipeline copy_bytes",
            "0: a + 0",
            "1: a + 32",
            "2: 8 bytes",
            "dispatch 1x1x1 of 256x1x1",
            "end",
            "commit bytes",
            "wait bytes",
            "wait upload",
        ]
    );
    Ok(())
}

#[test]
fn blits_that_depend_on_each_other_have_encoders_of_their_own() -> Result<(), GpuError> {
    let (device, double) = device(Options::default());
    let [a, b, c] = ["a", "b", "c"].map(|name| device.upload_new(name, &pattern(16)).unwrap());
    let copy = |from: &marlin_gpu::Buffer<u8>, to: &marlin_gpu::Buffer<u8>| Command::Copy {
        source: region(from.allocation(), 0, 16),
        destination: region(to.allocation(), 0, 16),
    };
    let mut list = CommandList::new("chain");
    list.push(Command::Fill { region: region(a.allocation(), 0, 16), value: 9 });
    list.push(copy(&b, &c));
    list.push(copy(&a, &b));
    device.run(list)?;
    let calls = text(&double.take_calls());
    let from = calls.iter().position(|call| call.starts_with("command buffer chain")).unwrap();
    assert_eq!(
        calls[from + 1..calls.len() - 3],
        [
            "blit encoder chain",
            "fill a 0..16 with 9",
            "copy b + 0 to c + 0: 16 bytes",
            "end",
            "blit encoder chain",
            "copy a + 0 to b + 0: 16 bytes",
            "end",
        ]
    );
    assert_eq!(device.download_all(&b)?, [9; 16]);
    assert_eq!(device.download_all(&c)?, pattern(16));
    Ok(())
}

#[test]
fn memory_of_a_submission_outlives_it_whatever_is_dropped_first() -> Result<(), GpuError> {
    let (device, double) = device(Options::default());
    let a = device.upload_new("a", &pattern(16))?;
    let mut list = CommandList::new("use");
    list.push(Command::Fill { region: region(a.allocation(), 0, 16), value: 1 });
    let recording = device.record(list)?;
    let submission = device.submit(&recording)?;
    drop((a, recording));
    double.take_calls();
    // Dropping waits as well.
    drop(submission);
    assert_eq!(
        text(&double.take_calls()),
        ["wait use", "wait upload", "not resident a", "commit residency", "free a"]
    );
    Ok(())
}

#[test]
fn the_host_keeps_away_from_private_memory_and_from_what_is_in_flight() -> Result<(), GpuError> {
    for options in [Options::default(), discrete()] {
        let (device, _) = device(options);
        let private = device.upload_new("private", &pattern(16))?;
        let error = device.read(private.allocation(), 0, &mut [0]).unwrap_err();
        assert!(matches!(error, GpuError::HostAccess { mode: StorageMode::Private, .. }));
        for access in [AccessPattern::READ_BACK, AccessPattern::STEP_INPUT] {
            let reached = device.allocate::<u8>("reached", 16, access)?;
            device.write(reached.allocation(), 0, &[0; 16])?;
            let mut list = CommandList::new("use");
            list.push(Command::Copy {
                source: region(reached.allocation(), 0, 16),
                destination: region(private.allocation(), 0, 16),
            });
            let recording = device.record(list)?;
            let submission = device.submit(&recording)?;
            for error in [
                device.read(reached.allocation(), 0, &mut [0]).unwrap_err(),
                device.write(reached.allocation(), 0, &[0]).unwrap_err(),
            ] {
                assert!(
                    matches!(&error, GpuError::InFlight { submission, .. } if submission == "use")
                );
            }
            submission.wait()?;
            device.read(reached.allocation(), 0, &mut [0])?;
        }
        let outside = device.download(private.allocation(), 10, &mut [0; 7]).unwrap_err();
        assert!(matches!(outside, GpuError::Bind(BindError::OutOfBounds { .. })));
    }
    Ok(())
}

#[test]
fn without_residency_sets_nothing_asks_for_them() -> Result<(), GpuError> {
    let options = Options { residency_sets: false, ..Options::default() };
    let (device, double) = device(options);
    let a = device.upload_new("a", &pattern(16))?;
    device.download_all(&a)?;
    drop(a);
    let asked = double.take_calls().into_iter().any(|call| {
        matches!(
            call,
            Call::AddResident { .. } | Call::RemoveResident { .. } | Call::CommitResidency
        )
    });
    assert!(!asked);
    Ok(())
}
