//! One decode step, event by event.

use serde::{Deserialize, Serialize};

use super::{CallSite, Functions};
use crate::{Direction, StepTrace, TraceKind};

/// What an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TimelineKind {
    /// A kernel or op.
    Dispatch,
    /// A copy.
    Copy,
    /// The host waits for the device.
    Wait,
    /// Commands are handed to the device.
    Submission,
    /// The device's own time for a submission.
    DeviceTime,
    /// The host writes a buffer.
    HostWrite,
    /// The host reads a buffer.
    HostRead,
}

impl TimelineKind {
    /// The name as it stands in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dispatch => "dispatch",
            Self::Copy => "copy",
            Self::Wait => "wait",
            Self::Submission => "submission",
            Self::DeviceTime => "device time",
            Self::HostWrite => "host write",
            Self::HostRead => "host read",
        }
    }
}

/// One event of the step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineEvent {
    /// What.
    pub kind: TimelineKind,
    /// Which way, for copies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction: Option<Direction>,
    /// The kernel, the reason, or the buffer.
    pub label: String,
    /// Nanoseconds since the step began.
    pub start_ns: u64,
    /// How long it took, where that was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took_ns: Option<u64>,
    /// Bytes.
    pub bytes: u64,
    /// The line.
    pub site: CallSite,
}

/// A decode step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepTimeline {
    /// When it began, in nanoseconds since the model was opened.
    pub start_ns: u64,
    /// Until the next step began, or until its last event ended.
    pub took_ns: u64,
    /// In the order of their beginnings.
    pub events: Vec<TimelineEvent>,
    /// Events that there was no room for.
    pub dropped: u64,
}

impl StepTimeline {
    pub(super) fn of(trace: &StepTrace, functions: Functions<'_>) -> Self {
        let events = trace.events.iter().map(|event| {
            let (kind, direction) = match event.kind {
                TraceKind::Copy(direction) => (TimelineKind::Copy, Some(direction)),
                TraceKind::Dispatch => (TimelineKind::Dispatch, None),
                TraceKind::Wait => (TimelineKind::Wait, None),
                TraceKind::Submission => (TimelineKind::Submission, None),
                TraceKind::DeviceTime => (TimelineKind::DeviceTime, None),
                TraceKind::HostWrite => (TimelineKind::HostWrite, None),
                TraceKind::HostRead => (TimelineKind::HostRead, None),
            };
            TimelineEvent {
                kind,
                direction,
                label: event.label.clone(),
                start_ns: event.start_ns,
                took_ns: event.took_ns,
                bytes: event.bytes,
                site: CallSite::parse(&event.site, functions),
            }
        });
        Self {
            start_ns: trace.start_ns,
            took_ns: trace.took_ns,
            events: events.collect(),
            dropped: trace.dropped,
        }
    }
}
