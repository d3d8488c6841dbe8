//! Writing to the terminal and to pipes.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;

use serde::Serialize;

use crate::error::CliError;

/// Writes `text` to standard output, as it is, and makes sure that it is out.
pub(crate) fn print(text: &str) -> Result<(), CliError> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(CliError::output)
}

/// Writes `value` to standard output as indented JSON.
pub(crate) fn print_json(value: &impl Serialize) -> Result<(), CliError> {
    let text = serde_json::to_string_pretty(value).map_err(|error| {
        CliError::failed(format!("the result cannot be written as JSON: {error}"))
    })?;
    print(&(text + "\n"))
}

/// Writes an answer to standard output as it comes.
///
/// A pipe or file gets the text as it is. A terminal gets it with a line break at the end, and
/// without the control characters by which a text could take the terminal over.
pub(crate) struct AnswerWriter {
    terminal: bool,
    /// Whether the answer must end in a line break.
    whole_lines: bool,
    ends_line: bool,
    failure: Option<CliError>,
}

impl AnswerWriter {
    pub(crate) fn new() -> Self {
        let terminal = io::stdout().is_terminal();
        Self { terminal, whole_lines: terminal, ends_line: true, failure: None }
    }

    /// For one of several answers: each ends in a line break, also in a pipe.
    pub(crate) fn for_conversation() -> Self {
        Self { whole_lines: true, ..Self::new() }
    }

    /// Writes a piece; breaks when nobody can receive it any more.
    pub(crate) fn write(&mut self, text: &str) -> ControlFlow<()> {
        let shown = if self.terminal { printable(text) } else { Cow::Borrowed(text) };
        self.ends_line = shown.ends_with('\n');
        match print(&shown) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                self.failure = Some(error);
                ControlFlow::Break(())
            }
        }
    }

    /// Ends the answer.
    pub(crate) fn finish(self) -> Result<(), CliError> {
        match self.failure {
            Some(failure) => Err(failure),
            None if self.whole_lines && !self.ends_line => print("\n"),
            None => Ok(()),
        }
    }
}

/// `text` without control characters other than line breaks and tabs.
fn printable(text: &str) -> Cow<'_, str> {
    let harmful = |c: char| c.is_control() && !"\n\t".contains(c);
    if text.contains(harmful) {
        Cow::Owned(text.replace(harmful, "\u{fffd}"))
    } else {
        Cow::Borrowed(text)
    }
}

/// Writes a piece of an answer to standard error, for commands whose output is something else. What
/// cannot be written there is lost.
pub(crate) fn aside(text: &str) {
    let mut stderr = io::stderr().lock();
    let shown = if stderr.is_terminal() { printable(text) } else { Cow::Borrowed(text) };
    let _ = stderr.write_all(shown.as_bytes());
}

/// Writes a line to standard error. What cannot be written there is lost: there is no third place.
pub(crate) fn note(text: &str) {
    let _ = io::stderr().write_all(format!("{}\n", one_line(text)).as_bytes());
}

/// `text` with every control character made visible: file names and what is in files may hold line
/// breaks and terminal commands.
pub(crate) fn one_line(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    let escaped = text.chars().flat_map(|c| {
        let (plain, escaped) =
            if c.is_control() { (None, Some(c.escape_default())) } else { (Some(c), None) };
        plain.into_iter().chain(escaped.into_iter().flatten())
    });
    Cow::Owned(escaped.collect())
}

/// A number of bytes for people: `98.4 MB`, in powers of 1000 as disks and networks are sold.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if count < 1000 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_made_visible() {
        assert_eq!(one_line("a\nb\x1b[2Jc\u{9b}é"), r"a\nb\u{1b}[2Jc\u{9b}é");
        assert!(matches!(one_line("plain é"), Cow::Borrowed(_)));
    }

    #[test]
    fn a_terminal_is_not_taken_over() {
        assert_eq!(printable("a\tb\nc"), "a\tb\nc");
        assert_eq!(printable("\x1b]0;title\x07"), "\u{fffd}]0;title\u{fffd}");
    }

    #[test]
    fn bytes_are_rounded_to_the_unit_that_fits() {
        for (count, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (98_362_432, "98.4 MB"),
            (999_990_000, "1.0 GB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }
}
