"""Who holds the model from before a deletion and the one after it reads the record.

    python experiments/reconstruction.py                   # 200 deletions, seconds
    python experiments/reconstruction.py --preset quick    # 20
    python experiments/reconstruction.py public=3000

Ridge regression; one record is deleted exactly (a Newton step, the same as retraining).
The curvature times the change of the model points along the deleted record. The table
gives the cosine between the two for an attacker

* ``retained``: who knows all other records, hence the curvature;
* ``public``: who has other people's records from the same source instead;
* ``certified``: the same, after a certified release of ``newton-fisher`` in a network
  of four peers, noised for its residual (epsilon 1);
* ``noised``: who knows all others, but sees the later model with noise for its whole
  shift, 7.03 of its length (epsilon 0.5, delta 1e-5).

Writes ``table.csv``, ``summary.csv`` (medians, tenth percentiles, means) and
``reconstruction.png`` into ``runs/reconstruction/``. After Bertran et al. (2024),
Reconstruction attacks on machine unlearning: simple models are vulnerable.
"""

from dataclasses import dataclass
from pathlib import Path

import networkx as nx
import numpy as np
import pandas as pd
import torch
from settings import choose, folder_of
from torch import Tensor

from dfl_unlearn import ForgetRequest, NewtonFisher, PeerData, unlearn
from dfl_unlearn.accounting.gaussian import gaussian_noise_std
from dfl_unlearn.curvature.newton import newton_step
from dfl_unlearn.engine.config import SimulationConfig
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.models.zoo import models
from dfl_unlearn.rng import RngTree
from dfl_unlearn.topology.graph import Topology
from dfl_unlearn.unlearning.retained import exact_minimizer, network_objective

WARNING = (
    "WARNING: before/after comparison: who holds a model from before the request and "
    "one from after it can reconstruct the deleted record; a certificate compares "
    "after-worlds only."
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How large the problem is, and how often it is tried."""

    trials: int = 200
    features: int = 12
    records: int = 300
    public: int = 300
    l2: float = 0.01
    label_noise: float = 0.5
    residual_cap: float = 1e-6
    seed: int = 0


FULL = Settings()
QUICK = Settings(trials=20)


def main(arguments: list[str] | None = None) -> None:
    """Run the script."""
    settings = choose(QUICK, FULL, __doc__, arguments)
    rows, status = [], set()
    for trial in range(settings.trials):
        cosines, claim = one(settings, RngTree(settings.seed).child(f"trial:{trial}"))
        rows.append({"trial": trial, **cosines})
        status.add(claim)
    table = pd.DataFrame(rows).set_index("trial")
    folder = folder_of(__file__)
    table.to_csv(folder / "table.csv")
    draw(table, folder / "reconstruction.png")
    summary = pd.DataFrame(
        {"median": table.median(), "tenth": table.quantile(0.1), "mean": table.mean()}
    ).rename_axis("attacker")
    summary.round(4).to_csv(folder / "summary.csv")
    print(summary.to_string(float_format="%.4f"))
    print(
        f"status of the certified releases: {', '.join(sorted(status))} at epsilon 1; "
        "noise for the residual does not hide the change of the model"
    )
    print(WARNING)
    print(f"table and figure: {folder}")


def one(settings: Settings, rng: RngTree) -> tuple[dict[str, float], str]:
    """Delete one record; return the cosines, and what the certificate says."""
    generator = rng.numpy("attack")
    size = settings.features
    truth = torch.from_numpy(generator.standard_normal(size))
    inputs, public = (
        torch.from_numpy(generator.standard_normal((count, size)))
        for count in (settings.records, settings.public)
    )
    errors = torch.from_numpy(generator.standard_normal(settings.records))
    labels = inputs @ truth + settings.label_noise * errors
    record = inputs[0]

    run = converged(settings, Topology.single(), inputs, labels)
    request = ForgetRequest.samples(peer=0, indices=[0], normalization="fixed")
    before = run.state.mean()
    kept = network_objective(run, run.data.without(request))
    shift, _ = newton_step(
        kept,
        before,
        kept.gradient(before),
        damping=0.0,
        tolerance=1e-12,
        max_iterations=100,
    )
    exact = kept.hessian(before)
    estimated = network_objective(
        converged(settings, Topology.single(), public, public @ truth)
    ).hessian(before)
    noise_std = gaussian_noise_std(0.5, 1e-5, float(shift.norm()))
    noised = shift + noise_std * rng.normal((size,), "attack", draw=1)

    path = Topology.from_graph(nx.path_graph(4), name="path4")
    network = converged(settings, path, inputs, labels).replaced(rng=rng)
    protocol = NewtonFisher(residual_cap=settings.residual_cap, recovery_rounds=0)
    outcome = unlearn(network, request, protocol)
    assert outcome.certificate is not None
    released = outcome.state.params[0] - network.state.params[0]
    return {
        "retained": cosine(exact @ shift, record),
        "public": cosine(estimated @ shift, record),
        "certified": cosine(estimated @ released, record),
        "noised": cosine(exact @ noised, record),
    }, outcome.certificate.status


def converged(
    settings: Settings, topology: Topology, inputs: Tensor, labels: Tensor
) -> TrainedRun:
    """Return a network whose peers share the records and rest at the minimizer."""
    parts = zip(inputs.chunk(topology.n), labels.chunk(topology.n), strict=True)
    data = PeerData.from_tensors(list(parts), test=(inputs[:1], labels[:1]))
    model = models.build(
        "linear",
        input_shape=(settings.features,),
        num_classes=0,
        l2=settings.l2,
        bias=False,
    )
    start = torch.zeros(topology.n, settings.features, dtype=torch.float64)
    config = SimulationConfig(rounds=1, dtype="float64")
    run = TrainedRun.from_states(topology, data, model, start, config)
    minimizer = exact_minimizer(run, gradient_norm=1e-13).theta
    return TrainedRun.from_states(
        topology, data, model, minimizer.expand(topology.n, -1), config
    )


def cosine(one: Tensor, other: Tensor) -> float:
    """Return the size of the cosine of two vectors: the sign is easily guessed."""
    return abs(float(one @ other / (one.norm() * other.norm())))


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw every deletion as a dot, one row per attacker, with the medians."""
    import matplotlib
    from matplotlib.figure import Figure

    from dfl_unlearn.plots._style import CURVES, INK, STYLE, WIDTH

    labels = {
        "retained": "knows all other records",
        "public": "knows others' records",
        "certified": "the same, certified\nrelease (ε = 1)",
        "noised": "knows all others, noise for\nthe whole shift (ε = 0.5)",
    }
    heights = 0.5 * (np.arange(len(table)) * 0.618 % 1 - 0.5)  # spread evenly
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.3), layout="constrained", dpi=150)
        axes = figure.subplots()
        columns = [table[name] for name in labels]
        for row, (cosines, colour) in enumerate(zip(columns, CURVES, strict=False)):
            axes.plot(
                cosines, row + heights, "o", ms=3, mew=0, alpha=0.35, color=colour
            )
            middle = cosines.median()
            axes.plot([middle] * 2, [row - 0.38, row + 0.38], color=INK, lw=1.6)
            axes.annotate(
                f"{middle:.3f}",
                (middle, row - 0.38),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                color=INK,
            )
        axes.set_yticks(range(len(labels)), list(labels.values()))
        axes.set(
            xlabel="cosine between what the attacker reads and the deleted record",
            title="The model before and the model after give the record away",
            xlim=(0, 1.01),
            ylim=(len(labels) - 0.45, -0.8),
        )
        figure.savefig(path)


if __name__ == "__main__":
    main()
