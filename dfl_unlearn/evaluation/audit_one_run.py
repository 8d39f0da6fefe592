r"""An audit by one run: which of many canaries were there before they were forgotten?

Each canary is trained on with probability 1/2 by a coin of its own, the ones that were
there are forgotten, and a guesser who sees the release says of some which side their
coin showed. A certificate says that the release is like that of *no* forgotten row at
all, so for one coin it implies :math:`(2\varepsilon, (1+e^\varepsilon)\delta)` only:
that pair is what is tested, and it is weaker than what ``audit_epsilon`` tests.

References:
    Steinke, Nasr and Jagielski (2023), Privacy auditing with one (1) training run.
"""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfl_unlearn import _validate
from dfl_unlearn._arrays import as_features
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.engine.replicas import train_replicas
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.simulator import versions
from dfl_unlearn.engine.state import PeerState
from dfl_unlearn.engine.threads import limited_threads
from dfl_unlearn.errors import InvalidForgetSetError
from dfl_unlearn.evaluation.audit_canaries import Canaries, with_canaries
from dfl_unlearn.evaluation.audit_certifiers import worlds_of
from dfl_unlearn.evaluation.audit_replicas import named
from dfl_unlearn.evaluation.audit_result import AuditResult
from dfl_unlearn.evaluation.audit_targets import kept_data
from dfl_unlearn.evaluation.audit_worlds import Setting, Worlds
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.contracts import UnlearningProtocol, protocols


def one_run_audit(
    run: TrainedRun,
    request: ForgetRequest,
    protocol: UnlearningProtocol | str,
    *,
    guesses: int | None = None,
    gamma: float = 1e-3,
    canaries: Canaries = "none",
) -> AuditResult:
    """Guess which rows were trained on and forgotten, in one run.

    The guesser scores a row by how much better the release fits it than the exact
    target does, and calls as many of the best "there" as of the worst "not there".

    Args:
        run: Gives the setting; it is trained once more.
        request: Its rows are the canaries; some samples of one peer.
        protocol: The protocol that makes the claim, or its registered name.
        guesses: How many are guessed, an even number; None is half of them.
        gamma: Chance that the bound is above the true epsilon.
        canaries: What stands in place of the rows; see ``audit_canaries``.

    Returns:
        An audit of test ``one-run``; its control guesses from the trained models
        themselves, nothing forgotten and no noise.

    Raises:
        InvalidForgetSetError: If there are less than 4 canaries.
    """
    if isinstance(protocol, str):
        protocol = protocols.build(protocol)
    request = named(run, request)
    size = request.size(run.data)
    if request.kind != "samples" or size < 4:
        raise InvalidForgetSetError(
            f"request: must name at least 4 samples of one peer for a one-run audit, "
            f"got kind {request.kind!r} with {size} rows; each row is a canary"
        )
    guesses = max(2, size // 4 * 2) if guesses is None else guesses
    _validate.integer(at_least=2, at_most=size, guesses=guesses)
    guesses -= guesses % 2
    with limited_threads(run.config.threads):
        run = with_canaries(run, request, canaries)
        rows = np.flatnonzero(run.data.keep & ~kept_data(run, request).keep)
        tree = RngTree(f"audit/{run.rng.seed}").child("one-run")
        there = _coins(tree, len(rows))
        part = run.replaced(data=_with_coins(run, request, rows[~there]))
        params = train_replicas(part, [tree]).params[0]
        local = rows - run.data.offsets[request.requester]
        asked = replace(request, items=(tuple(local[there].tolist()),))
        state = PeerState(params=params, round=run.config.rounds)
        setting = Setting.of(replace(part, state=state), asked)
        worlds = worlds_of(setting, protocol)
        place = request.requester if worlds.single else slice(None)

        def correct(seen: Tensor) -> int:
            model = seen[place].reshape(-1, seen.shape[-1]).mean(0)
            gain = _gain(setting, worlds, rows, model)
            return _right(gain, there, guesses)

        released = worlds.unlearned(params, tree)
        found = correct(released[:1] if worlds.first else released)
        control = correct(params.double())

    def result(right: int, label: str, *controls: AuditResult) -> AuditResult:
        return AuditResult(
            claim=worlds.claim
            if not label
            else replace(worlds.claim, noise_std=None, sensitivity=None),
            request_id=request.request_id,
            test="one-run",
            statistic=f"loss against the exact target, canaries {canaries}",
            replicas=(0, 1),
            evaluated=(0, 1),
            canaries=len(rows),
            guesses=guesses,
            correct=right,
            gamma=gamma,
            negative_controls=controls,
            label=label,
            seeds=(str(tree.seed),),
            versions=versions(),
        )

    return result(found, "", result(control, "nothing forgotten, no noise"))


def _coins(tree: RngTree, count: int) -> NDArray[np.bool_]:
    """Return which canaries are there; drawn again until both sides show."""
    draw = 0
    while True:
        there = tree.numpy("audit", who="coins", draw=draw).random(count) < 0.5
        if 0 < there.sum() < count:
            return there
        draw += 1


def _with_coins(
    run: TrainedRun, request: ForgetRequest, never: NDArray[np.int64]
) -> PeerData:
    """Return the data as if some rows had never been there."""
    data = run.data
    gone = ~data.keep
    gone[never] = True
    vacated = data.vacated
    if request.normalization == "fixed":  # the divisor must not tell the coins
        vacated = np.zeros(len(gone), dtype=np.bool_) if vacated is None else vacated
        vacated = vacated.copy()
        vacated[never] = True
    return replace(data, dropped=gone, vacated=vacated)


def _gain(
    setting: Setting, worlds: Worlds, rows: NDArray[np.int64], model: Tensor
) -> NDArray[np.float64]:
    """Return how much better a model fits each canary than the exact target does."""
    run = setting.run
    at = torch.from_numpy(rows)
    inputs = as_features(run.data.store.inputs[at], torch.float64)
    labels = run.data.store.labels[at]
    labels = labels.double() if labels.is_floating_point() else labels
    target = worlds.target.rows.mean(0)
    losses = [run.model.sample_losses(x, (inputs, labels)) for x in (target, model)]
    gain: NDArray[np.float64] = (losses[0] - losses[1]).numpy()
    return gain


def _right(gain: NDArray[np.float64], there: NDArray[np.bool_], guesses: int) -> int:
    """Return how many guesses are right."""
    order = np.argsort(-gain, kind="stable")
    half = guesses // 2
    return int(there[order[:half]].sum() + (~there[order[-half:]]).sum())
