//! Live bytes over time.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Category;
use crate::LedgerReport;

/// The most moments that are told apart: more than a screen has columns to draw them in.
const MOMENTS: u64 = 500;

/// Live bytes from a moment on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPoint {
    /// Nanoseconds since the model was opened.
    pub at_ns: u64,
    /// Bytes.
    pub bytes: u64,
}

/// Live bytes of one category over time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemorySeries {
    /// Which.
    pub category: Category,
    /// The most that there was at once.
    pub peak_bytes: u64,
    /// A point for each change; changes close together are one.
    pub points: Vec<MemoryPoint>,
}

pub(super) fn over_time(report: &LedgerReport) -> Vec<MemorySeries> {
    let mut changes: BTreeMap<Category, Vec<(u64, i128)>> = BTreeMap::new();
    for buffer in &report.buffers {
        let changes = changes.entry(Category::of(&buffer.name, &buffer.pattern)).or_default();
        let bytes = i128::from(buffer.bytes);
        changes.push((buffer.made_ns, bytes));
        changes.extend(buffer.freed_ns.map(|at| (at, -bytes)));
    }
    let width = (report.elapsed_ns / MOMENTS).max(1);
    changes.into_iter().map(|(category, changes)| series(category, changes, width)).collect()
}

fn series(category: Category, mut changes: Vec<(u64, i128)>, width: u64) -> MemorySeries {
    // What is freed and made at once was never there together with what took its place.
    changes.sort_unstable();
    let (mut now, mut peak_bytes) = (0_i128, 0);
    let mut points: Vec<MemoryPoint> = Vec::new();
    let mut moment = None;
    for (at_ns, change) in changes {
        now += change;
        let bytes = u64::try_from(now).unwrap_or(0);
        peak_bytes = peak_bytes.max(bytes);
        match points.last_mut() {
            Some(last) if moment == Some(at_ns / width) => last.bytes = bytes,
            _ => points.push(MemoryPoint { at_ns, bytes }),
        }
        moment = Some(at_ns / width);
    }
    MemorySeries { category, peak_bytes, points }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_of_one_moment_are_one_point_and_the_peak_is_kept() {
        let changes = vec![(0, 100), (5, 50), (1000, 7), (1001, -50), (2000, -107)];
        let series = series(Category::Scratch, changes, 10);
        assert_eq!(series.peak_bytes, 157);
        let points: Vec<_> = series.points.iter().map(|p| (p.at_ns, p.bytes)).collect();
        assert_eq!(points, [(0, 150), (1000, 107), (2000, 0)]);
    }
}
