"""Fisher information by hand: one row, one label, one position after the other.

Networks are lists of (matrix, offset) with ReLU between them and softmax at the end;
derivatives are written out, nothing is differentiated by a library.
"""

import numpy as np


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def backward(network, x, label):
    """What every layer reads and the loss's derivative in what it writes."""
    reads, h = [], x
    for depth, (w, b) in enumerate(network):
        if depth:
            h = np.maximum(h, 0.0)
        reads.append(h)
        h = w @ h + b
    slope = softmax(h)
    slope[label] -= 1.0
    slopes = [slope]
    for (w, _), read in zip(network[:0:-1], reads[:0:-1], strict=True):
        slope = (w.T @ slope) * (read > 0)
        slopes.insert(0, slope)
    return reads, slopes, softmax(h)


def gradient(network, x, label):
    """One row's gradient, weight and offset of each layer in turn."""
    reads, slopes, _ = backward(network, x, label)
    parts = [
        np.concatenate([np.outer(s, r).ravel(), s])
        for r, s in zip(reads, slopes, strict=True)
    ]
    return np.concatenate(parts)


def fisher(network, rows, labels, weights, law):
    """Sum of weighted outer products, at the data's labels or at the model's."""
    total = 0.0
    for x, y, w in zip(rows, labels, weights, strict=True):
        p = backward(network, x, 0)[2]
        share = {y: 1.0} if law == "data" else dict(enumerate(p))
        for label, q in share.items():
            g = gradient(network, x, label)
            total = total + w * q * np.outer(g, g)
    return total


def kronecker(network, rows, weights):
    """A and G of every layer: moments of (input, 1) and of the derivatives."""
    moments = [
        [np.zeros((w.shape[1] + 1,) * 2), np.zeros((w.shape[0],) * 2)]
        for w, _ in network
    ]
    for x, w in zip(rows, weights, strict=True):
        p = backward(network, x, 0)[2]
        for label, q in enumerate(p):
            reads, slopes, _ = backward(network, x, label)
            for pair, read, slope in zip(moments, reads, slopes, strict=True):
                a = np.append(read, 1.0)
                pair[0] += w / sum(weights) * q * np.outer(a, a)
                pair[1] += w * q * np.outer(slope, slope)
    return moments


def damped(a, g, shift):
    """Both factors with damping split by the roots of their mean eigenvalues."""
    pi = np.sqrt(np.trace(a) / len(a) / (np.trace(g) / len(g)))
    return (
        a + pi * np.sqrt(shift) * np.eye(len(a)),
        g + np.sqrt(shift) / pi * np.eye(len(g)),
    )


def product(a, g):
    """The block for vec(weight) row by row, then vec(offset): G kron A, reordered."""
    outputs, inputs = len(g), len(a) - 1
    block = np.kron(g, a)
    at = np.arange(outputs * (inputs + 1)).reshape(outputs, inputs + 1)
    order = np.concatenate([at[:, :-1].ravel(), at[:, -1]])
    return block[np.ix_(order, order)]


def patches(image, kernel, stride, padding):
    """What a convolution reads at each position, (C, kh, kw) flattened."""
    channels, height, width = image.shape
    wide = np.zeros((channels, height + 2 * padding, width + 2 * padding))
    wide[:, padding : padding + height, padding : padding + width] = image
    found = []
    for i in range(0, wide.shape[1] - kernel + 1, stride):
        for j in range(0, wide.shape[2] - kernel + 1, stride):
            found.append(wide[:, i : i + kernel, j : j + kernel].ravel())
    return np.array(found)
