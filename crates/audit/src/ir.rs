//! The language-neutral program that every front end produces and the analysis reads.
//!
//! It keeps what decides where a buffer comes from and who touches it: functions, calls with
//! receiver, arguments and keywords, assignments, branches, loops, string and integer
//! constants, and field paths. Types survive only as the text of a declaration.
//! Names borrow from the source text, so lowering allocates little.

use std::borrow::Cow;

/// A half-open range of byte offsets in a source file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Span {
    /// First byte.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

impl Span {
    /// The same range, moved `by` bytes towards the end of the file.
    #[must_use]
    pub fn shifted(self, by: u32) -> Self {
        Self { start: self.start + by, end: self.end + by }
    }
}

/// The language of a source file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Language {
    /// Python: PyObjC, PyTorch, numpy, MLX.
    Python,
    /// Rust: objc2-metal, metal-rs, candle, wgpu.
    Rust,
    /// Objective-C.
    ObjectiveC,
    /// Objective-C++: C++ with message sends.
    ObjectiveCpp,
    /// C and C++, with metal-cpp.
    Cpp,
    /// Swift.
    Swift,
    /// Metal Shading Language.
    Metal,
}

impl Language {
    /// The language's usual name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Python => "Python",
            Self::Rust => "Rust",
            Self::ObjectiveC => "Objective-C",
            Self::ObjectiveCpp => "Objective-C++",
            Self::Cpp => "C++",
            Self::Swift => "Swift",
            Self::Metal => "Metal",
        }
    }
}

/// One source file, lowered.
#[derive(Debug, Default)]
pub struct Module<'s> {
    /// Every function and method, and the file's own top level as [`FunctionKind::TopLevel`].
    pub functions: Vec<Function<'s>>,
    /// Names brought in from elsewhere.
    pub imports: Vec<Import<'s>>,
    /// Classes, structs and their declared fields.
    pub classes: Vec<Class<'s>>,
    /// String literals that look like Metal source: where each starts, and its text.
    pub shader_strings: Vec<(Span, &'s str)>,
    /// Suppression and other comments are found in the text; these are the ranges where
    /// the parser gave up.
    pub errors: Vec<Span>,
}

/// `from module import item as local`, or `import module as local` when `item` is `None`.
#[derive(Debug)]
pub struct Import<'s> {
    /// The name in this file.
    pub local: &'s str,
    /// The module as written.
    pub module: &'s str,
    /// The item, if one was named.
    pub item: Option<&'s str>,
}

/// A class, struct or interface.
#[derive(Debug)]
pub struct Class<'s> {
    /// Its name.
    pub name: &'s str,
    /// Its declared fields with the text of their types.
    pub fields: Vec<(&'s str, &'s str)>,
    /// What it inherits from.
    pub bases: Vec<&'s str>,
}

/// What a function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FunctionKind {
    /// The statements of the file itself; its variables are the file's globals.
    TopLevel,
    /// A free function.
    Free,
    /// A method of [`Function::class`].
    Method,
    /// Makes an object of [`Function::class`].
    Constructor,
}

/// A function and its body.
#[derive(Debug)]
pub struct Function<'s> {
    /// The name; Objective-C selectors keep their parts joined by `_`.
    pub name: Cow<'s, str>,
    /// The enclosing class.
    pub class: Option<&'s str>,
    /// What kind of function it is.
    pub kind: FunctionKind,
    /// Parameters, without the receiver.
    pub params: Vec<Param<'s>>,
    /// The statements.
    pub body: Vec<Stmt<'s>>,
    /// The whole definition.
    pub span: Span,
    /// It is a test.
    pub is_test: bool,
    /// Its name is an Objective-C selector.
    pub is_selector: bool,
}

/// A parameter of a function.
#[derive(Debug)]
pub struct Param<'s> {
    /// The name inside the function.
    pub name: &'s str,
    /// The name that callers write, where the language has one.
    pub label: Option<&'s str>,
    /// The declared type.
    pub ty: Option<&'s str>,
    /// The default value.
    pub default: Option<Expr<'s>>,
}

