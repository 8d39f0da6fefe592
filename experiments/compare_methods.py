"""Every method for one model: what it forgets, what it keeps, at what cost.

    python experiments/compare_methods.py                   # digits, 8 minutes, 2 cores
    python experiments/compare_methods.py --preset quick    # seconds
    python experiments/compare_methods.py 'data=["mnist"]'  # needs the files
    python experiments/compare_methods.py 'data=["cifar10"]' 'seeds=[0]'   # long

Six forget sets (``forget_sets.py``): a class, a random 10 % or 50 %, a user, wrong
labels, images with a backdoor. Three places: one model with all data; one peer of a
ring of 8 unlike ones, whose own rows go, just after its method; the same peer after
three rounds in which all peers only average, when its neighbours have answered; both
retrained networks average as long there.

Per seed (another training, another forget set) the model is trained once and retrained
twice; every method of ``recipes/<data>.toml``, and every registered one that it does
not name, runs on the same model (at a peer with batches as small as its training's).
``retrain`` repeats the draws of training: it is the reference of every difference, and
methods that replay training are near it by construction. ``retrain-2`` does not: no
other method can be expected to come nearer.

In ``runs/compare_methods`` ``lines.csv`` has a line per seed and method and
``fields.json`` says with which fields; both are read again, and what stands there is
not computed twice unless something that it was computed with changed. ``table.csv`` has
a row per method, ``dual.csv`` what DualOptim changes and where it does not help, and
``compare_methods.png`` shows gap against cost.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path

import forget_sets
import method_cases
import method_recipes
import pandas as pd
from forget_sets import SETTINGS
from method_cases import CONTROLS, PLACES, TRAININGS, Case, Prepared, lines, prepare
from method_recipes import Method, with_batches
from settings import check_names, choose, folder_of

from dfl_unlearn.errors import DflUnlearnError
from dfl_unlearn.evaluation.comparison import (
    Comparison,
    Line,
    compare,
    read_lines,
    write_lines,
)
from dfl_unlearn.plots.comparison import DUAL, gap_against_cost
from dfl_unlearn.store.files import write_file
from dfl_unlearn.unlearning.forms import form_of
from dfl_unlearn.unlearning.local import methods
from dfl_unlearn.unlearning.protocols.at_peer import AtPeer

WHERE = ("one model", "network")
FORMAT = 2
"""Of what a line is computed from; another one where code changes lines."""
Key = tuple[str, str, int]
"""Setting, method and seed."""
LOCALLY = "retrain, locally"
"""A peer that trains again alone, in a network; of one model it is the reference."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is compared.

    Attributes:
        data: Data sets, of ``TRAININGS``.
        settings: Forget sets, of ``SETTINGS``.
        places: Of ``WHERE``: ``one model``, ``network`` (both of its places).
        methods: Names in tables, beside the controls; () is all.
        seeds: Of trainings and forget sets.
        workers: Processes; 0 is one per core.
    """

    data: tuple[str, ...] = ("digits",)
    settings: tuple[str, ...] = tuple(SETTINGS)
    places: tuple[str, ...] = WHERE
    methods: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    workers: int = 0

    def __post_init__(self) -> None:
        """Refuse names that nothing has.

        Raises:
            InvalidArgumentError: Naming the setting and the nearest known name.
        """
        check_names(TRAININGS, data=self.data)
        check_names(SETTINGS, settings=self.settings)
        check_names(WHERE, places=self.places)
        if self.methods:
            every = replace(self, methods=(), seeds=(0,))
            names = (name for _, chosen, _ in jobs(every) for name in chosen)
            check_names(names, methods=self.methods)


def main(arguments: list[str] | None = None) -> None:
    """Run the script."""
    settings = choose(QUICK, FULL, __doc__, arguments)
    store = Store(folder_of(__file__))
    for case, found in results(settings, store.digests()):
        store.add(found)
        refused = sum(line is None for line, _ in found.values())
        print(f"{case}: {len(found) - refused} lines, {refused} refused", flush=True)
    table = store.table(settings)
    path = store.folder / "table.csv"
    table.frame.to_csv(path, index=False, float_format="%.4g", lineterminator="\n")
    draw(table, store.folder / "compare_methods.png")
    print(f"\n{table}")
    pairs = dual_pairs(table)
    if len(pairs):
        pairs.to_csv(store.folder / "dual.csv", index=False)
        print(f"\nwhat DualOptim changes, in points:\n{pairs.to_string(index=False)}")
    print(f"\nlines and tables: {store.folder}")


def dual_pairs(table: Comparison) -> pd.DataFrame:
    """Return each method beside the same one with an optimizer per objective."""
    by_name = {(row.setting, row.method): row for row in table.rows}
    rows = []
    for (setting, name), dual in by_name.items():
        base = by_name.get((setting, name.removesuffix(DUAL)))
        if base is None or base is dual:
            continue
        figures = {
            "gap": (base.gap, dual.gap),
            "paired gap": (base.paired_gap, dual.paired_gap),
            "std": (base.std, dual.std),
        }
        row: dict[str, str | float] = {"setting": setting, "base": base.method}
        for name, (before, after) in figures.items():
            row[name] = round(100 * before, 2)
            row[f"{name} + dual"] = round(100 * after, 2)
        row["std ratio"] = round(base.std / dual.std, 2) if dual.std else math.nan
        better = [name for name, (before, after) in figures.items() if after < before]
        row["lower"] = ", ".join(better) or "nothing"
        rows.append(row)
    return pd.DataFrame(rows)


def draw(table: Comparison, path: Path) -> None:
    """Draw gap against cost, a panel per setting of one model (else of all)."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from dfl_unlearn.plots._style import STYLE

    settings = list(dict.fromkeys(row.setting for row in table.rows))
    alone = [setting for setting in settings if setting.endswith(PLACES[0])]
    with rc_context(STYLE):
        figure = Figure(layout="constrained", dpi=120)
        gap_against_cost(
            table,
            figure,
            settings=alone or settings,
            titles={name: name.removesuffix(f", {PLACES[0]}") for name in alone},
        )
        figure.savefig(path)


