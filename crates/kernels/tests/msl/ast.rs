//! clang's syntax tree as `-ast-dump` prints it: a line a node, indented by depth.

/// A node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Node<'a> {
    /// How deep it lies; its parent is the last node before it that lies less deep.
    pub depth: usize,
    /// `FunctionDecl`, `GotoStmt`, `public`, …
    pub kind: &'a str,
    /// What other nodes call it by; 0 where it has none.
    pub address: u64,
    /// The earlier declaration of the same thing.
    pub previous: Option<u64>,
    /// The file that it is spelled in; a declaration: that its name is spelled in.
    pub file: &'a str,
    /// The line of that.
    pub line: usize,
    /// All that follows its place: flags, name, types in quotes, references.
    pub text: &'a str,
}

impl<'a> Node<'a> {
    /// The text before its type: flags and name.
    pub(crate) fn head(&self) -> &'a str {
        self.text.split('\'').next().unwrap_or_default()
    }

    /// A declaration's name; empty where it has none.
    pub(crate) fn name(&self) -> &'a str {
        self.head().split_whitespace().next_back().unwrap_or_default()
    }

    /// Its type as written, without what its names stand for.
    pub(crate) fn type_name(&self) -> &'a str {
        self.text.split('\'').nth(1).unwrap_or_default()
    }

    /// Whether `word` is one of its flags.
    pub(crate) fn has_flag(&self, word: &str) -> bool {
        self.head().split_whitespace().any(|w| w == word)
    }
}

/// Every node, in the dump's order.
///
/// A place is printed in full only where it differs from the last one printed, so the lines are
/// read in order.
pub(crate) fn nodes(dump: &str) -> Vec<Node<'_>> {
    let mut out = Vec::new();
    let (mut file, mut line) = ("", 0);
    for text in dump.lines() {
        let start = text.find(|c: char| !matches!(c, ' ' | '|' | '`' | '-')).unwrap_or(text.len());
        let mut rest = &text[start..];
        if rest.is_empty() || rest.starts_with('<') {
            continue;
        }
        let mut node = Node { depth: start / 2, ..Node::default() };
        node.kind = word(&mut rest);
        node.address = address(&mut rest).unwrap_or_default();
        loop {
            if let Some(mut after) = rest.strip_prefix("prev ") {
                node.previous = address(&mut after);
                rest = after;
            } else if let Some(mut after) = rest.strip_prefix("parent ") {
                let _ = address(&mut after);
                rest = after;
            } else {
                break;
            }
        }
        if node.address != 0 && rest.starts_with('<') {
            let (range, after) = bracketed(rest);
            for place in range.split(", ") {
                see(place, &mut file, &mut line);
            }
            rest = after.trim_start();
            // The name's own place, for declarations.
            let end = rest.find(' ').unwrap_or(rest.len());
            if see(&rest[..end], &mut file, &mut line) {
                rest = rest[end..].trim_start();
            }
        }
        node.file = file;
        node.line = line;
        node.text = rest;
        out.push(node);
    }
    out
}

fn word<'a>(rest: &mut &'a str) -> &'a str {
    let end = rest.find(' ').unwrap_or(rest.len());
    let out = &rest[..end];
    *rest = rest[end..].trim_start();
    out
}

fn address(rest: &mut &str) -> Option<u64> {
    let hex = rest.strip_prefix("0x")?;
    let end = hex.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(hex.len());
    let out = u64::from_str_radix(&hex[..end], 16).ok()?;
    *rest = hex[end..].trim_start();
    Some(out)
}

/// What stands between the first bracket and its partner, and what follows.
fn bracketed(text: &str) -> (&str, &str) {
    let mut depth = 0usize;
    for (at, c) in text.char_indices() {
        match c {
            '<' => depth += 1,
            '>' if depth == 1 => return (&text[1..at], &text[at + 1..]),
            '>' => depth -= 1,
            _ => {}
        }
    }
    (text, "")
}

/// Takes `col:3`, `line:2:3` or `file:1:2:3` as the last place printed; false where it is none.
fn see<'a>(place: &'a str, file: &mut &'a str, line: &mut usize) -> bool {
    let mut parts = place.rsplitn(3, ':');
    let (Some(column), Some(second)) = (parts.next(), parts.next()) else { return false };
    if column.parse::<usize>().is_err() {
        return false;
    }
    match (parts.next(), second.parse::<usize>()) {
        (None, _) => second == "col",
        (Some("line"), Ok(number)) => {
            *line = number;
            true
        }
        (Some(name), Ok(number)) => {
            (*file, *line) = (name, number);
            true
        }
        (Some(_), Err(_)) => false,
    }
}

/// The nodes with their ancestors, the nearest last.
pub(crate) fn with_ancestors<'n, 'a>(
    nodes: &'n [Node<'a>],
    mut visit: impl FnMut(&'n Node<'a>, &[&'n Node<'a>]),
) {
    let mut stack: Vec<&Node<'_>> = Vec::new();
    for node in nodes {
        while stack.last().is_some_and(|above| above.depth >= node.depth) {
            stack.pop();
        }
        visit(node, &stack);
        stack.push(node);
    }
}

#[cfg(test)]
mod tests {
    use super::nodes;

    #[test]
    fn places_carry_over_from_line_to_line() {
        let dump = "\
TranslationUnitDecl 0x10 <<invalid sloc>> <invalid sloc>
|-FunctionDecl 0x20 <a.metal:3:1, col:40> col:7 used f 'float (__private float)'
| `-ParmVarDecl 0x30 <col:9, line:4:2> line:4:5 x '__private float'
`-FunctionDecl 0x40 prev 0x20 <<scratch space>:2:1, b.metal:9:3> col:7 g 'void ()' inline
  `-public 'Base'
";
        let nodes = nodes(dump);
        let seen: Vec<_> =
            nodes.iter().map(|n| (n.depth, n.kind, n.file, n.line, n.name())).collect();
        assert_eq!(
            seen[1..],
            [
                (1, "FunctionDecl", "a.metal", 3, "f"),
                (2, "ParmVarDecl", "a.metal", 4, "x"),
                (1, "FunctionDecl", "b.metal", 9, "g"),
                (2, "public", "b.metal", 9, ""),
            ]
        );
        assert_eq!(nodes[3].previous, Some(0x20));
        assert_eq!(nodes[1].type_name(), "float (__private float)");
        assert!(nodes[1].has_flag("used") && !nodes[1].has_flag("implicit"));
    }
}
