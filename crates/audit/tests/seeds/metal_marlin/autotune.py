"""Times a kernel over its configurations."""

import Metal
import numpy as np

from .metal_dispatch import dispatch, tensor_to_buffer


def run_kernel(library, activations, weights, scales, output, M, N, K, group_size, config):
    device = library.device
    options = Metal.MTLResourceStorageModeShared
    A_buf = tensor_to_buffer(activations, device)
    B_buf = tensor_to_buffer(weights, device)
    S_buf = tensor_to_buffer(scales, device)
    C_buf = tensor_to_buffer(output, device)

    M_buf = device.newBufferWithBytes_length_options_(np.array([M], dtype=np.uint32).tobytes(), 4, options)
    N_buf = device.newBufferWithBytes_length_options_(np.array([N], dtype=np.uint32).tobytes(), 4, options)
    K_buf = device.newBufferWithBytes_length_options_(np.array([K], dtype=np.uint32).tobytes(), 4, options)
    gs_buf = device.newBufferWithBytes_length_options_(np.array([group_size], dtype=np.uint32).tobytes(), 4, options)

    dispatch(
        library,
        function_name="marlin_gemm",
        grid=config.grid(M, N),
        threadgroup=config.threadgroup,
        buffers=[A_buf, B_buf, S_buf, C_buf, M_buf, N_buf, K_buf, gs_buf],
    )
