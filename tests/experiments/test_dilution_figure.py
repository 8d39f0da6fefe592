"""The dilution figure names what it does not draw, and a method has one colour."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from dfl_unlearn.unlearning.dilution import Dilution

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    yield importlib.import_module("dilution")
    for name in ("dilution", "settings"):
        sys.modules.pop(name, None)


def row(network, method, change):
    return {"network": network, "method": method, "change": change}


def test_methods_that_change_nothing_are_named(script):
    rows = [row("ring", "ssd", 0.0), row("ring", "salun", 0.0), row("ring", "r2d", 1.0)]
    rows += [row("star", "ssd", 0.0), row("star", "salun", 2.0)]
    told = script.without_change(rows)
    assert told == "not drawn, since nothing changed: ssd, salun (ring)"
    assert script.without_change(rows[2:3]) == ""


def test_the_legend_says_what_is_missing_and_colours_do_not_move(script):
    settings = script.Settings(peers=9, followed=4)
    left = np.linspace(1, 0.2, 5)[:, None] * np.ones(9)

    def found(hops):
        one = Dilution(
            change=1.0,
            left=left,
            predicted=left,
            error=0.0,
            forget_loss=left,
            forget_loss_before=np.zeros(9),
            hops=hops,
        )
        return one, one

    shown = {}
    for network, fields in script.NETWORKS.items():
        topology = script.load_topology(network, n=9, **fields)
        names = ["fine-tune", "salun"] if network == "ring" else ["salun", "scrub"]
        shown[network] = {name: found(topology.hops(4)) for name in names}
    figure = script.pictures(settings, shown, "not drawn: ssd")
    (legend,) = figure.legends
    assert legend.get_title().get_text() == "not drawn: ssd"
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["fine-tune", "salun", "scrub"]
    colours = {
        line.get_color()
        for axes in figure.axes
        for line in axes.lines
        if line.get_label() == "salun"
    }
    assert len(colours) == 1
