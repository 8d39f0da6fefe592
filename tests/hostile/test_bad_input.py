"""Every row of the table of bad input, through the command line a user has.

One case is one mistake. Each must end with the exit code of its class and a message
that names the class, the place and the value, without a traceback and without a file
in the runs folder.
"""

import json
import os
import re
from types import SimpleNamespace

import numpy as np
import pytest

from dfl_unlearn.cli import main
from dfl_unlearn.errors import TopologyError

EXPERIMENT = """
name = "small"
[topology]
use = "ring"
n = 4
[data]
use = "gaussian-classes"
per_class = 20
[training]
rounds = 2
[training.local]
learning_rate = 0.1
[[forget]]
kind = "samples"
peer = 1
fraction = 0.2
[[unlearning]]
use = "retrain"
[evaluation]
reference = false
[report]
figures = []
html = false
"""
HEAD = '<graphml xmlns="http://graphml.graphdrawing.org/xmlns">'
WEIGHT = '<key id="w" for="edge" attr.name="weight" attr.type="double"/>'


def graphml(nodes, edges, *, kind="undirected", keys="", head=""):
    """GraphML text; an edge is (source, target) or (source, target, weight)."""
    parts = [f'<?xml version="1.0"?>{head}{HEAD}{keys}<graph edgedefault="{kind}">']
    parts += [f'<node id="{node}"/>' for node in nodes]
    for u, v, *weight in edges:
        data = "".join(f'<data key="w">{w}</data>' for w in weight)
        parts.append(f'<edge source="{u}" target="{v}">{data}</edge>')
    return "".join([*parts, "</graph></graphml>"])


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Run the command line in an empty folder; return exit code and messages."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DFL_UNLEARN_RUNS", raising=False)

    def run(*words):
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err

    return run


def refused(command, tmp_path, words, message, code=2):
    """Check a refusal as a user meets it."""
    ended, _, complaint = command(*words)
    assert re.search(message, complaint, re.DOTALL), complaint
    assert ended == code, complaint
    assert "Traceback" not in complaint
    assert "internal error" not in complaint
    assert not (tmp_path / "runs").exists()
    return complaint


# --- configuration files ----------------------------------------------------------

