"""Membership by representation: does a row still lie where training put it?

Attack (e) of the four that are called "MIA", as the tables of ManiF-SMC use it [code:
wwq5-code/ManiF]: a perceptron is fitted once to representations of the *original*
model, retained rows against test rows, and then looks at the forgotten rows in the
model of each world.

It is fixed before anything is unlearned, so any shift of representations moves its
score: it measures movement more than forgetting. A high value is no success; the target
is Retrain's value, which is itself of little worth where retraining ends in another
space of representations: 0.00 to 0.98 over three seeds of a class forgotten on digits.

Deviations from the code: as many retained as test rows of every class, so that a class
that is forgotten whole says nothing; representations are standardized; steps as many as
there, also where there are fewer rows.
"""

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.errors import MissingInputError
from dfl_unlearn.evaluation.metrics import measures, metrics
from dfl_unlearn.evaluation.nonmembers import ROWS
from dfl_unlearn.evaluation.view import EvaluationView
from dfl_unlearn.store.table import WORLDS

HIDDEN = 64
"""Width of the attack's hidden layer."""
BATCH = 16
SAMPLES = 10_000
"""Rows that the attack goes through while it is fitted, repetitions included."""

_CHUNK_ROWS = 1024


@metrics.register("mia-representation")
@measures(set="forget", default=False)
def mia_representation(view: EvaluationView) -> Tensor:
    """Share of forgotten rows that an attack on representations calls non-members.

    Attack (e), fitted at every peer to its model before the request; needs a model
    with features. Target: Retrain's value, neither 0 nor 1.

    Args:
        view: The network in one world.

    Returns:
        One share per peer, shape ``(N,)``.
    """
    view.at(view.world).state  # noqa: B018 - a missing reference is said before work
    shares = view.cache.get(("mia-representation",), lambda: _shares(view))
    return shares[WORLDS.index(view.world)].clone()


def attack_rows(view: EvaluationView) -> tuple[TensorBatch, TensorBatch]:
    """Draw the rows that the attack is fitted to, equally many of every class.

    The same rows for all peers, once per request. A regression has one class.

    Args:
        view: The outcome.

    Returns:
        Retained rows and test rows, equally many, about ``ROWS`` each at most.

    Raises:
        MissingInputError: If there are no test rows of a retained class.
    """
    inside, outside = view.rows("retain"), view.rows("test")
    members, others = _classes(inside), _classes(outside)
    shared = np.intersect1d(members, others)
    if not len(shared):
        raise MissingInputError(
            "test: must have rows of a class that is retained, to fit an attack to, "
            "got none; give the data such test rows, or leave mia-representation out"
        )
    counts = np.array([min((members == c).sum(), (others == c).sum()) for c in shared])
    if counts.sum() > ROWS:
        counts = np.maximum(1, counts * ROWS // counts.sum())
    rng = view.outcome.run.rng.numpy(
        "attack", who="representation", request=view.request.request_id
    )

    def drawn(batch: TensorBatch, classes: NDArray[np.int64]) -> TensorBatch:
        parts = [
            rng.choice(np.flatnonzero(classes == c), count, replace=False)
            for c, count in zip(shared, counts, strict=True)
        ]
        index = torch.from_numpy(np.concatenate(parts))
        return TensorBatch(batch.inputs[index], batch.labels[index])

    return drawn(inside, members), drawn(outside, others)


def _classes(batch: TensorBatch) -> NDArray[np.int64]:
    """Return the labels; zeros in a regression, which has one class."""
    labels = torch.zeros_like(batch.labels) if batch.is_regression else batch.labels
    classes: NDArray[np.int64] = labels.long().numpy()
    return classes


def _shares(view: EvaluationView) -> Tensor:
    """Return what every peer's attack says in every world: ``(worlds, N)``."""
    inside, outside = attack_rows(view)
    forgotten = view.rows("forget")
    states = {"before": view.before, "after": view.after, "reference": view.reference}
    shares = torch.full((len(WORLDS), view.n), torch.nan, dtype=torch.float64)
    for peer in range(view.n):
        original = view.before.params[peer]
        number = peer if view.peer is None else view.peer  # the same draw either way
        attack = _fitted(
            _features(view, original, inside),
            _features(view, original, outside),
            view.outcome.run.rng.numpy(
                "attack",
                who="representation",
                request=view.request.request_id,
                draw=1 + number,
            ),
        )
        for place, world in enumerate(WORLDS):
            state = states[world]
            if state is not None:
                seen = _features(view, state.params[peer], forgotten)
                shares[place, peer] = 1 - float(attack.predict(seen).mean())
    return shares


def _fitted(
    members: NDArray[np.float64],
    others: NDArray[np.float64],
    rng: np.random.Generator,
) -> Any:
    """Return a classifier that says 1 for members."""
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows = np.concatenate([members, others])
    labels = np.repeat([1, 0], [len(members), len(others)])
    network = MLPClassifier(
        hidden_layer_sizes=(HIDDEN,),
        batch_size=min(BATCH, len(rows)),
        learning_rate_init=5e-4,
        max_iter=max(1, round(SAMPLES / len(rows))),
        random_state=int(rng.integers(2**31)),
    )
    attack = make_pipeline(StandardScaler(), network)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it stops after the given passes
        return attack.fit(rows, labels)


@torch.no_grad()
def _features(
    view: EvaluationView, params: Tensor, batch: TensorBatch
) -> NDArray[np.float64]:
    """Return the representation of rows under one model, shape ``(B, d)``."""
    parts = [view.model.features(params, x) for x in batch.inputs.split(_CHUNK_ROWS)]
    found: NDArray[np.float64] = torch.cat(parts).double().cpu().numpy()
    return found
