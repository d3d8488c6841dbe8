//! One run of clang over a source: its own diagnostics, then the restrictions that it does not know.

use std::env;
use std::fmt;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

use crate::{ast, attributes, restrictions};

/// Something that Apple's compiler or the dialect refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// The file's name, as in `#line`.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.message)
    }
}

/// The compiler.
pub(crate) struct Clang {
    program: PathBuf,
}

/// C++ for OpenCL 2021 has Metal's address-space rules on top of C++17; with every extension off but
/// half precision and the generic address space, `double` and pointers to functions are errors too.
/// (The generic address space is what a pointer without one gets, see `restrictions`.) Metal 3.0
/// is C++14, so C++17's additions are warned about. No warning of clang's says anything about an
/// unused function of the shared headers that a kernel file leaves alone.
const OPTIONS: &[&str] = &[
    "-x",
    "clcpp",
    "-cl-std=clc++2021",
    "-cl-no-stdinc",
    "-target",
    "spir64",
    "-Xclang",
    "-cl-ext=-all,+cl_khr_fp16,+__opencl_c_generic_address_space",
    "-fsyntax-only",
    "-fno-color-diagnostics",
    "-fno-caret-diagnostics",
    "-ferror-limit=0",
    "-Wall",
    "-Wextra",
    "-Wpre-c++17-compat",
    "-Wno-unused-function",
    "-Wno-unused-parameter",
    "-Wno-unneeded-internal-declaration",
    "-Xclang",
    "-ast-dump",
];

impl Clang {
    /// clang 19: the program in `MARLIN_CLANG`, or `clang-19`.
    ///
    /// None, with a word on the standard error, where there is none.
    ///
    /// # Panics
    /// Where there is none and `MARLIN_REQUIRE_CLANG` is set.
    pub(crate) fn find() -> Option<Self> {
        let program = env::var_os("MARLIN_CLANG").map_or_else(|| "clang-19".into(), PathBuf::from);
        let output = Command::new(&program).arg("--version").output();
        let version = output
            .map(|o| String::from_utf8_lossy(&o.stdout).into_owned())
            .map_err(|e| format!("{}: {e}", program.display()));
        let problem = match version {
            Ok(text) if text.contains("clang version 19.") => return Some(Self { program }),
            Ok(text) => format!("{} is not clang 19: {text}", program.display()),
            Err(problem) => problem,
        };
        let message = format!(
            "NOT CHECKED as Metal Shading Language: {problem}\n\
             Install clang-19, or set MARLIN_CLANG to its path."
        );
        assert!(env::var_os("MARLIN_REQUIRE_CLANG").is_none(), "{message}");
        eprintln!("{message}");
        None
    }

    /// What is wrong with `source`, a Metal file without includes but for Metal's own.
    pub(crate) fn check(&self, source: &str) -> Vec<Finding> {
        let source = attributes::with_copies_of_arguments(&attributes::as_annotations(source));
        let mut child = Command::new(&self.program)
            .args(OPTIONS)
            .args(["-isystem", "compat/msl", "-"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("clang starts");
        let mut stdin = child.stdin.take().expect("a piped stdin");
        // The source is longer than a pipe holds, so it is written beside the reading.
        let writer = thread::spawn(move || stdin.write_all(source.as_bytes()));
        let output = child.wait_with_output().expect("clang ends");
        let stderr = String::from_utf8_lossy(&output.stderr);
        let mut findings = diagnostics(&stderr);
        if let Err(error) = writer.join().expect("the writer") {
            findings.push(Finding {
                file: "<stdin>".into(),
                line: 0,
                message: format!("clang did not read the source: {error}"),
            });
        }
        if findings.is_empty() && !output.status.success() {
            findings.push(Finding {
                file: "clang".into(),
                line: 0,
                message: format!("{}: {stderr}", output.status),
            });
        }
        if findings.is_empty() {
            let dump = String::from_utf8_lossy(&output.stdout);
            findings = restrictions::violations(&ast::nodes(&dump));
        }
        findings
    }
}

/// Errors and warnings; `clang: error: …` is one too.
fn diagnostics(stderr: &str) -> Vec<Finding> {
    let mut out = Vec::new();
    for line in stderr.lines() {
        let Some(at) = [": error: ", ": fatal error: ", ": warning: "]
            .iter()
            .filter_map(|kind| line.find(kind))
            .min()
        else {
            continue;
        };
        let (place, message) = (&line[..at], &line[at + 2..]);
        let mut parts = place.rsplitn(3, ':');
        let (_, number, file) = (parts.next(), parts.next(), parts.next());
        out.push(match (number.and_then(|n| n.parse().ok()), file) {
            (Some(line), Some(file)) => {
                Finding { file: file.to_owned(), line, message: message.to_owned() }
            }
            _ => Finding { file: place.to_owned(), line: 0, message: message.to_owned() },
        });
    }
    out
}
