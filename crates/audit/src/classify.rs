//! From what was seen of a buffer to its access pattern, its storage mode and the advice.
//!
//! The advice is [`marlin_placement::policy`]'s: the auditor has no table of its own.

use marlin_placement::{
    AccessPattern, Decision, Device, DeviceAccess, HostAccess, Rule, StorageMode, policy,
};

use crate::api::create::CreateKind;
use crate::flow::attribute::{Buffer, Facts};
use crate::flow::value::{Atom, Options, WrittenMode};
use crate::report::Confidence;
use crate::source::TargetDevice;

/// What the auditor concluded about a buffer.
#[derive(Clone, Debug)]
pub(crate) struct Verdict {
    /// The written mode, if it is one and the same on every path.
    pub(crate) mode: Option<WrittenMode>,
    pub(crate) current_mode: String,
    pub(crate) write_combined: bool,
    pub(crate) host_writes: bool,
    pub(crate) host_reads: bool,
    pub(crate) device: DeviceAccess,
    pub(crate) host_unknown: bool,
    pub(crate) pattern_text: String,
    pub(crate) decision: Decision,
    pub(crate) suggested: String,
    pub(crate) inline: bool,
    pub(crate) unused: bool,
    pub(crate) unknown: bool,
    pub(crate) confidence: Confidence,
    pub(crate) reason: String,
    pub(crate) size: Option<u64>,
}

const PRIVATE_OR_SHARED: &str = "Private if GPU-only; otherwise Shared";

pub(crate) fn classify(buffer: &Buffer<'_>, target: TargetDevice) -> Verdict {
    let facts = &buffer.facts;
    let kind = buffer.site.kind;
    let (mode, current_mode, write_combined) = written_mode(buffer);
    let starts_with_bytes = matches!(kind, CreateKind::Bytes | CreateKind::Wgpu { init: true });
    let host_writes = starts_with_bytes || facts.host_writes;
    // An array over the contents that is stored into was made for storing.
    let host_reads = facts.host_reads || facts.host_views && !facts.host_writes;
    let mut inferred = facts.guessed;

    let mut device = match (facts.device_reads, facts.device_writes) {
        (true, true) => DeviceAccess::ReadsWrites,
        (true, false) => DeviceAccess::Reads,
        (false, true) => DeviceAccess::Writes,
        (false, false) => DeviceAccess::None,
    };
    let escaped = !facts.escapes.is_empty();
    if device == DeviceAccess::None && (facts.device_unknown || escaped) {
        (device, inferred) = (infer_device(buffer, host_writes, host_reads), true);
    }
    if starts_with_bytes && device == DeviceAccess::None && !facts.untouched() {
        inferred = true;
    }
    let no_copy = kind == CreateKind::NoCopy;
    let nothing_seen = facts.untouched() && !escaped && !no_copy;
    let unused = nothing_seen && !facts.mentioned;
    // Its name stands somewhere that was not followed.
    let lost = nothing_seen && facts.mentioned;
    // Private memory is out of the host's reach, whoever holds the buffer.
    let private = mode == Some(WrittenMode::Private);
    let host_unknown = escaped && !host_writes && !host_reads && !no_copy && !private;
    let unknown = host_unknown && device == DeviceAccess::Unknown || lost;

    let host = if host_reads {
        HostAccess::ReadsBack
    } else if host_writes {
        if facts.repeated_writes { HostAccess::WritesEachStep } else { HostAccess::WritesOnce }
    } else if host_unknown {
        HostAccess::Unknown
    } else {
        HostAccess::None
    };
    let (constant, size) = constant_and_size(buffer, device);
    let mut pattern = AccessPattern::new(host, device);
    pattern.aliases_host = no_copy;
    // Host data that the host reads back as well is in use by both; only what it writes can be
    // constants of a dispatch.
    pattern.constant = constant;
    // A buffer that the device writes on top of what the host put there is not a staging case
    // unless the host is done with it at creation.
    let decision_pattern =
        if host == HostAccess::ReadsBack && device == DeviceAccess::Reads && host_writes {
            // The host reads its own data: for the device it is input.
            AccessPattern { host: HostAccess::WritesEachStep, ..pattern }
        } else {
            pattern
        };
    let inline_decision = policy(&decision_pattern, size);
    let inline = inline_decision.mode == StorageMode::Inline;
    let decision = policy(&AccessPattern { constant: false, ..decision_pattern }, size);

    let pattern_text = pattern_text(&pattern, host_writes, facts, unused);
    let suggested = suggestion(decision, unused || unknown, no_copy, target);
    let confidence = if unused {
        Confidence::Proved
    } else if unknown || current_mode.starts_with("Unknown") && facts.untouched() {
        Confidence::Unknown
    } else if inferred || escaped || facts.device_unknown || mode.is_none() {
        Confidence::Inferred
    } else {
        Confidence::Proved
    };
    let reason = reason(decision, inline, unused, unknown, facts, target);
    Verdict {
        mode,
        current_mode,
        write_combined,
        host_writes,
        host_reads,
        device,
        host_unknown,
        pattern_text,
        decision,
        suggested,
        inline,
        unused,
        unknown,
        confidence,
        reason,
        size,
    }
}

