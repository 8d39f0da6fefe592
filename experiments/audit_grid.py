"""Does an audit ever refute a certificate of ours, and would it have seen a broken one?

    python experiments/audit_grid.py                    # 54 configurations, both cores
    python experiments/audit_grid.py --preset quick     # 2 small ones, seconds
    python experiments/audit_grid.py replicas=400 jobs=1

Every row is one certified configuration: a network, a protocol and an epsilon. Both
worlds are trained and released ``replicas`` times; half of them fit the guesser, half
are counted. A row is ``consistent`` only where both negative controls (the correction
left out; the noise left out) were refuted at the same epsilon, and where the measured
shift and noise are what the certificate says (noise once per network and protocol: it
only scales with epsilon). Convex models in float64: logistic
regression on the rows of the oracle L6 (ridge regression on those of R4 for the stacked
target), carried on to other numbers of peers; peer 1 forgets three of its rows.

A finished row is not run again; delete the table to start anew. The script ends with
code 3 if a certificate was refuted. Writes ``runs/audit_grid/table.csv``.
"""

import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
import torch
from settings import choose, folder_of

from dfl_unlearn import (
    ForgetRequest,
    NewtonFisher,
    PeerData,
    RrDu,
    SimulationConfig,
    load_topology,
    simulate,
)
from dfl_unlearn.engine.config import LocalSteps
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.trainers.d_sgd import DSgd
from dfl_unlearn.evaluation.audit import AuditResult, audit_epsilon
from dfl_unlearn.models.zoo import models
from dfl_unlearn.record.plan import RecordPlan
from dfl_unlearn.topology.graph import Topology
from dfl_unlearn.unlearning.contracts import UnlearningProtocol
from dfl_unlearn.unlearning.protocols.fine_tune import FineTune

