"""When a random batch hides who was in it, and when it does not.

Sampling lowers the price of noise only under conditions that a program cannot see in
the numbers. They are asked for here, and a missing one is refused: a shuffled epoch, a
batch of fixed size or a weighted draw costs what noise without sampling does.
"""

from typing import Literal, get_args

from dfl_unlearn import _validate
from dfl_unlearn.accounting.mechanisms import Adjacency, SampledGaussianMechanism
from dfl_unlearn.errors import SubsamplingAssumptionError

Sampling = Literal["poisson", "shuffled", "fixed_size", "weighted"]
SAMPLINGS: tuple[Sampling, ...] = get_args(Sampling)

_WHY = {
    "shuffled": "batches of a shuffled epoch depend on each other",
    "fixed_size": "in a batch of fixed size one record's place depends on the others",
    "weighted": "records with large weights join far more often than the rate says",
}
_SEEN = "whoever sees a batch knows whether the record joined it"
_SILENT = "steps without noise show that nothing joined"
_TOGETHER = "a record that joins once joins everywhere, so costs do not add up"


def sampled_gaussian(
    *,
    rate: float,
    noise_multiplier: float,
    steps: int = 1,
    sampling: Sampling,
    batches_hidden: bool,
    noise_every_step: bool,
    batches_shared: bool = False,
    adjacency: Adjacency = "add_remove",
) -> SampledGaussianMechanism:
    """Return noisy steps on Poisson samples, if they are what the bound needs.

    An empty batch is a legal step: it adds noise and is charged as any other.

    Args:
        rate: Probability of every record to join a step, in [0, 1].
        noise_multiplier: Noise std over sensitivity, at least 0.
        steps: Number of steps, at least 1, empty ones included.
        sampling: How a step's batch is drawn: ``poisson`` is a coin of its own for
            every record in every step.
        batches_hidden: Whether no observer learns who was in a batch.
        noise_every_step: Whether noise is added in every step that a record might have
            joined, also in those that none did.
        batches_shared: Whether one batch, or one coin, serves several peers or steps.
        adjacency: ``add_remove``, or ``unlearn`` where the reference is the same steps
            without the data.

    Returns:
        The mechanism, for ``PrivacyLedger.charge``.

    Raises:
        SubsamplingAssumptionError: If a condition does not hold.
        InvalidArgumentError: If a number or a name is outside what is allowed.

    Example:
        >>> facts = {"batches_hidden": True, "noise_every_step": True}
        >>> sampled_gaussian(
        ...     rate=0.1, noise_multiplier=2.0, steps=50, sampling="poisson", **facts
        ... ).steps
        50
    """
    _validate.one_of(SAMPLINGS, sampling=sampling)
    _validate.of_type(
        bool,
        batches_hidden=batches_hidden,
        noise_every_step=noise_every_step,
        batches_shared=batches_shared,
    )
    for name, got, needed, why in (
        ("sampling", sampling, "poisson", _WHY.get(sampling, "")),
        ("batches_hidden", batches_hidden, True, _SEEN),
        ("noise_every_step", noise_every_step, True, _SILENT),
        ("batches_shared", batches_shared, False, _TOGETHER),
    ):
        if got != needed:
            raise SubsamplingAssumptionError(
                f"{name}: must be {needed!r} to charge less for sampling, got {got!r}; "
                f"{why}. Charge the steps with rate=1, or draw every record by a "
                "hidden coin of its own"
            )
    return SampledGaussianMechanism(
        rate=rate, noise_multiplier=noise_multiplier, steps=steps, adjacency=adjacency
    )
