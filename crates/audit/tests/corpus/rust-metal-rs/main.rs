//! metal-rs: index-first bindings, default options, a blit from a staging buffer.
use metal::*;

struct Weights {
    gpu: Buffer,
}

fn upload(device: &Device, queue: &CommandQueue, data: &[f32]) -> Weights {
    let bytes = (data.len() * 4) as u64;
    let staging = device.new_buffer_with_data(data.as_ptr() as *const _, bytes, MTLResourceOptions::StorageModeShared);
    let gpu = device.new_buffer(bytes, MTLResourceOptions::StorageModePrivate);
    let commands = queue.new_command_buffer();
    let blit = commands.new_blit_command_encoder();
    blit.copy_from_buffer(&staging, 0, &gpu, 0, bytes);
    blit.end_encoding();
    commands.commit();
    commands.wait_until_completed();
    Weights { gpu }
}

fn forward(device: &Device, library: &Library, encoder: &ComputeCommandEncoderRef, weights: &Weights, n: u32) {
    let function = library.get_function("project", None).unwrap();
    let state = device.new_compute_pipeline_state_with_function(&function).unwrap();
    let size = device.new_buffer_with_data(&n as *const u32 as *const _, std::mem::size_of::<u32>() as u64, MTLResourceOptions::empty());
    let hidden = device.new_buffer(1024, MTLResourceOptions::CPUCacheModeDefaultCache);
    encoder.set_compute_pipeline_state(&state);
    encoder.set_buffer(0, Some(&weights.gpu), 0);
    encoder.set_buffer(1, Some(&hidden), 0);
    encoder.set_buffer(2, Some(&size), 0);
    encoder.dispatch_threads(grid, group);
}