# Case: (old text, new text, message); the class stands first in every message.
CONFIG = {
    "unknown key": (
        "learning_rate = 0.1",
        "learning_rte = 0.1",
        r"^ConfigError: exp.toml: training\.local\.learning_rte: unknown key\. "
        r"Did you mean 'learning_rate'\?$",
    ),
    "text for an integer": (
        "rounds = 2",
        'rounds = "100"',
        r'ConfigError: exp.toml: training\.rounds: expected integer, got string "100"$',
    ),
    "true is not 1": (
        "rounds = 2",
        "rounds = true",
        r"rounds: expected integer, got true",
    ),
    "1.0 is no integer": (
        "rounds = 2",
        "rounds = 1.0",
        r"training\.rounds: expected integer, got number 1\.0",
    ),
    "delta out of range": (
        'use = "retrain"',
        'use = "newton-fisher"\ndelta = 1.5',
        r"ConfigError: .*unlearning\.0\.delta: must be .*> 0 and < 1, got 1\.5",
    ),
    "epsilon of zero": (
        'use = "retrain"',
        'use = "rr-du"\nepsilon = 0',
        r"ConfigError: .*unlearning\.0\.epsilon: must be .*> 0, got 0",
    ),
    "inf": (
        "= 0.1",
        "= inf",
        r"training\.local\.learning_rate: must be finite, got inf",
    ),
    "nan": (
        "= 0.1",
        "= nan",
        r"training\.local\.learning_rate: must be finite, got nan",
    ),
    "1e999": ("= 0.1", "= 1e999", r"learning_rate: must be finite, got inf"),
    "a huge integer": (
        "rounds = 2",
        "rounds = 1" + "0" * 4999,
        r"training\.rounds: must be .*<= 10000000, got a number with 5000 digits",
    ),
    "nesting": (
        "rounds = 2",
        "rounds = " + "[" * 100_000,
        r"ConfigError: exp\.toml: nested deeper than 32 levels$",
    ),
    "a NUL byte": (
        "rounds = 2",
        "rounds = 2 # \0",
        r"InputFileError: exp.toml: NUL byte",
    ),
    "no TOML": ("rounds = 2", "rounds 2", r"ConfigError: exp\.toml: not valid TOML: "),
    "the same key twice": ("rounds = 2", "rounds = 2\nrounds = 3", r"not valid TOML: "),
    "an object": ("rounds = 2", 'schedule = "x"', r"training\.schedule: unknown key"),
    "a table for a number": ("rounds = 2", "rounds = {}", r"got a table"),
    "a graph's nonsense": (
        'use = "ring"',
        'use = "rign"',
        r"topology\.use: 'rign' is not",
    ),
    "a peer that is not there": (
        "peer = 1",
        "peer = 4",
        r"UnknownPeerError: peer: must be in 0\.\.3, got 4",
    ),
    "a number of peers for another family": (
        'use = "ring"\nn = 4',
        'use = "hypercube"\nn = 6',
        r"InvalidArgumentError: topology\.n: must be a power of 2, got 6; near it",
    ),
    "one peer": (
        'use = "ring"\nn = 4',
        'use = "path"\nn = 1',
        r"InvalidArgumentError: topology\.n: must be an integer >= 2, got 1",
    ),
    "an unknown mixing rule": (
        "n = 4",
        'n = 4\nmixing = "x"',
        r"UnknownNameError: topology\.mixing: 'x' is not registered",
    ),
    "an option of the split": (
        "per_class = 20",
        'per_class = 20\npartition = { use = "dirichlet", alpha = -1 }',
        r"InvalidArgumentError: data\.partition\.alpha: must be .*> 0, got -1",
    ),
    "an option of the data": (
        "per_class = 20",
        "per_class = 0",
        r"InvalidArgumentError: data\.per_class: must be an integer >= 1, got 0",
    ),
    "an option of the model": (
        "[training]\n",
        '[model]\nuse = "mlp"\nhidden = [0]\n[training]\n',
        r"InvalidArgumentError: model\.hidden: must be an integer >= 1, got 0",
    ),
    "a peer without data": (
        "per_class = 20",
        "per_class = 2\n"
        'partition = { use = "dirichlet", alpha = 0.001, min_per_peer = 0 }\nseed = 3',
        r"DataError: peer \d received 0 records \(Dirichlet alpha=0\.001.*min_per_peer",
    ),
    "too many bytes of data": (
        "per_class = 20",
        "dim = 1000000000",
        r"ResourceError: gaussian-classes: .*bytes of arrays",
    ),
    "too many peers": (
        "n = 4",
        "n = 200000",
        r"ResourceError: .*at most 100000 peers, got 200000",
    ),
    "too many edges": (
        'use = "ring"\nn = 4',
        'use = "complete"\nn = 5000',
        r"ResourceError: .*at most 5000000 edges, got 12497500",
    ),
    "a model for other data": (
        "[training]\n",
        '[model]\nuse = "linear"\n[training]\n',
        r"UnsupportedModelError: linear: .*num_classes=3; use logistic",
    ),
    "a trainer that is not built": (
        "rounds = 2",
        'rounds = 2\ntrainer = { use = "none-such" }',
        r"training\.trainer\.use: 'none-such' is not registered",
    ),
    "a metric that is not built": (
        "reference = false",
        'reference = false\nmetrics = ["x"]',
        r"evaluation\.metrics: must be among .* got 'x'",
    ),
    "workers without Ray": (
        "[training]\n",
        "[execution]\nworkers = 3\n[training]\n",
        r"execution\.workers: must be 1 with engine='inline', got 3",
    ),
}


for fault, place in {
    'use = "message-loss"\np = 1.0': r"p: must be .*< 1.*nothing would ever arrive",
    'use = "message-loss"\np = -0.1': r"p: must be .*>= 0 and < 1, got -0\.1",
    'use = "markov-churn"\np_leave = 1.5\np_return = 0.3': r"p_leave: .*<= 1.*",
    'use = "markov-churn"\np_leave = 0.1\np_return = nan': r"p_return: must be finite",
    'use = "straggler"\nshare = 2\nslowdown = 3': r"share: must be .*got 2",
    'use = "meteor"': r"use: 'meteor' is not registered",
}.items():
    CONFIG[f"faults: {fault}"] = (
        "[training.local]",
        f"[[training.faults.models]]\n{fault}\n[training.local]",
        rf"ConfigError: exp\.toml: training\.faults\.models\.0\.{place}",
    )


