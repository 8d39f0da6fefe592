"""Networks by name or file: presets, pinned graphs, and graphs of one's own.

A preset is a small TOML file: a registered family, a mixing rule and parameters. A
pinned graph is a GraphML file that never changes. Both kinds that come with the package
lie in ``topologies/`` of the repository, ``dfl_unlearn/_topologies`` of a wheel.
"""

import contextlib
import difflib
import inspect
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import networkx as nx

from dfl_unlearn import _validate
from dfl_unlearn._configfile import read_config_file
from dfl_unlearn._strict import read_strict
from dfl_unlearn.errors import (
    InvalidArgumentError,
    StoreWriteError,
    TopologyError,
    UnknownNameError,
    UnsupportedFormatError,
)
from dfl_unlearn.topology._graph_file import read_graph
from dfl_unlearn.topology.generators import topologies
from dfl_unlearn.topology.graph import Topology
from dfl_unlearn.topology.mixing import mixing_rules

DEFAULT_MIXING = "metropolis-hastings"


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A family of networks with its parameters, as a TOML file gives it.

    Attributes:
        generator: A registered family.
        mixing: A registered mixing rule.
        parameters: The family's arguments.
    """

    generator: str
    mixing: str = DEFAULT_MIXING
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that both names are registered."""
        topologies.get(self.generator)
        mixing_rules.get(self.mixing)


def load_topology(
    name_or_path: str | os.PathLike[str],
    *,
    mixing: str | None = None,
    **parameters: Any,
) -> Topology:
    """Load a network by name, or from a preset or graph file.

    A name is looked up among the presets, the pinned graphs and the registered
    families, in this order; anything with a file ending is a path. Edge weights of a
    file stay attributes of the graph, the mixing rule does not read them.

    Args:
        name_or_path: E.g. ``"ring"``, ``"karate-34"``, ``"chordal-ring"`` once it is
            registered, ``"mine.graphml"``, ``"mine.toml"``.
        mixing: A registered mixing rule; None takes the preset's, or
            Metropolis-Hastings.
        **parameters: For presets and families their arguments, e.g. ``n=64``. For graph
            files ``directed``, ``make_undirected``, ``strict`` and ``max_bytes``
            (``read_graph`` explains them), and ``n``, which the file must then have.

    Returns:
        The network, checked.

    Example:
        >>> load_topology("ring", n=6).n
        6
    """
    _validate.of_type((str, os.PathLike), name_or_path=name_or_path)
    path = Path(name_or_path)
    if isinstance(name_or_path, str) and not path.suffix and path.name == name_or_path:
        found = _bundled().get(name_or_path)
        if found is None:
            return _load_family(name_or_path, mixing, parameters)
        path = found
    if path.suffix.lower() == ".toml":
        return _load_preset(path, mixing, parameters)
    return _load_graph(path, mixing, parameters)


def save_graph(topology: Topology, path: str | os.PathLike[str]) -> None:
    """Write the graph as GraphML; ``load_topology`` reads the same peers back.

    Node ids are the peers' numbers; labels and the attributes of nodes and edges are
    kept. The mixing matrix is not part of a graph file. The file appears whole or not
    at all and replaces an existing one.

    Args:
        topology: At least two peers.
        path: Must end in ``.graphml``.

    Raises:
        UnsupportedFormatError: If ``path`` has another ending.
        TopologyError: If an attribute cannot be written as GraphML.
        StoreWriteError: If the file cannot be written.
    """
    target = Path(path)
    where = _validate.clean(str(target))
    if target.suffix.lower() != ".graphml":
        raise UnsupportedFormatError(
            f"{where}: must end in .graphml, got {_validate.show(target.suffix)}"
        )
    graph = nx.DiGraph() if topology.directed else nx.Graph()
    for peer, label in enumerate(topology.labels):
        graph.add_node(peer, **{**topology.graph.nodes[peer], "label": label})
    for u, v in topology.edges.tolist():
        graph.add_edge(u, v, **topology.graph.edges[u, v])
    text = io.BytesIO()
    try:
        nx.write_graphml_xml(graph, text)
    except (nx.NetworkXError, TypeError, ValueError) as error:
        raise TopologyError(
            f"{where}: attributes must be texts, numbers or booleans ({error}); "
            "remove the others"
        ) from error
    _write_whole(target, text.getvalue(), where)


def preset_names() -> tuple[str, ...]:
    """Return the names of the presets that come with the package."""
    return _names(".toml")


def graph_names() -> tuple[str, ...]:
    """Return the names of the pinned graphs that come with the package."""
    return _names(".graphml")


def _load_family(
    name: str, mixing: str | None, parameters: Mapping[str, Any]
) -> Topology:
    if name not in topologies:
        known = sorted({*_bundled(), *topologies.names()})
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise UnknownNameError(
            f"topology: {_validate.show(name)} is no preset, pinned graph or family; "
            f"{hint}known: {', '.join(known)}"
        )
    return _from_family(name, mixing or DEFAULT_MIXING, parameters, title=name)


def _load_preset(
    path: Path, mixing: str | None, parameters: Mapping[str, Any]
) -> Topology:
    preset = read_strict(Preset, read_config_file(path), str(path))
    return _from_family(
        preset.generator,
        mixing or preset.mixing,
        {**preset.parameters, **parameters},
        title=path.stem,
    )


def _from_family(
    family: str, mixing: str, parameters: Mapping[str, Any], *, title: str
) -> Topology:
    graph = topologies.build(family, **parameters)
    if graph.number_of_nodes() == 1:
        return Topology.single()
    return Topology.from_graph(graph, mixing, name=title)


def _load_graph(
    path: Path, mixing: str | None, parameters: Mapping[str, Any]
) -> Topology:
    where = _validate.clean(str(path))
    options = dict(parameters)
    expected = options.pop("n", None)
    known = list(inspect.signature(read_graph).parameters)[1:]
    for key in options:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise InvalidArgumentError(
                f"{key}: unknown parameter of the graph file {where}; {hint}"
                f"it takes n, {', '.join(known)}"
            )
    graph, labels = read_graph(path, **options)
    if expected is not None and expected != len(labels):
        raise TopologyError(
            f"n: must be the number of peers of {where}, {len(labels)}, "
            f"got {_validate.show(expected)}; leave it out"
        )
    try:
        return Topology.from_graph(
            graph, mixing or DEFAULT_MIXING, name=path.stem, labels=labels
        )
    except TopologyError as error:
        raise type(error)(f"{where}: {str(error).removeprefix('graph: ')}") from error


def _bundled() -> dict[str, Path]:
    """Presets and pinned graphs by name; a preset hides a graph of the same name."""
    package = Path(__file__).parents[1]
    folder = package / "_topologies"
    if not folder.is_dir():
        folder = package.parent / "topologies"  # a development checkout
    files = [*folder.glob("graphs/*.graphml"), *folder.glob("presets/*.toml")]
    return {path.stem: path for path in files}


def _names(suffix: str) -> tuple[str, ...]:
    return tuple(sorted(k for k, path in _bundled().items() if path.suffix == suffix))


def _write_whole(target: Path, data: bytes, where: str) -> None:
    """Write beside the target, flush to the disk, then rename."""
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    try:
        with os.fdopen(os.open(part, flags, 0o644), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except OSError as error:
        raise StoreWriteError(
            f"{where}: must be writable, got {error.strerror or error}; "
            "choose another path or free space"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
