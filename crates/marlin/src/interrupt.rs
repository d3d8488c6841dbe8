//! Ctrl-C while text is generated: the first one ends the text, the second one the program.

use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::CliError;

/// A flag that Ctrl-C raises.
#[derive(Clone)]
pub(crate) struct Interrupt {
    raised: Arc<AtomicBool>,
}

impl Interrupt {
    /// Takes Ctrl-C over from here on; may be called once. Until then Ctrl-C ends the program,
    /// which is right for fetching and loading: they leave nothing half done.
    pub(crate) fn install() -> Result<Self, CliError> {
        let raised = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&raised);
        ctrlc::set_handler(move || {
            if flag.swap(true, Ordering::Relaxed) {
                // Asked twice, and still here.
                process::exit(1);
            }
        })
        .map_err(|error| CliError::failed(format!("cannot handle Ctrl-C: {error}")))?;
        Ok(Self { raised })
    }

    /// The flag itself, for whoever watches it.
    pub(crate) fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.raised)
    }

    /// Whether Ctrl-C was pressed.
    pub(crate) fn is_raised(&self) -> bool {
        self.raised.load(Ordering::Relaxed)
    }

    /// Forgets it, before the next text.
    pub(crate) fn clear(&self) {
        self.raised.store(false, Ordering::Relaxed);
    }
}
