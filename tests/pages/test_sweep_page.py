import html
import json
import re
from importlib.resources import files

import pytest
from pages.sweep_samples import (
    HOSTILE,
    NEWTON,
    TUNE,
    WALK,
    accuracy,
    fail,
    network_sweep,
    privacy_sweep,
)
from results.made_sweep import claimed, make_sweep

from dfl_unlearn.cli import main
from dfl_unlearn.errors import InputFileError
from dfl_unlearn.pages import sweep_explorer, sweep_tables
from dfl_unlearn.pages.sweep import sweep_page
from dfl_unlearn.pages.sweep_lines import SweepLines, axis_words
from dfl_unlearn.pages.sweep_marks import palette
from dfl_unlearn.pages.sweep_panels import panels_of
from dfl_unlearn.report import write_report
from dfl_unlearn.results.sweep import SweepView
from dfl_unlearn.store.lines import encode_line
from dfl_unlearn.sweeps import Sweep, load_sweep
from dfl_unlearn.sweeps.folder import plan_of


def page_of(root, **options):
    return sweep_page(SweepView.open(root), **options)


def text_of(page):
    """The words between the elements of a page, without its scripts."""
    page = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


def figure(page, name):
    """What plotly is given for a figure."""
    found = re.search(
        rf'id="{name}".*?<script type="application/json">(.*?)</script>', page, re.S
    )
    return json.loads(found.group(1))


@pytest.fixture(scope="module")
def privacy(tmp_path_factory):
    return privacy_sweep(tmp_path_factory.mktemp("privacy") / "made")


def variant(page, number=0):
    return figure(page, "privacy-utility")["extra"]["variants"][number]


# --- the sentence at the top ----------------------------------------------------------


def test_the_result_names_the_best_claim_with_its_seeds_and_yardstick(privacy):
    words = text_of(page_of(privacy))
    assert (
        "At ε = 0.5 with topology = ring n=8, newton-fisher keeps 85.5 % ± 1.0 points "
        "(mean and standard deviation over 3 seeds) test accuracy; rr-du 70.5 % "
        "(retrained: 90.0 %). newton-fisher keeps the most of the protocols with a "
        "claim in each of 2 settings, by more than the standard deviations over seeds "
        "of both."
    ) in words
    assert "All 18 cases are complete." in words


def test_a_difference_within_the_spread_makes_no_protocol_better(tmp_path):
    def close(epsilon, seed):
        off = 0.02 * (seed - 1)
        return 0.80 + off, 0.79 + off, 0.9

    words = text_of(page_of(privacy_sweep(tmp_path / "made", values=close)))
    assert "so no protocol is called better" in words
    assert "keeps the most" not in words


def test_a_single_seed_is_said_and_ranks_nothing(tmp_path):
    words = text_of(page_of(privacy_sweep(tmp_path / "made", seeds=(7,))))
    assert "a single seed" in words
    assert "no protocol is called better" in words
    assert "keeps the most" not in words


def test_a_heuristic_result_is_never_compared_with_a_claim(tmp_path):
    root = privacy_sweep(tmp_path / "made", status="heuristic")
    page = page_of(root)
    lead = re.search(r'class="lead">(.*?)</p>', page, re.S).group(1)
    assert "rr-du" not in lead
    assert lead.startswith("At the smallest epsilon that is claimed, ε = 0.5, with")
    assert "topology = ring n=8, newton-fisher keeps 85.5 %" in lead
    walk = [t for t in variant(page)["data"] if t["name"].startswith("rr-du")]
    assert [t["name"] for t in walk] == ["rr-du (heuristic, nominal ε)"]
    assert walk[0]["marker"]["symbol"] == "x-thin"
    assert walk[0]["marker"]["color"] == "var(--heuristic)"
    assert "nominal, not a guarantee" in walk[0]["text"][0]
    newton = next(t for t in variant(page)["data"] if t["name"] == "newton-fisher")
    assert newton["marker"]["symbol"] == "diamond"
    assert newton["marker"]["color"] != walk[0]["marker"]["color"]


