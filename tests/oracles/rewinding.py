"""Rewinding by plain loops: quadratics, and linear classifiers in NumPy."""

import numpy as np


def descend(gradient, theta, eta, steps):
    """All states of a descent, the start first."""
    states = [np.asarray(theta, dtype=np.float64)]
    for _ in range(steps):
        states.append(states[-1] - eta * gradient(states[-1]))
    return states


def quadratic(curvature, centres, rows):
    """The gradient of the mean of (x - c)' H (x - c) / 2 over some rows."""
    centre = np.asarray(centres, dtype=np.float64)[rows].mean(axis=0)
    return lambda theta: np.asarray(curvature) * (theta - centre)


def rewound(gradient, retained, theta, eta, steps, rewind):
    """Train on everything, go back, take the last steps on what stays."""
    states = descend(gradient, theta, eta, steps)
    return descend(retained, states[steps - rewind], eta, rewind)[-1]


def softmax_gradient(inputs, labels, l2, *, classes, clip_norm=None):
    """Mean gradient of softmax regression, weights (C, d); rows' norms clipped."""
    one_hot = np.eye(classes)[labels]

    def gradient(weights):
        if not len(inputs):
            return l2 * weights
        z = inputs @ weights.T
        z -= z.max(axis=1, keepdims=True)
        p = np.exp(z)
        p /= p.sum(axis=1, keepdims=True)
        each = (p - one_hot)[:, :, None] * inputs[:, None, :]
        if clip_norm is not None:
            norms = np.linalg.norm(each.reshape(len(each), -1), axis=1)
            each *= np.minimum(1, clip_norm / np.maximum(norms, 1e-30))[:, None, None]
        return each.mean(axis=0) + l2 * weights

    return gradient


def logistic_gradient(inputs, labels, l2):
    """Mean gradient of binary logistic regression, weights (d,)."""

    def gradient(weights):
        p = 1 / (1 + np.exp(-(inputs @ weights)))
        return inputs.T @ (p - labels) / len(inputs) + l2 * weights

    return gradient
