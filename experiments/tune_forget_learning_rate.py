"""What rate does each method need? A log grid per method and setting, and recipes.

    python experiments/tune_forget_learning_rate.py                  # digits
    python experiments/tune_forget_learning_rate.py oracle=false
    python experiments/tune_forget_learning_rate.py 'methods=["salun"]' write=true

Rates that work differ by two orders of magnitude between settings, so that a comparison
with one rate for all compares luck. Nothing here looks at test rows: a fifth of the
training rows takes their place, and trainings and forget sets have other seeds than
those that are reported.

``oracle=true`` takes the smallest gap to a retrained model, as published tables do;
who has to unlearn cannot do that, and the recipes say ``oracle_tuned``.
``oracle=false`` judges without one: the accuracy on the validation rows must stay, and
the forgotten rows must be answered like rows that were never seen, or, where their
labels are wrong, not as they were labelled, or, where a class goes, not at all.

Prints the grid and writes ``grid.csv`` and ``<data>.toml`` to
``runs/tune_forget_learning_rate``; ``write=true`` puts the latter in place of
``recipes/<data>.toml``.
"""

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields, is_dataclass, replace
from multiprocessing import get_context
from typing import Any

import method_recipes
import numpy as np
import pandas as pd
from compare_methods import FULL as REPORTED
from forget_sets import SETTINGS
from method_cases import TRAININGS, Case, four, prepare, tried
from method_recipes import Method, Recipes, with_batches, with_rates
from numpy.typing import NDArray
from settings import check_names, choose, folder_of

from dfl_unlearn.errors import DflUnlearnError
from dfl_unlearn.unlearning.local import methods

RATE = ("optimizer", "learning_rate")
KNOBS: Mapping[str, tuple[tuple[str, ...], tuple[float, ...]]] = {
    "bad-teacher": (RATE, (0.05, 0.1, 0.2)),
    "boundary-expand": (RATE, (3e-3, 0.01, 0.03)),
    "boundary-shrink": (RATE, (3e-3, 0.01, 0.03)),
    "dual-optim": (
        ("forget_optimizer", "learning_rate"),
        (1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03),
    ),
    "fine-tune": (RATE, (0.03, 0.1, 0.2, 0.4)),
    "fisher-forgetting": (("alpha",), (1e-7, 1e-6, 1e-5)),
    "gradient-ascent": (RATE, (3e-3, 0.01, 0.03)),
    "influence-unlearning": (("scale",), (0.3, 1.0, 3.0, 10.0, 20.0)),
    "l1-sparse": (RATE, (0.03, 0.1, 0.2, 0.4)),
    "manif-smc": (RATE, (5e-4, 1e-3, 3e-3, 0.01)),
    "neg-grad-plus": (("beta",), (0.9, 0.97, 0.99)),
    "random-label": (("forget_learning_rate",), (0.01, 0.03, 0.1)),
    "salun": (("forget_learning_rate",), (0.01, 0.03, 0.1)),
    "scrub": (("forget_learning_rate",), (3e-4, 1e-3, 3e-3)),
    "sfron": (("forget_learning_rate",), (0.01, 0.03, 0.1, 0.3, 1.0)),
    "ssd": (("alpha",), (10.0, 30.0, 100.0)),
    "unsir": (("impair", "learning_rate"), (0.005, 0.02, 0.1, 0.3)),
}
"""By registered name: the field that is tuned, and its grid."""
FACTORS = (0.003, 0.01, 0.03, 0.1)
"""At a peer: what all rates of a method are multiplied by. Rates for one model are too
high there: a peer has few of the classes, and forgets the others within an epoch."""
RATELESS = ("fisher-forgetting", "influence-unlearning", "ssd")
"""Methods without learning rates; at a peer, too, it is their knob that is tuned."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is tuned.

    Attributes:
        data: A data set of ``TRAININGS``.
        settings: Forget sets.
        network: Whether the methods run at a peer of a network.
        methods: Names in tables; () is all that have a knob.
        seeds: Of trainings and forget sets; not those of the comparison.
        oracle: Whether a retrained model is looked at.
        write: Whether the recipes in use are replaced.
        workers: Processes; 0 is one per core.
    """

    data: str = "digits"
    settings: tuple[str, ...] = tuple(SETTINGS)
    network: bool = False
    methods: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (100, 101)
    oracle: bool = True
    write: bool = False
    workers: int = 0

    def __post_init__(self) -> None:
        """Refuse names that nothing has, or that have no knob.

        Raises:
            InvalidArgumentError: Naming the setting and the nearest known name.
        """
        check_names(TRAININGS, data=self.data)
        check_names(SETTINGS, settings=self.settings)
        if self.methods:
            recipes = method_recipes.of(self.data, tuple(SETTINGS))
            check_names(
                (
                    name
                    for setting in self.settings
                    for name in tunable(recipes, setting)
                ),
                methods=self.methods,
            )


