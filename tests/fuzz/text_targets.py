"""Targets that people write by hand: configurations, overrides, requests and graphs."""

import json
from pathlib import Path

from fuzz.harness import Bench, Misread, Target
from fuzz.mutate import LETTERS, VALUES, damaged, edited, json_edits, mutated

from dfl_unlearn._configfile import to_toml
from dfl_unlearn.cli_work import requests_of
from dfl_unlearn.errors import DflUnlearnError
from dfl_unlearn.experiment import (
    DEMO,
    load_experiment,
    read_experiment,
    to_config,
)
from dfl_unlearn.topology.files import load_topology, save_graph
from dfl_unlearn.topology.generators import topologies

_FULL = {
    **DEMO,
    "data": {
        "use": "gaussian-classes",
        "dim": 3,
        "partition": {"use": "dirichlet", "alpha": 0.5, "min_per_peer": 2},
    },
    "training": {
        "rounds": 20,
        "trainer": {"use": "dp-gossip"},
        "record": {"parts": ["norms"], "every": 2},
        "privacy_budget": {"epsilon_max": 2.5},
    },
    "forget": [
        {"kind": "samples", "peer": 3, "indices": [0, 4, 5]},
        {"kind": "peer", "peer": 1, "reason": "asked \u2028"},
        {"kind": "class", "class_id": 1, "peers": [0, 2]},
    ],
    "evaluation": {"metrics": ["accuracy"], "reference": False},
    "report": {"figures": ["png", "svg"], "html": False},
}
_GRAPH = {"topology": {"use": "no-such.graphml", "directed": True}}
_REQUESTS = (
    {"kind": "samples", "peer": 3, "fraction": 0.25, "seed": 7},
    {"forget": [{"kind": "peer", "peer": 1}, {"kind": "class", "class_id": 2}]},
    {"kind": "samples", "peer": 0, "indices": [1, 2], "request_id": "r7"},
)


def _words() -> list[bytes]:
    from dfl_unlearn.cli import KINDS
    from dfl_unlearn.cli_work import registry_of

    names = [n for kind in KINDS for n in registry_of(kind).names()]
    keys = ("use", "n", "seed", "topology", "data", "peer", "partition", "fields")
    extra = ('"', "=", "[", "]", "[[", "{", "}", ",", "#", "'''", '"""', "\\", ".")
    return [t.encode() for t in (*names, *keys, *extra, *LETTERS, *VALUES)]


def _experiments() -> list[dict]:
    resolved = []
    for table in (DEMO, _FULL):
        try:
            resolved.append(to_config(read_experiment(table)))
        except DflUnlearnError:
            resolved.append(dict(table))
    return [*resolved, dict(DEMO), _FULL, _GRAPH, {}]


def _checked(path: Path, overrides=()) -> object:
    """Read an experiment; what is written of it must read as the same."""
    experiment = load_experiment(path, overrides)
    config = to_config(experiment)
    again = path.with_name("again.toml")
    try:
        again.write_bytes(to_toml(config).encode())
        back = to_config(load_experiment(again))
    except DflUnlearnError as error:
        raise Misread(f"its own TOML is refused: {error}") from error
    if back != config:
        raise Misread(f"its own TOML reads otherwise: {config} {back}")
    return experiment


def _toml(scratch: Path) -> Bench:
    path, words = scratch / "input.toml", _words()
    seeds = [to_toml(table).encode() for table in _experiments()]
    seeds += [
        b"name = \"x\" # comment\n[topology]\nuse = 'ring'\nn = 0x10\n",
        b'seed = 1_000\ntopology = {use = "ring", n = 4}\n',
        b'report.html = false\nreport.figures = []\nname = """a"""\n',
        b"training.local.learning_rate = 1e-3\ntraining.rounds = 1\n",
        b"name = 1979-05-27T07:32:00Z\nseed = 07:32:00\n",
    ]

    def tried(data: bytes) -> object:
        path.write_bytes(data)
        return _checked(path)

    return Bench(seeds, damaged(seeds, words), tried)


def _json(scratch: Path) -> Bench:
    path, words, tables = scratch / "input.json", _words(), _experiments()
    seeds = [json.dumps(table, indent=1).encode() for table in tables]
    seeds.append(b'{"seed": 1, "seed": 2}')

    def draw(rng) -> bytes:
        if rng.random() < 0.6:
            table = rng.choice(tables)
            data = edited(table, json_edits(table, rng))
            return data if rng.random() < 0.8 else mutated(data, seeds, rng, words)
        return mutated(rng.choice(seeds), seeds, rng, words)

    def tried(data: bytes) -> object:
        path.write_bytes(data)
        return _checked(path)

    return Bench(seeds, draw, tried)


