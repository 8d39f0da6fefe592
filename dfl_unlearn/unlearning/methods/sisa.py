"""SISA: an ensemble that forgets by training a part of one member again.

Bourtoule, Chandrasekaran, Choquette-Choo, Jia, Travers, Zhang, Lie and Papernot (2021),
*Machine unlearning* (sharded, isolated, sliced, aggregated). The rows are dealt to S
shards and each shard's rows to R slices. A member is trained per shard, in R stages,
stage i on the slices 0..i, and its state before every stage is kept. When a row of
slice j goes, its member returns to its state before stage j, which never saw the row,
and takes the stages from there again. The members' mean probability (or their vote) is
the prediction.

With equal slices and the same passes in every stage, one uniformly drawn row costs
``(2 R + 1) / (3 R)`` of a member's training in expectation [derived: the mean over j of
``sum_{i >= j} i``, over ``R (R + 1) / 2``], and 1 / S of that of the whole.

What the ensemble is about: SISA replaces training, so the guarantee is about the
ensemble it trained, not about the task's ``params``, which it never looks at. The
ensemble stays with the peer as personal state. Where there is none yet, the first
request trains it, on what is kept; ``Sisa.train`` makes it before any request.

Row k belongs to shard ``k mod S`` and there to slice ``(k div S) mod R``: the deal
depends on no other row and on no label, so that a deletion moves nobody. Every stage
draws its order of rows by key, over the rows that it has; deleting rows therefore gives
the same bits as training without them under the same draws.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from dfl_unlearn import _validate
from dfl_unlearn.accounting.certificate import Assumption, Certificate
from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.errors import InvalidHyperparameterError, MissingInputError
from dfl_unlearn.models.flat import FlatModel
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.local import (
    LocalOutcome,
    LocalTask,
    TaskPart,
    exact_certificate,
    methods,
    unchanged,
)
from dfl_unlearn.unlearning.local_work import LocalWork
from dfl_unlearn.unlearning.recipe import TrainingRecipe, train

COVERS = "SISA ensemble (personal state) and the mean of its members' parameters"


@methods.register("sisa")
@dataclass(frozen=True, kw_only=True)
class Sisa:
    """Keep an ensemble of which a request trains a part again: exact, about itself.

    ``params`` of the outcome is the mean of the members' parameters, which all start
    from the same point; it is one model that never saw the rows, and weaker than the
    ensemble (``SisaEnsemble.of(task.model, outcome.personal)``).

    Attributes:
        shards: Members S.
        slices: Stages R of every member.
        recipe: How a member is trained; ``epochs`` counts passes over its rows in all
            stages together.
    """

    shards: int = 4
    slices: int = 4
    recipe: TrainingRecipe = field(default_factory=TrainingRecipe)

    uses: ClassVar[frozenset[TaskPart]] = frozenset(
        {"retain_inputs", "retain_labels", "fresh_start"}
    )
    claim: ClassVar[Literal["exact"]] = "exact"

    def __post_init__(self) -> None:
        """Check the fields."""
        wrong = InvalidHyperparameterError
        _validate.integer(shards=self.shards, at_least=1, error=wrong)
        _validate.integer(slices=self.slices, at_least=1, error=wrong)
        _validate.of_type(TrainingRecipe, recipe=self.recipe)

    @property
    def stage_epochs(self) -> int:
        """Passes of every stage: ``2 epochs / (R + 1)``, rounded, at least 1."""
        return max(1, round(2 * self.recipe.epochs / (self.slices + 1)))

    def unlearn(self, task: LocalTask[TensorBatch], rng: RngTree) -> LocalOutcome:
        """Return the ensemble without the forgotten rows.

        Args:
            task: The task; an ensemble among its companions is taken up.
            rng: The draws.

        Returns:
            The ensemble as personal state. Certificate ``exact``, ``heuristic`` where
            the budget was spent before every stage was trained; a later call goes on.
        """
        same = unchanged(self, task)
        if same is not None:
            return replace(same, personal=dict(task.companions))
        assert task.retain is not None
        return self._trained(task, rng, task.retain, task.retain_rows)

    def train(self, task: LocalTask[TensorBatch], rng: RngTree) -> LocalOutcome:
        """Train the ensemble on all of a task's rows, before anything is forgotten.

        Args:
            task: Its forgotten rows are used like the others.
            rng: The draws.

        Returns:
            The ensemble as personal state; no certificate.

        Raises:
            MissingInputError: If the task hides rows.
        """
        if task.forget is None or task.retain is None or task.fresh is None:
            raise MissingInputError(
                "task: must show all rows and a fresh start for Sisa.train, got "
                f"{', '.join(sorted(task.parts()))}; use local_task(run, request)"
            )
        places = np.concatenate([task.forget_rows, task.retain_rows])
        order = np.argsort(places)
        rows = torch.from_numpy(order)
        data = TensorBatch(
            torch.cat([task.forget.inputs, task.retain.inputs])[rows],
            torch.cat([task.forget.labels, task.retain.labels])[rows],
        )
        outcome = self._trained(task, rng, data, places[order])
        return replace(outcome, certificate=None)

    def _trained(
        self,
        task: LocalTask[TensorBatch],
        rng: RngTree,
        data: TensorBatch,
        places: NDArray[np.int64],
    ) -> LocalOutcome:
        """Train all stages that have not seen exactly the given rows."""
        states, done = self._taken_up(task, rng, places)
        before = int(done.sum())
        work = LocalWork(task, rng, params=states[0, 0])
        optimizer = work.optimizer(self.recipe.optimizer)
        shard, part = self._deal(places)
        passes = work.epochs(self.shards * self.slices * self.stage_epochs)
        for s, i in np.argwhere(np.arange(self.slices) >= done.numpy()[:, None]):
            if work.spent():
                break
            rows = torch.from_numpy(np.flatnonzero((shard == s) & (part <= i)))
            draws = rng.child(f"sisa/{task.peer}/{s}/{i}")
            work.set(states[s, i])
            optimizer.state.clear()
            finished = train(
                work,
                optimizer,
                self.recipe,
                TensorBatch(data.inputs[rows], data.labels[rows]),
                epochs=self.stage_epochs,
                passes=passes,
                order=partial(_order, draws),
            )
            if not finished:
                break
            states[s, i + 1] = work.params
            done[s] = i + 1
        personal = {
            "sisa-states": states,
            "sisa-done": done,
            "sisa-rows": torch.from_numpy(places.copy()),
            "sisa-fields": self._fingerprint(),
        }
        members = SisaEnsemble.of(task.model, personal).members
        return work.outcome(
            self._certificate(task, done),
            params=members.mean(dim=0),
            personal=personal,
            info={
                "stages_trained": float(int(done.sum()) - before),
                "stages": float(self.shards * self.slices),
            },
            notes=["params is the mean of the members' parameters, not the ensemble"],
        )

    def _deal(
        self, places: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the shard and the slice of every place."""
        return places % self.shards, places // self.shards % self.slices

    def _taken_up(
        self, task: LocalTask[TensorBatch], rng: RngTree, places: NDArray[np.int64]
    ) -> tuple[Tensor, Tensor]:
        """Return every member's states that rows outside ``places`` never entered.

        Args:
            task: Its companions may have an ensemble.
            rng: Draws the start where they have none that fits.
            places: The rows that may take part.

        Returns:
            States before every stage and after the last, ``(S, R + 1, P)``, zeros where
            there is none; number of stages done, ``(S,)``.
        """
        if not self._fits(task):
            assert task.fresh is not None
            shape = (self.shards, self.slices + 1, task.model.size)
            states = torch.zeros(shape, dtype=task.params.dtype)
            states[:, 0] = task.fresh(rng.child(f"sisa/{task.peer}")).to(task.params)
            return states, torch.zeros(self.shards, dtype=torch.int64)
        states = task.companions["sisa-states"].clone()
        done = task.companions["sisa-done"].clone()
        known = task.companions["sisa-rows"].numpy()
        for s, j in zip(*self._deal(np.setxor1d(known, places)), strict=True):
            done[s] = min(int(done[s]), int(j))
        for s in range(self.shards):  # later states saw rows that are gone
            states[s, int(done[s]) + 1 :] = 0
        return states, done

    def _fits(self, task: LocalTask[TensorBatch]) -> bool:
        """Tell whether the companions have an ensemble of these fields and model."""
        kept = task.companions  # from a file, it may be: nothing is taken for granted
        if not {"sisa-states", "sisa-done", "sisa-rows", "sisa-fields"} <= set(kept):
            return False
        states, done, rows = (kept[f"sisa-{n}"] for n in ("states", "done", "rows"))
        return (
            torch.equal(kept["sisa-fields"], self._fingerprint())
            and states.shape == (self.shards, self.slices + 1, task.model.size)
            and states.dtype == task.params.dtype
            and bool(states.isfinite().all())
            and done.shape == (self.shards,)
            and done.dtype == rows.dtype == kept["sisa-fields"].dtype == torch.int64
            and bool(((done >= 0) & (done <= self.slices)).all())
            and rows.ndim == 1
            and bool((rows >= 0).all())
        )

    def _fingerprint(self) -> Tensor:
        """Return a number that tells these fields from others, shape ``(1,)``."""
        digest = sha256(repr(self).encode()).digest()
        return torch.tensor([int.from_bytes(digest[:8], signed=True)])

    def _certificate(self, task: LocalTask[TensorBatch], done: Tensor) -> Certificate:
        assumptions = [
            Assumption(
                name="training data",
                value="retained rows only",
                source="proven",
                note="every stage that a row took part in is trained again without it",
            )
        ]
        if int(done.min()) < self.slices:
            assumptions.append(
                Assumption(
                    name="every stage is trained",
                    value=f"{int(done.sum())} of {self.shards * self.slices} stages "
                    "were trained within the budget",
                    source="proven",
                    state="violated",
                )
            )
        certificate = exact_certificate(methods.name_of(self), task, *assumptions)
        return replace(certificate, covers=(COVERS,))


