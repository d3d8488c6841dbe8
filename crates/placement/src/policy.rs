//! The one table from access pattern to storage mode.

use crate::{AccessPattern, DeviceAccess, HostAccess, StorageMode};

/// The most bytes that can be bound inline with a dispatch.
///
/// Metal's `setBytes:length:atIndex:` takes less than 4 KiB of one-off data (Metal API
/// reference, `MTLComputeCommandEncoder`); CUDA's kernel arguments hold 4 KiB on every
/// architecture (CUDA C++ Programming Guide, "Kernel parameters").
pub const INLINE_LIMIT: u64 = 4096;

/// The row of the table that decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// Aliases host memory without a copy.
    NoCopy,
    /// A small constant of one dispatch.
    InlineConstant,
    /// Nobody was seen to use it.
    Unused,
    /// The device alone uses it.
    DeviceOnly,
    /// The device writes it and nobody reads it back.
    NeverReadBack,
    /// The host writes, the device reads.
    HostToDevice,
    /// The host reads what the device wrote.
    ReadBack,
    /// The host's access is not known.
    HostUnknown,
}

impl Rule {
    /// The reason in one sentence, as an audit prints it.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::NoCopy => "aliases host memory without a copy, which only shared memory can do",
            Self::InlineConstant => {
                "a small constant of one dispatch: bind it with the command, make no buffer"
            }
            Self::Unused => "no use observed: remove it, or private if only the device uses it",
            Self::DeviceOnly => "only the device uses it",
            Self::NeverReadBack => "the device writes it and the host never reads it back",
            Self::HostToDevice => {
                "the host writes and the device reads: mark the written range with did_modify"
            }
            Self::ReadBack => "the host reads back what the device writes",
            Self::HostUnknown => "the host's access is not known, so it must stay reachable",
        }
    }
}

/// What the policy decided, and by which row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Decision {
    /// Where the buffer belongs.
    pub mode: StorageMode,
    /// The row of the table that says so.
    pub rule: Rule,
    /// It starts with host data but belongs to the device: fill it by a blit from a staging buffer.
    pub staged: bool,
}

/// Maps an access pattern to a storage mode. `bytes` is the buffer's size where known.
///
/// | access pattern | mode |
/// |---|---|
/// | aliases host memory | `Shared` |
/// | host-written constant of one dispatch, at most [`INLINE_LIMIT`] bytes | `Inline` |
/// | host reads back | `Shared` |
/// | host writes, device reads | `Managed` |
/// | host writes each step, device writes too | `Shared` |
/// | device only; device writes and the host never reads | `Private` |
/// | unused | `Private` |
/// | host unknown | `Shared` |
pub const fn policy(pattern: &AccessPattern, bytes: Option<u64>) -> Decision {
    use DeviceAccess as D;
    use HostAccess as H;
    if pattern.aliases_host {
        return Decision { mode: StorageMode::Shared, rule: Rule::NoCopy, staged: false };
    }
    let small = matches!(bytes, Some(n) if n <= INLINE_LIMIT);
    let host_writes = matches!(pattern.host, H::WritesOnce | H::WritesEachStep);
    if pattern.constant && small && host_writes && matches!(pattern.device, D::Reads) {
        return Decision { mode: StorageMode::Inline, rule: Rule::InlineConstant, staged: false };
    }
    let (mode, rule) = match (pattern.host, pattern.device) {
        (H::ReadsBack, _) => (StorageMode::Shared, Rule::ReadBack),
        (H::WritesOnce | H::WritesEachStep, D::Reads | D::Unknown | D::None) => {
            (StorageMode::Managed, Rule::HostToDevice)
        }
        // Filled once and then the device's: as good as device-only.
        (H::WritesOnce, D::Writes | D::ReadsWrites) => (StorageMode::Private, Rule::DeviceOnly),
        (H::WritesEachStep, D::Writes | D::ReadsWrites) => {
            (StorageMode::Shared, Rule::HostToDevice)
        }
        (H::None, D::Writes) => (StorageMode::Private, Rule::NeverReadBack),
        (H::None, D::Reads | D::ReadsWrites) => (StorageMode::Private, Rule::DeviceOnly),
        (H::None | H::Unknown, D::None) | (H::None, D::Unknown) => {
            (StorageMode::Private, Rule::Unused)
        }
        (H::Unknown, _) => (StorageMode::Shared, Rule::HostUnknown),
    };
    let from_host = pattern.initial_data || matches!(pattern.host, H::WritesOnce);
    Decision { mode, rule, staged: from_host && matches!(mode, StorageMode::Private) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;

    fn mode(host: HostAccess, device: DeviceAccess) -> StorageMode {
        policy(&AccessPattern::new(host, device), Some(1 << 20)).mode
    }

    #[test]
    fn every_row_of_the_table() {
        use DeviceAccess as D;
        use HostAccess as H;
        let rows = [
            (H::None, D::ReadsWrites, StorageMode::Private),
            (H::None, D::Reads, StorageMode::Private),
            (H::None, D::Writes, StorageMode::Private),
            (H::WritesOnce, D::Reads, StorageMode::Managed),
            (H::WritesEachStep, D::Reads, StorageMode::Managed),
            (H::WritesEachStep, D::ReadsWrites, StorageMode::Shared),
            (H::WritesOnce, D::ReadsWrites, StorageMode::Private),
            (H::ReadsBack, D::Writes, StorageMode::Shared),
            (H::ReadsBack, D::ReadsWrites, StorageMode::Shared),
            (H::None, D::None, StorageMode::Private),
            (H::Unknown, D::Unknown, StorageMode::Shared),
            (H::Unknown, D::Reads, StorageMode::Shared),
        ];
        for (host, device, expected) in rows {
            assert_eq!(mode(host, device), expected, "{host:?} / {device:?}");
        }
    }

    #[test]
    fn aliased_memory_is_shared_whatever_else_is_true() {
        for host in [HostAccess::None, HostAccess::WritesOnce, HostAccess::ReadsBack] {
            for device in [DeviceAccess::Reads, DeviceAccess::ReadsWrites, DeviceAccess::Unknown] {
                let pattern = AccessPattern::new(host, device).aliasing_host().constant();
                assert_eq!(policy(&pattern, Some(4)).mode, StorageMode::Shared);
            }
        }
    }

    #[test]
    fn a_constant_is_inline_up_to_the_limit_and_managed_past_it() {
        let constant = AccessPattern::new(HostAccess::WritesOnce, DeviceAccess::Reads).constant();
        assert_eq!(policy(&constant, Some(INLINE_LIMIT)).mode, StorageMode::Inline);
        assert_eq!(policy(&constant, Some(INLINE_LIMIT + 1)).mode, StorageMode::Managed);
        assert_eq!(policy(&constant, None).mode, StorageMode::Managed);
    }

    #[test]
    fn private_memory_that_starts_with_host_data_is_staged() {
        let weights = AccessPattern::new(HostAccess::None, DeviceAccess::Reads);
        assert!(!policy(&weights, None).staged);
        assert!(policy(&weights.with_initial_data(), None).staged);
        let read_back = AccessPattern::READ_BACK.with_initial_data();
        assert!(!policy(&read_back, None).staged);
    }

    #[test]
    fn managed_is_shared_where_memory_is_one() {
        assert_eq!(StorageMode::Managed.resolve(Device::Unified), StorageMode::Shared);
        assert_eq!(StorageMode::Managed.resolve(Device::Discrete), StorageMode::Managed);
        assert_eq!(StorageMode::Private.resolve(Device::Unified), StorageMode::Private);
    }
}