/// A statement.
#[derive(Debug)]
pub enum Stmt<'s> {
    /// `target = value`, or a declaration; `op` is set for `target op= value`.
    Assign {
        /// What is written: a name, a field, an element, a dereference or a tuple of them.
        target: Expr<'s>,
        /// The declared type, for declarations.
        ty: Option<&'s str>,
        /// What is stored, absent in a declaration without initialiser.
        value: Option<Expr<'s>>,
        /// `+=` and its kin read the target too.
        compound: bool,
        /// Whether this declares the target in this scope.
        declares: bool,
    },
    /// An expression evaluated for its effects.
    Expr(Expr<'s>),
    /// Alternatives of which one runs: `if`/`else`, `match`, `switch`, `try`/`except`.
    Branch(Vec<Vec<Stmt<'s>>>),
    /// A loop. `target` takes the elements of `iter` where both exist.
    Loop {
        /// The loop variable or pattern.
        target: Option<Expr<'s>>,
        /// What is iterated over.
        iter: Option<Expr<'s>>,
        /// What is repeated.
        body: Vec<Stmt<'s>>,
    },
    /// `return value`.
    Return(Option<Expr<'s>>),
}

/// An expression and where it stands.
#[derive(Debug)]
pub struct Expr<'s> {
    /// What it is.
    pub kind: ExprKind<'s>,
    /// Where it stands.
    pub span: Span,
}

/// The kinds of expression.
#[derive(Debug)]
pub enum ExprKind<'s> {
    /// A variable, constant, type or module.
    Name(&'s str),
    /// `object.field`, `object->field`, `Scope::name`.
    Field(Box<Expr<'s>>, &'s str),
    /// `object[index]`.
    Index(Box<Expr<'s>>, Box<Expr<'s>>),
    /// A call.
    Call(Box<Call<'s>>),
    /// A string literal's text, quotes removed.
    Str(&'s str),
    /// An integer literal.
    Int(i64),
    /// Any other literal: float, boolean, null.
    Literal,
    /// Tuple, list, array or braced initialiser.
    List(Vec<Expr<'s>>),
    /// A dictionary with literal keys, or a struct literal of type `ty`.
    Record {
        /// The struct's type, if it is one.
        ty: Option<&'s str>,
        /// The entries.
        entries: Vec<(&'s str, Expr<'s>)>,
    },
    /// `left op right`.
    Binary(&'s str, Box<Expr<'s>>, Box<Expr<'s>>),
    /// `*pointer`.
    Deref(Box<Expr<'s>>),
    /// `&place`.
    AddressOf(Box<Expr<'s>>),
    /// `(type)value`, `value as type`.
    Cast(Box<Expr<'s>>, &'s str),
    /// `sizeof(type)` and its kin, with the text of the type.
    SizeOf(&'s str),
    /// A value that is one of several: `a if c else b`, `c ? a : b`, a `match` used as a value.
    OneOf(Vec<Expr<'s>>),
    /// Statements with a final value: a Rust block, a `match` arm, a comprehension's loop.
    Block(Vec<Stmt<'s>>, Option<Box<Expr<'s>>>),
    /// A closure, block or nested function; analysed where it stands.
    Lambda(Box<Lambda<'s>>),
    /// `target = value` used as an expression.
    Assign(Box<Stmt<'s>>),
    /// Anything else; its parts are still evaluated.
    Other(Vec<Expr<'s>>),
}

/// A closure.
#[derive(Debug)]
pub struct Lambda<'s> {
    /// Names of its parameters.
    pub params: Vec<&'s str>,
    /// Its statements.
    pub body: Vec<Stmt<'s>>,
}

/// A call.
#[derive(Debug)]
pub struct Call<'s> {
    /// The function's or method's last name; selectors keep their parts joined by `_`
    /// (`newBufferWithLength_options`) in every language.
    pub name: Cow<'s, str>,
    /// The object before the dot, or the path before the last name.
    pub receiver: Option<Expr<'s>>,
    /// The arguments in order.
    pub args: Vec<Arg<'s>>,
    /// Where the name stands.
    pub name_span: Span,
    /// A macro invocation (`set_params!`), whose arguments were parsed as expressions.
    pub is_macro: bool,
}

/// An argument.
#[derive(Debug)]
pub struct Arg<'s> {
    /// Its keyword or label.
    pub label: Option<&'s str>,
    /// Its value.
    pub value: Expr<'s>,
}

impl<'s> Expr<'s> {
    /// An expression of `kind` at `span`.
    pub fn new(kind: ExprKind<'s>, span: Span) -> Self {
        Self { kind, span }
    }

    /// The last name of a path: `a` in `a`, `x.y.a` and `&mut a`.
    pub fn last_name(&self) -> Option<&'s str> {
        match &self.kind {
            ExprKind::Name(name) | ExprKind::Field(_, name) => Some(name),
            ExprKind::Deref(e) | ExprKind::AddressOf(e) | ExprKind::Cast(e, _) => e.last_name(),
            ExprKind::Index(base, _) => base.last_name(),
            ExprKind::Other(parts) if parts.len() == 1 => parts[0].last_name(),
            _ => None,
        }
    }
}
