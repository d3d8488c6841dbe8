//! Memory of every mode, and the order of commands.

use std::panic::Location;
use std::sync::Arc;

use half::f16;
use marlin_backend::{HostBytes, HostOwner};
use marlin_kernels::bytes::{CopyBytes, CopyBytesArgs};
use marlin_kernels::{Allocation, Grid};
use marlin_placement::AccessPattern;

use super::values::{Measured, equal, output};
use super::{Checked, Problem, Runner};
use crate::ops::norm::{NormWeight, add_rms_norm};
use crate::{Command, CommandList, Device, GpuError, Region};

const GROUP: &str = "memory";

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i.wrapping_mul(31) % 251) as u8).collect()
}

fn region(allocation: &Arc<dyn Allocation>, offset: u64, bytes: u64) -> Region {
    Region { allocation: allocation.clone(), offset, bytes }
}

fn copy(from: Region, to: Region) -> Command {
    Command::Copy { source: from, destination: to }
}

pub(super) fn run(device: &dyn Device, runner: &mut Runner<'_>) {
    runner.check(GROUP, "private: uploads and downloads of any size", || private(device));
    runner.check(GROUP, "private: parts at any place", || parts(device));
    runner.check(GROUP, "managed: what was marked reaches the device", || managed(device));
    runner.check(GROUP, "shared: the host reads what the device wrote", || shared(device));
    runner.check(GROUP, "adopted: the device reads the host's pages", || adopted(device));
    runner.check(GROUP, "the host is kept from private memory", || kept_out(device));
    runner.check(GROUP, "the host is kept from memory in flight", || in_flight(device));
    runner.check(GROUP, "copies and fills at any place", || copies_and_fills(device));
    runner.check(GROUP, "a chain of dispatches that each need the one before", || chain(device));
    runner.check(GROUP, "a recording that is submitted again and again", || again(device));
}

fn private(device: &dyn Device) -> Checked {
    let mut all = Measured::default();
    for len in [1, 3, 64, 4099, (5 << 20) + 3] {
        let expected = bytes(len);
        let buffer = device.upload_new("private", &expected)?;
        all = all.and(equal(&device.download_all(&buffer)?, &expected));
    }
    Ok(all)
}

fn parts(device: &dyn Device) -> Checked {
    let mut expected = bytes(67);
    let buffer = device.upload_new("private", &expected)?;
    let mut all = Measured::default();
    for (offset, len) in [(0, 1), (1, 1), (3, 2), (5, 59), (64, 3), (66, 1), (4, 4)] {
        let part = vec![0xee; len];
        device.upload(buffer.allocation(), offset as u64, &part)?;
        expected[offset..offset + len].copy_from_slice(&part);
        all = all.and(equal(&device.download_all(&buffer)?, &expected));
        let mut found = vec![0; len];
        device.download(buffer.allocation(), offset as u64, &mut found)?;
        all = all.and(equal(&found, &part));
    }
    Ok(all)
}

fn managed(device: &dyn Device) -> Checked {
    let managed = device.allocate::<u8>("managed", 256, AccessPattern::STEP_INPUT)?;
    let seen = output::<u8>(device, "seen", 256)?;
    let mut all = Measured::default();
    for round in 0..3u8 {
        let expected = vec![round + 1; 256];
        device.write(managed.allocation(), 0, &expected)?;
        device.did_modify(managed.allocation(), 0..256)?;
        let mut list = CommandList::new("managed");
        let launcher = CopyBytes {
            source: managed.view(),
            destination: seen.view_mut()?,
            args: CopyBytesArgs { count: 256 },
        };
        list.launch(launcher, Grid::x(1, 256));
        device.run(list)?;
        all = all.and(equal(&device.download_all(&seen)?, &expected));
    }
    Ok(all)
}

fn shared(device: &dyn Device) -> Checked {
    let expected = bytes(4100);
    let private = device.upload_new("private", &expected)?;
    let shared = device.allocate::<u8>("shared", 4100, AccessPattern::READ_BACK)?;
    let mut list = CommandList::new("shared");
    let launcher = CopyBytes {
        source: private.view(),
        destination: shared.view_mut()?,
        args: CopyBytesArgs { count: 4100 },
    };
    list.launch(launcher, Grid::x(5, 256));
    device.run(list)?;
    let mut found = vec![0; 4100];
    device.read(shared.allocation(), 0, &mut found)?;
    Ok(equal(&found, &expected).and(equal(&device.download_all(&shared)?, &expected)))
}

/// Bytes at a multiple of an alignment.
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl HostOwner for Aligned {
    fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..][..self.len]
    }
}

fn adopted(device: &dyn Device) -> Checked {
    let alignment = device.properties().adoption_alignment.max(1);
    let len = 16384usize.next_multiple_of(alignment);
    let owned = bytes(len + alignment);
    let start = owned.as_ptr().align_offset(alignment);
    let owner = Arc::new(Aligned { bytes: owned, start, len });
    let host = HostBytes::new(owner.clone());
    let adopted = match device.adopt_at("adopted", host, Location::caller()) {
        Ok(adopted) => adopted,
        Err(GpuError::NotAdoptable { reason, .. }) => return Err(Problem::Skipped(reason)),
        Err(other) => return Err(other.into()),
    };
    let seen = output::<u8>(device, "seen", len)?;
    let mut list = CommandList::new("adopted");
    let source = marlin_kernels::View::<u8>::new(&adopted, 0, len)?;
    let destination = seen.view_mut()?;
    let args = CopyBytesArgs { count: len as u64 };
    list.launch(CopyBytes { source, destination, args }, Grid::x(16, 256));
    device.run(list)?;
    Ok(equal(&device.download_all(&seen)?, owner.bytes()))
}

