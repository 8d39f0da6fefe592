"""What does gossip leave of a correct local unlearning?

    python experiments/dilution.py                     # about 5 minutes
    python experiments/dilution.py --preset quick      # seconds

A perceptron on digits is trained by D-SGD on five networks. At one peer every
registered method for one model forgets some of its rows (a class of it, for methods
that forget classes only), and the network goes on:

1. with mixing only, the method's change delta must be ``[W^r]_ju delta`` at peer j
   after r rounds, whatever the method: the largest distance to that, over rounds and
   peers, is printed as a share of delta (float64; above 1e-6 the script fails);
2. with training on what is kept, the same correction is compared with the same rounds
   without it: what is left of it at the requester, and far away;
3. the loss on the forgotten rows is followed at every distance.

Methods run with their default settings, which were made for other data: this is about
what gossip does to a change, not about which method is best. Methods that a peer of
this network cannot run are listed with the reason.

Prints one line per network and method and writes ``runs/dilution/``: ``table.csv``,
``curves.csv`` (share left by hop and round) and ``dilution.png``, which names the
methods that changed nothing and cannot be drawn.
"""

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from settings import choose, folder_of

from dfl_unlearn import (
    ForgetRequest,
    PeerData,
    SimulationConfig,
    load_topology,
    simulate,
)
from dfl_unlearn.engine.config import LocalSteps
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.errors import DflUnlearnError
from dfl_unlearn.models.zoo import models
from dfl_unlearn.plots import render
from dfl_unlearn.plots._style import (
    CURVES,
    GREY,
    INFLUENCE,
    STYLE,
    WIDTH,
    log_axis,
    percent,
)
from dfl_unlearn.unlearning.apply import unlearn
from dfl_unlearn.unlearning.contracts import methods
from dfl_unlearn.unlearning.dilution import (
    Dilution,
    dilution_weights,
    follow_correction,
)
from dfl_unlearn.unlearning.protocols.at_peer import AtPeer

NETWORKS = {
    "ring": {},
    "torus": {},
    "star": {},
    "erdos-renyi": {"seed": 0},
    "complete": {},
}
LIMIT = 1e-6
DASHES = ("-", "--", ":", "-.")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is trained, and how long a correction is followed."""

    dataset: str = "digits"
    peers: int = 16
    alpha: float = 0.5
    rounds: int = 200
    rate: float = 0.2
    hidden: int = 24
    fraction: float = 0.25
    followed: int = 40
    seed: int = 0


FULL = Settings()
QUICK = Settings(peers=9, rounds=10, hidden=6, followed=6)


def main(arguments: list[str] | None = None) -> None:
    """Run the script."""
    settings = choose(QUICK, FULL, __doc__, arguments)
    folder = folder_of(__file__)
    rows, curves, shown = [], [], {}
    for network, fields in NETWORKS.items():
        run = trained(settings, network, fields)
        owner = settings.peers // 2
        shown[network] = {}
        for name in methods.names():
            began = time.perf_counter()
            try:
                found = followed(settings, run, owner, name)
            except DflUnlearnError as reason:
                print(f"{network:12} {name:22} not run: {reason}", flush=True)
                continue
            mixed, further = found
            row = {"network": network, "method": name, **figures(mixed, further)}
            row["seconds"] = time.perf_counter() - began
            rows.append(row)
            curves += by_hop(network, name, "mix", mixed)
            curves += by_hop(network, name, "train", further)
            if mixed.change:
                shown[network][name] = found
            print(line(row), flush=True)
    pd.DataFrame(rows).to_csv(folder / "table.csv", index=False, float_format="%.6g")
    pd.DataFrame(curves).to_csv(folder / "curves.csv", index=False, float_format="%.5g")
    unmoved = without_change(rows)
    if unmoved:
        print(unmoved)
    save(pictures(settings, shown, unmoved), folder / "dilution.png")
    worst = max(row["mix_error"] for row in rows)
    print(f"largest distance to [W^r]_ju delta: {worst:.2e} of delta")
    if not worst <= LIMIT:
        raise SystemExit(f"above {LIMIT:g}: mixing is not what W says")
    print(f"tables and figure: {folder}")


def trained(settings: Settings, network: str, fields: dict[str, int]) -> TrainedRun:
    """Return a network that was trained on digits, split unevenly."""
    data = PeerData.load(
        settings.dataset,
        peers=settings.peers,
        partition="dirichlet",
        alpha=settings.alpha,
        seed=settings.seed,
    )
    model = models.build(
        "mlp",
        input_shape=tuple(data.store.inputs.shape[1:]),
        num_classes=data.num_classes,
        hidden=(settings.hidden,),
    )
    config = SimulationConfig(
        rounds=settings.rounds,
        seed=settings.seed,
        local=LocalSteps(learning_rate=settings.rate),
        dtype="float64",
        evaluate_every=0,
    )
    topology = load_topology(network, n=settings.peers, **fields)
    return simulate(topology, data, model, config)


def followed(
    settings: Settings, run: TrainedRun, owner: int, name: str
) -> tuple[Dilution, Dilution]:
    """Return a method's correction followed by mixing, and by training."""
    method = methods.build(name)
    kinds = getattr(method, "kinds", None)
    request = ForgetRequest.samples(owner, fraction=settings.fraction)
    if kinds is not None and "samples" not in kinds:
        labels = run.data.local(owner).labels
        request = ForgetRequest.class_(int(labels.mode().values), peers=[owner])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # weak claims; none is shown here
        outcome = unlearn(run, request, AtPeer(method=method))
    mixed, further = (
        follow_correction(
            run, outcome.request, outcome.state.params, settings.followed, after
        )
        for after in ("mix", "train")
    )
    return mixed, further


