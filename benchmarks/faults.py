"""What a round under faults costs, against one without; ratios within one run.

Rounds with and without faults are run in turn, so a busy machine slows both. Prints the
median ratio and the milliseconds of each, for several plans and networks.

    python benchmarks/faults.py --rounds 60
"""

import argparse
import time

import numpy as np

from dfl_unlearn import PeerData, load_topology
from dfl_unlearn.data.sources import datasets
from dfl_unlearn.engine.backends.contract import EngineSetup
from dfl_unlearn.engine.backends.inline import Inline
from dfl_unlearn.engine.config import LocalSteps, SimulationConfig
from dfl_unlearn.engine.faults import (
    Delay,
    FaultPlan,
    MarkovChurn,
    MessageLoss,
    Straggler,
)
from dfl_unlearn.engine.simulator import initial_state
from dfl_unlearn.engine.threads import limited_threads
from dfl_unlearn.models.zoo import models
from dfl_unlearn.rng import RngTree

CHURN = MarkovChurn(p_leave=0.1, p_return=0.3)
LOSS = MessageLoss(p=0.1)
PLANS = {
    "loss": FaultPlan(models=(LOSS,)),
    "churn, loss, stragglers": FaultPlan(
        models=(CHURN, LOSS, Straggler(share=0.2, slowdown=3))
    ),
    "push-sum": FaultPlan(models=(CHURN, LOSS), weight_policy="push_sum"),
    "delay 0..2": FaultPlan(models=(Delay(probabilities=(0.5, 0.3, 0.2)),)),
}


def started(n, plan, rows):
    """A backend that is ready for its first round."""
    topology = load_topology("random-regular", n=n, degree=4, seed=0)
    source = datasets.build("gaussian-classes", dim=64, per_class=n * rows // 3)
    data = PeerData.load(source, peers=n, seed=0)
    model = models.build(
        "logistic",
        input_shape=tuple(data.store.inputs.shape[1:]),
        num_classes=data.num_classes,
    )
    config = SimulationConfig(
        rounds=10_000, local=LocalSteps(batch_size=32), faults=plan
    )
    rng = RngTree(0)
    backend = Inline()
    setup = EngineSetup(
        schedule=topology, data=data, model=model, config=config, rng=rng
    )
    backend.start(setup, initial_state(model, n, config, rng))
    return backend


def main() -> None:
    """Print one line per plan and size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--peers", type=int, nargs="+", default=[16, 128, 1024])
    args = parser.parse_args()
    with limited_threads(1):
        for n in args.peers:
            for name, plan in PLANS.items():
                pair = (started(n, FaultPlan(), 64), started(n, plan, 64))
                seconds = np.zeros((args.rounds, 2))
                for t in range(args.rounds):
                    for k, backend in enumerate(pair):
                        began = time.perf_counter()
                        backend.advance(t)
                        seconds[t, k] = time.perf_counter() - began
                plain, faulty = 1e3 * np.median(seconds[3:], axis=0)
                ratio = np.median(seconds[3:, 1] / seconds[3:, 0])
                print(
                    f"{n:5d} peers, {name:24s} {ratio:5.2f} x "
                    f"({plain:.2f} ms, with faults {faulty:.2f} ms)"
                )


if __name__ == "__main__":
    main()
