"""Between torch and numpy."""

import numpy as np
import torch


def to_numpy(arr):
    if isinstance(arr, torch.Tensor):
        return arr.detach().cpu().numpy()
    return np.asarray(arr)


def from_numpy(np_arr):
    return torch.from_numpy(np_arr.copy())
