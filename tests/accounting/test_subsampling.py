import pytest

from dfl_unlearn.accounting.ledger import PrivacyLedger
from dfl_unlearn.accounting.mechanisms import SampledGaussianMechanism
from dfl_unlearn.accounting.subsampling import sampled_gaussian
from dfl_unlearn.errors import (
    InvalidArgumentError,
    InvalidPrivacyParameterError,
    InvalidTypeError,
    RefusedError,
    SubsamplingAssumptionError,
)

SOUND = {
    "rate": 0.1,
    "noise_multiplier": 2.0,
    "steps": 50,
    "sampling": "poisson",
    "batches_hidden": True,
    "noise_every_step": True,
}


def test_poisson_samples_with_noise_at_every_step_are_charged_less():
    mechanism = sampled_gaussian(**SOUND)
    assert mechanism == SampledGaussianMechanism(
        rate=0.1, noise_multiplier=2.0, steps=50
    )
    ledger = PrivacyLedger()
    ledger.charge("less", "peer:1", ("public",), mechanism)
    full = SampledGaussianMechanism(rate=1.0, noise_multiplier=2.0, steps=50)
    ledger.charge("full", "peer:2", ("public",), full)
    less, more = (ledger.epsilon(f"peer:{i}", "public", 1e-5) for i in (1, 2))
    assert less < more / 5


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ({"sampling": "shuffled"}, "sampling: must be 'poisson' .* got 'shuffled'"),
        ({"sampling": "fixed_size"}, "depends on the others"),
        ({"sampling": "weighted"}, "large weights"),
        ({"batches_hidden": False}, "batches_hidden: must be True"),
        ({"noise_every_step": False}, "noise_every_step: must be True"),
        ({"batches_shared": True}, "batches_shared: must be False"),
    ],
)
def test_what_the_bound_does_not_cover_is_refused(broken, words):
    with pytest.raises(SubsamplingAssumptionError, match=words) as caught:
        sampled_gaussian(**(SOUND | broken))
    assert isinstance(caught.value, RefusedError)
    assert caught.value.exit_code == 4
    assert "rate=1" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"sampling": "batches"}, InvalidArgumentError),
        ({"batches_hidden": 1}, InvalidTypeError),
        ({"rate": 2.0}, InvalidPrivacyParameterError),
        ({"adjacency": "replace_one"}, InvalidArgumentError),
    ],
)
def test_other_arguments_are_checked_too(change, error):
    with pytest.raises(error, match=f"{next(iter(change))}: must be"):
        sampled_gaussian(**(SOUND | change))
