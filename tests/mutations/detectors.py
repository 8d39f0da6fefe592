"""What has to notice a broken guarantee: each detector looks at one outcome, or some.

A detector returns True when it fires. It may use everything a tester knows: the data,
the request, the protocol, the seed.
"""

from contextlib import contextmanager
from unittest import mock

import numpy as np
import torch
from scipy import stats

from dfl_unlearn.accounting.gaussian import gaussian_epsilon
from dfl_unlearn.evaluation.audit_bounds import best_threshold, epsilon_lower_bound
from dfl_unlearn.evaluation.noise_checks import (
    ENOUGH,
    TOLERANCE,
    measured_std,
    numbers_in,
)
from dfl_unlearn.rng import RngTree

GAMMA = 1e-3


def in_replicas(noise):
    """Independent coordinates of K vectors as replicas of shorter ones, (n, K, 5)."""
    noise = np.asarray(noise, dtype=np.float64)
    return noise.reshape(len(noise), -1, 5).transpose(1, 0, 2)


def noise_check(noise, noise_std):
    """The std of each of K noise vectors, shape (K, P), is not the claimed one."""
    samples = in_replicas(noise)
    assert numbers_in(samples) >= ENOUGH
    return bool(
        (np.abs(measured_std(samples) - noise_std) > TOLERANCE * noise_std).any()
    )


def sensitivity_check(shifts, claimed):
    """A measured shift between neighbours is beyond the claimed sensitivity."""
    return bool((np.asarray(shifts) > claimed * (1 + 1e-9)).any())


def distinguishing_test(reference, unlearned, claim):
    """A guesser of worlds proves more than the claim.

    The score is the projection on a direction: the difference of the worlds' means,
    whitened. Direction and threshold come from the first half, counts from the second.
    """
    worlds = [np.asarray(world) for world in (reference, unlearned)]
    half = len(worlds[0]) // 2
    known = [world[:half] for world in worlds]
    spread = sum(np.cov(world.T) for world in known)
    spread += 1e-6 * np.trace(spread) * np.eye(len(spread))
    direction = np.linalg.solve(spread, known[1].mean(0) - known[0].mean(0))
    scores = [world @ direction for world in worlds]
    epsilon, delta = claim
    rule = best_threshold(scores[0][:half], scores[1][:half], delta, GAMMA)
    wrong, missed = rule.errors(scores[0][half:], scores[1][half:])
    sizes = [len(score) - half for score in scores]
    bound = epsilon_lower_bound(wrong, sizes[0], missed, sizes[1], delta, GAMMA)
    return bound > epsilon


def participation_check(took_part, visits, rate):
    """Data took part more often than the credited rate makes likely."""
    return float(stats.binom.sf(took_part - 1, visits, rate)) < GAMMA


@contextmanager
def drawn_noise():
    """Collect the streams of all unlearning noise that is drawn inside the block."""
    streams, normal = [], RngTree.normal

    def watched(self, shape, purpose, *, who=None, request=None, round=0, draw=0):
        if purpose == "unlearn-noise":
            streams.append(f"{purpose}/{who}/{request}/{round}/{draw}")
        return normal(
            self, shape, purpose, who=who, request=request, round=round, draw=draw
        )

    with mock.patch.object(RngTree, "normal", watched):
        yield streams


def stream_check(streams, ledger):
    """Noise was drawn that the ledger does not charge, or drawn twice."""
    return sorted(streams) != sorted({e.stream for e in ledger.entries})


def averaging_check(ledger, owner, noise_std, shift, releases, delta):
    """The ledger says less than the exact cost of so many independent releases."""
    exact = gaussian_epsilon(shift * releases**0.5 / noise_std, delta)
    return ledger.epsilon(owner, "public", delta) < exact * (1 - 1e-9)


def same_bits(one, other):
    return bool(torch.equal(one, other))
