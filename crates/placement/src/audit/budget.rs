//! How much a run may spend, and what it did.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::copies::{CopyKind, EventKind};
use super::{CallSite, RunAudit};
use crate::{Device, Direction, Phase};

/// The most that is allowed: one number, or one for each kind of memory. In a file `4`, or
/// `{ unified = 0, discrete = 1 }`, of which either may be left out.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Limit {
    /// Where device and host share memory; `None` allows anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unified: Option<f64>,
    /// Where the device has memory of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discrete: Option<f64>,
}

impl Limit {
    /// The same for all devices.
    pub const fn of(most: f64) -> Self {
        Self { unified: Some(most), discrete: Some(most) }
    }

    /// What a device with this memory may spend.
    pub const fn on(self, memory: Device) -> Option<f64> {
        match memory {
            Device::Unified => self.unified,
            Device::Discrete => self.discrete,
        }
    }
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct LimitVisitor;

        fn checked<E: de::Error>(most: f64) -> Result<f64, E> {
            if most.is_finite() && most >= 0.0 {
                Ok(most)
            } else {
                Err(E::invalid_value(de::Unexpected::Float(most), &"a number of 0 or more"))
            }
        }

        /// A number inside the table.
        struct Most(f64);

        impl<'de> Deserialize<'de> for Most {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                f64::deserialize(deserializer).and_then(checked).map(Self)
            }
        }

        impl<'de> Visitor<'de> for LimitVisitor {
            type Value = Limit;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of 0 or more, or { unified = …, discrete = … }")
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Limit, E> {
                checked(value as f64).map(Limit::of)
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Limit, E> {
                checked(value as f64).map(Limit::of)
            }

            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Limit, E> {
                checked(value).map(Limit::of)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Limit, A::Error> {
                let mut limit = Limit { unified: None, discrete: None };
                while let Some(key) = map.next_key::<String>()? {
                    let most = match key.as_str() {
                        "unified" => &mut limit.unified,
                        "discrete" => &mut limit.discrete,
                        other => {
                            return Err(de::Error::unknown_field(other, &["unified", "discrete"]));
                        }
                    };
                    *most = Some(map.next_value::<Most>()?.0);
                }
                Ok(limit)
            }
        }

        deserializer.deserialize_any(LimitVisitor)
    }
}

/// Limits of the copies in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CopyLimits {
    /// Copies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<Limit>,
    /// Bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<Limit>,
    /// Copies for each token of each sequence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count_per_token: Option<Limit>,
    /// Bytes for each token of each sequence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_token: Option<Limit>,
}

/// Limits of the copies in one direction while loading, which makes no tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoadCopyLimits {
    /// Copies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<Limit>,
    /// Bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<Limit>,
}

impl From<LoadCopyLimits> for CopyLimits {
    fn from(LoadCopyLimits { count, bytes }: LoadCopyLimits) -> Self {
        Self { count, bytes, ..Self::default() }
    }
}

/// Limits while loading.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoadBudget {
    /// Buffers made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allocations: Option<Limit>,
    /// Their bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allocated_bytes: Option<Limit>,
    /// Copies by direction.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub copies: BTreeMap<Direction, LoadCopyLimits>,
}

/// Limits of the steps of prompts, or of those that decode.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StepBudget {
    /// Buffers made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allocations: Option<Limit>,
    /// Their bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allocated_bytes: Option<Limit>,
    /// Submissions of a step, which makes one token of every sequence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub submissions_per_token: Option<Limit>,
    /// Waits of a step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waits_per_token: Option<Limit>,
    /// Dispatches of a step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dispatches_per_token: Option<Limit>,
    /// Copies by direction.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub copies: BTreeMap<Direction, CopyLimits>,
}

/// How much a run may spend. What is left out is not limited.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Budget {
    /// How often each byte of the weights may be uploaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_copies: Option<Limit>,
    /// Constants of a dispatch that become buffers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameter_buffers: Option<Limit>,
    /// Bytes that the host gets for each sampled token of each sequence, by copies and in place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_back_bytes_per_token: Option<Limit>,
    /// While loading.
    pub load: LoadBudget,
    /// Steps of prompts.
    pub prefill: StepBudget,
    /// Steps that decode.
    pub decode: StepBudget,
}

/// Something that counted towards a limit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spent {
    /// The line.
    pub site: CallSite,
    /// The buffer, kernel or reason.
    pub what: String,
    /// How much, in the limit's unit.
    pub amount: f64,
}

