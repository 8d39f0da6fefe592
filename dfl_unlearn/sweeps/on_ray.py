"""Cases side by side as Ray tasks, e.g. on the machines of a cluster.

The folder must be the same one for every machine that takes part.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from dfl_unlearn.engine.backends.ray_runtime import ray_session
from dfl_unlearn.errors import ResourceError
from dfl_unlearn.sweeps.cases import run_case
from dfl_unlearn.sweeps.failures import described
from dfl_unlearn.sweeps.plan import PlannedCase
from dfl_unlearn.sweeps.pool import LOOK_S, Ended, TaskOf, failed


def side_by_side_on_ray(
    cases: Sequence[PlannedCase], jobs: int, task_of: TaskOf
) -> Iterator[Ended | None]:
    """Run cases as Ray tasks, never more than ``jobs`` at a time.

    Args:
        cases: What to run; begun in this order.
        jobs: Cases side by side, each on one CPU.
        task_of: Gives the arguments of ``run_case``.

    Yields:
        Every case as it ends, and None now and then while all work.
    """
    left = deque(cases)
    running: dict[Any, tuple[PlannedCase, float]] = {}
    with ray_session(jobs) as session:
        ray = session.ray
        task = ray.remote(_task).options(num_cpus=1, max_retries=0)
        while left or running:
            while left and len(running) < jobs:
                case = left.popleft()
                ref = task.remote(task_of(case))
                running[ref] = case, time.monotonic()
            heard, _ = ray.wait(list(running), num_returns=1, timeout=LOOK_S)
            session.check()
            for ref in heard:
                case, began = running.pop(ref)
                yield _ended(ray, ref, case, began)
            if not heard:
                yield None


def _ended(ray: Any, ref: Any, case: PlannedCase, began: float) -> Ended:
    try:
        answer = ray.get(ref)
    except ray.exceptions.RayError as error:
        first = str(error).split("\n")[0]
        answer = (
            type(error).__name__,
            f"its Ray worker was lost: {first}; if the machine was short of memory, "
            "use fewer jobs, and try again with retry_failed",
            ResourceError.exit_code,
        )
    seconds = time.monotonic() - began
    return Ended(case, seconds) if answer is None else failed(case, seconds, *answer)


def _task(arguments: dict[str, Any]) -> tuple[str, str, int] | None:
    """Run a case on a worker.

    Args:
        arguments: Of ``run_case``.

    Returns:
        What ended it, or None.
    """
    try:
        run_case(**arguments)
    except Exception as error:
        return described(error)
    return None
