//! Checks that a device does what it should, for the first run on hardware that nobody here has: memory of every mode, then
//! every important kernel on small shapes against plain Rust, then a small model from end to end.
//!
//! Nothing is timed. The same checks run on every [`Device`], and the last on every [`Backend`].

mod cache;
mod codes;
mod elementwise;
mod experts;
mod memory;
mod model;
mod products;
mod sampling;
mod values;

use marlin_backend::{Backend, BackendError};

use crate::{Device, GpuError};
use values::Measured;

/// What became of a check.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It is right; the largest error found, and the largest that is allowed, both relative to the largest expected
    /// magnitude. 0 and 0 where bytes must be equal.
    Passed {
        /// Found.
        error: f64,
        /// Allowed.
        allowed: f64,
    },
    /// It is wrong, or could not be run.
    Failed(String),
    /// It does not apply, and why.
    Skipped(String),
}

/// One check.
#[derive(Clone, Debug, PartialEq)]
pub struct Check {
    /// What it belongs to: `memory`, `norm`, …
    pub group: &'static str,
    /// What it checks.
    pub name: String,
    /// What became of it.
    pub outcome: Outcome,
}

impl Check {
    /// Whether it failed.
    pub fn failed(&self) -> bool {
        matches!(self.outcome, Outcome::Failed(_))
    }
}

/// Why a check has no result.
#[derive(Debug)]
enum Problem {
    Failed(String),
    Skipped(String),
}

impl From<GpuError> for Problem {
    fn from(error: GpuError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<BackendError> for Problem {
    fn from(error: BackendError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<marlin_kernels::BindError> for Problem {
    fn from(error: marlin_kernels::BindError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<marlin_formats::FormatError> for Problem {
    fn from(error: marlin_formats::FormatError) -> Self {
        Self::Failed(error.to_string())
    }
}

type Checked = Result<Measured, Problem>;

/// Runs checks and tells of each as soon as it is known.
struct Runner<'a> {
    tell: &'a mut dyn FnMut(&Check),
    checks: Vec<Check>,
}

impl Runner<'_> {
    fn check(
        &mut self,
        group: &'static str,
        name: impl Into<String>,
        run: impl FnOnce() -> Checked,
    ) {
        let outcome = match run() {
            Ok(Measured { error, allowed }) if error <= allowed => {
                Outcome::Passed { error, allowed }
            }
            Ok(Measured { error, allowed }) => {
                Outcome::Failed(format!("error {error:.3e}, at most {allowed:.3e} is allowed"))
            }
            Err(Problem::Failed(reason)) => Outcome::Failed(reason),
            Err(Problem::Skipped(reason)) => Outcome::Skipped(reason),
        };
        let check = Check { group, name: name.into(), outcome };
        (self.tell)(&check);
        self.checks.push(check);
    }
}

/// Runs every check of a device; `tell` hears of each when it is done.
pub fn check_device(device: &dyn Device, tell: &mut dyn FnMut(&Check)) -> Vec<Check> {
    let mut runner = Runner { tell, checks: Vec::new() };
    memory::run(device, &mut runner);
    elementwise::run(device, &mut runner);
    products::run(device, &mut runner);
    cache::run(device, &mut runner);
    experts::run(device, &mut runner);
    codes::run(device, &mut runner);
    sampling::run(device, &mut runner);
    runner.checks
}

/// Runs a small model with random weights, of several formats, on a backend.
pub fn check_backend(backend: &dyn Backend, tell: &mut dyn FnMut(&Check)) -> Vec<Check> {
    let mut runner = Runner { tell, checks: Vec::new() };
    model::run(backend, &mut runner);
    runner.checks
}
