import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from networks import blobs
from results.handmade import made_outcome, made_run, three_outcomes

from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.engine.config import SimulationConfig
from dfl_unlearn.engine.faults import FaultPlan, MessageLoss
from dfl_unlearn.engine.run import load_run
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.errors import InvalidArgumentError, StoreWriteError
from dfl_unlearn.report import report_page, write_report
from dfl_unlearn.results.view import ResultsView
from dfl_unlearn.unlearning.apply import unlearn

VOID = {"meta", "br", "link", "input"}


class Page(HTMLParser):
    """Checks that elements nest, and keeps headings, figures and addresses."""

    def __init__(self, text):
        super().__init__()
        self.open, self.headings, self.figures, self.addresses = [], [], {}, []
        self.data = {}
        self.tags, self.words = set(), []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        given = dict(attrs)
        self.addresses += [given[k] for k in ("src", "href") if k in given]
        if given.get("class") == "chart":
            self.figures[given["id"]] = given["aria-label"]
        self.is_data = given.get("type") == "application/json"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            if self.is_data:
                self.data[list(self.figures)[-1]] = json.loads(data)
            return
        self.words.append(data)
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def page():
    run = made_run(n=5)
    first = made_outcome(run, charged=True)
    return Page(report_page(ResultsView.of([first, *three_outcomes(run)[1:]])))


def test_the_sections_come_in_the_order_of_the_contract(page):
    assert page.headings == [
        "What was asked",
        "What is guaranteed",
        "Where the influence went",
        "Accuracy and consensus",
        "Before, after, retrained",
        "Protocols compared",
        "What this does not prove",
        "Settings",
    ]


def test_nothing_is_asked_of_the_network(page):
    assert page.addresses == ["data:,"]  # an empty icon, so that none is looked for
    assert "img" not in page.tags


def test_every_figure_says_what_it_shows_in_numbers(page):
    assert list(page.figures) == [
        "network",
        "influence-heatmap",
        "influence-hops",
        "influence-front",
        "accuracy",
        "final-accuracy",
        "consensus",
        "methods",
        "forgotten",
    ]
    assert all(len(re.findall(r"\d+", words)) > 2 for words in page.figures.values())


def test_no_figure_marks_a_heuristic_result_like_a_certified_one(page):
    for name in ("final-accuracy", "methods", "forgotten"):
        marks = [trace["marker"] for trace in page.data[name]["data"]]
        marks = [mark for mark in marks if mark["color"] != "var(--ink)"]
        certified, heuristic, unclaimed = marks
        assert certified["color"] == "var(--certified)"
        assert not certified["symbol"].endswith("-open")
        for other in (heuristic, unclaimed):
            assert other["color"] == "var(--heuristic)"
            assert other["symbol"].endswith("-open")


def test_equal_runs_give_equal_pages():
    pages = [report_page(made_outcome(made_run(n=3), charged=True)) for _ in range(2)]
    assert pages[0] == pages[1]


def test_the_first_sentence_names_result_claim_and_accuracy(page):
    assert re.search(
        r"Forgetting 2 records of peer 1 by newton-fisher curvature=exact_cg is "
        r"certified at ε = 1, δ = 1e-05 \(joint\); mean test accuracy is [\d.]+ % "
        r"\(before: [\d.]+ %, retrained: [\d.]+ %\)\.",
        page.text,
    )


def test_the_certificate_is_told_with_constants_exposure_and_ledger(page):
    for words in (
        "2 of the 6 held there (33.3 %)",
        "strong convexity 0.01 proven held the l2 term",
        "standard deviation 0.00377, for a shift of at most 0.00101 (simulated)",
        "before/after: model released at round 30",
        "peer:1 peer:0, peer:2 30 1 0.4345",
        "0.4345",  # epsilon of mu = 0.125 at 1e-5 is 0.43442: rounded up
    ):
        assert words in page.text, words


def test_a_printed_epsilon_is_never_below_the_real_one():
    outcome = made_outcome(made_run(n=3))
    above = replace(outcome.certificate, epsilon=1.0000004, delta=1.0000001e-5)
    text = report_page(ResultsView.of(replace(outcome, certificate=above)))
    assert "certified at ε = 1.00001, δ = 1.00001e-05" in text
    assert "ε = 1, " not in text


def test_a_heuristic_result_has_its_own_mark_and_no_guarantee():
    run = made_run(n=3)
    text = report_page(ResultsView.of(three_outcomes(run)[1]))
    assert '<span class="badge heuristic">heuristic</span>' in text
    assert 'class="badge certified"' not in text
    words = Page(text).text
    assert "Nominal only ε = 1, δ = 1e-05; not a guarantee" in words
    assert "for a nominal shift of 0.00101" in words
    assert "Privacy ε" not in words


