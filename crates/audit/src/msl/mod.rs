//! What Metal kernels do with the buffers bound to them.
//!
//! The Metal Shading Language (Metal Shading Language Specification, section 5.2 "Function
//! attributes" and 5.2.1 "Locating buffer, texture, and sampler arguments") names the buffer
//! index of every argument in the kernel's signature: `device const float *a [[buffer(0)]]`.
//! `constant` and `const device` arguments are read; a `device` argument is written, and read
//! as well where the body reads it. Both are decided here from the tokens, because MSL's address
//! spaces and attributes are outside what a C++ grammar accepts.

mod body;
mod lexer;
mod macros;
mod signature;

pub use signature::kernels;

/// A kernel, vertex or fragment function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// The name that the host looks it up by: `[[host_name("…")]]` where given.
    pub name: String,
    /// Its buffer arguments.
    pub params: Vec<KernelParam>,
    /// Byte offset of the name in the shader's text.
    pub offset: u32,
}

/// Where an argument is bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Index {
    /// `[[buffer(3)]]`, or its position among the buffers where no attribute is given.
    Number(u32),
    /// `[[buffer(VertexInputIndexVertices)]]`, a constant shared with the host code.
    Name(String),
}

/// A buffer argument of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelParam {
    /// Its name.
    pub name: String,
    /// Where it is bound.
    pub index: Index,
    /// Whether it lies in the `constant` address space.
    pub is_constant: bool,
    /// The body reads it.
    pub reads: bool,
    /// The body writes it.
    pub writes: bool,
}

impl Kernel {
    /// The argument bound at `index`.
    pub fn param(&self, index: &Index) -> Option<&KernelParam> {
        self.params.iter().find(|p| p.index == *index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(source: &str, kernel: &str) -> Vec<(String, bool, bool)> {
        let found = kernels(source);
        let kernel = found.iter().find(|k| k.name == kernel).unwrap_or_else(|| panic!("{found:?}"));
        kernel.params.iter().map(|p| (p.name.clone(), p.reads, p.writes)).collect()
    }

    fn row(name: &str, reads: bool, writes: bool) -> (String, bool, bool) {
        (name.to_string(), reads, writes)
    }

    #[test]
    fn address_spaces_and_the_body_decide_the_access() {
        let source = "
            kernel void f(constant uint &n [[buffer(3)]], device const float *a [[buffer(0)]],
                          device float *out [[buffer(1)]], const device float *b [[buffer(2)]],
                          device float *acc [[ buffer(4) ]], threadgroup float *t [[threadgroup(0)]],
                          texture2d<float> image [[texture(0)]], uint i [[thread_position_in_grid]]) {
                out[i] = a[i] * b[i]; acc[i] += a[i]; if (acc[i] == 0) return;
            }";
        assert_eq!(
            access(source, "f"),
            [
                row("n", true, false),
                row("a", true, false),
                row("out", false, true),
                row("b", true, false),
                row("acc", true, true)
            ]
        );
        assert_eq!(kernels(source)[0].params[0].index, Index::Number(3));
    }

    #[test]
    fn pointers_are_followed_through_aliases_casts_atomics_and_calls() {
        let source = "
            void put(device float *p, float v) { *p = v; }
            float get(device float *p) { return p[0]; }
            kernel void f(device float *a, device float *b, device atomic_uint *c, device float *d,
                          device float4 *e, device float *g) {
                device float *q = a + 4; q[0] = 1;
                put(b, get(g));
                atomic_fetch_add_explicit(&c[0], 1, memory_order_relaxed);
                ((device float4 *)d)[1] = e[0];
            }";
        assert_eq!(
            access(source, "f"),
            [
                row("a", false, true),
                row("b", false, true),
                row("c", true, true),
                row("d", false, true),
                row("e", true, false),
                row("g", true, false)
            ]
        );
    }

    #[test]
    fn macros_and_host_names_make_kernels() {
        let source = r#"
            #define UNARY(FN, T, NAME) \
            kernel void NAME(constant size_t &dim, device const T *input, device T *output, \
                             uint i [[thread_position_in_grid]]) { output[i] = FN(input[i]); }
            #define ALL(F) UNARY(F, float, F##_f32) UNARY(F, half, F##_f16)
            ALL(cos)
            template <typename T> [[kernel]] void add(device T *x [[buffer(0)]]) { x[0] = x[1]; }
            template [[host_name("add_f32")]] [[kernel]] void add<float>(device float *x [[buffer(0)]]);
            typedef decltype(add<half>) add_t;
            template [[host_name("add_f16")]] kernel add_t add<half>;
        "#;
        for name in ["cos_f32", "cos_f16"] {
            assert_eq!(
                access(source, name),
                [row("dim", true, false), row("input", true, false), row("output", false, true)]
            );
        }
        for name in ["add_f32", "add_f16"] {
            assert_eq!(access(source, name), [row("x", true, true)]);
        }
    }

    #[test]
    fn indices_may_be_constants_shared_with_the_host() {
        let source = "
            #define OUT 7
            fragment float4 f(device float *o [[buffer(OUT)]],
                              constant V *v [[buffer(VertexInputIndexVertices)]]) { o[0] = 1; }";
        let found = kernels(source);
        assert_eq!(found[0].params[0].index, Index::Number(7));
        assert_eq!(found[0].params[1].index, Index::Name("VertexInputIndexVertices".into()));
    }
}
