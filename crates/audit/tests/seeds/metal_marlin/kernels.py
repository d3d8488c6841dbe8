"""Host side of the fused kernels, the packers and their fallbacks."""

import struct

import Metal
import numpy as np
import torch

from .metal_dispatch import dispatch, private_from_bytes, tensor_to_buffer

SHARED = Metal.MTLResourceStorageModeShared


def marlin_gemm_fp4(library, A, B_packed, scales, group_size=32):
    M, K = A.shape
    N = scales.shape[1]
    C = torch.empty((M, N), dtype=torch.float16, device="mps")
    device = library.device
    params = np.array([M, N, K, group_size], dtype=np.uint32)
    params_buf = device.newBufferWithBytes_length_options_(params.tobytes(), params.nbytes, SHARED)
    B_buf = private_from_bytes(device, B_packed)
    dispatch(
        library, "marlin_gemm_fp4_kernel", (N, M, 1), (8, 8, 1),
        [tensor_to_buffer(A, device), B_buf, tensor_to_buffer(scales, device), tensor_to_buffer(C, device), params_buf],
    )
    return C


def marlin_gemm_int4(library, A, B_packed, scales, group_size=32):
    M, K = A.shape
    N = scales.shape[1]
    C = torch.empty((M, N), dtype=torch.float16, device="mps")
    device = library.device
    params = np.array([M, N, K, group_size], dtype=np.uint32)
    params_buf = device.newBufferWithBytes_length_options_(params.tobytes(), params.nbytes, SHARED)
    B_buf = private_from_bytes(device, B_packed)
    dispatch(
        library, "marlin_gemm_int4_kernel", (N, M, 1), (8, 8, 1),
        [tensor_to_buffer(A, device), B_buf, tensor_to_buffer(scales, device), tensor_to_buffer(C, device), params_buf],
    )
    return C


def dequant_fp4(library, packed, scales, K, N, group_size):
    out = torch.empty((K, N), dtype=torch.float16, device="mps")
    device = library.device
    params_buf = device.newBufferWithBytes_length_options_(struct.pack("3I", K, N, group_size), 12, SHARED)
    buffers = [tensor_to_buffer(packed, device), tensor_to_buffer(scales, device), tensor_to_buffer(out, device)]
    buffers.append(params_buf)
    dispatch(library, "dequant_fp4_kernel", (K * N, 1, 1), (256, 1, 1), buffers)
    return out


def hadamard_transform(library, x, normalize=True):
    n = x.shape[-1]
    y = torch.empty_like(x)
    device = library.device
    params = struct.pack("II", n, 1 if normalize else 0)
    params_buf = device.newBufferWithBytes_length_options_(params, len(params), SHARED)
    dispatch(
        library, "hadamard_kernel", (x.numel(), 1, 1), (256, 1, 1),
        [tensor_to_buffer(x, device), tensor_to_buffer(y, device), params_buf],
    )
    return y


def decode_gemv_fp4(library, x, w, scales, K, N, group_size):
    y = torch.empty((N,), dtype=torch.float16, device="mps")
    device = library.device
    params = np.array([K, N, group_size], dtype=np.uint32).tobytes()
    params_buf = device.newBufferWithBytes_length_options_(params, 12, SHARED)
    dispatch(
        library, "decode_gemv_kernel", (N, 1, 1), (64, 1, 1),
        [tensor_to_buffer(x, device), tensor_to_buffer(w, device), tensor_to_buffer(scales, device),
         tensor_to_buffer(y, device), params_buf],
    )
    return y


def pack_fp4_weights(weight, group_size=32):
    w = weight.cpu().float().numpy()
    scale = np.abs(w).max(axis=0) / 6.0
    return (w / scale).astype(np.uint8), scale


def pack_int2_weights(weight, group_size=32):
    w = weight.cpu().float().numpy()
    return (w > 0).astype(np.uint8)


def pack_int3_weights(weight, group_size=32):
    w = weight.cpu().float().numpy()
    return (w * 4).astype(np.uint8)


def dequant_u4_standalone(packed, scales, device):
    values = np.unpackbits(packed.cpu().numpy())
    return torch.from_numpy(values * scales.cpu().numpy()).to("mps")
