import base64

import numpy as np
import pytest
from networks import blobs
from results.handmade import made_outcome, made_run

from dfl_unlearn import SimulationConfig, load_topology, simulate
from dfl_unlearn.pages import network
from dfl_unlearn.pages.network import network_chart, spaced_rows
from dfl_unlearn.plots.topology import lowest_share
from dfl_unlearn.report import report_page
from dfl_unlearn.results.view import ResultsView


def unpacked(text, shape, low, levels):
    raw = np.frombuffer(base64.b64decode(text), dtype=np.uint8).astype(float)
    shares = np.exp(np.log(low) * (1 - (raw - 1) / levels))
    return np.where(raw > 0, shares, 0.0).reshape(shape)


@pytest.fixture(scope="module")
def view():
    return ResultsView.of(made_outcome(made_run(n=7)))


def test_a_byte_keeps_a_share_within_a_few_percent_and_nothing_as_nothing(view):
    extra, trace = network_chart(view).extra, view.influence()
    rows = np.searchsorted(trace.rounds, extra["rounds"])
    shares = trace.shares()[rows]
    low = lowest_share(7)
    found = unpacked(extra["own"], shares.shape, extra["low"], extra["levels"])
    np.testing.assert_array_equal(found == 0, shares == 0)
    above = shares >= low
    np.testing.assert_allclose(found[above], shares[above], rtol=0.02)
    assert np.allclose(found[(shares > 0) & ~above], low)


def test_all_rounds_of_a_long_run_are_at_most_120_frames_first_and_last_among_them(
    view,
):
    trace = view.influence()
    assert spaced_rows(trace, 120).tolist() == list(range(30))
    rows = spaced_rows(trace, 10)
    assert len(rows) <= 10
    assert (rows[0], rows[-1]) == (0, 29)
    assert (np.diff(rows) > 0).all()


def test_many_peers_keep_one_source_and_say_so(monkeypatch):
    monkeypatch.setattr(network, "MOST_SOURCES", 6)
    figure = network_chart(ResultsView.of(made_run(n=7)))
    assert "pairs" not in figure.extra
    assert "keeps the influence of one only" in figure.caption
    assert figure.controls.count("<option") == 2


def test_the_finding_is_told_in_numbers_of_the_trace(view):
    trace = view.influence()
    words = network_chart(view).alt
    assert "7 peers and 7 links" in words
    assert f"over {trace.effective_spread()[-1]:.1f} after round 30" in words
    assert f"in round {trace.front(0.1).max():.0f}." in words


def test_arrival_rounds_are_those_of_all_rounds_not_of_the_frames(view):
    front = view.influence().front(0.1)
    assert network_chart(view).extra["ownArrival"] == front.astype(int).tolist()


def test_the_page_of_64_peers_and_200_rounds_stays_below_8_megabytes():
    config = SimulationConfig(rounds=200)
    run = simulate(load_topology("torus", n=64), blobs([4] * 64), "logistic", config)
    figure = network_chart(ResultsView.of(run))
    assert 50 < len(figure.extra["rounds"]) <= 120
    assert "pairs" in figure.extra
    assert len(report_page(run).encode()) < 8e6
