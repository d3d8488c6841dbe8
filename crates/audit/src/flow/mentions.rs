//! Whether a buffer that the analysis saw no use of is mentioned all the same.
//!
//! The analysis follows what it understands. Before a buffer is called unused, its name is looked
//! for in the text: a variable in its function, a field or global in every file.

use super::project::Project;
use super::summary::Site;

/// Whether the name of a buffer, or of a field that holds it, stands anywhere but where it is
/// declared or assigned.
pub(super) fn mentioned(project: &Project<'_>, holders: &[&str], site: &Site<'_>) -> bool {
    if !holders.is_empty() {
        return holders.iter().any(|name| {
            let name = name.trim_start_matches('_');
            project.files.iter().any(|file| uses(file.source, name) > 0)
        });
    }
    let Some(name) = site.name.as_deref() else { return true };
    let name = name.split('[').next().unwrap_or(name);
    let (source, function) = project.function(site.function);
    let span = function.span;
    let text = source.source.get(span.start as usize..span.end as usize).unwrap_or("");
    uses(text, name) > 0
}

/// How often `name` stands in `text` other than as the target of an assignment or in a declaration.
fn uses(text: &str, name: &str) -> usize {
    if name.is_empty() {
        return 0;
    }
    let bytes = text.as_bytes();
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    text.match_indices(name)
        .filter(|(at, _)| {
            let before = bytes[..*at].last().copied();
            let after = bytes.get(at + name.len()).copied();
            // `_buffer` is the instance variable of the property `buffer`.
            let starts = before.is_none_or(|b| {
                !is_word(b) || b == b'_' && at.checked_sub(2).is_none_or(|i| !is_word(bytes[i]))
            });
            starts && after.is_none_or(|b| !is_word(b))
        })
        .filter(|(at, _)| !is_target(text, *at, at + name.len()) && !in_comment(text, *at))
        .count()
}

fn is_target(text: &str, start: usize, end: usize) -> bool {
    let rest = text[end..].trim_start_matches(['!', '?']).trim_start();
    let assigned = rest.starts_with('=') && !rest.starts_with("==");
    let annotated = rest.starts_with(':') && !rest.starts_with("::");
    // `id<MTLBuffer> buffer;`, `MTL::Buffer* buffer;`: a type before the name.
    let before = text[..start].trim_end_matches('_').trim_end();
    let after_type = before.ends_with(['>', '*', '&']) && !before.ends_with("->")
        || before.ends_with(|c: char| c.is_alphanumeric());
    let declared = rest.starts_with(';') && after_type && !before.ends_with("return")
        || rest.starts_with(',') && before.ends_with(['*', '>']) && !before.ends_with("->");
    assigned || annotated || declared
}

fn in_comment(text: &str, at: usize) -> bool {
    let line_start = text[..at].rfind('\n').map_or(0, |n| n + 1);
    let before = text[line_start..at].trim_start();
    before.starts_with('#') || before.contains("//") || before.starts_with('*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assignments_and_declarations_are_no_uses() {
        assert_eq!(uses("self._a = make()", "a"), 0);
        assert_eq!(uses("self._a: Buffer = make()", "a"), 0);
        assert_eq!(uses("id<MTLBuffer> a;\n_a = [d newBuffer];", "a"), 0);
        assert_eq!(uses("var a: MTLBuffer!", "a"), 0);
        assert_eq!(uses("# a is reserved", "a"), 0);
    }

    #[test]
    fn everything_else_is_a_use() {
        assert_eq!(uses("f(a)", "a"), 1);
        assert_eq!(uses("return a;", "a"), 1);
        assert_eq!(uses("if a == b: g(a.x)", "a"), 2);
        assert_eq!(uses("[e setBuffer:_a offset:0];", "a"), 1);
    }
}
