//! The rules, each with a stable code and a page.
//!
//! Codes of the storage family begin with `MS`, those of the copies family with `MC`. A code is
//! never given to another rule. `marlin audit explain CODE` prints the page of a rule.

mod table;

use std::fmt;
use std::str::FromStr;

pub use table::{RULES, Rule};

/// How bad a finding is.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing; nothing needs to change.
    Note,
    /// Costs memory, bandwidth or time.
    Warning,
    /// Wrong: the device or the host may see stale data, or the call fails.
    Error,
}

impl Severity {
    /// The word for it in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// Where a buffer lives.
    Storage,
    /// What moves data, or waits for it.
    Copies,
}

/// A rule's stable code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Code {
    /// Only the device uses it, but it is not private.
    MS001,
    /// The host writes and the device reads, but it is not managed.
    MS002,
    /// A small constant that needs no buffer.
    MS003,
    /// The host reads it back, but it is not shared.
    MS004,
    /// The host touches private memory.
    MS005,
    /// A managed buffer written without `didModifyRange`.
    MS006,
    /// A managed buffer read without a synchronisation.
    MS007,
    /// No-copy memory that is not shared.
    MS008,
    /// A buffer that nobody uses.
    MS009,
    /// Who uses it could not be determined.
    MS010,
    /// `didModifyRange` on a buffer that is not managed.
    MS011,
    /// A write-combined buffer that the host reads.
    MS012,
    /// Managed storage on unified memory.
    MS013,
    /// Constants copied into a new buffer.
    MC001,
    /// Data copied into a new buffer.
    MC002,
    /// A tensor copied to the host.
    MC003,
    /// A tensor seen as a host array.
    MC004,
    /// Single values read back.
    MC005,
    /// A host array made a tensor and sent to the device.
    MC006,
    /// A device tensor made from host data.
    MC007,
    /// A tensor sent to the device.
    MC008,
    /// Buffer contents read by the host.
    MC009,
    /// Buffer contents copied by the host.
    MC010,
    /// A host array serialised into bytes.
    MC011,
    /// A host array copied again.
    MC012,
    /// A device copy before a no-copy binding.
    MC013,
    /// Host data copied into buffer contents.
    MC014,
    /// A staging buffer and a blit.
    MC015,
    /// A wait for every dispatch.
    MC016,
    /// A wait for the whole device.
    MC017,
}

impl Code {
    /// The code as it is written.
    pub fn as_str(self) -> &'static str {
        self.rule().id
    }

    /// The rule.
    pub fn rule(self) -> &'static Rule {
        &RULES[self as usize]
    }

    /// Which family it belongs to.
    pub fn family(self) -> Family {
        if self < Self::MC001 { Family::Storage } else { Family::Copies }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// No rule has this code.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("no rule `{0}`; codes run from MS001 to MS013 and from MC001 to MC017")]
pub struct UnknownCode(pub String);

impl FromStr for Code {
    type Err = UnknownCode;

    fn from_str(text: &str) -> Result<Self, UnknownCode> {
        let upper = text.to_ascii_uppercase();
        RULES
            .iter()
            .find(|r| r.id == upper || r.name.eq_ignore_ascii_case(text))
            .map(|r| r.code)
            .ok_or_else(|| UnknownCode(text.to_string()))
    }
}

impl serde::Serialize for Code {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_names_and_table_agree() {
        for (i, rule) in RULES.iter().enumerate() {
            assert_eq!(rule.code as usize, i);
            assert_eq!(rule.id.parse(), Ok(rule.code));
            assert_eq!(rule.name.parse(), Ok(rule.code));
            assert!(rule.page.starts_with(&format!("# {}: {}", rule.id, rule.name)), "{}", rule.id);
            let prefix = if rule.code.family() == Family::Storage { "MS" } else { "MC" };
            assert!(rule.id.starts_with(prefix));
        }
    }
}
