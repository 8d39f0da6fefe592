"""What every audit does with replicas: names them, runs them, tells how far it is."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dfl_unlearn import _validate
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.errors import ResidualExceedsCapError
from dfl_unlearn.evaluation.audit_worlds import Setting
from dfl_unlearn.rng import RngTree

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many replicas of it are done, and of how many."""


def quiet(stage: str, done: int, total: int) -> None:
    """Say nothing."""


def named(run: TrainedRun, request: ForgetRequest) -> ForgetRequest:
    """Return the request resolved against a run's data, with an id."""
    _validate.of_type(TrainedRun, run=run)
    _validate.of_type(ForgetRequest, request=request)
    request = request.resolve(run.data)
    if request.request_id:
        return request
    return replace(request, request_id=f"r{run.requests}")


def setting_of(run: TrainedRun, request: ForgetRequest) -> Setting:
    """Return what is audited, the request resolved and named."""
    return Setting.of(run, named(run, request))


def trees_of(run: TrainedRun, world: str, count: int) -> list[RngTree]:
    """Return the draws of a world's replicas: ``audit/<seed>/<world>/<index>``."""
    root = RngTree(f"audit/{run.rng.seed}").child(world)
    return [root.child(str(index)) for index in range(count)]


def counted(progress: Progress, stage: str, total: int) -> Callable[[int], None]:
    """Return what to call with the number of replicas that were finished just now."""
    done = 0
    progress(stage, 0, total)

    def told(more: int) -> None:
        nonlocal done
        done += more
        progress(stage, done, total)

    return told


def each(
    stage: str,
    act: Callable[[Tensor, RngTree], Tensor],
    params: Tensor,
    trees: Sequence[RngTree],
    progress: Progress = quiet,
) -> Tensor:
    """Run a protocol's own code at every replica.

    Args:
        stage: What is being done, for ``progress``.
        act: From a replica's models and draws to what it releases.
        params: The models, shape ``(R, N, P)``.
        trees: The draws.
        progress: Told how far it is.

    Returns:
        All releases, shape ``(R, S, P)``.

    Raises:
        ResidualExceedsCapError: If a replica is refused, with its number: a refusal is
            seen by everybody and would be a result of its own.
    """
    told, found = counted(progress, stage, len(trees)), []
    for index, (rows, tree) in enumerate(zip(params, trees, strict=True)):
        try:
            found.append(act(rows, tree))
        except ResidualExceedsCapError as error:
            raise ResidualExceedsCapError(
                f"replica {index} ({tree.seed}): {error}; a refusal is seen by "
                "everybody, so every replica must pass: leave more room between "
                "training and the cap"
            ) from error
        told(1)
    return torch.stack(found)