class Store:
    """What is known so far: lines, and the fields they were computed with."""

    def __init__(self, folder: Path) -> None:
        """Read what an earlier run left."""
        self.folder = folder
        self.lines: dict[Key, Line] = {}
        self.fields: dict[str, dict[str, str]] = {}
        if (folder / "fields.json").is_file():
            self.fields = json.loads((folder / "fields.json").read_text())
            for line in read_lines(folder / "lines.csv"):
                self.lines[line.setting, line.method, line.seed] = line

    def table(self, settings: Settings) -> Comparison:
        """Return what was asked for, the smallest gap first in every setting."""
        asked = [
            (case.name(place), name, case.seed)
            for case, chosen, _ in jobs(settings)
            for place in case.places
            for name in (*CONTROLS, *chosen)
        ]
        found = [self.lines[key] for key in asked if key in self.lines]
        gaps = {(row.setting, row.method): row.gap for row in compare(found).rows}
        order = list(dict.fromkeys(line.setting for line in found))
        return compare(
            sorted(
                found,
                key=lambda line: (
                    order.index(line.setting),
                    gaps[line.setting, line.method],
                ),
            )
        )

    def digests(self) -> dict[str, str]:
        """Return the digest of every line or refusal that is known."""
        return {name: entry["digest"] for name, entry in self.fields.items()}

    def add(self, found: Mapping[Key, tuple[Line | None, dict[str, str]]]) -> None:
        """Take new lines in place of old ones, and write all."""
        for key, (line, entry) in found.items():
            self.fields[_text(key)] = entry
            self.lines.pop(key, None)
            if line is not None:
                self.lines[key] = line
        write_lines(
            (self.lines[key] for key in sorted(self.lines)), self.folder / "lines.csv"
        )
        text = json.dumps(dict(sorted(self.fields.items())), indent=0)
        write_file(self.folder / "fields.json", text.encode())


