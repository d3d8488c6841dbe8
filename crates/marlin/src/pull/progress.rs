//! How a fetch tells its caller what it is doing, and asks whether to go on.

use std::path::Path;
use std::time::Duration;

/// Something that happened during a fetch.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A file begins to arrive.
    Started {
        /// The file's name, for people.
        file: &'a str,
        /// Its size in bytes, if the server said so.
        total: Option<u64>,
        /// Bytes that an earlier attempt left behind and that are not fetched again.
        resumed_at: u64,
    },
    /// More bytes of the current file are on disk.
    Advanced {
        /// Bytes since the previous event.
        bytes: u64,
    },
    /// What had arrived is of no use; the current file begins anew at byte 0.
    Restarted {
        /// Why.
        reason: &'a str,
    },
    /// The connection failed and will be made again.
    Retrying {
        /// The failure.
        reason: &'a str,
        /// The coming attempt's number; the first retry is 2.
        attempt: u32,
        /// How long until then.
        after: Duration,
    },
    /// Another process is fetching the same file; this one waits for it.
    Waiting {
        /// The file's name, for people.
        file: &'a str,
    },
    /// A model file is being taken out of a downloaded archive. [`Event::Advanced`] follow.
    Extracting {
        /// The name inside the archive.
        member: &'a str,
        /// Its size in bytes.
        total: u64,
    },
    /// A file is complete, checked and in its place.
    Finished {
        /// Where it is.
        path: &'a Path,
    },
}

/// Receives [`Event`]s and may end the fetch.
pub trait Progress {
    /// Called on the fetching thread; a slow answer slows the fetch down.
    fn event(&self, event: Event<'_>);

    /// Whether the user wants it to stop. Asked several times a second; what has arrived by then is
    /// kept.
    fn cancelled(&self) -> bool {
        false
    }
}

/// Says nothing, never stops.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn event(&self, _: Event<'_>) {}
}