@pytest.mark.parametrize("case", CONFIG)
def test_a_mistake_in_a_configuration_is_named(case, command, tmp_path):
    old, new, message = CONFIG[case]
    assert old in EXPERIMENT
    (tmp_path / "exp.toml").write_text(EXPERIMENT.replace(old, new, 1))
    code = 5 if "ResourceError" in message else 2
    refused(command, tmp_path, ["run", "exp.toml"], message, code)


def as_json(old, new):
    tables = '{"name": "x", "training": {"rounds": 2}}'
    assert old in tables
    return tables.replace(old, new)


JSON = {
    "a key twice": (
        as_json('"x",', '"x",\n "seed": 1,\n "seed": 2,'),
        r"ConfigError: exp\.json: duplicate key 'seed' \(line 3\)",
    ),
    "NaN": (as_json("2", "NaN"), r"training\.rounds: .*nan"),
    "1e999": (as_json("2", "1e999"), r"training\.rounds: .*inf"),
    "a huge integer": (as_json("2", "9" * 5000), r"rounds: .*number with 5000 digits"),
    "nesting": ("[" * 100_000, r"ConfigError: exp\.json: nested deeper than 32 levels"),
    "nested tables": ('{"a":' * 50 + "1" + "}" * 50, r"nested deeper than 32 levels"),
    "a list": ("[1]", r"must hold one JSON object, got \[1\]"),
    "no JSON": ("{", r"not valid JSON"),
    "half a letter": (as_json('"x"', '"\\ud800"'), r"half of a surrogate pair"),
    "null": (as_json("2", "null"), r"training\.rounds: expected integer, got null"),
}


@pytest.mark.parametrize("case", JSON)
def test_a_mistake_in_json_is_named(case, command, tmp_path):
    text, message = JSON[case]
    (tmp_path / "exp.json").write_text(text)
    refused(command, tmp_path, ["run", "exp.json"], message)


def test_all_mistakes_of_a_file_are_told_together_at_most_twenty(command, tmp_path):
    bad = "\n".join(f"key{k} = 1" for k in range(30))
    (tmp_path / "exp.toml").write_text(bad + EXPERIMENT.replace("= 0.1", "= nan"))
    told = refused(
        command, tmp_path, ["run", "exp.toml"], "ConfigError: exp.toml: key0"
    )
    lines = told.strip().splitlines()
    assert len(lines) == 21
    assert lines[-1] == "exp.toml: 11 more errors are not shown"


def test_debug_shows_where_an_error_came_from(command, tmp_path):
    (tmp_path / "exp.toml").write_text("rounds = 1")
    with pytest.raises(Exception, match="rounds: unknown key"):
        main(["run", "exp.toml", "--debug"])


# --- files that cannot be read --------------------------------------------------------


def write_latin(path):
    path.write_bytes(b"name = 'x'\n# caf\xe9\n")


def lock(path):
    path.write_text(EXPERIMENT)
    path.chmod(0)