/// One limit, and what was found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BudgetLine {
    /// The limit as it is written in a file, `decode.allocations`.
    pub limit: String,
    /// The most that is allowed.
    pub allowed: f64,
    /// What was found; `None` where nothing happened that it could be measured on.
    pub found: Option<f64>,
    /// Whether it is more.
    pub exceeded: bool,
    /// The lines that spent it, the greatest first.
    pub spent: Vec<Spent>,
}

impl fmt::Display for BudgetLine {
    /// One line, and a further one for each of those that spent it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(found) = self.found else {
            return write!(f, "{}: not measured, at most {}", self.limit, Amount(self.allowed));
        };
        write!(f, "{}: {}, at most {}", self.limit, Amount(found), Amount(self.allowed))?;
        if self.exceeded {
            for spent in &self.spent {
                write!(f, "\n  {}: {} {}", spent.site, Amount(spent.amount), spent.what)?;
            }
        }
        Ok(())
    }
}

/// A number with at most three decimals.
struct Amount(f64);

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{:.3}", self.0);
        f.write_str(text.trim_end_matches('0').trim_end_matches('.'))
    }
}

impl Budget {
    /// The budgets that this project holds itself to:
    ///
    /// * weights are adopted where memory is shared, and uploaded once where it is not;
    /// * no parameter of a dispatch is a buffer;
    /// * decoding allocates nothing, copies nothing within host or device memory, is one submission
    ///   a token, and the host gets the 4 bytes of each sampled token.
    pub fn design() -> Self {
        let none = CopyLimits { bytes: Some(Limit::of(0.0)), ..CopyLimits::default() };
        let uploads = Limit { unified: Some(0.0), discrete: None };
        Self {
            weight_copies: Some(Limit { unified: Some(0.0), discrete: Some(1.0) }),
            parameter_buffers: Some(Limit::of(0.0)),
            read_back_bytes_per_token: Some(Limit::of(4.0)),
            decode: StepBudget {
                allocations: Some(Limit::of(0.0)),
                submissions_per_token: Some(Limit::of(1.0)),
                copies: BTreeMap::from([
                    (
                        Direction::HostToDevice,
                        CopyLimits { bytes: Some(uploads), ..CopyLimits::default() },
                    ),
                    (Direction::HostToHost, none),
                    (Direction::DeviceToDevice, none),
                ]),
                ..StepBudget::default()
            },
            ..Self::default()
        }
    }

    /// Holds `audit` against every limit, in the order of a file.
    pub fn check(&self, audit: &RunAudit) -> Vec<BudgetLine> {
        let mut check = Check { audit, lines: Vec::new() };
        check.run(self);
        let load = &self.load;
        let copies = load.copies.iter().map(|(&direction, &limits)| (direction, limits.into()));
        check.phase(Phase::Load, load.allocations, load.allocated_bytes, &copies.collect());
        for (phase, step) in [(Phase::Prefill, &self.prefill), (Phase::Decode, &self.decode)] {
            check.phase(phase, step.allocations, step.allocated_bytes, &step.copies);
            for (limit, name, kind) in [
                (step.submissions_per_token, "submissions_per_token", EventKind::Submission),
                (step.waits_per_token, "waits_per_token", EventKind::Wait),
                (step.dispatches_per_token, "dispatches_per_token", EventKind::Dispatch),
            ] {
                check.events(phase, limit, name, kind);
            }
        }
        check.lines
    }
}

struct Check<'a> {
    audit: &'a RunAudit,
    lines: Vec<BudgetLine>,
}