def figures(mixed: Dilution, further: Dilution) -> dict[str, float]:
    """Return one row of the table; losses are the requester's."""
    own, far = int(mixed.hops.argmin()), int(mixed.hops.argmax())
    return {
        "change": mixed.change,
        "mix_error": mixed.error,
        "mix_left": mixed.left[-1, own],
        "mix_left_far": mixed.left[-1, far],
        "train_left": further.left[-1, own],
        "train_left_far": further.left[-1, far],
        "train_error": further.error,
        "forget_loss_before": mixed.forget_loss_before[own],
        "forget_loss_corrected": mixed.forget_loss[0, own],
        "forget_loss_mixed": mixed.forget_loss[-1, own],
        "forget_loss_trained": further.forget_loss[-1, own],
    }


def by_hop(
    network: str, name: str, after: str, found: Dilution
) -> list[dict[str, object]]:
    """Return what is left of a change, and the loss, by hop and round."""
    return [
        {
            "network": network,
            "method": name,
            "after": after,
            "hop": hop,
            "round": r,
            "left": found.left[r, found.hops == hop].mean(),
            "predicted": found.predicted[r, found.hops == hop].mean(),
            "forget_loss": found.forget_loss[r, found.hops == hop].mean(),
        }
        for hop in range(int(found.hops.max()) + 1)
        for r in range(len(found.left))
    ]


def without_change(rows: Sequence[Mapping[str, object]]) -> str:
    """Return a sentence about what is not drawn, or nothing.

    Args:
        rows: Of the table; of a change of 0 no share can be left.

    Returns:
        The methods, with their networks where they do change other ones.
    """
    networks = {row["network"] for row in rows}
    where: dict[object, list[str]] = {}
    for row in rows:
        if not row["change"]:
            where.setdefault(row["method"], []).append(str(row["network"]))
    names = [
        f"{name}" if len(found) == len(networks) else f"{name} ({', '.join(found)})"
        for name, found in where.items()
    ]
    return f"not drawn, since nothing changed: {', '.join(names)}" if names else ""


