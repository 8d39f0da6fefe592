"""Every protocol, baseline and local method on the same networks, in one table.

    python experiments/compare_protocols.py                   # digits, 2 cores
    python experiments/compare_protocols.py --preset quick    # seconds

Softmax regression at 16 unlike peers (Dirichlet 0.5). One peer forgets a random tenth
of its rows, or the rows of it that were labelled wrongly. Per seed (another partition,
training and forget set) the network is trained once and retrained twice, and on it run

- ``newton-fisher`` with a certificate, and with diagonal Fisher information as a
  heuristic; ``rr-du``; ``fine-tune``, and with an epsilon as descent to delete (full
  batches, a constant rate, form cta, as its proof asks);
- ``dp-gossip``, which has a private training of its own and then does nothing;
- ``at-peer ...``: every registered method for one model, at the owner of the rows, then
  three rounds in which all peers average. Their rates stand in ``recipes/digits.toml``
  for a peer of a network; those marked as tuned were tuned **on a perceptron, and by
  looking at a retrained model**, which nobody who has to unlearn can do. Methods that
  unlearn whole classes, or need a hidden layer, are listed as refused;
- the controls ``original`` (nothing is done) and ``retrain-2`` (retrained with other
  draws: what two retrainings differ by). ``retrain`` is what all gaps are to.

Figures are means over peers; ``test-accuracy-worst`` and ``retain-accuracy-worst`` are
of the worst peer, ``forget-accuracy-most`` is of the one that still knows most.

In ``runs/compare_protocols`` a case has a file ``cases/<hash of its settings>.csv``;
what stands there is not computed twice (delete it where code changed). ``table.csv``
has mean and standard deviation over seeds, ``refused.csv`` what refused and why, and
``compare_protocols.png`` shows gap against cost.
"""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
from forget_sets import SETTINGS, VERSION
from protocol_cases import METRICS, Case, lines, local_methods
from settings import check_names, choose, folder_of

from dfl_unlearn.errors import DflUnlearnError
from dfl_unlearn.evaluation.comparison import (
    CONTROLS,
    Comparison,
    Line,
    compare,
    read_lines,
    write_lines,
)
from dfl_unlearn.plots.comparison import gap_against_cost
from dfl_unlearn.store.files import write_file
from dfl_unlearn.unlearning.forms import form_of

FORMAT = 1
"""Of what a line is computed from; another one where code changes lines."""
NETWORKS = ("ring", "random-regular")
Done = tuple[list[Line], dict[str, str]]
"""Lines of a case, and why others are missing, by name."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is compared; what else a case has are the defaults of ``protocol_cases``.

    Attributes:
        forget: Forget sets, of ``forget_sets.SETTINGS``.
        topologies: Of ``NETWORKS``.
        seeds: Of partitions, trainings and forget sets.
        methods: Names of local methods; () is all.
        peers: How many.
        rounds: Rounds of training.
        descent_rounds: Rounds of descent to delete.
        dp_rounds: Rounds of private training.
        workers: Processes; 0 is one per core. They change no number but seconds.
    """

    forget: tuple[str, ...] = ("random-10", "mislabel")
    topologies: tuple[str, ...] = ("ring",)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    methods: tuple[str, ...] = ()
    peers: int = 16
    rounds: int = 300
    descent_rounds: int = 800
    dp_rounds: int = 150
    workers: int = 0

    def __post_init__(self) -> None:
        """Refuse names that nothing has.

        Raises:
            InvalidArgumentError: Naming the setting and the nearest known name.
        """
        check_names(SETTINGS, forget=self.forget)
        check_names(NETWORKS, topologies=self.topologies)
        if self.methods:
            every = local_methods(Case(forget="class", topology="ring", seed=0))[0]
            known = [name.removeprefix("at-peer ") for name in every]
            check_names(known, methods=self.methods)


FULL = Settings()
QUICK = Settings(
    forget=("mislabel",),
    seeds=(0,),
    methods=("gradient-ascent",),
    peers=6,
    rounds=60,
    descent_rounds=800,
    dp_rounds=30,
    workers=1,
)


