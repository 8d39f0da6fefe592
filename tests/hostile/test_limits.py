"""Every cap refuses before memory is taken, names itself, and ends with exit code 5."""

import numpy as np
import pytest

from dfl_unlearn import PeerData, load_topology
from dfl_unlearn._limits import DENSE_PEERS, EDGES, MESSAGES, PEERS, check_cap
from dfl_unlearn.accounting.gossip_view import linear_view_mu
from dfl_unlearn.accounting.network import network_dp_pairwise
from dfl_unlearn.data.sources import datasets
from dfl_unlearn.engine import transport
from dfl_unlearn.engine.transport import Transport
from dfl_unlearn.errors import InvalidHyperparameterError, ResourceError
from dfl_unlearn.models.zoo import models
from dfl_unlearn.record.influence import influence_matrix
from dfl_unlearn.unlearning.contracts import unlearners

SQUARE = {"input_shape": (8, 8), "num_classes": 10}
REFUSED = {
    "peers": (
        lambda: load_topology("ring", n=200_000),
        r"at most 100000 peers, got 200000",
    ),
    "edges": (
        lambda: load_topology("complete", n=4000),
        r"at most 5000000 edges, got 7998000",
    ),
    "features of synthetic data": (
        lambda: PeerData.load(
            "gaussian-classes", peers=2, dataset_options={"dim": 10**9}
        ),
        r"gaussian-classes: must have at most 4294967296 bytes of arrays, got 60",
    ),
    "rows of synthetic data": (
        lambda: datasets.build("gaussian-classes", per_class=10**12),
        r"bytes of arrays",
    ),
    "parameters of an mlp": (
        lambda: models.build("mlp", hidden=(10**6, 10**6), **SQUARE),
        r"model: must have at most 500000000 parameters, got 1000076000010",
    ),
    "parameters of a small-cnn": (
        lambda: models.build("small-cnn", channels=(10**5, 10**5), **SQUARE),
        r"500000000 parameters",
    ),
    "parameters of a resnet8": (
        lambda: models.build("resnet8", width=8000, groups=8, **SQUARE),
        r"500000000 parameters",
    ),
    "a dense view of gossip": (
        lambda: linear_view_mu(
            load_topology("ring", n=2001).weights,
            source=0,
            rounds=1,
            noise_multiplier=1.0,
        ),
        r"linear_view_mu: must have at most 2000 peers for a dense N x N matrix",
    ),
    "powers of a matrix": (
        lambda: linear_view_mu(
            load_topology("ring", n=2000).weights,
            source=0,
            rounds=1000,
            noise_multiplier=1.0,
        ),
        r"linear_view_mu: must have at most 4294967296 bytes of arrays, got 3200",
    ),
    "privacy between all pairs": (
        lambda: network_dp_pairwise(
            [2.0],
            load_topology("ring", n=2001).weights,
            source=0,
            rounds=1,
            noise_multiplier=1.0,
        ),
        r"network_dp_pairwise: must have at most 2000 peers for a dense",
    ),
    "a dense matrix of influence": (
        lambda: influence_matrix(load_topology("ring", n=2001), 3),
        r"influence_matrix: must have at most 2000 peers for a dense N x N matrix, "
        r"got 2001; use a smaller network or a sparse method",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_cap_refuses_and_names_itself(case):
    ask, message = REFUSED[case]
    with pytest.raises(ResourceError, match=message) as caught:
        ask()
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("name", ["mlp", "small-cnn", "resnet8"])
def test_the_count_before_building_is_the_count_after(name, monkeypatch):
    """The cap sees every weight; only normalization and some biases may be left out."""
    seen = []
    module = "dfl_unlearn.models." + ("resnet" if name == "resnet8" else "zoo")
    monkeypatch.setattr(f"{module}.check_cap", lambda cap, n, where: seen.append(n))
    built = models.build(name, **SQUARE)
    assert 0.98 * built.size <= seen[0] <= built.size


def test_messages_of_one_step_are_capped(monkeypatch):
    monkeypatch.setattr(transport, "MESSAGES", MESSAGES._replace(most=5))
    carried = Transport(load_topology("ring", n=3))
    with pytest.raises(ResourceError, match=r"'x'.*at most 5 messages in flight.*6"):
        carried.exchange("x", 8)
    assert len(carried.log) == 0


@pytest.mark.parametrize("cap", [PEERS, EDGES, DENSE_PEERS])
def test_a_cap_is_inclusive_and_nan_never_passes(cap):
    check_cap(cap, cap.most, "here")
    for value in (cap.most + 1, np.inf, np.nan):
        with pytest.raises(ResourceError, match=f"here: .*{cap.name}"):
            check_cap(cap, value, "here")


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("fine-tune", "rounds"),
        ("newton-fisher", "recovery_rounds"),
        ("newton-fisher", "newton_steps_max"),
        ("rr-du", "hops"),
        ("rr-du", "max_visits"),
        ("rr-du", "local_batches"),
    ],
)
def test_no_protocol_runs_for_ever(name, field):
    for value in (2**31, 2**63, 10**30):
        with pytest.raises(InvalidHyperparameterError, match=rf"{field}: .*<= 10\d+"):
            unlearners.build(name, **{field: value})
