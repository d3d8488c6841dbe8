//! Compiles the kernels for the host: one translation unit a kernel file and combination of its
//! type parameters, with an entry point for each kernel, and the Rust table that finds them.

use std::collections::hash_map::DefaultHasher;
use std::fmt::Write as _;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs, thread};

use crate::signature::{
    ElementType, KernelSignature, ParameterAccess, ParameterKind, Position, Source, TypeName,
};

/// A kernel source, and the folder that it and its headers are in.
pub(crate) struct HostSource {
    pub(crate) source: Source,
    pub(crate) folder: PathBuf,
}

/// Set while kernels are being written: units that do not compile are left out, with a warning.
const KEEP_GOING: &str = "MARLIN_HOST_KEEP_GOING";

struct Unit {
    /// Of its files.
    name: String,
    path: PathBuf,
    /// Its own, besides those that all units share.
    includes: Vec<PathBuf>,
}

/// Compiles `sources` into a static library that the crate links, and writes
/// `host_entries.rs`.
pub(crate) fn compile(root: &Path, out: &Path, sources: &[HostSource]) -> Result<(), String> {
    let folder = out.join("host");
    fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut units = Vec::new();
    let mut table = Table::default();
    for HostSource { source, folder: kernels } in sources {
        refuse_auto(source, kernels)?;
        for types in combinations(source) {
            let suffix: String = types.iter().map(|t| format!("_{}", t.suffix())).collect();
            let name = format!("{}{suffix}", source.stem);
            let path = folder.join(format!("{name}.cpp"));
            let text = unit(source, kernels, &types, &suffix, &mut table);
            crate::write(&path, &text)?;
            let includes = vec![kernels.join(format!("{}.metal", source.stem))];
            units.push(Unit { name, path, includes });
        }
    }
    println!("cargo:rerun-if-env-changed={KEEP_GOING}");
    let compat = root.join("compat");
    for name in ["fibers", "check"] {
        let folder = compat.join("host");
        let includes = vec![folder.join("state.h"), folder.join("switch.h")];
        let path = folder.join(format!("{name}.cpp"));
        units.push(Unit { name: format!("runtime_{name}"), path, includes });
    }
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        // Half of the units' time is spent here; the checks dominate the kernels' run time anyway.
        .opt_level(1)
        .debug(false)
        .warnings(false)
        .include(&compat)
        // Nothing of the C++ library is used.
        .cpp_link_stdlib(None)
        .flag("-w")
        .flag("-fno-exceptions")
        .flag("-fno-rtti")
        // Sums and products are rounded where the source says so, as on the devices.
        .flag("-ffp-contract=off")
        // `char` is signed in Metal; on AArch64 it would not be.
        .flag("-fsigned-char")
        // The thread-local state is read at every element: no call to find it.
        .flag("-ftls-model=initial-exec");
    let objects = compile_units(&build, &folder, &units, inputs_hash(root)?)?;
    crate::write(&out.join("host_entries.rs"), &table.finish(&objects))?;
    for (_, object) in objects {
        build.object(object);
    }
    build.try_compile("marlin_host_kernels").map_err(|e| format!("host kernels: {e}"))
}

/// `auto` would name the reference to an element and not its value, so a kernel that passes elsewhere
/// would read too late here.
fn refuse_auto(source: &Source, folder: &Path) -> Result<(), String> {
    let path = folder.join(format!("{}.metal", source.stem));
    let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    for (number, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        let mut words = code.split(|c: char| !(c.is_alphanumeric() || c == '_'));
        if words.any(|w| w == "auto") {
            return Err(format!(
                "{}:{}: `auto` is not in the dialect: write the type",
                path.display(),
                number + 1
            ));
        }
    }
    Ok(())
}

/// Every choice of types for the file's type parameters; one empty choice if it has none.
fn combinations(source: &Source) -> Vec<Vec<ElementType>> {
    let mut out = vec![Vec::new()];
    for elements in &source.elements {
        out = out
            .into_iter()
            .flat_map(|chosen: Vec<ElementType>| {
                elements.types.iter().map(move |t| {
                    let mut chosen = chosen.clone();
                    chosen.push(*t);
                    chosen
                })
            })
            .collect();
    }
    out
}

