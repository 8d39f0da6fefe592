"""The page of a run with 64 peers and 200 rounds: its size, and how soon it is there.

Prints the seconds that writing takes, the size, and the median time that Chromium needs
until the page can be read and until all figures are drawn; then the same for plotly's
own way of a slider, a frame of numbers per round and source, which is only parsed here
(plotly would also have to take them in).
Needs the extra browser and a Chromium.

    python benchmarks/page.py --peers 64 --rounds 200
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from browser import launched, missing

from dfl_unlearn import PeerData, SimulationConfig, load_topology, simulate, unlearn
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.pages.sources import pairwise_influence
from dfl_unlearn.report import write_report
from dfl_unlearn.results.view import ResultsView


def example(peers, rounds):
    data = PeerData.load("digits", peers=peers, seed=0)
    topology = load_topology("torus", n=peers)
    run = simulate(topology, data, "logistic", SimulationConfig(rounds=rounds))
    request = ForgetRequest.samples(peer=peers // 2, indices=[0, 1, 2])
    names = ("newton-fisher", "fine-tune")
    return [unlearn(run, request, name, reference=True) for name in names]


def with_all_frames(page, run):
    """The same page with what plotly's own frames would add to it."""
    rounds = np.arange(1, run.config.rounds + 1)
    shares = pairwise_influence(run, rounds).shares
    frames = [
        {"name": str(t), "data": [{"marker": {"color": row.round(6).tolist()}}]}
        for t, source in zip(rounds, shares, strict=True)
        for row in source
    ]
    data = f'<script type="application/json" id="frames">{json.dumps(frames)}</script>'
    path = page.with_name("frames.html")
    # Parsed at the start, as plotly does when it is given frames.
    path.write_text(
        page.read_text()
        .replace("</main>", f"{data}</main>", 1)
        .replace("script-src ", "script-src 'unsafe-inline' ", 1)
    )
    return path


def timed(browser, path, repeats):
    """Median seconds until a page can be read, and until all figures are drawn."""
    readable, drawn = [], []
    for _ in range(repeats):
        tab = browser.new_page(viewport={"width": 1280, "height": 900})
        start = time.perf_counter()
        tab.goto(path.as_uri())
        if tab.query_selector("#frames"):
            tab.evaluate(
                "JSON.parse(document.getElementById('frames').textContent).length"
            )
        tab.wait_for_selector("html[data-drawn]", timeout=120_000)
        drawn.append(time.perf_counter() - start)
        painted = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
        readable.append(tab.evaluate(painted) / 1000)
        tab.close()
    return statistics.median(readable), statistics.median(drawn)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    if missing():
        sys.exit(missing())
    view = ResultsView.of(example(given.peers, given.rounds))
    view.table  # metrics are a run's work, not the page's  # noqa: B018
    with tempfile.TemporaryDirectory() as folder, launched() as browser:
        start = time.perf_counter()
        page = write_report(view, Path(folder) / "report.html")
        print(f"written in {time.perf_counter() - start:.1f} s")
        for name, path in (
            ("this page", page),
            ("with plotly's frames", with_all_frames(page, view.run)),
        ):
            size = path.stat().st_size / 1e6
            readable, drawn = timed(browser, path, given.repeats)
            print(
                f"{name}: {size:.2f} MB, words after {readable:.2f} s, "
                f"all figures after {drawn:.2f} s (median of {given.repeats})"
            )


if __name__ == "__main__":
    main()
