"""Forgotten rows against rows that nobody trained on, equal in their mix of classes.

An attack that compares rows of other classes measures classes, not membership. The
non-members are test rows: they belong to no peer, so where a user's or a peer's data go
they are other users' data, as the comparison needs [paper: R2D].
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.errors import MissingInputError
from dfl_unlearn.evaluation.view import EvaluationView

ROWS = 2000
"""Most rows that an attack looks at on one side; more are thinned, class by class."""
MOST = 2000
"""Most non-members of one comparison."""

_DRAW = 1  # of the purpose "attack"; 0 is mia-loss-auc's
_FIRST_UNDERSAMPLING = 16

Index = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class MatchedRows:
    """Members and non-members with the same share of every class.

    Attributes:
        view: Where they come from.
        members: k forgotten rows: all of them, unless there are more than ``ROWS``, or
            more of a class than there are test rows of it.
        others: ``times * k`` test rows, ``times`` as many of every class.
        times: A whole number, so that the mix is equal to the row.
    """

    view: EvaluationView
    members: TensorBatch
    others: TensorBatch
    times: int

    def generator(self, draw: int) -> np.random.Generator:
        """Return the generator of one draw of an attack, from 0, by its key."""
        return _rng(self.view, _FIRST_UNDERSAMPLING + draw)

    def undersampled(self, rng: np.random.Generator) -> Index:
        """Return the places of k of the non-members, with the members' mix.

        Args:
            rng: Draws them; nothing is drawn where all are taken.

        Returns:
            Ascending indices into ``others``, shape ``(k,)``.
        """
        if self.times == 1:
            return np.arange(len(self.others))
        classes = _classes(self.others)
        parts = [
            rng.choice(rows, len(rows) // self.times, replace=False)
            for rows in (np.flatnonzero(classes == c) for c in np.unique(classes))
        ]
        return np.sort(np.concatenate(parts))


def matched_rows(view: EvaluationView) -> MatchedRows:
    """Draw non-members that match the forgotten rows, once per request.

    The same rows for all peers and worlds. Classes are the labels that were trained on,
    wrong ones included; a regression has one class.

    Args:
        view: The outcome.

    Returns:
        Both sides, at least one row each.

    Raises:
        MissingInputError: If there are no test rows of any forgotten class.
    """
    forgotten, tests = view.rows("forget"), view.rows("test")
    rng = _rng(view, _DRAW)
    inside, outside = _classes(forgotten), _classes(tests)
    classes, counts = np.unique(inside, return_counts=True)
    free = np.array([(outside == c).sum() for c in classes])
    counts = np.minimum(counts, free)
    if not counts.any():
        raise MissingInputError(
            "test: must have rows of a class that is forgotten, to compare with, got "
            f"none of {', '.join(map(str, classes))}; give the data such test rows"
        )
    if counts.sum() > ROWS:
        counts = np.maximum(counts * ROWS // counts.sum(), counts > 0)
    some = counts > 0
    times = int((free[some] // counts[some]).min())
    times = max(1, min(times, MOST // int(counts.sum())))

    def drawn(batch: TensorBatch, found: Index, factor: int) -> TensorBatch:
        parts = [
            rng.choice(np.flatnonzero(found == c), factor * k, replace=False)
            for c, k in zip(classes, counts, strict=True)
        ]
        index = torch.from_numpy(np.sort(np.concatenate(parts)))
        return TensorBatch(batch.inputs[index], batch.labels[index])

    return MatchedRows(
        view=view,
        members=drawn(forgotten, inside, 1),
        others=drawn(tests, outside, times),
        times=times,
    )


def thinned(batch: TensorBatch, most: int = ROWS) -> TensorBatch:
    """Return evenly spaced rows of a set.

    Args:
        batch: The rows.
        most: How many to return; fewer rows come back as they are.

    Returns:
        The rows, in order.
    """
    if len(batch) <= most:
        return batch
    index = torch.arange(most) * len(batch) // most
    return TensorBatch(batch.inputs[index], batch.labels[index])


def _classes(batch: TensorBatch) -> Index:
    labels = torch.zeros_like(batch.labels) if batch.is_regression else batch.labels
    classes: Index = labels.long().numpy()
    return classes


def _rng(view: EvaluationView, draw: int) -> np.random.Generator:
    rng = view.outcome.run.rng
    return rng.numpy("attack", request=view.request.request_id, draw=draw)
