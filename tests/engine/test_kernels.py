"""Every kernel against D-SGD written out peer by peer and sample by sample."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import blobs
from oracles.training import train
from small_models import MODELS, SIZES, features, shapes

from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.engine.config import LocalSteps, SimulationConfig
from dfl_unlearn.engine.local import peer_scale, resolve_kernel
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.engine.trainers.d_sgd import DSgd
from dfl_unlearn.errors import UnsupportedModelError
from dfl_unlearn.models.zoo import models
from dfl_unlearn.topology.files import load_topology

SETTINGS = {
    "one-batch": {"batch_size": 3},
    "full-batch": {"batch_size": None, "steps": 2},
    "several-steps": {"batch_size": 4, "steps": 3, "weight_decay": 0.02},
    "epochs": {"batch_size": 2, "epochs": 1.5, "momentum": 0.8},
    "clipped": {"batch_size": 3, "steps": 2, "clip_norm": 0.4},
    "everything": {
        "batch_size": 3,
        "epochs": 1.0,
        "momentum": 0.5,
        "weight_decay": 0.03,
        "clip_norm": 0.7,
        "lr_schedule": "cosine",
    },
}
ROUNDS = 4


def runs(kind, kernel, local, *, requests=(), **fields):
    """The engine's run and the oracle's parameters for the same setting."""
    losses, use, model_fields = MODELS[kind]
    pairs = features(kind)
    data = PeerData.from_tensors(
        pairs, test=pairs[0], num_classes=model_fields["num_classes"]
    )
    for request in requests:
        data = data.without(request)
    model = models.build(use, l2=0.05, **shapes(kind), **model_fields)
    config = SimulationConfig(
        rounds=ROUNDS,
        seed=11,
        local=LocalSteps(learning_rate=0.1, **local),
        dtype="float64",
        kernel=kernel,
        common_init=False,
        **fields,
    )
    topology = load_topology("path", n=len(SIZES))
    run = simulate(topology, data, model, config)
    split = [
        slice(a, b) for a, b in zip(data.offsets[:-1], data.offsets[1:], strict=True)
    ]
    counts = np.array([data.counted[s].sum() for s in split])
    active = np.array([data.keep[s].any() for s in split])
    share = np.where(active, counts if config.peer_weighting == "size" else 1.0, 0.0)
    if local.get("epochs"):
        batches = [-(-n // local["batch_size"]) for n in SIZES]
        steps = [max(1, int(np.rint(local["epochs"] * b))) for b in batches]
    else:
        steps = [local.get("steps", 1)] * len(SIZES)
    cosine = 0.5 * (1 + np.cos(np.pi * np.arange(ROUNDS) / ROUNDS))
    expected = train(
        run.record.initial,
        losses,
        pairs,
        torch.from_numpy(topology.weights.toarray()),
        seed=11,
        rates=0.1 * (cosine if "lr_schedule" in local else np.ones(ROUNDS)),
        steps=steps,
        batch_size=local["batch_size"],
        scale=share / share.sum() * len(SIZES),
        keep=[data.keep[s] for s in split],
        counted=[data.counted[s] for s in split],
        form=config.trainer.form,
        l2=0.05,
        weight_decay=local.get("weight_decay", 0.0),
        momentum=local.get("momentum", 0.0),
        clip_norm=local.get("clip_norm"),
        block_peers=config.block_peers,
    )
    return run, expected


def agree(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("kind", ["softmax", "binary", "squared", "mlp"])
def test_the_stacked_kernel_is_descent_peer_by_peer(kind, setting):
    run, expected = runs(kind, "stacked", SETTINGS[setting])
    agree(run.state.params, expected)


@pytest.mark.parametrize("setting", ["several-steps", "everything"])
@pytest.mark.parametrize("kernel", ["loop", "vmap"])
@pytest.mark.parametrize("kind", ["softmax", "squared", "mlp", "cnn"])
def test_the_autograd_kernels_are_descent_peer_by_peer(kind, kernel, setting):
    run, expected = runs(kind, kernel, SETTINGS[setting])
    assert run.info["arithmetic"]["kernel"] == kernel
    agree(run.state.params, expected)


REQUESTS = (
    ForgetRequest.samples(peer=2, indices=[0, 3, 4]),
    ForgetRequest.samples(peer=0, indices=[1, 2], normalization="fixed"),
    ForgetRequest.whole_peer(3),
)


@pytest.mark.parametrize("form", ["atc", "cta"])
@pytest.mark.parametrize("weighting", ["uniform", "size"])
@pytest.mark.parametrize(
    ("kind", "kernel"), [("softmax", "stacked"), ("softmax", "loop"), ("mlp", "vmap")]
)
def test_forgotten_rows_and_empty_peers_in_every_kernel(kind, kernel, weighting, form):
    run, expected = runs(
        kind,
        kernel,
        SETTINGS["everything"],
        requests=REQUESTS,
        peer_weighting=weighting,
        trainer=DSgd(form=form),
        block_peers=2,
    )
    agree(run.state.params, expected)


@pytest.mark.parametrize("kernel", ["stacked", "loop", "vmap"])
def test_a_peer_without_rows_is_a_pure_average_of_its_neighbours(kernel):
    data = blobs(SIZES, dtype=np.float64).without(ForgetRequest.whole_peer(1))
    config = SimulationConfig(
        rounds=1,
        local=LocalSteps(momentum=0.5, weight_decay=0.1),
        trainer=DSgd(form="cta"),
        dtype="float64",
        kernel=kernel,
        common_init=False,
    )
    run = simulate("ring", data, "logistic", config)
    expected = run.topology.weights @ run.record.initial.numpy()
    agree(run.state.params[1], expected[1])
    assert run.record.gradient_norms[0, 1] == 0
    moved = np.abs(run.state.params.numpy() - expected).max(axis=1) > 1e-3
    assert moved.tolist() == [True, False, True, True, True]


@pytest.mark.parametrize("kernel", ["stacked", "vmap"])
@pytest.mark.parametrize("local", ["epochs", "everything"])
def test_the_chunk_size_changes_nothing_but_the_last_bits(kernel, local):
    data = blobs([9, 4, 13, 6, 9, 5, 20], dtype=np.float64)
    config = SimulationConfig(
        rounds=3,
        local=LocalSteps(**SETTINGS[local]),
        dtype="float64",
        kernel=kernel,
        block_peers=4,
        chunk_peers=1,
    )
    first = simulate("ring", data, "logistic", config)
    for chunk in (2, 3, 99):
        other = simulate("ring", data, "logistic", replace(config, chunk_peers=chunk))
        agree(other.state.params, first.state.params)
        np.testing.assert_allclose(
            other.record.gradient_norms, first.record.gradient_norms, rtol=1e-12
        )


@pytest.mark.parametrize("kernel", ["stacked", "loop", "vmap"])
def test_images_are_trained_on_as_fractions(kernel):
    rng = np.random.default_rng(0)
    parts = [
        (
            torch.from_numpy(rng.integers(0, 256, (n, 4, 4), dtype=np.uint8)),
            torch.from_numpy(rng.integers(0, 3, n)),
        )
        for n in SIZES
    ]
    as_floats = [(x.double() / 255, y) for x, y in parts]
    config = SimulationConfig(rounds=3, dtype="float64", kernel=kernel)
    a, b = (
        simulate(
            "ring", PeerData.from_tensors(p, test=p[0]), "logistic", config
        ).state.params
        for p in (parts, as_floats)
    )
    agree(a, b)


def test_kernels_record_the_same_losses_and_gradient_norms():
    for local in (SETTINGS["several-steps"], SETTINGS["everything"]):
        results = [runs("mlp", kernel, local)[0] for kernel in ("stacked", "loop")]
        first, second = (r.record.gradient_norms for r in results)
        assert (first > 0).all()
        np.testing.assert_allclose(first, second, rtol=1e-10)
        np.testing.assert_allclose(
            results[0].history.loss, results[1].history.loss, rtol=1e-10
        )


def test_the_kernel_follows_from_the_structure_alone():
    cnn_model = models.build("small-cnn", input_shape=(8, 8), num_classes=3)
    mlp_model = models.build("mlp", input_shape=(6,), num_classes=3)
    assert resolve_kernel(mlp_model, "auto") == "stacked"
    assert resolve_kernel(cnn_model, "auto") == "loop"
    assert resolve_kernel(mlp_model, "vmap") == "vmap"
    with pytest.raises(UnsupportedModelError, match=r"kernel: .*got 'stacked'"):
        resolve_kernel(cnn_model, "stacked")


def test_the_scales_of_the_peers_average_to_one():
    data = blobs(SIZES).without(ForgetRequest.whole_peer(4))
    for weighting in ("uniform", "size"):
        scale = peer_scale(data, weighting)
        assert scale[4] == 0
        assert scale.mean() == pytest.approx(1.0)
    assert scale[2] / scale[1] == pytest.approx(9 / 4)
