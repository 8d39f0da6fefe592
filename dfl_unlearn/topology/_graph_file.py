"""The strict reader of graph files: GraphML, GML and edge lists from anybody.

Files come from others, so nothing is trusted: size, encoding, depth and count are
limited, XML declarations that can expand or reach outside are refused before NetworkX
sees the file, and what NetworkX repairs silently (an endpoint that is not declared, a
weight that is NaN) is an error here.
"""

import io
import re
from collections.abc import Callable
from pathlib import Path
from xml.parsers import expat

import networkx as nx

from dfl_unlearn import _validate
from dfl_unlearn._textfile import read_utf8
from dfl_unlearn.errors import (
    InputFileError,
    InputTooLargeError,
    InvalidArgumentError,
    TopologyError,
    UnsafeFormatError,
    UnsupportedFormatError,
)
from dfl_unlearn.topology._simple import check_size, check_weight, edge_text, to_graph

MAX_BYTES = 256 * 2**20
MAX_ELEMENTS = 20_000_000
MAX_DEPTH = 32

_CODE = {".gpickle", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth"}
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")
_GML_TOKEN = re.compile(r'"[^"]*"|#[^\n]*|[\[\]]|[^\s\[\]"#]+')
_GML_WORD = re.compile(
    r"[A-Za-z]\w*|[+-]?\d+|[+-]?(?:\d*\.\d+|\d+\.\d*|INF)(?:[Ee][+-]?\d+)?", re.ASCII
)
_GML_UNDECLARED = re.compile(r"edge #(\d+) has undefined (?:source|target) (.+)", re.S)


def read_graph(
    path: Path,
    *,
    directed: bool = False,
    make_undirected: bool = False,
    strict: bool = False,
    max_bytes: int = MAX_BYTES,
) -> tuple[nx.Graph, tuple[str, ...]]:
    """Read a graph file as a simple graph with nodes ``0 .. N-1``.

    Ids that are whole numbers are sorted as numbers, others as text.

    Args:
        path: GraphML (``.graphml``), GML (``.gml``) or an edge list (``.edges``,
            ``.edgelist``, ``.txt``: ``u v [weight]`` on each line, ``#`` comments).
        directed: Keep the directions of a directed file. An edge list has directions
            only if this or ``make_undirected`` says so.
        make_undirected: Drop the directions of a directed file. Without either, every
            arc of a directed file must have its reverse.
        strict: Refuse self-loops instead of dropping them with a warning.
        max_bytes: Limit of the file's size.

    Returns:
        The graph with the file's attributes, and a label for each peer: the node
        attribute ``label`` where every node has one, else the file's id.

    Raises:
        InvalidArgumentError: If both ``directed`` and ``make_undirected`` are set.
        UnsafeFormatError: If the file can carry code or has an XML DOCTYPE.
        UnsupportedFormatError: If it is of another type.
        TopologyError: If the graph cannot serve as a network.
    """
    _validate.of_type(bool, directed=directed, make_undirected=make_undirected)
    _validate.of_type(bool, strict=strict)
    _validate.integer(max_bytes=max_bytes, at_least=1)
    if directed and make_undirected:
        raise InvalidArgumentError(
            "directed: must not be set together with make_undirected, got both; "
            "choose one"
        )
    where = _validate.clean(str(path))
    kind = path.suffix.lower()
    if kind in _CODE:
        raise UnsafeFormatError(
            f"{where}: must be a text format, got {kind}, which can run code when it "
            "is opened; save the graph as GraphML"
        )
    if kind in {".yaml", ".yml"}:
        raise UnsupportedFormatError(
            f"{where}: must be a graph or a preset, got YAML; use TOML or JSON for "
            "configuration, TOML for presets and GraphML for graphs"
        )
    if kind not in _READERS:
        raise UnsupportedFormatError(
            f"{where}: must end in one of {', '.join(sorted(_READERS))} or .toml, "
            f"got {_validate.show(kind)}; save the graph as GraphML"
        )
    data = read_utf8(
        path,
        where,
        max_bytes=max_bytes,
        remedy="(raise with --max-graph-mb, or max_bytes in Python)",
    )
    graph = _READERS[kind](data, where, directed or make_undirected)
    for u, v, attributes in graph.edges(data=True):
        check_weight(attributes, u, v, where)
    graph = _simple_edges(graph, where)
    if graph.is_directed() and not directed:
        graph = _undirected(graph, where, make_undirected)
    plain, names = to_graph(graph, strict=strict, source=where)
    given = [attributes.get("label") for _, attributes in plain.nodes(data=True)]
    for label in given:
        if not isinstance(label, str | int | float | None):
            raise TopologyError(
                f"{where}: a node must have one label, got {_validate.show(label)}; "
                "remove the others"
            )
    labels = names if None in given else tuple(map(str, given))
    _check_names((*names, *labels), where)
    return plain, labels


# --- GraphML --------------------------------------------------------------------


def _read_graphml(data: bytes, where: str, directed: bool) -> nx.Graph:
    scan = _GraphMLScan(where)
    scan.scan(data)
    try:
        graph = nx.read_graphml(io.BytesIO(data))
    except (
        nx.NetworkXError,
        SyntaxError,  # the parser on names without their namespace
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
    ) as error:
        raise _unreadable(where, "GraphML", error) from error
    # NetworkX passes over elements of other namespaces without a word.
    seen = graph.number_of_nodes(), graph.number_of_edges()
    if seen != (len(scan.nodes), scan.edges):
        raise InputFileError(
            f"{where}: must have all nodes and edges in GraphML's namespace, got "
            f"{seen[0]} of {len(scan.nodes)} nodes and {seen[1]} of {scan.edges} edges "
            "there; save the graph again as GraphML"
        )
    return _number_names(graph)


class _GraphMLScan:
    """One pass of expat over a GraphML file that lets only harmless ones through."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.elements = 0
        self.depth = 0
        self.graphs = 0
        self.default = ""
        self.edges = 0
        self.nodes: set[str] = set()
        self.ends: dict[str, tuple[str, str]] = {}  # endpoint: first edge that names it
        self.weight_keys: set[str] = set()
        self.edge: tuple[str, str] | None = None
        self.weight: list[str] | None = None

    def scan(self, data: bytes) -> None:
        parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.StartDoctypeDeclHandler = self._refuse("document type declarations")
        parser.EntityDeclHandler = self._refuse("entity declarations")
        parser.ProcessingInstructionHandler = self._refuse("processing instructions")
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text
        try:
            parser.Parse(data, True)
        except (expat.ExpatError, LookupError) as error:  # the other: its encoding
            raise InputFileError(
                f"{self.where}: must be well-formed XML, got an error ({error}); "
                "save the graph again as GraphML"
            ) from error
        if self.graphs != 1:
            raise TopologyError(
                f"{self.where}: must hold one graph, got {self.graphs}; "
                "keep one graph, without nested ones"
            )
        if self.default not in ("directed", "undirected"):
            raise TopologyError(
                f"{self.where}: edgedefault must be directed or undirected, got "
                f"{_validate.show(self.default)}; say which the edges are"
            )
        check_size(len(self.nodes), self.edges, source=self.where)
        for end, (u, v) in self.ends.items():
            if end not in self.nodes:
                raise _undeclared(self.where, edge_text(u, v), end)

    def _refuse(self, what: str) -> Callable[..., None]:
        def handler(*_: object) -> None:
            raise UnsafeFormatError(
                f"{self.where}: {what} are not allowed; remove them from the file"
            )

        return handler

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self.elements += 1
        self.depth += 1
        if self.elements > MAX_ELEMENTS or self.depth > MAX_DEPTH:
            raise InputTooLargeError(
                f"{self.where}: must have at most {MAX_ELEMENTS} elements and "
                f"{MAX_DEPTH} levels, got more; simplify the file"
            )
        tag = name.rpartition(":")[2]
        if tag == "graph":
            self.graphs += 1
            self.default = attributes.get("edgedefault", "")
        elif tag == "key" and attributes.get("attr.name") == "weight":
            self.weight_keys.add(attributes.get("id", ""))
        elif tag == "node":
            node = attributes.get("id", "")
            if node in self.nodes:
                raise TopologyError(
                    f"{self.where}: node {_validate.show(node)} is declared twice; "
                    "give every node its own id"
                )
            self.nodes.add(node)
        elif tag == "edge":
            self.edges += 1
            self.edge = attributes.get("source", ""), attributes.get("target", "")
            for end in self.edge:
                self.ends.setdefault(end, self.edge)
        elif tag == "data" and self.edge and attributes.get("key") in self.weight_keys:
            self.weight = []

    def _text(self, text: str) -> None:
        if self.weight is not None:
            self.weight.append(text)

    def _end(self, name: str) -> None:
        self.depth -= 1
        tag = name.rpartition(":")[2]
        if tag == "data" and self.weight is not None and self.edge:
            text = "".join(self.weight).strip()
            check_weight({"weight": _as_number(text)}, *self.edge, self.where)
            self.weight = None
        elif tag == "edge":
            self.edge = None


# --- GML and edge lists -----------------------------------------------------------


def _read_gml(data: bytes, where: str, directed: bool) -> nx.Graph:
    text = data.decode()
    depth = 0
    for token in _GML_TOKEN.finditer(text):
        depth += {"[": 1, "]": -1}.get(token[0], 0)
        # NetworkX would take 1e3 for the number 1 and a key e3.
        if token[0][0] not in '"#[]' and not _GML_WORD.fullmatch(token[0]):
            raise InputFileError(
                f"{where}: must hold keys, numbers and texts with blanks between, got "
                f"{_validate.show(token[0])}; write numbers as 12 or 0.5e3"
            )
        if depth > MAX_DEPTH:
            raise InputTooLargeError(
                f"{where}: must have at most {MAX_DEPTH} levels, got more; "
                "simplify the file"
            )
    counts = [len(re.findall(rf"\b{tag}\s*\[", text)) for tag in ("node", "edge")]
    check_size(*counts, source=where)
    try:
        return nx.parse_gml(text.splitlines(), label="id")
    except nx.NetworkXError as error:
        if found := _GML_UNDECLARED.fullmatch(str(error)):
            raise _undeclared(where, f"#{found[1]}", found[2]) from error
        raise _unreadable(where, "GML", error) from error
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
    ) as error:
        raise _unreadable(where, "GML", error) from error


def _read_edges(data: bytes, where: str, directed: bool) -> nx.Graph:
    graph = nx.DiGraph() if directed else nx.Graph()
    edges = 0
    for number, line in enumerate(data.decode().splitlines(), start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) not in {2, 3}:
            raise TopologyError(
                f"{where}: line {number}: must be 'u v' or 'u v weight', "
                f"got {_validate.show(line)}"
            )
        u, v = words[:2]
        if graph.has_edge(u, v):
            raise _parallel(where, edge_text(u, v))
        graph.add_edge(u, v)
        edges += 1
        check_size(len(graph), edges, source=where)
        if len(words) == 3:
            graph.edges[u, v]["weight"] = _as_number(words[2])
    return _number_names(graph)


_READERS: dict[str, Callable[[bytes, str, bool], nx.Graph]] = {
    ".graphml": _read_graphml,
    ".gml": _read_gml,
    ".edges": _read_edges,
    ".edgelist": _read_edges,
    ".txt": _read_edges,
}


# --- from a file's graph to a simple one --------------------------------------------


def _number_names(graph: nx.Graph) -> nx.Graph:
    """Turn ids that are whole numbers into integers, so that 10 comes after 9."""
    return nx.relabel_nodes(
        graph, {name: int(name) for name in graph if _INTEGER.fullmatch(name)}
    )


def _simple_edges(graph: nx.Graph, where: str) -> nx.Graph:
    if not graph.is_multigraph():
        return graph
    for u, v in graph.edges():
        if graph.number_of_edges(u, v) > 1:
            raise _parallel(where, edge_text(u, v))
    return nx.DiGraph(graph) if graph.is_directed() else nx.Graph(graph)


def _undirected(graph: nx.DiGraph, where: str, make_undirected: bool) -> nx.Graph:
    """Drop directions; refuse where that would lose or merge something unasked."""
    for u, v, attributes in graph.edges(data=True):
        if not graph.has_edge(v, u):
            if make_undirected:
                continue
            raise TopologyError(
                f"{where}: directed graph (edge {edge_text(u, v, '→')} has no "
                f"{edge_text(v, u, '→')}); pass directed=True or make_undirected=True"
            )
        there, back = attributes.get("weight"), graph.edges[v, u].get("weight")
        if there != back:
            raise TopologyError(
                f"{where}: edge {edge_text(u, v)}: weight must be the same in both "
                f"directions, got {there} and {back}; make them equal or pass "
                "directed=True"
            )
    return graph.to_undirected()


def _as_number(text: str) -> float | str:
    # Python also reads 1_0 as 10, and the digits of other scripts.
    plain = text.isascii() and "_" not in text
    try:
        return float(text) if plain else text
    except ValueError:
        return text


def _check_names(names: tuple[str, ...], where: str) -> None:
    for name in names:
        if _validate.clean(name) != name:
            raise TopologyError(
                f"{where}: node names must have no control characters, "
                f"got {ascii(name)[:200]}; rename the node"
            )


def _undeclared(where: str, edge: str, node: str) -> TopologyError:
    name = _validate.clean(str(node))[:200]
    return TopologyError(
        f"{where}: edge {edge}: node {name!r} is not declared; declare it as a node "
        "or correct the edge"
    )


def _parallel(where: str, edge: str) -> TopologyError:
    return TopologyError(
        f"{where}: must have no parallel edges, got {edge} more than once; "
        "keep one of them"
    )


def _unreadable(where: str, kind: str, error: Exception) -> InputFileError:
    return InputFileError(
        f"{where}: cannot be read as {kind} ({_validate.clean(str(error))[:200]}); "
        "save the graph again as GraphML"
    )