def test_which_is_ahead_may_depend_on_the_setting(tmp_path):
    root = privacy_sweep(tmp_path / "made")
    for case in SweepView.open(root).cases:  # the protocols change places on the torus
        if case.point["topology"]["use"] == "torus":
            rewrite(case.folder / "results.jsonl", {"newton-fisher": "rr-du"})
    words = text_of(page_of(root))
    assert (
        "Which is ahead depends on the setting: newton-fisher in 1, rr-du in 1 of 2."
    ) in words


def rewrite(place, names):
    """Exchange names of protocols in a file of rows."""
    names = names | {new: old for old, new in names.items()}
    rows = [json.loads(line[9:]) for line in place.read_bytes().splitlines()]
    for one in rows:
        one["protocol"] = names.get(one["protocol"], one["protocol"])
    place.write_bytes(b"".join(encode_line("rows", one) for one in rows))


def test_without_any_claim_the_result_says_so(tmp_path):
    root = network_sweep(tmp_path / "made", fronts=(7, 7, 7, 7))
    words = text_of(page_of(root))
    assert "No protocol makes a claim that holds" not in words  # the ranks are said
    assert "Effective spread and spectral gap have a rank correlation of 1.00" in words


# --- curves ---------------------------------------------------------------------------


def test_an_axis_that_changes_results_makes_panels_and_epsilon_a_curve(privacy):
    page = page_of(privacy)
    assert variant(page, 0)["name"] == "topology = ring n=8"
    assert variant(page, 1)["name"] == "topology = torus n=9"
    traces = {t["name"]: t for t in variant(page, 1)["data"]}
    newton = traces["newton-fisher"]
    assert newton["x"] == [0.5, 1.0, 4.0]
    assert newton["y"] == pytest.approx([0.875, 0.88, 0.91])
    assert newton["error_y"]["array"] == pytest.approx([0.01] * 3)
    assert newton["mode"] == "lines+markers"
    assert traces["retrained"]["y"] == [0.9, 0.9]
    assert traces["before"]["visible"] == "legendonly"
    tune = traces["fine-tune (no claim)"]  # one point: epsilon does not touch it
    assert (tune["x"], tune["xaxis"]) == (["fine-tune"], "x2")
    assert tune["marker"]["color"] == "var(--heuristic)"


def test_an_axis_of_other_protocols_splits_no_curve_where_seeds_failed(tmp_path):
    axes = {"unlearning.0.epsilon": [0.5, 1.0], "unlearning.1.epsilon": [0.5, 1.0]}

    def rows(point, seed):
        return accuracy(0.8 + 0.01 * seed, 0.7 + 0.01 * seed, 0.75)

    def attempts(point, seed):
        return [
            (form | {"epsilon": epsilon}, claimed(epsilon))
            for form, epsilon in zip((NEWTON, WALK), point.values(), strict=True)
        ]

    root = make_sweep(
        tmp_path / "made",
        axes,
        rows,
        base={"unlearning": [NEWTON, WALK]},
        attempts=attempts,
        skip=(1,),
    )
    (panel,) = panels_of(SweepLines(SweepView.open(root)))
    assert panel.name == ""


def test_joined_trainings_are_compared_though_each_has_its_own_retraining(tmp_path):
    roots = []
    for name, form, off in (("newton", NEWTON, 0.0), ("walk", WALK, 0.1)):

        def rows(point, seed, form=form, off=off):
            kept = {form["use"], "fine-tune"}
            found = accuracy(0.8 + 0.01 * seed, 0.7 + 0.01 * seed, 0.7 + off)
            return [one for one in found if one["protocol"] in kept]

        def attempts(point, seed, form=form):
            epsilon = point["unlearning.0.epsilon"]
            return [(form | {"epsilon": epsilon}, claimed(epsilon)), (TUNE, None)]

        roots.append(
            make_sweep(
                tmp_path / name,
                {"unlearning.0.epsilon": [0.5, 1.0]},
                rows,
                name=name,
                base={"unlearning": [form, TUNE], "model": {"use": name}},
                attempts=attempts,
            )
        )
    (panel,) = panels_of(SweepLines(SweepView.join(roots)))
    assert [curve.protocol for curve in panel.curves] == [
        "newton-fisher",
        "fine-tune",
        "rr-du",
    ]


