"""Tables over forget sets: published numbers, controls and certificates."""

import math
from dataclasses import fields, replace

import numpy as np
import pytest

from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.engine.config import SimulationConfig
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.errors import InvalidArgumentError, InvalidTypeError, MissingInputError
from dfl_unlearn.evaluation.comparison import (
    FOUR,
    MINIMUM,
    Line,
    compare,
    measure,
    read_lines,
    write_lines,
)
from dfl_unlearn.evaluation.view import evaluate
from dfl_unlearn.unlearning.apply import unlearn
from dfl_unlearn.unlearning.protocols.at_peer import AtPeer


def line(method, four, *, seed=0, js=0.0, **changes):
    """A line with FA, RA, TA and MIA(a) in percent."""
    values = dict.fromkeys(MINIMUM, 0.5) | {"prediction-js": js}
    values |= {name: x / 100 for name, x in zip(FOUR, four, strict=True)}
    given = {
        "setting": "digits",
        "method": method,
        "seed": seed,
        "values": values,
        "seconds": 2.0,
        "sample_gradients": 50,
        "certificate": "none",
        "epsilon": None,
        "delta": None,
    }
    return Line(**given | changes)


def retrained(four, *, seed=0, method="retrain"):
    exact = {"certificate": "exact", "epsilon": 0.0, "delta": 0.0}
    return line(method, four, seed=seed, sample_gradients=200, **exact)


RETRAIN = (94.61, 100, 94.25, 76.26)
ORIGINAL = (100, 100, 94.6, 90)


def with_controls(*lines, seeds=(0,), truth=RETRAIN, original=ORIGINAL):
    found = []
    for seed in seeds:
        found += [
            line("original", original, seed=seed, sample_gradients=0),
            retrained(truth, seed=seed),
            retrained(truth, seed=seed, method="retrain-2"),
        ]
    return [*found, *lines]


def test_the_published_gap_of_sfron_is_reproduced():
    table = compare(with_controls(line("sfron", (94.67, 99.83, 93.98, 77.80))))
    assert 100 * table.row("digits", "sfron").gap == pytest.approx(0.51, abs=1e-12)
    assert table.row("digits", "retrain").gap == 0


def test_signed_errors_of_forget_sets_cancel_in_the_gap_and_not_in_the_paired_one():
    up, down = (RETRAIN[0] + 4, *RETRAIN[1:]), (RETRAIN[0] - 4, *RETRAIN[1:])
    lines = with_controls(line("a", up), line("a", down, seed=1), seeds=(0, 1))
    row = compare(lines).row("digits", "a")
    assert row.gap == pytest.approx(0, abs=1e-15)
    assert 100 * row.paired_gap == pytest.approx(1)  # 4 points in one figure of four
    assert 100 * row.std == pytest.approx(1)  # numpy's with ddof=0


@pytest.mark.parametrize("seed", range(3))
def test_gaps_and_spread_equal_the_loops_over_sets_and_figures(seed):
    draw = np.random.default_rng(seed)
    ours, truth = 100 * draw.random((2, 5, 4))
    lines = [
        made
        for k in range(5)
        for made in (
            *with_controls(line("a", ours[k], seed=k), seeds=(k,), truth=truth[k]),
        )
    ]
    row = compare(lines).row("digits", "a")
    gaps = [abs(sum(ours[:, j]) / 5 - sum(truth[:, j]) / 5) for j in range(4)]
    assert 100 * row.gap == pytest.approx(sum(gaps) / 4)
    pairs = [abs(ours[k, j] - truth[k, j]) for k in range(5) for j in range(4)]
    assert 100 * row.paired_gap == pytest.approx(sum(pairs) / 20)
    assert row.paired_gap >= row.gap
    spreads = [
        math.sqrt(sum((x - sum(ours[:, j]) / 5) ** 2 for x in ours[:, j]) / 5)
        for j in range(4)
    ]
    assert 100 * row.std == pytest.approx(sum(spreads) / 4)


def test_work_is_compared_with_retraining_on_the_same_sets():
    row = compare(with_controls(line("a", RETRAIN))).row("digits", "a")
    assert (row.sample_gradients, row.to_retrain, row.seconds) == (50, 0.25, 2.0)


