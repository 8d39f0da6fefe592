import dataclasses
import itertools
import json
import math

import pytest

from dfl_unlearn.accounting.certificate import (
    Assumption,
    Certificate,
    certify,
    status_of,
)
from dfl_unlearn.accounting.gaussian import gaussian_noise_std
from dfl_unlearn.accounting.mechanisms import GaussianMechanism
from dfl_unlearn.accounting.rdp import curve_of
from dfl_unlearn.errors import (
    DflUnlearnError,
    InvalidArgumentError,
    NumericalError,
    StoreCorruptError,
)

SOURCES = ("proven", "clipped", "set", "measured", "estimated", "assumed")
STATES = ("held", "violated", "unknown")
PROVEN = Assumption(
    name="strong convexity", value=0.01, source="proven", note="l2 of the model"
)


def certificate(assumptions=(PROVEN,), **changes):
    given = {
        "method": "newton-fisher",
        "request_id": "r7",
        "group_size": 12,
        "scope": "joint",
        "epsilon": 1.0,
        "delta": 1e-5,
        "sensitivity": 0.05,
        "bound": "capped",
        "noise_std": gaussian_noise_std(1.0, 1e-5, 0.05),
        "accountant": "exact_gaussian",
        "assumptions": assumptions,
        "observers": tuple(f"peer:{i}" for i in range(8)),
        "exposure": ("peer:4 received 200 messages of peer:2 before the request",),
        **changes,
    }
    return certify(**given)


def exact(**changes):
    nothing = {"epsilon": 0.0, "delta": 0.0, "sensitivity": 0.0, "noise_std": 0.0}
    words = {"bound": "none", "accountant": "none", "exact": True}
    return certificate(method="retrain", **{**nothing, **words, **changes})


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("is_exact", [False, True])
def test_status_follows_from_source_and_state(source, state, is_exact):
    one = Assumption(name="M", value=1.0, source=source, state=state)
    if state == "violated" or source == "estimated":
        expected = "heuristic"
    elif state == "unknown" or source == "assumed":
        expected = "certified_conditional"
    else:
        expected = "exact" if is_exact else "certified"
    assert status_of([PROVEN, one], exact=is_exact) == expected
    assert status_of([one, PROVEN], exact=is_exact) == expected


def test_adaptive_requests_and_kept_state_lower_any_status():
    for adaptive, kept, is_exact in itertools.product([False, True], repeat=3):
        status = status_of([PROVEN], adaptive=adaptive, kept_state=kept, exact=is_exact)
        if adaptive or kept:
            assert status == "certified_conditional"
        else:
            assert status == ("exact" if is_exact else "certified")
    bad = Assumption(name="M", value=1.0, source="estimated")
    assert status_of([bad], adaptive=True, exact=True) == "heuristic"


def test_a_certified_claim_has_its_numbers_and_no_reasons():
    given = certificate()
    assert given.status == "certified"
    assert (given.epsilon, given.delta) == (1.0, 1e-5)
    assert (given.nominal_epsilon, given.nominal_delta) == (None, None)
    assert given.reasons == ()
    text = str(given)
    assert text.startswith("CERTIFIED\n")
    assert "(ε, δ) = (1, 1e-05)   accountant: exact_gaussian" in text
    assert "strong convexity = 0.01   proven, held (l2 of the model)" in text
    assert "noise: simulated, not for deployment" in text
    assert "peer:0, peer:1, … peer:7 (8)" in text


def test_a_heuristic_result_has_only_nominal_numbers_and_says_so():
    fisher = Assumption(name="Fisher error", value=0.3, source="estimated")
    given = certificate((PROVEN, fisher))
    assert given.status == "heuristic"
    assert (given.epsilon, given.delta) == (None, None)
    assert (given.nominal_epsilon, given.nominal_delta) == (1.0, 1e-5)
    assert str(given).startswith(
        "HEURISTIC — not a certified (ε,δ) guarantee: Fisher error: estimated\n"
    )
    assert "nominal (ε, δ) = (1, 1e-05): would hold if the reasons did not" in str(
        given
    )