def _overrides(scratch: Path) -> Bench:
    path, words = scratch / "base.toml", _words()
    path.write_text(to_toml(DEMO))
    seeds = [
        b"training.rounds=50",
        b"unlearning.0.epsilon=0.5",
        b"topology.use=torus\ntopology.n=16",
        b"name=other",
        b'topology.use="ring"',
        b"forget.0={kind='peer', peer=1}",
        b"report.figures=[]\nreport.html=false",
        b"data.partition.use=iid",
        b"unlearning=[]\nforget=[]",
        b"training.trainer.use=gradient-tracking",
        b"seed=0x10",
    ]

    def tried(data: bytes) -> object:
        # As the system hands them over: bytes that are no UTF-8 become surrogates.
        texts = data.decode("utf-8", "surrogateescape").split("\n\n")
        return _checked(path, [t for part in texts for t in _split(part)])

    return Bench(seeds, damaged(seeds, words), tried)


def _split(part: str) -> list[str]:
    """One argument, or several; a line that has no ``=`` belongs to the one before."""
    found: list[str] = []
    for line in part.split("\n"):
        if found and "=" not in line:
            found[-1] += "\n" + line
        else:
            found.append(line)
    return found


def _request(scratch: Path) -> Bench:
    paths = [scratch / "request.toml", scratch / "request.json"]
    words = _words()
    seeds = [to_toml(table).encode() for table in _REQUESTS]

    def draw(rng) -> bytes:
        if rng.random() < 0.5:
            table = rng.choice(_REQUESTS)
            return edited(table, json_edits(table, rng))
        return mutated(rng.choice(seeds), seeds, rng, words)

    def tried(data: bytes) -> object:
        path = paths[data.lstrip().startswith(b"{")]
        path.write_bytes(data)
        return requests_of(None, None, None, False, None, path)

    return Bench(seeds, draw, tried)


def _preset(scratch: Path) -> Bench:
    from dfl_unlearn.topology.files import _bundled

    path, words = scratch / "preset.toml", _words()
    files = [p for p in _bundled().values() if p.suffix == ".toml"]
    seeds = [p.read_bytes() for p in sorted(files)]

    def tried(data: bytes) -> object:
        path.write_bytes(data)
        return load_topology(path)

    return Bench(seeds, damaged(seeds, words), tried)


# --- graphs -------------------------------------------------------------------

_BOMB = (
    b'<?xml version="1.0"?><!DOCTYPE g [<!ENTITY a "aaaaaaaaaa">'
    b'<!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]>'
    b"<graphml><graph edgedefault='undirected'><node id='&c;'/></graph></graphml>"
)
_XML_WORDS = (
    "<node id='a'/>",
    "<edge source='0' target='1'/>",
    "<edge source='0' target='0'/>",
    "<data key='d0'>1</data>",
    "<key id='d0' for='edge' attr.name='weight' attr.type='double'/>",
    "<key id='d1' for='node' attr.name='label' attr.type='string'/>",
    "<key id='d2' for='node' attr.name='x' attr.type='boolean'>",
    "<default>a</default></key>",
    "<key id='d3' for='node' yfiles.type='nodegraphics'/>",
    "<data key='d3'><y:ShapeNode><y:Shape type='x'/></y:ShapeNode></data>",
    "<graph edgedefault='directed'>",
    "</graph>",
    "<hyperedge><endpoint node='0'/></hyperedge>",
    "<port name='a'/>",
    "<!DOCTYPE a [<!ENTITY b 'c'>]>",
    "<!ENTITY b SYSTEM 'file:///etc/hostname'>",
    "<?php ?>",
    "<!-- -->",
    "<![CDATA[",
    "]]>",
    "encoding='utf-16'",
    "encoding='latin-1'",
    "edgedefault='directed'",
    "edgedefault=''",
    "attr.type='int'",
    "attr.type='boolean'",
    "attr.type='float'",
    "attr.type='x'",
    "attr.name='weight'",
    "attr.name='id'",
    "attr.name='label'",
    "xmlns='x'",
    "xmlns:y='http://www.yworks.com/xml/graphml'",
    "id='0'",
    "directed='true'",
    "<default>nan</default>",
    "&#x202e;",
    "&#55296;",
)
_GML_WORDS = (
    "graph [",
    "node [ id 0 ]",
    'node [ id 7 label "a" ]',
    "edge [ source 0 target 1 ]",
    "edge [ source 0 target 0 weight 2.5 ]",
    "directed 1",
    "multigraph 1",
    "directed x",
    'label "&#99999999999999;"',
    'label "&quot;"',
    "weight NAN",
    "weight +INF",
    'weight "_networkx_list_start"',
    "_networkx_list_start",
    "key 0",
    "id",
    "[",
    "]",
    '"',
    "#",
    "Creator",
    "Version 1",
    "graph 5",
    "node 5",
    "edge 5",
)
_EDGE_WORDS = ("0 1", "1 2 0.5", "a b", "#", "0 0", "1 0", "0 1 nan", "\t", "01 1")


