r"""How many deletions a privacy budget carries, and what they leave of the accuracy.

    python experiments/deletion_capacity.py                   # digits
    python experiments/deletion_capacity.py --preset quick    # seconds

The peer with the most rows asks for one row after the other. Every certified protocol
goes on from its own last release until the ledger of the run, or the protocol, refuses:

- ``newton-fisher``: Newton's correction of the network's model;
- ``fine-tune``: descent to delete (full batches, a constant rate, form cta). It starts
  each time from its own last noise, so that with too few ``descent_rounds`` for that
  noise the second deletion is refused (``ResidualExceedsCapError``);
- ``rr-du``: a token's walk from a noised start (``certify="retrain"``). It rests on the
  record of training, which stays behind with the first deletion: it carries one.

All are calibrated to a fixed epsilon per release. Releases about one owner to one
observer are Gaussians of equal scale, so K of them have the privacy of one with
:math:`\sqrt K` times the shift, and a budget carries

.. math:: K = \lfloor (s(\varepsilon_{release}, \delta) / s(\varepsilon_{budget},
    \delta))^2 \rfloor

with s the least noise for a shift of 1 [derived: exact composition of Gaussians]. It is
printed beside what was measured. ``dp-gossip`` hides rows in advance; there the number
is that of rows whose group epsilon is within the budget. ``retrain`` needs no budget.

``accounting.deletion_capacity`` [derived] answers another question: how many rows ONE
Newton step, with noise for its worst case, forgets at once before the loss rises by
``tolerance``. With the worst-case constants of digits that is below one row even at the
l2 of 0.3 here; the script prints it, and the l2 at which it reaches one. The measured
releases are calibrated to a public cap that is checked each time, not to that bound.

An l2 of 0.3 costs accuracy before anything is forgotten. It is that large because every
claim divides by it: at the usual 0.01 a proven round of descent to delete shrinks the
distance by ``rate * l2`` only, and the cap is out of reach in hundreds of rounds.

Writes ``steps.csv`` (a row per deletion), ``table.csv`` and ``deletion_capacity.png``
to ``runs/deletion_capacity``.
"""

import math
from pathlib import Path

import pandas as pd
from deletion_sequences import DP, Settings, data_of, model_of, of_seed
from settings import choose, folder_of

from dfl_unlearn.accounting.capacity import deletion_capacity
from dfl_unlearn.accounting.gaussian import gaussian_noise_std

SIZES = (5, 3.5, 3, 2)  # of the figure's marks, in points
USUAL_L2 = 0.01  # of the other scripts; the capacity is printed there, too

FULL = Settings()
QUICK = Settings(
    peers=8,
    rounds=60,
    releases=(0.5,),
    budgets=(1.0,),
    descent_rounds=400,
    dp_rounds=30,
    most=5,
    seeds=(0,),
)


def main(arguments: list[str] | None = None) -> None:
    """Run the script."""
    settings = choose(QUICK, FULL, __doc__, arguments)
    folder = folder_of(__file__)
    rows: list[dict[str, object]] = []
    for seed in settings.seeds:
        rows += of_seed(settings, seed)
        print(f"seed {seed} of {len(settings.seeds)} seeds done", flush=True)
    steps = pd.DataFrame(rows)
    table = summary(steps, settings.delta)
    for name, frame in (("steps", steps), ("table", table)):
        path = folder / f"{name}.csv"
        frame.to_csv(path, index=False, float_format="%.6g", lineterminator="\n")
    draw(steps, folder / "deletion_capacity.png")
    print(table.to_string(index=False, float_format=lambda x: f"{x:.4g}"))
    for l2 in dict.fromkeys((settings.l2, USUAL_L2)):
        at_once = one_step_capacity(settings, l2)
        print(f"deletion_capacity of one Newton step at l2 {l2:g}: {at_once:.3g} rows")
    enough = l2 / at_once ** (2 / 3)  # it grows as l2 to the 3/2
    print(f"it reaches one row at l2 {enough:.3g}")
    print(f"tables and figure: {folder}")


def predicted(release: float, budget: float, delta: float) -> int:
    """Return how many equal Gaussian releases a budget carries.

    Args:
        release: Epsilon of one of them.
        budget: Cap on the epsilon of all.
        delta: Of both.

    Returns:
        K of the module's formula.
    """
    one, all_of_them = (gaussian_noise_std(e, delta, 1.0) for e in (release, budget))
    return math.floor((one / all_of_them) ** 2 * (1 + 1e-9))