/// The error must be there.
fn refused(result: Result<(), GpuError>, expected: fn(&GpuError) -> bool) -> Checked {
    match result {
        Err(error) if expected(&error) => Ok(Measured::default()),
        Err(other) => Err(other.into()),
        Ok(()) => Err(Problem::Failed("it was allowed".to_owned())),
    }
}

fn kept_out(device: &dyn Device) -> Checked {
    let private = device.upload_new("private", &bytes(16))?;
    let host_access = |error: &GpuError| matches!(error, GpuError::HostAccess { .. });
    let read = device.read(private.allocation(), 0, &mut [0]);
    refused(read, host_access)?;
    refused(device.write(private.allocation(), 0, &[0]), host_access)
}

fn in_flight(device: &dyn Device) -> Checked {
    let shared = device.allocate::<u8>("shared", 64, AccessPattern::READ_BACK)?;
    let mut list = CommandList::new("flight");
    list.push(Command::Fill { region: region(shared.allocation(), 0, 64), value: 7 });
    let recording = device.record(list)?;
    let submission = device.submit(&recording)?;
    let read = device.read(shared.allocation(), 0, &mut [0]);
    refused(read, |error| matches!(error, GpuError::InFlight { .. }))?;
    submission.wait()?;
    let mut found = [0; 64];
    device.read(shared.allocation(), 0, &mut found)?;
    Ok(equal(&found, &[7; 64]))
}

fn copies_and_fills(device: &dyn Device) -> Checked {
    let source = bytes(1000);
    let from = device.upload_new("from", &source)?;
    let to = device.upload_new("to", &[0xaau8; 1000])?;
    let mut expected = vec![0xaa; 1000];
    let mut list = CommandList::new("copies");
    for (start, target, len) in [(0, 0, 400), (4, 404, 64), (1, 501, 3), (7, 600, 257)] {
        let (from, to) = (from.allocation(), to.allocation());
        list.push(copy(region(from, start, len), region(to, target, len)));
        let (start, target, len) = (start as usize, target as usize, len as usize);
        expected[target..target + len].copy_from_slice(&source[start..start + len]);
    }
    for (target, len, value) in [(100, 40, 1), (121, 6, 2), (999, 1, 3)] {
        list.push(Command::Fill { region: region(to.allocation(), target, len), value });
        let (target, len) = (target as usize, len as usize);
        expected[target..target + len].fill(value);
    }
    // From what was written above, and back over what is read here.
    list.push(copy(region(to.allocation(), 0, 100), region(to.allocation(), 200, 100)));
    list.push(copy(region(from.allocation(), 0, 100), region(to.allocation(), 0, 100)));
    expected.copy_within(0..100, 200);
    expected[..100].copy_from_slice(&source[..100]);
    device.run(list)?;
    Ok(equal(&device.download_all(&to)?, &expected))
}

fn chain(device: &dyn Device) -> Checked {
    // Links of 16 KiB, so that a link that did not wait would find some of the one before unwritten.
    const LINKS: usize = 48;
    const LINK: usize = 16 << 10;
    let first = bytes(LINK);
    let buffer = output::<u8>(device, "chain", LINKS * LINK)?;
    let mut list = CommandList::new("clear");
    let whole = (LINKS * LINK) as u64;
    list.push(Command::Fill { region: region(buffer.allocation(), 0, whole), value: 0xff });
    device.run(list)?;
    device.upload(buffer.allocation(), 0, &first)?;
    let mut list = CommandList::new("chain");
    for link in 1..LINKS {
        let launcher = CopyBytes {
            source: buffer.slice((link - 1) * LINK..link * LINK)?,
            destination: buffer.slice_mut(link * LINK..(link + 1) * LINK)?,
            args: CopyBytesArgs { count: LINK as u64 },
        };
        list.launch(launcher, Grid::x(16, 256));
    }
    device.run(list)?;
    let found = device.download_all(&buffer)?;
    Ok(equal(&found[(LINKS - 1) * LINK..], &first))
}

fn again(device: &dyn Device) -> Checked {
    const COLUMNS: usize = 256;
    let x = device.upload_new("x", &[f16::from_f32(0.5); COLUMNS])?;
    let residual = device.upload_new("residual", &[f16::ZERO; COLUMNS])?;
    let weight = device.upload_new("weight", &[1.0f32; COLUMNS])?;
    let y = output::<f16>(device, "y", COLUMNS)?;
    let norm = NormWeight { weight: weight.view(), epsilon: 1e-5, offset: 0.0 };
    let mut list = CommandList::new("again");
    add_rms_norm(&mut list, x.view(), residual.view_mut()?, norm, y.view_mut()?, 1)?;
    let recording = device.record(list)?;
    // Several at once, and then some one after the other.
    let flying: Vec<_> = (0..4).map(|_| device.submit(&recording)).collect::<Result<_, _>>()?;
    for submission in flying {
        submission.wait()?;
    }
    for _ in 0..3 {
        device.submit(&recording)?.wait()?;
    }
    Ok(equal(&device.download_all(&residual)?, &[f16::from_f32(3.5); COLUMNS]))
}
