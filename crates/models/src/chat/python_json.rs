//! JSON as Python's `json.dumps(…, ensure_ascii=False)` writes it, which is what templates were tuned with: a space
//! after each colon and comma, nothing escaped for HTML.

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind};

/// How deep values may nest.
const MAX_DEPTH: usize = 64;

/// `value` as JSON, on one line or indented by so many spaces per level.
pub(super) fn to_string(value: &Value, indent: Option<usize>) -> Result<String, Error> {
    let mut text = String::new();
    // Nobody reads deeper indentation, and it would be multiplied by the depth.
    write(value, indent.map(|spaces| spaces.min(16)), 0, &mut text)?;
    Ok(text)
}

fn write(
    value: &Value,
    indent: Option<usize>,
    depth: usize,
    text: &mut String,
) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(Error::new(ErrorKind::BadSerialization, "tojson of values nested too deep"));
    }
    match value.kind() {
        ValueKind::Map => {
            let mut items = Items::new('{', '}', indent, depth);
            for key in value.try_iter()? {
                items.next(text);
                string(&key.to_string(), text)?;
                text.push_str(": ");
                write(&value.get_item(&key)?, indent, depth + 1, text)?;
            }
            items.end(text);
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let mut items = Items::new('[', ']', indent, depth);
            for item in value.try_iter()? {
                items.next(text);
                write(&item, indent, depth + 1, text)?;
            }
            items.end(text);
        }
        ValueKind::String => string(value.as_str().unwrap_or_default(), text)?,
        ValueKind::None | ValueKind::Undefined => text.push_str("null"),
        ValueKind::Bool | ValueKind::Number => text.push_str(&value.to_string().to_lowercase()),
        _ => {
            let reason = format!("tojson of a value of type {}", value.kind());
            return Err(Error::new(ErrorKind::BadSerialization, reason));
        }
    }
    Ok(())
}

fn string(s: &str, text: &mut String) -> Result<(), Error> {
    let quoted = serde_json::to_string(s)
        .map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    text.push_str(&quoted);
    Ok(())
}

/// The separators of an object or array.
struct Items {
    open: char,
    close: char,
    indent: Option<usize>,
    depth: usize,
    empty: bool,
}

impl Items {
    fn new(open: char, close: char, indent: Option<usize>, depth: usize) -> Self {
        Self { open, close, indent, depth, empty: true }
    }

    fn next(&mut self, text: &mut String) {
        if self.empty {
            text.push(self.open);
        } else {
            text.push_str(if self.indent.is_some() { "," } else { ", " });
        }
        self.empty = false;
        self.line(self.depth + 1, text);
    }

    fn end(self, text: &mut String) {
        if self.empty {
            text.push(self.open);
        } else {
            self.line(self.depth, text);
        }
        text.push(self.close);
    }

    fn line(&self, depth: usize, text: &mut String) {
        if let Some(indent) = self.indent {
            text.push('\n');
            text.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The expected strings are what CPython's `json.dumps(value, ensure_ascii=False, indent=…)` prints.
    #[test]
    fn json_is_spaced_and_ordered_as_python_does() {
        let value: serde_json::Value =
            serde_json::from_str(r#"{"b": [1, 2.5, true, null, "é<\n"], "a": {}, "c": []}"#)
                .unwrap();
        let value = Value::from(minijinja::value::Serde(&value));
        let flat = to_string(&value, None).unwrap();
        assert!(flat.contains(r#""b": [1, 2.5, true, null, "é<\n"]"#), "{flat}");
        assert!(flat.contains(r#""a": {}"#) && flat.contains(r#""c": []"#), "{flat}");
        let list = Value::from(vec![1, 2]);
        assert_eq!(to_string(&list, Some(2)).unwrap(), "[\n  1,\n  2\n]");
    }
}
