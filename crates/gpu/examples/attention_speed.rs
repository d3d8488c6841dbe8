//! How fast attention reads a key/value cache on an NVIDIA GPU: decoding one token at 32768 positions, eight key
//! heads of 128 values, 32 query heads; and in the latent space. Caches are used in turn, so that none of it
//! is in the second-level cache.

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
    use half::f16;
    use marlin_gpu::cuda::Cuda;
    use marlin_gpu::ops::attention::{
        Attention, DecodeShape, RowShape, decode_splits, workspace_len,
    };
    use marlin_gpu::ops::kv_cache::{KV_BLOCK, KvAddressing, KvLayout, KvStorage};
    use marlin_gpu::ops::mla::{LatentLayout, MlaAttention, latent_splits};
    use marlin_gpu::{Buffer, Command, CommandList, Device, GpuError, Region};
    use marlin_kernels::{Allocation, Element};
    use marlin_placement::AccessPattern;
    use std::sync::Arc;

    const CONTEXT: u32 = 32768;

    pub(super) fn run() -> Result<(), GpuError> {
        let cuda = Cuda::open(0)?;
        let device: &dyn Device = &cuda;
        println!("{}", device.properties().name);
        for storage in KvStorage::ALL {
            for heads in [32, 64] {
                let layout = KvLayout::new(storage, 8, 128)?;
                let splits = decode_splits(&layout, heads, 1, CONTEXT, device.properties());
                for splits in [splits, splits / 2, splits * 3 / 2, splits * 2] {
                    decode(device, layout, heads, CONTEXT, DecodeShape { splits, short: false })?;
                }
            }
        }
        for storage in KvStorage::ALL {
            contexts(device, KvLayout::new(storage, 8, 128)?)?;
        }
        prefill(device, 2048)?;
        for heads in [16, 128] {
            let splits = latent_splits(heads, 1, CONTEXT, device.properties());
            latent(device, heads, splits)?;
        }
        Ok(())
    }

    /// Short and middling contexts, by both kernels.
    fn contexts(device: &dyn Device, layout: KvLayout) -> Result<(), GpuError> {
        for context in [128, 256, 512, 1024, 2048, 4096, 8192, 16384] {
            let long = decode_splits(&layout, 32, 1, context, device.properties());
            decode(device, layout, 32, context, DecodeShape { splits: long, short: false })?;
            for splits in [1, 4, 8, 16, 32] {
                if splits == 1 && context <= 1024 || splits > 1 && context >= 64 * splits {
                    decode(device, layout, 32, context, DecodeShape { splits, short: true })?;
                }
            }
        }
        Ok(())
    }

    fn filled<T: Element>(
        device: &dyn Device,
        len: usize,
        value: u8,
    ) -> Result<Buffer<T>, GpuError> {
        let buffer = device.allocate::<T>("buffer", len, AccessPattern::DEVICE_ONLY)?;
        let allocation: Arc<dyn Allocation> = buffer.allocation().clone();
        let bytes = (len * size_of::<T>()) as u64;
        let mut commands = CommandList::new("fill");
        commands.push(Command::Fill { region: Region { allocation, offset: 0, bytes }, value });
        device.run(commands)?;
        Ok(buffer)
    }

    /// Median seconds of one of the list's `parts`.
    fn median(device: &dyn Device, commands: CommandList, parts: usize) -> Result<f64, GpuError> {
        let recording = device.record(commands)?;
        let mut times = Vec::new();
        for _ in 0..25 {
            let completed = device.submit(&recording)?.wait()?;
            times.push(completed.gpu_time.unwrap_or_default().as_secs_f64() / parts as f64);
        }
        times.sort_by(f64::total_cmp);
        Ok(times[times.len() / 2])
    }

    /// The same commands without the reductions.
    fn without_reductions(commands: &CommandList) -> CommandList {
        let mut out = CommandList::new("without reductions");
        for command in commands.commands() {
            if !matches!(command, Command::Dispatch(d) if d.pipeline.kernel.name == "attention_reduce")
            {
                out.push(command.clone());
            }
        }
        out
    }

    fn decode(
        device: &dyn Device,
        layout: KvLayout,
        heads: u32,
        context: u32,
        shape: DecodeShape,
    ) -> Result<(), GpuError> {
        let splits = shape.splits;
        let blocks = context / KV_BLOCK;
        let pieces = layout.block_pieces() * blocks as usize;
        let bytes = layout.bytes(u64::from(context));
        let count = (600_000_000 / bytes as usize).clamp(4, 128);
        let caches = (0..count)
            .map(|_| filled::<[u32; 4]>(device, pieces, 0x2c))
            .collect::<Result<Vec<_>, _>>()?;
        let width = heads * layout.head_dim();
        let query = filled::<f16>(device, width as usize, 0x2c)?;
        let out = filled::<f16>(device, width as usize, 0)?;
        let workspace =
            filled::<f32>(device, workspace_len(1, heads, splits, layout.head_dim()), 0)?;
        let sequences = device.upload_new("sequences", &[0u32])?;
        let positions = device.upload_new("positions", &[context - 1])?;
        let mut commands = CommandList::new("decode");
        for cache in &caches {
            Attention {
                query: query.view(),
                query_stride: width,
                heads,
                cache: cache.view(),
                layout,
                addressing: KvAddressing::Contiguous { blocks },
                sequences: sequences.view(),
                positions: positions.view(),
                tiles: None,
                scale: 0.088,
                window: None,
                softcap: None,
                shape,
                workspace: workspace.view_mut()?,
                out: out.view_mut()?,
                out_stride: width,
            }
            .encode(device.properties(), &mut commands)?;
        }
        let alone = median(device, without_reductions(&commands), count)?;
        let seconds = median(device, commands, count)?;
        let rate = |s: f64| bytes as f64 / s / 1e12;
        println!(
            "decode {:?}, {heads} heads, {context} positions, {splits} splits{}: {:.1} us, {:.2} TB/s; without the reduction {:.1} us, \
             {:.2} TB/s",
            layout.storage(),
            if shape.short { " (short)" } else { "" },
            seconds * 1e6,
            rate(seconds),
            alone * 1e6,
            rate(alone)
        );
        Ok(())
    }

    fn prefill(device: &dyn Device, tokens: u32) -> Result<(), GpuError> {
        let (layout, heads) = (KvLayout::new(KvStorage::F16, 8, 128)?, 32);
        let blocks = tokens / KV_BLOCK;
        let cache = filled::<[u32; 4]>(device, layout.block_pieces() * blocks as usize, 0x2c)?;
        let width = heads * layout.head_dim();
        let query = filled::<f16>(device, (width * tokens) as usize, 0x2c)?;
        let out = filled::<f16>(device, (width * tokens) as usize, 0)?;
        let workspace = filled::<f32>(device, 1, 0)?;
        let sequences = device.upload_new("sequences", &vec![0u32; tokens as usize])?;
        let positions = device.upload_new("positions", &(0..tokens).collect::<Vec<_>>())?;
        let shape = RowShape::prefill::<f16>(&layout, 4, device.properties());
        let list: Vec<(u32, u32)> = (0..tokens).map(|p| (0, p)).collect();
        let tiles = device.upload_new("tiles", &shape.tiles(&list))?;
        let mut commands = CommandList::new("prefill");
        Attention {
            query: query.view(),
            query_stride: width,
            heads,
            cache: cache.view(),
            layout,
            addressing: KvAddressing::Contiguous { blocks },
            sequences: sequences.view(),
            positions: positions.view(),
            tiles: Some((tiles.view(), shape)),
            scale: 0.088,
            window: None,
            softcap: None,
            shape: DecodeShape::WHOLE,
            workspace: workspace.view_mut()?,
            out: out.view_mut()?,
            out_stride: width,
        }
        .encode(device.properties(), &mut commands)?;
        let seconds = median(device, commands, 1)?;
        let products = 2.0 * f64::from(tokens).powi(2) / 2.0 * f64::from(width);
        println!(
            "prefill of {tokens} tokens: {:.1} us, {:.1} TFLOP/s",
            seconds * 1e6,
            2.0 * products / seconds / 1e12
        );
        Ok(())
    }

    fn latent(device: &dyn Device, heads: u32, splits: u32) -> Result<(), GpuError> {
        let layout = LatentLayout { latent: 512, rope: 64 };
        let blocks = CONTEXT / KV_BLOCK;
        let pieces = layout.block_elements() / 8 * blocks as usize;
        let (bytes, count) = (pieces * 16, 8);
        let caches = (0..count)
            .map(|_| filled::<[u32; 4]>(device, pieces, 0x2c))
            .collect::<Result<Vec<_>, _>>()?;
        let query = filled::<f16>(device, (heads * layout.width()) as usize, 0x2c)?;
        let out = filled::<f16>(device, (heads * layout.latent) as usize, 0)?;
        let workspace = filled::<f32>(device, workspace_len(1, heads, splits, layout.latent), 0)?;
        let sequences = device.upload_new("sequences", &[0u32])?;
        let positions = device.upload_new("positions", &[CONTEXT - 1])?;
        let mut commands = CommandList::new("latent");
        for cache in &caches {
            MlaAttention {
                query: query.view(),
                heads,
                cache: cache.view(),
                layout,
                addressing: KvAddressing::Contiguous { blocks },
                sequences: sequences.view(),
                positions: positions.view(),
                scale: 0.05,
                splits,
                workspace: workspace.view_mut()?,
                out: out.view_mut()?,
            }
            .encode(device.properties(), &mut commands)?;
        }
        let seconds = median(device, commands, count)?;
        println!(
            "latent attention, {heads} heads, {splits} splits: {:.1} us, {:.2} TB/s of the cache",
            seconds * 1e6,
            bytes as f64 / seconds / 1e12
        );
        Ok(())
    }
}
