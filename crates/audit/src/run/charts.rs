//! Charts as SVG: the events of a decode step, and memory over time. Drawn with the page's own colours
//! (`--c0` … `--c6`), so that they follow it from light to dark.

use std::fmt::Write;

use marlin_placement::audit::{MemorySeries, StepTimeline, TimelineEvent, TimelineKind};

use super::units::{bytes, time};
use crate::report::escape;

/// Units of a chart's width; the page scales it.
const WIDTH: f64 = 1000.0;
/// Left of the chart's origin: names of rows.
const LEFT: f64 = 130.0;
const LANE: f64 = 26.0;

/// The kinds of events, from the host's to the device's, and the colour of each.
const LANES: [(TimelineKind, usize); 7] = [
    (TimelineKind::HostWrite, 5),
    (TimelineKind::Submission, 0),
    (TimelineKind::Dispatch, 1),
    (TimelineKind::Copy, 3),
    (TimelineKind::DeviceTime, 2),
    (TimelineKind::Wait, 4),
    (TimelineKind::HostRead, 6),
];

/// The step's events, a row for each kind that there is, by time.
pub(super) fn timeline(step: &StepTimeline) -> String {
    let lanes: Vec<(TimelineKind, usize)> = LANES
        .into_iter()
        .filter(|(kind, _)| step.events.iter().any(|event| event.kind == *kind))
        .collect();
    let height = LANE * lanes.len() as f64 + 30.0;
    let mut out = open(
        height,
        &format!(
            "Timeline of a decode step of {}: {} events. The table below has the same.",
            time(step.took_ns),
            step.events.len()
        ),
    );
    let scale = (WIDTH - LEFT) / step.took_ns.max(1) as f64;
    let x = |ns: u64| LEFT + ns as f64 * scale;
    for (row, (kind, color)) in lanes.iter().enumerate() {
        let top = LANE * row as f64;
        let events: Vec<&TimelineEvent> = step.events.iter().filter(|e| e.kind == *kind).collect();
        // Kernels of one submission are counted when it is made: their order is known, their times
        // are not.
        let ordered = *kind == TimelineKind::Dispatch && events.iter().all(|e| e.took_ns.is_none());
        let note = if ordered { " (in order)" } else { "" };
        let _ = write!(
            out,
            "<text x=\"0\" y=\"{:.1}\">{}{note}</text><line x1=\"{LEFT}\" y1=\"{2:.1}\" x2=\"{WIDTH}\" y2=\"{2:.1}\" class=\"grid\"/>",
            top + 17.0,
            kind.name(),
            top + LANE - 1.0
        );
        let part = (WIDTH - LEFT) / events.len().max(1) as f64;
        for (i, event) in events.iter().enumerate() {
            let (left, width) = match event.took_ns {
                _ if ordered => (LEFT + part * i as f64, part * 0.85),
                Some(took) => (x(event.start_ns), took as f64 * scale),
                None => (x(event.start_ns), 0.0),
            };
            // What is shorter than a line is drawn as one.
            let width = width.clamp(1.0, (WIDTH - left).max(1.0));
            let _ = write!(
                out,
                "<rect x=\"{left:.2}\" y=\"{:.1}\" width=\"{width:.2}\" height=\"{:.1}\" fill=\"var(--c{color})\"><title>{}</title></rect>",
                top + 4.0,
                LANE - 9.0,
                escape(&described(event))
            );
        }
    }
    axis(&mut out, height - 8.0, step.took_ns);
    out.push_str("</svg>");
    out
}

/// `linear, 12.3 µs, at 45.6 µs`
fn described(event: &TimelineEvent) -> String {
    let mut text = event.label.clone();
    if let Some(direction) = event.direction {
        text += &format!(", {}", direction.name());
    }
    if event.bytes > 0 {
        text += &format!(", {}", bytes(event.bytes));
    }
    if let Some(took) = event.took_ns {
        text += &format!(", {}", time(took));
    }
    text + &format!(", at {}", time(event.start_ns))
}