def one_step_capacity(settings: Settings, l2: float) -> float:
    """Return ``deletion_capacity`` for the peer with the most rows.

    Args:
        settings: The data, and what is claimed.
        l2: Strong convexity.

    Returns:
        Rows that one a-priori calibrated Newton step forgets within the tolerance, the
        least over releases and the first seed's partition.
    """
    data = data_of(settings, settings.seeds[0])
    model = model_of(settings, data, l2)
    found = model.constants(data.input_radius(bias=True)[0])
    return deletion_capacity(
        peers=settings.peers,
        samples=int(data.sizes.max()),
        gradient_bound=float(found["gradient_bound"].value),
        strong_convexity=l2,
        hessian_lipschitz=float(found["hessian_lipschitz"].value),
        parameters=model.size,
        tolerance=settings.tolerance,
        epsilon=min(settings.releases),
        delta=settings.delta,
    )


def summary(steps: pd.DataFrame, delta: float) -> pd.DataFrame:
    """Return a row per protocol, release and budget, over all seeds.

    Args:
        steps: Rows of ``of_seed``.
        delta: At which epsilon is spent.

    Returns:
        Deletions (least and most over seeds) beside the predicted number, epsilon
        spent, accuracy before the first and after the last deletion, what one deletion
        costs, also as a share of one retraining, and what ended the sequence.
    """
    keys = ["protocol", "release", "budget"]
    yard = steps.loc[steps.protocol == "retrain", "gradients"].mean()
    found = []
    for key, part in steps.groupby(keys, sort=False, dropna=False):
        last = part[part.stopped != ""]
        first = part[part.deletions == 0]
        found.append(
            {
                **dict(zip(keys, key, strict=True)),
                "predicted": (
                    predicted(key[1], key[2], delta)
                    if key[0] not in (DP, "retrain")
                    else math.nan
                ),
                "least": last.deletions.min(),
                "most": last.deletions.max(),
                "epsilon": last.epsilon.max(),
                "accuracy before": first["mean"].mean(),
                "accuracy after": last["mean"].mean(),
                "std after": last["mean"].std(ddof=0),
                "worst peer after": last["worst"].mean(),
                "gradients each": part.gradients.mean(),
                "of a retraining": part.gradients.mean() / yard,
                "seconds each": part.seconds.mean(),
                "stopped by": "; ".join(dict.fromkeys(last.stopped)),
            }
        )
    return pd.DataFrame(found)


def draw(steps: pd.DataFrame, path: Path) -> None:
    """Draw accuracy and epsilon by deletions, a column per epsilon of a release."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    from dfl_unlearn.plots._style import CURVES, GREY, STYLE, WIDTH, percent_axis

    budget = steps.budget.max()
    longest = steps[(steps.budget == budget) & (steps.protocol != "retrain")]
    yard = steps.loc[steps.protocol == "retrain", "mean"].mean()
    releases = list(dict.fromkeys(longest.release))
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 5.2), layout="constrained", dpi=150)
        panels = figure.subplots(2, len(releases), squeeze=False, sharey="row")
        for (above, below), release in zip(panels.T, releases, strict=True):
            above.axhline(yard, color=GREY, lw=1, ls="--", label="retrain")
            part = longest[longest.release == release]
            groups = part.groupby("protocol", sort=False)
            # Later curves are thinner: equal epsilons lie on each other.
            for colour, size, (name, rows) in zip(CURVES, SIZES, groups, strict=False):
                mean = rows.groupby("deletions")[["mean", "epsilon"]].mean()
                for axes, column in ((above, "mean"), (below, "epsilon")):
                    axes.plot(
                        mean.index,
                        mean[column],
                        color=colour,
                        marker="o",
                        ms=size,
                        lw=size / 2.5,
                        label=name,
                    )
            for cap in dict.fromkeys(steps.budget.dropna()):
                below.axhline(cap, color=GREY, lw=0.8, ls=":")
            above.set_title(f"each release at ε = {release:g}")
            for axes in (above, below):
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            below.set_xlabel("rows deleted, one at a time")
            percent_axis(above)
        panels[0][0].set_ylabel("test accuracy, mean of peers")
        panels[1][0].set_ylabel("ε spent; dotted: budgets")
        handles, labels = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        figure.savefig(path)


if __name__ == "__main__":
    main()
