"""Every copy of the audit of copies, and what is none."""
import ctypes

import Metal
import numpy as np
import torch


def load(path, device):
    return torch.from_numpy(np.load(path)).to(device)


def forward(model, x, device):
    for step in range(4):
        host = x.cpu()
        values = host.numpy()
        token = torch.argmax(x).item()
        rows = x.tolist()
        x = torch.from_numpy(values).to("mps")
        y = torch.tensor([token], device="mps")
        z = torch.zeros(4, device="mps")
        back = y.to("cpu")
        same = back.cpu()
        same_place = z.to("mps")
    torch.mps.synchronize()
    return x, rows, same, same_place


def bind(tensor, device):
    pointer = ctypes.c_void_p(tensor.data_ptr())
    shared = device.newBufferWithBytesNoCopy_length_options_deallocator_(
        pointer, tensor.nbytes, Metal.MTLResourceStorageModeShared, None)
    return shared


def bind_strided(tensor, device):
    return bind(tensor.contiguous(), device)


def read(buffer, n):
    raw = np.frombuffer(buffer.contents().as_buffer(n), dtype=np.uint8)
    return raw.copy()


def again(values):
    first = np.asarray(values)
    second = np.array(first)
    return torch.from_numpy(second.copy())


def run(queue, items):
    for item in items:
        commands = queue.commandBuffer()
        item.encode(commands)
        commands.commit()
        commands.waitUntilCompleted()