def test_conditional_and_pending_results_say_why():
    assumed = Assumption(name="M", value=1.0, source="assumed")
    unknown = Assumption(name="L", value=1.0, source="proven", state="unknown")
    given = certificate((assumed, unknown), adaptive=True, kept_state=True)
    assert given.status == "certified_conditional"
    assert given.epsilon == 1.0
    assert given.reasons == (
        "M: assumed",
        "L: unknown",
        "request may depend on released models: the guarantee covers requests fixed "
        "in advance only",
        "pre-request state is kept at peers",
    )
    assert "not higher because:\n    - M: assumed" in str(given)
    pending = certificate(pending_peers=(3, 5))
    assert (pending.status, pending.epsilon) == ("pending", None)
    assert pending.nominal_epsilon == 1.0
    assert "not corrected yet: peer:3, peer:5" in str(pending)


def test_exact_means_zero_and_no_noise():
    given = exact()
    assert given.status == "exact"
    assert (given.epsilon, given.delta) == (0, 0)
    assert "(ε, δ) = (0, 0)" in str(given)
    assert "noise: none" in str(given)
    with pytest.raises(InvalidArgumentError, match="epsilon: must be 0"):
        exact(epsilon=1.0, delta=1e-5)


@pytest.mark.parametrize("make", [certificate, exact])
def test_every_certificate_ends_with_what_it_does_not_cover(make):
    limits = str(make()).partition("  does not cover:\n")[2]
    assert all(line.startswith("    - ") for line in limits.splitlines())
    for words in (
        "before/after comparison",
        "messages sent before the request",
        "adaptive requests",
        "real arithmetic",
    ):
        assert words in limits


def test_epsilon_above_ten_is_called_weak():
    loud = {"epsilon": 10.5, "noise_std": 1.0}
    assert "weak: ε > 10" in certificate(**loud).notes
    assert "weak: ε > 10" in str(certificate(**loud))
    assert certificate(epsilon=10.0, noise_std=1.0).notes == ()


def test_printed_bounds_err_upwards():
    text = str(
        certificate(epsilon=1.00000001, sensitivity=0.0123456789, noise_std=0.98765432)
    )
    assert "(1.00001, 1e-05)" in text
    assert "Δ = 0.0123457" in text
    assert "noise std 0.987654" in text


def test_noise_that_does_not_carry_the_claim_is_refused():
    std = gaussian_noise_std(1.0, 1e-5, 0.05)
    with pytest.raises(InvalidArgumentError, match="noise_std: must carry the claim"):
        certificate(noise_std=std * 0.999)
    classic = gaussian_noise_std(10.0, 1e-5, 0.05, "classic", reproduce=True)
    with pytest.raises(InvalidArgumentError, match=r"whose delta is 2\.27e-05"):
        certificate(epsilon=10.0, noise_std=classic)
    with pytest.raises(InvalidArgumentError, match="must carry"):
        certificate(noise_std=0.0)


