"""Recipes: which fields each method has in each setting, read strictly from TOML.

A file of ``experiments/recipes/`` names its data and says how its rates were found.
Tables ``[all.NAME]`` hold for every setting, ``[SETTING.NAME]`` replaces them there and
``[SETTING-network.NAME]`` at a peer of a network. ``use`` is the registered name, NAME
itself by default; the other keys are the method's fields. A registered method that no
table names runs with its defaults.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from dfl_unlearn._configfile import read_config_file
from dfl_unlearn._strict import read_strict
from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.errors import ConfigError
from dfl_unlearn.unlearning.forms import REGISTRIES
from dfl_unlearn.unlearning.local import UnlearningMethod, methods

FOLDER = Path(__file__).parent / "recipes"
VERSION = 1
ALL, NETWORK = "all", "-network"

Method = UnlearningMethod[TensorBatch]


@dataclass(frozen=True, kw_only=True)
class Head:
    """What a file says about itself.

    Attributes:
        version: Of the format.
        data: Registered name of the data set.
        oracle_tuned: Whether rates were chosen by looking at a retrained model, as in
            published tables; nobody who has to unlearn can do that.
        tuned: How rates were chosen, in a sentence.
    """

    version: int
    data: str
    oracle_tuned: bool
    tuned: str


@dataclass(frozen=True, kw_only=True)
class Recipes:
    """One file.

    Attributes:
        head: What it says about itself.
        tables: Setting -> name -> fields, as written.
    """

    head: Head
    tables: Mapping[str, Mapping[str, Mapping[str, Any]]]

    def methods(self, setting: str, *, network: bool = False) -> dict[str, Method]:
        """Return every method of a setting by its name in tables.

        Args:
            setting: A setting, with a table of its own or not.
            network: Whether the method runs at a peer of a network.

        Returns:
            The written ones in the file's order, then what else is registered.
        """
        found = {
            name: method_of(name, self.tables[table][name], f"{setting}.{name}")
            for name, table in self._sources(setting, network).items()
        }
        used = {methods.name_of(method) for method in found.values()}
        rest = [name for name in methods.names() if name not in used]
        return found | {name: methods.build(name) for name in rest}

    def oracle_tuned(self, setting: str, *, network: bool = False) -> frozenset[str]:
        """Return the methods that were tuned by looking at a retrained model.

        Args:
            setting: A setting, with a table of its own or not.
            network: Whether the method runs at a peer of a network.

        Returns:
            Those whose fields stand in a table of a setting, with or without network;
            those of ``[all]`` and defaults were not tuned.
        """
        if not self.head.oracle_tuned:
            return frozenset()
        sources = self._sources(setting, network)
        return frozenset(name for name, table in sources.items() if table != ALL)

    def _sources(self, setting: str, network: bool) -> dict[str, str]:
        """Return the table that gives each written method its fields."""
        places = (ALL, setting, *([f"{setting}{NETWORK}"] if network else []))
        return {name: place for place in places for name in self.tables.get(place, {})}


def method_of(name: str, table: Mapping[str, Any], path: str) -> Method:
    """Return the method that one table describes."""
    kind: Any = UnlearningMethod[TensorBatch]
    method: Method = read_strict(
        kind, {"use": name, **table}, "", registries=REGISTRIES, path=path
    )
    return method


def with_batches(method: Method, size: int) -> Method:
    """Return the method with batches of at most as many rows, for a peer's few rows."""
    return _changed(method, "batch_size", lambda value: min(size, value))


def with_rates(method: Method, factor: float) -> Method:
    """Return the method with all its learning rates multiplied."""

    def scaled(value: float) -> float:
        return float(f"{factor * value:.3g}")  # no digits that nobody chose

    return _changed(method, "learning_rate", scaled)


def _changed(method: Method, ending: str, change: Callable[[Any], Any]) -> Method:
    """Return the method with other values of fields, at any depth."""

    def changed(thing: Any) -> Any:
        new: dict[str, Any] = {}
        for field in fields(thing):
            value = getattr(thing, field.name)
            if field.name.endswith(ending) and value is not None:
                new[field.name] = change(value)
            elif is_dataclass(value):
                new[field.name] = changed(value)
        return replace(thing, **new)

    found: Method = changed(method)
    return found


def read(path: Path, settings: tuple[str, ...]) -> Recipes:
    """Read a file, and build every method in it once, so that errors show at once.

    Args:
        path: The file.
        settings: Names that a table may have.

    Returns:
        The recipes.

    Raises:
        ConfigError: If anything in it is unknown or does not fit.
    """
    tables = read_config_file(path)
    head = read_strict(Head, tables.pop("recipes", {}), path.name, path="recipes")
    if head.version != VERSION:
        raise ConfigError(
            f"{path.name}: recipes.version must be {VERSION}, got {head.version}"
        )
    for setting, entries in tables.items():
        if setting not in (ALL, *settings, *(name + NETWORK for name in settings)):
            raise ConfigError(
                f"{path.name}: {setting}: must be {ALL}, or one of "
                f"{', '.join(settings)}, alone or followed by {NETWORK}"
            )
        for name, table in entries.items():
            method_of(name, table, f"{path.name}: {setting}.{name}")
    return Recipes(head=head, tables=tables)


def of(data: str, settings: tuple[str, ...]) -> Recipes:
    """Return a data set's recipes; all defaults where there is no file."""
    path = FOLDER / f"{data}.toml"
    if path.is_file():
        return read(path, settings)
    head = Head(version=VERSION, data=data, oracle_tuned=False, tuned="all defaults")
    return Recipes(head=head, tables={})


def text_of(recipes: Recipes) -> str:
    """Return the file's text, which ``read`` reads back; a line per method."""
    lines = ["[recipes]"]
    lines += [
        f"{key} = {_inline(value)}" for key, value in asdict(recipes.head).items()
    ]
    for setting, table in recipes.tables.items():
        lines += ["", f"[{setting}]"]
        lines += [f"{_inline(name)} = {_inline(each)}" for name, each in table.items()]
    return "\n".join(lines) + "\n"


def _inline(value: Any) -> str:
    """Return a value in TOML syntax, on one line."""
    if isinstance(value, Mapping):
        inner = ", ".join(f"{key} = {_inline(each)}" for key, each in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_inline, value))}]"
    return json.dumps("none" if value is None else value)
