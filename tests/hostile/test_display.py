"""Names from others reach terminals, pages, pictures and tables as plain text."""

import csv
import io
import logging
import re

import matplotlib.text
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.cbook import is_math_text
from matplotlib.figure import Figure

from dfl_unlearn import _validate, load_topology
from dfl_unlearn.cli import main
from dfl_unlearn.cli_output import CleanFormatter
from dfl_unlearn.plots import draw, render
from dfl_unlearn.plots._style import STYLE, label, two_lines
from dfl_unlearn.results.view import ResultsView
from dfl_unlearn.store.table import COLUMNS, ResultsTable
from dfl_unlearn.topology.files import save_graph

NASTY = (
    "=HYPERLINK(1)",
    "+1+1",
    "-2+3",
    "@SUM(A1)",
    r"$\frac{x_1^2}$",
    "a_b^c",
    "<script>alert(1)</script>",
    "%s {0} {name}",
    "' OR 1=1 --",
    '"quoted",\\',
    "x" * 300,
    "Ärger 東京 🙂",
)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=60)


def hidden(text):
    """Characters that a terminal obeys instead of showing them."""
    return {c for c in text if c != "\n" and _validate.clean(c) == ""}


def escape(text):
    return text.translate({ord("&"): "&amp;", ord("<"): "&lt;", ord('"'): "&quot;"})


def ring_file(path, names):
    """Write a GraphML ring over the given node names."""
    nodes = "".join(f'<node id="{escape(name)}"/>' for name in names)
    edges = "".join(
        f'<edge source="{escape(u)}" target="{escape(v)}"/>'
        for u, v in zip(names, (*names[1:], names[0]), strict=True)
    )
    path.write_text(
        '<graphml xmlns="http://graphml.graphdrawing.org/xmlns">'
        f'<graph edgedefault="undirected">{nodes}{edges}</graph></graphml>'
    )
    return path


# --- graphs -----------------------------------------------------------------------


def test_peers_keep_their_names_through_files(tmp_path):
    topology = load_topology(ring_file(tmp_path / "g.graphml", NASTY))
    assert sorted(topology.labels) == sorted(NASTY)
    save_graph(topology, tmp_path / "again.graphml")
    again = load_topology(tmp_path / "again.graphml")
    assert again.labels == topology.labels
    assert again.fingerprint() == topology.fingerprint()


