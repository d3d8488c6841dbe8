"""Looks like tensors and is none: numpy's own methods, images, a buffer that is state."""
import numpy as np
import torch
from PIL import Image


def indices(n):
    order = np.random.permutation(n)
    return order[:4].tolist()


def pixels(path):
    image = Image.open(path).convert("RGB").resize((8, 8))
    return np.array(image)


def forward(device, encoder, data):
    seed_buf = device.newBufferWithBytes_length_options_(data, 8, 0)
    encoder.setBuffer_offset_atIndex_(seed_buf, 0, 0)
    encoder.dispatchThreads_threadsPerThreadgroup_(1, 1)
