"""Train by gossip, watch one peer's influence spread, forget it, look at the result.

    python experiments/quickstart.py                   # 32 peers, about 10 seconds
    python experiments/quickstart.py --preset quick    # 8 peers
    python experiments/quickstart.py peer=5 epsilon=0.5

Writes the figures and ``report.html`` into ``runs/quickstart/``. The picture at the top
of the README is this script's ``influence.gif``, the still ones its ``topology.png``.
"""

from dataclasses import dataclass

from settings import choose, folder_of

from dfl_unlearn import (
    ForgetRequest,
    NewtonFisher,
    PeerData,
    SimulationConfig,
    evaluate,
    load_topology,
    simulate,
    unlearn,
    write_report,
)
from dfl_unlearn.plots import save_figures
from dfl_unlearn.plots.animation import write_influence_gif
from dfl_unlearn.results.view import ResultsView


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is trained and what is forgotten."""

    topology: str = "watts-strogatz"
    peers: int = 32
    rounds: int = 200
    alpha: float = 0.5
    peer: int = 17
    fraction: float = 0.2
    epsilon: float = 1.0
    seed: int = 0


FULL = Settings()
QUICK = Settings(topology="ring", peers=8, rounds=60, peer=3)


def main(arguments: list[str] | None = None) -> None:
    """Run the script."""
    settings = choose(QUICK, FULL, __doc__, arguments)
    folder = folder_of(__file__)
    topology = load_topology(settings.topology, n=settings.peers)
    data = PeerData.load(
        "digits",
        peers=settings.peers,
        partition="dirichlet",
        alpha=settings.alpha,
        seed=settings.seed,
    )
    config = SimulationConfig(rounds=settings.rounds, seed=settings.seed)
    run = simulate(topology, data, model="logistic", config=config)

    request = ForgetRequest.samples(peer=settings.peer, fraction=settings.fraction)
    newton = unlearn(
        run, request, NewtonFisher(epsilon=settings.epsilon), reference=True
    )
    tuned = unlearn(run, request, "fine-tune", reference=newton.reference)
    retrained = unlearn(run, request, "retrain")
    print(newton.certificate)
    print(evaluate(newton))

    outcomes = [newton, tuned, retrained]
    view = ResultsView.of(outcomes)
    save_figures(view, folder)
    write_influence_gif(topology, view.influence(), folder / "influence.gif")
    print(f"page and figures: {write_report(outcomes, folder / 'report.html').parent}")


if __name__ == "__main__":
    main()
