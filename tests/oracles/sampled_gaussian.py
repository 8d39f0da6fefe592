"""The sampled Gaussian in many digits, and both of its directions by quadrature."""

import numpy as np
from oracles.divergences import gaussian_log_density, renyi_divergence


def exact_rdp(rate, noise, order, digits=40):
    """The divergence by its definition in mpmath, to about ``digits`` digits.

    Whole orders: the binomial sum. Others: the trapezoid rule, whose error falls
    exponentially because the integrand is analytic up to |Im x| = pi nu^2, where r is
    0, and has Gaussian tails; 25 more digits are carried, since ln A may be 1e-22.
    """
    import mpmath as mp

    with mp.workdps(digits + 25):
        q, nu, a = mp.mpf(rate), mp.mpf(noise), mp.mpf(order)
        if a == int(a):
            moment = mp.fsum(
                mp.binomial(a, i)
                * (1 - q) ** (a - i)
                * q**i
                * mp.exp((i * i - i) / (2 * nu * nu))
                for i in range(int(a) + 1)
            )
            return mp.log(moment) / (a - 1)
        goal = mp.log(10) * (digits + 25)
        reach = nu * mp.sqrt(2 * goal)
        step = min(nu * mp.pi * mp.sqrt(2 / goal), 2 * mp.pi**2 * nu**2 / goal)
        count = int(mp.ceil((2 * reach + a) / step))
        step = (2 * reach + a) / count
        x, moment = -reach, mp.mpf(0)
        grown, growth = mp.exp((2 * x - 1) / (2 * nu**2)), mp.exp(step / nu**2)
        for _ in range(count + 1):
            moment += mp.exp(a * mp.log(1 - q + q * grown) - x * x / (2 * nu**2))
            x, grown = x + step, grown * growth
        return mp.log(moment * step / (nu * mp.sqrt(2 * mp.pi))) / (a - 1)


def adaptive_rdp(rate, noise, order, digits=30):
    """The same integral by mpmath's own adaptive rule: slow, and another method."""
    import mpmath as mp

    with mp.workdps(digits + 25):
        q, nu, a = mp.mpf(rate), mp.mpf(noise), mp.mpf(order)

        def term(x):
            density = mp.exp(-x * x / (2 * nu * nu)) / (nu * mp.sqrt(2 * mp.pi))
            return density * (1 - q + q * mp.exp((2 * x - 1) / (2 * nu * nu))) ** a

        low, high = -18 * nu, 18 * nu + a
        cuts = [low + (high - low) * k / 24 for k in range(25)]
        return mp.log(mp.quad(term, cuts)) / (a - 1)


def random_cases(count, seed):
    """Rates, noises and orders over the range that the accountant promises."""
    rng = np.random.default_rng(seed)
    whole = [*range(2, 65), 80, 96, 128, 160, 192, 256, 320, 384, 512, 640, 768, 1024]
    for _ in range(count):
        rate = 10 ** rng.uniform(-8, 0) if rng.random() < 0.7 else rng.random()
        noise = 10 ** rng.uniform(np.log10(0.3), np.log10(200))
        kind = rng.random()
        order = rng.choice(whole) if kind < 0.4 else rng.integers(11, 110) / 10
        order = rng.uniform(1.01, 64) if kind > 0.9 else order
        yield min(max(rate, 1e-8), 0.999), float(noise), float(order)


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
