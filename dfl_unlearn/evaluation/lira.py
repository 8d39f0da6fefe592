"""Likelihood-ratio attacks: every row is judged against models trained for that row.

Targets are k forgotten rows and k test rows of the same classes. Of N shadow networks,
trained as the run was but with their own seeds, each target is in the data of exactly
half: shadows come in pairs that hold complementary random halves of the targets, so
that every shadow has as much data as the run. A target's score is ``ln(p_y / (1 -
p_y))``; normal distributions are fitted to its scores "in" and "out", means per target
and one pooled variance for each side (N is small).

``lira``: "in" shadows were trained with the target (Carlini et al. 2022 [recalled]): do
we still see what training leaves? ``u-lira``: they were trained with it and then made
to forget it by the same protocol (Hayes et al., arXiv 2403.01218 [paper: abstract]): do
we see what this unlearning leaves? The second attacker is the stronger one, and both
are far stronger than attacks on a population.

``attack_method`` is the number to quote of a method: every shadow is attacked by all
others (its own pair left out), on the forgotten rows that it had against those that it
never had, which are N k decisions about the same rows. Exact retraining has one half by
construction. ``attack_network`` is about one network: its k forgotten rows against the
k test rows. Rows that are not alike, such as wrong labels against right ones, are told
apart there without ever being trained on: compare with the reference.

On two cores this means N = 16 and k = 100: an attack that finds nothing has not shown
that there is nothing to find. With L negatives a false alarm rate below 1/L allows no
alarm at all.
"""

import warnings
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from dfl_unlearn import _validate
from dfl_unlearn._stats import auc
from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.engine.state import PeerState
from dfl_unlearn.errors import (
    InvalidArgumentError,
    MissingInputError,
    UnsupportedRequestError,
)
from dfl_unlearn.evaluation.attacks import lira_statistic, logit_score, tpr_at_fpr
from dfl_unlearn.evaluation.view import EvaluationView
from dfl_unlearn.record.plan import RecordPlan
from dfl_unlearn.unlearning.apply import unlearn

SHADOWS = 16
PAIRS = 100
"""Most forgotten rows that are targets; more are thinned to drawn ones."""

_DRAW = 2  # of the purpose "attack"
_SMALLEST = 1e-6  # standard deviation of scores: shadows without any spread