def test_a_setting_where_doing_nothing_is_enough_cannot_rank_methods():
    near = tuple(x + 1 for x in RETRAIN)
    assert any(
        "cannot rank" in text and "1.00 points" in text
        for text in compare(with_controls(original=near)).warnings
    )
    told = compare(with_controls()).warnings
    assert not any("cannot rank" in text for text in told)


def test_a_setting_where_two_retrainings_differ_as_much_cannot_rank_methods():
    lines = with_controls(original=(RETRAIN[0] + 20, *RETRAIN[1:]))
    assert not any("cannot rank" in text for text in compare(lines).warnings)
    lines[2] = retrained((RETRAIN[0] - 12, *RETRAIN[1:]), method="retrain-2")
    assert any("cannot rank" in text for text in compare(lines).warnings)


def test_few_or_uneven_forget_sets_are_told():
    five = with_controls(line("a", RETRAIN), seeds=range(5))
    assert any("1 to 5 forget sets" in text for text in compare(five).warnings)
    full = with_controls(
        *(line("a", RETRAIN, seed=k) for k in range(5)), seeds=range(5)
    )
    assert compare(full).warnings == ()


@pytest.mark.parametrize("control", ["original", "retrain", "retrain-2"])
def test_no_table_without_its_controls(control):
    lines = [x for x in with_controls(line("a", RETRAIN)) if x.method != control]
    with pytest.raises(MissingInputError, match=f"'digits' without {control}"):
        compare(lines)


def test_a_forget_set_without_its_retraining_is_refused():
    lines = with_controls(line("a", RETRAIN, seed=3))
    with pytest.raises(MissingInputError, match=r"a in 'digits' with seeds \[3\]"):
        compare(lines)


def test_a_line_counts_once():
    twice = [line("a", RETRAIN)] * 2
    with pytest.raises(InvalidArgumentError, match=r"two of a with seed 0"):
        compare(with_controls(*twice))


def test_a_line_cannot_be_made_without_its_certificate():
    given = {f.name: getattr(line("a", RETRAIN), f.name) for f in fields(Line)}
    for name in ("certificate", "epsilon", "delta"):
        with pytest.raises(TypeError, match=name):
            Line(**{k: v for k, v in given.items() if k != name})


@pytest.mark.parametrize(
    ("status", "epsilon"), [("none", 1.0), ("heuristic", 1.0), ("certified", None)]
)
def test_an_epsilon_stands_exactly_beside_a_claim(status, epsilon):
    with pytest.raises(InvalidArgumentError, match=rf"epsilon.*'{status}'"):
        line("a", RETRAIN, certificate=status, epsilon=epsilon)


def test_a_line_needs_the_minimum():
    values = {k: v for k, v in line("a", RETRAIN).values.items() if k != "mia-entropy"}
    with pytest.raises(MissingInputError, match="without mia-entropy"):
        replace(line("a", RETRAIN), values=values)


def test_a_table_is_made_of_lines():
    with pytest.raises(InvalidTypeError, match="lines"):
        compare([{"method": "a"}])


def certified(seed, epsilon, status="certified", reasons=()):
    claim = {"certificate": status, "epsilon": epsilon, "delta": 1e-5}
    return line("a", RETRAIN, seed=seed, reasons=reasons, **claim)


def test_a_row_claims_what_its_weakest_line_does():
    sets = with_controls(seeds=(0, 1))
    row = compare([*sets, certified(0, 1.0), certified(1, 2.0)]).row("digits", "a")
    assert (row.certificate, row.epsilon, row.delta) == ("certified", 2.0, 1e-5)
    mixed = [certified(0, 1.0), line("a", RETRAIN, seed=1)]
    row = compare([*sets, *mixed]).row("digits", "a")
    assert (row.certificate, row.epsilon, row.delta) == ("none", None, None)
    weak = certified(1, 1.0, "certified_conditional", ("L assumed",))
    row = compare([*sets, certified(0, 3.0), weak]).row("digits", "a")
    assert (row.certificate, row.epsilon) == ("certified_conditional", 3.0)
    assert row.reasons == ("L assumed",)


