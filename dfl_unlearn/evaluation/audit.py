"""Audits: try to tell the unlearned network from one that never had the data.

A lower bound on epsilon from behaviour. It cannot prove a certificate; it can refute
one, and an audit that could not have refuted it says so. Replicas of both worlds share
nothing but the data: training seeds, batches, noise and walks are drawn anew for each.
The guesser knows the data, the forgotten rows, the protocol and the exact target, and
not the noise. Every audit carries negative controls, releases that are broken on
purpose; one that does not refute them is ``invalid``.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from dfl_unlearn import _validate
from dfl_unlearn._limits import REPLICAS, check_cap
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.simulator import versions
from dfl_unlearn.engine.threads import limited_threads
from dfl_unlearn.evaluation.audit_bounds import audit_ceiling, epsilon_lower_bound
from dfl_unlearn.evaluation.audit_canaries import Canaries, with_canaries
from dfl_unlearn.evaluation.audit_certifiers import worlds_of
from dfl_unlearn.evaluation.audit_noise import audit_noise_std
from dfl_unlearn.evaluation.audit_one_run import one_run_audit
from dfl_unlearn.evaluation.audit_replicas import (
    Progress,
    counted,
    each,
    named,
    quiet,
    trees_of,
)
from dfl_unlearn.evaluation.audit_result import AuditClaim, AuditResult
from dfl_unlearn.evaluation.audit_statistics import (
    NAMES,
    Count,
    Known,
    Statistic,
    count_errors,
)
from dfl_unlearn.evaluation.audit_worlds import (
    Setting,
    SilentTree,
    Worlds,
    in_float64,
)
from dfl_unlearn.evaluation.noise_checks import ENOUGH, measured_std, numbers_in
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.contracts import UnlearningProtocol, protocols

__all__ = ["AuditResult", "audit_epsilon", "audit_noise_std", "one_run_audit"]

SHIFTS = (3, 4, 6, 8, 10)
"""Shift over noise of the control without a correction: the least that can refute."""

_LEAST_CONTROL = 100  # replicas per world and half of the control without noise


def audit_epsilon(
    run: TrainedRun,
    request: ForgetRequest,
    protocol: UnlearningProtocol | str,
    *,
    replicas: int = 2000,
    gamma: float = 1e-3,
    statistic: Statistic = "auto",
    canaries: Canaries = "none",
    noise_check: bool = True,
    progress: Progress | None = None,
) -> AuditResult:
    """Put a certificate to the test by training and unlearning many times.

    Half of the replicas of each world fit the guesser, the others are counted.

    Args:
        run: The trained network; replicas train its setting anew.
        request: What was, or would be, forgotten.
        protocol: The protocol that makes the claim, or its registered name.
        replicas: Per world, at least 40.
        gamma: Chance that the bound is above the true epsilon.
        statistic: The guesser's score, or ``auto``: all of them, each at its share of
            ``gamma``; see ``evaluation.audit_statistics``.
        canaries: What stands in place of the forgotten rows; see
            ``evaluation.audit_canaries``.
        noise_check: Whether to measure the noise of the protocol's own code as well.
        progress: Told how far it is.

    Returns:
        The counts with bound, ceiling, noise and shift, controls and verdict.
    """
    _validate.integer(at_least=40, replicas=replicas)
    check_cap(REPLICAS, replicas, "audit")
    _validate.number(above=0, below=1, gamma=gamma)
    _validate.one_of(("auto", *NAMES), statistic=statistic)
    names = NAMES if statistic == "auto" else (statistic,)
    if isinstance(protocol, str):
        protocol = protocols.build(protocol)
    request = named(run, request)
    with limited_threads(run.config.threads):
        setting = Setting.of(with_canaries(run, request, canaries), request)
        worlds = worlds_of(setting, protocol)
        audit = _Audit(setting, worlds, names, replicas, gamma, progress or quiet)
        return audit.result(noise_check)


class _Audit:
    """The stages of one audit; what they share is computed once."""

    def __init__(
        self,
        setting: Setting,
        worlds: Worlds,
        names: tuple[str, ...],
        replicas: int,
        gamma: float,
        progress: Progress,
    ) -> None:
        self._setting, self._worlds, self._names = setting, worlds, names
        self._replicas, self._gamma, self._progress = replicas, gamma, progress
        self._target = worlds.target.rows
        run, gone = (
            setting.run,
            torch.from_numpy(setting.request.mask(setting.run.data)),
        )
        self._known = Known(
            model=run.model,
            inputs=run.data.store.inputs[gone],
            labels=run.data.store.labels[gone],
            target=self._target,
            correction=worlds.before() - self._target,
            single=worlds.single,
        )
        self._seeds: list[str] = []

    def result(self, noise_check: bool) -> AuditResult:
        """Run all stages."""
        claim, worlds = self._worlds.claim, self._worlds
        trees = self._trees("unlearned", self._replicas)
        params = worlds.trained(trees, counted(self._progress, "training", len(trees)))
        unlearned = each("unlearning", worlds.unlearned, params, trees, self._progress)
        reference = worlds.released(
            self._target.expand_as(params),
            claim.noise_std or 0.0,
            self._trees("reference", self._replicas),
        )
        best, comparisons = self._best(claim, reference, unlearned)
        control, silent = self._unnoised(claim, params, trees)
        controls = (self._uncorrected(claim, params), control)
        std, numbers = self._noise() if noise_check else (None, 0)
        return self._audit(
            claim,
            best,
            comparisons,
            self._replicas,
            noise_std_measured=std,
            noise_samples=numbers,
            shift_measured=max(worlds.shift(rows) for rows in silent),
            negative_controls=controls,
        )

    def _uncorrected(self, claim: AuditClaim, params: Tensor) -> AuditResult:
        """Release the trained models without a correction, with noise to match."""
        worlds = self._worlds
        starts = worlds.uncorrected(params)
        ratio = self._ratio(claim)
        noise = worlds.shift(starts.mean(0)) / ratio
        count = len(params)
        self._progress("control without correction", 0, count)
        unlearned = worlds.released(starts, noise, self._trees("uncorrected", count))
        reference = worlds.released(
            self._target.expand_as(params), noise, self._trees("control", count)
        )
        self._progress("control without correction", count, count)
        return self._control(
            claim,
            reference,
            unlearned,
            f"correction left out, shift/σ = {ratio}",  # noqa: RUF001
        )

    def _unnoised(
        self, claim: AuditClaim, params: Tensor, trees: Sequence[RngTree]
    ) -> tuple[AuditResult, Tensor]:
        """Release what the protocol computes without its noise, in float64.

        Returns:
            The control, and the releases as they are, shape ``(k, N, P)``.
        """
        count = self._enough(claim)
        still = [SilentTree(tree.seed) for tree in trees[:count]]
        exact = copy.copy(self._worlds)
        exact.setting = in_float64(self._setting)
        rows = each(
            "control without noise", exact.bare, params[:count], still, self._progress
        )
        unlearned = exact.released(rows, 0.0, still)
        others = [SilentTree(t.seed) for t in self._trees("control", count)]
        reference = exact.released(self._target.expand_as(rows), 0.0, others)
        return self._control(claim, reference, unlearned, "noise left out"), rows

    def _noise(self) -> tuple[float | None, int]:
        """Measure the noise that the protocol's own code adds, from the target."""
        worlds, p = self._worlds, self._target.shape[1]
        count = math.ceil(ENOUGH / (p * worlds.sources)) + 1
        trees = self._trees("noise", count)
        starts = self._target.expand(count, *self._target.shape)
        rows = each("measuring noise", worlds.bare, starts, trees, self._progress)
        noise = (rows - self._target) / worlds.scales[:, None]
        samples = noise[:, : worlds.sources].numpy()
        variances = np.square(measured_std(samples))
        return math.sqrt(variances.mean()), numbers_in(samples) * worlds.sources

    def _ratio(self, claim: AuditClaim) -> int:
        """Return the least shift over noise whose expected bound is above the claim."""
        counted = self._replicas - self._replicas // 2
        gamma = self._gamma / len(self._names)
        for ratio in SHIFTS[:-1]:
            if expected_bound(ratio, counted, claim.delta, gamma) > claim.epsilon:
                return ratio
        return SHIFTS[-1]

    def _enough(self, claim: AuditClaim) -> int:
        """Return how many replicas refute an un-noised release with room to spare."""
        gamma = self._gamma / len(self._names)
        half = min(_LEAST_CONTROL, self._replicas // 2)
        while half < self._replicas // 2 and (
            audit_ceiling(half, half, claim.delta, gamma) < 1.1 * claim.epsilon + 0.2
        ):
            half = min(2 * half, self._replicas // 2)
        return 2 * half

    def _control(
        self, claim: AuditClaim, reference: Tensor, unlearned: Tensor, label: str
    ) -> AuditResult:
        claim = replace(claim, noise_std=None, sensitivity=None)
        best, comparisons = self._best(claim, reference, unlearned)
        return self._audit(claim, best, comparisons, len(reference), label=label)

    def _best(
        self, claim: AuditClaim, reference: Tensor, unlearned: Tensor
    ) -> tuple[Count, int]:
        """Return the count that proves most, and how many were made."""
        fitted, gamma = len(reference) // 2, self._gamma / len(self._names)
        counts = count_errors(
            self._known,
            reference,
            unlearned,
            fitted=(fitted, fitted),
            names=self._names,
            delta=claim.delta,
            gamma=gamma,
        )
        left = len(reference) - fitted

        def bound(count: Count) -> float:
            wrong, missed = count.errors
            return epsilon_lower_bound(wrong, left, missed, left, claim.delta, gamma)

        return max(counts, key=bound), len(counts)

    def _audit(
        self,
        claim: AuditClaim,
        count: Count,
        comparisons: int,
        replicas: int,
        **more: object,
    ) -> AuditResult:
        left = replicas - replicas // 2
        return AuditResult(
            claim=claim,
            request_id=self._setting.request.request_id,
            statistic=f"{count.statistic} (split half)",
            replicas=(replicas, replicas),
            evaluated=(left, left),
            false_positives=count.errors[0],
            false_negatives=count.errors[1],
            gamma=self._gamma,
            comparisons=comparisons,
            threshold=count.rule.value,
            above=count.rule.above,
            seeds=tuple(self._seeds),
            versions=versions(),
            **more,  # type: ignore[arg-type]
        )

    def _trees(self, world: str, count: int) -> list[RngTree]:
        trees = trees_of(self._setting.run, world, count)
        label = f"{trees[0].seed}".removesuffix("/0")
        if label not in self._seeds:
            self._seeds.append(label)
        return trees


def expected_bound(shift: float, counted: int, delta: float, gamma: float) -> float:
    """Return what the best threshold proves of two Gaussians, with some bad luck.

    Args:
        shift: Distance of their means in units of their standard deviation.
        counted: Draws of each that are counted.
        delta: The claim's delta.
        gamma: Error of the count.

    Returns:
        The bound where both error counts are two standard deviations above their
        expectation, at the threshold that is best then.
    """
    from scipy.special import ndtr

    def unlucky(rate: float) -> int:
        mean = counted * rate
        return min(counted, math.ceil(mean + 2 * math.sqrt(mean * (1 - rate)) - 1e-9))

    return max(
        epsilon_lower_bound(
            unlucky(float(ndtr(-t))),
            counted,
            unlucky(float(ndtr(t - shift))),
            counted,
            delta,
            gamma,
        )
        for t in np.linspace(-1.0, shift + 1.0, 81)
    )