/// The mode as written, in words.
fn written_mode(buffer: &Buffer<'_>) -> (Option<WrittenMode>, String, bool) {
    let options: Vec<Options> = buffer
        .options
        .atoms()
        .iter()
        .filter_map(|a| match a {
            Atom::Options(o) => Some(*o),
            Atom::Int(bits) => Some(Options::from_bits(*bits)),
            _ => None,
        })
        .collect();
    if options.is_empty() {
        return (None, "Unknown".into(), false);
    }
    let name = |o: &Options| match o.mode {
        Some(WrittenMode::Shared) | None => "Shared",
        Some(WrittenMode::Managed) => "Managed",
        Some(WrittenMode::Private) => "Private",
        Some(WrittenMode::Memoryless) => "Memoryless",
    };
    let mut words: Vec<&str> = Vec::new();
    for option in &options {
        if !words.contains(&name(option)) {
            words.push(name(option));
        }
    }
    let mode = (words.len() == 1).then(|| options[0].mode.unwrap_or(WrittenMode::Shared));
    let mut text = words.join(" or ");
    if matches!(buffer.site.kind, CreateKind::Wgpu { .. }) {
        text.push_str(" (by usage)");
    } else if buffer.site.default_options {
        text.push_str(" (default)");
    }
    let write_combined = options.iter().any(|o| o.write_combined);
    if write_combined {
        text.push_str(", write-combined");
    }
    if options.iter().any(|o| o.untracked) {
        text.push_str(", untracked");
    }
    (mode, text, write_combined)
}

/// What the device most likely does with a buffer that it gets out of sight.
fn infer_device(buffer: &Buffer<'_>, host_writes: bool, host_reads: bool) -> DeviceAccess {
    let bound = buffer.facts.device_unknown;
    let name = buffer.site.name.as_deref().unwrap_or("").to_ascii_lowercase();
    let has = |words: &[&str]| words.iter().any(|w| name.contains(w));
    // State that starts from host data: kernels count it on.
    if has(&["seed", "state", "rng", "counter", "accum", "atomic"]) {
        return DeviceAccess::ReadsWrites;
    }
    if host_writes && !host_reads {
        return DeviceAccess::Reads;
    }
    if host_reads && !host_writes {
        return DeviceAccess::Writes;
    }
    if buffer.site.kind == CreateKind::NoCopy {
        return if has(&["out", "result", "dst"]) {
            DeviceAccess::Writes
        } else {
            DeviceAccess::Reads
        };
    }
    match bound {
        true if has(&["out", "result", "dst"]) => DeviceAccess::Writes,
        true if has(&["scratch", "temp", "tmp", "workspace", "partial", "accum"]) => {
            DeviceAccess::ReadsWrites
        }
        _ => DeviceAccess::Unknown,
    }
}

