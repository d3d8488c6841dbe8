//! From tokens to declarations.

use super::lexer::{Token, tokens};
use super::{
    ArgumentStruct, ElementType, Elements, Field, FieldType, KernelSignature, Parameter,
    ParameterAccess, ParameterKind, Position, ScalarType, SignatureError, Source,
    SpecialisationConstant, TypeName,
};

/// Reads the declarations of the kernel file `stem`.metal.
///
/// # Errors
/// The first declaration that does not have the dialect's form, with its line.
pub fn parse(stem: &str, source: &str) -> Result<Source, SignatureError> {
    let tokens = tokens(source);
    let mut parser = Parser { tokens: &tokens, at: 0, file: format!("{stem}.metal") };
    let mut out = Source { stem: stem.to_owned(), ..Source::default() };
    let mut simd_width = None;
    let mut width_doc = String::new();
    while let Some(token) = parser.peek() {
        match token.text.as_str() {
            "ELEMENTS" => {
                if out.elements.len() == 2 {
                    return Err(parser.error("at most two ELEMENTS lines in a file"));
                }
                let elements = parser.elements()?;
                out.elements.push(elements);
            }
            "SPECIALISE" => {
                let constant = parser.specialise(out.constants.len())?;
                out.constants.push(constant);
            }
            "struct" => {
                if let Some(structure) = parser.structure()? {
                    out.structs.push(structure);
                }
            }
            "REQUIRES_SIMD_WIDTH" => {
                width_doc = token.comment.clone();
                parser.at += 1;
                parser.expect("(")?;
                simd_width = Some(parser.number()? as u32);
                parser.expect(")")?;
            }
            "kernel" => {
                let mut kernel = parser.kernel(&out)?;
                kernel.simd_width = simd_width.take();
                if kernel.doc.is_empty() {
                    kernel.doc = std::mem::take(&mut width_doc);
                }
                out.kernels.push(kernel);
            }
            text if text.starts_with('#') => {
                if let Some(rest) = text[1..].trim_start().strip_prefix("include") {
                    let name = rest.trim().trim_matches('"').to_owned();
                    if rest.trim().starts_with('<') {
                        return Err(parser.error(format!(
                            "#include {}: only the shared headers beside the kernels can be \
                             included, in quotes",
                            rest.trim()
                        )));
                    }
                    out.includes.push(name);
                }
                parser.at += 1;
            }
            "{" => parser.skip_block()?,
            _ => parser.at += 1,
        }
    }
    Ok(out)
}

