//! How long sampling takes on an NVIDIA GPU: per setting, the median over many submissions of one graph, for a graph with
//! one choice and for one with many, whose share leaves the submission itself out.

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
    use marlin_backend::{SamplingSettings, uniform};
    use marlin_gpu::cuda::Cuda;
    use marlin_gpu::ops::sample::{self, Sample, SampleScratch, settings_record};
    use marlin_gpu::{CommandList, Device, GpuError};
    use marlin_placement::AccessPattern;

    const VOCABULARY: usize = 151_936;
    const HISTORY: usize = 8192;
    /// Choices of the long graph.
    const REPEATS: u32 = 50;
    const SUBMISSIONS: usize = 200;

    pub(super) fn run() -> Result<(), GpuError> {
        let cuda = Cuda::open(0)?;
        let device: &dyn Device = &cuda;
        println!("{}, vocabulary {VOCABULARY}", device.properties().name);
        let open = SamplingSettings { temperature: 1.0, ..SamplingSettings::GREEDY };
        let penalties = SamplingSettings {
            repeat_penalty: 1.1,
            repeat_last_n: 4096,
            ..SamplingSettings::default()
        };
        let settings = [
            ("arg-max by settings", SamplingSettings::GREEDY, 14.0),
            ("top-k 40, top-p 0.95, min-p 0.05", SamplingSettings::default(), 14.0),
            ("the same, penalties over 4096 tokens", penalties, 14.0),
            ("top-k 40", SamplingSettings { top_k: 40, ..open.clone() }, 14.0),
            ("top-k 1000", SamplingSettings { top_k: 1000, ..open.clone() }, 14.0),
            ("top-p 0.9", SamplingSettings { top_p: 0.9, ..open.clone() }, 14.0),
            ("min-p 0.05", SamplingSettings { min_p: 0.05, ..open.clone() }, 14.0),
            ("temperature alone", open.clone(), 14.0),
            ("top-p 0.9, flat distribution", SamplingSettings { top_p: 0.9, ..open }, 1.0),
        ];
        for rows in [1, 16] {
            arg_max(device, rows)?;
            for (name, settings, spread) in &settings {
                choose(device, rows, name, settings, *spread)?;
            }
        }
        Ok(())
    }

    /// Logits with a spread: with 14 a model's, of which a few dozen matter, with 1 nearly flat.
    fn logits(rows: usize, spread: f32) -> Vec<f32> {
        let normal = |i: u64| (0..4).map(|j| uniform(7, 4 * i + j) - 0.5).sum::<f32>();
        let row: Vec<f32> = (0..VOCABULARY as u64).map(|i| spread * normal(i)).collect();
        row.repeat(rows)
    }

    fn arg_max(device: &dyn Device, rows: usize) -> Result<(), GpuError> {
        let logits = device.upload_new("logits", &logits(rows, 14.0))?;
        let outputs: Vec<u32> = (0..rows as u32).flat_map(|slot| [slot, 5000]).collect();
        let outputs = device.upload_new("outputs", &outputs)?;
        let tokens = device.allocate("tokens", rows, AccessPattern::DEVICE_ONLY)?;
        let sampled = device.allocate("sampled", rows, AccessPattern::DEVICE_ONLY)?;
        let scratch = SampleScratch::new(device, rows, VOCABULARY)?;
        time(device, rows, "arg-max", |list| {
            let (outputs, by_slot) = (outputs.view(), sampled.view_mut()?);
            let (logits, tokens) = (logits.view(), tokens.view_mut()?);
            sample::arg_max(list, rows, logits, outputs, tokens, by_slot, &scratch)
        })
    }

    fn choose(
        device: &dyn Device,
        rows: usize,
        name: &str,
        settings: &SamplingSettings,
        spread: f32,
    ) -> Result<(), GpuError> {
        let records: Vec<u32> = (0..rows).flat_map(|_| settings_record(settings)).collect();
        let outputs: Vec<u32> = (0..rows as u32).flat_map(|slot| [slot, 5000]).collect();
        let history: Vec<u32> =
            (0..(rows * HISTORY) as u32).map(|i| i.wrapping_mul(2_654_435_761) % 50_000).collect();
        let logits = device.upload_new("logits", &logits(rows, spread))?;
        let settings = device.upload_new("settings", &records)?;
        let outputs = device.upload_new("outputs", &outputs)?;
        let history = device.upload_new("history", &history)?;
        let draws = device.upload_new("draws", &vec![0_u64; rows])?;
        let tokens = device.allocate("tokens", rows, AccessPattern::DEVICE_ONLY)?;
        let sampled = device.allocate("sampled", rows, AccessPattern::DEVICE_ONLY)?;
        let scratch = SampleScratch::new(device, rows, VOCABULARY)?;
        time(device, rows, name, |list| {
            let io = Sample {
                logits: logits.view(),
                outputs: outputs.view(),
                settings: settings.view(),
                history: history.view(),
                history_length: HISTORY,
                draws: draws.view_mut()?,
                tokens: tokens.view_mut()?,
                sampled: sampled.view_mut()?,
                softcap: None,
            };
            sample::sample(list, rows, io, &scratch)
        })
    }

    fn time(
        device: &dyn Device,
        rows: usize,
        name: &str,
        append: impl Fn(&mut CommandList) -> Result<(), GpuError>,
    ) -> Result<(), GpuError> {
        let median = |repeats: u32| {
            let mut list = CommandList::new(name);
            for _ in 0..repeats {
                append(&mut list)?;
            }
            let recording = device.record(list)?;
            let mut times = Vec::with_capacity(SUBMISSIONS);
            for _ in 0..SUBMISSIONS {
                let completed = device.submit(&recording)?.wait()?;
                times.push(completed.gpu_time.unwrap_or_default());
            }
            times.sort_unstable();
            Ok::<_, GpuError>(times[SUBMISSIONS / 2].as_secs_f64() * 1e6)
        };
        let (one, many) = (median(1)?, median(REPEATS)? / f64::from(REPEATS));
        println!("{rows:3} × {name}: {one:.1} µs a submission, {many:.1} µs each of {REPEATS}");
        Ok(())
    }
}