FILES = {
    "missing": ("none.toml", None, r"InputFileError: none\.toml: no such file"),
    "a folder": (
        "d.toml",
        lambda p: p.mkdir(),
        r"InputFileError: d\.toml: is a directory",
    ),
    "below a file": ("f/x.toml", None, r"InputFileError: f/x\.toml: no such file"),
    "a pipe": ("p.toml", os.mkfifo, r"InputFileError: p\.toml: must be a regular file"),
    "Latin-1": (
        "l.toml",
        write_latin,
        r"InputFileError: l\.toml: not valid UTF-8 at byte 16",
    ),
    "over 1 MiB": (
        "big.toml",
        lambda p: p.write_text("#" * (2**20 + 1)),
        r"InputTooLargeError: big\.toml is 1 MB; limit 1 MB",
    ),
    "YAML": (
        "x.yaml",
        lambda p: p.write_text("a: 1"),
        r"UnsupportedFormatError: .*use TOML or",
    ),
    "a pickle": (
        "x.pkl",
        lambda p: p.write_text(""),
        r"UnsupportedFormatError: x\.pkl: must end",
    ),
    "an old name": (
        "x.txt",
        lambda p: p.write_text(""),
        r"must end in \.toml or \.json",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_cannot_be_read_is_named(case, command, tmp_path):
    name, make, message = FILES[case]
    (tmp_path / "f").write_text("")
    if make is not None:
        make(tmp_path / name)
    refused(command, tmp_path, ["run", name], message)


def test_a_file_without_permission_is_named(command, tmp_path, monkeypatch):
    (tmp_path / "exp.toml").write_text(EXPERIMENT)

    def forbidden(self, *_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", forbidden)
    message = r"InputFileError: exp\.toml: no permission to read it"
    refused(command, tmp_path, ["run", "exp.toml"], message)


def test_a_byte_order_mark_is_dropped(command, tmp_path):
    (tmp_path / "exp.toml").write_bytes(b"\xef\xbb\xbf" + EXPERIMENT.encode())
    code, out, _ = command("run", "exp.toml", "--dry-run")
    assert code == 0
    assert 'name = "small"' in out


# --- graph files --------------------------------------------------------------------

TRIANGLE = [("a", "b"), ("b", "c"), ("a", "c")]
GRAPHS = {
    "empty": (graphml([], []), r"TopologyError: g\.graphml: graph has no nodes"),
    "one peer": (
        graphml(["a"], []),
        r"TopologyError: g\.graphml: a network needs at least 2 peers, got 1; for one "
        r"model use Topology\.single\(\)",
    ),
    "parallel edges": (
        graphml("abc", [*TRIANGLE, ("a", "b")]),
        r"TopologyError: g\.graphml: must have no parallel edges, got a.b more",
    ),
    "directions": (
        graphml("abc", TRIANGLE, kind="directed"),
        r"TopologyError: g\.graphml: directed graph \(edge a→b has no b→a\); pass "
        r"directed=True or make_undirected=True",
    ),
    "an undeclared end": (
        graphml("abc", [*TRIANGLE, ("a", "zzz")]),
        r"TopologyError: g\.graphml: edge a.zzz: node 'zzz' is not declared",
    ),
    "disconnected": (
        graphml(range(15), [*((i, i + 1) for i in range(11)), (13, 14)]),
        r"DisconnectedGraphError: g\.graphml: .*3 components of sizes 12, 1, 2: "
        r"\{0\.\.11\}, \{12\}, \{13, 14\}",
    ),
    "a control character": (
        graphml(["a&#x85;", "b"], [("a&#x85;", "b")]),
        r"TopologyError: g\.graphml: node names must have no control characters",
    ),
    "two nodes of one name": (
        graphml(["a", "a"], []),
        r"TopologyError: g\.graphml: node 'a' is declared twice",
    ),
    "a DOCTYPE": (
        graphml("ab", [("a", "b")], head="<!DOCTYPE x>"),
        r"UnsafeFormatError: g\.graphml: document type declarations are not allowed",
    ),
    "an entity bomb": (
        graphml(
            "ab",
            [("a", "b")],
            head='<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>',
        ),
        r"UnsafeFormatError: g\.graphml: document type declarations are not allowed",
    ),
    "an instruction": (
        graphml("ab", [("a", "b")], head="<?php system('ls') ?>"),
        r"UnsafeFormatError: g\.graphml: processing instructions are not allowed",
    ),
    "levels": (
        HEAD + "<graph>" + "<x>" * 40,
        r"InputTooLargeError: g\.graphml: must have at most .* 32 levels",
    ),
    "no XML": ("hello", r"InputFileError: g\.graphml: must be well-formed XML"),
}
GRAPHS |= {
    f"a weight of {weight}": (
        graphml("abc", [*TRIANGLE[:2], ("a", "c", weight)], keys=WEIGHT),
        rf"TopologyError: g\.graphml: edge a.c: weight must be positive and finite, "
        rf"got {shown}",
    )
    for weight, shown in [
        ("nan", "nan"),
        ("inf", "inf"),
        ("-1", "-1"),
        ("0", "0"),
        ("heavy", "'heavy'"),
    ]
}
ON_GRAPH = EXPERIMENT.replace('use = "ring"\nn = 4', 'use = "g.graphml"')


@pytest.mark.parametrize("case", GRAPHS)
def test_a_mistake_in_a_graph_file_is_named(case, command, tmp_path):
    text, message = GRAPHS[case]
    (tmp_path / "g.graphml").write_text(text)
    (tmp_path / "exp.toml").write_text(ON_GRAPH)
    refused(command, tmp_path, ["run", "exp.toml"], message)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("g.gml", "graph [ node [ id 0 ] ]", r"needs at least 2 peers, got 1"),
        ("g.gml", "graph " + "[" * 40, r"InputTooLargeError: .*32 levels"),
        ("g.edges", "a b\nb\n", r"TopologyError: g\.edges: line 2: must be 'u v'"),
        ("g.edges", "a b {'x':1}", r"weight must be positive and finite, got \"\{'x'"),
        ("g.txt", "a b nan", r"weight must be positive and finite, got nan"),
        ("g.gpickle", "x", r"UnsafeFormatError: g\.gpickle: .*can run code"),
        ("g.pt", "x", r"UnsafeFormatError: g\.pt: .*can run code"),
        ("g.yaml", "a: b", r"UnsupportedFormatError: g\.yaml"),
        ("g.gexf", "x", r"UnsupportedFormatError: g\.gexf"),
    ],
)
def test_other_graph_files_are_refused_with_a_reason(
    name, text, message, command, tmp_path
):
    (tmp_path / name).write_text(text)
    (tmp_path / "exp.toml").write_text(ON_GRAPH.replace("g.graphml", name))
    refused(command, tmp_path, ["run", "exp.toml"], message)


@pytest.mark.filterwarnings("default")
def test_self_loops_are_dropped_aloud_or_refused(command, tmp_path):
    (tmp_path / "g.graphml").write_text(graphml("abc", [*TRIANGLE, ("a", "a")]))
    (tmp_path / "exp.toml").write_text(ON_GRAPH)
    code, _, complaint = command("run", "exp.toml", "--dry-run")
    assert code == 0
    assert "warning: g.graphml: dropped 1 self-loop;" in complaint
    refused(
        command,
        tmp_path,
        ["run", "exp.toml", "topology.strict=true"],
        r"TopologyError: g\.graphml: must have no self-loops, got 1",
    )


def test_a_large_graph_file_needs_permission(command, tmp_path):
    padding = f"<!--{'x' * 2**20}-->"
    text = graphml("abc", TRIANGLE).replace("</graphml>", f"{padding}</graphml>")
    (tmp_path / "g.graphml").write_text(text)
    (tmp_path / "exp.toml").write_text(ON_GRAPH)
    refused(
        command,
        tmp_path,
        ["run", "exp.toml", "--max-graph-mb", 1],
        r"InputTooLargeError: g\.graphml is 1 MB; limit 1 MB \(raise with --max-graph",
    )
    for limit in ([], ["--max-graph-mb", 2]):
        code, _, complaint = command("run", "exp.toml", "--dry-run", *limit)
        assert code == 0, complaint


# --- size of the whole ----------------------------------------------------------------


def test_memory_is_estimated_before_training(command, tmp_path, monkeypatch):
    (tmp_path / "exp.toml").write_text(EXPERIMENT)
    room = SimpleNamespace(available=2000, total=2000)
    monkeypatch.setattr("psutil.virtual_memory", lambda: room)
    message = r"ResourceError: 4 peers x 33 parameters need .*available"
    refused(command, tmp_path, ["run", "exp.toml"], message, 5)
    code, _, complaint = command("run", "exp.toml", "--allow-large", "--quiet")
    assert code == 0, complaint


def test_memory_that_the_system_refuses_is_no_bug(command, tmp_path, monkeypatch):
    (tmp_path / "exp.toml").write_text(EXPERIMENT)

    def full(*_, **__):
        raise MemoryError("Unable to allocate 745. GiB")

    monkeypatch.setattr("dfl_unlearn.experiment.build_parts", full)
    message = r"ResourceError: out of memory \(Unable to allocate 745\. GiB\)"
    refused(command, tmp_path, ["run", "exp.toml"], message, 5)


def test_faults_of_peers_that_are_not_there_are_refused(command, tmp_path):
    fault = '{ use = "network-split", start = 0, end = 5, peers = [99] }'
    (tmp_path / "exp.toml").write_text(EXPERIMENT)
    words = ["run", "exp.toml", f"training.faults.models=[{fault}]"]
    message = r"UnknownPeerError: faults\.models\.0: must name peers in 0\.\.3, got 99"
    refused(command, tmp_path, words, message)


# --- data -----------------------------------------------------------------------------


DATA = {
    "NaN": (
        {"inputs": np.where(np.arange(80).reshape(20, 4) == 51, np.nan, 0.0)},
        r"DataError: peer \d, record \d+: feature 3 is NaN",
    ),
    "inf": (
        {"inputs": np.where(np.arange(80).reshape(20, 4) == 52, np.inf, 0.0)},
        r"DataError: peer \d, record \d+: feature 0 is inf",
    ),
    "a negative label": (
        {"labels": np.where(np.arange(20) == 7, -1, 0)},
        r"DataError: (peer \d|test), record \d+: label must be in 0\.\.1, got -1",
    ),
    "objects": (
        {"labels": np.array([{}] * 20, dtype=object)},
        r"UnsafeFormatError: mine\.npz: labels holds Python objects",
    ),
    "half floats": (
        {"inputs": np.zeros((20, 4), np.float16)},
        r"UnsupportedFormatError: mine\.npz: inputs must be one of float32",
    ),
}


@pytest.mark.parametrize("case", DATA)
def test_a_mistake_in_data_is_named(case, command, tmp_path):
    changes, message = DATA[case]
    good = {"inputs": np.zeros((20, 4)), "labels": np.arange(20) % 2}
    np.savez(tmp_path / "mine.npz", **(good | changes))
    text = EXPERIMENT.replace(
        'use = "gaussian-classes"\nper_class = 20', 'use = "arrays"\nfile = "mine.npz"'
    )
    (tmp_path / "exp.toml").write_text(text)
    refused(command, tmp_path, ["run", "exp.toml"], message)


def test_a_run_goes_on_with_its_own_data_only(command, tmp_path):
    inputs = np.arange(80.0).reshape(20, 4) / 80
    np.savez(tmp_path / "mine.npz", inputs=inputs, labels=np.arange(20) % 2)
    text = EXPERIMENT.split("[[forget]]")[0].replace(
        'use = "gaussian-classes"\nper_class = 20', 'use = "arrays"\nfile = "mine.npz"'
    )
    (tmp_path / "exp.toml").write_text(text)
    assert command("run", "exp.toml", "--no-report", "--quiet")[0] == 0
    np.savez(tmp_path / "mine.npz", inputs=inputs + 1, labels=np.arange(20) % 2)
    code, _, complaint = command("resume", "small", "--rounds", 4)
    assert re.search(
        r"(DataMismatch|StoreCorrupt)Error: .*data must have the finger.*"
        r", got \w{16}\.\.\.; the data set's files or your arrays differ",
        complaint,
    ), complaint
    assert code in (2, 6)


# --- names and words of the command line ------------------------------


@pytest.mark.parametrize(
    "name", ["../x", "/etc", "a/b", "con", "", "x" * 300, ".", "..", ".x", "a b", "a\n"]
)
def test_a_bad_run_name_is_refused_everywhere(name, command, tmp_path):
    (tmp_path / "exp.toml").write_text(EXPERIMENT)
    (tmp_path / "named.toml").write_text(
        EXPERIMENT.replace('"small"', json.dumps(name))
    )
    message = (
        r"ConfigError: .*run name: must match \[A-Za-z0-9\]\[A-Za-z0-9\._-\]\{0,63\}"
    )
    for words in (
        ["run", "exp.toml", f"--name={name}"],
        ["run", "named.toml"],
        ["demo", f"--name={name}"],
    ):
        told = refused(command, tmp_path, words, message)
        assert len(told) < 500
    assert sorted(os.listdir(tmp_path)) == ["exp.toml", "named.toml"]


WORDS = {
    "an override without a value": (
        ["x"],
        r"ConfigError: 'x': must look like key=value",
    ),
    "an override of nothing": (["=3"], r"ConfigError: '=3': must look like key=value"),
    "an override into a value": (
        ["seed.x=1"],
        r"ConfigError: seed\.x: must lead to a table before 'x'|seed",
    ),
    "an override of a list that is not there": (
        ["report.3.x=1"],
        r"ConfigError: report\.3\.x: must lead to an entry of a list at '3', got",
    ),
    "an index that is no number": (
        ["forget.\u00b2.peer=1"],
        r"forget\.\u00b2\.peer: must be an index below 1",
    ),
    "an index of 5000 digits": (
        [f"forget.{'9' * 5000}.peer=1"],
        r"must be an index below 1",
    ),
    "an override beyond a list": (
        ["forget.7.peer=1"],
        r"ConfigError: forget\.7\.peer: must be an index below 1 at '7'",
    ),
    "an unknown engine": (
        ["--engine", "gpu"],
        r"engine: must be one of inline, ray, auto",
    ),
    "no workers": (["--workers", "0"], r"workers: must be an integer >= 1"),
    "an unknown option": (["--nope"], r"No such option"),
    "no number": (["--workers", "many"], r"is not a valid integer"),
    "escape sequences": (
        ["seed=\x1b[2J"],
        r"InvalidArgumentError: argument: must have no control characters, got "
        r"'seed=\\x1b\[2J'",
    ),
}


@pytest.mark.parametrize("case", WORDS)
def test_a_mistake_on_the_command_line_is_named(case, command, tmp_path):
    (tmp_path / "exp.toml").write_text(EXPERIMENT)
    words, message = WORDS[case]
    refused(command, tmp_path, ["run", "exp.toml", *words], message)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["unlearn", "none", "--peer=1", "--all"],
            r"InputFileError: runs/none: must be a run",
        ),
        (["report", "none"], r"InputFileError: runs/none: must be a run folder"),
        (["audit", "none"], r"InputFileError: runs/none: must be a run folder"),
        (["audit", "none.toml"], r"InputFileError: none\.toml: no such file"),
        (["ledger", "../.."], r"InputFileError: .*must be a run folder"),
        (["list", "none"], r"InvalidArgumentError: KIND: must be one of .* got 'none'"),
        (["nonsense"], r"No such command"),
        (
            ["list", "\x1b]0;title\x07"],
            r"no control characters, got '\\x1b\]0;title\\x07'",
        ),
        (["list", "x\udc80"], r"KIND: must be one of .* got 'x\\udc80'"),
    ],
)
def test_commands_without_a_run_say_what_is_missing(words, message, command, tmp_path):
    told = refused(command, tmp_path, words, message)
    assert not set(told) & {chr(c) for c in range(32) if chr(c) != "\n"}


