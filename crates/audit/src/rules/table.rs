//! The table of rules.

use super::{Code, Severity};
use crate::report::Direction;

/// What is known about a rule.
#[derive(Debug)]
pub struct Rule {
    /// The code.
    pub code: Code,
    /// The code as text.
    pub id: &'static str,
    /// A short name in words joined by hyphens.
    pub name: &'static str,
    /// How bad a finding is, unless the finding says otherwise.
    pub severity: Severity,
    /// What is wrong, in one line.
    pub summary: &'static str,
    /// What to do instead, in one line.
    pub instead: &'static str,
    /// Which way the data goes, for copies.
    pub direction: Option<Direction>,
    /// Whether the copy can usually be avoided.
    pub avoidable: bool,
    /// The page, in Markdown.
    pub page: &'static str,
}

macro_rules! rules {
    ($($code:ident $name:literal $severity:ident $direction:expr, $avoidable:literal,
       $summary:literal, $instead:literal;)*) => {
        /// Every rule, in the order of [`Code`].
        pub const RULES: &[Rule] = &[$(Rule {
            code: Code::$code,
            id: stringify!($code),
            name: $name,
            severity: Severity::$severity,
            summary: $summary,
            instead: $instead,
            direction: $direction,
            avoidable: $avoidable,
            page: include_str!(concat!("../../rules/", stringify!($code), ".md")),
        }),*];
    };
}

use Direction::{DeviceToDevice, DeviceToHost, HostToDevice, HostToHost, Wait};

rules! {
    MS001 "device-only-not-private" Warning None, true,
        "only the GPU uses this buffer, but the CPU can reach it",
        "make it private; fill it with a blit if it starts with data";
    MS002 "host-write-not-managed" Warning None, true,
        "the CPU writes and the GPU reads this buffer, but it is not managed",
        "make it managed and call `didModifyRange` after each write";
    MS003 "constant-buffer" Warning None, true,
        "a buffer holds a small constant of one dispatch",
        "bind the bytes with the command (`setBytes`): no buffer, no allocation";
    MS004 "read-back-not-shared" Warning None, true,
        "the CPU reads back what the GPU writes here, but the buffer is not shared",
        "make it shared";
    MS005 "host-touches-private" Error None, true,
        "the CPU touches a private buffer, which it cannot reach",
        "make it shared or managed, or go through a staging buffer and a blit";
    MS006 "managed-without-did-modify" Error None, true,
        "the CPU writes a managed buffer and never says so; a discrete GPU does not see the write",
        "call `didModifyRange` after each write";
    MS007 "managed-without-synchronize" Error None, true,
        "the CPU reads a managed buffer that the GPU wrote without a `synchronizeResource`",
        "encode `synchronizeResource` before the read, or make it shared";
    MS008 "no-copy-not-shared" Error None, true,
        "a buffer over host memory must be shared",
        "make it shared, or copy into a buffer of its own";
    MS009 "unused-buffer" Warning None, true,
        "nothing in the audited code uses this buffer",
        "remove it";
    MS010 "access-unknown" Note None, false,
        "who uses this buffer could not be determined",
        "private if only the GPU uses it, otherwise shared";
    MS011 "needless-did-modify" Note None, true,
        "`didModifyRange` means something for managed buffers only",
        "remove the call, or make the buffer managed";
    MS012 "write-combined-read" Warning None, true,
        "the CPU reads a write-combined buffer, which is uncached for it",
        "leave out the write-combined option";
    MS013 "managed-on-unified-memory" Note None, true,
        "on unified memory a managed buffer is a shared one",
        "make it shared and drop `didModifyRange`";
    MC001 "constants-into-new-buffer" Warning Some(HostToDevice), true,
        "constants are copied into a new buffer",
        "bind the bytes with the command (`setBytes`)";
    MC002 "data-into-new-buffer" Warning Some(HostToDevice), true,
        "data is copied into a new buffer",
        "bind the memory without a copy (page-aligned, shared), or keep the buffer and reuse it";
    MC003 "tensor-to-host" Warning Some(DeviceToHost), true,
        "a tensor is copied to the CPU",
        "keep the computation on the device, or read back only the result";
    MC004 "tensor-as-array" Note Some(DeviceToHost), true,
        "a tensor becomes a host array; one on the device must be copied first",
        "keep the computation on the device";
    MC005 "scalar-read-back" Warning Some(DeviceToHost), true,
        "values are read back one by one, and each waits for the device",
        "keep the value on the device, or read several at once after the step";
    MC006 "array-to-device" Warning Some(HostToDevice), true,
        "a host array becomes a tensor and is copied to the device",
        "make it on the device, or bind the array's memory without a copy";
    MC007 "tensor-from-host-data" Warning Some(HostToDevice), true,
        "a device tensor is made from host data",
        "make it on the device (`arange`, `full`, …), or keep it from the last step";
    MC008 "tensor-to-device" Note Some(HostToDevice), false,
        "a tensor is copied to the device if it is not there",
        "make it there, or move it once outside the step";
    MC009 "contents-read-back" Note Some(DeviceToHost), false,
        "the CPU reads a buffer's contents",
        "read only the result, after the command has completed; keep the rest on the device";
    MC010 "contents-copied" Warning Some(DeviceToHost), true,
        "the CPU copies a buffer's contents",
        "use the mapped memory in place while the buffer is not being written";
    MC011 "to-bytes" Warning Some(HostToHost), true,
        "a host array is copied into a byte string",
        "pass the array's own memory (buffer protocol)";
    MC012 "array-copied-again" Warning Some(HostToHost), true,
        "a host array is copied again",
        "use it as it is; copy only where its strides demand it";
    MC013 "contiguous-before-no-copy" Warning Some(DeviceToDevice), true,
        "a tensor is made contiguous before a binding without a copy",
        "keep the tensor contiguous, or pass its strides to the kernel";
    MC014 "copied-into-contents" Note Some(HostToDevice), false,
        "host data is copied into a buffer's contents",
        "produce the data in the buffer, or bind its memory without a copy";
    MC015 "staging-blit" Note Some(HostToDevice), false,
        "data goes through a staging buffer and a blit",
        "on unified memory bind the memory without a copy; elsewhere stage once, not per step";
    MC016 "wait-per-dispatch" Warning Some(Wait), true,
        "the CPU waits for the GPU after a single submission",
        "submit the whole step at once and wait, or better be called back, at its end";
    MC017 "device-wide-wait" Note Some(Wait), true,
        "the CPU waits for everything on the device",
        "wait for the one result that is needed";
}