def test_a_chart_of_one_epsilon_is_not_drawn(tmp_path):
    page = page_of(network_sweep(tmp_path / "made"))
    assert 'id="privacy-utility"' not in page
    assert 'id="front-against-gap"' in page


# --- networks, methods ----------------------------------------------------------------


def test_the_rank_correlation_is_that_of_the_networks(tmp_path):
    page = page_of(network_sweep(tmp_path / "made"))
    assert (
        "Front time and spectral gap have a rank correlation of "
        "\N{MINUS SIGN}1.00 over 4 networks; effective spread and spectral gap have a "
        "rank correlation of 1.00 over 4 networks."
    ) in text_of(page)
    rings = figure(page, "front-against-gap")["data"][0]
    assert (rings["name"], rings["x"], rings["y"]) == ("ring", [0.05], [40.0])


def test_a_front_that_never_arrived_is_left_out_and_said(tmp_path):
    root = network_sweep(tmp_path / "made", fronts=(None, 20, 10, 5))
    words = text_of(page_of(root))
    assert "Front time and spectral gap" not in words  # three are too few
    assert "over 4 networks" in words


def test_gaps_are_taken_seed_by_seed_and_cost_can_be_chosen(privacy):
    page = page_of(privacy)
    drawn = figure(page, "methods")
    assert drawn["extra"] is None  # one cost alone was measured
    newton = next(t for t in drawn["data"] if t["name"] == "newton-fisher")
    # |0.845 - 0.9|, |0.855 - 0.9|, |0.865 - 0.9| on the ring at epsilon 0.5
    assert newton["y"][0] == pytest.approx(0.045)
    assert set(newton["x"]) == {900.0}
    tune = next(t for t in drawn["data"] if t["name"] == "fine-tune (no claim)")
    # 0.02, 0.01 and 0 away: signs do not cancel on the ring (0.88, 0.89, 0.90)
    assert tune["y"][0] == pytest.approx(0.01)
    assert tune["x"][0] == pytest.approx(400 / 3, abs=1e-3)  # no cost: at the left edge


# --- what is not complete -------------------------------------------------------------


@pytest.fixture
def broken(tmp_path):
    """Of 18 cases one failed, one is begun, one is not; one protocol refused."""
    refused = {
        "request": "r0",
        "protocol": "rr-du",
        "error": "RefusedError",
        "message": f"the cap is exceeded {HOSTILE}",
    }
    root = privacy_sweep(
        tmp_path / "made", skip=(0, 1, 2), refused=lambda point, seed: [refused]
    )
    names = [e["case"] for e in json.loads((root / "sweep.json").read_text())["cases"]]
    (root / "cases" / names[1]).mkdir()
    fail(root, names[0], f"out of memory\n{HOSTILE}")
    return root


def test_what_failed_is_named_with_its_error_and_the_way_to_try_again(broken):
    words = text_of(page_of(broken))
    assert ("15 of 18 cases are complete, 1 failed, 1 begun, 1 not begun.") in words
    assert "MemoryError: out of memory" in words
    assert "dfl-unlearn sweep FILE.toml --name made --retry-failed" in words
    assert "goes on where it stopped" in words


def test_refusals_are_grouped_by_protocol_and_reason(broken):
    words = text_of(page_of(broken))
    assert f"rr-du RefusedError 15 the cap is exceeded {HOSTILE} (15)" in words
    assert "That is no failure of the case" in words