def test_every_other_control_character_is_refused():
    from dfl_unlearn.cli import _refuse_controls
    from dfl_unlearn.errors import InvalidArgumentError

    _refuse_controls(["training.rounds=5", "reason='ä → 東京 🙂'", "a\tb\nc", "\udcff"])
    for code in (*range(9), *range(11, 32), *range(127, 160)):
        with pytest.raises(InvalidArgumentError):
            _refuse_controls(["good", f"bad{chr(code)}"])


# --- a finished run and its requests ------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run of four peers on a star, data of 15 rows each."""
    root = tmp_path_factory.mktemp("finished")
    text = EXPERIMENT.split("[[forget]]")[0].replace('"ring"', '"star"')
    (root / "exp.toml").write_text(text)
    with pytest.raises(SystemExit):
        main(
            [
                "run",
                str(root / "exp.toml"),
                "--runs",
                str(root),
                "--no-report",
                "--quiet",
            ]
        )
    return root / "small"


HUB = ["--peer=0", "--fraction=0.2", "--protocol=rr-du"]
REQUESTS = {
    "out of range": (
        ["--peer=2", "--indices=5021"],
        r"InvalidForgetSetError: index 5021 out of range for peer 2 \(has 15 records\)",
    ),
    "negative": (
        ["--peer=2", "--indices=-1"],
        r"InvalidForgetSetError: index -1 out of",
    ),
    "twice": (
        ["--peer=2", "--indices=3,3"],
        r"InvalidForgetSetError: indices: must be unique, got 3 twice for peer 2",
    ),
    "a fraction as index": (
        ["--peer=2", "--indices=1.5"],
        r"InvalidArgumentError: --indices: must be integers with commas .* got '1\.5'",
    ),
    "a huge index": (
        ["--peer=2", f"--indices={'9' * 5000}"],
        r"InvalidArgumentError: --indices: must be integers .*9\.\.\.$",
    ),
    "no index": (["--peer=2", "--indices="], r"--indices: must be integers"),
    "all by number": (
        ["--peer=2", f"--indices={','.join(map(str, range(15)))}"],
        r"InvalidForgetSetError: .*peer",
    ),
    "an unknown peer": (
        ["--peer=9", "--all"],
        r"UnknownPeerError: peer: .* 0\.\.3, got 9",
    ),
    "an unknown class": (
        ["--class=7"],
        r"InvalidForgetSetError: class_id: .* 0\.\.2, got 7",
    ),
    "a share of nothing": (
        ["--peer=2", "--fraction=0"],
        r"fraction: must be .*> 0 and <= 1",
    ),
    "a share of nan": (["--peer=2", "--fraction=nan"], r"fraction: must be .*got nan"),
    "nothing": ([], r"MissingInputError: request: say what to forget"),
    "two things": (["--class=1", "--peer=1", "--all"], r"cannot be combined; give one"),
    "an unknown protocol": (
        ["--class=1", "--protocol=x"],
        r"UnknownNameError: .*'x' is not registered; .*newton-fisher",
    ),
    "a protocol's unknown field": (
        ["--class=1", "epslon=1"],
        r"ConfigError: newton-fisher: epslon: unknown key\. Did you mean 'epsilon'",
    ),
    "epsilon below 0": (
        ["--class=1", "epsilon=-1"],
        r"ConfigError: .*epsilon: .*got -1",
    ),
    "epsilon of inf": (
        ["--class=1", "epsilon=inf"],
        r"epsilon: must be finite, got inf",
    ),
    "delta of 1": (["--class=1", "delta=1.0"], r"delta: must be .*< 1, got 1"),
    "a walk that must avoid the hub": (
        HUB,
        r"TopologyError: avoid: every other peer must have a neighbour besides peer 0, "
        r"got peer 1 with none; allow visits of peer 0 \(natural_visit='relay'",
    ),
}


