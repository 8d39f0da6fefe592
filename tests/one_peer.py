"""Networks of one peer and their tasks, for tests of methods for one model."""

import numpy as np
from networks import blobs

from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.config import LocalSteps, SimulationConfig
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.models.zoo import models
from dfl_unlearn.rng import RngTree
from dfl_unlearn.topology.graph import Topology
from dfl_unlearn.unlearning.local import only, uses_of
from dfl_unlearn.unlearning.local_tasks import local_task

ROWS = (0, 3, 5, 8, 13, 21)
WIDTHS = (6, 8, 3)


def mlp(**fields):
    fields = {"input_shape": (6,), "num_classes": 3, "hidden": (8,)} | fields
    return models.build("mlp", **fields)


def trained(model=None, *, data=None, rounds=6, dtype="float64", **local):
    """A trained network of one peer with 48 rows of 6 features in 3 classes."""
    return simulate(
        Topology.single(),
        blobs([48], dtype=np.float64) if data is None else data,
        mlp() if model is None else model,
        SimulationConfig(
            rounds=rounds,
            local=LocalSteps(**({"batch_size": 12} | local)),
            evaluate_every=0,
            dtype=dtype,
        ),
    )


def samples(run, rows=ROWS, request_id="r0", **fields):
    """The task of forgetting some rows."""
    request = ForgetRequest.samples(peer=0, indices=rows, request_id=request_id)
    return local_task(run, request, **fields)


def a_class(run, class_id=1, **fields):
    """The task of forgetting a class."""
    return local_task(run, ForgetRequest.class_(class_id, request_id="r0"), **fields)


def act(method, task, seed=0):
    """Run a method on no more of a task than it says it uses."""
    return method.unlearn(only(task, uses_of(method)), RngTree(seed))