@settings(max_examples=30, deadline=None)
@given(
    names=st.lists(
        st.text(st.characters(codec="utf-8"), max_size=30).filter(
            lambda name: _validate.clean(name) == name
        ),
        min_size=3,
        max_size=8,
        unique=True,
    )
)
def test_any_names_come_back_from_a_file(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("names")
    ring = load_topology("ring", n=len(names))
    named = type(ring)(graph=ring.graph, weights=ring.weights, labels=tuple(names))
    save_graph(named, folder / "g.graphml")
    again = load_topology(folder / "g.graphml")
    assert again.labels == tuple(names)
    assert again.fingerprint() == ring.fingerprint()


# --- terminals and logs -------------------------------------------------------------


@given(TEXTS)
def test_cleaned_text_can_be_printed_and_is_cleaned_once(text):
    cleaned = _validate.clean(text)
    assert _validate.clean(cleaned) == cleaned
    assert not {c for c in cleaned if ord(c) < 32 or 127 <= ord(c) < 160}
    cleaned.encode()


def test_log_lines_hold_no_escape_sequences():
    record = logging.LogRecord(
        "dfl_unlearn.x", 30, "f", 1, "%s: odd\u202e", ("\x1b[2Jrun\udc80",), None
    )
    assert CleanFormatter("%(message)s").format(record) == "[2Jrun: odd"


# --- figures ------------------------------------------------------------------------


@given(TEXTS)
def test_no_label_is_a_formula(text):
    for shown in (label(text), two_lines(text)):
        assert not is_math_text(shown)
        assert len(shown.replace(r"\$", "$")) <= 53


def test_underscores_and_carets_are_drawn_as_they_are():
    """A backslash before them would be drawn too; outside a formula they are text."""
    text = matplotlib.text.Text(0, 0, label(r"a_b^c $x_1$"))
    assert text._preprocess_math(text.get_text()) == (r"a_b^c $x_1$", False)
    assert STYLE["text.usetex"] is False


@pytest.mark.parametrize("name", NASTY)
@pytest.mark.filterwarnings("ignore:Glyph")
def test_a_name_is_drawn_without_a_formula_parser(name, monkeypatch):
    def parse(*_, **__):
        raise AssertionError("a name was read as a formula")

    monkeypatch.setattr("matplotlib.mathtext.MathTextParser.parse", parse)
    figure = Figure()
    figure.text(0.1, 0.5, label(name))
    assert render(figure, "svg").startswith(b"<?xml")


# --- tables -------------------------------------------------------------------------


def row(**changes):
    texts = dict.fromkeys(("case", "protocol", "request", "set", "metric", "unit"), "x")
    numbers = {"round": -1, "peer": -1, "hop": -1, "seed": -3, "value": -0.5}
    return {**texts, "world": "after", **numbers, **changes}


@pytest.mark.parametrize("name", [*NASTY, "\t=1+1", "\x1b=1+1", "\r@x", "\u200b-1"])
def test_no_cell_of_a_csv_is_a_formula(tmp_path, name):
    table = ResultsTable(rows=(row(case=name, metric=name),))
    text = table.to_csv(tmp_path / "t.csv").read_text()
    head, cells = csv.reader(io.StringIO(text))
    assert tuple(head) == COLUMNS
    found = dict(zip(head, cells, strict=True))
    for column in ("case", "metric"):
        assert not found[column].startswith(("=", "+", "-", "@", "\t", "\r"))
        assert found[column].removeprefix("'") == _validate.clean(name).removeprefix(
            "'"
        )
    assert (found["value"], found["peer"]) == ("-0.5", "-1")  # numbers stay numbers
    assert not hidden(text)


# --- the whole way ------------------------------------------------------------------


def test_a_hostile_experiment_is_run_and_shown_as_text(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    graph = ring_file(tmp_path / "=cmd $x_1^2$ <b>&.graphml", NASTY)
    (tmp_path / "exp.toml").write_text(
        f"""
name = "x"
[topology]
use = '{graph.name}'
[data]
use = "gaussian-classes"
[training]
rounds = 2
[[forget]]
kind = "samples"
peer = 1
fraction = 0.2
reason = "\\u001b[2J=1+1 <script>alert(1)</script> $\\\\frac$ \\u202e"
[[unlearning]]
use = "retrain"
[evaluation]
reference = false
[report]
figures = ["svg"]
"""
    )
    with pytest.raises(SystemExit) as ended:
        main(["run", "exp.toml"])
    printed = capsys.readouterr()
    assert ended.value.code == 0, printed.err
    assert not hidden(printed.out + printed.err)
    page = (tmp_path / "runs/x/report.html").read_text()
    own = re.findall(r"<script>.*?</script>", page, flags=re.DOTALL)
    assert own
    assert not any("alert(1)" in script for script in own)
    for script in own:  # what is left is markup, and data of figures
        page = page.replace(script, "")
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<b>&." not in page
    assert not hidden(page)
    for table in (tmp_path / "runs/x/tables").glob("*.csv"):
        for line in csv.reader(io.StringIO(table.read_text())):
            assert not any(cell.startswith(("=", "+", "@")) for cell in line)
    assert list((tmp_path / "runs/x/figures").glob("*.svg"))
    labels = load_topology(tmp_path / "runs/x/topology.graphml").labels
    assert sorted(labels) == sorted(NASTY)


def test_a_network_of_any_name_is_drawn(tmp_path):
    from dfl_unlearn import PeerData, SimulationConfig, simulate

    topology = load_topology(ring_file(tmp_path / "$x_1^{$.graphml", NASTY))
    data = PeerData.load("gaussian-classes", peers=topology.n)
    run = simulate(topology, data, "logistic", SimulationConfig(rounds=2))
    view = ResultsView.of(run)
    assert render(draw("topology", view), "svg").startswith(b"<?xml")
