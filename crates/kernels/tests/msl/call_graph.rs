//! Who calls whom.

use std::collections::{BTreeMap, BTreeSet};

use crate::ast::{Node, with_ancestors};
use crate::check::Finding;

/// Functions and what they refer to.
#[derive(Default)]
pub(crate) struct CallGraph<'a> {
    /// By the address of the first declaration: the last declaration's name and place.
    functions: BTreeMap<u64, (&'a str, &'a str, usize)>,
    kernels: BTreeSet<u64>,
    /// Caller and callee, with the place of the call.
    edges: BTreeMap<u64, BTreeMap<u64, (&'a str, usize)>>,
}

/// Whether a node declares a function.
pub(crate) fn is_function(node: &Node<'_>) -> bool {
    matches!(
        node.kind,
        "FunctionDecl"
            | "CXXMethodDecl"
            | "CXXConstructorDecl"
            | "CXXConversionDecl"
            | "CXXDestructorDecl"
    )
}

/// What a node refers to: `Function 0x…`, `CXXMethod 0x…`, and a member's `.name 0x…`.
fn references(text: &str) -> impl Iterator<Item = u64> + '_ {
    text.split(" 0x").skip(1).filter_map(|part| {
        let end = part.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(part.len());
        u64::from_str_radix(&part[..end], 16).ok()
    })
}

impl<'a> CallGraph<'a> {
    /// The graph of a syntax tree, instantiated templates included.
    pub(crate) fn new(nodes: &[Node<'a>]) -> Self {
        let mut out = Self::default();
        // A declaration's first one stands for all of them.
        let mut first: BTreeMap<u64, u64> = BTreeMap::new();
        for node in nodes.iter().filter(|n| is_function(n)) {
            let canonical =
                node.previous.and_then(|p| first.get(&p).copied()).unwrap_or(node.address);
            first.insert(node.address, canonical);
            out.functions.insert(canonical, (node.name(), node.file, node.line));
        }
        with_ancestors(nodes, |node, above| {
            let Some(caller) = above.iter().rev().find(|n| is_function(n)) else { return };
            let Some(&caller) = first.get(&caller.address) else { return };
            match node.kind {
                "OpenCLKernelAttr" => {
                    out.kernels.insert(caller);
                }
                "DeclRefExpr" | "MemberExpr" => {
                    for callee in references(node.text).filter_map(|a| first.get(&a).copied()) {
                        out.edges.entry(caller).or_default().insert(callee, (node.file, node.line));
                    }
                }
                _ => {}
            }
        });
        out
    }

    /// Functions that reach themselves, and kernels that are called (§5.1: kernels cannot call one
    /// another). Metal allows recursion in kernels since 2.4 (§1.5.4); the dialect does not, because
    /// nobody bounds the stack that it takes.
    pub(crate) fn violations(&self) -> Vec<Finding> {
        let mut out = Vec::new();
        let (mut done, mut path) = (BTreeSet::new(), Vec::new());
        for &start in self.functions.keys() {
            self.follow(start, &mut path, &mut done, &mut out);
        }
        for calls in self.edges.values() {
            for (callee, (file, line)) in calls.iter().filter(|(c, _)| self.kernels.contains(c)) {
                out.push(finding(
                    file,
                    *line,
                    format!("kernel {} is called (§5.1)", self.name(*callee)),
                ));
            }
        }
        out
    }

    fn name(&self, function: u64) -> &'a str {
        self.functions.get(&function).map_or("?", |f| f.0)
    }

    fn follow(
        &self,
        function: u64,
        path: &mut Vec<u64>,
        done: &mut BTreeSet<u64>,
        out: &mut Vec<Finding>,
    ) {
        if let Some(at) = path.iter().position(|f| *f == function) {
            let names: Vec<_> =
                path[at..].iter().chain([&function]).map(|f| self.name(*f)).collect();
            let (_, file, line) = self.functions[&function];
            out.push(finding(file, line, format!("recursion: {}", names.join(" calls "))));
            return;
        }
        if !done.insert(function) {
            return;
        }
        path.push(function);
        for callee in self.edges.get(&function).into_iter().flat_map(BTreeMap::keys) {
            self.follow(*callee, path, done, out);
        }
        path.pop();
    }
}

fn finding(file: &str, line: usize, message: String) -> Finding {
    Finding { file: file.to_owned(), line, message }
}
