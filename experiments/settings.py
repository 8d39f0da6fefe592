"""What every script shares: a preset, and overrides of its settings.

A script has one frozen dataclass of settings and two values of it, ``QUICK`` (seconds;
the test suite runs it) and ``FULL`` (what the README quotes).
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from dfl_unlearn._configfile import parse_override
from dfl_unlearn._strict import read_strict

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


def folder_of(script: str) -> Path:
    """Return ``runs/<name of the script>``, made if needed."""
    folder = Path("runs") / Path(script).stem
    folder.mkdir(parents=True, exist_ok=True)
    return folder
