"""Distances of two descents by unrolling their recursion, in exact fractions."""

from fractions import Fraction


def tight(K, T, c, eta, G, m, n, start_error=0):
    """T - K steps that push apart by 2 eta m G / n, then K that stretch by c."""
    c = Fraction(c)
    push = 2 * Fraction(eta) * m * Fraction(G) / n
    distance = Fraction(0)
    for _ in range(T - K):
        distance = c * distance + push
    distance += Fraction(start_error)
    for _ in range(K):
        distance = c * distance
    return distance


def published(K, T, eta, L, G, m, n):
    """The published proof's recursion: the retained loss weighs n / (n - m)."""
    eta, L, G = Fraction(eta), Fraction(L), Fraction(G)
    distance = Fraction(0)
    for _ in range(T - K):
        distance = (1 + eta * L * n / (n - m)) * distance + 2 * eta * G * m / (n - m)
    for _ in range(K):
        distance = (1 + eta * L) * distance
    return distance
