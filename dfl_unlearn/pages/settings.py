"""What was run, on what, and how to tell that a repetition is the same."""

from collections.abc import Iterable, Mapping
from typing import Any

import dfl_unlearn
from dfl_unlearn import _html as h
from dfl_unlearn._html import Html
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.pages import wording
from dfl_unlearn.results.view import ResultsView


def settings(view: ResultsView) -> Html:
    """Return configuration, versions and digest."""
    run = view.run
    rows = [
        (h.tag("code", key), h.tag("code", value)) for key, value in _flat(view.config)
    ]
    versions = run.info.get("versions", {"dfl_unlearn": dfl_unlearn.__version__})
    facts = [
        ("Run", wording.run_name(view)),
        ("Digest", h.tag("code", run.digest, class_="hash")),
        ("Versions", ", ".join(f"{k} {v}" for k, v in versions.items())),
        *(
            (
                "BLAS" if key == "blas" else key.replace("_", " ").capitalize(),
                _fact(value),
            )
            for key, value in run.info.get("arithmetic", {}).items()
        ),
        *_faults(run),
    ]
    return h.section(
        "Settings",
        h.facts(facts),
        h.table("", ("setting", "value"), rows),
        h.tag(
            "footer",
            f"Written by dfl_unlearn {dfl_unlearn.__version__}. Equal settings give "
            "the same digest again.",
        ),
    )


def _faults(run: TrainedRun) -> list[tuple[str, str]]:
    """Return what went wrong in the simulated network in training; mostly nothing."""
    if not run.config.faults:
        return []
    seen = run.info.get("faults", {"totals": {}})["totals"]
    counts = ", ".join(f"{name.replace('_', ' ')} {n}" for name, n in seen.items())
    broken = run.config.faults.breaks(run.config.trainer)
    return [
        ("Faults of the network", counts or "none happened"),
        ("What they change", "; ".join(broken) or "nothing in the results"),
    ]


def _fact(value: object) -> object:
    """Return a list of tables, such as the BLAS libraries, as words."""
    if not isinstance(value, list):
        return value
    return "; ".join(
        " ".join(str(v) for k, v in item.items() if k != "num_threads")
        for item in value
    )


def _flat(settings: Mapping[str, Any], path: str = "") -> Iterable[tuple[str, str]]:
    """Yield dotted keys and values of nested settings."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{key}.")
        elif isinstance(value, list):
            yield f"{path}{key}", ", ".join(map(str, value))
        elif isinstance(value, float):
            yield f"{path}{key}", f"{value:g}"
        else:
            yield f"{path}{key}", str(value)
