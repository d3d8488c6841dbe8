//! Where a buffer lives follows from how it is accessed, and what moves is counted.
//!
//! This crate is the vocabulary and the one table that the rest of the project
//! shares; it depends on nothing:
//!
//! * [`AccessPattern`] says what the host and the device do with a buffer;
//! * [`policy`] maps an access pattern to a [`StorageMode`]. It serves the allocator of
//!   every backend, the audit of a live run and the audit of source code, so the three
//!   cannot disagree;
//! * [`Ledger`] counts allocations, copies, submissions, waits and dispatches by [`Phase`] and call
//!   site, knows which kernels touch which buffer, and can record one decode step event by event.
//!
//! With the feature `audit`, `audit` works out from a ledger's report what a person would who audits the
//! code: buffers whose modes do not fit their use, copies that need not be.
//!
//! ```
//! use marlin_placement::{AccessPattern, Device, DeviceAccess, HostAccess, StorageMode, policy};
//!
//! // An arg-max result: the device writes it, the host reads it back.
//! let result = AccessPattern::new(HostAccess::ReadsBack, DeviceAccess::Writes);
//! assert_eq!(policy(&result, Some(4)).mode, StorageMode::Shared);
//!
//! // A matrix dimension, written for one dispatch: no buffer at all.
//! let m = AccessPattern::new(HostAccess::WritesOnce, DeviceAccess::Reads).constant();
//! assert_eq!(policy(&m, Some(4)).mode, StorageMode::Inline);
//! ```

mod access;
#[cfg(feature = "audit")]
pub mod audit;
mod ledger;
mod policy;
mod storage;

pub use access::{AccessPattern, DeviceAccess, HostAccess};
pub use ledger::{
    AccessLine, AccessTally, Accesses, BufferLine, BufferTally, CopyLine, Direction, EventLine,
    Ledger, LedgerReport, Phase, Started, StepLine, StepTrace, Tally, TraceEvent, TraceKind,
};
pub use policy::{Decision, INLINE_LIMIT, Rule, policy};
pub use storage::{Device, StorageMode};