#[derive(Default)]
struct Table {
    /// Unit, file's stem, symbol.
    rows: Vec<(String, String, String)>,
}

impl Table {
    /// The declarations and rows of the units that were compiled.
    fn finish(&self, compiled: &[(String, PathBuf)]) -> String {
        let mut declarations = String::new();
        let mut rows = String::new();
        for (unit, stem, symbol) in &self.rows {
            if compiled.iter().any(|(name, _)| name == unit) {
                let entry = entry_name(stem, symbol);
                let _ = writeln!(declarations, "    fn {entry}(launch: *mut HostLaunch) -> i32;");
                let _ = writeln!(rows, "    ({stem:?}, {symbol:?}, {entry}),");
            }
        }
        format!(
            "unsafe extern \"C\" {{\n{declarations}}}\n\nstatic ENTRIES: &[(&str, &str, HostEntry)] = &[\n{rows}];\n"
        )
    }
}

fn entry_name(stem: &str, symbol: &str) -> String {
    format!("marlin_host_{stem}_{symbol}")
}

/// The text of one translation unit.
fn unit(
    source: &Source,
    folder: &Path,
    types: &[ElementType],
    suffix: &str,
    table: &mut Table,
) -> String {
    let mut out = String::from("#include \"host.h\"\n");
    for (elements, ty) in source.elements.iter().zip(types) {
        let _ = writeln!(out, "#define {} {}", elements.parameter, ty.source_name());
    }
    if !suffix.is_empty() {
        for kernel in &source.kernels {
            let _ = writeln!(out, "#define {0} {0}{suffix}", kernel.name);
        }
    }
    // Static functions and a namespace of their own: two files may have helpers of the same name.
    let file = folder.join(format!("{}.metal", source.stem));
    let _ = writeln!(out, "namespace {{\n#include {:?}\n}}", file.display().to_string());
    for kernel in &source.kernels {
        let symbol = format!("{}{suffix}", kernel.name);
        let unit = format!("{}{suffix}", source.stem);
        table.rows.push((unit, source.stem.clone(), symbol.clone()));
        entry(&mut out, source, kernel, types, &symbol);
    }
    out
}

fn entry(
    out: &mut String,
    source: &Source,
    kernel: &KernelSignature,
    types: &[ElementType],
    symbol: &str,
) {
    let resolve = |name: &TypeName| match name {
        TypeName::Element(element) => element.source_name(),
        TypeName::Generic(index) => types[*index].source_name(),
    };
    let arguments: Vec<String> = kernel
        .parameters
        .iter()
        .map(|parameter| match &parameter.kind {
            ParameterKind::Buffer { element, access, index, .. } => {
                let qualifier = if *access == ParameterAccess::In { "const " } else { "" };
                format!("marlin::bound<{qualifier}{}>({index})", resolve(element))
            }
            ParameterKind::Inline { structure, index } => {
                format!("marlin::inlined<{structure}>({index})")
            }
            ParameterKind::Threadgroup { element } => {
                format!("marlin::dynamic_threadgroup<{}>()", resolve(element))
            }
            ParameterKind::Position(position) => position_expression(*position).to_owned(),
        })
        .collect();
    let _ = writeln!(
        out,
        "static void body_{symbol}() {{\n    {symbol}({});\n}}",
        arguments.join(", ")
    );
    let _ = writeln!(
        out,
        "extern \"C\" int32_t {}(MarlinLaunch *launch) {{",
        entry_name(&source.stem, symbol)
    );
    for constant in &source.constants {
        let _ = writeln!(
            out,
            "    marlin::set_constant({}, launch->constants[{}]);",
            constant.name, constant.index
        );
    }
    let _ = writeln!(out, "    return marlin::run(launch, body_{symbol});\n}}");
}

