//! Front ends: from the syntax tree of each language to the one [`ir`](crate::ir).
//!
//! Every front end is a walk over a tree-sitter tree. Constructs that cannot matter for buffers
//! become [`ExprKind::Other`], which still evaluates its parts, so that a construct no one
//! thought of never hides a buffer inside it.

mod c_family;
mod c_family_expr;
mod c_family_stmt;
mod objcpp;
mod objcpp_tokens;
mod preprocess;
mod python;
mod rust;
mod rust_expr;
mod rust_macros;
mod swift;
mod swift_expr;

use std::borrow::Cow;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use tree_sitter::{Node, ParseOptions, Parser, Tree};

use crate::ir::{Expr, ExprKind, Function, FunctionKind, Language, Module, Span, Stmt};

/// How deeply nested a syntax tree may be before its inner parts are left out: a generated
/// expression of ten thousand terms must not exhaust the stack.
const MAX_DEPTH: u32 = 300;

/// A grammar's error recovery can take very long on generated files.
const PARSE_LIMIT: Duration = Duration::from_secs(10);

/// The share of a file, in percent, that may lie in syntax errors for the rest to be audited.
const ERROR_PERCENT: usize = 15;

/// Why a file could not be audited.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum Unparsed {
    /// Most of the file is not of the language.
    #[error(
        "does not parse as {language}: {percent} % of it lies in syntax errors, the first at line {line}"
    )]
    Syntax {
        /// What it was parsed as.
        language: &'static str,
        /// Share of bytes in syntax errors.
        percent: usize,
        /// One-based line of the first error.
        line: usize,
    },
    /// The grammar does not fit the parser library: a build mistake, not the file's.
    #[error("the {language} grammar does not fit this tree-sitter")]
    Grammar {
        /// What it was to be parsed as.
        language: &'static str,
    },
    /// The parser ran out of time.
    #[error("the {language} parser gave up after {seconds} s")]
    TooSlow {
        /// What it was parsed as.
        language: &'static str,
        /// The time limit.
        seconds: u64,
    },
}

/// Lowers a source file, or what [`rewritten`] made of it.
///
/// # Errors
///
/// [`Unparsed`] when so much of the file lies in syntax errors that an audit of the rest would mislead.
pub(crate) fn lower(language: Language, source: &str) -> Result<Module<'_>, Unparsed> {
    let tree = parse(language, source)?;
    let errors = check_errors(&tree, source, language)?;
    let cx = Context::new(source);
    let mut module = match language {
        Language::Python => python::lower(cx, tree.root_node()),
        Language::Rust => rust::lower(cx, tree.root_node()),
        Language::Swift => swift::lower(cx, tree.root_node()),
        Language::ObjectiveC | Language::ObjectiveCpp | Language::Cpp | Language::Metal => {
            c_family::lower(cx, tree.root_node())
        }
    };
    module.errors = errors;
    Ok(module)
}

/// What is parsed in place of a file's text, if that is not the text itself, and whether every
/// byte is where it was.
pub(crate) fn rewritten(language: Language, source: &str) -> Option<(String, bool)> {
    match language {
        Language::Cpp | Language::ObjectiveC => Some((preprocess::prepared(source), true)),
        Language::ObjectiveCpp => Some((objcpp::to_cpp(&preprocess::prepared(source)), false)),
        Language::Python | Language::Rust | Language::Swift | Language::Metal => None,
    }
}