def jobs(settings: Settings) -> list[tuple[Case, dict[str, Method], frozenset[str]]]:
    """Return the cases, the methods that are to run in each, and the tuned of them."""
    found = []
    for data in settings.data:
        recipes = method_recipes.of(data, tuple(SETTINGS))
        for setting in settings.settings:
            for place in settings.places:
                tuned = recipes.oracle_tuned(setting, network=place == "network")
                every = recipes.methods(setting, network=place == "network")
                chosen = {
                    name: method
                    for name, method in every.items()
                    if name not in CONTROLS and name in (settings.methods or every)
                }
                if place == "network":
                    size = TRAININGS[data].local_batch_size
                    chosen = {k: with_batches(m, size) for k, m in chosen.items()}
                    if LOCALLY in (settings.methods or [LOCALLY]):
                        chosen[LOCALLY] = methods.build("retrain")
                for seed in settings.seeds:
                    case = Case(
                        training=TRAININGS[data],
                        setting=setting,
                        network=place == "network",
                        seed=seed,
                    )
                    found.append((case, chosen, tuned))
    return found


Found = dict[Key, tuple[Line | None, dict[str, str]]]


def results(settings: Settings, done: Mapping[str, str]) -> Iterable[tuple[str, Found]]:
    """Yield the name of every case with its new lines, as they are finished."""
    workers = settings.workers or os.cpu_count() or 1
    if workers == 1:
        for job in jobs(settings):
            yield _name(job[0]), lines_of(*job, done)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting = {
            pool.submit(lines_of, *job, done): _name(job[0]) for job in jobs(settings)
        }
        for future in as_completed(waiting):
            yield waiting[future], future.result()


def lines_of(
    case: Case,
    chosen: dict[str, Method],
    tuned: frozenset[str],
    done: Mapping[str, str],
) -> Found:
    """Return the lines of a case that are not done yet, at all of its places."""
    found: Found = {}
    prepared: Prepared | None = None
    for place in case.places:
        wanted = {name: digest(case, None) for name in CONTROLS}
        wanted |= {k: digest(case, m, k in tuned) for k, m in chosen.items()}
        missing = {
            name
            for name, value in wanted.items()
            if done.get(_text((case.name(place), name, case.seed))) != value
        }
        if not missing:
            continue
        prepared = prepared or prepare(case, chosen)
        some = {name: method for name, method in chosen.items() if name in missing}
        for name, line in lines(prepared, place, some, tuned):
            entry = {"digest": wanted[name]}
            if name in chosen:
                entry["fields"] = fields_of(chosen[name])
            refused = isinstance(line, DflUnlearnError)
            if refused:
                entry["refused"] = f"{type(line).__name__}: {line}"
            key = case.name(place), name, case.seed
            found[key] = (None if refused else line), entry
    return found


def fields_of(method: Method) -> str:
    """Return a method's registered name and fields as JSON."""
    return json.dumps(form_of(AtPeer(method=method))["method"], sort_keys=True)


def digest(case: Case, method: Method | None, tuned: bool = False) -> str:
    """Return what changes where a line has to be computed anew.

    Args:
        case: The case.
        method: Whose line; None is a control's.
        tuned: Whether the line says that its fields were tuned.

    Returns:
        12 hexadecimal digits. Where only code changes, ``FORMAT`` (or the version of
        the forget sets) has to.
    """
    network = [method_cases.PEERS, method_cases.MIXING_ROUNDS] if case.network else []
    what = {
        "format": FORMAT,
        "forget sets": forget_sets.VERSION,
        "training": asdict(case.training),
        "validation": case.validation,
        "metrics": method_cases.METRICS,
        "network": network,
        "method": "" if method is None else fields_of(method),
        "tuned": tuned,
    }
    return sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]


def _name(case: Case) -> str:
    where = "network" if case.network else "one model"
    return f"{case.training.dataset}, {case.setting}, {where}, seed {case.seed}"


def _text(key: Key) -> str:
    return " | ".join(map(str, key))


FULL = Settings()
QUICK = Settings(
    settings=("mislabel",),
    places=("one model",),
    methods=("fine-tune",),
    seeds=(0, 1),
    workers=1,
)


if __name__ == "__main__":
    main()
