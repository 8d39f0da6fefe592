r"""When a request may depend on released models after all.

A claim about a request that was fixed in advance says nothing of one that was chosen
after looking (Gupta et al. 2021). It is lifted to chosen requests where all that was
released before was private for any one record. Let S be any set of m records, P
everything released before the request, with
:math:`P(D) \approx_{(\epsilon_{pub}, \delta)} P(D \setminus S)`. The noise of the
release is fresh, and its shift stays within the cap whatever P was, so given any P = p
the release is (epsilon, delta)-close to the one of the world without S. Both together
compose to :math:`(\epsilon + \epsilon_{pub}, 2 \delta)` for the pair of P and the
release. Which S was asked for is a function of P, so the bound holds for the set that
was chosen, too. [derived]

In the world without S every peer divides by the rows it stored with S, as private
training's divisors are public. Retraining is left out: a coupled one draws again what
training drew, so nothing of it is fresh given P.
"""

from collections.abc import Sequence

from dfl_unlearn._assumption import Assumption
from dfl_unlearn._stats import round_up
from dfl_unlearn.accounting.certificate import PRIVATE_BEFORE
from dfl_unlearn.accounting.entries import EVERYONE
from dfl_unlearn.accounting.mechanisms import SampledGaussianMechanism
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.run import TrainedRun


def private_before(
    run: TrainedRun,
    request: ForgetRequest,
    *,
    epsilon: float,
    delta: float,
    disclosed: bool,
) -> list[Assumption]:
    """Return what lifts a claim with fresh noise to a request chosen after looking.

    Args:
        run: The trained network, with this attempt's ledger before it is charged.
        request: The resolved request.
        epsilon: Of the release by itself.
        delta: Likewise; also that at which what came before is added up.
        disclosed: Whether the claim may name the number of forgotten records, on which
            the total depends.

    Returns:
        One assumption with the public epsilon and the total, or none: for a request
        fixed in advance, where anything before was not private for every record or
        nothing finite follows for so many, and where their number is a secret.
    """
    ledger = run.ledger
    if not request.adaptive or not disclosed or run.config.private is None:
        return []
    before = [entry for entry in ledger.entries if entry.noise_drawn]
    steps = sum(
        entry.mechanism.steps
        for entry in before
        if isinstance(entry.mechanism, SampledGaussianMechanism)
    )
    if (
        run.requests
        or any(entry.owner != EVERYONE for entry in before)
        or steps < run.state.round
    ):
        return []
    size = request.size(run.data)
    public = ledger.public_epsilon("public", delta, group_size=size)
    if public is None or not public < float("inf"):
        return []
    total = round_up(epsilon + public)
    return [
        Assumption(
            name=PRIVATE_BEFORE,
            value=public,
            source="proven",
            note=f"all of training was private for any one record: epsilon_public "
            f"{round_up(public):g} at delta {delta:g} for {size} of them, so the "
            "request may depend on what was released; epsilon_total = epsilon + "
            f"epsilon_public = {total:g} at delta {2 * delta:g}, for all that was "
            "seen before and after together, against private training on the retained "
            "rows with the divisors of all",
        )
    ]


def still_adaptive(request: ForgetRequest, assumptions: Sequence[Assumption]) -> bool:
    """Tell whether a request was chosen after looking and nothing makes up for it."""
    return request.adaptive and all(a.name != PRIVATE_BEFORE for a in assumptions)
