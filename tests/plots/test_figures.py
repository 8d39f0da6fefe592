import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from results.handmade import made_outcome, made_run, three_outcomes

from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.errors import (
    InvalidArgumentError,
    MissingInputError,
    StoreWriteError,
    UnknownNameError,
)
from dfl_unlearn.plots import draw, plots, render, save_figures
from dfl_unlearn.plots._style import (
    CURVES,
    INFLUENCE,
    STATUS,
    label,
    short,
    size,
    spread_out,
    two_lines,
)
from dfl_unlearn.plots.topology import layout, shown_rounds
from dfl_unlearn.record.influence import mixing_power
from dfl_unlearn.results.view import ResultsView


@pytest.fixture(scope="module")
def view():
    return ResultsView.of(three_outcomes(made_run(n=6)))


def texts(figure):
    return [t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text"))]


def test_figures_are_saved_under_their_names_in_every_format(view, tmp_path):
    formats = ("png", "svg", "pdf")
    paths = save_figures(view, tmp_path / "figures", ["accuracy", "topology"], formats)
    assert [p.name for p in paths] == [
        f"{name}.{format}" for name in ("accuracy", "topology") for format in formats
    ]
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in paths[1].read_bytes()
    assert paths[2].read_bytes().startswith(b"%PDF")
    assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == sorted(
        p.name for p in paths
    )


@pytest.mark.parametrize("format", ["png", "svg", "pdf"])
def test_equal_figures_give_equal_bytes(view, format):
    one, two = (render(draw("methods", view), format) for _ in range(2))
    assert one == two
    assert one != render(draw("consensus", view), format)


def test_a_pdf_holds_its_fonts_as_truetype_and_no_date(view):
    pdf = render(draw("methods", view), "pdf")
    assert b"/Subtype /Type0" in pdf or b"/FontFile2" in pdf
    assert b"/Type3" not in pdf
    for stamp in (b"CreationDate", b"ModDate", b"matplotlib"):
        assert stamp not in pdf


def test_all_leaves_out_what_has_no_input_and_a_named_plot_says_why(tmp_path):
    alone = ResultsView.of(made_run(history=False))
    names = [p.stem for p in save_figures(alone, tmp_path)]
    assert "topology" in names
    assert not {"accuracy", "consensus", "methods"} & set(names)
    with pytest.raises(MissingInputError, match="methods: needs at least one outcome"):
        save_figures(alone, tmp_path, ["methods"])
    with pytest.raises(MissingInputError, match="accuracy: needs the run's history"):
        save_figures(alone, tmp_path, ["accuracy"])


def test_a_wrong_name_or_format_or_place_is_refused(view, tmp_path):
    with pytest.raises(UnknownNameError, match="did you mean 'topology'"):
        save_figures(view, tmp_path, ["topologie"])
    with pytest.raises(InvalidArgumentError, match=r"give \['topology'\]"):
        save_figures(view, tmp_path, "topology")
    with pytest.raises(InvalidArgumentError, match="format: must be one of png, svg"):
        save_figures(view, tmp_path, ["topology"], ("gif",))
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreWriteError, match="must be writable"):
        save_figures(view, tmp_path / "file", ["topology"])


def test_names_cannot_become_formulas_or_hide_letters():
    assert label("cost $x$ \x1b[31m\u202e") == r"cost \$x\$ [31m"
    assert len(label("x" * 99)) == 40


def test_a_hostile_name_is_drawn_as_it_is_written(view):
    run = made_run(n=3, name="$\\frac{")
    outcome = made_outcome(run, "fine-tune", None)
    for name in plots.names():
        draw(name, ResultsView.of(outcome)).canvas.draw()


def test_a_heuristic_result_never_looks_like_a_certified_one():
    certified, heuristic = STATUS["certified"], STATUS["heuristic"]
    assert heuristic["hatch"]
    assert "hatch" not in certified
    red, green, blue, _ = to_rgba(heuristic["edgecolor"])
    assert max(red, green, blue) - min(red, green, blue) < 0.12  # grey
    fills = [STATUS[s]["facecolor"] for s in STATUS]
    assert len(set(fills)) == len(fills)


def test_the_heuristic_bar_is_hatched_and_named(view):
    figure = draw("methods", view)
    hatched = [p for axes in figure.axes for p in axes.patches if p.get_hatch()]
    assert {p.get_hatch() for p in hatched} == {STATUS["heuristic"]["hatch"]}
    assert {"certified", "heuristic", "no claim"} <= set(texts(figure))


def test_the_influence_scale_darkens_steadily():
    colours = INFLUENCE(np.linspace(0, 1, 64))[:, :3]
    linear = np.where(
        colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4
    )
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) < 0).all()


def test_neighbouring_curves_differ_in_colour():
    assert len(set(CURVES)) == len(CURVES)


