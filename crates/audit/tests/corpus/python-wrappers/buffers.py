"""Buffers through aliases, imported constants, wrappers, keyword arguments and lists."""
import Metal
import numpy as np

from modes import PRIVATE, SHARED

SOURCE = """
kernel void scale(device const float *x [[buffer(0)]], device float *y [[buffer(1)]],
                  constant float &by [[buffer(2)]], device float *sums [[buffer(3)]],
                  uint i [[thread_position_in_grid]]) {
    y[i] = x[i] * by;
    sums[i] += y[i];
}
"""


def make(device, length, options=SHARED):
    return device.newBufferWithLength_options_(length, options)


class Scaler:
    def __init__(self, device, n):
        self.device = device
        self.x = make(device, n * 4)
        self.y = make(device, length=n * 4)
        alias = make
        self.sums = make(device, n * 4, options=PRIVATE)
        self.spare = make(device, 64)
        del alias

    def upload(self, values):
        view = np.frombuffer(self.x.contents().as_buffer(values.nbytes), dtype=np.float32)
        view[:] = values
        self.x.didModifyRange_((0, values.nbytes))

    def step(self, encoder, pipeline_for, by):
        factor = self.device.newBufferWithBytes_length_options_(np.float32(by).tobytes(), 4, SHARED)
        pipeline = pipeline_for("scale")
        encoder.setComputePipelineState_(pipeline)
        for i, buffer in enumerate([self.x, self.y, factor, self.sums]):
            encoder.setBuffer_offset_atIndex_(buffer, 0, i)
        encoder.dispatchThreads_threadsPerThreadgroup_(1, 1)

    def result(self, n):
        out = self.y
        return np.frombuffer(out.contents().as_buffer(n * 4), dtype=np.float32).tolist()