Floats = NDArray[np.float64]
Index = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Targets:
    """The rows that are judged, all of one requester.

    Attributes:
        batch: k forgotten rows, then k test rows of the same classes.
        others: Forgotten rows that are no targets; in the data, and forgotten, in
            every shadow.
        peer: The requester.
    """

    batch: TensorBatch
    others: TensorBatch
    peer: int

    @property
    def pairs(self) -> int:
        """Number k of forgotten rows among the targets."""
        return len(self.batch) // 2

    @classmethod
    def of(cls, view: EvaluationView, pairs: int = PAIRS) -> "Targets":
        """Draw the targets of an outcome, once per request.

        Args:
            view: The outcome.
            pairs: Most forgotten rows to judge.

        Returns:
            The targets.

        Raises:
            UnsupportedRequestError: If the data are of several owners.
            MissingInputError: If no class of forgotten rows has two test rows or more.
        """
        _validate.integer(at_least=2, pairs=pairs)
        if len(view.request.peers) != 1:
            raise UnsupportedRequestError(
                "request: must have one owner for likelihood-ratio attacks, got "
                f"{len(view.request.peers)}; attack requests of one peer"
            )
        forgotten, tests = view.rows("forget"), view.rows("test")
        rng = view.outcome.run.rng.numpy(
            "attack", request=view.request.request_id, draw=_DRAW
        )
        inside, outside = forgotten.labels.numpy(), tests.labels.numpy()
        free = {c: list(rng.permutation(np.flatnonzero(outside == c))) for c in inside}
        mine: list[int] = []
        theirs: list[int] = []
        for row in rng.permutation(len(forgotten)):
            if len(mine) < pairs and free[inside[row]]:
                mine.append(int(row))
                theirs.append(int(free[inside[row]].pop()))
        if len(mine) < 2:
            raise MissingInputError(
                "test: must have two rows of forgotten classes to compare with, got "
                f"{len(mine)}; give the data such test rows"
            )
        left = np.setdiff1d(np.arange(len(forgotten)), mine)
        return cls(
            batch=_joined(_taken(forgotten, mine), _taken(tests, theirs)),
            others=_taken(forgotten, left),
            peer=view.request.requester,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Shadows:
    """Scores of shadow networks on the targets.

    Attributes:
        scores: Shape ``(S, N, 2k)``: of every shadow, peer and target.
        inside: Which targets a shadow was trained with, shape ``(S, 2k)``; each in
            half of them.
    """

    scores: Floats
    inside: Mask

    def statistic(self, scores: Floats, without: int | None = None) -> Floats:
        """Return the log-likelihood ratios of a network.

        Args:
            scores: Shape ``(N, 2k)``.
            without: A shadow that is left out with the other one of its pair, so that
                both sides keep equally many; None leaves out none.

        Returns:
            Shape ``(N, 2k)``; higher means more like one trained with the target.
        """
        used = np.arange(len(self.inside))
        if without is not None:
            used = used[used // 2 != without // 2]
        means, stds = [], []
        for side in (self.inside[used], ~self.inside[used]):
            # Every target is on each side equally often, so the shape is full.
            places = np.argsort(~side, axis=0, kind="stable")[: len(used) // 2]
            found = np.take_along_axis(self.scores[used], places[:, None], axis=0)
            means.append(found.mean(axis=0))
            pooled = found.var(axis=0, ddof=1).mean(axis=-1, keepdims=True)
            stds.append(np.maximum(np.sqrt(pooled), _SMALLEST))
        return lira_statistic(scores, means[0], stds[0], means[1], stds[1])


@dataclass(frozen=True, kw_only=True, eq=False)
class LiraResult:
    """What a likelihood-ratio attack found, one value per peer's model.

    Attributes:
        auc: Area under the ROC curve, shape ``(N,)``; 0.5 means indistinguishable.
        tpr_at_01: Share of positives found at 0.1 % false alarms.
        tpr_at_1: The same at 1 %.
        positives: Decisions about a model and a row that it had.
        negatives: Decisions about a model and a row that it never had.
    """

    auc: Floats
    tpr_at_01: Floats
    tpr_at_1: Floats
    positives: int
    negatives: int

    @classmethod
    def of(cls, members: Floats, others: Floats) -> "LiraResult":
        """Return the rates of statistics, ``(N, L)`` on each side."""
        return cls(
            auc=auc(members, others),
            tpr_at_01=tpr_at_fpr(members, others, 0.001),
            tpr_at_1=tpr_at_fpr(members, others, 0.01),
            positives=members.shape[1],
            negatives=others.shape[1],
        )


def attack_network(
    view: EvaluationView,
    *,
    unlearned: bool,
    shadows: int = SHADOWS,
    pairs: int = PAIRS,
) -> LiraResult:
    """Attack the network in one world: forgotten rows against test rows.

    Args:
        view: The outcome in one world; shadows are shared by all worlds of a view.
        unlearned: True: ``u-lira``, shadows forget their targets by the outcome's
            protocol. False: ``lira``, they keep them.
        shadows: Networks to train, an even number, at least 6.
        pairs: Most forgotten rows to judge.

    Returns:
        The result at every peer; the target is the reference's.

    Raises:
        InvalidArgumentError: If ``shadows`` is odd.
        UnsupportedRequestError: If the labels are no classes, the data are of several
            owners, or a peer holds no rows beside the forgotten ones.
        MissingInputError: If there are no test rows to compare with.
    """
    targets, found = _attackers(view, unlearned, shadows, pairs)
    statistic = found.statistic(_scores(view.state, view.outcome.run, targets))
    return LiraResult.of(statistic[:, : targets.pairs], statistic[:, targets.pairs :])


def attack_method(
    view: EvaluationView,
    *,
    unlearned: bool = True,
    shadows: int = SHADOWS,
    pairs: int = PAIRS,
) -> LiraResult:
    """Attack a method: every shadow network by the others, on forgotten rows only.

    Args:
        view: The outcome whose setting, request and protocol are meant, in any world.
        unlearned: As in ``attack_network``.
        shadows: Networks to train, an even number, at least 6.
        pairs: Most forgotten rows to judge.

    Returns:
        The result at every peer; 0.5 means indistinguishable from never trained on.

    Raises:
        InvalidArgumentError: If ``shadows`` is odd.
        UnsupportedRequestError: As for ``attack_network``.
        MissingInputError: If there are no test rows to compare with.
    """
    targets, found = _attackers(view, unlearned, shadows, pairs)
    members, others = [], []
    for number, (scores, held) in enumerate(
        zip(found.scores, found.inside, strict=True)
    ):
        statistic = found.statistic(scores, without=number)[:, : targets.pairs]
        held = held[: targets.pairs]
        members.append(statistic[:, held])
        others.append(statistic[:, ~held])
    return LiraResult.of(
        np.concatenate(members, axis=1), np.concatenate(others, axis=1)
    )


def _attackers(
    view: EvaluationView, unlearned: bool, shadows: int, pairs: int
) -> tuple[Targets, Shadows]:
    """Check what was asked for; draw the targets and train the shadows."""
    view.check_task("u-lira" if unlearned else "lira", classes=True)
    _validate.integer(at_least=6, shadows=shadows)
    if shadows % 2:
        raise InvalidArgumentError(
            f"shadows: must be even, got {shadows}; they come in pairs"
        )
    targets = Targets.of(view, pairs)
    found = shadow_scores(view, targets, unlearned=unlearned, shadows=shadows)
    if view.peer is not None:
        found = replace(found, scores=found.scores[:, [view.peer]])
    return targets, found


def shadow_scores(
    view: EvaluationView, targets: Targets, *, unlearned: bool, shadows: int = SHADOWS
) -> Shadows:
    """Train the shadow networks of an outcome, or look them up in the view's cache.

    Args:
        view: Gives the setting, and the protocol.
        targets: What is judged.
        unlearned: Whether shadows forget their targets by the protocol.
        shadows: How many, an even number.

    Returns:
        Their scores.
    """
    inside = _halves(view, targets, shadows)

    def compute() -> torch.Tensor:
        scores = [
            _shadow(view, targets, held, number, unlearned)
            for number, held in enumerate(inside)
        ]
        return torch.from_numpy(np.stack(scores))

    key = ("shadows", unlearned, shadows, targets.pairs)
    return Shadows(scores=view.cache.get(key, compute).numpy(), inside=inside)


def _halves(view: EvaluationView, targets: Targets, shadows: int) -> Mask:
    """Return which targets each shadow holds: pairs of complementary halves."""
    count, halves = len(targets.batch), []
    for number in range(shadows // 2):
        rng = view.outcome.run.rng.numpy(
            "attack",
            who="shadow",
            request=view.request.request_id,
            round=number,
            draw=_DRAW,
        )
        half = np.zeros(count, dtype=np.bool_)
        half[rng.permutation(count)[: count // 2]] = True
        halves += [half, ~half]
    return np.stack(halves)


def _shadow(
    view: EvaluationView, targets: Targets, held: Mask, number: int, unlearned: bool
) -> Floats:
    """Train one shadow network; return its scores, shape ``(N, 2k)``."""
    run, request = view.outcome.run, view.request
    data, request = _shadow_data(view, targets, held, request)
    rng = run.rng.numpy(
        "attack", who="shadow", request=view.request.request_id, round=number
    )
    config = replace(run.config, seed=int(rng.integers(2**31)))
    if not unlearned:
        config = replace(config, record=RecordPlan(parts=frozenset()))
    shadow = simulate(run.topology, data, run.model, config)
    if not unlearned:
        return _scores(shadow.state, shadow, targets)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of claims; nobody sees these
        outcome = unlearn(shadow, request, view.outcome.protocol)
    return _scores(outcome.state, shadow, targets)


def _shadow_data(
    view: EvaluationView, targets: Targets, held: Mask, request: ForgetRequest
) -> tuple[PeerData, ForgetRequest]:
    """Return the data of one shadow, and the request that forgets its targets."""
    data = view.data
    kept = data.keep & ~view.request.mask(data)
    gone = _joined(targets.others, _taken(targets.batch, np.flatnonzero(held)))
    peers, first = [], 0
    for peer in range(data.n):
        rows = data.rows(peer)
        batch = _taken(data.store, np.flatnonzero(kept[rows]) + rows.start)
        if peer == targets.peer:
            first = len(batch)
            batch = _joined(batch, gone)
        if not len(batch):
            raise UnsupportedRequestError(
                f"peer {peer}: must hold rows for likelihood-ratio attacks, got none "
                "left; attack an earlier request"
            )
        peers.append((batch.inputs, batch.labels))
    shadow = PeerData.from_tensors(
        peers,
        data.test,
        num_classes=data.num_classes,
        name=data.name,
        feature_bound=data.feature_bound,
    )
    if request.kind == "peer":
        return shadow, ForgetRequest.whole_peer(targets.peer)
    rows_gone = range(first, first + len(gone))
    return shadow, ForgetRequest.samples(peer=targets.peer, indices=rows_gone)


def _scores(state: PeerState, run: TrainedRun, targets: Targets) -> Floats:
    """Return every peer's logit scores of the targets, shape ``(N, 2k)``."""
    logits = run.model.predict_all(state.params, targets.batch.inputs)
    return logit_score(logits.double().cpu().numpy(), targets.batch.labels.numpy())


def _taken(batch: TensorBatch, rows: list[int] | Index) -> TensorBatch:
    index = torch.as_tensor(np.asarray(rows, dtype=np.int64))
    return TensorBatch(batch.inputs[index], batch.labels[index])


def _joined(first: TensorBatch, second: TensorBatch) -> TensorBatch:
    return TensorBatch(
        torch.cat([first.inputs, second.inputs]),
        torch.cat([first.labels, second.labels]),
    )
