import os
import string
from itertools import pairwise

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dfl_unlearn
from dfl_unlearn.errors import (
    ConfigError,
    DisconnectedGraphError,
    InputFileError,
    InputTooLargeError,
    InvalidArgumentError,
    InvalidTypeError,
    ResourceError,
    StoreWriteError,
    TopologyError,
    UnknownNameError,
    UnsafeFormatError,
    UnsupportedFormatError,
)
from dfl_unlearn.topology import _graph_file, _simple
from dfl_unlearn.topology.files import (
    graph_names,
    load_topology,
    preset_names,
    save_graph,
)
from dfl_unlearn.topology.generators import topologies
from dfl_unlearn.topology.graph import Topology

HEAD = """<?xml version="1.0" encoding="UTF-8"?>
<graphml xmlns="http://graphml.graphdrawing.org/xmlns">
<key id="w" for="edge" attr.name="weight" attr.type="{kind}"/>
<graph edgedefault="{default}">
"""


def graphml(nodes, edges, default="undirected", kind="double"):
    lines = [f'<node id="{node}"/>' for node in nodes]
    for u, v, *weight in edges:
        data = f'<data key="w">{weight[0]}</data>' if weight else ""
        lines.append(f'<edge source="{u}" target="{v}">{data}</edge>')
    body = "\n".join(lines)
    return HEAD.format(kind=kind, default=default) + body + "\n</graph></graphml>\n"


@pytest.fixture
def write(tmp_path):
    def write(text, name="g.graphml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


# --- names ---


def test_every_family_but_the_single_peer_has_a_preset():
    shipped = {n for n in topologies if topologies.get(n).__module__.startswith("dfl")}
    assert set(preset_names()) == shipped - {"single"}


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_and_takes_another_size(name):
    preset = load_topology(name)
    assert preset.name == name
    assert preset.slem < 1
    assert load_topology(name, n=64).n == 64


@pytest.mark.parametrize("name", graph_names())
def test_every_pinned_graph_has_the_size_in_its_name(name):
    topology = load_topology(name)
    assert str(topology.n) in name.split("-")
    assert topology.name == name
    assert load_topology(name, n=topology.n).fingerprint() == topology.fingerprint()


def test_the_pinned_draw_is_still_what_its_seed_gives():
    drawn = load_topology("erdos-renyi", n=64, seed=0)
    assert load_topology("erdos-renyi-64-s0").fingerprint() == drawn.fingerprint()


def test_the_pinned_karate_club_is_zacharys():
    karate = load_topology("karate-34")
    assert nx.utils.edges_equal(karate.graph.edges, nx.karate_club_graph().edges)
    assert karate.graph.nodes[33]["club"] == "Officer"
    assert karate.graph.edges[0, 1]["weight"] == 4


def test_bundled_graphs_name_no_path_of_a_machine():
    from dfl_unlearn.topology.files import _bundled

    for path in _bundled().values():
        text = path.read_text()
        assert "/work" not in text
        assert "/home" not in text
        assert "/tmp" not in text


def test_the_exponential_preset_mixes_by_uniform_weights():
    topology = load_topology("exponential", n=8)
    assert topology.directed
    assert topology.weights[1, 0] == pytest.approx(1 / 4)
    with pytest.raises(TopologyError, match="use mixing='uniform'"):
        load_topology("exponential", n=8, mixing="metropolis-hastings")


def test_the_mixing_rule_can_be_chosen():
    lazy = load_topology("ring", n=6, mixing="lazy")
    assert lazy.weights[0, 0] == pytest.approx(2 / 3)
    assert load_topology("single").fingerprint() == Topology.single().fingerprint()


def test_the_package_offers_the_loader_itself():
    assert dfl_unlearn.load_topology("ring", n=5).n == 5


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: load_topology("rign"),
            UnknownNameError,
            "'rign'.*did you mean 'ring'",
        ),
        (lambda: load_topology("ring", N=8), InvalidArgumentError, "unknown field 'N'"),
        (lambda: load_topology("ring", n="8"), InvalidTypeError, "got '8'"),
        (lambda: load_topology("ring", mixing="lasy"), UnknownNameError, "'lazy'"),
        (lambda: load_topology(3), InvalidTypeError, "name_or_path: .* got int 3"),
        (lambda: load_topology("karate-34", n=8), TopologyError, "n: .* 34, got 8"),
        (
            lambda: load_topology("karate-34", direct=True),
            InvalidArgumentError,
            "direct: unknown .*did you mean 'directed'",
        ),
        (
            lambda: load_topology("karate-34", strict="no"),
            InvalidTypeError,
            "strict: .* 'no'",
        ),
        (
            lambda: load_topology("karate-34", directed=True, make_undirected=True),
            InvalidArgumentError,
            "choose one",
        ),
    ],
)
def test_wrong_names_and_parameters_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


