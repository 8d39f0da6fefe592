"""The discrete Gaussian by its definition, and its sampler one number at a time."""

import math
from fractions import Fraction


def probability(n, variance):
    """P(n), the sum over all integers cut where terms are below 1e-300."""
    reach = math.ceil(math.sqrt(2 * float(variance) * 690)) + 1
    total = math.fsum(weight(k, variance) for k in range(-reach, reach + 1))
    return weight(n, variance) / total


def weight(n, variance):
    return math.exp(float(Fraction(-n * n) / (2 * Fraction(variance))))


def renyi(shift, variance, order):
    """Divergence of order ``order`` between two laws that differ by ``shift``."""
    reach = math.ceil(math.sqrt(2 * float(variance) * 690)) + 4 * order * abs(shift)
    places = range(-math.ceil(reach), math.ceil(reach) + 1)
    total = math.fsum(weight(k, variance) for k in places)
    logs = [
        -(order * n * n + (1 - order) * (n - shift) ** 2) / (2 * float(variance))
        for n in places
    ]
    top = max(logs)
    summed = math.fsum(math.exp(one - top) for one in logs)
    return (top + math.log(summed / total)) / (order - 1)


def draw(variance, coin_source):
    """Canonne, Kamath and Steinke's algorithms 1-3, in fractions.

    ``coin_source(n)`` gives a uniform integer below n.
    """
    variance = Fraction(variance)

    def bernoulli(chance):
        return coin_source(chance.denominator) < chance.numerator

    def bernoulli_exp(gamma):
        while gamma > 1:
            if not bernoulli_exp(Fraction(1)):
                return False
            gamma -= 1
        k = 1
        while bernoulli(gamma / k):
            k += 1
        return k % 2 == 1

    def laplace(t):
        while True:
            below = coin_source(t)
            if not bernoulli_exp(Fraction(below, t)):
                continue
            count = 0
            while bernoulli_exp(Fraction(1)):
                count += 1
            negative = bernoulli(Fraction(1, 2))
            if negative and below + t * count == 0:
                continue
            return (-1 if negative else 1) * (below + t * count)

    t = math.isqrt(math.floor(variance)) + 1
    while True:
        y = laplace(t)
        if bernoulli_exp((abs(y) - variance / t) ** 2 / (2 * variance)):
            return y