impl Check<'_> {
    /// Adds a line; `unit` divides what was spent.
    fn line(
        &mut self,
        limit: Option<Limit>,
        name: String,
        unit: Option<u64>,
        mut spent: Vec<Spent>,
    ) {
        let Some(allowed) = limit.and_then(|limit| limit.on(self.audit.memory)) else { return };
        let unit = unit.filter(|&n| n > 0).map(|n| n as f64);
        let found = unit.map(|unit| {
            spent.iter_mut().for_each(|s| s.amount /= unit);
            // Not `sum`, which begins at -0.
            spent.iter().fold(0.0, |sum, s| sum + s.amount)
        });
        spent.retain(|s| s.amount > 0.0);
        spent.sort_by(|a, b| b.amount.total_cmp(&a.amount).then_with(|| a.site.cmp(&b.site)));
        // Room for the rounding of sums and quotients.
        let exceeded = found.is_some_and(|found| found > allowed * (1.0 + 1e-9));
        self.lines.push(BudgetLine { limit: name, allowed, found, exceeded, spent });
    }

    fn run(&mut self, budget: &Budget) {
        let (audit, weights) = (self.audit, self.audit.summary.weights);
        let mut spent = self.copies(Phase::Load, Direction::HostToDevice, true);
        // Uploads of other buffers are no copies of weights.
        let all: f64 = spent.iter().map(|s| s.amount).sum();
        let share = if all > 0.0 { weights.uploaded_bytes as f64 / all } else { 0.0 };
        spent.iter_mut().for_each(|s| s.amount *= share);
        self.line(budget.weight_copies, "weight_copies".to_owned(), Some(weights.bytes), spent);

        let spent = audit.buffers.iter().filter(|b| b.constant).map(|b| Spent {
            site: b.site.clone(),
            what: format!("`{}`", b.name),
            amount: b.count as f64,
        });
        let spent = spent.collect();
        self.line(budget.parameter_buffers, "parameter_buffers".to_owned(), Some(1), spent);

        let generated = [Phase::Prefill, Phase::Decode];
        let outputs = generated.iter().map(|&phase| audit.summary.phase(phase).outputs).sum();
        let read = audit
            .copies
            .iter()
            .filter(|c| c.direction == Direction::DeviceToHost && generated.contains(&c.phase));
        let spent = read.map(|c| Spent {
            site: c.site.clone(),
            what: c.reason.clone(),
            amount: c.bytes as f64,
        });
        let spent = spent.collect();
        let name = "read_back_bytes_per_token".to_owned();
        self.line(budget.read_back_bytes_per_token, name, Some(outputs), spent);
    }

    /// What copies of one phase and direction spent, in bytes or by number.
    fn copies(&self, phase: Phase, direction: Direction, bytes: bool) -> Vec<Spent> {
        let rows =
            self.audit.copies.iter().filter(|c| {
                c.phase == phase && c.direction == direction && c.kind == CopyKind::Copy
            });
        rows.map(|c| Spent {
            site: c.site.clone(),
            what: c.reason.clone(),
            amount: if bytes { c.bytes as f64 } else { c.count as f64 },
        })
        .collect()
    }

    fn phase(
        &mut self,
        phase: Phase,
        allocations: Option<Limit>,
        allocated_bytes: Option<Limit>,
        copies: &BTreeMap<Direction, CopyLimits>,
    ) {
        let (audit, name) = (self.audit, phase.name());
        let made = |bytes: bool| -> Vec<Spent> {
            let rows = audit.buffers.iter().filter(|b| b.phase == phase);
            rows.map(|b| Spent {
                site: b.site.clone(),
                what: format!("`{}`", b.name),
                amount: if bytes { b.bytes as f64 } else { b.count as f64 },
            })
            .collect()
        };
        self.line(allocations, format!("{name}.allocations"), Some(1), made(false));
        self.line(allocated_bytes, format!("{name}.allocated_bytes"), Some(1), made(true));
        let tokens = audit.summary.phase(phase).tokens;
        for (&direction, limits) in copies {
            let key = match direction {
                Direction::HostToDevice => "host-to-device",
                Direction::DeviceToHost => "device-to-host",
                Direction::HostToHost => "host-to-host",
                Direction::DeviceToDevice => "device-to-device",
            };
            for (limit, what, unit, bytes) in [
                (limits.count, "count", 1, false),
                (limits.bytes, "bytes", 1, true),
                (limits.count_per_token, "count_per_token", tokens, false),
                (limits.bytes_per_token, "bytes_per_token", tokens, true),
            ] {
                let spent = self.copies(phase, direction, bytes);
                self.line(limit, format!("{name}.copies.{key}.{what}"), Some(unit), spent);
            }
        }
    }

    fn events(&mut self, phase: Phase, limit: Option<Limit>, what: &str, kind: EventKind) {
        let rows = self.audit.events.iter().filter(|e| e.phase == phase && e.kind == kind);
        let spent = rows.map(|e| Spent {
            site: e.site.clone(),
            what: e.label.clone(),
            amount: e.count as f64,
        });
        let spent = spent.collect();
        let steps = self.audit.summary.phase(phase).steps;
        self.line(limit, format!("{}.{what}", phase.name()), Some(steps), spent);
    }
}