def test_the_first_round_of_influence_and_the_last_round_are_shown():
    run = made_run(n=12)
    trace = mixing_power(run.topology, 3, 200)
    rows = shown_rounds(trace, 5)
    assert rows[0] == 0
    assert rows[-1] == 199
    assert len(rows) == 5
    assert rows == sorted(rows)
    assert shown_rounds(mixing_power(run.topology, 3, 1), 5) == [0]
    assert shown_rounds(mixing_power(run.topology, 3, 3), 5) == [0, 1, 2]


def test_a_ring_is_a_circle_with_the_requester_on_top():
    places = layout(made_run(n=8).topology, top=3)
    np.testing.assert_allclose(places[3], [0, 1], atol=1e-12)
    np.testing.assert_allclose(np.hypot(*places.T), 1.0, rtol=1e-12)


def test_the_layout_is_the_same_every_time():
    network = made_run(n=20, kind="hubs").topology
    np.testing.assert_array_equal(layout(network, 0), layout(network, 0))


@pytest.mark.parametrize("seed", range(5))
def test_labels_move_apart_and_keep_their_order(seed):
    values = np.random.default_rng(seed).uniform(0, 1, 7)
    placed = spread_out(values, 0.1, 0.0, 1.0)
    order = np.argsort(values)
    assert (np.diff(placed[order]) >= 0.1 - 1e-12).all()
    assert placed.min() >= -1e-12
    assert placed.max() <= 1 + 1e-12


@pytest.mark.parametrize("at", [0.0, 0.5, 1.0])
def test_a_crowd_of_labels_stays_between_the_ends(at):
    placed = spread_out(np.array([0.2, *[at] * 18, 0.9]), 0.05, 0.0, 0.96)
    assert placed.min() >= -1e-12
    assert placed.max() <= 0.96 + 1e-12
    assert (np.diff(np.sort(placed)) >= 0.05 - 1e-12).all()


def test_counts_are_shortened():
    assert [short(x) for x in (7, 1234, 5.6e6, 2e9)] == ["7", "1.23 k", "5.6 M", "2 G"]


@pytest.mark.parametrize("n", [65, pytest.param(1000, marks=pytest.mark.slow)], ids=str)
def test_a_large_network_is_drawn_as_dots(n):
    run = made_run(n=n, kind="hubs", record=False, history=False)
    figure = draw("topology", ResultsView.of(run))
    names = set(texts(figure))
    assert not {"17", "64", "999"} & names
    assert "round 30" in names


def test_peers_of_a_small_network_are_numbered():
    run = made_run(n=30, kind="hubs", record=False, history=False)
    names = texts(draw("topology", ResultsView.of(run)))
    panels = sum(name.startswith("round ") for name in names)
    assert names.count("17") == names.count("29") == panels == 6


def test_only_what_no_message_can_reach_is_white_in_the_heat_map():
    view = ResultsView.of(made_run(n=12, record=False))
    (mesh,) = draw("influence-heatmap", view).axes[0].collections
    trace = view.influence()
    order = np.argsort(trace.hops, kind="stable")
    shown = np.ma.getmaskarray(mesh.get_array())
    columns = [round(x) - 1 for x in mesh.get_coordinates()[0, :-1, 0]]
    outside = trace.rounds[columns][None, :] < trace.hops[order][:, None]
    np.testing.assert_array_equal(shown, outside)


def test_bytes_have_one_form_of_unit():
    shown = [size(count) for count in (0, 7, 999, 1200, 773_000, 2.5e6, 3e9)]
    assert shown == ["0 B", "7 B", "999 B", "1.2 kB", "773 kB", "2.5 MB", "3 GB"]


def test_a_long_name_keeps_what_tells_it_apart():
    name = "at-peer.influence-unlearning"
    assert two_lines(f"{name}.pinned r0") == f"{name}\npinned r0"
    assert two_lines(f"{name}.delta") == f"{name}\ndelta"


def many_trials():
    run = made_run(n=6)
    requests = [
        ForgetRequest.samples(peer=p, indices=[1], request_id=f"r{p}") for p in range(6)
    ]
    return ResultsView.of([o for r in requests for o in three_outcomes(run, request=r)])


def test_the_legend_of_many_trials_stays_inside_the_figure():
    figure = draw("consensus", many_trials())
    figure.canvas.draw()
    legend = figure.axes[0].get_legend()
    assert len(legend.get_texts()) == 19
    assert legend.get_window_extent().y0 >= 0


@pytest.mark.parametrize("name", ["accuracy", "methods"])
def test_names_of_many_trials_do_not_overlap(name):
    view = many_trials()
    figure = draw(name, view)
    figure.canvas.draw()
    axes = max(figure.axes, key=lambda a: len(a.get_yticklabels()))
    boxes = [t.get_window_extent() for t in axes.get_yticklabels() if t.get_text()]
    assert len(boxes) >= len(view.outcomes)
    boxes.sort(key=lambda box: box.y0)
    assert all(a.y1 <= b.y0 for a, b in itertools.pairwise(boxes))
