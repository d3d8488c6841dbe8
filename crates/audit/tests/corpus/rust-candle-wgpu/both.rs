use candle_core::{Device, Tensor};
use wgpu::util::DeviceExt;

fn sample(logits: &Tensor, device: &Device) -> candle_core::Result<u32> {
    let host = logits.to_vec1::<f32>()?;
    let mask = Tensor::new(&[0f32, 1.0], device)?;
    let fixed = Tensor::new(&[0f32], &Device::Cpu)?;
    let moved = logits.to_device(&Device::Cpu)?;
    mask.argmax(0)?.to_scalar::<u32>()
}

fn buffers(device: &wgpu::Device, queue: &wgpu::Queue, data: &[u8]) {
    let uniform = device.create_buffer_init(&wgpu::util::BufferInitDescriptor {
        label: None, contents: data, usage: wgpu::BufferUsages::UNIFORM,
    });
    let read_back = device.create_buffer(&wgpu::BufferDescriptor {
        label: None, size: 64, usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST, mapped_at_creation: false,
    });
    let storage = device.create_buffer(&wgpu::BufferDescriptor {
        label: None, size: 64, usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC, mapped_at_creation: false,
    });
    queue.write_buffer(&storage, 0, data);
    let mut encoder = device.create_command_encoder(&Default::default());
    encoder.copy_buffer_to_buffer(&storage, 0, &read_back, 0, 64);
    read_back.slice(..).map_async(wgpu::MapMode::Read, |_| {});
    let entry = wgpu::BindGroupEntry { binding: 0, resource: uniform.as_entire_binding() };
}
