//! `marlin bench kernels`: how fast GPU kernels run, and how fast memory would let them.

use clap::ValueEnum;
use marlin_formats::Format;

/// Measure GPU kernels one by one, against the memory's measured rates
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  marlin bench kernels
  marlin bench kernels --device cuda:1 --kernel gemm --format int4-g128 --shape 8192x8192 --tokens 1,16
  marlin bench kernels --json > kernels.json

A time is the median over several submissions, each of many runs over operands that together do not fit
the caches. The floor is the time that the bytes which must move take at the read (Hadamard: copy) rate
measured in the same run.")]
pub(crate) struct Args {
    /// The GPU: cuda or cuda:N
    #[arg(long, default_value = "cuda", value_name = "DEVICE")]
    device: String,

    /// Kernels to measure [default: all]
    #[arg(long = "kernel", value_enum, value_delimiter = ',', value_name = "KERNEL")]
    kernels: Vec<Kernel>,

    /// Weight formats of products
    #[arg(
        long = "format",
        value_delimiter = ',',
        default_value = "int4-g128,fp4-g128",
        value_name = "FORMAT"
    )]
    formats: Vec<Format>,

    /// Input × output features of products
    #[arg(
        long = "shape",
        value_delimiter = ',',
        value_parser = parse_shape,
        default_value = "4096x4096,4096x14336,14336x4096,8192x8192,8192x28672,16384x16384",
        value_name = "KxN"
    )]
    shapes: Vec<(usize, usize)>,

    /// Tokens of products
    #[arg(long, value_delimiter = ',', default_value = "1,4,16,64", value_name = "M")]
    tokens: Vec<usize>,

    /// Positions that attention reads
    #[arg(long, default_value_t = 32768, value_name = "N")]
    context: usize,

    /// Logits to choose a token from
    #[arg(long, default_value_t = 151_936, value_name = "N")]
    vocabulary: usize,

    /// Try every division of products, and measure the fastest as well
    #[arg(long)]
    tuned: bool,

    /// Write JSON instead of a Markdown table
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kernel {
    /// Products by matrix fragments
    Gemm,
    /// Products in f32
    Gemv,
    /// Decode attention
    Attention,
    /// The choice of a token
    Sample,
    /// Hadamard transforms
    Hadamard,
}

/// `4096x14336` → (4096, 14336).
fn parse_shape(text: &str) -> Result<(usize, usize), String> {
    let numbers = text.split_once(['x', '×']).and_then(|(columns, rows)| {
        Some((columns.parse().ok()?, rows.parse().ok()?)).filter(|&(c, r)| c > 0 && r > 0)
    });
    numbers.ok_or_else(|| format!("`{text}` is no shape, expected two sizes such as 4096x14336"))
}

#[cfg(not(all(feature = "cuda", any(target_os = "linux", windows))))]
pub(crate) fn run(args: &Args) -> Result<(), crate::error::CliError> {
    let reason = format!("device {}: this build knows no GPU", args.device);
    Err(crate::error::CliError::failed(reason))
}

#[cfg(all(feature = "cuda", any(target_os = "linux", windows)))]
pub(crate) use cuda::run;

#[cfg(all(feature = "cuda", any(target_os = "linux", windows)))]
mod cuda {
    use marlin_gpu::Device;
    use marlin_gpu::bench::{self, BenchOptions, Ceilings, KernelResult, Selection};
    use marlin_gpu::cuda::Cuda;
    use serde::Serialize;

    use super::{Args, Kernel};
    use crate::error::CliError;
    use crate::output::{print, print_json};
    use crate::totals::rounded;

    /// Bytes that the ceilings are measured over: far more than any cache holds.
    const CEILING_BYTES: u64 = 2 << 30;

    #[derive(Serialize)]
    struct Report {
        device: String,
        architecture: String,
        read_gb_s: f64,
        copy_gb_s: f64,
        results: Vec<Line>,
    }

