//! What a submission costs on an NVIDIA GPU, and how fast bytes get there and back.

#[cfg(all(feature = "cuda", any(target_os = "linux", windows)))]
fn main() -> Result<(), marlin_gpu::GpuError> {
    cuda::run()
}

#[cfg(not(all(feature = "cuda", any(target_os = "linux", windows))))]
fn main() {
    println!("built without the feature `cuda`");
}

#[cfg(all(feature = "cuda", any(target_os = "linux", windows)))]
mod cuda {
    use std::marker::PhantomData;
    use std::sync::Arc;
    use std::time::Instant;

    use marlin_gpu::cuda::Cuda;
    use marlin_gpu::{Command, CommandList, Device, GpuError, Region};
    use marlin_kernels::activation::{ActivationConstants, GatedActivation, GatedActivationArgs};
    use marlin_kernels::{Allocation, Grid};
    use marlin_placement::AccessPattern;

    pub(super) fn run() -> Result<(), GpuError> {
        let cuda = Cuda::open(0)?;
        let device: &dyn Device = &cuda;
        println!("{:?}", device.properties());
        launches(device)?;
        copies(device)
    }

    /// Graphs of tiny kernels: what is left is the launch.
    fn launches(device: &dyn Device) -> Result<(), GpuError> {
        let x = device.allocate::<f32>("x", 256, AccessPattern::DEVICE_ONLY)?;
        let y = device.allocate::<f32>("y", 128, AccessPattern::DEVICE_ONLY)?;
        for kernels in [1usize, 10, 100, 1000] {
            let mut list = CommandList::new("tiny");
            for _ in 0..kernels {
                let launcher = GatedActivation {
                    gate_up: x.view(),
                    out: y.view_mut()?,
                    args: GatedActivationArgs { rows: 1, columns: 128 },
                    constants: ActivationConstants { activation: 2, whole: false },
                    elements: PhantomData,
                };
                list.launch(launcher, Grid::x(1, 128));
            }
            let begin = Instant::now();
            let recording = device.record(list)?;
            let record = begin.elapsed();
            device.submit(&recording)?.wait()?;
            let (mut submit, mut round_trip, mut gpu) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..200 {
                let begin = Instant::now();
                let submission = device.submit(&recording)?;
                submit.push(begin.elapsed());
                let completed = submission.wait()?;
                round_trip.push(begin.elapsed());
                gpu.push(completed.gpu_time.unwrap_or_default());
            }
            let begin = Instant::now();
            let submissions =
                (0..200).map(|_| device.submit(&recording)).collect::<Result<Vec<_>, _>>()?;
            drop(submissions);
            let back_to_back = begin.elapsed() / 200;
            for times in [&mut submit, &mut round_trip, &mut gpu] {
                times.sort();
            }
            println!(
                "{kernels} kernels: record {record:?}; median submit {:?}, round trip {:?}, GPU {:?}; back to back {back_to_back:?}",
                submit[100], round_trip[100], gpu[100]
            );
        }
        Ok(())
    }

    fn copies(device: &dyn Device) -> Result<(), GpuError> {
        let len = 1usize << 30;
        let host = vec![1u8; len];
        let a = device.allocate::<u8>("a", len, AccessPattern::DEVICE_ONLY)?;
        let b = device.allocate::<u8>("b", len, AccessPattern::DEVICE_ONLY)?;
        let rate = |name: &str, seconds: f64| {
            println!("{name}: {:.1} GB/s", len as f64 / seconds / 1e9);
        };
        for _ in 0..2 {
            let begin = Instant::now();
            device.upload(a.allocation(), 0, &host)?;
            device.download(a.allocation(), 0, &mut [0; 1])?;
            rate("upload through staging", begin.elapsed().as_secs_f64());
        }
        let mut back = vec![0u8; len];
        let begin = Instant::now();
        device.download(a.allocation(), 0, &mut back)?;
        rate("download through staging", begin.elapsed().as_secs_f64());
        let region = |allocation: &Arc<dyn Allocation>| Region {
            allocation: allocation.clone(),
            offset: 0,
            bytes: len as u64,
        };
        let mut list = CommandList::new("copy");
        for _ in 0..8 {
            let (source, destination) = (region(a.allocation()), region(b.allocation()));
            list.push(Command::Copy { source, destination });
        }
        let recording = device.record(list)?;
        for _ in 0..2 {
            let completed = device.submit(&recording)?.wait()?;
            let seconds = completed.gpu_time.unwrap_or_default().as_secs_f64() / 8.0;
            rate("copy command (bytes copied; read and written is twice that)", seconds);
        }
        // A kernel that reads pinned host memory where it lies.
        let columns = 1u32 << 26;
        let shared = device.allocate::<f32>(
            "shared",
            2 * columns as usize,
            AccessPattern::new(
                marlin_placement::HostAccess::Unknown,
                marlin_placement::DeviceAccess::Reads,
            ),
        )?;
        let out = device.allocate::<f32>("out", columns as usize, AccessPattern::DEVICE_ONLY)?;
        let mut list = CommandList::new("read over the bus");
        let launcher = GatedActivation {
            gate_up: shared.view(),
            out: out.view_mut()?,
            args: GatedActivationArgs { rows: 1, columns },
            constants: ActivationConstants { activation: 2, whole: true },
            elements: PhantomData,
        };
        list.launch(launcher, Grid::x(columns / 8 / 256, 256));
        let recording = device.record(list)?;
        let completed = device.submit(&recording)?.wait()?;
        let seconds = completed.gpu_time.unwrap_or_default().as_secs_f64();
        println!(
            "shared memory read by a kernel: {:.1} GB/s",
            8.0 * f64::from(columns) / seconds / 1e9
        );
        Ok(())
    }
}
