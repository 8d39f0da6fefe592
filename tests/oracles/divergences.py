"""Divergences of one-dimensional densities by numerical integration, slowly."""

import math

import numpy as np


def gaussian_log_density(mean, std):
    def log_density(x):
        return -0.5 * ((x - mean) / std) ** 2 - math.log(std * math.sqrt(2 * math.pi))

    return log_density


def renyi_divergence(log_p, log_q, order, *, low, high, points=400_001):
    """Rényi divergence D_order(p || q) by the trapezoid rule."""
    x = np.linspace(low, high, points)
    logs = order * log_p(x) + (1 - order) * log_q(x)
    top = logs.max()
    integral = np.trapezoid(np.exp(logs - top), x)
    return (top + math.log(integral)) / (order - 1)


def hockey_stick(log_p, log_q, epsilon, *, low, high, points=400_001):
    """Delta of two densities at epsilon: the integral of max(0, p - e^eps q)."""
    x = np.linspace(low, high, points)
    gap = np.exp(log_p(x)) - np.exp(epsilon + log_q(x))
    return float(np.trapezoid(np.maximum(gap, 0), x))
