//! Call sites: from the compiler's `file:line:column` to module and function.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Names the function at a file (as [`CallSite::module`] has it) and line.
pub type Functions<'a> = &'a dyn Fn(&str, u32) -> Option<String>;

/// A line of code.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CallSite {
    /// The file, from the repository's root on.
    pub module: String,
    /// The function, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub function: Option<String>,
    /// One-based.
    pub line: u32,
    /// One-based.
    pub column: u32,
}

impl CallSite {
    /// Reads `file:line:column`; without the numbers everything is the file.
    pub fn parse(site: &str, functions: Functions<'_>) -> Self {
        let mut parts = site.rsplitn(3, ':');
        let column = parts.next().and_then(|n| n.parse().ok());
        let line = parts.next().and_then(|n| n.parse().ok());
        let (file, line, column) = match (parts.next(), line, column) {
            (Some(file), Some(line), Some(column)) => (file, line, column),
            _ => (site, 0, 0),
        };
        let module = relative(file);
        let function = functions(&module, line);
        Self { module, function, line, column }
    }
}

impl fmt::Display for CallSite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.module, self.line, self.column)
    }
}

/// The path from the repository's root on: the compiler's own is absolute when the crates come from
/// a registry (`…/marlin-cpu-0.1.0/src/…`) or a checkout (`…/crates/cpu/src/…`).
fn relative(file: &str) -> String {
    let file = file.replace('\\', "/");
    let parts: Vec<&str> = file.split('/').collect();
    let Some(src) = parts.iter().rposition(|p| matches!(*p, "src" | "tests" | "benches")) else {
        return file;
    };
    let rest = || parts[src..].join("/");
    if src >= 2 && parts[src - 2] == "crates" {
        return format!("crates/{}/{}", parts[src - 1], rest());
    }
    let package = src.checked_sub(1).and_then(|i| parts[i].strip_prefix("marlin-"));
    match package.and_then(|p| p.rsplit_once('-')) {
        Some((name, version)) if version.starts_with(|c: char| c.is_ascii_digit()) => {
            format!("crates/{name}/{}", rest())
        }
        _ => file,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wherever_the_sources_were_a_path_begins_at_the_repositorys_root() {
        let expected = "crates/cpu/src/executor/mod.rs";
        for file in [
            "crates/cpu/src/executor/mod.rs",
            "/build/metal-marlin/crates/cpu/src/executor/mod.rs",
            r"C:\code\metal-marlin\crates\cpu\src\executor\mod.rs",
            "/home/me/.cargo/registry/src/index/marlin-cpu-0.1.0/src/executor/mod.rs",
            "/home/me/.cargo/registry/src/index/marlin-cpu-0.1.0/crates/cpu/src/executor/mod.rs",
        ] {
            assert_eq!(relative(file), expected);
        }
        assert_eq!(relative("/home/me/app/src/main.rs"), "/home/me/app/src/main.rs");
        assert_eq!(relative("main.rs"), "main.rs");
    }

    #[test]
    fn a_site_is_read_from_the_compilers_form() {
        let name =
            |file: &str, line| (file == "crates/cpu/src/a.rs" && line == 7).then(|| "f".to_owned());
        let site = CallSite::parse("/x/crates/cpu/src/a.rs:7:9", &name);
        assert_eq!((site.line, site.column, site.function.as_deref()), (7, 9, Some("f")));
        assert_eq!(site.to_string(), "crates/cpu/src/a.rs:7:9");
        let windows = CallSite::parse(r"C:\crates\cpu\src\a.rs:7:9", &name);
        assert_eq!(windows, site);
        let odd = CallSite::parse("somewhere", &name);
        assert_eq!((odd.module.as_str(), odd.line, odd.function), ("somewhere", 0, None));
    }
}