/// Live bytes by category over the run, stacked.
pub(super) fn memory(series: &[MemorySeries], elapsed_ns: u64) -> String {
    const HEIGHT: f64 = 220.0;
    let mut moments: Vec<u64> =
        series.iter().flat_map(|s| s.points.iter().map(|p| p.at_ns)).collect();
    moments.push(elapsed_ns);
    moments.sort_unstable();
    moments.dedup();
    let values: Vec<Vec<u64>> = series.iter().map(|s| at_moments(s, &moments)).collect();
    let total = |i: usize| values.iter().map(|v| v[i]).sum::<u64>();
    let most = (0..moments.len()).map(total).max().unwrap_or(0).max(1);
    let mut out = open(
        HEIGHT + 30.0,
        &format!(
            "Memory by category over {}; at most {} at once. The table below has the peaks.",
            time(elapsed_ns),
            bytes(most)
        ),
    );
    let scale = (WIDTH - LEFT) / elapsed_ns.max(1) as f64;
    let y = |n: u64| HEIGHT - n as f64 * (HEIGHT - 10.0) / most as f64;
    let _ = write!(
        out,
        "<text x=\"0\" y=\"14\">{}</text><text x=\"0\" y=\"{HEIGHT}\">0</text><line x1=\"{LEFT}\" y1=\"10\" x2=\"{WIDTH}\" y2=\"10\" class=\"grid\"/>",
        bytes(most)
    );
    let mut below = vec![0; moments.len()];
    for (one, values) in series.iter().zip(&values) {
        let above: Vec<u64> = below.iter().zip(values).map(|(b, v)| b + v).collect();
        // Steps: a value holds until the next moment.
        let mut path = String::new();
        for (i, &moment) in moments.iter().enumerate() {
            let x = LEFT + moment as f64 * scale;
            if i == 0 {
                let _ = write!(path, "M{x:.2} {:.2}", y(above[0]));
            } else {
                let _ = write!(path, "H{x:.2}V{:.2}", y(above[i]));
            }
        }
        for (i, &moment) in moments.iter().enumerate().rev() {
            let x = LEFT + moment as f64 * scale;
            let _ = write!(path, "V{:.2}H{x:.2}", y(below[i]));
        }
        let _ = write!(
            out,
            "<path d=\"{path}Z\" fill=\"var(--c{})\"><title>{}, at most {}</title></path>",
            one.category as usize % 7,
            one.category.name(),
            bytes(one.peak_bytes)
        );
        below = above;
    }
    axis(&mut out, HEIGHT + 22.0, elapsed_ns);
    out.push_str("</svg>");
    out
}

/// A series' values at each of `moments`.
fn at_moments(series: &MemorySeries, moments: &[u64]) -> Vec<u64> {
    let mut points = series.points.iter().peekable();
    let mut now = 0;
    let values = moments.iter().map(|&moment| {
        while let Some(point) = points.next_if(|p| p.at_ns <= moment) {
            now = point.bytes;
        }
        now
    });
    values.collect()
}

fn open(height: f64, description: &str) -> String {
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\" aria-label=\"{}\">",
        escape(description)
    )
}

/// Four times below a chart.
fn axis(out: &mut String, y: f64, whole_ns: u64) {
    for quarter in 0..=4 {
        let x = LEFT + (WIDTH - LEFT) * f64::from(quarter) / 4.0;
        let anchor = match quarter {
            0 => "start",
            4 => "end",
            _ => "middle",
        };
        let ns = (whole_ns as f64 * f64::from(quarter) / 4.0) as u64;
        let _ = write!(
            out,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" class=\"axis\">{}</text>",
            time(ns)
        );
    }
}

#[cfg(test)]
mod tests {
    use marlin_placement::audit::{Category, MemoryPoint};

    use super::*;

    fn series(category: Category, points: &[(u64, u64)]) -> MemorySeries {
        let points = points.iter().map(|&(at_ns, bytes)| MemoryPoint { at_ns, bytes }).collect();
        MemorySeries { category, peak_bytes: 0, points }
    }

    /// The corners of a path of absolute `M`, `H` and `V`.
    fn corners(path: &str) -> Vec<(f64, f64)> {
        let mut at = (0.0, 0.0);
        let mut corners = Vec::new();
        let commands = path.trim_end_matches('Z').split_inclusive(|c: char| "MHV".contains(c));
        let mut command = 'M';
        for part in commands {
            let (numbers, next) = match part.strip_suffix(['M', 'H', 'V']) {
                Some(numbers) => (numbers, part.chars().last().unwrap()),
                None => (part, 'Z'),
            };
            let numbers: Vec<f64> =
                numbers.split_whitespace().map(|n| n.parse().unwrap()).collect();
            match (command, numbers.as_slice()) {
                ('M', &[x, y]) => at = (x, y),
                ('H', &[x]) => at.0 = x,
                ('V', &[y]) => at.1 = y,
                (_, &[]) => {}
                other => panic!("{other:?} in {path}"),
            }
            if !numbers.is_empty() {
                corners.push(at);
            }
            command = next;
        }
        corners
    }

    #[test]
    fn memory_is_stacked_in_steps() {
        // Twice as much from the middle on, half of it on top of the other.
        let below = series(Category::Weights, &[(0, 100)]);
        let above = series(Category::KvCache, &[(50, 100)]);
        let svg = memory(&[below, above], 100);
        let paths: Vec<&str> =
            svg.split("<path d=\"").skip(1).filter_map(|s| s.split('"').next()).collect();
        let [weights, cache] = paths[..] else { panic!("two paths in {svg}") };
        let middle = LEFT + (WIDTH - LEFT) / 2.0;
        let (top, half, floor) = (10.0, 115.0, 220.0);
        let area = |path| {
            // The shoelace formula over the closed outline.
            let corners = corners(path);
            let next = corners.iter().cycle().skip(1);
            let doubled: f64 = corners.iter().zip(next).map(|(a, b)| a.0 * b.1 - b.0 * a.1).sum();
            (doubled / 2.0).abs()
        };
        assert!((area(weights) - (WIDTH - LEFT) * (floor - half)).abs() < 1.0, "{weights}");
        assert!((area(cache) - (WIDTH - middle) * (half - top)).abs() < 1.0, "{cache}");
    }
}