# --- presets ---


def test_a_preset_of_ones_own_is_a_file(write):
    path = write(
        'generator = "torus"\nmixing = "lazy"\n[parameters]\nn = 12\nrows = 3\n',
        "mine.toml",
    )
    topology = load_topology(path)
    assert (topology.name, topology.n) == ("mine", 12)
    assert topology.weights[0, 0] == pytest.approx(0.6)
    assert load_topology(str(path), n=15, mixing="uniform").n == 15


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('generator = "ring"\nmixin = "lazy"\n', r"p\.toml: mixin: .*'mixing'"),
        ("generator = 3\n", "generator: expected .* got integer 3"),
        ("", "generator: is missing"),
        ('generator = "rign"\n', "'ring'"),
        ('generator = "ring"\nmixing = "metropolis"\n', "'metropolis'"),
        ('generator = "erdos-renyi"\n[parameters]\np = nan\n', "p: must be finite"),
        ("generator = \n", "not valid TOML"),
        ("a = " + "[" * 40 + "]" * 40, "nested deeper than 32"),
    ],
)
def test_a_bad_preset_is_refused_with_its_key(write, text, message):
    with pytest.raises(ConfigError, match=message):
        load_topology(write(text, "p.toml"))


# --- round trips ---


@settings(deadline=None, max_examples=40)
@given(
    data=st.data(),
    n=st.integers(2, 14),
    extra=st.lists(st.tuples(st.integers(0, 13), st.integers(0, 13)), max_size=15),
)
def test_a_saved_graph_comes_back_the_same(tmp_path_factory, data, n, extra):
    alphabet = string.ascii_letters + string.digits + " =+@-$_^<>&'\"äß網"
    graph = nx.path_graph(n)
    graph.add_edges_from((i % n, j % n) for i, j in extra if i % n != j % n)
    for u, v in graph.edges:
        graph.edges[u, v]["latency_ms"] = data.draw(st.floats(0.001, 1e6))
    labels = tuple(data.draw(st.text(alphabet, min_size=1)) for _ in range(n))
    topology = Topology.from_graph(graph, labels=labels)
    path = tmp_path_factory.mktemp("graphs") / "g.graphml"
    save_graph(topology, path)
    back = load_topology(path)
    assert back.fingerprint() == topology.fingerprint()
    assert back.labels == labels
    for u, v in topology.edges.tolist():
        assert back.graph.edges[u, v]["latency_ms"] == graph.edges[u, v]["latency_ms"]


def test_a_saved_directed_graph_comes_back_directed(tmp_path):
    topology = load_topology("exponential", n=12)
    save_graph(topology, tmp_path / "e.graphml")
    back = load_topology(tmp_path / "e.graphml", directed=True, mixing="uniform")
    assert back.fingerprint() == topology.fingerprint()


def test_writing_replaces_the_file_whole_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "g.graphml"
    save_graph(load_topology("ring", n=5), path)
    save_graph(load_topology("ring", n=9), path)
    assert load_topology(path).n == 9
    assert os.listdir(tmp_path) == ["g.graphml"]


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "g.graphml"
    save_graph(load_topology("ring", n=5), path)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dfl_unlearn.topology.files.os.fsync", full)
    with pytest.raises(StoreWriteError, match="No space left"):
        save_graph(load_topology("ring", n=9), path)
    assert load_topology(path).n == 5
    assert os.listdir(tmp_path) == ["g.graphml"]


def test_what_cannot_be_saved_says_why(tmp_path):
    with pytest.raises(UnsupportedFormatError, match=r"\.graphml, got '\.gml'"):
        save_graph(load_topology("ring"), tmp_path / "g.gml")
    with pytest.raises(StoreWriteError, match="No such file"):
        save_graph(load_topology("ring"), tmp_path / "absent" / "g.graphml")
    graph = nx.Graph([(0, 1, {"route": ("a", "b")})])
    with pytest.raises(TopologyError, match="texts, numbers or booleans"):
        save_graph(Topology.from_graph(graph), tmp_path / "g.graphml")


