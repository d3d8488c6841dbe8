//! The order of a device's submissions.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::api::{Api, CommandBuffer, Status};
use super::context::lock;

/// A submission that the host does not know to be done.
struct Flight<A: Api> {
    number: u64,
    label: Arc<str>,
    command_buffer: A::CommandBuffer,
}

/// Submissions, counted from 1.
pub(super) struct Timeline<A: Api> {
    /// The last number given out. Held while a submission is started, so that queue and
    /// numbers agree.
    pub(super) started: Mutex<u64>,
    completed: AtomicU64,
    in_flight: Mutex<VecDeque<Flight<A>>>,
}

impl<A: Api> Default for Timeline<A> {
    fn default() -> Self {
        Self { started: Mutex::new(0), completed: AtomicU64::new(0), in_flight: Mutex::default() }
    }
}

impl<A: Api> Timeline<A> {
    /// Enters a submission that is about to be committed.
    pub(super) fn start(&self, number: u64, label: Arc<str>, command_buffer: A::CommandBuffer) {
        lock(&self.in_flight).push_back(Flight { number, label, command_buffer });
    }

    /// The label of the submission that `last_use` stands for, if the host does not know that it is done. Only
    /// a wait, or asking whether it is done, tells: so a program that does neither is wrong every
    /// time and not only on a slow day.
    pub(super) fn unfinished(&self, last_use: u64) -> Option<String> {
        if last_use <= self.completed.load(Ordering::Acquire) {
            return None;
        }
        let in_flight = lock(&self.in_flight);
        let found = in_flight.iter().find(|flight| flight.number == last_use);
        found.map(|flight| flight.label.to_string())
    }

    /// Waits for a submission and those before it: one that does not depend on an earlier one could be done first,
    /// and what both use would then not be the host's yet.
    pub(super) fn finish(&self, number: u64) {
        for command_buffer in self.until(number) {
            command_buffer.wait();
        }
        self.completed.fetch_max(number, Ordering::AcqRel);
        lock(&self.in_flight).retain(|flight| flight.number > number);
    }

    /// Whether [`finish`](Self::finish) would not wait.
    pub(super) fn is_done(&self, number: u64) -> bool {
        self.until(number).iter().all(|command_buffer| command_buffer.status() != Status::Pending)
    }

    fn until(&self, number: u64) -> Vec<A::CommandBuffer> {
        let in_flight = lock(&self.in_flight);
        let earlier = in_flight.iter().filter(|flight| flight.number <= number);
        earlier.map(|flight| flight.command_buffer.clone()).collect()
    }

    /// Waits for every submission, whoever waits for it besides.
    pub(super) fn wait_for_all(&self) {
        for command_buffer in self.until(u64::MAX) {
            command_buffer.wait();
        }
    }
}
