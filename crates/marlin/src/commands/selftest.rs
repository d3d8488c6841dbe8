//! `marlin selftest`: whether a device computes what it should, as one report to send back.

mod devices;

use marlin_gpu::selftest::{Check, Outcome, check_backend, check_device};
use serde::Serialize;

use crate::error::CliError;
use crate::options::Device;
use crate::output::{print, print_json};
use devices::{Found, open};

/// Check that a device computes what it should, and print one report to send back
///
/// Memory of every mode, every important kernel on small shapes against plain arithmetic, and a small model from
/// end to end. Nothing is timed; it takes from seconds to a minute, the first time longer because kernels are
/// compiled.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  marlin selftest --device metal
  marlin selftest --device cuda --json > report.json

Exit codes: 0 everything is right, 1 something is wrong or there is no such device.")]
pub(crate) struct Args {
    #[arg(long, value_name = "DEVICE", default_value = "auto", help = Device::HELP)]
    device: Device,

    /// Write JSON, when everything is done
    #[arg(long)]
    json: bool,
}

/// Everything that somebody who was not there wants to know.
#[derive(Serialize)]
struct Report {
    version: &'static str,
    system: String,
    device: Vec<(&'static str, String)>,
    passed: usize,
    failed: usize,
    skipped: usize,
    checks: Vec<Line>,
    /// Compiled now, and found compiled; for GPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pipelines: Option<(u64, u64)>,
}

#[derive(Serialize)]
struct Line {
    group: &'static str,
    name: String,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    allowed: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl From<&Check> for Line {
    fn from(check: &Check) -> Self {
        let (outcome, error, allowed, reason) = match &check.outcome {
            Outcome::Passed { error, allowed } => ("ok", Some(*error), Some(*allowed), None),
            Outcome::Failed(reason) => ("FAILED", None, None, Some(reason.clone())),
            Outcome::Skipped(reason) => ("skipped", None, None, Some(reason.clone())),
        };
        Self { group: check.group, name: check.name.clone(), outcome, error, allowed, reason }
    }
}

impl Line {
    fn text(&self) -> String {
        let result = match (self.error, self.allowed, &self.reason) {
            (_, _, Some(reason)) => reason.clone(),
            (Some(error), Some(allowed), _) if allowed > 0.0 => {
                format!("error {error:.1e} of {allowed:.1e}")
            }
            _ => "exact".to_owned(),
        };
        format!("{:<8} {:<12} {}: {result}\n", self.outcome, self.group, self.name)
    }
}

pub(crate) fn run(args: &Args) -> Result<(), CliError> {
    let found = open(args.device)?;
    let version = env!("CARGO_PKG_VERSION");
    let system = devices::system();
    let device = found.description();
    if !args.json {
        let mut head = format!("metal-marlin {version} on {system}\n");
        for (name, value) in &device {
            head += &format!("{name}: {value}\n");
        }
        print(&(head + "\n"))?;
    }

    // Each line as soon as it is known: a device that takes the machine down leaves what came before.
    let mut unprinted = None;
    let mut tell = |check: &Check| {
        if !args.json && unprinted.is_none() {
            unprinted = print(&Line::from(check).text()).err();
        }
    };
    let checks = match &found {
        Found::Cpu(backend) => check_backend(backend, &mut tell),
        Found::Gpu { device, backend, .. } => {
            let mut checks = check_device(&**device, &mut tell);
            checks.extend(check_backend(backend, &mut tell));
            checks
        }
    };
    if let Some(error) = unprinted {
        return Err(error);
    }

    let lines: Vec<Line> = checks.iter().map(Line::from).collect();
    let count = |outcome: &str| lines.iter().filter(|line| line.outcome == outcome).count();
    let (passed, failed, skipped) = (count("ok"), count("FAILED"), count("skipped"));
    let pipelines = found.pipelines();
    let report =
        Report { version, system, device, passed, failed, skipped, checks: lines, pipelines };
    if args.json {
        print_json(&report)?;
    } else {
        let mut end = format!("\n{passed} ok, {failed} failed, {skipped} skipped");
        if let Some((compiled, from_disk)) = pipelines {
            end += &format!("; {compiled} kernels compiled, {from_disk} found compiled");
        }
        print(&(end + "\n"))?;
    }
    if failed > 0 {
        let all = report.checks.len();
        return Err(CliError::failed(format!("{failed} of {all} checks failed")));
    }
    Ok(())
}
