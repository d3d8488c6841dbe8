"""Compiling, binding and dispatching: the one place that talks to the encoder."""

import ctypes

import Metal
import numpy as np
import torch


class KernelLibrary:
    """Compiled kernels by name."""

    def __init__(self, device, source):
        self.device = device
        self._library, _ = device.newLibraryWithSource_options_error_(source, None, None)
        self._pipelines = {}

    def pipeline(self, name):
        if name not in self._pipelines:
            function = self._library.newFunctionWithName_(name)
            state, error = self.device.newComputePipelineStateWithFunction_error_(function, None)
            if error is not None:
                raise RuntimeError(f"{name}: {error}")
            self._pipelines[name] = state
        return self._pipelines[name]


def dispatch(library, function_name, grid, threadgroup, buffers, wait=True):
    """Binds `buffers` in order and runs the kernel over `grid`."""
    commands = library.device.newCommandQueue().commandBuffer()
    encoder = commands.computeCommandEncoder()
    encoder.setComputePipelineState_(library.pipeline(function_name))
    for index, buffer in enumerate(buffers):
        encoder.setBuffer_offset_atIndex_(buffer, 0, index)
    encoder.dispatchThreads_threadsPerThreadgroup_(Metal.MTLSizeMake(*grid), Metal.MTLSizeMake(*threadgroup))
    encoder.endEncoding()
    commands.commit()
    if wait:
        commands.waitUntilCompleted()


def tensor_to_buffer(tensor, device):
    """Binds a tensor's own memory."""
    pointer = ctypes.c_void_p(tensor.data_ptr())
    alias = device.newBufferWithBytesNoCopy_length_options_deallocator_(
        pointer, tensor.numel() * tensor.element_size(), Metal.MTLResourceStorageModeShared, None
    )
    return alias


def buffer_to_numpy(buffer, count, dtype=np.float32):
    return np.frombuffer(buffer.contents().as_buffer(count * np.dtype(dtype).itemsize), dtype=dtype)


def private_from_bytes(device, data):
    """Private memory, filled through a staging buffer."""
    staging = device.newBufferWithBytes_length_options_(data, len(data), Metal.MTLResourceStorageModeManaged)
    private = device.newBufferWithLength_options_(len(data), Metal.MTLResourceStorageModePrivate)
    commands = device.newCommandQueue().commandBuffer()
    blit = commands.blitCommandEncoder()
    blit.copyFromBuffer_sourceOffset_toBuffer_destinationOffset_size_(staging, 0, private, 0, len(data))
    blit.endEncoding()
    commands.commit()
    commands.waitUntilCompleted()
    return private