@dataclass(frozen=True, kw_only=True)
class Try:
    """One method with one value of its knob in one case."""

    setting: str
    name: str
    value: float
    off: NDArray[np.float64]


def main(arguments: list[str] | None = None) -> None:
    """Run the script."""
    settings = choose(QUICK, FULL, __doc__, arguments)
    recipes = method_recipes.of(settings.data, tuple(SETTINGS))
    found: dict[tuple[str, str], dict[float, list[NDArray[np.float64]]]] = {}
    for one in tries(settings, recipes):
        by_value = found.setdefault((one.setting, one.name), {})
        by_value.setdefault(one.value, []).append(one.off)
    if not found:
        print("nothing was tuned: every method refused every request; nothing written")
        return
    what = "gap to Retrain" if settings.oracle else "distance to the aim"
    print(f"oracle_tuned={settings.oracle}; {what} in points (paired), * is taken")
    tables = {name: dict(table) for name, table in recipes.tables.items()}
    grid: list[dict[str, Any]] = []
    for (setting, name), by_value in found.items():
        gaps = {v: float(np.abs(np.mean(off, 0)).mean()) for v, off in by_value.items()}
        best = min(gaps, key=gaps.__getitem__)
        texts = []
        for value, gap in sorted(gaps.items()):
            paired = 100 * float(np.abs(by_value[value]).mean())
            mark = "*" if value == best else ""
            texts.append(f"{value:g}: {100 * gap:.2f} ({paired:.2f}){mark}")
            grid.append(
                {
                    "setting": setting,
                    "method": name,
                    "value": value,
                    "gap": round(100 * gap, 2),
                    "paired_gap": round(paired, 2),
                }
            )
        print(f"{setting:12} {name:24} {'  '.join(texts)}", flush=True)
        method = tunable(recipes, setting)[name]
        table = setting + (method_recipes.NETWORK if settings.network else "")
        tables.setdefault(table, {})[name] = table_of(
            name, tuned(method, best, settings.network)
        )
    head = replace(
        recipes.head,
        oracle_tuned=settings.oracle or recipes.head.oracle_tuned,
        tuned=how(settings),
    )
    text = method_recipes.text_of(Recipes(head=head, tables=tables))
    folder = folder_of(__file__)
    pd.DataFrame(grid).to_csv(folder / "grid.csv", index=False)
    target = folder / f"{settings.data}.toml"
    target.write_text(text)
    method_recipes.read(target, tuple(SETTINGS))
    if settings.write:
        target = method_recipes.FOLDER / f"{settings.data}.toml"
        target.write_text(text)
    print(f"recipes: {target}")


def tunable(recipes: Recipes, setting: str) -> dict[str, Method]:
    """Return the methods of a setting that have a knob, by their names in tables.

    With the fields for one model: at a peer their rates are scaled, and not those
    that were scaled when it was tuned before.
    """
    every = recipes.methods(setting)
    return {k: m for k, m in every.items() if methods.name_of(m) in KNOBS}