@pytest.mark.parametrize("case", REQUESTS)
def test_a_request_that_cannot_be_is_refused_and_leaves_nothing(
    case, command, finished
):
    before = sorted(finished.rglob("*"))
    words, message = REQUESTS[case]
    ended, _, complaint = command("unlearn", finished, "--no-reference", *words)
    assert re.search(message, complaint, re.DOTALL), complaint
    assert ended == 2
    assert sorted(finished.rglob("*")) == before


def test_the_walk_passes_the_hub_where_it_may(command, finished):
    words = [
        *HUB,
        "natural_visit=relay",
        "delta0=assumed",
        "residual_cap=1.0",
        "hops=20",
    ]
    ended, _, complaint = command("unlearn", finished, "--no-reference", *words)
    assert ended in (0, 4), complaint
    assert "TopologyError" not in complaint


def test_diverged_training_names_peer_round_and_loss(command, tmp_path):
    text = EXPERIMENT.replace("= 0.1", "= 1e30").replace("rounds = 2", "rounds = 9")
    (tmp_path / "exp.toml").write_text(text)
    code, _, complaint = command("run", "exp.toml", "--quiet")
    assert code == 2
    assert re.search(
        r"NumericalError: peer \d became non-finite in round \d+ \(loss .*, gradient "
        r"norm .*\); lower learning_rate or set clip_norm",
        complaint,
    ), complaint


def test_a_directed_network_is_refused_where_edges_must_go_both_ways():
    from dfl_unlearn import load_topology
    from dfl_unlearn.topology.walks import walk_matrix

    directed = load_topology("exponential", n=8)
    with pytest.raises(TopologyError, match="must be undirected for a token walk"):
        walk_matrix(directed, "uniform")