const fn position_expression(position: Position) -> &'static str {
    match position {
        Position::ThreadgroupPositionInGrid => "marlin::context.group_position",
        Position::ThreadgroupsPerGrid => "marlin::context.groups",
        Position::ThreadPositionInThreadgroup => "marlin::context.thread.position",
        Position::ThreadsPerThreadgroup => "marlin::context.threads",
        Position::ThreadIndexInThreadgroup => "marlin::context.thread.index",
        Position::ThreadIndexInSimdgroup => "marlin::context.thread.lane",
        Position::SimdgroupIndexInThreadgroup => "marlin::context.thread.group",
        Position::ThreadsPerSimdgroup => "marlin::context.simd_width",
        Position::SimdgroupsPerThreadgroup => "marlin::context.simd_groups",
    }
}

/// A hash of every file that a unit may include.
fn inputs_hash(root: &Path) -> Result<u64, String> {
    let mut hasher = DefaultHasher::new();
    for folder in ["compat", "compat/host", "metal", "metal_tests"] {
        for (name, _, text) in crate::read_folder(&root.join(folder), "")? {
            // A kernel file is hashed with its own units, and these two are not for kernels.
            let of_runtime = name == "state.h" || name == "switch.h";
            if name.ends_with(".h") && !of_runtime {
                (name, text).hash(&mut hasher);
            }
        }
    }
    Ok(hasher.finish())
}

/// Compiles what has changed since the last build, on as many threads as there are processors.
fn compile_units(
    build: &cc::Build,
    folder: &Path,
    units: &[Unit],
    headers: u64,
) -> Result<Vec<(String, PathBuf)>, String> {
    let compiler = build.try_get_compiler().map_err(|e| {
        format!("the feature `emulated` needs a C++17 compiler (set CXX to one): {e}")
    })?;
    if !compiler.is_like_gnu() && !compiler.is_like_clang() {
        return Err(format!(
            "the feature `emulated` needs GCC or Clang, found {}",
            compiler.path().display()
        ));
    }
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    let workers = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..workers.min(units.len()) {
            scope.spawn(|| {
                while let Some(unit) = units.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(message) = compile_unit(compiler.to_command(), folder, unit, headers)
                    {
                        failures
                            .lock()
                            .unwrap_or_else(|e| e.into_inner())
                            .push((unit.name.clone(), message));
                    }
                }
            });
        }
    });
    let failures: Vec<(String, String)> = failures.into_inner().unwrap_or_else(|e| e.into_inner());
    if !failures.is_empty() {
        let log: Vec<&str> = failures.iter().map(|(_, log)| log.as_str()).collect();
        if env::var_os(KEEP_GOING).is_none() {
            return Err(format!("{}\n({KEEP_GOING}=1 leaves these out)", log.join("\n")));
        }
        for line in log.iter().flat_map(|l| l.lines()) {
            println!("cargo:warning={line}");
        }
    }
    Ok(units
        .iter()
        .filter(|u| !failures.iter().any(|(name, _)| *name == u.name))
        .map(|u| (u.name.clone(), folder.join(format!("{}.o", u.name))))
        .collect())
}

fn compile_unit(
    mut command: Command,
    folder: &Path,
    unit: &Unit,
    headers: u64,
) -> Result<(), String> {
    let object = folder.join(format!("{}.o", unit.name));
    let stamp = folder.join(format!("{}.hash", unit.name));
    let text =
        fs::read_to_string(&unit.path).map_err(|e| format!("{}: {e}", unit.path.display()))?;
    let mut hasher = DefaultHasher::new();
    (headers, &text, format!("{command:?}"), env::var("TARGET").ok()).hash(&mut hasher);
    for included in &unit.includes {
        fs::read(included).map_err(|e| format!("{}: {e}", included.display()))?.hash(&mut hasher);
    }
    let hash = hasher.finish().to_string();
    if unit.name.starts_with("runtime_") {
        // Small, and called at every access: worth the compiler's time.
        command.arg("-O2");
    }
    if object.exists() && fs::read_to_string(&stamp).is_ok_and(|old| old == hash) {
        return Ok(());
    }
    let output = command
        .arg("-c")
        .arg(&unit.path)
        .arg("-o")
        .arg(&object)
        .output()
        .map_err(|e| format!("{command:?}: {e}"))?;
    if !output.status.success() {
        return Err(format!(
            "{} does not compile for the host:\n{}",
            unit.name,
            String::from_utf8_lossy(&output.stderr)
        ));
    }
    crate::write(&stamp, &hash)
}
