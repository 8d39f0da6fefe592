"""Is the noise of a protocol's own code what its certificate says?

Guessing worlds cannot see half the noise after a near-exact correction; measuring can.
The protocol's own code is run from the exact target again and again, so that nothing
but its noise varies, and once more for a second request with the same draws.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from dfl_unlearn import _validate
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.simulator import versions
from dfl_unlearn.engine.threads import limited_threads
from dfl_unlearn.evaluation.audit_certifiers import worlds_of
from dfl_unlearn.evaluation.audit_replicas import (
    Progress,
    each,
    quiet,
    setting_of,
    trees_of,
)
from dfl_unlearn.evaluation.audit_result import AuditResult
from dfl_unlearn.evaluation.audit_worlds import SilentTree, Worlds
from dfl_unlearn.evaluation.noise_checks import (
    ENOUGH,
    TOLERANCE,
    correlation_limit,
    largest_correlation,
    measured_std,
    numbers_in,
)
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.contracts import UnlearningProtocol, protocols

_TRAINED = 20  # replicas whose correction is measured


def audit_noise_std(
    run: TrainedRun,
    request: ForgetRequest,
    protocol: UnlearningProtocol | str,
    *,
    replicas: int | None = None,
    gamma: float = 1e-3,
    progress: Progress | None = None,
) -> AuditResult:
    """Measure the noise and the shift that a protocol's own code leaves.

    Args:
        run: The trained network.
        request: What was, or would be, forgotten.
        protocol: The protocol that makes the claim, or its registered name.
        replicas: Releases to draw; None is what a decision to 3 % needs (6,100
            numbers from every source of noise, more where there are many).
        gamma: Chance that independent noise is called dependent.
        progress: Told how far it is.

    Returns:
        An audit of test ``noise``: the standard deviation of the source of noise that
        differs most from the claim, the largest distance to the exact target, and as
        flaws noise that is shared where it must not be, or not shared where it must.
    """
    _validate.number(above=0, below=1, gamma=gamma)
    if isinstance(protocol, str):
        protocol = protocols.build(protocol)
    setting, told = setting_of(run, request), progress or quiet
    with limited_threads(run.config.threads):
        worlds = worlds_of(setting, protocol)
        target, claim = worlds.target.rows, worlds.claim
        count = math.ceil(_numbers(worlds.sources, gamma) / target.shape[1]) + 1
        if replicas is not None:
            _validate.integer(at_least=2, replicas=replicas)
            count = replicas
        trees = trees_of(run, "noise", count)
        first, second = release_twice(worlds, protocol, trees, told)
        trained = trees_of(run, "unlearned", min(_TRAINED, count))
        params = worlds.trained(trained)
        still = [SilentTree(tree.seed) for tree in trained]
        rows = each("shift", worlds.bare, params, still, told)
    samples = first[:, : worlds.sources].numpy()
    stds = np.atleast_1d(measured_std(samples))
    claimed = claim.noise_std or 0.0
    return AuditResult(
        claim=claim,
        request_id=setting.request.request_id,
        test="noise",
        statistic="noise of every source",
        replicas=(count, len(trained)),
        evaluated=(count, len(trained)),
        gamma=gamma,
        noise_std_measured=float(stds[np.abs(stds - claimed).argmax()]),
        noise_samples=numbers_in(samples),
        noise_flaws=flaws(first, second, worlds.sources, gamma),
        shift_measured=max(worlds.shift(row) for row in rows),
        seeds=(f"audit/{run.rng.seed}/noise", f"audit/{run.rng.seed}/unlearned"),
        versions=versions(),
    )


def _numbers(sources: int, gamma: float) -> int:
    """Return how many numbers per source decide to 3 %, all sources together."""
    from scipy.special import ndtri

    quantile = -float(ndtri(gamma / (2 * sources)))
    return max(ENOUGH, math.ceil(quantile**2 / (2 * TOLERANCE**2)))


def release_twice(
    worlds: Worlds,
    protocol: UnlearningProtocol,
    trees: Sequence[RngTree],
    progress: Progress = quiet,
) -> tuple[Tensor, Tensor]:
    """Release the exact target for two requests with the same draws.

    Args:
        worlds: The worlds of the claim.
        protocol: The protocol.
        trees: The draws.
        progress: Told how far it is.

    Returns:
        The noise on one unit of every row, shape ``(R, N, P)`` each.
    """
    target = worlds.target.rows
    request = worlds.setting.request
    other = replace(request, request_id=f"{request.request_id}-again"[-64:])
    again = worlds_of(replace(worlds.setting, request=other), protocol)
    starts = target.expand(len(trees), *target.shape)
    found = [
        (each(stage, one.bare, starts, trees, progress) - target)
        / worlds.scales[:, None]
        for stage, one in (("first release", worlds), ("second release", again))
    ]
    return found[0], found[1]


def flaws(first: Tensor, second: Tensor, sources: int, gamma: float) -> tuple[str, ...]:
    """Return what is wrong with who shares noise with whom.

    Args:
        first: Noise of a release, shape ``(R, N, P)``.
        second: Noise of another release with the same draws, shape ``(R, N, P)``.
        sources: Rows with noise of their own: N, or 1 if all rows share one.
        gamma: Chance that independent noise is called dependent.

    Returns:
        One sentence per flaw.
    """
    found, level = [], gamma / 2
    rows, again = (x[:, :sources].numpy() for x in (first, second))
    numbers = numbers_in(rows)
    if sources > 1:
        alike = largest_correlation(rows)
        limit = correlation_limit(numbers, sources, level)
        if alike > limit:
            found.append(
                f"two peers' noises correlate by {alike:.3f} > {limit:.3f}, and "
                "independent ones are charged"
            )
    elif not torch.allclose(
        first,
        first[:, :1].expand_as(first),
        rtol=0,
        atol=1e-9 * float(first.abs().max()),
    ):
        found.append("peers' noises differ, and one shared by all is charged")
    flat = [x.reshape(len(x), 1, -1) for x in (rows, again)]
    alike = largest_correlation(np.concatenate(flat, axis=1))
    limit = correlation_limit(numbers * sources, 2, level)
    if alike > limit:
        found.append(
            f"the noises of two releases correlate by {alike:.3f} > {limit:.3f}, and "
            "independent ones are charged"
        )
    return tuple(found)