def main(arguments: list[str] | None = None) -> None:
    """Run the script."""
    settings = choose(QUICK, FULL, __doc__, arguments)
    folder = folder_of(__file__)
    found: list[Line] = []
    refused: list[dict[str, object]] = []
    for case, (some, why) in results(settings, folder / "cases"):
        found += some
        refused += [
            {"setting": case.setting, "seed": case.seed, "method": name, "why": text}
            for name, text in why.items()
        ]
        print(
            f"{case.setting}, seed {case.seed}: {len(some)} lines, {len(why)} refused",
            flush=True,
        )
    table = sorted_by_gap(found)
    table.to_csv(folder / "table.csv")
    columns = ["setting", "seed", "method", "why"]
    pd.DataFrame(refused, columns=columns).to_csv(folder / "refused.csv", index=False)
    draw(table, folder / "compare_protocols.png")
    print(f"\n{table}\n")
    for each in refused:
        print("{setting}, seed {seed}: {method} refused: {why}".format(**each))
    print(f"table, refusals and figure: {folder}")


def cases(settings: Settings) -> Iterator[Case]:
    """Yield what is to be computed, seed by seed."""
    for seed in settings.seeds:
        for forget in settings.forget:
            for topology in settings.topologies:
                yield Case(
                    forget=forget,
                    topology=topology,
                    seed=seed,
                    peers=settings.peers,
                    rounds=settings.rounds,
                    descent_rounds=settings.descent_rounds,
                    dp_rounds=settings.dp_rounds,
                    methods=settings.methods,
                )


def results(settings: Settings, folder: Path) -> Iterator[tuple[Case, Done]]:
    """Yield every case with its lines and refusals, in the order of ``cases``."""
    folder.mkdir(exist_ok=True)
    asked = list(cases(settings))
    workers = settings.workers or os.cpu_count() or 1
    compute = partial(done, folder=folder)
    if workers == 1:
        yield from zip(asked, map(compute, asked), strict=True)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from zip(asked, pool.map(compute, asked), strict=True)


def done(case: Case, folder: Path) -> Done:
    """Return a case's lines and refusals, from its file or computed now.

    Args:
        case: The case.
        folder: Of the files.

    Returns:
        The lines, and why others are missing, by name.
    """
    path = folder / f"{digest(case)}.csv"
    beside = path.with_suffix(".refused.json")
    if not path.is_file():
        found = dict(lines(case))
        why = {
            name: f"{type(error).__name__}: {error}"
            for name, error in found.items()
            if isinstance(error, DflUnlearnError)
        }
        # The lines last: where they are, the case is whole.
        write_file(beside, json.dumps(why, indent=0).encode())
        write_lines((one for one in found.values() if isinstance(one, Line)), path)
    return list(read_lines(path)), json.loads(beside.read_text())


def digest(case: Case) -> str:
    """Return what changes where a case has to be computed anew, 12 digits."""
    what = {
        "format": FORMAT,
        "forget sets": VERSION,
        "metrics": METRICS,
        "case": asdict(case),
        "recipes": {
            name: form_of(protocol) for name, protocol in local_methods(case)[0].items()
        },
    }
    return sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]


def sorted_by_gap(found: list[Line]) -> Comparison:
    """Return the table, controls first, then the smallest gap first per setting."""
    rows = compare(found).rows
    gaps = {(row.setting, row.method): row.gap for row in rows}
    order = list(dict.fromkeys(line.setting for line in found))

    def key(line: Line) -> tuple[int, bool, float, str]:
        gap = gaps[line.setting, line.method]
        control = line.method in CONTROLS
        return order.index(line.setting), not control, gap, line.method

    return compare(sorted(found, key=key))


def draw(table: Comparison, path: Path) -> None:
    """Draw gap against cost, a panel per setting."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from dfl_unlearn.plots._style import STYLE

    with rc_context(STYLE):
        figure = Figure(layout="constrained", dpi=150)
        gap_against_cost(table, figure)
        figure.savefig(path)


if __name__ == "__main__":
    main()