EPSILONS = (0.5, 1.0, 2.0, 4.0)
NETWORKS = {
    "path4": 4,
    "ring6": 6,
    "star5": 5,
    "complete5": 5,
    "torus9": 9,
    "petersen10": 10,
}
OWN: dict[str, Any] = {
    "noise_placement": "independent",
    "influence_weights": "uniform",
    "residual_cap": 1.0,
    "recovery_rounds": 0,
}
PROTOCOLS: dict[str, UnlearningProtocol] = {
    "newton model": NewtonFisher(),
    "newton own": NewtonFisher(**OWN),
    "newton correction": NewtonFisher(
        noise_placement="broadcast_correction",
        influence_weights="uniform",
        scope="release",
        residual_cap=1.0,
        recovery_rounds=0,
    ),
    "newton stack": NewtonFisher(
        target="dsgd_fixed_point",
        curvature="linearized_gossip",
        noise_placement="independent",
        recovery_rounds=0,
    ),
    "token": RrDu(hops=8, residual_cap=2.0, natural_visit="relay"),
    "fine-tune": FineTune(epsilon=1.0, rounds=15, residual_cap=1.0),
}
TWICE = ("newton model", "newton own", "newton correction")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Size of every audit, and how many run side by side."""

    networks: tuple[str, ...] = tuple(NETWORKS)
    replicas: int = 2000
    gamma: float = 1e-3
    rounds: int = 40
    seed: int = 0
    most: int = 1000
    jobs: int = 2


FULL = Settings()
QUICK = Settings(networks=("path4",), replicas=100, rounds=20, most=2, jobs=1)


def main(arguments: list[str] | None = None) -> None:
    """Run the script."""
    settings = choose(QUICK, FULL, __doc__, arguments)
    path = folder_of(__file__) / "table.csv"
    done = read(path, settings)
    left = [c for c in configurations(settings) if "/".join(map(str, c)) not in done]
    rows = list(done.values())
    print(f"{len(rows)} rows are there, {len(left)} to run", flush=True)
    for row in run_all(settings, left):
        rows.append(row)
        write(path, rows)
        print(line(row), flush=True)
    table = pd.DataFrame(rows)
    counts = table.verdict.value_counts().to_dict()
    print(
        f"{len(table)} configurations: {counts}; largest bound over its claim "
        f"{(table.epsilon_lower / table.epsilon).max():.3f}; seconds mean "
        f"{table.seconds.mean():.1f}, largest {table.seconds.max():.1f}"
    )
    print(f"table: {path}")
    if "refuted" in counts:
        sys.exit(3)


def configurations(settings: Settings) -> Iterator[tuple[str, str, float]]:
    """Yield network, protocol and epsilon; every protocol meets every epsilon."""
    found = 0
    for i, network in enumerate(settings.networks):
        for j, name in enumerate(PROTOCOLS):
            for step in (0, 2) if name in TWICE else (0,):
                if found == settings.most:
                    return
                found += 1
                yield network, name, EPSILONS[(i + j + step) % len(EPSILONS)]


def run_all(
    settings: Settings, left: list[tuple[str, str, float]]
) -> Iterator[dict[str, Any]]:
    """Yield one row after the other as they are finished."""
    if settings.jobs == 1:
        for configuration in left:
            yield audited(settings, configuration)
        return
    with ProcessPoolExecutor(settings.jobs, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(audited, settings, one) for one in left]
        for job in as_completed(jobs):
            yield job.result()


def audited(settings: Settings, which: tuple[str, str, float]) -> dict[str, Any]:
    """Return the row of one configuration."""
    network, name, epsilon = which
    began = time.perf_counter()
    run = trained(settings, network, stacked=name == "newton stack")
    request = ForgetRequest.samples(peer=1, indices=[0, 1, 2], request_id="r0")
    protocol = replace(PROTOCOLS[name], epsilon=epsilon)  # type: ignore[type-var]
    pair = settings.networks.index(network) + list(PROTOCOLS).index(name)
    result = audit_epsilon(
        run,
        request,
        protocol,
        replicas=settings.replicas,
        gamma=settings.gamma,
        noise_check=epsilon == EPSILONS[pair % len(EPSILONS)],
    )
    return {
        "case": "/".join(map(str, which)),
        "network": network,
        "protocol": name,
        "scope": result.claim.scope,
        "epsilon": epsilon,
        "verdict": result.verdict,
        "epsilon_lower": round(result.epsilon_lower, 4),
        "ceiling": round(result.ceiling, 4),
        "statistic": result.statistic,
        "false_positives": result.false_positives,
        "false_negatives": result.false_negatives,
        **controls(result),
        "noise_over_claimed": None
        if result.noise_std_measured is None
        else round(result.noise_std_measured / (result.claim.noise_std or 1.0), 4),
        "shift_over_sensitivity": float(
            f"{(result.shift_measured or 0) / (result.claim.sensitivity or 1):.3g}"
        ),
        "seconds": round(time.perf_counter() - began, 1),
        "settings": identity(settings),
    }


def controls(result: AuditResult) -> dict[str, Any]:
    """Return what the negative controls proved."""
    found: dict[str, Any] = {}
    for key, control in zip(
        ("no_correction", "no_noise"), result.negative_controls, strict=True
    ):
        found[key] = round(control.epsilon_lower, 4)
        found[f"{key}_detected"] = control.verdict == "refuted"
    ratio = result.negative_controls[0].label.rsplit(" ", 1)[-1]
    return {"shift_over_noise": int(ratio), **found}


@cache
def trained(settings: Settings, network: str, *, stacked: bool) -> TrainedRun:
    """Return the run that an audit repeats."""
    n = NETWORKS[network]
    topology = (
        Topology.from_graph(nx.petersen_graph(), name="petersen")
        if network.startswith("petersen")
        else load_topology(network.rstrip("0123456789"), n=n)
    )
    config = SimulationConfig(
        rounds=settings.rounds,
        seed=settings.seed,
        trainer=DSgd(form="cta"),
        local=LocalSteps(batch_size=None, learning_rate=0.3),
        dtype="float64",
        evaluate_every=0,
        record=RecordPlan(parts=frozenset({"training_residual"})),
    )
    data = r4_rows(n) if stacked else l6_rows(n)
    model = models.build(
        "linear" if stacked else "logistic",
        input_shape=tuple(data.store.inputs.shape[1:]),
        num_classes=data.num_classes,
        l2=0.1,
        bias=False,
    )
    return simulate(topology, data, model, config)


def l6_rows(peers: int) -> PeerData:
    """Return the oracle L6 carried on to so many peers: 8 rows of 4 numbers each."""
    i, j, k = np.meshgrid(np.arange(peers), np.arange(8), np.arange(4), indexing="ij")
    x = np.sin(1.3 * i + 0.7 * j + 2.1 * k)
    x /= np.maximum(1.0, np.linalg.norm(x, axis=2, keepdims=True))
    y = np.sin(i + 2 * j)[..., 0] + x[..., 0] > 0
    return peer_data(x, y.astype(np.int64), 2)


def r4_rows(peers: int) -> PeerData:
    """Return the oracle R4 carried on: 6 rows of 2 numbers each, a regression."""
    i, j = np.meshgrid(np.arange(peers), np.arange(6), indexing="ij")
    x = np.stack([np.cos(i + 2 * j), np.sin(2 * i - j)], axis=2)
    return peer_data(x, np.cos(i * j).astype(np.float64), 0)


def peer_data(x: np.ndarray, y: np.ndarray, classes: int) -> PeerData:
    """Return arrays as the peers' data."""
    parts = [
        (torch.from_numpy(a), torch.from_numpy(b)) for a, b in zip(x, y, strict=True)
    ]
    return PeerData.from_tensors(parts, test=parts[0], num_classes=classes)


def identity(settings: Settings) -> str:
    """Return what rows of one table must have in common."""
    same = ("replicas", "gamma", "rounds", "seed")
    return json.dumps({key: asdict(settings)[key] for key in same})


def read(path: Path, settings: Settings) -> dict[str, dict[str, Any]]:
    """Return the finished rows of the same settings by their case."""
    if not path.exists():
        return {}
    rows = pd.read_csv(path).to_dict("records")
    wanted = {"/".join(map(str, c)) for c in configurations(settings)}
    return {
        row["case"]: row
        for row in rows
        if row["settings"] == identity(settings) and row["case"] in wanted
    }


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the table whole, in a fixed order."""
    part = path.with_suffix(".part")
    pd.DataFrame(rows).sort_values("case").to_csv(part, index=False)
    part.replace(path)


def line(row: dict[str, Any]) -> str:
    """Return a row for the terminal."""
    detected = (row["no_correction_detected"], row["no_noise_detected"])
    seen = "/".join("yes" if found else "NO" for found in detected)
    ratio, noise = row["shift_over_noise"], row["noise_over_claimed"]
    measured = "" if pd.isna(noise) else f"noise x{noise:.3f}  "
    return (
        f"{row['network']:11} {row['protocol']:18} epsilon {row['epsilon']:3g}  "
        f"{row['verdict']:10} bound {row['epsilon_lower']:.2f} of at most "
        f"{row['ceiling']:.2f}  controls {seen} (shift/noise {ratio})  "
        f"{measured}{row['seconds']:.0f} s"
    )


if __name__ == "__main__":
    main()