fn parse(language: Language, source: &str) -> Result<Tree, Unparsed> {
    thread_local! {
        static PARSER: std::cell::RefCell<Parser> = std::cell::RefCell::new(Parser::new());
    }
    let grammar = match language {
        Language::Python => tree_sitter_python::LANGUAGE,
        Language::Rust => tree_sitter_rust::LANGUAGE,
        Language::ObjectiveC => tree_sitter_objc::LANGUAGE,
        Language::Swift => tree_sitter_swift::LANGUAGE,
        Language::Cpp | Language::ObjectiveCpp | Language::Metal => tree_sitter_cpp::LANGUAGE,
    };
    let too_slow = Unparsed::TooSlow { language: language.name(), seconds: PARSE_LIMIT.as_secs() };
    PARSER.with_borrow_mut(|parser| {
        parser
            .set_language(&grammar.into())
            .map_err(|_| Unparsed::Grammar { language: language.name() })?;
        let started = Instant::now();
        let mut progress = |_: &tree_sitter::ParseState| {
            if started.elapsed() > PARSE_LIMIT {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        let options = ParseOptions::new().progress_callback(&mut progress);
        let bytes = source.as_bytes();
        let tree = parser.parse_with_options(
            &mut |offset, _| bytes.get(offset..).unwrap_or_default(),
            None,
            Some(options),
        );
        if tree.is_none() {
            parser.reset();
        }
        tree.ok_or(too_slow)
    })
}

/// The outermost error ranges of a tree, or the refusal to go on with it.
fn check_errors(tree: &Tree, source: &str, language: Language) -> Result<Vec<Span>, Unparsed> {
    let root = tree.root_node();
    if !root.has_error() {
        return Ok(Vec::new());
    }
    let mut errors = Vec::new();
    let mut cursor = root.walk();
    let mut descend = true;
    'walk: loop {
        let node = cursor.node();
        if descend && node.is_error() || node.is_missing() {
            errors.push(span(node));
            descend = false;
        }
        if descend && node.has_error() && cursor.goto_first_child() {
            continue;
        }
        descend = true;
        while !cursor.goto_next_sibling() {
            if !cursor.goto_parent() {
                break 'walk;
            }
        }
    }
    let bad: usize = errors.iter().map(|s| (s.end - s.start) as usize).sum();
    let percent = bad * 100 / source.len().max(1);
    if percent > ERROR_PERCENT || root.is_error() {
        let start = errors.first().map_or(0, |s| s.start as usize).min(source.len());
        let line = source.as_bytes()[..start].iter().filter(|&&b| b == b'\n').count() + 1;
        return Err(Unparsed::Syntax { language: language.name(), percent, line });
    }
    Ok(errors)
}

/// What every front end carries along.
pub(crate) struct Context<'s> {
    source: &'s str,
    depth: u32,
    module: Module<'s>,
}

impl<'s> Context<'s> {
    fn new(source: &'s str) -> Self {
        Self { source, depth: 0, module: Module::default() }
    }

    fn text(&self, node: Node<'_>) -> &'s str {
        self.source.get(node.byte_range()).unwrap_or("")
    }

    /// The text of the field `name` of `node`, or nothing.
    fn field_text(&self, node: Node<'_>, name: &str) -> Option<&'s str> {
        node.child_by_field_name(name).map(|n| self.text(n))
    }

    /// The module, with what the file itself does as the last of its functions.
    fn into_module(mut self, name: &'static str, body: Vec<Stmt<'s>>, span: Span) -> Module<'s> {
        self.module.functions.push(Function {
            name: Cow::Borrowed(name),
            class: None,
            kind: FunctionKind::TopLevel,
            params: Vec::new(),
            body,
            span,
            is_test: false,
            is_selector: false,
        });
        self.module
    }

    /// Remembers a string literal that holds Metal source.
    fn note_string(&mut self, at: u32, text: &'s str) {
        if text.len() > 32
            && (text.contains("kernel") || text.contains("[[buffer(") || text.contains("fragment"))
            && text.contains('(')
        {
            let span = Span { start: at, end: at + text.len() as u32 };
            self.module.shader_strings.push((span, text));
        }
    }
}

fn span(node: Node<'_>) -> Span {
    Span { start: node.start_byte() as u32, end: node.end_byte() as u32 }
}

/// The named children, comments left out.
fn children(node: Node<'_>) -> Vec<Node<'_>> {
    let mut cursor = node.walk();
    let mut out = Vec::with_capacity(node.named_child_count());
    if cursor.goto_first_child() {
        loop {
            let child = cursor.node();
            if child.is_named() && !child.is_extra() {
                out.push(child);
            }
            if !cursor.goto_next_sibling() {
                break;
            }
        }
    }
    out
}

/// Children under the field `name`.
fn field_children<'t>(node: Node<'t>, name: &str) -> Vec<Node<'t>> {
    let mut cursor = node.walk();
    node.children_by_field_name(name, &mut cursor).collect()
}

fn literal<'s>(node: Node<'_>) -> Expr<'s> {
    Expr::new(ExprKind::Literal, span(node))
}

fn assign<'s>(target: Expr<'s>, value: Option<Expr<'s>>) -> Stmt<'s> {
    Stmt::Assign { target, ty: None, value, compound: false, declares: false }
}

/// An integer literal of any of the languages: `16`, `0x10`, `4u32`, `1_000`, `16UL`.
fn parse_int(text: &str) -> Option<i64> {
    let digits: String = text.chars().filter(|c| *c != '_' && *c != '\'').collect();
    let lower = digits.to_ascii_lowercase();
    if let Some(hex) = lower.strip_prefix("0x") {
        let end = hex.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(hex.len());
        return i64::from_str_radix(&hex[..end], 16).ok();
    }
    if let Some(binary) = lower.strip_prefix("0b") {
        return i64::from_str_radix(binary, 2).ok();
    }
    let end = lower.find(|c: char| !c.is_ascii_digit()).unwrap_or(lower.len());
    if lower[end..].starts_with('.') || lower[end..].starts_with('f') {
        return None;
    }
    lower[..end].parse().ok()
}
