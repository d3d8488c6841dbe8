"""Sampling: argmax, softmax in several passes, top-k; numpy for the rest."""

import ctypes

import Metal
import numpy as np
import torch

from .metal_dispatch import KernelLibrary, dispatch, tensor_to_buffer


class MetalSampler:
    def __init__(self, library: KernelLibrary, vocab_size, max_k=64):
        self.library = library
        self._device = library.device
        self.vocab_size = vocab_size
        self.max_k = max_k
        self._init_buffers()

    def _init_buffers(self):
        shared = Metal.MTLResourceStorageModeShared
        blocks = (self.vocab_size + 1023) // 1024
        self._scalar_buf = self._device.newBufferWithLength_options_(16, shared)
        self._result_idx_buf = self._device.newBufferWithLength_options_(4, shared)
        self._result_val_buf = self._device.newBufferWithLength_options_(4, shared)
        self._block_maxes_buf = self._device.newBufferWithLength_options_(blocks * 4, shared)
        self._block_sums_buf = self._device.newBufferWithLength_options_(blocks * 4, shared)
        self._topk_vals_buf = self._device.newBufferWithLength_options_(self.max_k * 4, shared)
        self._topk_idxs_buf = self._device.newBufferWithLength_options_(self.max_k * 4, shared)

    def _create_buffer_from_numpy(self, arr):
        data = arr.tobytes()
        buf = self._device.newBufferWithBytes_length_options_(
            data, len(data), Metal.MTLResourceStorageModeShared
        )
        return buf

    def _create_buffer_from_tensor(self, tensor):
        return self._create_buffer_from_numpy(tensor.cpu().numpy())

    def _mps_tensor_to_buffer(self, tensor):
        pointer = ctypes.c_void_p(tensor.data_ptr())
        buffer = self._device.newBufferWithBytesNoCopy_length_options_deallocator_(
            pointer, tensor.nbytes, Metal.MTLResourceStorageModeShared, None
        )
        return buffer

    def argmax(self, logits):
        vocab_buf = self._create_buffer_from_numpy(np.array([self.vocab_size], dtype=np.uint32))
        dispatch(
            self.library, "argmax", (1, 1, 1), (1, 1, 1),
            [self._mps_tensor_to_buffer(logits), self._result_idx_buf, self._result_val_buf, vocab_buf],
        )
        index = np.frombuffer(self._result_idx_buf.contents().as_buffer(4), dtype=np.uint32)[0]
        return torch.tensor(int(index), device="mps")

    def _greedy_sample_metal(self, logits, batch_size):
        results_buf = self._device.newBufferWithLength_options_(batch_size * 4, Metal.MTLResourceStorageModeShared)
        vocab_buf = self._create_buffer_from_numpy(np.array([self.vocab_size], dtype=np.uint32))
        batch_buf = self._create_buffer_from_numpy(np.array([batch_size], dtype=np.uint32))
        dispatch(
            self.library, "argmax_batched", (batch_size, 1, 1), (32, 1, 1),
            [self._mps_tensor_to_buffer(logits), results_buf, vocab_buf, batch_buf],
        )
        return np.frombuffer(results_buf.contents().as_buffer(batch_size * 4), dtype=np.uint32).copy()

    def softmax(self, logits):
        vocab_buf = self._create_buffer_from_numpy(np.array([self.vocab_size], dtype=np.uint32))
        probs = torch.empty_like(logits)
        logits_buf = self._mps_tensor_to_buffer(logits.float())
        dispatch(self.library, "softmax_block_max", (8, 1, 1), (1, 1, 1), [logits_buf, self._block_maxes_buf, vocab_buf])
        dispatch(
            self.library, "softmax_block_sum", (8, 1, 1), (1, 1, 1),
            [logits_buf, self._block_maxes_buf, self._block_sums_buf],
        )
        dispatch(
            self.library, "softmax_finish", (self.vocab_size, 1, 1), (256, 1, 1),
            [logits_buf, self._block_maxes_buf, self._block_sums_buf, tensor_to_buffer(probs, self._device)],
        )
        return probs

    def top_k(self, probs, k):
        vocab_buf = self._create_buffer_from_numpy(np.array([self.vocab_size], dtype=np.uint32))
        k_buf = self._create_buffer_from_numpy(np.array([k], dtype=np.uint32))
        dispatch(
            self.library, "topk", (k, 1, 1), (32, 1, 1),
            [self._mps_tensor_to_buffer(probs), self._topk_vals_buf, self._topk_idxs_buf, vocab_buf, k_buf],
        )
        topk_vals = np.frombuffer(self._topk_vals_buf.contents().as_buffer(k * 4), dtype=np.float32).copy()
        topk_idxs = np.frombuffer(self._topk_idxs_buf.contents().as_buffer(k * 4), dtype=np.uint32).copy()
        return topk_vals, topk_idxs

    def _topp_sample(self, probs, p, rng):
        host = probs.cpu().numpy()
        order = np.argsort(-host)
        keep = order[np.cumsum(host[order]) <= p]
        return rng.choice(keep)
