//! Progress on standard error: bars when it is a terminal, nothing when it is not.

use std::cell::RefCell;
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use metal_marlin::pull::{Event, Progress};

use crate::output::{bytes, one_line};

/// Shows a download. `indicatif` hides its bars by itself when standard error is not a terminal.
#[derive(Default)]
pub(crate) struct DownloadBar {
    bar: RefCell<Option<ProgressBar>>,
}

impl DownloadBar {
    fn begin(&self, name: &str, total: Option<u64>, at: u64) {
        let bar = match total {
            Some(total) => ProgressBar::new(total).with_style(style(
                "{msg} {wide_bar:.cyan/dim} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta}",
            )),
            None => ProgressBar::new_spinner()
                .with_style(style("{msg} {spinner} {decimal_bytes} {decimal_bytes_per_sec}")),
        };
        bar.set_message(one_line(name).into_owned());
        bar.set_position(at);
        // The speed is that of this run, not of what an earlier one left.
        bar.reset_eta();
        self.replace(Some(bar));
    }

    fn replace(&self, bar: Option<ProgressBar>) {
        if let Some(old) = self.bar.replace(bar) {
            old.finish_and_clear();
        }
    }

    /// A line above the bar.
    fn say(&self, text: &str) {
        match self.bar.borrow().as_ref() {
            Some(bar) => bar.println(one_line(text)),
            None => {
                let bar = ProgressBar::new_spinner();
                bar.println(one_line(text));
                bar.finish_and_clear();
            }
        }
    }
}

impl Progress for DownloadBar {
    fn event(&self, event: Event<'_>) {
        match event {
            Event::Started { file, total, resumed_at } => {
                if resumed_at > 0 {
                    self.say(&format!("{file}: continuing after {}", bytes(resumed_at)));
                }
                self.begin(file, total, resumed_at);
            }
            Event::Advanced { bytes } => {
                if let Some(bar) = self.bar.borrow().as_ref() {
                    bar.inc(bytes);
                }
            }
            Event::Restarted { reason } => {
                self.say(&format!("{reason}: fetching the file anew"));
                if let Some(bar) = self.bar.borrow().as_ref() {
                    bar.set_position(0);
                    bar.reset_eta();
                }
            }
            Event::Retrying { reason, attempt, after } => {
                self.say(&format!("{reason}: attempt {attempt} in {:.1} s", after.as_secs_f64()));
            }
            Event::Waiting { file } => {
                let bar = ProgressBar::new_spinner();
                bar.set_message(format!(
                    "another process is fetching {}; waiting for it",
                    one_line(file)
                ));
                bar.enable_steady_tick(Duration::from_millis(200));
                self.replace(Some(bar));
            }
            Event::Extracting { member, total } => {
                let name = member.rsplit('/').next().unwrap_or(member);
                self.begin(&format!("unpacking {name}"), Some(total), 0);
            }
            Event::Finished { .. } => self.replace(None),
            _ => {}
        }
    }
}

impl Drop for DownloadBar {
    fn drop(&mut self) {
        self.replace(None);
    }
}

/// Shows how much of a model is loaded, once that takes long enough to be noticed.
pub(crate) struct LoadBar {
    name: String,
    since: Instant,
    bar: Option<ProgressBar>,
}

impl LoadBar {
    pub(crate) fn new(path: &Path) -> Self {
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
        Self { name: format!("loading {}", one_line(&name)), since: Instant::now(), bar: None }
    }

    /// `done` of `total` bytes.
    pub(crate) fn show(&mut self, done: u64, total: u64) {
        if self.bar.is_none() && self.since.elapsed() < Duration::from_millis(300) {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let style = style("{msg} {wide_bar:.cyan/dim} {decimal_bytes}/{decimal_total_bytes}");
            ProgressBar::new(total).with_style(style).with_message(self.name.clone())
        });
        bar.set_position(done);
    }
}

impl Drop for LoadBar {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Counts bytes of a known number.
pub(crate) fn byte_bar(what: &str, total: u64) -> ProgressBar {
    ProgressBar::new(total)
        .with_style(style("{msg} {wide_bar:.cyan/dim} {decimal_bytes}/{decimal_total_bytes} {eta}"))
        .with_message(what.to_owned())
}

/// Counts steps of a known number, for `bench` and `perplexity`.
pub(crate) fn steps(what: &str, total: u64) -> ProgressBar {
    ProgressBar::new(total)
        .with_style(style("{msg} {wide_bar:.cyan/dim} {pos}/{len} {eta}"))
        .with_message(what.to_owned())
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("a constant template")
}