# --- formats ---


def test_ids_that_are_numbers_are_sorted_as_numbers(write):
    ids = [10, 9, 2, "b", "01"]
    edges = list(pairwise(ids))
    topology = load_topology(write(graphml(ids, edges)))
    assert topology.labels == ("2", "9", "10", "01", "b")
    assert topology.edges.tolist() == [[0, 1], [0, 4], [1, 2], [3, 4]]


def test_all_formats_give_the_same_network(write):
    edges = [(0, 1, 2.5), (1, 2, 1.0), (2, 0, 0.5), (2, 3, 7.0)]
    xml = write(graphml(range(4), edges))
    text = write("# ring\n0 1 2.5\n1 2 1\n\n2 0 .5 # end\n2 3 7\n", "g.edges")
    gml = write("\n".join(nx.generate_gml(load_topology(xml).graph)), "g.gml")
    loaded = [load_topology(path) for path in (xml, text, gml)]
    assert len({t.fingerprint() for t in loaded}) == 1
    assert {t.graph.edges[2, 3]["weight"] for t in loaded} == {7.0}


def test_labels_of_a_gml_file_are_kept(write):
    path = write(
        'graph [ node [ id 7 label "seven" ] node [ id 3 label "three" ]'
        " edge [ source 3 target 7 ] ]",
        "g.gml",
    )
    assert load_topology(path).labels == ("three", "seven")


def test_long_and_formula_like_names_are_kept(write):
    names = ["=1+2", "@x", "-dash", "n" * 300]
    path = write(graphml(names, pairwise(names)))
    assert set(load_topology(path).labels) == set(names)


def test_a_byte_order_mark_is_dropped(write):
    path = write(b"\xef\xbb\xbf" + b"0 1\n", "g.txt")
    assert load_topology(path).n == 2


def test_a_directed_file_with_every_reverse_is_undirected(write):
    both = graphml("ab", [("a", "b", 2), ("b", "a", 2)], default="directed")
    assert not load_topology(write(both)).directed


def test_directions_are_dropped_or_kept_when_asked(write):
    path = write(graphml("abc", ["ab", "bc", "ca"], default="directed"))
    assert load_topology(path, make_undirected=True).edges.shape == (3, 2)
    kept = load_topology(path, directed=True, mixing="uniform")
    assert kept.edges.tolist() == [[0, 1], [1, 2], [2, 0]]
    arcs = write("0 1\n1 0\n1 2\n2 1\n", "g.edges")
    assert len(load_topology(arcs, make_undirected=True).edges) == 2


# --- bad graphs: the rows of robustness.md §6 ---


def test_self_loops_are_dropped_with_a_warning_or_refused(write):
    path = write(graphml("ab", ["ab", "aa", "bb"]))
    with pytest.warns(UserWarning, match=r"g\.graphml: dropped 2 self-loops"):
        assert len(load_topology(path).edges) == 1
    with pytest.raises(TopologyError, match=r"g\.graphml: .*no self-loops, got 2"):
        load_topology(path, strict=True)


GML = "graph [ node [ id 0 ] node [ id 1 ] edge [ source 0 target {} {} ] ]"
PIECES = [f"{i} {i + 1}" for i in range(11)] + ["12 13"]
ISLANDS = graphml(range(15), [(i, i + 1) for i in range(11)] + [(13, 14)])