    #[derive(Serialize)]
    struct Line {
        kernel: &'static str,
        format: String,
        shape: String,
        us: f64,
        gb_s: f64,
        tflop_s: f64,
        floor_pct: f64,
    }

    impl Line {
        fn new(result: &KernelResult) -> Self {
            Self {
                kernel: result.kernel,
                format: result.format.clone(),
                shape: result.shape.clone(),
                us: rounded(result.microseconds),
                gb_s: rounded(result.bytes / result.microseconds / 1e3),
                tflop_s: rounded(result.flops / result.microseconds / 1e6),
                floor_pct: rounded(result.floor * 100.0),
            }
        }

        fn row(&self) -> String {
            format!(
                "| {} | {} | {} | {:.1} | {:.0} | {:.1} | {:.1} % |\n",
                self.kernel,
                self.format,
                self.shape.replace('|', "/"),
                self.us,
                self.gb_s,
                self.tflop_s,
                self.floor_pct
            )
        }
    }

    fn open(name: &str) -> Result<Cuda, CliError> {
        let index = match name.split_once(':') {
            None if name == "cuda" => Some(0),
            Some(("cuda", index)) => index.parse().ok(),
            _ => None,
        };
        let index = index.ok_or_else(|| {
            CliError::Usage(format!("`{name}` is no GPU, expected cuda or cuda:N"))
        })?;
        Cuda::open(index).map_err(|error| CliError::failed(error.to_string()))
    }

    pub(crate) fn run(args: &Args) -> Result<(), CliError> {
        let device = open(&args.device)?;
        let device: &dyn Device = &device;
        let failed = |error: marlin_gpu::GpuError| CliError::failed(error.to_string());
        let ceilings = bench::measure_ceilings(device, CEILING_BYTES).map_err(failed)?;
        let kernels: Vec<Selection> = match args.kernels.as_slice() {
            [] => Selection::ALL.into(),
            chosen => chosen.iter().map(|kernel| Selection::from(*kernel)).collect(),
        };
        let options = BenchOptions {
            kernels,
            formats: args.formats.clone(),
            shapes: args.shapes.clone(),
            tokens: args.tokens.clone(),
            context: args.context,
            vocabulary: args.vocabulary,
            tuned: args.tuned,
        };
        if !args.json {
            print(&header(device, &ceilings))?;
        }
        let mut failure = Ok(());
        let results = bench::run(device, &options, &ceilings, |result| {
            if !args.json && failure.is_ok() {
                failure = print(&Line::new(result).row());
            }
        })
        .map_err(failed)?;
        failure?;
        if !args.json {
            return Ok(());
        }
        print_json(&Report {
            device: device.properties().name.clone(),
            architecture: device.properties().architecture.clone(),
            read_gb_s: rounded(ceilings.read_bytes_per_s / 1e9),
            copy_gb_s: rounded(ceilings.copy_bytes_per_s / 1e9),
            results: results.iter().map(Line::new).collect(),
        })
    }

    fn header(device: &dyn Device, ceilings: &Ceilings) -> String {
        format!(
            "{} ({}): reads {:.0} GB/s, copies {:.0} GB/s\n\n\
             | kernel | format | shape | µs | GB/s | TFLOP/s | of the floor |\n\
             |---|---|---|--:|--:|--:|--:|\n",
            device.properties().name,
            device.properties().architecture,
            ceilings.read_bytes_per_s / 1e9,
            ceilings.copy_bytes_per_s / 1e9
        )
    }

    impl From<Kernel> for Selection {
        fn from(kernel: Kernel) -> Self {
            match kernel {
                Kernel::Gemm => Self::Gemm,
                Kernel::Gemv => Self::Gemv,
                Kernel::Attention => Self::Attention,
                Kernel::Sample => Self::Sample,
                Kernel::Hadamard => Self::Hadamard,
            }
        }
    }
}
