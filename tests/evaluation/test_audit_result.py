import dataclasses
import json

import pytest

from dfl_unlearn.accounting.certificate import Assumption, certify
from dfl_unlearn.accounting.gaussian import gaussian_noise_std
from dfl_unlearn.errors import InvalidArgumentError, InvalidTypeError, StoreCorruptError
from dfl_unlearn.evaluation.audit_result import AuditClaim, AuditResult

CLAIM = AuditClaim(
    epsilon=1.0, delta=1e-5, scope="release", noise_std=0.4, sensitivity=0.05
)


def audit(**changes):
    given = {
        "claim": CLAIM,
        "request_id": "r7",
        "statistic": "lr-projection",
        "replicas": (2000, 2000),
        "evaluated": (1000, 1000),
        "false_positives": 31,
        "false_negatives": 902,
        "gamma": 0.05,
        "threshold": 0.25,
        "noise_std_measured": 0.3991,
        "noise_samples": 64000,
        "shift_measured": 0.0131,
        "seeds": ("audit/0/reference", "audit/0/unlearned"),
        "versions": {"numpy": "2.4.0"},
    }
    return AuditResult(**{**given, **changes})


def control(**changes):
    given = {
        "replicas": (4000, 4000),
        "evaluated": (2000, 2000),
        "false_positives": 3,
        "false_negatives": 1000,
        "noise_std_measured": None,
        "shift_measured": None,
        "label": "correction left out, shift/σ = 3",  # noqa: RUF001
    }
    return audit(**{**given, **changes})


def one_run(**changes):
    given = {
        "test": "one-run",
        "replicas": (0, 1),
        "evaluated": (0, 1),
        "false_positives": 0,
        "false_negatives": 0,
        "canaries": 1000,
        "guesses": 100,
        "correct": 80,
        "noise_std_measured": None,
        "shift_measured": None,
    }
    return audit(**{**given, **changes})


def test_a_consistent_audit_prints_its_counts_and_controls():
    result = audit(negative_controls=(control(),))
    assert result.verdict == "consistent"
    assert str(result) == (
        "AUDIT  request r7  scope release  claim (ε=1, δ=1e-05)  statistic "
        "lr-projection\n"
        "  replicas 2000+2000 (evaluated 1000+1000)   FP 31   FN 902\n"
        "  ε lower bound 0.607 (95 %)    ceiling of this audit 5.60    verdict: "
        "consistent\n"
        "  noise check: σ measured 0.3991 vs claimed 0.4 (n·p = 64,000)   "  # noqa: RUF001
        "shift 0.0131 ≤ Δ 0.05\n"
        "  negative control (correction left out, shift/σ = 3; FP 3, TP 1000): "  # noqa: RUF001
        "ε lower bound 4.69 → detected"
    )


def test_a_bound_above_the_claim_refutes_it():
    result = audit(false_positives=10, false_negatives=400)
    assert result.epsilon_lower == pytest.approx(3.43602474, abs=1e-7)
    assert result.verdict == "refuted"
    assert "verdict: REFUTED" in str(result)
    # Also where the control was not detected: the counts stand for themselves.
    missed = control(false_positives=1000)
    assert audit(
        false_positives=10, false_negatives=400, negative_controls=(missed,)
    ).verdict == ("refuted")


def test_a_claim_above_the_ceiling_is_powerless_and_never_passed():
    claim = dataclasses.replace(CLAIM, epsilon=8.0)
    result = audit(
        claim=claim,
        replicas=(400, 400),
        evaluated=(200, 200),
        false_positives=0,
        false_negatives=0,
        negative_controls=(control(claim=claim),),
    )
    assert result.verdict == "powerless"
    assert "audit powerless: ceiling 3.98 < claimed 8" in str(result)
    assert "passed" not in str(result)
    assert "consistent" not in str(result)


def test_an_undetected_control_makes_the_audit_invalid():
    missed = control(false_positives=900)
    result = audit(negative_controls=(control(), missed))
    assert result.verdict == "invalid"
    assert result.negative_control is missed
    assert str(result).endswith("ε lower bound 0.01 → NOT DETECTED")
    assert audit().negative_control is None
    assert str(audit()).endswith("negative control: not run")


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"noise_std_measured": 0.2}, "refuted"),
        ({"noise_std_measured": 0.387}, "refuted"),
        ({"noise_std_measured": 0.389}, "consistent"),
        ({"noise_std_measured": 0.43}, "invalid"),
        ({"noise_std_measured": 0.2, "noise_samples": 6000}, "powerless"),
        ({"noise_std_measured": None}, "powerless"),
        ({"shift_measured": 0.06}, "refuted"),
        ({"shift_measured": 0.06, "shift_slack": 0.02}, "consistent"),
    ],
)
def test_noise_below_the_claim_and_shift_beyond_it_refute(changes, verdict):
    result = audit(test="noise", false_positives=0, false_negatives=0, **changes)
    assert result.verdict == verdict
    if verdict == "powerless":
        assert "numbers < 6,100 needed" in str(result)


