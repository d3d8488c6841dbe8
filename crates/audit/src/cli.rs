//! The command line of `audit source` and `audit explain`, as clap arguments.
//!
//! A binary mounts [`SourceArgs`] and [`ExplainArgs`] as subcommands and calls [`source`] and
//! [`explain`] with what was parsed.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use crate::report;
use crate::rules::{Code, RULES, Severity};
use crate::source::{Baseline, Config, FailOn, Options, TargetDevice, audit};

/// The exit code for a command that could not be carried out.
const USAGE: u8 = 2;

/// Audit the source of Metal host code: storage modes and copies.
///
/// Reads Python (PyObjC, PyTorch, MLX), Rust (objc2-metal, metal-rs, candle, wgpu), Objective-C,
/// Objective-C++, C++ (metal-cpp), Swift and Metal shaders. Needs no GPU and no build.
/// Exits with 0 when clean, 1 on findings, 2 when it could not be carried out.
#[derive(Args, Clone, Debug)]
pub struct SourceArgs {
    /// Files and folders to audit; folders are walked, `.gitignore` respected.
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// How to show the result.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
    /// Write the result here instead of to standard output.
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Which devices the advice is for.
    #[arg(long, value_enum)]
    pub device: Option<DeviceArg>,
    /// Leave out findings that this file knows.
    #[arg(long, value_name = "FILE")]
    pub baseline: Option<PathBuf>,
    /// Write all findings to this file, for `--baseline`.
    #[arg(long, value_name = "FILE")]
    pub write_baseline: Option<PathBuf>,
    /// Fail on findings of this rule, or of this severity or a worse one: a rule code, `note`,
    /// `warning`, `error` or `never`; may be repeated [default: warning].
    #[arg(long, value_name = "RULE|SEVERITY", value_parser = parse_fail_on)]
    pub fail_on: Vec<FailOn>,
    /// Do not report this rule; may be repeated.
    #[arg(long, value_name = "RULE", value_parser = parse_code)]
    pub ignore: Vec<Code>,
    /// Leave out paths that match this glob; may be repeated.
    #[arg(long, value_name = "GLOB")]
    pub exclude: Vec<String>,
    /// A function that takes a kernel's name and its buffers in binding order; may be repeated.
    #[arg(long, value_name = "NAME")]
    pub dispatch_helper: Vec<String>,
    /// Read this configuration instead of the nearest `marlin-audit.toml`.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// When to colour text output.
    #[arg(long, value_enum, default_value_t = ColorArg::Auto)]
    pub color: ColorArg,
}

/// Explain a rule of the source auditor.
#[derive(Args, Clone, Debug)]
pub struct ExplainArgs {
    /// The rule's code or name; all rules are listed if it is left out.
    #[arg(value_name = "CODE", value_parser = parse_code)]
    pub code: Option<Code>,
}

/// Formats of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Findings with the offending lines.
    Text,
    /// The two audits as documents.
    Markdown,
    /// Everything, for programs.
    Json,
    /// SARIF 2.1.0, for code scanning.
    Sarif,
    /// One self-contained page.
    Html,
}

/// Devices that the advice is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DeviceArg {
    /// Unified memory.
    AppleSilicon,
    /// Memory of its own.
    Discrete,
    /// Both.
    Any,
}

/// When to colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ColorArg {
    /// On a terminal, unless `NO_COLOR` is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

fn parse_code(text: &str) -> Result<Code, String> {
    text.parse().map_err(|e: crate::rules::UnknownCode| e.to_string())
}

/// A `--fail-on` value.
fn parse_fail_on(text: &str) -> Result<FailOn, String> {
    Ok(match text {
        "note" => FailOn::Severity(Severity::Note),
        "warning" => FailOn::Severity(Severity::Warning),
        "error" => FailOn::Severity(Severity::Error),
        "never" => FailOn::Never,
        _ => FailOn::Rule(
            parse_code(text)
                .map_err(|e| format!("{e}; severities are note, warning, error, never"))?,
        ),
    })
}

/// Runs `audit source`.
pub fn source(args: &SourceArgs) -> ExitCode {
    match try_source(args) {
        Ok(failed) => ExitCode::from(u8::from(failed)),
        Err(message) => {
            let _ = writeln!(std::io::stderr(), "error: {message}");
            ExitCode::from(USAGE)
        }
    }
}

fn try_source(args: &SourceArgs) -> Result<bool, String> {
    let first = args.paths.first().map_or(Path::new("."), PathBuf::as_path);
    let config = match args.config.clone().or_else(|| Config::find(first)) {
        Some(path) => Config::read(&path).map_err(|e| e.to_string())?,
        None => Config::default(),
    };
    let device = match args.device {
        Some(DeviceArg::AppleSilicon) => TargetDevice::AppleSilicon,
        Some(DeviceArg::Discrete) => TargetDevice::Discrete,
        Some(DeviceArg::Any) => TargetDevice::Any,
        None => config.device.unwrap_or_default(),
    };
    let mut fail_on = args.fail_on.clone();
    if fail_on.is_empty() {
        for text in &config.fail_on {
            fail_on.push(parse_fail_on(text)?);
        }
    }
    if fail_on.is_empty() {
        fail_on.push(FailOn::Severity(Severity::Warning));
    }
    let options = Options {
        device,
        dispatch_helpers: [config.dispatch_helpers.clone(), args.dispatch_helper.clone()].concat(),
        exclude: [config.exclude.clone(), args.exclude.clone()].concat(),
        ignore: [config.ignored(), args.ignore.clone()].concat(),
    };
    let mut report = audit(&args.paths, &options).map_err(|e| e.to_string())?;
    if let Some(path) = &args.write_baseline {
        Baseline::write(path, &report).map_err(|e| e.to_string())?;
        let count = report.findings.len();
        let _ = writeln!(std::io::stderr(), "{count} findings written to {}", path.display());
        return Ok(false);
    }
    if let Some(path) = args.baseline.as_ref().or(config.baseline.as_ref()) {
        let baseline = Baseline::read(path).map_err(|e| e.to_string())?;
        report.apply_baseline(&baseline);
    }
    let to_terminal = args.output.is_none() && std::io::stdout().is_terminal();
    let color = match args.color {
        ColorArg::Always => true,
        ColorArg::Never => false,
        ColorArg::Auto => to_terminal && std::env::var_os("NO_COLOR").is_none(),
    };
    let text = match args.format {
        Format::Text => report::text(&report, color),
        Format::Markdown => report::markdown(&report),
        Format::Json => report::json(&report),
        Format::Sarif => report::sarif(&report),
        Format::Html => report::html(&report),
    };
    match &args.output {
        Some(path) => std::fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))?,
        // A closed pipe (`| head`) is not a failure of the audit.
        None => {
            let _ = std::io::stdout().write_all(text.as_bytes());
        }
    }
    Ok(report.fails(&fail_on))
}

/// Runs `audit explain`.
pub fn explain(args: &ExplainArgs) -> ExitCode {
    let mut out = std::io::stdout();
    let _ = match args.code {
        Some(code) => out.write_all(code.rule().page.as_bytes()),
        None => RULES.iter().try_for_each(|r| {
            writeln!(out, "{}  {:<8} {:<28} {}", r.id, r.severity, r.name, r.summary)
        }),
    };
    ExitCode::SUCCESS
}
