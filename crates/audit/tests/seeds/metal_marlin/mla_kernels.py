"""Multi-head latent attention."""

import Metal
import numpy as np
import torch

from .metal_dispatch import dispatch, tensor_to_buffer


def _u32(value):
    return np.array([value], dtype=np.uint32).tobytes()


def _dispatch_mla_proj(library, x, w, scales, out, M, N, K, group_size):
    device = library.device
    shared = Metal.MTLResourceStorageModeShared
    M_buf = device.newBufferWithBytes_length_options_(_u32(M), 4, shared)
    N_buf = device.newBufferWithBytes_length_options_(_u32(N), 4, shared)
    K_buf = device.newBufferWithBytes_length_options_(_u32(K), 4, shared)
    gs_buf = device.newBufferWithBytes_length_options_(_u32(group_size), 4, shared)
    operands = [tensor_to_buffer(t, device) for t in (x, w, scales, out)]
    dispatch(library, "marlin_gemm", (N, M, 1), (8, 8, 1), operands + [M_buf, N_buf, K_buf, gs_buf])


def _dispatch_mla_decode(library, q, w, scales, out, K, N, group_size):
    device = library.device
    K_buf = device.newBufferWithBytes_length_options_(_u32(K), 4, Metal.MTLResourceStorageModeShared)
    N_buf = device.newBufferWithBytes_length_options_(_u32(N), 4, Metal.MTLResourceStorageModeShared)
    gs_buf = device.newBufferWithBytes_length_options_(_u32(group_size), 4, Metal.MTLResourceStorageModeShared)
    dispatch(
        library, "mla_decode_kernel", (N, 1, 1), (64, 1, 1),
        [tensor_to_buffer(q, device), tensor_to_buffer(w, device), tensor_to_buffer(scales, device),
         tensor_to_buffer(out, device), K_buf, N_buf, gs_buf],
    )


def _dispatch_mla_fused(library, x, wa, wb, out, M, K_hidden, K_latent, N_out, group_size_a, group_size_b):
    device = library.device
    shared = Metal.MTLResourceStorageModeShared
    M_buf = device.newBufferWithBytes_length_options_(_u32(M), 4, shared)
    Kh_buf = device.newBufferWithBytes_length_options_(_u32(K_hidden), 4, shared)
    Kl_buf = device.newBufferWithBytes_length_options_(_u32(K_latent), 4, shared)
    Nout_buf = device.newBufferWithBytes_length_options_(_u32(N_out), 4, shared)
    gsa_buf = device.newBufferWithBytes_length_options_(_u32(group_size_a), 4, shared)
    gsb_buf = device.newBufferWithBytes_length_options_(_u32(group_size_b), 4, shared)
    dispatch(
        library, "mla_fused_kernel", (M * N_out, 1, 1), (64, 1, 1),
        [tensor_to_buffer(x, device), tensor_to_buffer(wa, device), tensor_to_buffer(wb, device),
         tensor_to_buffer(out, device), M_buf, Kh_buf, Kl_buf, Nout_buf, gsa_buf, gsb_buf],
    )


def mla_proj(library, x, w, scales, M, N, K, group_size):
    w_device = torch.from_numpy(w).to("mps")
    out = torch.empty((M, N), dtype=torch.float16, device="mps")
    _dispatch_mla_proj(library, x, w_device, scales, out, M, N, K, group_size)
    return out