def test_a_point_whose_seeds_failed_shows_fewer_and_no_spread(broken):
    view = SweepView.open(broken)
    first = view.cases[2]
    assert (first.status, first.seed) == ("missing", 2)
    page = page_of(broken)
    assert "ring n=8" in text_of(page)
    # Epsilon 0.5 on the ring has no complete case: its curve begins at 1.
    newton = next(t for t in variant(page)["data"] if t["name"] == "newton-fisher")
    assert newton["x"] == [1.0, 4.0]


def test_a_sweep_without_a_complete_case_still_has_a_page(tmp_path):
    (tmp_path / "made").mkdir()
    page = page_of(privacy_sweep(tmp_path / "made", skip=range(18)))
    words = text_of(page)
    assert "0 of 18 cases are complete, 18 not begun." in words
    assert "No case has results yet." in words
    assert len(page) < 200_000  # without plotly: there is no figure


# --- the page as a file ---------------------------------------------------------------


def test_every_text_is_escaped(broken, tmp_path):
    plan = json.loads((broken / "sweep.json").read_text())
    plan["name"] = HOSTILE
    (broken / "sweep.json").write_text(json.dumps(plan))
    page = page_of(broken)
    assert HOSTILE not in page
    assert HOSTILE in text_of(page)


def test_equal_folders_give_equal_pages_that_name_no_place(tmp_path):
    pages = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        root = privacy_sweep(tmp_path / name / "made")
        pages.append(write_report(root, root / "report.html").read_bytes())
    assert pages[0] == pages[1]
    assert str(tmp_path).encode() not in pages[0]


def test_cases_are_linked_only_from_a_page_beside_them(privacy, tmp_path):
    case = SweepView.open(privacy).cases[0].name
    (privacy / "cases" / case / "report.html").touch()
    beside = page_of(privacy, folder=privacy)
    assert f'href="cases/{case}/report.html"' in beside
    assert f"{case}/" not in page_of(privacy, folder=tmp_path)
    assert f"{case}/" not in page_of(privacy)


def test_a_table_that_is_too_long_says_what_it_leaves_out(privacy, monkeypatch):
    monkeypatch.setattr(sweep_tables, "MOST_LINES", 18)
    monkeypatch.setattr(sweep_tables, "MOST_CASES", 5)
    monkeypatch.setattr(sweep_explorer, "MOST_VALUES", 54)
    words = text_of(page_of(privacy))
    assert (
        "Left out of this table: 18 rows (cost-gradient-evaluations). All of it is in "
        "made/table.csv."
    ) in words
    assert "Left out of this table: 13 cases. All are in cases.csv." in words
    assert "Left out of these two: 1 metrics" in words


def test_a_page_that_would_grow_too_large_shortens_its_table(privacy, monkeypatch):
    whole = page_of(privacy)
    monkeypatch.setattr("dfl_unlearn.pages.sweep.MOST_BYTES", 1)
    short = page_of(privacy)
    assert len(short) < len(whole)
    assert "Left out of this table: 35 rows" in text_of(short)


def test_the_configuration_on_the_page_is_the_same_sweep(tmp_path):
    base = {
        "topology": {"use": "ring", "n": 4},
        "training": {"rounds": 3},
        "forget": [{"kind": "samples", "peer": 1, "fraction": 0.1}],
        "unlearning": [{"use": "newton-fisher"}, {"use": "fine-tune"}],
    }
    axes = {
        "topology": [{"use": "ring", "n": 4}, {"use": "torus", "n": 9}],
        "unlearning.0.epsilon": [0.5, 1.0],
    }
    sweep = Sweep(base=base, axes=axes, seeds=(3, 4), name="again")
    cases = sweep.cases()
    (tmp_path / "sweep.json").write_text(json.dumps(plan_of(sweep, cases)))
    page = page_of(tmp_path)
    text = html.unescape(re.search(r"<pre[^>]*>(.*?)</pre>", page, re.S).group(1))
    (tmp_path / "again.toml").write_text(text)
    again = load_sweep(tmp_path / "again.toml")
    assert [c.name for c in again.cases()] == [c.name for c in cases]
    assert "dfl-unlearn sweep again.toml --name again" in text_of(page)