BAD_GRAPHS = {
    "empty": ("g.graphml", graphml("", []), "graph has no nodes"),
    "empty edge list": ("g.txt", "# nothing\n", "graph has no nodes"),
    "one": ("g.graphml", graphml("a", []), r"at least 2 peers.*Topology\.single\(\)"),
    "parallel": ("g.graphml", graphml("ab", ["ab", "ba"]), "parallel edges, got a.b"),
    "parallel edge list": ("g.txt", "0 1\n1 0\n", "parallel edges, got 1.0"),
    "parallel gml": (
        "g.gml",
        "graph [ multigraph 1 node [ id 0 ] node [ id 1 ] edge [ source 0 target 1 ]"
        " edge [ source 1 target 0 ] ]",
        "parallel edges, got 0.1",
    ),
    "directed": (
        "g.graphml",
        graphml("abc", ["ab", "bc", "ca"], default="directed"),
        r"directed graph \(edge a→b has no b→a\); pass directed=True or make_und",
    ),
    "unequal": (
        "g.graphml",
        graphml("ab", [("a", "b", 1), ("b", "a", 2)], default="directed"),
        r"edge a.b: weight must be the same in both directions, got 1\.0 and 2\.0",
    ),
    "undeclared": (
        "g.graphml",
        graphml("ab", [("a", "b"), ("a", "zzz")]),
        "edge a.zzz: node 'zzz' is not declared",
    ),
    "undeclared gml": ("g.gml", GML.format(9, ""), "edge #0: node '9' is not declared"),
    "twice": ("g.graphml", graphml("aab", ["ab"]), "node 'a' is declared twice"),
    "two graphs": (
        "g.graphml",
        graphml("ab", ["ab"]).replace("</graph>", '</graph><graph id="2"></graph>'),
        "one graph, got 2",
    ),
    "nan gml": ("g.gml", GML.format(1, 'weight "NAN"'), "positive and finite, got"),
    "zero gml": ("g.gml", GML.format(1, "weight 0"), "positive and finite, got 0"),
    "nan edge list": ("g.txt", "0 1 nan\n", "edge 0.1: weight must be .* got nan"),
    "text edge list": ("g.txt", "0 1 far\n", "edge 0.1: weight must be .* got 'far'"),
    "words": ("g.txt", "0 1\n0 1 2 3\n", "line 2: must be 'u v'.* got '0 1 2 3'"),
    "control": ("g.txt", "a\x1b[31m b\n", "control characters, got 'a.x1b"),
    "direction": ("g.txt", "a\u202e b\n", "control characters, got 'a.u202e"),
    "isolated": (
        "g.graphml",
        ISLANDS,
        r"3 components of sizes 12, 1, 2: \{0\.\.11\}, \{12\}, \{13, 14\}",
    ),
    "pieces": ("g.edges", "\n".join(PIECES), r"2 components of sizes 12, 2: \{0\.\.11"),
}


@pytest.mark.parametrize("case", BAD_GRAPHS)
def test_a_graph_that_cannot_serve_is_refused_by_file_and_reason(write, case):
    name, text, message = BAD_GRAPHS[case]
    kind = DisconnectedGraphError if "components" in message else TopologyError
    with pytest.raises(kind, match=f"{name}: .*{message}") as caught:
        load_topology(write(text, name))
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("weight", "kind", "shown"),
    [
        ("NaN", "double", "nan"),
        ("-1", "double", "-1"),
        ("0", "int", "0"),
        ("inf", "double", "inf"),
        ("1e999", "double", "inf"),
        ("heavy", "string", "'heavy'"),
        ("heavy", "double", "'heavy'"),
        ("", "double", "''"),
    ],
)
def test_a_weight_must_be_positive_and_finite(write, weight, kind, shown):
    path = write(graphml("ab", [("a", "b", weight)], kind=kind))
    with pytest.raises(
        TopologyError,
        match=f"edge a.b: weight must be positive and finite, got {shown}",
    ):
        load_topology(path)


def test_limits_of_peers_and_edges_are_checked_before_the_graph_is_built(
    write, monkeypatch
):
    many = "\n".join(f'<node id="{i}"/>' for i in range(100_001))
    text = (
        HEAD.format(kind="double", default="undirected") + many + "</graph></graphml>"
    )
    with pytest.raises(ResourceError, match="at most 100000 peers, got 100001"):
        load_topology(write(text))
    monkeypatch.setattr(_simple, "EDGES", _simple.EDGES._replace(most=3))
    for name, ring in (
        ("g.graphml", graphml("abcd", ["ab", "bc", "cd", "da"])),
        ("g.txt", "a b\nb c\nc d\nd a\n"),
        ("g.gml", "graph [" + " edge [ source 0 target 1 ]" * 4 + "]"),
    ):
        with pytest.raises(ResourceError, match=rf"{name}: .* 3 edges, got 4"):
            load_topology(write(ring, name))