def test_no_claim_is_printed_as_none():
    outcome = made_outcome(made_run(n=3), "fine-tune", None)
    words = Page(report_page(ResultsView.of(outcome))).text
    assert "Forgetting 2 records of peer 1 by fine-tune comes without a claim" in words
    assert "ε =" not in words


def test_every_text_is_escaped():
    run = made_run(n=3, name="<script>alert(1)</script>")
    request = ForgetRequest.samples(
        peer=1, indices=[0], request_id="r0", reason="\x1b<img src=x onerror=y>\u202e&"
    )
    page = Page(report_page(ResultsView.of(made_outcome(run, request=request))))
    assert page.addresses == ["data:,"]
    assert "<script>alert(1)</script>" in page.text
    assert "<img src=x onerror=y>&" in page.text


def test_a_run_alone_and_a_run_without_history_make_shorter_pages():
    alone = Page(report_page(ResultsView.of(made_run(n=4))))
    assert alone.headings == [
        "Where the influence went",
        "Accuracy and consensus",
        "Settings",
    ]
    bare = made_outcome(made_run(n=4, history=False, record=False), reference=False)
    page = Page(report_page(ResultsView.of(bare)))
    assert "Accuracy and consensus" not in page.headings
    assert "Before, after, retrained" in page.headings


def test_the_page_is_written_whole_and_its_place_returned(tmp_path):
    outcome = made_outcome(made_run(n=3))
    path = write_report(outcome, tmp_path / "new" / "report.html")
    assert path == tmp_path / "new" / "report.html"
    assert path.read_text().startswith("<!DOCTYPE html>")
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_an_unwritable_place_and_mixed_runs_are_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    outcome = made_outcome(made_run(n=3))
    with pytest.raises(StoreWriteError, match="must be writable"):
        write_report(outcome, tmp_path / "file" / "report.html")
    other = made_outcome(made_run(n=3, seed=1))
    with pytest.raises(InvalidArgumentError, match="must come from one run"):
        write_report([outcome, other], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_the_page_says_what_went_wrong_in_the_network():
    config = SimulationConfig(
        rounds=6, faults=FaultPlan(models=(MessageLoss(p=0.5),), weight_policy="self")
    )
    run = simulate("ring", blobs([6] * 5), "logistic", config)
    text = Page(report_page(ResultsView.of(run))).text
    assert f"lost {run.info['faults']['totals']['lost']}" in text
    assert "mean moved 6" in text
    assert "row-stochastic only" in text
    assert f"lost {run.info['faults']['totals']['lost']}" in run._repr_html_()
    plain = simulate("ring", blobs([6] * 5), "logistic", SimulationConfig(rounds=6))
    assert "Faults of the network" not in report_page(ResultsView.of(plain))


def test_a_run_s_folder_gives_the_page_of_all_that_was_tried_on_it(tmp_path):
    config = SimulationConfig(rounds=6)
    data = PeerData.load("gaussian-classes", peers=4, seed=0)
    simulate("ring", data, "logistic", config).save(tmp_path / "mine")
    page = Page(report_page(tmp_path / "mine"))
    assert "nothing has been forgotten yet" in page.text
    run = load_run(tmp_path / "mine")
    request = ForgetRequest.samples(peer=1, indices=[0], request_id="r7")
    outcome = unlearn(run, request, "fine-tune", folder=run.folder)
    text = report_page(outcome)
    assert "r7" in Page(text).text
    path = write_report(str(tmp_path / "mine"), tmp_path / "page.html")
    assert path.read_text() == text


def test_a_request_to_several_peers_names_them_and_not_one_of_them():
    run = made_run(n=4)
    request = ForgetRequest(kind="class", class_id=1, request_id="r0")
    page = Page(report_page(ResultsView.of(made_outcome(run, request=request))))
    owners = len(request.resolve(run.data).peers)
    assert owners > 1
    assert f"Forgetting {owners} peers' data" in page.text
    assert f"{owners} of 4 peers; figures of influence are about peer" in page.text


def test_consensus_has_ticks_that_do_not_depend_on_its_height():
    # Else plotly may change ticks and margins in turns, and says so in the console.
    page = Page(report_page(ResultsView.of(made_run(n=4))))
    axis = page.data["consensus"]["layout"]["yaxis"]
    assert axis["rangemode"] == "tozero"
    assert axis["nticks"] == 6
