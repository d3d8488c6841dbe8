//! Bad input never panics and never hangs; what cannot be parsed is reported and skipped.

use std::fs;

use marlin_audit::ir::Language;
use marlin_audit::source::{Options, audit, audit_text};
use proptest::prelude::*;

const LANGUAGES: [Language; 7] = [
    Language::Python,
    Language::Rust,
    Language::ObjectiveC,
    Language::ObjectiveCpp,
    Language::Cpp,
    Language::Swift,
    Language::Metal,
];

#[test]
fn a_file_that_does_not_parse_is_skipped_and_the_others_are_audited() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("bad.py"), "import torch\ndef f(:\n  )]]\n ((( class\n")
        .expect("a file");
    fs::write(folder.path().join("binary.py"), b"import torch\0\xff\xfe\0\0").expect("a file");
    fs::write(folder.path().join("good.py"), "import torch\ndef f(x):\n    return x.cpu()\n")
        .expect("a file");
    let report = audit(&[folder.path().to_path_buf()], &Options::default()).expect("an audit");
    let skipped: Vec<_> =
        report.skipped.iter().map(|s| s.file.rsplit('/').next().unwrap_or("")).collect();
    assert_eq!(skipped, ["bad.py", "binary.py"]);
    assert_eq!(report.copies.len(), 1);
}

#[test]
fn a_missing_path_is_an_error_that_names_it() {
    let error = audit(&["/nowhere/at/all".into()], &Options::default()).expect_err("no such path");
    assert_eq!(error.to_string(), "/nowhere/at/all: no such file or folder");
}

#[test]
fn deep_nesting_does_not_exhaust_the_stack() {
    let deep = 20_000;
    let sums = vec!["x"; deep].join(" + ");
    let parentheses = format!("{}x{}", "(".repeat(deep), ")".repeat(deep));
    for (language, source) in [
        (Language::Python, format!("import torch\ny = {sums}\n")),
        (Language::Python, format!("import torch\ny = {parentheses}\n")),
        (Language::Rust, format!("fn f() {{ let y = {sums}; }}")),
        (Language::Cpp, format!("void f() {{ y = {sums}; }}")),
        (
            Language::Cpp,
            format!("void f() {{ {} y = 1; {} }}", "if (x) {".repeat(2000), "}".repeat(2000)),
        ),
        (
            Language::ObjectiveCpp,
            format!("void f() {{ {}x{}; }}", "[".repeat(3000), " y]".repeat(3000)),
        ),
        (Language::Swift, format!("let y = {}\n", vec!["x"; 500].join(" + "))),
        (Language::Metal, format!("kernel void k(device float *a) {{ a[0] = {parentheses}; }}")),
    ] {
        let report = audit_text(&[("deep", language, &source)], &Options::default());
        assert_eq!(report.totals.files, 1);
    }
}

#[test]
fn functions_that_call_one_another_come_to_an_end() {
    let source = "import Metal\ndef a(d, b):\n    return b(d, a)\ndef b(d, c):\n    x = d.newBufferWithLength_options_(4, 0)\n    return [a(d, b), x, b(d, a)]\n";
    let report = audit_text(&[("loop.py", Language::Python, source)], &Options::default());
    assert!(!report.buffers.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_text_is_survived(text in "\\PC{0,200}", language in 0usize..7) {
        audit_text(&[("any", LANGUAGES[language], &text)], &Options::default());
    }

    /// Pieces of real programs in any order reach further into the analysis than noise does.
    #[test]
    fn shuffled_programs_are_survived(
        pieces in prop::collection::vec(prop::sample::select(vec![
            "import torch\n", "def f(a, b=", "):\n    ", "x = ", "[", "]", "(", ")", "{", "}", ";\n", ",", "*", "&", "^{",
            "device.newBufferWithLength_options_(4, 0)", "[device newBufferWithLength:4 options:0]", "a[i] = b;\n",
            "device->newBuffer(4, 0)", "device.makeBuffer(length: 4)!", "contents()", ".contents", "for i in x:\n  ",
            "kernel void k(device float *a [[buffer(0)]])", "#define K(x) kernel void x##_k(device int *p)\n", "K(K(a))",
            "set_params!(e, (a, &b));", "if let Some(b) = b ", "return ", "self.a", "@implementation F\n", "- (void)r:(id)x ",
            "@end\n", "#if A\n", "#else\n", "#endif\n", "\"\"\"", "R\"(", ")\"", "lambda x: ", "fn f(a: &B) ", "impl A ",
        ]), 0..40),
        language in 0usize..7,
    ) {
        audit_text(&[("any", LANGUAGES[language], &pieces.concat())], &Options::default());
    }
}