def how(settings: Settings) -> str:
    """Return the recipes' sentence about where their values come from."""
    shared = [seed for seed in settings.seeds if seed in REPORTED.seeds]
    others = (
        f"of which {shared} are the comparison's, too,"
        if shared
        else "other ones than those of the comparison,"
    )
    return (
        f"last by tune_forget_learning_rate.py on seeds {settings.seeds}, {others} and "
        "on validation rows"
    )


def tries(settings: Settings, recipes: Recipes) -> Iterator[Try]:
    """Yield every method with every value of its knob in every case."""
    jobs = []
    for setting in settings.settings:
        found = tunable(recipes, setting)
        chosen = {k: m for k, m in found.items() if k in (settings.methods or found)}
        if settings.network:
            size = TRAININGS[settings.data].local_batch_size
            chosen = {name: with_batches(m, size) for name, m in chosen.items()}
        for seed in settings.seeds:
            case = Case(
                training=TRAININGS[settings.data],
                setting=setting,
                network=settings.network,
                seed=seed,
                validation=True,
            )
            jobs.append((case, chosen, settings.oracle))
    workers = settings.workers or os.cpu_count() or 1
    if workers == 1:
        for job in jobs:
            yield from tries_of(*job)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for found_tries in pool.map(tries_of, *zip(*jobs, strict=True)):
            yield from found_tries


def tries_of(case: Case, chosen: Mapping[str, Method], oracle: bool) -> list[Try]:
    """Return how far off every method is in one case, with every value."""
    prepared = prepare(case, chosen)
    before, target = four(prepared.untouched), four(prepared.retrained)
    found = []
    for name, method in chosen.items():
        for value in grid_of(method, case.network):
            outcome = tried(prepared, tuned(method, value, case.network))
            if isinstance(outcome, DflUnlearnError):
                continue
            after = four(outcome)
            off = after - target if oracle else blind(case.setting, before, after)
            found.append(Try(setting=case.setting, name=name, value=value, off=off))
    return found


def blind(
    setting: str, before: NDArray[np.float64], after: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return how far a model is from its aim, without a retrained one.

    Args:
        setting: What was forgotten.
        before: Forget, retain and validation accuracy (and attack) of the original.
        after: The same of the unlearned model.

    Returns:
        Distance of the forget accuracy to its target, and what of the other two was
        lost, shape ``(3,)``.
    """
    unseen = setting not in ("class", "mislabel", "backdoor")
    aim = after[2] if unseen else 0.0
    lost = np.minimum(after[1:3] - before[1:3], 0)
    return np.array([after[0] - aim, *lost])


def grid_of(method: Method, network: bool = False) -> tuple[float, ...]:
    """Return the values to try."""
    name = methods.name_of(method)
    return FACTORS if network and name not in RATELESS else KNOBS[name][1]


def tuned(method: Method, value: float, network: bool = False) -> Method:
    """Return the method with another value of its knob; at a peer, of its rates."""
    name = methods.name_of(method)
    if network and name not in RATELESS:
        return with_rates(method, value)

    def changed(thing: Any, path: tuple[str, ...]) -> Any:
        first, *rest = path
        new = changed(getattr(thing, first), tuple(rest)) if rest else value
        return replace(thing, **{first: new})

    found: Method = changed(method, KNOBS[name][0])
    return found


def table_of(name: str, method: Method) -> dict[str, Any]:
    """Return a recipe's table: what differs from the defaults."""
    table = _written(method)
    return table if table["use"] != name else {k: table[k] for k in table if k != "use"}


def _written(value: Any) -> Any:
    """Return a nested table with what differs from the defaults of its class."""
    if not is_dataclass(value):
        return value
    known = type(value) in map(methods.get, methods)
    plain = methods.build(methods.name_of(value)) if known else type(value)()
    table: dict[str, Any] = {"use": methods.name_of(value)} if known else {}
    for field in fields(value):
        own = getattr(value, field.name)
        if own != getattr(plain, field.name):
            table[field.name] = _written(own)
    return table


FULL = Settings()
QUICK = Settings(
    settings=("mislabel",), methods=("fine-tune",), seeds=(100,), workers=1
)


if __name__ == "__main__":
    main()