def _graphs(
    suffix: str, seeds: list[bytes], words: list[bytes], scratch: Path
) -> Bench:
    path, again = scratch / f"input{suffix}", scratch / "again.graphml"

    def tried(data: bytes) -> object:
        # The first byte, which is not part of the file, chooses the options.
        how = data[:1]
        options = {b"d": {"directed": True}, b"u": {"make_undirected": True}}
        path.write_bytes(data[1:])
        found = load_topology(path, **options.get(how, {}))
        if len(path.suffix) and found.n < 50:
            save_graph(found, again)
            back = load_topology(again, directed=found.directed)
            if (back.labels, back.edges.tolist()) != (
                found.labels,
                found.edges.tolist(),
            ):
                raise Misread(f"its own GraphML reads otherwise: {found.labels}")
        return found

    all_words = [*words, *(t.encode() for t in LETTERS)]
    given = [how + seed for seed in seeds for how in (b"-", b"d", b"u")]

    def draw(rng) -> bytes:
        how = rng.choice((b"-", b"-", b"d", b"u"))
        return how + mutated(rng.choice(seeds), seeds, rng, all_words)

    return Bench(given, draw, tried)


def _graphml(scratch: Path) -> Bench:
    import networkx as nx

    small = nx.path_graph(3)
    nx.set_edge_attributes(small, 0.5, "weight")
    nx.set_node_attributes(small, {0: "a", 1: "b", 2: "c"}, "label")
    typed = nx.DiGraph([(0, 1), (1, 0), (1, 2), (2, 1)])
    nx.set_node_attributes(typed, True, "flag")
    nx.set_edge_attributes(typed, 3, "weight")
    texts = ["\n".join(nx.generate_graphml(g)).encode() for g in (small, typed)]
    texts.append(b'<?xml version="1.0" encoding="utf-8"?>\n' + texts[0])
    words = [w.encode() for w in _XML_WORDS]
    return _graphs(".graphml", [*texts, _BOMB], words, scratch)


def _gml(scratch: Path) -> Bench:
    import networkx as nx

    small = nx.path_graph(3)
    nx.set_edge_attributes(small, 0.5, "weight")
    nx.set_node_attributes(small, {0: "a", 1: 'b"&', 2: "ü"}, "label")
    typed = nx.DiGraph([(0, 1), (1, 0), (1, 2), (2, 1)])
    many = nx.MultiGraph([("x", "y"), ("y", "z")])
    texts = ["\n".join(nx.generate_gml(g)).encode() for g in (small, typed, many)]
    texts.append(
        b'Creator "x"\ngraph [ node [ id 3 ] node [ id 1 ] edge [ source 3 target 1 ] ]'
    )
    words = [w.encode() for w in _GML_WORDS]
    return _graphs(".gml", texts, words, scratch)


def _edges(scratch: Path) -> Bench:
    texts = [
        b"0 1\n1 2\n2 0\n",
        b"# comment\na b 0.5\nb\tc 2\n\n",
        b"0 1\r\n1 0\r\n",
        b"10 9 1e-3\n9 2 3\n",
    ]
    words = [w.encode() for w in (*_EDGE_WORDS, *VALUES)]
    return _graphs(".edges", texts, words, scratch)


assert topologies  # the registry is filled before words are drawn

TARGETS = (
    Target("config-toml", 14, _toml),
    Target("config-json", 12, _json),
    Target("overrides", 4, _overrides),
    Target("request", 12, _request),
    Target("preset", 4, _preset),
    Target("graphml", 14, _graphml),
    Target("gml", 8, _gml),
    Target("edges", 6, _edges),
)
