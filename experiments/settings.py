"""What every script shares: a preset, and overrides of its settings.

A script has one frozen dataclass of settings and two values of it, ``QUICK`` (seconds;
the test suite runs it) and ``FULL`` (what the README quotes).
"""

import argparse
import difflib
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from dfl_unlearn import _validate
from dfl_unlearn._configfile import parse_override
from dfl_unlearn._strict import read_strict
from dfl_unlearn.errors import InvalidArgumentError
from dfl_unlearn.results.sweep import SweepView

S = TypeVar("S")


def choose(quick: S, full: S, doc: str | None, arguments: list[str] | None = None) -> S:
    """Return the settings that the command line asks for.

    Args:
        quick: Settings of ``--preset quick``.
        full: Settings of ``--preset full``, the default.
        doc: The script's docstring, shown by ``--help``.
        arguments: Command line; None is the program's own.

    Returns:
        The preset with its overrides applied.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=("quick", "full"), default="full")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args(arguments)
    base = quick if args.preset == "quick" else full
    values = asdict(base)  # type: ignore[call-overload]
    for text in args.overrides:
        (key, *_), value = parse_override(text)
        values[key] = value
    values = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in values.items()
    }
    return read_strict(type(base), values, "settings")


def check_names(known: Iterable[str], **named: str | tuple[str, ...]) -> None:
    """Check that settings hold known names only, so that no typo is passed over.

    Args:
        known: The names that there are.
        **named: A name or several, under the setting's own name.

    Raises:
        InvalidArgumentError: Naming setting and value, with the nearest known name.
    """
    known = tuple(dict.fromkeys(known))
    for setting, names in named.items():
        for name in (names,) if isinstance(names, str) else names:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise InvalidArgumentError(
                    f"{setting}: must be known, got {_validate.show(name)}; {hint}"
                    f"known: {', '.join(known)}"
                )


def folder_of(script: str) -> Path:
    """Return ``runs/<name of the script>``, made if needed."""
    folder = Path("runs") / Path(script).stem
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def told_missing(view: SweepView) -> Iterator[str]:
    """Yield one line if cases of a sweep are not complete, and one for each failure.

    Args:
        view: The sweep.

    Yields:
        Lines of text; none where everything is complete.
    """
    left = [case for case in view.cases if case.status != "done"]
    if left:
        yield (
            f"{len(left)} of {len(view.cases)} cases of {view.name} are not complete; "
            "start the script again to go on"
        )
    for case in left:
        if case.error:
            yield f"{case.name} {dict(case.point)} seed {case.seed}: {case.error}"
