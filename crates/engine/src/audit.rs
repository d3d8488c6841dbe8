//! What a session's run amounts to: its buffers, its copies, what a token cost.

use marlin_placement::audit::{RunAudit, RunFacts};

use crate::{Model, Session};

/// For each source file its functions: first line, last line, name. A function inside another comes
/// after it.
type FunctionTable = &'static [(&'static str, &'static [(u32, u32, &'static str)])];

/// Made by the build script.
const FUNCTIONS: FunctionTable = include!(concat!(env!("OUT_DIR"), "/functions.rs"));

/// The innermost function at a line of a file, whose path begins at the repository's root.
fn function_at(module: &str, line: u32) -> Option<String> {
    let (_, functions) = FUNCTIONS.iter().find(|(file, _)| *file == module)?;
    let inside = functions.iter().filter(|(first, last, _)| (*first..=*last).contains(&line));
    inside.min_by_key(|(first, last, _)| last - first).map(|(_, _, name)| (*name).to_owned())
}

impl Session {
    /// The audit of everything that was counted since the model was opened, this session's and
    /// other sessions' runs alike: each buffer with its mode, its observed use and the mode that the policy gives
    /// for it, each copy with its direction, size and whether it could be avoided. Hold it against a
    /// [`Budget`](marlin_placement::audit::Budget).
    ///
    /// One decode step is in it event by event if `session.model().ledger().trace_next_step()` was
    /// called before.
    pub fn audit(&self) -> RunAudit {
        let options = self.options();
        audit_of(self.model(), options.ctx as u64, options.max_sequences as u64)
    }
}

impl Model {
    /// As [`Session::audit`], without a session's own sizes.
    pub fn audit(&self) -> RunAudit {
        audit_of(self, 0, 0)
    }
}

fn audit_of(model: &Model, context: u64, sequences: u64) -> RunAudit {
    let run = RunFacts {
        model: model.source().name().to_owned(),
        device: model.device().to_owned(),
        device_description: model.device_description(),
        context,
        sequences,
    };
    RunAudit::new(&model.ledger().report(), run, &function_at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_in_the_innermost_function_around_it() {
        let line = line!();
        let name = function_at("crates/engine/src/audit.rs", line);
        let expected = "a_line_is_in_the_innermost_function_around_it";
        assert_eq!(name.as_deref(), Some(expected));
        assert_eq!(function_at("crates/engine/src/audit.rs", 1), None);
        assert_eq!(function_at("crates/engine/src/nothing.rs", line), None);
        let methods: Vec<_> = FUNCTIONS.iter().flat_map(|(_, f)| *f).map(|f| f.2).collect();
        assert!(methods.contains(&"Session::generate"), "methods are named with their type");
    }
}
