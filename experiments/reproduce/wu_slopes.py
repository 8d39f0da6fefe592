"""How the error of one correction grows with what is forgotten.

Everything starts at the exact minimizer of the full objective, so that nothing but the
correction is measured: one step with the Hessian of the retained objective, with that
of the full one (the classical influence function), and with the diagonal of the Fisher
information. The error is the distance to the exact minimizer of what is kept.

The theory has the error in the *shift*, the distance of the two minimizers: its square
for the exact Hessian, itself for a wrong one. How the shift grows with the number of
forgotten rows is another matter: in proportion where they pull the same way (``alike``:
sorted by label), like a square root where they are drawn at random, since their mean
gradient then nears that of the rows that stay.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from fewer_rows import fewer_rows

from dfl_unlearn import ForgetRequest, PeerData, SimulationConfig, simulate
from dfl_unlearn.curvature.newton import newton_step
from dfl_unlearn.curvature.operators import DiagonalFisher
from dfl_unlearn.data.sources import datasets
from dfl_unlearn.models.zoo import models
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.retained import exact_minimizer, network_objective

PEER = 1
CURVATURES = ("exact", "full Hessian", "diagonal")
ORDERS = ("random", "alike")
IN_SHARE = {"exact": (1.6, 2.2), "full Hessian": (1.6, 2.2), "diagonal": (0.7, 1.1)}
"""Log-log slopes of the error in the forgotten share that our design expected."""
IN_SHIFT = {"exact": (1.7, 2.3), "diagonal": (0.8, 1.3)}
"""In the distance of the two minimizers: 2 and 1 in theory."""


@dataclass(frozen=True, kw_only=True)
class SlopeCase:
    """One problem: logistic regression of some data at some peers.

    Attributes:
        name: Of the problem; ``gaussian`` is drawn, others are data sets.
        peers: N.
        rows: Training rows of all peers together.
        l2: lambda.
        shares: Of one peer's rows that go.
        seed: Of rows, split and forget sets.
    """

    name: str
    peers: int
    rows: int
    l2: float
    shares: tuple[float, ...] = (0.01, 0.05, 0.1, 0.25, 0.5)
    seed: int = 0


PROBLEMS = {
    case.name: case
    for case in (
        SlopeCase(name="gaussian", peers=6, rows=1200, l2=0.05),
        SlopeCase(name="digits", peers=6, rows=1400, l2=0.01),
        SlopeCase(name="mnist", peers=10, rows=3000, l2=0.01),
    )
}


def errors(case: SlopeCase) -> Iterator[dict[str, Any]]:
    """Yield the error of every curvature at every share."""
    if case.name == "gaussian":
        dataset = datasets.build(
            "gaussian-classes",
            classes=2,
            dim=4,
            per_class=case.rows // 2,
            seed=case.seed,
        )
    else:
        dataset = fewer_rows(case.name, case.rows, 100, case.seed)
    data = PeerData.load(dataset, peers=case.peers, seed=case.seed)
    model = models.build(
        "logistic",
        input_shape=tuple(data.store.inputs.shape[1:]),
        num_classes=data.num_classes,
        l2=case.l2,
    )
    # One round: the minimizer, not the training, is where the steps start.
    config = SimulationConfig(rounds=1, seed=case.seed, evaluate_every=0)
    run = simulate("ring", data, model, config)
    full = network_objective(run)
    theta = exact_minimizer(run).theta
    solver = {"damping": 0.0, "tolerance": 1e-10, "max_iterations": 2000}
    for order, share, request in requests(case, data):
        data_kept = data.without(request.resolve(data))
        kept = network_objective(run, data_kept)
        target = exact_minimizer(run, data_kept).theta
        gradient = kept.gradient(theta)
        diagonal = DiagonalFisher.at(
            kept, theta, damping=0.0, rng=run.rng, request="slope"
        )
        steps = {
            "exact": newton_step(kept, theta, gradient, **solver)[0],
            "full Hessian": newton_step(full, theta, gradient, **solver)[0],
            "diagonal": -diagonal.solve(gradient),
        }
        for curvature in CURVATURES:
            yield {
                "problem": case.name,
                "seed": case.seed,
                "order": order,
                "curvature": curvature,
                "share": share,
                "shift": float((theta - target).norm()),
                "error": float((theta + steps[curvature] - target).norm()),
            }


def requests(
    case: SlopeCase, data: PeerData
) -> Iterator[tuple[str, float, ForgetRequest]]:
    """Yield order, share and request; a larger share holds the rows of a smaller."""
    labels = data.local(PEER).labels.numpy()
    random = RngTree(case.seed).numpy("forget", who=PEER).permutation(len(labels))
    alike = random[np.argsort(labels[random], kind="stable")]
    for order, rows in zip(ORDERS, (random, alike), strict=True):
        for share in case.shares:
            first = rows[: max(1, round(share * len(rows)))]
            yield order, share, ForgetRequest.samples(peer=PEER, indices=first.tolist())


def slopes(table: pd.DataFrame) -> pd.DataFrame:
    """Return least-squares slopes of log error in log share and in log shift.

    Args:
        table: Rows of ``errors``.

    Returns:
        Per problem, order and curvature the mean, least and largest of each over seeds.
    """
    keys = ["problem", "order", "curvature"]
    found = []
    for key, part in table.groupby([*keys, "seed"], sort=False):
        error = np.log(part.error)
        named = dict(zip(keys, key[:3], strict=True))
        for what in ("share", "shift"):
            named[what] = np.polyfit(np.log(part[what]), error, 1)[0]
        found.append(named)
    groups = pd.DataFrame(found).groupby(keys, sort=False)
    shown = groups.agg(["mean", "min", "max"])
    shown.columns = [f"slope in {what}, {how}" for what, how in shown.columns]
    return shown.reset_index()


def slope_shape(table: pd.DataFrame) -> Iterator[str]:
    """Yield a line for each expected slope: whether its mean over seeds holds."""
    for row in slopes(table).to_dict("records"):
        for what, intervals in (("share", IN_SHARE), ("shift", IN_SHIFT)):
            if row["curvature"] not in intervals:
                continue
            low, high = intervals[row["curvature"]]
            mean = row[f"slope in {what}, mean"]
            said = "holds" if low <= mean <= high else "DOES NOT HOLD"
            yield (
                f"{said:13}  {row['problem']}, {row['order']} rows, "
                f"{row['curvature']}: slope in the {what} within {low} to {high} "
                f"({mean:.2f})"
            )
