"""Small models of every structure, written out once more, and data for them."""

import numpy as np
import torch
from networks import blobs
from torch.nn import functional as F

SIZES = [7, 4, 9, 5, 6]


def softmax(p, x, y):
    w, b = p[:18].view(3, 6), p[18:]
    return F.cross_entropy(x.flatten(1) @ w.T + b, y, reduction="none")


def binary(p, x, y):
    return F.softplus((1 - 2 * y) * (x @ p[:6] + p[6]))


def squared(p, x, y):
    return 0.5 * (x @ p[:6] + p[6] - y) ** 2


def mlp(p, x, y):
    hidden = torch.relu(x @ p[:30].view(5, 6).T + p[30:35])
    return F.cross_entropy(hidden @ p[35:50].view(3, 5).T + p[50:], y, reduction="none")


def cnn(p, x, y):
    parts = torch.split(p, [18, 2, 54, 3, 36, 3])
    z = (x.double() / 255).reshape(len(x), 1, 8, 8)
    z = F.relu(F.max_pool2d(F.conv2d(z, parts[0].view(2, 1, 3, 3), parts[1], 1, 1), 2))
    z = F.conv2d(z, parts[2].view(3, 2, 3, 3), parts[3], padding=1)
    z = F.relu(F.max_pool2d(z, 2)).flatten(1)
    return F.cross_entropy(z @ parts[4].view(3, 12).T + parts[5], y, reduction="none")


def features(kind):
    """Per peer inputs and labels, and the zoo's fields of a model for them."""
    data = blobs(SIZES, classes=2 if kind == "binary" else 3, dtype=np.float64)
    pairs = [(data.local(i).inputs, data.local(i).labels) for i in range(len(SIZES))]
    if kind == "squared":
        pairs = [(x, x @ torch.arange(6.0, dtype=torch.float64)) for x, _ in pairs]
    if kind == "cnn":
        rng = np.random.default_rng(3)
        images = [rng.integers(0, 256, (n, 8, 8), dtype=np.uint8) for n in SIZES]
        pairs = [
            (torch.from_numpy(x), y) for x, (_, y) in zip(images, pairs, strict=True)
        ]
    return pairs


MODELS = {
    "softmax": (softmax, "logistic", {"num_classes": 3}),
    "binary": (binary, "logistic", {"num_classes": 2}),
    "squared": (squared, "linear", {"num_classes": 0}),
    "mlp": (mlp, "mlp", {"num_classes": 3, "hidden": (5,)}),
    "cnn": (cnn, "small-cnn", {"num_classes": 3, "channels": (2, 3)}),
}


def shapes(kind):
    return {"input_shape": (8, 8) if kind == "cnn" else (6,)}
