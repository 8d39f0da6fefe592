"""What the simulated clock adds to a round of 1,000 logistic peers.

Prints the milliseconds of a training round without the clock, those of the clock alone,
and the share, for a ring and a random 4-regular network of unlike peers.

    python benchmarks/clock.py
"""

import argparse
import statistics
import time
from types import SimpleNamespace

from dfl_unlearn import PeerData, SimulationConfig, load_topology, simulate
from dfl_unlearn.engine.clock import NetworkClock, TrainingClock
from dfl_unlearn.models.zoo import models
from dfl_unlearn.record.plan import RecordPlan
from dfl_unlearn.rng import RngTree

NOTHING = RecordPlan(parts=frozenset())


class Rounds:
    """Collects the seconds of the rounds, which the clock is no part of."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_round(self, info) -> None:
        self.seconds.append(info.seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    data = PeerData.load(
        "gaussian-classes",
        peers=args.peers,
        seed=0,
        dataset_options={"classes": 10, "dim": 784, "per_class": 6 * args.peers},
    )
    model = models.build("logistic", input_shape=(784,), num_classes=10)
    clock = NetworkClock(speed_spread=0.5, link_spread=0.5)
    for name, options in (("ring", {}), ("random-regular", {"degree": 4})):
        topology = load_topology(name, n=args.peers, **options)
        config = SimulationConfig(
            rounds=args.rounds, evaluate_every=0, clock=clock, record=NOTHING
        )
        rounds = Rounds()
        simulate(topology, data, model, config, callbacks=[rounds])
        round_ms = 1000 * statistics.median(rounds.seconds)
        began = time.perf_counter()
        alone = TrainingClock(
            SimpleNamespace(
                schedule=topology,
                data=data,
                model=model,
                config=config,
                rng=RngTree(0),
                ahead=0,
            )
        )
        start_ms = 1000 * (time.perf_counter() - began)
        took = []
        for t in range(200):
            began = time.perf_counter()
            alone.after(t)
            took.append(time.perf_counter() - began)
        clock_ms = 1000 * statistics.median(took)
        print(
            f"{name:<16} round {round_ms:.2f} ms, clock {clock_ms:.3f} ms "
            f"({clock_ms / round_ms:.2%}); once {start_ms:.0f} ms"
        )


if __name__ == "__main__":
    main()
