"""Membership attacks that fit a classifier: four different things called "MIA".

The name says which: ``mia-entropy`` and ``mia-confidence`` are fitted to retained and
test rows and give a share of the forgotten rows, whose target is Retrain's value;
``mia-population-auc`` and ``mia-update`` tell forgotten rows from matched test rows,
with one half as the ideal. A value of the last two far below one half is leakage, too:
judge ``|value - 0.5|``. Low membership after gradient ascent is no success: forgotten
rows that are answered worse than any others are as easy to tell.

Deviations from the public codes, all for evenness over a network: rows that pass
``nonmembers.ROWS`` are thinned evenly instead of cut off, and where a class is
forgotten whole, the test rows are those of the other classes (as in Dt).
"""

import warnings
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfl_unlearn import _validate
from dfl_unlearn._stats import auc
from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.errors import MissingInputError
from dfl_unlearn.evaluation.attacks import entropy, modified_entropy, softmax
from dfl_unlearn.evaluation.metrics import measures, metrics
from dfl_unlearn.evaluation.nonmembers import MatchedRows, matched_rows, thinned
from dfl_unlearn.evaluation.view import EvaluationView

Key = Literal["confidence", "correctness", "entropy", "modified-entropy", "probability"]
KEYS: tuple[Key, ...] = (
    "confidence",
    "correctness",
    "entropy",
    "modified-entropy",
    "probability",
)

FOLDS = 5
REPEATS = 2
"""Cross-validations of the metrics; the paper's 10 by ``population_auc``."""
UNDERSAMPLINGS = 5
"""Draws of non-members of the metrics; the paper's 100 by ``population_auc``."""

Floats = NDArray[np.float64]


@metrics.register("mia-entropy")
@measures(set="forget", default=False)
def mia_entropy(view: EvaluationView) -> Tensor:
    """Share of forgotten rows called members by the entropy of their predictions.

    Attack (a): a logistic regression with balanced classes, on the entropy of the
    prediction; members are the retained rows, non-members the test rows
    [code: SFRon]. The target is Retrain's value: lower is not better.

    Args:
        view: The network in one world.

    Returns:
        One share per peer, shape ``(N,)``.
    """
    view.check_task("mia-entropy", classes=True)

    def classifier() -> Any:
        from sklearn.linear_model import LogisticRegression

        return LogisticRegression(class_weight="balanced")

    def feature(logits: Floats, labels: NDArray[np.int64]) -> Floats:
        return entropy(softmax(logits))[:, None]

    return _share_of_members(view, classifier, feature, equal=False)


@metrics.register("mia-confidence")
@measures(set="forget", default=False)
def mia_confidence(view: EvaluationView) -> Tensor:
    """Share of forgotten rows called non-members by the confidence in their label.

    Attack (b) with its usual key; ``svc_efficacy`` has the others. The target is
    Retrain's value: higher is not better.

    Args:
        view: The network in one world.

    Returns:
        One share per peer, shape ``(N,)``.
    """
    return svc_efficacy(view, "confidence")


def svc_efficacy(view: EvaluationView, key: Key = "confidence") -> Tensor:
    """Return the share of forgotten rows that a support vector machine calls unseen.

    Attack (b): C = 3, radial kernel with gamma 1 / features; members are as many
    retained rows as there are test rows, non-members the test rows [code:
    OPTML-Group/Unlearn-Sparse].

    Args:
        view: The network in one world.
        key: What it sees of a prediction: probability of the label, whether the
            predicted class is the label, the entropy, the modified entropy, or all
            probabilities.

    Returns:
        One share per peer, shape ``(N,)``.
    """
    view.check_task("mia-confidence", classes=True)
    _validate.one_of(KEYS, key=key)

    def classifier() -> Any:
        from sklearn.svm import SVC

        return SVC(C=3, gamma="auto", kernel="rbf")

    def feature(logits: Floats, labels: NDArray[np.int64]) -> Floats:
        p = softmax(logits)
        if key == "probability":
            return p
        if key == "entropy":
            return entropy(p)[:, None]
        if key == "modified-entropy":
            return modified_entropy(p, labels)[:, None]
        if key == "correctness":
            return np.asarray(p.argmax(1) == labels, dtype=np.float64)[:, None]
        confidence: Floats = np.take_along_axis(p, labels[:, None], axis=1)
        return confidence

    return 1 - _share_of_members(view, classifier, feature, equal=True)


@metrics.register("mia-population-auc")
@measures(set="forget", default=False)
def mia_population_auc(view: EvaluationView) -> Tensor:
    """How well a fitted threshold on the loss tells forgotten from unseen rows.

    Attack (c), see ``population_auc``; with fewer repetitions than the paper.

    Args:
        view: The network in one world.

    Returns:
        One area per peer, shape ``(N,)``; 0.5 means indistinguishable.
    """
    rows = matched_rows(view)
    inside, outside = view.losses(rows.members), view.losses(rows.others)
    return _areas(rows, inside.numpy()[..., None], outside.numpy()[..., None])


