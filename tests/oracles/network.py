"""What peers see, slowly: sums over all cases, scalar recursions, exact fractions."""

import math
from fractions import Fraction


def random_visits(restart, cost, hops, order):
    """Rényi divergence of Bin(hops, restart) releases that cost this much each."""
    moment = math.fsum(
        math.comb(hops, k)
        * restart**k
        * (1 - restart) ** (hops - k)
        * math.exp((order - 1) * k * cost)
        for k in range(hops + 1)
    )
    return math.log(moment) / (order - 1)


def scalar_chain(contractions, visits, start, sensitivity, noise, rates, order):
    """Divergence of x -> c x with noise at the visits: two Gaussians, exactly."""
    shift, variance, k = start, 0.0, 0
    for t, c in enumerate(contractions):
        shift, variance = c * shift, c * c * variance
        if k < len(visits) and visits[k] == t:
            shift += rates[k] * sensitivity
            variance += (rates[k] * noise) ** 2
            k += 1
    return order * shift**2 / (2 * variance)


def path_weights(n):
    """Metropolis-Hastings weights of a path in fractions."""
    w = [[Fraction(0)] * n for _ in range(n)]
    degree = [1 if i in (0, n - 1) else 2 for i in range(n)]
    for i in range(n - 1):
        weight = Fraction(1, 1 + max(degree[i], degree[i + 1]))
        w[i][i + 1] = w[i + 1][i] = weight
    for i in range(n):
        w[i][i] = 1 - sum(w[i])
    return w


def gossip_rows(w, observer, rounds):
    """What a peer is sent, round by round: rows of the powers of W, as fractions."""
    n = len(w)
    power = [[Fraction(int(i == j)) for j in range(n)] for i in range(n)]
    rows = []
    for _ in range(rounds):
        rows += [power[i] for i in range(n) if i != observer and w[observer][i] > 0]
        power = [
            [sum(w[i][k] * power[k][j] for k in range(n)) for j in range(n)]
            for i in range(n)
        ]
    return rows


def pairwise_sum(w, source, observer, rounds):
    """The published sum: every message alone, in units of alpha / (2 nu^2)."""
    return sum(
        row[source] ** 2 / sum(x * x for x in row)
        for row in gossip_rows(w, observer, rounds)
    )


def joint_view(w, source, observer, rounds, *, own):
    """The same for all messages together, exactly, with or without the own value.

    Peers hold x_i + n_i with independent noise, so a set of rows A shows x_source by
    a'(AA')^-1 a with a = A e_source: the squared length of the projection of e_source
    to the rows, here by Gram and Schmidt.
    """
    n = len(w)
    rows = gossip_rows(w, observer, rounds)
    if own:
        rows = [[Fraction(int(j == observer)) for j in range(n)], *rows]
    basis, shown = [], Fraction(0)
    for row in rows:
        rest = list(row)
        for b in basis:
            share = sum(x * y for x, y in zip(rest, b, strict=True)) / sum(
                y * y for y in b
            )
            rest = [x - share * y for x, y in zip(rest, b, strict=True)]
        if any(rest):
            basis.append(rest)
            shown += rest[source] ** 2 / sum(x * x for x in rest)
    return shown
