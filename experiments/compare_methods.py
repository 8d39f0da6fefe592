"""Every method for one model: what it forgets, what it keeps, at what cost.

    python experiments/compare_methods.py                           # digits
    python experiments/compare_methods.py --preset quick            # seconds
    python experiments/compare_methods.py 'data=["mnist"]'          # needs the files
    python experiments/compare_methods.py 'data=["cifar10"]' 'seeds=[0]'   # hours

Six forget sets (``forget_sets.py``): a class, a random 10 % or 50 %, a user, 10 % wrong
labels, 10 % images with a backdoor. Three places: one model with all data; the
requester of a ring of 8 peers, whose rows alone go, just after its method; the mean
over the 8 peers after three rounds of mixing, when its neighbours have answered.

Per seed (another training, another forget set) the model is trained once and
retrained twice; every method of ``recipes/<data>.toml``, and every registered one that
it does not name, runs on the same model. ``retrain`` repeats the draws of training: it
is the reference of every difference, and methods that replay training are near it by
construction. ``retrain (other seed)`` does not: no other method can be expected to come
nearer than it.

``runs/compare_methods/rows.csv`` has a line per seed and method and is read again: what
stands there is not computed twice, unless its fields changed. ``table.csv`` has a line
per method, ``gap.png`` gap against cost.
"""

import json
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import method_recipes
import pandas as pd
from forget_sets import SETTINGS
from method_cases import (
    CONTROLS,
    TRAININGS,
    Case,
    Place,
    Prepared,
    measured,
    outcomes,
    prepare,
)
from method_recipes import Method
from settings import choose, folder_of

from dfl_unlearn.errors import DflUnlearnError
from dfl_unlearn.unlearning.contracts import Outcome
from dfl_unlearn.unlearning.forms import form_of
from dfl_unlearn.unlearning.protocols.at_peer import AtPeer

KEY = ("data", "setting", "place", "seed", "method")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is compared.

    Attributes:
        data: Data sets, of ``TRAININGS``.
        settings: Forget sets, of ``SETTINGS``.
        places: ``centralized``, ``network`` (both of its places).
        methods: Names in tables; () is all.
        seeds: Of trainings and forget sets.
        workers: Processes; 0 is one per core.
    """

    data: tuple[str, ...] = ("digits",)
    settings: tuple[str, ...] = tuple(SETTINGS)
    places: tuple[str, ...] = ("centralized", "network")
    methods: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    workers: int = 0


FULL = Settings()
QUICK = Settings(
    settings=("mislabel",),
    places=("centralized",),
    methods=("fine-tune",),
    seeds=(0, 1),
    workers=1,
)


def main(arguments: list[str] | None = None) -> None:
    """Run the script."""
    settings = choose(QUICK, FULL, __doc__, arguments)
    folder = folder_of(__file__)
    path = folder / "rows.csv"
    known = pd.read_csv(path, keep_default_na=False) if path.is_file() else None
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in [] if known is None else known.to_dict("records"):
        rows[tuple(row[k] for k in KEY)] = row
    done = frozenset((key, row["digest"]) for key, row in rows.items())
    for case, found in results(settings, done):
        for row in found:
            rows[tuple(row[k] for k in KEY)] = row
        write(rows.values(), path)
        place = "network" if case.network else "centralized"
        print(
            f"{case.training.dataset} {case.setting} {place} seed {case.seed}: "
            f"{len(found)} rows",
            flush=True,
        )
    print(f"rows: {path}")


def results(
    settings: Settings, done: frozenset[tuple[tuple[Any, ...], str]]
) -> Iterable[tuple[Case, list[dict[str, Any]]]]:
    """Yield every case with its new rows, as they are finished."""
    jobs = []
    for data in settings.data:
        recipes = method_recipes.of(data, tuple(SETTINGS))
        for setting in settings.settings:
            found = recipes.methods(setting)
            named = settings.methods or tuple(found)
            chosen = {
                k: m for k, m in found.items() if k in named and k not in CONTROLS
            }
            for place in settings.places:
                for seed in settings.seeds:
                    case = Case(
                        training=TRAININGS[data],
                        setting=setting,
                        network=place == "network",
                        seed=seed,
                    )
                    jobs.append((case, chosen))
    workers = settings.workers or os.cpu_count() or 1
    if workers == 1:
        for case, chosen in jobs:
            yield case, rows_of(case, chosen, done)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(rows_of, *job, done): job[0] for job in jobs}
        for future in as_completed(waiting):
            yield waiting[future], future.result()


def rows_of(
    case: Case,
    chosen: dict[str, Method],
    done: frozenset[tuple[tuple[Any, ...], str]],
) -> list[dict[str, Any]]:
    """Return the rows of a case that are not done yet, at all of its places."""
    rows = []
    prepared: Prepared | None = None
    for place in case.places:
        missing = {
            name: method
            for name, method in chosen.items()
            if (key_of(case, place, name), digest(case, method)) not in done
        }
        control = (key_of(case, place, CONTROLS[-1]), digest(case, None))
        if not missing and control in done:
            continue
        prepared = prepared or prepare(case, chosen)
        for name, outcome in outcomes(prepared, place, missing):
            method = chosen.get(name)
            rows.append(
                dict(zip(KEY, key_of(case, place, name), strict=True))
                | {"fields": "" if method is None else fields_of(method)}
                | {"digest": digest(case, method)}
                | line(prepared, place, outcome)
            )
    return rows


def line(
    prepared: Prepared, place: Place, outcome: Outcome | DflUnlearnError
) -> dict[str, Any]:
    """Return what one outcome is worth; of a refusal, its reason."""
    if isinstance(outcome, DflUnlearnError):
        return {"refused": f"{type(outcome).__name__}: {outcome}"}
    claim = outcome.certificate
    dear = prepared.retrained.cost.gradient_evaluations
    return {
        "refused": "",
        "certificate": "none" if claim is None else claim.status,
        "epsilon": "" if claim is None or claim.epsilon is None else claim.epsilon,
        "delta": "" if claim is None or claim.delta is None else claim.delta,
        "reasons": "" if claim is None else "; ".join(claim.reasons),
        "seconds": outcome.cost.wall_seconds,
        "sample_gradients": outcome.cost.gradient_evaluations,
        "gradient_ratio": outcome.cost.gradient_evaluations / dear,
        **measured(outcome, place, prepared.case),
    }


def key_of(case: Case, place: Place, name: str) -> tuple[Any, ...]:
    """Return what names a row."""
    return case.training.dataset, case.setting, place, case.seed, name


def fields_of(method: Method) -> str:
    """Return a method's registered name and fields as JSON."""
    return json.dumps(form_of(AtPeer(method=method))["method"], sort_keys=True)


def digest(case: Case, method: Method | None) -> str:
    """Return what changes where a row has to be computed anew."""
    text = json.dumps(asdict(case.training), sort_keys=True)
    text += "" if method is None else fields_of(method)
    return sha256(text.encode()).hexdigest()[:12]


def write(rows: Iterable[dict[str, Any]], path: Path) -> None:
    """Write all rows, whole or not at all."""
    frame = pd.DataFrame(rows).sort_values(list(KEY), kind="stable")
    part = path.with_suffix(".part")
    frame.to_csv(part, index=False)
    part.replace(path)


if __name__ == "__main__":
    main()