@metrics.register("mia-update")
@measures(set="forget", default=False)
def mia_update(view: EvaluationView) -> Tensor:
    """How well the change of a row's prediction tells that it was forgotten.

    Attack (d): like (c), on the Euclidean distance between the probabilities that a
    peer gave before the request and those it gives now [paper: R2D]. 0.5 before the
    request, where nothing has changed.

    Args:
        view: The network in one world.

    Returns:
        One area per peer, shape ``(N,)``; 0.5 means indistinguishable.
    """
    view.check_task("mia-update", classes=True)
    rows, before = matched_rows(view), view.at("before")

    def distances(batch: TensorBatch) -> Floats:
        found = [
            np.linalg.norm(
                softmax(view.logits(batch, i)) - softmax(before.logits(batch, i)),
                axis=1,
            )
            for i in range(view.n)
        ]
        return np.stack(found)[..., None]

    return _areas(rows, distances(rows.members), distances(rows.others))


def population_auc(
    rows: MatchedRows,
    members: Floats,
    others: Floats,
    *,
    repeats: int = 10,
    undersamplings: int = 100,
) -> float:
    """Return the cross-validated area of a logistic regression, attack (c).

    Stratified folds of k members and k non-members drawn with the members' mix of
    classes, ``repeats`` times, for every draw; mean of the areas of all test folds
    [paper: R2D]. Features are standardized on each training fold; areas count ties
    half.

    Args:
        rows: Gives the draws.
        members: Features of the k members, shape ``(k, d)``.
        others: Features of all non-members, shape ``(times * k, d)``.
        repeats: Cross-validations of every draw.
        undersamplings: Draws; one where there are no more non-members than members.

    Returns:
        In [0, 1]; below one half means that the fitted direction was wrong.

    Raises:
        MissingInputError: If there are fewer than two members to compare.
    """
    from sklearn.linear_model import LogisticRegression

    _validate.integer(at_least=1, repeats=repeats, undersamplings=undersamplings)
    k = len(members)
    if k < 2:
        raise MissingInputError(
            "forget: must have at least two rows with test rows of their classes for "
            f"a fitted attack, got {k}; use mia-loss-auc"
        )
    labels = np.repeat([1, 0], k)
    areas = []
    for draw in range(1 if rows.times == 1 else undersamplings):
        rng = rows.generator(draw)
        x = np.concatenate([members, others[rows.undersampled(rng)]])
        for _ in range(repeats):
            fold = np.concatenate([rng.permutation(k), rng.permutation(k)])
            fold %= min(FOLDS, k)
            for number in range(min(FOLDS, k)):
                fitted = fold != number
                mean, std = x[fitted].mean(0), x[fitted].std(0)
                z = (x - mean) / np.where(std > 0, std, 1)
                model = LogisticRegression().fit(z[fitted], labels[fitted])
                scores = model.decision_function(z)
                tested = ~fitted & (labels == 1), ~fitted & (labels == 0)
                areas.append(float(auc(*(scores[side] for side in tested))))
    return float(np.mean(areas))


def _areas(rows: MatchedRows, members: Floats, others: Floats) -> Tensor:
    """Return attack (c) at every peer, of features ``(N, k, d)``."""
    areas = [
        population_auc(
            rows, mine, theirs, repeats=REPEATS, undersamplings=UNDERSAMPLINGS
        )
        for mine, theirs in zip(members, others, strict=True)
    ]
    return torch.tensor(areas, dtype=torch.float64)


def _share_of_members(
    view: EvaluationView,
    classifier: Callable[[], Any],
    feature: Callable[[Floats, NDArray[np.int64]], Floats],
    *,
    equal: bool,
) -> Tensor:
    """Fit retained against test rows at every peer; judge the forgotten ones.

    Args:
        view: The network in one world.
        classifier: Makes a classifier of scikit-learn.
        feature: What it sees, of logits and labels.
        equal: Whether to take no more retained than test rows.

    Returns:
        Share of forgotten rows called members, shape ``(N,)``.
    """
    outside = thinned(view.test_rows(forgotten=False))
    inside = thinned(view.rows("retain"))
    if equal:
        inside = thinned(inside, len(outside))
    forgotten = view.rows("forget")
    labels = np.repeat([1, 0], [len(inside), len(outside)])
    shares = []
    for peer in range(view.n):
        x = [
            feature(view.logits(batch, peer), batch.labels.numpy())
            for batch in (inside, outside, forgotten)
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of convergence: features may be constant
            fitted = classifier().fit(np.concatenate(x[:2]), labels)
        shares.append(float(fitted.predict(x[2]).mean()))
    return torch.tensor(shares, dtype=torch.float64)