struct Parser<'a> {
    tokens: &'a [Token],
    at: usize,
    file: String,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<&'a Token> {
        self.tokens.get(self.at)
    }

    fn error(&self, message: impl Into<String>) -> SignatureError {
        let line = self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |t| t.line);
        SignatureError { file: self.file.clone(), line, message: message.into() }
    }

    fn next(&mut self, expected: &str) -> Result<&'a Token, SignatureError> {
        let token = self
            .peek()
            .ok_or_else(|| self.error(format!("the file ends where {expected} was expected")))?;
        self.at += 1;
        Ok(token)
    }

    fn expect(&mut self, text: &str) -> Result<(), SignatureError> {
        match self.peek() {
            Some(token) if token.text == text => {
                self.at += 1;
                Ok(())
            }
            Some(token) => Err(self.error(format!("found `{}`, expected `{text}`", token.text))),
            None => Err(self.error(format!("the file ends where `{text}` was expected"))),
        }
    }

    fn accept(&mut self, text: &str) -> bool {
        let found = self.peek().is_some_and(|t| t.text == text);
        self.at += usize::from(found);
        found
    }

    fn name(&mut self) -> Result<String, SignatureError> {
        let token = self.next("a name")?;
        let first = token.text.chars().next().unwrap_or(' ');
        if first.is_alphabetic() || first == '_' {
            Ok(token.text.clone())
        } else {
            self.at -= 1;
            Err(self.error(format!("found `{}`, expected a name", token.text)))
        }
    }

    fn number(&mut self) -> Result<usize, SignatureError> {
        let token = self.next("a number")?;
        token.text.trim_end_matches('u').parse().map_err(|_| {
            self.at -= 1;
            self.error(format!("found `{}`, expected a number", token.text))
        })
    }

    /// Skips `{ … }`, nested ones included.
    fn skip_block(&mut self) -> Result<(), SignatureError> {
        let open = self.at;
        let mut depth = 0usize;
        while let Some(token) = self.peek() {
            self.at += 1;
            match token.text.as_str() {
                "{" => depth += 1,
                "}" => {
                    depth -= 1;
                    if depth == 0 {
                        return Ok(());
                    }
                }
                _ => {}
            }
        }
        self.at = open;
        Err(self.error("this `{` is never closed"))
    }

    fn elements(&mut self) -> Result<Elements, SignatureError> {
        self.at += 1;
        self.expect("(")?;
        let parameter = self.name()?;
        let mut types = Vec::new();
        while self.accept(",") {
            let name = self.name()?;
            types.push(ElementType::from_source_name(&name).ok_or_else(|| {
                self.at -= 1;
                self.error(format!("`{name}` is not an element type"))
            })?);
        }
        self.expect(")")?;
        self.expect(";")?;
        if types.is_empty() {
            return Err(self.error(format!("ELEMENTS({parameter}) lists no types")));
        }
        Ok(Elements { parameter, types })
    }

    fn scalar(&mut self, allowed: &[ScalarType]) -> Result<ScalarType, SignatureError> {
        let name = self.name()?;
        allowed.iter().copied().find(|t| t.source_name() == name).ok_or_else(|| {
            self.at -= 1;
            let names: Vec<_> = allowed.iter().map(|t| t.source_name()).collect();
            self.error(format!("found type `{name}`, expected one of {}", names.join(", ")))
        })
    }

    fn specialise(&mut self, expected: usize) -> Result<SpecialisationConstant, SignatureError> {
        use ScalarType as S;
        let doc = self.next("SPECIALISE")?.comment.clone();
        self.expect("(")?;
        let ty = self.scalar(&[S::Uint, S::Int, S::Float, S::Bool])?;
        self.expect(",")?;
        let name = self.name()?;
        self.expect(",")?;
        let index = self.number()?;
        if index != expected {
            self.at -= 1;
            return Err(self.error(format!(
                "specialisation constant {name} has index {index}, expected {expected}: indices \
                 count up from 0"
            )));
        }
        self.expect(")")?;
        self.expect(";")?;
        Ok(SpecialisationConstant { name, ty, index, doc })
    }

    /// A `struct …Args`; other structures are skipped.
    fn structure(&mut self) -> Result<Option<ArgumentStruct>, SignatureError> {
        use ScalarType as S;
        let doc = self.next("struct")?.comment.clone();
        let name = self.name()?;
        if !name.ends_with("Args") {
            return Ok(None);
        }
        self.expect("{")?;
        let mut fields = Vec::new();
        let mut offset = 0usize;
        while !self.accept("}") {
            let above = self.peek().map(|t| t.comment.clone()).unwrap_or_default();
            let scalar = self.scalar(&[S::Uint, S::Int, S::Float, S::Ulong])?;
            let field = self.name()?;
            let count = if self.accept("[") {
                let count = self.number()?;
                self.expect("]")?;
                Some(count)
            } else {
                None
            };
            if !offset.is_multiple_of(scalar.bytes()) {
                return Err(self.error(format!(
                    "{name}.{field} lies at byte {offset}, expected a multiple of {}: put \
                     8-byte members first",
                    scalar.bytes()
                )));
            }
            offset += scalar.bytes() * count.unwrap_or(1);
            let beside = self.peek().map(|t| t.comment.clone()).unwrap_or_default();
            self.expect(";")?;
            let doc = if above.is_empty() { beside } else { above };
            fields.push(Field { name: field, ty: FieldType { scalar, count }, doc });
        }
        let widest = fields.iter().map(|f| f.ty.scalar.bytes()).max().unwrap_or(1);
        if !offset.is_multiple_of(widest) {
            return Err(self.error(format!(
                "{name} has {offset} bytes, expected a multiple of {widest}: add a member"
            )));
        }
        self.expect(";")?;
        Ok(Some(ArgumentStruct { name, doc, fields }))
    }

    fn kernel(&mut self, source: &Source) -> Result<KernelSignature, SignatureError> {
        let head = self.next("kernel")?;
        self.expect("void")?;
        let name = self.name()?;
        self.expect("(")?;
        let mut parameters: Vec<Parameter> = Vec::new();
        let mut bindings = 0;
        let mut threadgroup = 0;
        while !self.accept(")") {
            let parameter = self.parameter(source, bindings, threadgroup)?;
            match &parameter.kind {
                ParameterKind::Buffer { .. } | ParameterKind::Inline { .. } => bindings += 1,
                ParameterKind::Threadgroup { .. } => threadgroup += 1,
                ParameterKind::Position(_) => {}
            }
            if parameters.iter().any(|p| p.name == parameter.name) {
                return Err(self.error(format!("{name} has two parameters `{}`", parameter.name)));
            }
            parameters.push(parameter);
            if !self.accept(",") {
                self.expect(")")?;
                break;
            }
        }
        if self.peek().is_none_or(|t| t.text != "{") {
            return Err(self.error(format!("kernel {name} has no body")));
        }
        self.skip_block()?;
        Ok(KernelSignature {
            name,
            doc: head.comment.clone(),
            parameters,
            simd_width: None,
            line: head.line,
        })
    }

    fn parameter(
        &mut self,
        source: &Source,
        binding: usize,
        threadgroup: usize,
    ) -> Result<Parameter, SignatureError> {
        let qualifier = self.name()?;
        let access = match qualifier.as_str() {
            "IN" | "IN_OPTIONAL" => Some(ParameterAccess::In),
            "OUT" => Some(ParameterAccess::Out),
            "INOUT" | "INOUT_OPTIONAL" => Some(ParameterAccess::InOut),
            _ => None,
        };
        match (qualifier.as_str(), access) {
            (_, Some(access)) => {
                let element = self.element(source)?;
                let name = self.name()?;
                let index = self.indexed_attribute("buffer", binding)?;
                let optional = qualifier.ends_with("_OPTIONAL");
                Ok(Parameter {
                    name,
                    kind: ParameterKind::Buffer { element, access, optional, index },
                })
            }
            ("INLINE", _) => {
                self.expect("(")?;
                let structure = self.name()?;
                if !source.structs.iter().any(|s| s.name == structure) {
                    self.at -= 1;
                    return Err(self.error(format!(
                        "INLINE({structure}): no `struct {structure}` above in this file whose \
                         name ends in Args"
                    )));
                }
                self.expect(")")?;
                let name = self.name()?;
                let index = self.indexed_attribute("buffer", binding)?;
                Ok(Parameter { name, kind: ParameterKind::Inline { structure, index } })
            }
            ("THREADGROUP", _) => {
                let element = self.element(source)?;
                let name = self.name()?;
                if threadgroup > 0 {
                    return Err(
                        self.error("a second THREADGROUP parameter; a kernel can have one at most")
                    );
                }
                self.indexed_attribute("threadgroup", 0)?;
                Ok(Parameter { name, kind: ParameterKind::Threadgroup { element } })
            }
            (ty, _) => {
                let name = self.name()?;
                let attribute = self.attribute()?;
                let position = Position::from_attribute(&attribute).ok_or_else(|| {
                    self.error(format!("parameter `{name}`: unknown attribute [[{attribute}]]"))
                })?;
                if position.source_type() != ty {
                    return Err(self.error(format!(
                        "parameter `{name}` with [[{attribute}]] has type `{ty}`, expected `{}`",
                        position.source_type()
                    )));
                }
                Ok(Parameter { name, kind: ParameterKind::Position(position) })
            }
        }
    }

    fn element(&mut self, source: &Source) -> Result<TypeName, SignatureError> {
        self.expect("(")?;
        let name = self.name()?;
        let generic = source.elements.iter().position(|e| e.parameter == name);
        let element = generic
            .map(TypeName::Generic)
            .or_else(|| ElementType::from_source_name(&name).map(TypeName::Element))
            .ok_or_else(|| {
                self.at -= 1;
                self.error(format!("`{name}` is not an element type"))
            })?;
        self.expect(")")?;
        Ok(element)
    }

    /// `[[name]]`
    fn attribute(&mut self) -> Result<String, SignatureError> {
        self.expect("[")?;
        self.expect("[")?;
        let name = self.name()?;
        self.expect("]")?;
        self.expect("]")?;
        Ok(name)
    }

    /// `[[name(expected)]]`
    fn indexed_attribute(&mut self, name: &str, expected: usize) -> Result<usize, SignatureError> {
        self.expect("[")?;
        self.expect("[")?;
        self.expect(name)?;
        self.expect("(")?;
        let index = self.number()?;
        if index != expected {
            self.at -= 1;
            return Err(self.error(format!(
                "[[{name}({index})]], expected {expected}: indices count up from 0 in the \
                 order of the parameters"
            )));
        }
        self.expect(")")?;
        self.expect("]")?;
        self.expect("]")?;
        Ok(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NORM: &str = r#"
// File comment.

#include "simd.h"
ELEMENTS(T, half, float);

// Sizes of one call.
struct NormArgs {
    uint columns; // Columns of x.
    // Added to the mean of squares.
    float epsilon;
};
struct Other { float x; };

// Whether there is a weight.
SPECIALISE(bool, HAS_WEIGHT, 0);
static inline float helper(float x) { if (x > 0) { return x; } return 0; }

// y = x / rms(x).
// One threadgroup a row.
REQUIRES_SIMD_WIDTH(32)
kernel void norm(
    IN(T) x [[buffer(0)]],
    IN_OPTIONAL(float) weight [[buffer(1)]],
    OUT(T) y [[buffer(2)]],
    INLINE(NormArgs) args [[buffer(3)]],
    THREADGROUP(float) scratch [[threadgroup(0)]],
    uint3 group [[threadgroup_position_in_grid]]) {
    if (HAS_WEIGHT) { y[0] = x[0]; }
}
"#;

    #[test]
    fn a_kernel_file_is_read_whole() {
        let source = parse("norm", NORM).unwrap();
        assert_eq!(source.includes, ["simd.h"]);
        assert_eq!(source.elements[0].types, [ElementType::F16, ElementType::F32]);
        assert_eq!(source.structs.len(), 1);
        assert_eq!(source.structs[0].doc, "Sizes of one call.");
        assert_eq!(source.structs[0].fields[0].doc, "Columns of x.");
        assert_eq!(source.structs[0].fields[1].doc, "Added to the mean of squares.");
        assert_eq!(source.constants[0].ty, ScalarType::Bool);
        let kernel = &source.kernels[0];
        assert_eq!((kernel.name.as_str(), kernel.simd_width), ("norm", Some(32)));
        assert_eq!(kernel.doc, "y = x / rms(x).\nOne threadgroup a row.");
        let kinds: Vec<_> = kernel.parameters.iter().map(|p| p.kind.clone()).collect();
        assert_eq!(
            kinds,
            [
                ParameterKind::Buffer {
                    element: TypeName::Generic(0),
                    access: ParameterAccess::In,
                    optional: false,
                    index: 0
                },
                ParameterKind::Buffer {
                    element: TypeName::Element(ElementType::F32),
                    access: ParameterAccess::In,
                    optional: true,
                    index: 1
                },
                ParameterKind::Buffer {
                    element: TypeName::Generic(0),
                    access: ParameterAccess::Out,
                    optional: false,
                    index: 2
                },
                ParameterKind::Inline { structure: "NormArgs".into(), index: 3 },
                ParameterKind::Threadgroup { element: TypeName::Element(ElementType::F32) },
                ParameterKind::Position(Position::ThreadgroupPositionInGrid),
            ]
        );
    }

    /// Each mistake is found, at its line, with what was expected.
    #[test]
    fn mistakes_are_named_with_their_line() {
        let cases = [
            ("buffer(1)", "buffer(5)", "expected 1"),
            ("OUT(T)", "OUT(double)", "`double` is not an element type"),
            ("INLINE(NormArgs)", "INLINE(Missing)", "no `struct Missing`"),
            ("uint3 group", "float group", "expected `uint3`"),
            ("threadgroup_position_in_grid", "thread_position", "unknown attribute"),
            ("bool, HAS_WEIGHT, 0", "bool, HAS_WEIGHT, 1", "expected 0"),
            ("uint columns", "uint columns; ulong start", "put 8-byte members first"),
            ("#include \"simd.h\"", "#include <metal_stdlib>", "only the shared headers"),
            ("y[0] = x[0]; }", "y[0] = x[0];", "never closed"),
        ];
        for (from, to, expected) in cases {
            assert!(NORM.contains(from), "{from}");
            let error = parse("norm", &NORM.replacen(from, to, 1)).unwrap_err();
            assert!(error.message.contains(expected), "{to}: {error}");
            assert!(error.line > 1, "{error}");
        }
    }
}
