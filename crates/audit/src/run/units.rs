//! Numbers for people.

use marlin_placement::audit::{AccessRow, BufferRow};
use marlin_placement::{Device, Phase, StorageMode};

/// `12.3 MB`; powers of ten, as disks and models are measured.
pub(super) fn bytes(n: u64) -> String {
    match n as f64 {
        x if x >= 999.5e6 => format!("{:.2} GB", x / 1e9),
        x if x >= 999.5e3 => format!("{:.1} MB", x / 1e6),
        x if x >= 1e4 => format!("{:.1} kB", x / 1e3),
        _ => format!("{n} B"),
    }
}

/// `1.23 ms`
pub(super) fn time(ns: u64) -> String {
    match ns as f64 {
        x if x >= 1e9 => format!("{:.2} s", x / 1e9),
        x if x >= 1e6 => format!("{:.2} ms", x / 1e6),
        x if x >= 1e3 => format!("{:.1} µs", x / 1e3),
        _ => format!("{ns} ns"),
    }
}

/// A number with at most two decimals.
pub(super) fn number(x: f64) -> String {
    let text = format!("{x:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// `1 step`, `2 steps`.
pub(super) fn counted(n: u64, what: &str) -> String {
    let plural = match what.strip_suffix('y') {
        Some(stem) => format!("{stem}ies"),
        None if what.ends_with("ch") => format!("{what}es"),
        None => format!("{what}s"),
    };
    format!("{n} {}", if n == 1 { what } else { &plural })
}

/// `1 submission`, `0.5 submissions`.
pub(super) fn rate(x: f64, what: &str) -> String {
    // Only exactly one is one.
    let of = counted(if x == 1.0 { 1 } else { 2 }, what);
    let (_, words) = of.split_once(' ').unwrap_or_default();
    format!("{} {words}", number(x))
}

/// The mode, and what it amounts to where that is another.
pub(super) fn mode(mode: StorageMode, memory: Device) -> String {
    let resolved = mode.resolve(memory);
    if resolved == mode { mode.to_string() } else { format!("{mode} (here {resolved})") }
}

/// `live`, `freed`, or how many are which.
pub(super) fn lifetime(row: &BufferRow) -> String {
    match row.live {
        0 => "freed".to_owned(),
        n if n == row.count => "live".to_owned(),
        n => format!("{n} of {} live", row.count),
    }
}

/// Who used a buffer and how often: `rms_norm r60 w30 (decode), host r1 (load)`.
pub(super) fn accesses(rows: &[AccessRow]) -> String {
    if rows.is_empty() {
        return "nobody".to_owned();
    }
    let one = |row: &AccessRow| {
        let mut text = row.by.clone();
        for (letter, count) in [('r', row.reads), ('w', row.writes)] {
            if count > 0 {
                text += &format!(" {letter}{count}");
            }
        }
        text
    };
    let by_phase = Phase::ALL.iter().filter_map(|&phase| {
        let texts: Vec<String> = rows.iter().filter(|r| r.phase == phase).map(one).collect();
        (!texts.is_empty()).then(|| format!("{}: {}", phase.name(), texts.join(", ")))
    });
    by_phase.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_as_long_as_they_must_be() {
        assert_eq!([bytes(4), bytes(9999), bytes(92_000_000)], ["4 B", "9999 B", "92.0 MB"]);
        assert_eq!(
            [time(999), time(1500), time(2_345_678), time(3_000_000_000)],
            ["999 ns", "1.5 µs", "2.35 ms", "3.00 s"]
        );
        assert_eq!([number(4.0), number(0.127), number(213.5)], ["4", "0.13", "213.5"]);
        assert_eq!(
            [counted(1, "copy"), counted(2, "copy"), counted(3, "dispatch"), counted(0, "step")],
            ["1 copy", "2 copies", "3 dispatches", "0 steps"]
        );
        assert_eq!([rate(1.0, "wait"), rate(1.5, "wait")], ["1 wait", "1.5 waits"]);
    }
}
