"""Sweeps from files: an experiment with a table ``[sweep]``, and ``key=a,b,c``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfl_unlearn import _validate
from dfl_unlearn._configfile import parse_override, read_config_file
from dfl_unlearn._strict import read_strict
from dfl_unlearn.errors import ConfigError
from dfl_unlearn.experiment import override
from dfl_unlearn.sweeps.axes import Mode, plain_value, split_values
from dfl_unlearn.sweeps.plan import Sweep


@dataclass(frozen=True, kw_only=True)
class SweepSection:
    """The table ``[sweep]`` of a file; see ``Sweep``.

    Attributes:
        mode: How the axes are combined.
        samples: Number of random draws.
        seeds: Of the replicates.
    """

    mode: Mode = "grid"
    samples: int | None = None
    seeds: tuple[int, ...] = (0,)


def load_sweep(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    mode: Mode | None = None,
    samples: int | None = None,
    seeds: Sequence[int] | None = None,
    name: str | None = None,
) -> Sweep:
    """Read a sweep from a TOML or JSON file.

    The file is that of an experiment, and may have a table ``[sweep]``:

        [sweep]
        seeds = [0, 1, 2]
        [sweep.axes]
        "topology" = [{ use = "ring", n = 8 }, { use = "torus", n = 9 }]
        "unlearning.0.epsilon,unlearning.1.epsilon" = [0.5, 1.0]

    Args:
        path: The file.
        overrides: ``key=a,b,c`` makes an axis, or takes the place of the file's;
            ``key=a`` changes the base and drops the file's axis of that key. Values as
            for ``load_experiment``; commas inside brackets and braces do not separate.
            In mode ``random``, ``key={low=a,high=b}`` is an axis as well.
        mode: Instead of the file's.
        samples: Instead of the file's.
        seeds: Instead of the file's.
        name: Instead of the experiment's, which is the file's if it has none.

    Returns:
        The sweep; its cases are read by ``Sweep.cases``.

    Raises:
        ConfigError: If the file or an override cannot be read.
    """
    where = Path(path).name
    table = read_config_file(path)
    given = table.pop("sweep", {})
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"{where}: sweep must be a table, got {_validate.show(given)}; write "
            "[sweep]"
        )
    axes = given.get("axes", {})
    if not isinstance(axes, Mapping):
        raise ConfigError(
            f"{where}: sweep.axes must be a table of lists, got "
            f"{_validate.show(axes)}; write [sweep.axes] with quoted dotted keys"
        )
    axes = _flat(axes)
    rest = {key: value for key, value in given.items() if key != "axes"}
    section = read_strict(SweepSection, rest, where, path="sweep")
    mode = section.mode if mode is None else mode
    for text in overrides:
        _override(table, axes, text, mode)
    found = table.get("name", Path(path).stem) if name is None else name
    if samples is None and mode == "random":
        samples = section.samples
    return Sweep(
        base=table,
        axes=axes,
        mode=mode,
        samples=samples,
        seeds=section.seeds if seeds is None else seeds,
        name=found,
    )


def _flat(axes: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return axes by dotted keys, whether or not the keys were quoted."""
    found: dict[str, Any] = {}
    for key, value in axes.items():
        ranged = isinstance(value, Mapping) and {"low", "high"} & value.keys()
        if isinstance(value, Mapping) and not ranged:
            found |= _flat(value, f"{before}{key}.")
        else:
            found[f"{before}{key}"] = value
    return found


def _override(
    table: dict[str, Any], axes: dict[str, Any], text: str, mode: Mode
) -> None:
    """Carry out one ``key=a,b,c``.

    Args:
        table: The base; is written to.
        axes: Are written to.
        text: As it was typed.
        mode: How the axes are combined.

    Raises:
        ConfigError: If it has no key, or a value that cannot be read.
    """
    key, equals, given = text.partition("=")
    axis = ",".join(field.strip() for field in key.split(","))
    if not equals or not axis:
        raise ConfigError(
            f"{_validate.show(text)}: must look like key=value or key=a,b,c, e.g. "
            "unlearning.0.epsilon=0.5,1.0"
        )
    fields = axis.split(",")
    values = [parse_override(f"{fields[0]}={part}")[1] for part in split_values(given)]
    ranged = mode == "random" and isinstance(values[0], dict) and "low" in values[0]
    if len(values) > 1 or ranged:
        axes[axis] = values[0] if ranged else values
        return
    axes.pop(axis, None)
    for name in fields:
        keys, _ = parse_override(f"{name}=0")
        override(table, keys, plain_value(values[0]))
