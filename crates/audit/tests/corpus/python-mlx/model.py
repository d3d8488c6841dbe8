import mlx.core as mx
import numpy as np


def load(path):
    data = np.load(path)
    return mx.array(data)


def generate(model, token):
    out = []
    while len(out) < 8:
        logits = model(mx.zeros((1, 4)))
        token = mx.argmax(logits)
        mx.eval(token)
        out.append(token.item())
        host = np.array(logits)
    return out, host
