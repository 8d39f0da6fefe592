"""Small networks trained on any target probabilities, one row after the other.

A network is one flat vector: per layer the weight (out, in), then the offset; ReLU in
between, softmax at the end. Derivatives are written out; there is no library's.
"""

from itertools import pairwise

import numpy as np


def layers(flat, widths):
    found, at = [], 0
    for inner, outer in pairwise(widths):
        w = flat[at : at + inner * outer].reshape(outer, inner)
        at += inner * outer
        found.append((w, flat[at : at + outer]))
        at += outer
    return found


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def forward(flat, widths, x):
    """What every layer reads, and the logits."""
    reads, h = [], x
    for depth, (w, b) in enumerate(layers(flat, widths)):
        if depth:
            h = np.maximum(h, 0.0)
        reads.append(h)
        h = w @ h + b
    return reads, h


def gradients(flat, widths, x, target):
    """Gradient of -sum_c target_c log p_c in the parameters, and in the input."""
    reads, z = forward(flat, widths, x)
    slope = target.sum() * softmax(z) - target
    parts = []
    for depth in range(len(widths) - 2, -1, -1):
        w, _ = layers(flat, widths)[depth]
        parts.insert(0, np.concatenate([np.outer(slope, reads[depth]).ravel(), slope]))
        slope = w.T @ slope
        if depth:
            slope = slope * (reads[depth] > 0)
    return np.concatenate(parts), slope


def mean_gradient(flat, widths, inputs, targets):
    pairs = zip(inputs, targets, strict=True)
    return np.mean([gradients(flat, widths, x, t)[0] for x, t in pairs], axis=0)


def descend(flat, widths, inputs, targets, *, rate, steps, extra=None):
    """Full-batch descent; ``extra(k, flat)`` is added to the gradient of step k."""
    flat = flat.copy()
    for k in range(steps):
        slope = mean_gradient(flat, widths, inputs, targets)
        flat -= rate * (slope + (0.0 if extra is None else extra(k, flat)))
    return flat


def one_hot(labels, classes):
    return np.eye(classes)[labels]


def squared(flat, widths, inputs, targets):
    """Mean over rows of squared gradients of single rows."""
    total = np.zeros_like(flat)
    for x, t in zip(inputs, targets, strict=True):
        total += gradients(flat, widths, x, t)[0] ** 2
    return total / len(inputs)


def expected_squared(flat, widths, inputs):
    """The same, in expectation over labels drawn from the network itself."""
    total = np.zeros_like(flat)
    for x in inputs:
        p = softmax(forward(flat, widths, x)[1])
        for c, share in enumerate(p):
            total += share * gradients(flat, widths, x, np.eye(len(p))[c])[0] ** 2
    return total / len(inputs)
