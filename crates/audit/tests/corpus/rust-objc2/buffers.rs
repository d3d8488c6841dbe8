//! objc2-metal: options by const, wrapper with a result type, slices over contents.
use objc2::rc::Retained;
use objc2_metal::*;

const UPLOAD: MTLResourceOptions = MTLResourceOptions::StorageModeShared;

const SHADER: &str = r#"
kernel void add(device const float *a [[buffer(0)]], device const float *b [[buffer(1)]],
                device float *sum [[buffer(2)]], constant uint &n [[buffer(3)]],
                uint i [[thread_position_in_grid]]) { if (i < n) sum[i] = a[i] + b[i]; }
"#;

struct Adder {
    device: Retained<ProtocolObject<dyn MTLDevice>>,
    a: Retained<ProtocolObject<dyn MTLBuffer>>,
    b: Retained<ProtocolObject<dyn MTLBuffer>>,
    sum: Retained<ProtocolObject<dyn MTLBuffer>>,
}

fn allocate(device: &ProtocolObject<dyn MTLDevice>, bytes: usize, options: MTLResourceOptions)
    -> Result<Retained<ProtocolObject<dyn MTLBuffer>>, Error> {
    device.newBufferWithLength_options(bytes, options).ok_or(Error::OutOfMemory)
}

impl Adder {
    fn new(device: Retained<ProtocolObject<dyn MTLDevice>>, n: usize) -> Result<Self, Error> {
        let a = allocate(&device, n * 4, UPLOAD)?;
        let b = allocate(&device, n * 4, MTLResourceOptions::StorageModeManaged)?;
        let sum = allocate(&device, n * 4, UPLOAD | MTLResourceOptions::CPUCacheModeWriteCombined)?;
        Ok(Self { device, a, b, sum })
    }

    fn write(&self, values: &[f32]) {
        let target = self.a.contents().as_ptr() as *mut f32;
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), target, values.len()) };
        let other = unsafe { std::slice::from_raw_parts_mut(self.b.contents().as_ptr() as *mut f32, values.len()) };
        other.copy_from_slice(values);
    }

    fn run(&self, encoder: &ProtocolObject<dyn MTLComputeCommandEncoder>, n: u32) {
        let pipeline = self.pipeline("add");
        encoder.setComputePipelineState(&pipeline);
        unsafe {
            encoder.setBuffer_offset_atIndex(Some(&self.a), 0, 0);
            encoder.setBuffer_offset_atIndex(Some(&self.b), 0, 1);
            encoder.setBuffer_offset_atIndex(Some(&self.sum), 0, 2);
            encoder.setBytes_length_atIndex(NonNull::from(&n).cast(), 4, 3);
        }
        encoder.dispatchThreads_threadsPerThreadgroup(size, group);
    }

    fn read(&self, n: usize) -> Vec<f32> {
        let view = unsafe { std::slice::from_raw_parts(self.sum.contents().as_ptr() as *const f32, n) };
        view.to_vec()
    }
}
