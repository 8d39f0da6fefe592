"""The sampled Gaussian in many digits, and both of its directions by quadrature."""

import numpy as np
from oracles.divergences import gaussian_log_density, renyi_divergence


def exact_rdp(rate, noise, order, digits=40):
    """The divergence by the definition: binomial sum, or an integral in mpmath."""
    import mpmath as mp

    with mp.workdps(digits):
        q, nu, a = mp.mpf(rate), mp.mpf(noise), mp.mpf(order)
        if a == int(a):
            moment = mp.fsum(
                mp.binomial(a, i)
                * (1 - q) ** (a - i)
                * q**i
                * mp.exp((i * i - i) / (2 * nu * nu))
                for i in range(int(a) + 1)
            )
        else:

            def term(x):
                density = mp.exp(-x * x / (2 * nu * nu)) / (nu * mp.sqrt(2 * mp.pi))
                ratio = 1 - q + q * mp.exp((2 * x - 1) / (2 * nu * nu))
                return density * ratio**a

            low, high = -16 * nu, 16 * nu + a
            cuts = [low + (high - low) * k / 24 for k in range(25)]
            moment = mp.quad(term, cuts)
        return mp.log(moment) / (a - 1)


def directions(rate, noise, order):
    """D(mixture || N(0)) and D(N(0) || mixture), by the trapezoid rule in float64."""
    still = gaussian_log_density(0.0, noise)
    moved = gaussian_log_density(1.0, noise)

    def mixture(x):
        return np.logaddexp(np.log1p(-rate) + still(x), np.log(rate) + moved(x))

    span = {"low": -20 * noise - order, "high": 20 * noise + order}
    return (
        renyi_divergence(mixture, still, order, **span),
        renyi_divergence(still, mixture, order, **span),
    )