/// Whether the contents are a small constant of one dispatch, and the size in bytes.
fn constant_and_size(buffer: &Buffer<'_>, device: DeviceAccess) -> (bool, Option<u64>) {
    let constant = buffer.bytes.constant();
    let mut size = buffer.size;
    if size.is_none()
        && let Some(constant) = constant
    {
        // Without a type, no scalar is larger than eight bytes.
        size = constant.bytes.or_else(|| match constant.names.len() {
            _ if constant.by_address => None,
            0 => None,
            n => Some(8 * n as u64),
        });
    }
    let facts = &buffer.facts;
    let small = size.is_some_and(|s| s <= marlin_placement::INLINE_LIMIT);
    // State that starts from a constant is no constant: it must be seen to be bound as input only.
    let input_only = device == DeviceAccess::Reads && !facts.device_writes && !facts.host_reads;
    let bound_here = facts.constant_space || facts.escapes.is_empty();
    let is_constant = buffer.site.kind == CreateKind::Bytes && small && input_only && bound_here;
    (is_constant, size)
}

fn pattern_text(pattern: &AccessPattern, host_writes: bool, facts: &Facts, unused: bool) -> String {
    use DeviceAccess as D;
    use HostAccess as H;
    if unused && !host_writes {
        return "Unknown (no observed use)".into();
    }
    if facts.mentioned && facts.untouched() && facts.escapes.is_empty() && !pattern.aliases_host {
        return if host_writes {
            "CPU write, GPU access unknown"
        } else {
            "Unknown (use not followed)"
        }
        .into();
    }
    if pattern.aliases_host {
        return match pattern.device {
            D::None | D::Unknown => "GPU access not observed, CPU access not used here".into(),
            _ => pattern.to_string(),
        };
    }
    // The host both writes and reads: the policy looks at the reads, the reader wants both.
    if pattern.host == H::ReadsBack && host_writes {
        return match pattern.device {
            D::None => "CPU write/read, no GPU use observed".into(),
            D::Reads => "CPU write/read, GPU read".into(),
            D::Writes => "CPU write/read, GPU write".into(),
            D::ReadsWrites => "CPU write/read, GPU write/read".into(),
            D::Unknown => "CPU write/read, GPU access unknown".into(),
        };
    }
    if pattern.host == H::None && pattern.device == D::Unknown {
        return "GPU access unknown, no CPU use observed".into();
    }
    if pattern.host == H::Unknown && pattern.device == D::Unknown {
        return match facts.escapes.first() {
            Some(to) if to.starts_with("the callers") => format!("Unknown (returned to {to})"),
            Some(to) => format!("Unknown (passed to {to})"),
            None => "Unknown".into(),
        };
    }
    pattern.to_string()
}

fn suggestion(decision: Decision, open: bool, no_copy: bool, target: TargetDevice) -> String {
    if no_copy {
        return "Shared (required for no-copy)".into();
    }
    if open {
        return PRIVATE_OR_SHARED.into();
    }
    let mode = match target {
        TargetDevice::AppleSilicon => decision.mode.resolve(Device::Unified),
        TargetDevice::Discrete | TargetDevice::Any => decision.mode,
    };
    mode.name().into()
}

fn reason(
    decision: Decision,
    inline: bool,
    unused: bool,
    unknown: bool,
    facts: &Facts,
    target: TargetDevice,
) -> String {
    if unused {
        return Rule::Unused.reason().into();
    }
    let mut text: String = if unknown {
        "who reads and writes it is out of sight".into()
    } else if decision.rule == Rule::Unused {
        "the device gets it and the host was not seen to touch it".into()
    } else if decision.rule == Rule::HostToDevice && target == TargetDevice::AppleSilicon {
        "the host writes and the device reads; on unified memory managed is shared".into()
    } else {
        decision.rule.reason().into()
    };
    if decision.staged {
        text.push_str("; fill it once by a blit from a staging buffer");
    }
    if inline {
        text.push_str("; better: ");
        text.push_str(Rule::InlineConstant.reason());
    }
    if let Some((kernel, argument)) = facts.bound.first() {
        text.push_str(&format!(" (bound to `{kernel}` as `{argument}`"));
        if facts.bound.len() > 1 {
            text.push_str(&format!(" and {} more", facts.bound.len() - 1));
        }
        text.push(')');
    }
    text
}
