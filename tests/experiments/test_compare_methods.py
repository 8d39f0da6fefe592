"""The comparison goes on where it stopped, and says where DualOptim does not help."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dfl_unlearn.evaluation.comparison import MINIMUM, Line, compare
from dfl_unlearn.unlearning.methods.fine_tune import FineTune

SCRIPTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    before = set(sys.modules)
    import compare_methods

    yield compare_methods
    for name in set(sys.modules) - before:
        if str(SCRIPTS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def line(method, seed, off, setting="digits, class, one model"):
    exact = method.startswith("retrain")
    return Line(
        setting=setting,
        method=method,
        seed=seed,
        values=dict.fromkeys(MINIMUM, 0.5 + off),
        seconds=1.0,
        sample_gradients=10,
        certificate="exact" if exact else "none",
        epsilon=0.0 if exact else None,
        delta=0.0 if exact else None,
    )


def test_pairs_say_what_became_lower_and_where_nothing_did(script):
    offs = {
        "original": (0.3, 0.3),
        "retrain": (0.0, 0.0),
        "retrain-2": (0.0, 0.01),
        "sfron": (0.2, -0.2),  # cancels in the gap, not in the paired one
        "sfron + dual": (0.01, 0.03),
        "salun": (0.01, 0.03),
        "salun + dual": (0.1, 0.3),
        "alone + dual": (0.0, 0.0),
    }
    table = compare(line(name, s, off[s]) for name, off in offs.items() for s in (0, 1))
    pairs = script.dual_pairs(table).set_index("base")
    assert list(pairs.index) == ["sfron", "salun"]
    assert pairs.loc["sfron", "lower"] == "paired gap, std"
    assert pairs.loc["sfron", "std ratio"] == 20
    assert pairs.loc["salun", "lower"] == "nothing"


def test_a_store_reads_back_what_it_wrote_and_forgets_a_line_that_is_refused(
    script, tmp_path
):
    key = ("digits, class, one model", "salun", 0)
    store = script.Store(tmp_path)
    store.add({key: (line("salun", 0, 0.1), {"digest": "abc", "fields": "{}"})})
    again = script.Store(tmp_path)
    assert again.lines == store.lines
    assert again.digests() == {"digits, class, one model | salun | 0": "abc"}
    again.add({key: (None, {"digest": "def", "refused": "because"})})
    third = script.Store(tmp_path)
    assert third.lines == {}
    assert list(third.digests().values()) == ["def"]


def test_whatever_changes_a_line_changes_its_digest(script, monkeypatch):
    training = script.TRAININGS["digits"]
    alone = script.Case(training=training, setting="class", network=False, seed=0)
    peer = replace(alone, network=True)
    base = FineTune()

    def all_four():
        return [
            script.digest(case, method)
            for case in (alone, peer)
            for method in (None, base)
        ]

    before = all_four()
    others = [
        script.digest(alone, base, tuned=True),
        script.digest(alone, FineTune(epochs=2)),
        script.digest(replace(alone, validation=True), base),
        script.digest(replace(alone, training=replace(training, rounds=2)), base),
    ]
    assert len({*before, *others}) == 8
    for module, name, value in (
        (script, "FORMAT", 0),
        (script.forget_sets, "VERSION", 0),
        (script.method_cases, "METRICS", ("mia-confidence",)),
        (script.method_cases, "PEERS", 9),
        (script.method_cases, "MIXING_ROUNDS", 4),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(module, name, value)
            now = all_four()
        assert not set(now[2:]) & set(before[2:]), name
        # What is about networks leaves the lines of one model as they are.
        assert (now[:2] == before[:2]) == (name in ("PEERS", "MIXING_ROUNDS"))
    assert all_four() == before


def test_a_line_that_says_tuned_is_not_taken_for_one_that_does_not(script):
    training = replace(script.TRAININGS["digits"], rounds=1, hidden=(4,))
    case = script.Case(training=training, setting="mislabel", network=False, seed=0)
    chosen = {"fine-tune": FineTune(epochs=1)}
    found = script.lines_of(case, chosen, frozenset(), {})
    done = {" | ".join(map(str, k)): e["digest"] for k, (_, e) in found.items()}
    now = script.lines_of(case, chosen, frozenset({"fine-tune"}), done)
    assert now[case.name("one model"), "fine-tune", 0][0].note == "oracle-tuned"


def test_what_is_done_is_not_done_again_unless_fields_change(script, monkeypatch):
    training = replace(script.TRAININGS["digits"], rounds=1, hidden=(4,))
    case = script.Case(training=training, setting="mislabel", network=False, seed=0)
    chosen = {"fine-tune": FineTune(epochs=1)}
    found = script.lines_of(case, chosen, frozenset({"fine-tune"}), {})
    assert {key[1] for key in found} == {*script.CONTROLS, "fine-tune"}
    assert found[case.name("one model"), "fine-tune", 0][0].note == "oracle-tuned"
    done = {" | ".join(map(str, k)): e["digest"] for k, (_, e) in found.items()}

    def never(*_):
        raise AssertionError("trained again")

    with monkeypatch.context() as patched:
        patched.setattr(script, "prepare", never)
        assert script.lines_of(case, chosen, frozenset({"fine-tune"}), done) == {}
    other = {"fine-tune": FineTune(epochs=2)}
    names = {key[1] for key in script.lines_of(case, other, frozenset(), done)}
    assert "fine-tune" in names