def _order(draws: RngTree, epoch: int) -> torch.Generator:
    """Return the draws of one pass of a stage; no request has a part in them."""
    return draws.torch("method", round=epoch)


@dataclass(frozen=True, kw_only=True, eq=False)
class SisaEnsemble:
    """The members of a SISA ensemble and what they say together.

    Attributes:
        model: What every member is.
        members: Parameters, shape ``(S, P)``.
    """

    model: FlatModel
    members: Tensor

    @classmethod
    def of(cls, model: FlatModel, personal: Mapping[str, Tensor]) -> "SisaEnsemble":
        """Return the ensemble that an outcome or a task's companions carry.

        Args:
            model: The task's model.
            personal: ``outcome.personal`` of ``sisa``.

        Returns:
            The members as far as they are trained.

        Raises:
            MissingInputError: If there is no ensemble.
        """
        if "sisa-states" not in personal:
            raise MissingInputError(
                "personal: must have sisa-states, got "
                f"{', '.join(sorted(personal)) or 'nothing'}; run the method sisa first"
            )
        states, done = personal["sisa-states"], personal["sisa-done"]
        return cls(model=model, members=states[torch.arange(len(done)), done])

    def mean(self, inputs: Tensor) -> Tensor:
        """Return the members' mean prediction.

        Args:
            inputs: Shape ``(B, ...)``.

        Returns:
            Mean class probabilities ``(B, C)``; mean outputs ``(B,)`` of a regression.
        """
        outputs = self.model.predict_all(self.members, inputs)
        return (outputs.softmax(dim=2) if outputs.ndim == 3 else outputs).mean(dim=0)

    def vote(self, inputs: Tensor) -> Tensor:
        """Return the share of members that name each class, ``(B, C)``.

        Args:
            inputs: Shape ``(B, ...)``.

        Returns:
            Shares; a tie goes to the smaller class where ``argmax`` is taken.
        """
        outputs = self.model.predict_all(self.members, inputs)
        named = functional.one_hot(outputs.argmax(dim=2), outputs.shape[2])
        return named.to(self.members).mean(dim=0)