def test_nobody_can_write_a_better_status_by_hand():
    estimated = Assumption(name="M", value=1.0, source="estimated")
    heuristic = certificate((estimated,))
    raised = {"epsilon": 1.0, "delta": 1e-5}
    lowered = {"nominal_epsilon": None, "nominal_delta": None}
    with pytest.raises(InvalidArgumentError, match="at most 'heuristic'"):
        dataclasses.replace(
            heuristic, status="certified", reasons=(), **raised, **lowered
        )
    with pytest.raises(InvalidArgumentError, match="epsilon: must be None"):
        dataclasses.replace(heuristic, **raised)
    with pytest.raises(InvalidArgumentError, match="reasons: must say why"):
        dataclasses.replace(heuristic, reasons=())
    with pytest.raises(InvalidArgumentError, match="nominal_epsilon: must be None"):
        dataclasses.replace(certificate(), epsilon=None)
    with pytest.raises(InvalidArgumentError, match="pending_peers"):
        dataclasses.replace(certificate(), pending_peers=(1,))


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"scope": "network"}, InvalidArgumentError, "scope: .* got 'network'"),
        ({"bound": "guess"}, InvalidArgumentError, "bound: .* got 'guess'"),
        ({"accountant": "gdp"}, InvalidArgumentError, "accountant: .* got 'gdp'"),
        ({"sensitivity": math.nan}, NumericalError, "must be finite, got nan"),
        ({"noise_std": math.inf}, NumericalError, "must be finite, got inf"),
        ({"epsilon": math.inf}, NumericalError, "epsilon: must be finite"),
        ({"group_size": 0}, InvalidArgumentError, "group_size: .* got 0"),
        ({"observers": ("bob",)}, InvalidArgumentError, "observer: .* got 'bob'"),
        ({"request_id": "r 7"}, InvalidArgumentError, "request_id: .* got 'r 7'"),
        (
            {"assumptions": (Assumption(name="M", value=math.inf, source="set"),)},
            InvalidArgumentError,
            "M must be finite",
        ),
        (
            {"assumptions": (Assumption(name="M", value=1.0, source="felt"),)},
            InvalidArgumentError,
            "source: .* got 'felt'",
        ),
    ],
)
def test_impossible_fields_are_refused(changes, error, words):
    with pytest.raises(error, match=words):
        certificate(**changes)


def test_rdp_certificates_keep_their_curve():
    noise = GaussianMechanism(noise_std=0.4, sensitivity=0.05)
    curve = curve_of(noise).restrict((2.0, 3.0))
    epsilon = curve.to_epsilon(1e-5).epsilon
    given = certificate(
        epsilon=epsilon, noise_std=0.4, accountant="rdp", curve=curve, notes=("one",)
    )
    assert given.rdp_orders == (2.0, 3.0)
    assert given.rdp == tuple(curve.values)
    assert given.order_at_edge
    assert "order grid exhausted: bound may be loose" in str(given)
    assert Certificate.from_json(given.to_json()) == given


@pytest.mark.parametrize(
    "given",
    [
        certificate(),
        exact(),
        certificate(group_size=None, pending_peers=(1, 2)),
        certificate((Assumption(name="c", value="convex", source="assumed"),)),
    ],
)
def test_json_gives_back_an_equal_certificate(given):
    record = json.loads(given.to_json())
    names = [field.name for field in dataclasses.fields(Certificate)]
    assert list(record) == ["format", *names]
    assert record["format"] == 1
    assert Certificate.from_json(given.to_json()) == given


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.pop("scope"),
        lambda r: r.update(extra=1),
        lambda r: r.update(format=2),
        lambda r: r.pop("format"),
        lambda r: r.update(status="approved"),
        lambda r: r.update(noise_std=0.01),
        lambda r: r.update(epsilon="1"),
        lambda r: r.update(assumptions=[{"name": "M"}]),
        lambda r: r["assumptions"][0].update(source="estimated"),
        lambda r: r.update(observers=[1]),
        lambda r: r.update(observers=[["peer:1"]]),
        lambda r: r.update(epsilon=math.nan),
    ],
)
def test_changed_files_are_refused(change):
    record = json.loads(certificate().to_json())
    change(record)
    with pytest.raises(StoreCorruptError, match=r"certificate\.json: must be"):
        Certificate.from_json(json.dumps(record))


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "1", '{"format": 1}'])
def test_other_texts_are_refused(text):
    with pytest.raises(DflUnlearnError, match=r"certificate\.json"):
        Certificate.from_json(text)


def test_html_is_escaped_and_names_the_status():
    given = certificate(exposure=("<script>alert(1)</script>\x1b[31m",))
    page = given._repr_html_()
    assert 'class="dfl-certificate dfl-certified"' in page
    assert "&lt;script&gt;" in page
    assert "<script>" not in page
    assert "\x1b" not in page