def test_the_printed_table_has_the_four_figures_and_the_certificate():
    text = str(compare(with_controls(certified(0, 1.00001))))
    header = text.splitlines()[1]
    names = ("FA", "RA", "TA", "MIA(a)", "AUC(c)", "TPR@1%", "JS", "gap", "paired gap")
    for name in (*names, "std", "seconds", "gradients", "certificate", "reasons"):
        assert name in header
    assert "UA" not in header
    (row,) = [x for x in text.splitlines() if x.startswith("a ")]
    assert "94.6±0.0" in row
    assert "certified (1.001, 1e-05)" in row  # rounded up
    (row,) = [x for x in text.splitlines() if x.startswith("original ")]
    assert " none " in row


def test_rows_stand_in_order_and_fractions_stay_fractions():
    table = compare([line("b", RETRAIN), line("a", RETRAIN), *with_controls()])
    frame = table.frame
    assert frame["method"].tolist() == ["original", "retrain", "retrain-2", "b", "a"]
    assert frame["forget-accuracy"].tolist()[1] == pytest.approx(0.9461)
    assert frame["certificate"].tolist() == ["none", "exact", "exact", "none", "none"]
    assert frame["epsilon"].isna().tolist() == [True, False, False, True, True]


def test_a_table_is_written_as_csv(tmp_path):
    table = compare(with_controls(certified(0, 1.5)))
    rows = table.to_csv(tmp_path / "t.csv").read_text().splitlines()
    assert len(rows) == 5
    assert rows[0].startswith("setting,method,sets,forget-accuracy,")
    assert ",certified,1.5,1e-05," in rows[4]


def test_lines_come_back_from_csv_as_they_were(tmp_path):
    odd = {"prediction-js": math.nan, "mia-update": 0.1 + 0.2}
    lines = (
        certified(0, 1 / 3, "certified_conditional", ("a, b", 'c "d"')),
        line("x", (1, 2, 3, 100 / 3), seed=4, note="oracle-tuned", seconds=0.1),
        replace(line("y", RETRAIN), values=line("y", RETRAIN).values | odd),
    )
    back = read_lines(write_lines(lines, tmp_path / "lines.csv"))
    assert back[:2] == lines[:2]
    assert math.isnan(back[2].values["prediction-js"])
    assert back[2].values["mia-update"] == 0.1 + 0.2
    assert "mia-update" not in back[0].values


def test_another_table_is_not_read_as_lines(tmp_path):
    path = tmp_path / "other.csv"
    path.write_text("method,gap\na,0.1\n")
    with pytest.raises(InvalidArgumentError, match="method"):
        read_lines(path)
    write_lines([line("a", RETRAIN)], path)
    path.write_text(path.read_text().replace(",50,", ",many,"))
    with pytest.raises(InvalidArgumentError, match=r"row 2.*many"):
        read_lines(path)


@pytest.fixture(scope="module")
def outcome():
    data = PeerData.load("gaussian-classes", peers=3, seed=0)
    run = simulate("ring", data, "logistic", SimulationConfig(rounds=8))
    request = ForgetRequest.samples(peer=1, fraction=0.3)
    return unlearn(run, request, AtPeer(), reference=True)


def network(outcome, name, world, peer=-1):
    (row,) = evaluate(outcome, name, worlds=world).filter(peer=peer).rows
    return row["value"]


@pytest.mark.parametrize("peer", [None, 1])
def test_a_measured_line_has_the_metrics_of_its_outcome(outcome, peer):
    made = measure(outcome, setting="s", seed=3, metrics=["zrf"], peer=peer)
    assert made.method == "at-peer.fine-tune"
    assert set(made.values) == {*MINIMUM, "zrf"}
    for name, value in made.values.items():
        place = -1 if peer is None else peer
        assert value == network(outcome, name, "after", place)
    assert made.sample_gradients == outcome.cost.gradient_evaluations > 0
    assert (made.certificate, made.epsilon) == ("none", None)


def test_nothing_is_compared_without_a_reference(outcome):
    with pytest.raises(MissingInputError, match="reference=True"):
        measure(replace(outcome, reference=None), setting="s", seed=0)


def test_a_claim_goes_into_the_line(outcome):
    exact = unlearn(outcome.run, outcome.request, "retrain", reference=True)
    made = measure(exact, setting="s", seed=0)
    assert made.certificate == exact.certificate.status
    assert (made.epsilon, made.delta) == (0, 0)
    assert made.reasons == exact.certificate.reasons
    assert made.values["prediction-js"] == 0
