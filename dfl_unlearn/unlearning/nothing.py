"""What an empty list of requests is answered with: the run's own state, at no cost."""

from dataclasses import replace

from dfl_unlearn.accounting.certificate import Assumption, certify
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.transport import MessageLog
from dfl_unlearn.unlearning.contracts import Cost, Outcome, UnlearningProtocol


def nothing_asked(
    run: TrainedRun,
    protocol: UnlearningProtocol,
    name: str,
    reference: bool | TrainedRun,
) -> Outcome:
    """Return the outcome of no request: exact, since training never differed.

    Args:
        run: The trained network.
        protocol: What would have been used; it does nothing.
        name: Its registered name.
        reference: True is the run itself, which retraining on the same data repeats.

    Returns:
        An outcome with the run's own state, no cost and no message.
    """
    request = replace(ForgetRequest.nothing(), request_id=f"r{run.requests}")
    certificate = certify(
        method=name,
        request_id=request.request_id,
        group_size=None,
        scope="joint",
        epsilon=0.0,
        delta=0.0,
        sensitivity=0.0,
        bound="none",
        noise_std=0.0,
        accountant="none",
        assumptions=(
            Assumption(
                name="forgotten rows",
                value="none asked for",
                source="proven",
                note="the state is the run's own; earlier requests keep the claims "
                "of their own certificates",
            ),
        ),
        observers=(),
        exact=True,
    )
    given = reference if isinstance(reference, TrainedRun) else None
    return Outcome(
        run=run,
        request=request,
        protocol=protocol,
        state=run.state,
        certificate=certificate,
        cost=Cost(),
        ledger=run.ledger.fork(),
        messages=MessageLog(),
        reference=run if reference is True else given,
    )
