"""Any fields of a protocol give an outcome or a named error, in finite time."""

import typing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfl_unlearn import (
    ForgetRequest,
    PeerData,
    SimulationConfig,
    load_topology,
    simulate,
    unlearn,
)
from dfl_unlearn._strict import read_strict, settings_of
from dfl_unlearn.engine.config import LocalSteps
from dfl_unlearn.errors import DflUnlearnError
from dfl_unlearn.unlearning.contracts import unlearners
from dfl_unlearn.unlearning.forms import REGISTRIES

# Steps of length 10^6 pass infinity on the way to the refusal.
pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),  # e.g. a large delta
]

ODD = st.sampled_from(
    [
        *(0, -1, 1, 2, 3, 2**31, 2**63, 10**30, True, False, "", "x", "none"),
        *(0.0, 1e-3, 0.5, 0.999, 1.0, 1e6, 1e308, 5e-324, -0.5),
        *(float("inf"), float("nan"), [], [1], {}),
    ]
)
REQUESTS = (
    ForgetRequest.samples(1, fraction=0.2),
    ForgetRequest.whole_peer(2),
    ForgetRequest.class_(0),
)
# Fields that may ask for minutes of honest work; their caps have a test of their own.
SLOW = {"hops", "rounds", "recovery_rounds", "local_batches"}


def value_of(name, annotation):
    """An option's words mostly, else something odd."""
    if name in SLOW:
        return st.integers(-1, 20) | st.sampled_from([2**63, 0.5, "x"])
    words = [
        word
        for member in (annotation, *typing.get_args(annotation))
        if typing.get_origin(member) is typing.Literal
        for word in typing.get_args(member)
    ]
    return st.sampled_from(words) | st.sampled_from(words) | ODD if words else ODD


@st.composite
def attempts(draw):
    """A protocol's name, up to three of its fields, and a request."""
    name = draw(st.sampled_from(unlearners.names()))
    known = settings_of(unlearners.get(name))
    chosen = draw(st.lists(st.sampled_from(sorted(known)), max_size=3, unique=True))
    fields = {key: draw(value_of(key, known[key].annotation)) for key in chosen}
    return name, fields, draw(st.sampled_from(REQUESTS))


@pytest.fixture(scope="module")
def run():
    """A small network, trained to its optimum."""
    options = {"per_class": 16, "dim": 3}
    data = PeerData.load("gaussian-classes", peers=4, dataset_options=options)
    local = LocalSteps(batch_size=None, learning_rate=0.5)
    config = SimulationConfig(rounds=40, dtype="float64", local=local)
    return simulate(load_topology("ring", n=4), data, "logistic", config)


def check(run, attempt):
    name, fields, request = attempt
    try:
        entry = unlearners.get(name)
        protocol = read_strict(entry, fields, name, registries=REGISTRIES)
        outcome = unlearn(run, request, protocol, reference=False)
    except DflUnlearnError as error:
        return error.exit_code
    assert outcome.state.params.isfinite().all()
    certificate = outcome.certificate
    if certificate is not None:
        assert str(certificate)
        assert certificate.to_json()
        claims = certificate.status in ("exact", "certified", "certified_conditional")
        assert claims or certificate.epsilon is None
    return 0


@settings(max_examples=60, deadline=None)
@given(attempt=attempts())
def test_any_fields_are_an_outcome_or_a_named_error(run, attempt):
    assert check(run, attempt) in (0, 2, 4)


@pytest.mark.chaos
@settings(max_examples=1500, deadline=None)
@given(attempt=attempts())
def test_many_more_fields_are_outcomes_or_named_errors(run, attempt):
    assert check(run, attempt) in (0, 2, 4)


def test_the_generated_fields_reach_every_end(run):
    """Otherwise the tests above could pass by refusing everything."""
    seen = set()

    @settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @given(attempt=attempts())
    def count(attempt):
        seen.add(check(run, attempt))

    count()
    assert seen == {0, 2, 4}
