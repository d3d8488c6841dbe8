//! Copies through the contents of buffers: `memcpy`, slices, arrays over mapped memory.

use super::eval::Eval;
use super::value::Value;
use crate::api::touch::Effect;
use crate::ir::{Call, Span};
use crate::rules::Code;

impl<'s> Eval<'_, 's> {
    /// The copy that a touch of a buffer's contents amounts to, if it is one.
    pub(crate) fn contents_copy(
        &mut self,
        call: &Call<'s>,
        effect: Effect,
        value: &Value<'s>,
        span: Span,
    ) {
        let name = call.name.as_ref();
        match effect {
            Effect::HostWrite if value.is_view() && moves_bytes(name) => {
                self.copy(Code::MC014, span).what =
                    Some(format!("`{name}` copies host data into a buffer's contents"));
            }
            // Into another buffer's contents it is one copy, reported as the write.
            Effect::HostRead
                if value.is_view()
                    && moves_bytes(name)
                    && !self.out.copies.iter().any(|c| c.rule == Code::MC014 && c.span == span) =>
            {
                self.copy(Code::MC010, span).what =
                    Some(format!("`{name}` copies a buffer's contents"));
            }
            Effect::HostWriteDirect if name == "write_buffer" => {
                let copy = self.copy(Code::MC014, span);
                copy.what = Some("`write_buffer` copies host data through a staging buffer".into());
            }
            Effect::DeviceRead if is_buffer_blit(name) && value.has_place() => {
                self.copy(Code::MC015, span).direction =
                    Some(crate::report::Direction::DeviceToDevice);
                self.copy(Code::MC015, span).what =
                    Some("a blit copies one buffer into another".into());
            }
            _ => {}
        }
    }

    /// `np.frombuffer(buffer.contents()…)`, `slice::from_raw_parts(buffer.contents()…)`.
    pub(crate) fn array_over_contents(&mut self, call: &Call<'s>, span: Span) {
        let name = call.name.as_ref();
        if name == "from_raw_parts_mut" || name == "UnsafeMutableBufferPointer" {
            return;
        }
        self.copy(Code::MC009, span).what =
            Some(format!("`{name}` reads a buffer's contents on the CPU"));
    }

    /// A wait for the device.
    pub(crate) fn wait_call(&mut self, call: &Call<'s>, span: Span) -> bool {
        match call.name.as_ref() {
            "waitUntilCompleted" | "wait_until_completed" => {
                let commits = self.commits;
                let copy = self.copy(Code::MC016, span);
                if !commits {
                    copy.what = Some("the CPU waits for what was submitted".into());
                    copy.avoidable = Some(false);
                }
                true
            }
            "commit" | "commitAndContinue" => {
                self.commits = true;
                false
            }
            "waitUntilScheduled" | "wait_until_scheduled" => true,
            _ => false,
        }
    }
}

/// Calls that copy bytes, as opposed to storing a value.
fn moves_bytes(name: &str) -> bool {
    matches!(
        name,
        "memcpy"
            | "memmove"
            | "memcpy_s"
            | "bcopy"
            | "copyto"
            | "copyMemory"
            | "copyBytes"
            | "getBytes_length"
            | "getBytes_range"
            | "getBytes"
            | "dataWithBytes_length"
            | "initWithBytes_length"
            | "copy_from_slice"
            | "clone_from_slice"
            | "copy_nonoverlapping"
            | "copy"
            | "copy_to"
            | "copy_to_nonoverlapping"
            | "copy_from"
            | "copy_from_nonoverlapping"
            | "to_vec"
            | "to_owned"
            | "into_vec"
            | "copy_n"
            | "readinto"
            | "update"
            | "initializeMemory"
            | "initialize"
            | "assign"
            | "to_bytes"
    )
}

fn is_buffer_blit(name: &str) -> bool {
    matches!(
        name,
        "copyFromBuffer_sourceOffset_toBuffer_destinationOffset_size"
            | "copyFromBuffer"
            | "copy_from_buffer"
            | "copy"
            | "copy_buffer_to_buffer"
    )
}