def test_several_sweeps_make_one_page(privacy, tmp_path):
    other = privacy_sweep(tmp_path / "other", seeds=(5,), name="other")
    view = SweepView.join([privacy, other])
    words = text_of(sweep_page(view))
    assert "Sweep made + other" in words
    assert "All 24 cases are complete." in words


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(InputFileError):
        write_report(tmp_path, tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_page_tables_and_figures(privacy, tmp_path, capsys):
    root = privacy_sweep(tmp_path / "made", seeds=(0,))
    main_of(["report", str(root), "--figures", "png"])
    assert capsys.readouterr().out.strip() == str(root / "report.html")
    assert (root / "table.csv").is_file()
    assert any((root / "figures").glob("*.png"))


def test_the_command_draws_no_moving_figure_of_a_sweep(privacy, capsys):
    before = sorted(privacy.iterdir())
    assert main_of(["report", str(privacy), "--figures", "gif"]) == 2
    assert "one of its cases" in capsys.readouterr().err
    assert sorted(privacy.iterdir()) == before


def main_of(arguments):
    """The exit code of a command."""
    try:
        main(arguments)
    except SystemExit as end:
        return end.code
    return 0


def test_eight_protocols_have_eight_colours_of_the_style_sheet():
    colours = palette([f"protocol-{k}" for k in range(8)]).values()
    assert len(set(colours)) == 8
    css = (files("dfl_unlearn") / "pages" / "page.css").read_text()
    for colour in colours:
        # Light, dark by the system, dark by choice, and paper.
        assert css.count(f" {colour.removeprefix('var(').rstrip(')')}: ") == 4


def test_an_axis_that_a_joined_sweep_lacks_is_not_named():
    assert axis_words(["a", "b", "c"], [0.5, "", "ring"]) == "a = 0.5, c = ring"


def joined(tmp_path, seeds):
    """Two folders with more seeds of the same points; the second is heuristic."""
    claims = zip(("first", "more"), ("certified", "heuristic"), seeds, strict=True)
    return SweepView.join(
        [
            privacy_sweep(tmp_path / name, name=name, status=status, seeds=given)
            for name, status, given in claims
        ]
    )


def test_a_point_of_joined_sweeps_keeps_its_claims_and_gaps(tmp_path):
    sweep = SweepLines(joined(tmp_path, [(0, 1), (2, 3)]))
    newton = [line for line in sweep.accuracy if line.group[1] == "newton-fisher"]
    assert len(newton) == 6
    assert {line.group[0][0] for line in newton} == {"first + more"}
    assert {sweep.claim(line.group).status for line in newton} == {"certified"}
    assert {sweep.gaps[line.group][2] for line in newton} == {4}
    walk = [line for line in sweep.accuracy if line.group[1] == "rr-du"]
    assert {sweep.claim(line.group).status for line in walk} == {"heuristic"}
    assert {sweep.claim(line.group).epsilon for line in walk} == {None}


def test_a_page_of_joined_sweeps_says_which_lies_where(tmp_path):
    view = joined(tmp_path, [(0, 1), (2, 3)])
    page = sweep_page(view)
    words = text_of(page)
    assert "Each point was asked for with 4 seeds" in words
    assert "none has a result yet" not in words
    table = re.search(r'id="cases-table".*?</table>', page, re.S).group(0)
    assert len(re.findall(">first<", table)) == len(re.findall(">more<", table)) == 12


def test_joined_sweeps_of_one_name_keep_their_own_claims(tmp_path):
    folders = [
        privacy_sweep(tmp_path / status, status=status, seeds=(k,))
        for k, status in enumerate(("certified", "heuristic"))
    ]
    words = text_of(sweep_page(SweepView.join(folders)))
    first, second = words.split("made (2) Varied")
    assert "rr-du (certified)" in first
    assert "rr-du (heuristic)" in second
