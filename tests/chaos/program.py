"""The job that the kill tests kill: train, forget, commit, train on; idempotent.

``python program.py FOLDER [ENGINE]`` does what is missing in the folder and prints the
digest; it may be killed at any time and started again. A ring of 12 peers, 200
parameters, 30 rounds, one request at round 15. Every round that is computed is noted in
``rounds.txt`` beside the folder, so that a test can count what was computed twice.
"""

import os
import sys
import time
from pathlib import Path

import numpy as np
import torch

from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.engine.config import ExecutionConfig, LocalSteps, SimulationConfig
from dfl_unlearn.engine.run import load_run
from dfl_unlearn.engine.simulator import resume, simulate
from dfl_unlearn.unlearning.apply import unlearn
from dfl_unlearn.unlearning.protocols.newton_fisher import NewtonFisher
from dfl_unlearn.unlearning.store import commit_outcome

PEERS, FEATURES, BEFORE, AFTER, EVERY = 12, 199, 15, 30, 4
CONFIG = SimulationConfig(
    rounds=BEFORE,
    local=LocalSteps(batch_size=8, learning_rate=0.05),
    evaluate_every=5,
    block_peers=4,
)
REQUEST = ForgetRequest.samples(peer=3, indices=[0, 2, 5], request_id="r0")


def data():
    """Two Gaussian classes of 20 rows at each peer; nothing is read from disk."""
    rng = np.random.default_rng(7)
    centre = rng.standard_normal(FEATURES) / 4

    def part(n):
        y = rng.integers(0, 2, n)
        x = np.outer(2.0 * y - 1, centre) + rng.standard_normal((n, FEATURES)) / 4
        return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y)

    pairs = [part(20) for _ in range(PEERS)]
    return PeerData.from_tensors(pairs, test=part(50), num_classes=2)


class Notes:
    """Writes down which rounds were computed, and gives a kill time to come."""

    def __init__(self, path, pause):
        self.path, self.pause = path, pause

    def on_round(self, info):
        with self.path.open("a") as file:
            file.write(f"{os.getpid()} {info.round}\n")
        time.sleep(self.pause)


def work(folder, *, engine="inline", pause=0.0):
    """Do what is missing in the folder.

    Returns:
        The finished run.
    """
    folder = Path(folder)
    given = {
        "callbacks": [Notes(folder.with_name("rounds.txt"), pause)],
        "execution": ExecutionConfig(
            engine=engine,
            workers=1 if engine == "inline" else 3,
            checkpoint_every=EVERY,
        ),
    }
    if not (folder / "manifest.json").is_file():
        run = simulate("ring", data(), "logistic", CONFIG, folder=folder, **given)
        assert run.model.size == FEATURES + 1
    run = resume(folder, data=data(), **given)
    if not run.requests:
        outcome = unlearn(run, REQUEST, NewtonFisher(), folder=folder)
        commit_outcome(outcome)
    run = resume(folder, data=data(), rounds=AFTER, **given)
    again = load_run(folder, data=data())
    assert again.digest == run.digest
    assert torch.equal(again.state.params, run.state.params)
    return run


if __name__ == "__main__":
    print("begin", flush=True)  # noqa: T201
    found = work(sys.argv[1], engine=sys.argv[2], pause=float(sys.argv[3]))
    print(found.digest, flush=True)  # noqa: T201
