//! NVRTC compiles every kernel, for every element type, with no GPU present.
//!
//! Where NVRTC is not installed the test says so and passes, unless `MARLIN_REQUIRE_NVRTC` is set.
#![cfg(all(feature = "cuda", any(target_os = "linux", windows)))]

mod kernel_constants;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use marlin_gpu::cuda::{Architecture, Nvrtc, Variant, compile};
use marlin_kernels::signature::ElementType;
use marlin_kernels::{KERNELS, Kernel, PipelineKey};

/// The oldest GPUs that the kernels are for, and Hopper with its own instructions.
const ARCHITECTURES: [&str; 2] = ["sm_80", "sm_90a"];

fn nvrtc() -> Option<Nvrtc> {
    match Nvrtc::load(None) {
        Ok(nvrtc) => Some(nvrtc),
        Err(error) => {
            assert!(std::env::var_os("MARLIN_REQUIRE_NVRTC").is_none(), "{error}");
            println!("not tested: {error}");
            None
        }
    }
}

/// Every choice of types for a kernel's type parameters.
fn combinations(kernel: &Kernel) -> Vec<[Option<ElementType>; 2]> {
    let choices = |index: usize| -> Vec<Option<ElementType>> {
        kernel
            .type_parameters
            .get(index)
            .map_or(vec![None], |parameter| parameter.types.iter().copied().map(Some).collect())
    };
    let second = choices(1);
    choices(0).into_iter().flat_map(|a| second.iter().map(move |b| [a, *b])).collect()
}

#[test]
fn every_kernel_compiles_for_every_element_type() {
    let Some(nvrtc) = nvrtc() else { return };
    let mut jobs = Vec::new();
    for kernel in KERNELS {
        let combinations = combinations(kernel);
        for (set, constants) in kernel_constants::of(kernel).into_iter().enumerate() {
            for (i, &elements) in combinations.iter().enumerate() {
                for (a, architecture) in ARCHITECTURES.into_iter().enumerate() {
                    // Every type for both architectures with the first set of constants; further sets
                    // once each, types and architectures taking turns: a compilation takes half a
                    // second.
                    let turn = set % combinations.len() == i && set % ARCHITECTURES.len() == a;
                    if set == 0 || turn {
                        jobs.push((PipelineKey { kernel, elements, constants }, architecture));
                    }
                }
            }
        }
    }
    println!("{nvrtc:?}: {} compilations", jobs.len());
    let (next, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some((pipeline, architecture)) = jobs.get(next.fetch_add(1, Relaxed)) {
            let variant = Variant { threads: Some([128, 1, 1]), aliased: false };
            let target = Architecture::Real((*architecture).to_owned());
            match compile(&nvrtc, pipeline, &variant, &target) {
                Ok(compiled) => {
                    assert!(compiled.image.starts_with(b"\x7fELF"), "{pipeline:?}: not a cubin");
                    println!("{architecture} {pipeline:?}: {}", resources(&compiled.log));
                }
                Err(error) => failures.lock().unwrap().push(error.to_string()),
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    let failures = failures.into_inner().unwrap();
    let (count, all) = (failures.len(), jobs.len());
    assert!(failures.is_empty(), "{count} of {all} do not compile:\n{}", failures.join("\n"));
}

/// What the assembler said of registers and spills, and the compiler's warnings.
fn resources(log: &str) -> String {
    let lines: Vec<&str> = log
        .lines()
        .filter(|line| {
            line.contains("registers") || line.contains("spill") || line.contains("warning")
        })
        .map(|line| line.trim_start_matches("ptxas info    :").trim_start_matches("ptxas").trim())
        .collect();
    lines.join("; ")
}

#[test]
fn an_error_comes_with_the_compilers_words_and_the_line() {
    let Some(nvrtc) = nvrtc() else { return };
    let target = Architecture::Real("sm_80".to_owned());
    let source = "extern \"C\" __global__ void wrong() {\n    undeclared = 1;\n}\n";
    let error = nvrtc.compile("wrong", source, &target, &[]).unwrap_err().to_string();
    assert!(error.contains("undeclared") && error.contains("wrong.cu(2)"), "{error}");
}

#[test]
fn a_gpu_newer_than_the_compiler_gets_ptx_that_the_driver_translates() {
    let Some(nvrtc) = nvrtc() else { return };
    assert_eq!(nvrtc.architecture(8, 0).unwrap(), Architecture::Real("sm_80".to_owned()));
    assert_eq!(nvrtc.architecture(9, 0).unwrap(), Architecture::Real("sm_90a".to_owned()));
    let newer = nvrtc.architecture(99, 0).unwrap();
    assert!(matches!(&newer, Architecture::Virtual(name) if name.starts_with("compute_")));
    let source = "extern \"C\" __global__ void nothing() {}\n";
    let compiled = nvrtc.compile("nothing", source, &newer, &[]).unwrap();
    assert!(String::from_utf8_lossy(&compiled.image).contains(".entry nothing"));
}