def test_a_one_run_audit_is_compared_with_what_one_record_is_promised():
    result = one_run()
    assert result.tested == pytest.approx((2, 3.71828e-5), rel=1e-5)
    assert result.verdict == "consistent"
    assert "tested: inclusion of one record (ε=2, δ=3.71829e-05)" in str(result)
    refuted = one_run(correct=95)  # 95 of 100 right guesses
    assert refuted.epsilon_lower > 2
    assert refuted.verdict == "refuted"
    # Above the set's epsilon, but not above what one record is promised.
    assert 1 < one_run(correct=88).epsilon_lower < 2
    assert one_run(correct=88).verdict == "consistent"
    assert one_run(guesses=10, correct=10).verdict == "powerless"
    vacuous = one_run(claim=dataclasses.replace(CLAIM, epsilon=12.0))
    assert (vacuous.ceiling, vacuous.verdict) == (0, "powerless")


def test_statistics_on_the_same_replicas_share_the_level():
    assert audit(comparisons=5).epsilon_lower == audit(gamma=0.01).epsilon_lower
    assert audit(comparisons=5).ceiling < audit().ceiling


@pytest.mark.parametrize(
    "result",
    [audit(), audit(negative_controls=(control(), control())), one_run()],
    ids=["plain", "with controls", "one-run"],
)
def test_the_json_twin_is_equal(result):
    text = result.to_json()
    assert AuditResult.from_json(text) == result
    assert json.loads(text)["verdict"] == result.verdict
    assert json.loads(text)["format"] == 1


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("epsilon_lower",), 0.5, "epsilon_lower: must be 0.607"),
        (("ceiling",), 9.0, "ceiling: must be 5.600"),
        (("verdict",), "refuted", "verdict: must be 'consistent'"),
        (("false_positives",), 1001, "got 1001"),
        (("false_positives",), 1.5, "got 1.5"),
        (("evaluated",), [3000, 1000], "got 3000"),
        (("gamma",), 0.0, "gamma"),
        (("format",), 2, "format must be 1"),
        (("colour",), "red", "colour"),
        (("claim", "scope"), "everything", "scope"),
        (("claim", "nominal"), 1, "nominal"),
        (("negative_controls",), [3], "must be an audit"),
    ],
)
def test_a_changed_file_is_refused(path, value, message):
    record = json.loads(audit(negative_controls=(control(),)).to_json())
    place = record
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    with pytest.raises(StoreCorruptError, match=message):
        AuditResult.from_json(json.dumps(record))


def test_a_missing_field_and_broken_text_are_refused():
    record = json.loads(audit().to_json())
    del record["seeds"]
    for text in (json.dumps(record), "{", "[]", "null"):
        with pytest.raises(StoreCorruptError, match=r"audit\.json"):
            AuditResult.from_json(text)


def test_counts_of_another_test_are_refused():
    with pytest.raises(InvalidArgumentError, match="canaries"):
        audit(canaries=3)
    with pytest.raises(InvalidArgumentError, match="false_positives"):
        one_run(false_positives=3)
    with pytest.raises(InvalidArgumentError, match=r"two numbers each.*\(4, 4, 4\)"):
        audit(replicas=(4, 4, 4))
    with pytest.raises(InvalidTypeError, match="negative_controls"):
        audit(negative_controls=("none",))


def certificate(*assumptions, epsilon=1.0):
    std = gaussian_noise_std(1.0, 1e-5, sensitivity=0.05)
    return certify(
        method="newton-fisher",
        request_id="r7",
        group_size=3,
        scope="release",
        epsilon=epsilon,
        delta=None if epsilon is None else 1e-5,
        sensitivity=0.05,
        bound="a_posteriori",
        noise_std=std,
        accountant="exact_gaussian",
        assumptions=assumptions,
        observers=("public",),
    )


def test_a_claim_comes_from_its_certificate():
    proven = Assumption(name="strong convexity", value=0.01, source="proven")
    guessed = Assumption(name="strong convexity", value=0.01, source="estimated")
    claim = AuditClaim.of(certificate(proven))
    assert (claim.epsilon, claim.delta, claim.scope) == (1.0, 1e-5, "release")
    assert (claim.sensitivity, claim.nominal) == (0.05, False)
    nominal = AuditClaim.of(certificate(guessed))
    assert nominal.nominal
    assert "nominal claim (ε=1" in str(audit(claim=nominal))
    with pytest.raises(InvalidArgumentError, match="status 'heuristic' without one"):
        AuditClaim.of(certificate(guessed, epsilon=None))
