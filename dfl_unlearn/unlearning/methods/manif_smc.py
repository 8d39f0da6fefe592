"""ManiF-SMC: move forgotten rows to their nearest retained neighbours' representation.

Wang, Tian, Zhang, Chen and Yu (2026), Approximate machine unlearning through manifold
representation forgetting guided by self mode connectivity, KDD, arXiv 2605.22871. A
model retrained without a row represents it as it represents what resembles it. So the
representation of each forgotten row moves to that of its k nearest retained rows and
away from its own old one, by a triplet loss whose margin comes from a model on a curve
between the current and the original one ("self mode connectivity"). No label of a
forgotten row is read.

What was read: the abstract, the authors' code and two of their replies to reviewers;
not the body of the paper. Abstract and code disagree, so there are two variants:

* ``reference`` [code: wwq5-code/ManiF]:
  ``max(0, d(z(p_u), c_u) - d(z(x_u), c_u) + alpha_u)``, which keeps a neighbour p_u in
  the middle c_u of the neighbours and pushes the forgotten row x_u *away* from it.
* ``pull`` (default), a reconstruction of the abstract [derived]:
  ``max(0, d(z(x_u), c_u) - d(z(x_u), o_u) + alpha_u)`` plus ``preservation`` times the
  mean of ``d(z(p), z_o(p))`` over the neighbours p.

Symbols: z representation, d squared distance, S_k(u) ``neighbours``, c_u mean of their
original representations, o_u ``own_centroid``, alpha_u margin, w control point of
``mode_connectivity.bezier``, lambda_pres ``preservation``.

Deviations from the code: one space for representations and centroids (there: raw
against normalized); squared distances are sums over dimensions, and the loss is divided
by their number (there: means); a hinge per row (there: of the batch's mean); a margin
is at least 0; no term with labels of forgotten rows; no variational encoder. The code
fits no curve: it takes the midpoint to a random network (``margin="midpoint_random"``).
That the control point is fitted on the neighbours is said in a reply; on which loss
and by which optimizer is ours [derived].
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from dfl_unlearn import _validate
from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.errors import InvalidHyperparameterError
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.local import (
    LocalOutcome,
    LocalTask,
    TaskPart,
    methods,
    unchanged,
)
from dfl_unlearn.unlearning.local_work import LocalWork
from dfl_unlearn.unlearning.manifold import (
    distance,
    nearest,
    triplet_gap,
    triplet_loss,
    unit,
)
from dfl_unlearn.unlearning.mode_connectivity import bezier, fit_control
from dfl_unlearn.unlearning.optimizers import LocalOptimizer

_CHUNK_ROWS = 1024  # rows that go through the model at a time, without gradients
_POSITIVES = 16  # the draw of p_u; smaller ones are orders of batches

Embed = Callable[[Tensor], Tensor]


@methods.register("manif-smc")
@dataclass(frozen=True, kw_only=True)
class ManifSmc:
    """Represent forgotten rows as their nearest retained rows are; no claim.

    ``variant="pull"`` is a reconstruction from the paper's abstract; what the authors'
    code minimizes is ``variant="reference"``, which pushes the other way. With wrong
    labels or a forgotten class (on digits) the first moves toward retraining and the
    second away from it. On rows that are labelled well the neighbours have the same
    class, so pulling is no better than doing nothing. One pass, as published, is short
    for a small model; three forget more.

    Attributes:
        variant: ``pull`` or ``reference``.
        margin: ``smc``: from a curve's model fitted on the batch's neighbours;
            ``midpoint_random``: from the midpoint of the current and a random model,
            one per batch; ``fixed``.
        own_centroid: What ``pull`` moves away from: the row's own original
            representation (``sample``), or the mean over all rows that the original
            model gives the same class (``class``; no label is read).
        neighbours: k.
        positive: p_u of ``reference``: drawn anew from the neighbours in each pass
            (``random``), or the most similar one (``nearest``).
        normalize: Whether representations are divided by their norm.
        preservation: Weight >= 0 of the neighbours' own representations, ``pull`` only.
        margin_scale: Factor > 0 on the whole loss, per dimension as in the code; only
            an optimizer that feels the size of a gradient feels it, which Adam is not.
        fixed_margin: The margin ``fixed``, a squared distance >= 0.
        margin_max: Upper limit of a margin, or None.
        t: Place on the curve, in (0, 1); 0 is the current and 1 the original model.
        w_loss: What the control point is fitted on: the retained labels (``labels``) or
            the original representations (``representation``), which needs no label.
        w_steps: Steps of that fit, per batch. They count as sample gradients, but not
            as steps, since they do not move the model.
        w_learning_rate: Of its Adam.
        optimizer: What takes the steps.
        batch_size: Forgotten rows per step; None is all of them.
        epochs: Passes over the forgotten rows.
    """

    variant: Literal["pull", "reference"] = "pull"
    margin: Literal["smc", "fixed", "midpoint_random"] = "smc"
    own_centroid: Literal["sample", "class"] = "sample"
    neighbours: int = 5
    positive: Literal["random", "nearest"] = "random"
    normalize: bool = True
    preservation: float = 1.0
    margin_scale: float = 0.1
    fixed_margin: float = 0.001
    margin_max: float | None = None
    t: float = 0.5
    w_loss: Literal["labels", "representation"] = "labels"
    w_steps: int = 20
    w_learning_rate: float = 5e-3
    optimizer: LocalOptimizer = field(
        default_factory=lambda: LocalOptimizer(kind="adam", learning_rate=5e-4)
    )
    batch_size: int | None = 16
    epochs: int = 1

    def __post_init__(self) -> None:
        """Check the fields."""
        wrong = InvalidHyperparameterError
        _validate.one_of(("pull", "reference"), variant=self.variant)
        _validate.one_of(("smc", "fixed", "midpoint_random"), margin=self.margin)
        _validate.one_of(("sample", "class"), own_centroid=self.own_centroid)
        _validate.one_of(("random", "nearest"), positive=self.positive)
        _validate.one_of(("labels", "representation"), w_loss=self.w_loss)
        _validate.of_type(bool, normalize=self.normalize)
        _validate.of_type(LocalOptimizer, optimizer=self.optimizer)
        for name in ("neighbours", "w_steps", "epochs"):
            _validate.integer(at_least=1, error=wrong, **{name: getattr(self, name)})
        for name in ("preservation", "fixed_margin"):
            _validate.number(at_least=0, error=wrong, **{name: getattr(self, name)})
        _validate.number(
            margin_scale=self.margin_scale,
            w_learning_rate=self.w_learning_rate,
            above=0,
            error=wrong,
        )
        _validate.number(t=self.t, above=0, below=1, error=wrong)
        if self.margin_max is not None:
            _validate.number(margin_max=self.margin_max, at_least=0, error=wrong)
        if self.batch_size is not None:
            _validate.integer(batch_size=self.batch_size, at_least=1, error=wrong)

    @property
    def uses(self) -> frozenset[TaskPart]:
        """Inputs and features; labels, classes and fresh parameters as fields say."""
        parts: set[TaskPart] = {"forget_inputs", "retain_inputs", "features"}
        if self.margin == "smc" and self.w_loss == "labels":
            parts.add("retain_labels")
        if self.margin != "fixed":
            parts.add("fresh_start")
        if self.variant == "pull" and self.own_centroid == "class":
            parts.add("class_count")
        return frozenset(parts)

    def unlearn(self, task: LocalTask[TensorBatch], rng: RngTree) -> LocalOutcome:
        """Return the parameters after the passes over the forgotten rows."""
        same = unchanged(self, task)
        if same is not None:
            return same
        work = LocalWork(task, rng)
        if work.spent():
            return work.outcome()
        return _Run(self, task, rng, work).outcome()


class _Run:
    """One call of the method: what is indexed once, and the steps."""

    def __init__(
        self,
        method: ManifSmc,
        task: LocalTask[TensorBatch],
        rng: RngTree,
        work: LocalWork,
    ) -> None:
        """Find neighbours and centroids under the original parameters."""
        assert task.forget is not None
        assert task.retain is not None
        self.method = method
        self.task = task
        self.rng = rng
        self.work = work
        self.fitting = LocalOptimizer(kind="adam", learning_rate=method.w_learning_rate)
        self.gone = task.forget.inputs
        self.kept = task.retain
        before = self.embed(task.params)
        gone = _all_rows(before, self.gone)
        self.kept_before = _all_rows(before, self.kept.inputs)
        self.near = nearest(gone, self.kept_before, method.neighbours)
        self.centre = self.kept_before[self.near].mean(1)
        self.own = gone if method.own_centroid == "sample" else self.class_means(gone)
        self.chosen = self.near[:, 0]
        self.losses: list[float] = []
        self.margins: list[float] = []
        self.active: list[float] = []
        self.margin_gradients = 0

    def embed(self, params: Tensor | None = None) -> Embed:
        """Return the representation, of the current parameters if none are given."""
        model, work = self.task.model, self.work

        def embed(inputs: Tensor) -> Tensor:
            z = (
                work.features(inputs)
                if params is None
                else model.features(params, inputs)
            )
            return unit(z) if self.method.normalize else z

        return embed

    def class_means(self, gone: Tensor) -> Tensor:
        """Return the mean over what the model gives a forgotten row's class: (m, d)."""
        # A class that is forgotten has no retained rows, so forgotten ones count, too.

        def classes(inputs: Tensor) -> Tensor:
            logits = self.task.model.predict(self.task.params, inputs)
            return F.one_hot(logits.argmax(-1), self.task.num_classes).to(gone)

        mine = _all_rows(classes, self.gone)
        others = _all_rows(classes, self.kept.inputs)
        sums = mine.T @ gone + others.T @ self.kept_before
        counts = mine.sum(0) + others.sum(0)
        return mine @ (sums / counts.clamp(min=1)[:, None])

    def outcome(self) -> LocalOutcome:
        """Take the steps."""
        method, work = self.method, self.work
        optimizer = work.optimizer(method.optimizer)
        if method.margin == "smc":
            work.holds(self.fitting.state_floats(work.model.size))
        # As "labels" of a batch, the places of its rows; nobody's labels are read.
        places = TensorBatch(self.gone, torch.arange(len(self.gone)))
        for epoch in work.epochs(method.epochs):
            if method.positive == "random":
                self.chosen = self.drawn(epoch)
            batches = work.batches(places, method.batch_size, epoch=epoch)
            for number, batch in enumerate(batches):
                margin = self.margin(batch.labels, f"{epoch}/{number}")
                if work.spent():
                    break
                loss, count = self.loss(batch.labels, margin)
                work.step(optimizer, work.gradient(loss, count), "forget")
                self.losses.append(float(loss.detach()))
                self.margins.append(float(margin.mean()))
        found = self.near.shape[1]
        notes = []
        if method.variant == "pull":
            notes.append(
                "variant pull is a reconstruction of the paper's abstract; what its "
                "authors' code minimizes is variant reference"
            )
        if found < method.neighbours:
            notes.append(f"only {found} rows are retained, fewer than neighbours")
        return work.outcome(
            trace={"loss": self.losses, "margin": self.margins, "active": self.active},
            info={
                "neighbours": float(found),
                "margin_sample_gradients": float(self.margin_gradients),
            },
            notes=notes,
        )

    def drawn(self, epoch: int) -> Tensor:
        """Return one neighbour per forgotten row, drawn with replacement: ``(m,)``."""
        count, k = self.near.shape
        generator = self.work.generator(round=epoch, draw=_POSITIVES)
        which = torch.randint(k, (count, 1), generator=generator)
        return self.near.gather(1, which)[:, 0]

    def triplet(self, embed: Embed, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return anchor, positive and negative of some forgotten rows: ``(B, d)``."""
        z = embed(self.gone[rows])
        if self.method.variant == "pull":
            return z, self.centre[rows], self.own[rows]
        return self.centre[rows], embed(self.kept.inputs[self.chosen[rows]]), z

    def loss(self, rows: Tensor, margin: Tensor) -> tuple[Tensor, int]:
        """Return what a step makes smaller, and the samples that it goes through."""
        method, embed = self.method, self.embed()
        misses = triplet_loss(*self.triplet(embed, rows), margin)
        self.active.append(float((misses > 0).double().mean()))
        scale = method.margin_scale / self.centre.shape[1]
        if method.variant == "reference":
            return scale * misses.mean(), 2 * len(rows)
        if not method.preservation:
            return scale * misses.mean(), len(rows)
        near, places = self.near[rows].unique(return_inverse=True)
        moved = distance(embed(self.kept.inputs[near]), self.kept_before[near])
        loss = misses.mean() + method.preservation * moved[places].mean()
        return scale * loss, len(rows) + len(near)

    def margin(self, rows: Tensor, label: str) -> Tensor:
        """Return the gap that is asked for: per row ``(B,)``, or one for all."""
        method = self.method
        if method.margin == "fixed":
            found = self.centre.new_tensor(method.fixed_margin)
        else:
            params = self.connected(rows, self.fresh(label))
            with torch.no_grad():
                found = triplet_gap(*self.triplet(self.embed(params), rows))
            if method.margin == "midpoint_random":
                found = found.mean()
        return found.clamp(min=0, max=method.margin_max)

    def fresh(self, label: str) -> Tensor:
        """Return new random parameters, others than any peer ever started from."""
        assert self.task.fresh is not None
        request = self.task.request.request_id
        where = f"manif-smc/{request}/{self.task.peer}/{label}"
        return self.task.fresh(self.rng.child(where)).to(self.task.params)

    def connected(self, rows: Tensor, fresh: Tensor) -> Tensor:
        """Return the parameters of the model that sets the margin, shape ``(P,)``."""
        method, current = self.method, self.work.params
        if method.margin == "midpoint_random":
            return (current + fresh) / 2
        near = self.near[rows].unique()
        batch = TensorBatch(self.kept.inputs[near], self.kept.labels[near])

        def loss(params: Tensor) -> Tensor:
            if method.w_loss == "labels":
                return self.task.model.sample_losses(params, batch).mean()
            z = self.embed(params)(batch.inputs)
            return distance(z, self.kept_before[near]).mean()

        before = self.work.sample_gradients
        control = fit_control(
            self.work,
            loss,
            len(near),
            start=current,
            control=fresh,
            end=self.task.params,
            t=method.t,
            optimizer=self.fitting,
            steps=method.w_steps,
        )
        self.margin_gradients += self.work.sample_gradients - before
        return bezier(current, control, self.task.params, method.t)


@torch.no_grad()
def _all_rows(function: Embed, inputs: Tensor) -> Tensor:
    """Return a function of rows, some rows at a time, without gradients."""
    return torch.cat([function(rows) for rows in inputs.split(_CHUNK_ROWS)])