def line(row: dict[str, object]) -> str:
    """Return a row as a line."""
    return (
        f"{row['network']:12} {row['method']:22} |delta| {row['change']:8.3g}  "
        f"mix: error {row['mix_error']:.1e}, left {row['mix_left']:.4f}  "
        f"train: left {row['train_left']:.4f}  forget loss "
        f"{row['forget_loss_before']:.3f} -> {row['forget_loss_corrected']:.3g} -> "
        f"mix {row['forget_loss_mixed']:.3f}, train {row['forget_loss_trained']:.3f}"
    )


def pictures(
    settings: Settings,
    shown: dict[str, dict[str, tuple[Dilution, Dilution]]],
    unmoved: str,
) -> Figure:
    """Draw one column per network: mixing, training on, and what is remembered."""
    every = list(dict.fromkeys(name for found in shown.values() for name in found))
    figure = Figure(figsize=(2.0 * WIDTH, 8.4), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(3, len(shown), sharex=True, sharey="row")
    for column, (network, found) in zip(grid.T, shown.items(), strict=True):
        topology = load_topology(network, n=settings.peers, **NETWORKS[network])
        owner = settings.peers // 2
        power = dilution_weights(topology, owner, settings.followed)
        hops = topology.hops(owner)
        top, middle, low = column
        top.set_title(f"{network}, {int(hops.max())} hops")
        colours = INFLUENCE(np.linspace(0.98, 0.38, int(hops.max()) + 1))
        for hop, colour in enumerate(colours):
            near = hops == hop
            expected = power[:, near].mean(axis=1)
            far = {0: "requester", len(colours) - 1: _away(hop)}
            top.plot(
                np.where(expected > 0, expected, np.nan),
                color=colour,
                label=far.get(hop),
            )
            for mixed, _ in found.values():
                dots = mixed.left[::4, near].mean(axis=1)
                rounds = np.arange(0, len(mixed.left), 4)
                top.plot(
                    rounds[dots > 0],
                    dots[dots > 0],
                    "o",
                    color=colour,
                    markersize=3.5,
                    markeredgecolor="white",
                    markeredgewidth=0.4,
                )
        for name, (mixed, further) in found.items():
            k = every.index(name)
            ink, dash = CURVES[k % len(CURVES)], DASHES[k // len(CURVES) % len(DASHES)]
            own = int(further.hops.argmin())
            middle.plot(further.left[:, own], color=ink, linestyle=dash, label=name)
            start = mixed.forget_loss_before[own]
            low.plot(
                mixed.forget_loss[:, own] - start, color=ink, linestyle=dash, alpha=0.9
            )
        top.legend(fontsize=7, loc="upper right", handlelength=1.2)
        middle.plot(power[:, owner], color=GREY, linewidth=4, alpha=0.35, zorder=0)
        low.axhline(0, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
        low.set_yscale("symlog", linthresh=0.1)
        low.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        low.set_xlabel("round after the correction")
        for axes in (top, middle):
            axes.axhline(
                1 / settings.peers, color=GREY, linewidth=1, linestyle=(0, (4, 3))
            )
            axes.set_yscale("log")
            axes.set_ylim(1e-3, 2)
            log_axis(axes, "y", percent)
        for axes in column:
            axes.grid(axis="y")
            axes.set_xlim(0, settings.followed)
    grid[0, 0].set_ylabel("left with mixing\n(lines: powers of W; dots: all methods)")
    grid[1, 0].set_ylabel("left at the requester\nwhen training goes on (band: W)")
    grid[2, 0].set_ylabel("forget loss above before,\nrequester, mixing only")
    keys = {
        name: handle
        for axes in grid[1]
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        [keys[name] for name in every],
        every,
        loc="outside lower center",
        ncols=8,
        fontsize=8,
        title=unmoved or None,
        title_fontsize=8,
    )
    return figure


def _away(hop: int) -> str:
    return f"{hop} hop{'' if hop == 1 else 's'} away"


def save(figure: Figure, path: object) -> None:
    """Write a figure."""
    from pathlib import Path

    Path(str(path)).write_bytes(render(figure))


if __name__ == "__main__":
    with rc_context(STYLE):
        main()
