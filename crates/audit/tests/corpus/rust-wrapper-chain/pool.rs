//! Wrappers of wrappers: what the last caller does with the buffer decides.
use objc2_metal::*;

struct Pool {
    device: Device,
}

impl Pool {
    fn allocate(&self, bytes: usize) -> Result<Buffer, Error> {
        self.device.newBufferWithLength_options(bytes, MTLResourceOptions::StorageModeShared).ok_or(Error::Memory)
    }

    fn allocate_zeros(&self, bytes: usize) -> Result<Buffer, Error> {
        let zeros = self.allocate(bytes)?;
        let blit = self.blit_encoder()?;
        blit.fill_buffer(&zeros, (0, bytes), 0);
        Ok(zeros)
    }
}

struct Tensor {
    storage: Buffer,
}

impl Tensor {
    fn zeros(pool: &Pool, n: usize) -> Result<Self, Error> {
        let storage = pool.allocate_zeros(n * 4)?;
        Ok(Tensor { storage })
    }

    fn to_host(&self, n: usize) -> Vec<f32> {
        let view = unsafe { std::slice::from_raw_parts(self.storage.contents() as *const f32, n) };
        view.to_vec()
    }
}

fn argument(device: &Device, encoder: &ArgumentEncoder) {
    let argument_buffer = device.new_buffer(encoder.encoded_length(), MTLResourceOptions::empty());
    encoder.set_argument_buffer(&argument_buffer, 0);
}