# --- bad files ---


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("<!DOCTYPE graphml>", "document type declarations are not allowed"),
        (
            '<!DOCTYPE g [<!ENTITY a "x"><!ENTITY b "&a;&a;">]>',
            "document type declarations are not allowed",
        ),
        ('<!DOCTYPE g SYSTEM "file:///etc/passwd">', "document type declarations"),
        ('<?php echo "x"?>', "processing instructions are not allowed"),
    ],
)
def test_xml_that_can_expand_or_reach_outside_is_refused(write, body, message):
    text = graphml("ab", ["ab"]).replace("?>\n", f"?>\n{body}\n", 1)
    with pytest.raises(UnsafeFormatError, match=rf"g\.graphml: {message}"):
        load_topology(write(text))


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("g.gpickle", UnsafeFormatError, "got .gpickle, which can run code"),
        ("g.pkl", UnsafeFormatError, "which can run code"),
        ("g.npz", UnsafeFormatError, "which can run code"),
        ("g.yaml", UnsupportedFormatError, "use TOML or JSON"),
        ("g.yml", UnsupportedFormatError, "use TOML or JSON"),
        ("g.gexf", UnsupportedFormatError, "got '.gexf'; save the graph as GraphML"),
        ("g.net", UnsupportedFormatError, "got '.net'"),
    ],
)
def test_formats_that_are_not_read_are_refused_by_name(write, name, error, message):
    with pytest.raises(error, match=message):
        load_topology(write("", name))


def test_files_that_cannot_be_opened_are_named(tmp_path, write):
    with pytest.raises(InputFileError, match=r"absent\.graphml: no such file"):
        load_topology(tmp_path / "absent.graphml")
    with pytest.raises(InputFileError, match=r"no\.toml: no such file"):
        load_topology("no.toml")
    (tmp_path / "d.gml").mkdir()
    with pytest.raises(InputFileError, match=r"d\.gml: is a directory"):
        load_topology(tmp_path / "d.gml")
    os.mkfifo(tmp_path / "pipe.gml")
    with pytest.raises(InputFileError, match="regular file"):
        load_topology(tmp_path / "pipe.gml")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_named(write):
    path = write("0 1\n", "g.txt")
    path.chmod(0)
    with pytest.raises(InputFileError, match="no permission"):
        load_topology(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"0 1\n0 \xff\n", "not valid UTF-8 at byte 6"),
        (b"\xef\xbb\xbf0 \xff\n", "not valid UTF-8 at byte 5"),
        (b"0 1\x00\n", "NUL byte at byte 3"),
    ],
)
def test_text_that_is_not_utf8_is_refused_with_its_place(write, data, message):
    with pytest.raises(InputFileError, match=message):
        load_topology(write(data, "g.txt"))


def test_a_file_above_the_limit_says_how_to_raise_it(write):
    path = write(graphml(range(40), [(i, i + 1) for i in range(39)]))
    with pytest.raises(
        InputTooLargeError, match=r"MB; limit 0\.000977 MB \(raise with --max-graph"
    ):
        load_topology(path, max_bytes=1024)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("g.graphml", "<graphml>" + "<desc>" * 40 + "</desc>" * 40),
        ("g.gml", "graph [ " + "a [ " * 40 + "] " * 40 + "]"),
    ],
)
def test_deep_nesting_is_refused(write, name, text):
    with pytest.raises(InputTooLargeError, match="32 levels"):
        load_topology(write(text, name))


def test_too_many_elements_are_refused(write, monkeypatch):
    monkeypatch.setattr(_graph_file, "MAX_ELEMENTS", 5)
    with pytest.raises(InputTooLargeError, match="at most 5 elements"):
        load_topology(write(graphml("abcd", [])))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("g.graphml", "<graphml><graph>", "well-formed XML"),
        ("g.graphml", "hello", "well-formed XML"),
        ("g.graphml", graphml("ab", []).replace("id", "&foo;id", 1), "well-formed XML"),
        ("g.gml", "graph [ node [", "cannot be read as GML"),
        ("g.gml", "hello", "cannot be read as GML"),
        (
            "g.graphml",
            graphml("ab", ["ab"]).replace("<edge ", '<edge directed="true" '),
            "cannot be read as GraphML",
        ),
    ],
)
def test_malformed_files_are_refused_with_the_reason(write, name, text, message):
    with pytest.raises(InputFileError, match=rf"{name}: .*{message}"):
        load_topology(write(text, name))
