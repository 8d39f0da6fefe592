"""Runs and outcomes from the real classes, made by hand: nothing is trained here."""

import networkx as nx
import numpy as np
import torch
from networks import blobs

from dfl_unlearn._assumption import Assumption
from dfl_unlearn.accounting.certificate import Certificate
from dfl_unlearn.accounting.ledger import PrivacyLedger
from dfl_unlearn.accounting.mechanisms import GaussianMechanism
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.config import SimulationConfig
from dfl_unlearn.engine.run import History, TrainedRun
from dfl_unlearn.engine.state import PeerState
from dfl_unlearn.engine.transport import MessageLog
from dfl_unlearn.models.zoo import models
from dfl_unlearn.record.plan import RecordPlan
from dfl_unlearn.record.training import Dynamics, TrainingRecord
from dfl_unlearn.rng import RngTree
from dfl_unlearn.topology.graph import Topology
from dfl_unlearn.unlearning.contracts import Cost, Outcome, protocols

ROUNDS = 30


def graph_of(kind, n):
    if kind == "ring":
        return nx.cycle_graph(n) if n > 2 else nx.path_graph(n)
    return nx.barabasi_albert_graph(n, 2, seed=0)


def random_state(n, size, seed):
    params = np.random.default_rng(seed).normal(size=(n, size))
    return PeerState(params=torch.from_numpy(params), round=ROUNDS)


def made_run(n=4, *, kind="ring", record=True, history=True, name="ring", seed=0):
    draw = np.random.default_rng(seed)
    topology = Topology.from_graph(graph_of(kind, n), name=name)
    data = blobs([6] * n)
    model = models.build("logistic", input_shape=(6,), num_classes=3)
    evaluated = np.arange(10, ROUNDS + 1, 10)
    dynamics = Dynamics(
        form="atc",
        local_steps=np.ones(n, dtype=np.int64),
        scale=np.ones(n),
        decay=0.01,
        momentum=0.0,
        convex=True,
        smoothness=Assumption(name="smoothness", value=5.0, source="proven"),
        clip_norm=None,
    )
    return TrainedRun(
        topology=topology,
        data=data,
        model=model,
        config=SimulationConfig(rounds=ROUNDS, seed=seed),
        state=random_state(n, model.size, 1),
        record=TrainingRecord(
            plan=RecordPlan(),
            dynamics=dynamics,
            step_sizes=np.full(ROUNDS, 0.1),
            gradient_norms=draw.uniform(0.1, 1.0, (ROUNDS, n)),
        )
        if record
        else None,
        history=History(
            rounds=evaluated,
            loss=draw.uniform(size=(3, n)),
            accuracy=np.sort(draw.uniform(0.3, 0.95, (3, n)), axis=0),
            consensus=np.array([0.3, 0.1, 0.02]),
            seconds=np.array([0.1, 0.2, 0.3]),
        )
        if history
        else None,
        ledger=PrivacyLedger(),
        rng=RngTree(seed),
        digest=f"{seed:02x}" + "ab" * 31,
    )


def certificate(status="certified", **changes):
    estimated = Assumption(name="distance", value="no bound", source="estimated")
    proven = Assumption(
        name="strong convexity", value=0.01, source="proven", note="the l2 term"
    )
    assumed = Assumption(name="smoothness", value=2.0, source="assumed")
    claimed = status != "heuristic"
    exact = status == "exact"
    numbers = (0.0, 0.0) if exact else (1.0, 1e-5)
    fields = {
        "status": status,
        "method": "newton-fisher",
        "request_id": "r0",
        "group_size": None,
        "scope": "joint",
        "epsilon": numbers[0] if claimed else None,
        "delta": numbers[1] if claimed else None,
        "nominal_epsilon": None if claimed else numbers[0],
        "nominal_delta": None if claimed else numbers[1],
        "sensitivity": 0.0 if exact else 0.00101,
        "bound": "none" if exact else "capped",
        "noise_std": 0.0 if exact else 0.00377,
        "accountant": "none" if exact else "exact_gaussian",
        "assumptions": {
            "heuristic": (proven, estimated),
            "certified_conditional": (proven, assumed),
        }.get(status, (proven,)),
        "reasons": ("distance: estimated",)
        if status in ("heuristic", "certified_conditional")
        else (),
        "observers": ("peer:0", "public"),
        "exposure": ("before/after: model released at round 30",),
    }
    return Certificate(**fields | changes)


def made_outcome(
    run,
    protocol="newton-fisher",
    status="certified",
    *,
    reference=True,
    request=None,
    seed=2,
    charged=False,
    **fields,
):
    """An outcome with random states; ``status=None`` makes no claim."""
    if request is None:
        request = ForgetRequest.samples(peer=1, indices=[0, 2], request_id="r0")
    request = request.resolve(run.data)
    ledger = run.ledger.fork()
    if charged:
        ledger.charge(
            request.request_id,
            f"peer:{request.requester}",
            tuple(f"peer:{i}" for i in range(run.topology.n) if i != request.requester),
            GaussianMechanism(noise_std=0.4, sensitivity=0.05),
        )
        ledger.commit(request.request_id)
    n, size = run.topology.n, run.model.size
    return Outcome(
        run=run,
        request=request,
        protocol=protocols.build(protocol, **fields),
        state=random_state(n, size, seed),
        certificate=None if status is None else certificate(status),
        cost=Cost(sample_gradients=1000, hvps=20, messages=7, payload_bytes=3000),
        ledger=ledger,
        messages=MessageLog(),
        reference=run.replaced(state=random_state(n, size, 3)) if reference else None,
    )


def three_outcomes(run, **fields):
    """Certified, heuristic and unclaimed results of one run."""
    return [
        made_outcome(run, "newton-fisher", "certified", seed=2, **fields),
        made_outcome(
            run,
            "newton-fisher",
            "heuristic",
            seed=4,
            **fields | {"curvature": "diag_fisher"},
        ),
        made_outcome(run, "fine-tune", None, seed=5, **fields),
    ]
