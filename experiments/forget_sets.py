"""Data of the comparison of methods, and what is to be forgotten of it.

In a network one peer's rows go. Gossip averages a few wrong labels of one peer away
before anything is forgotten, so that the peer has more of them than a single model.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from dfl_unlearn import ForgetRequest, PeerData
from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.data.partition import split
from dfl_unlearn.data.poison import Trigger, backdoored, mislabelled
from dfl_unlearn.data.sources import Dataset, datasets
from dfl_unlearn.rng import RngTree

VERSION = 1
"""Of the sets below and of how data are thinned; stored lines are of one version."""
USERS = 20
"""Users among whom a peer's rows are split, unlike ones: Dirichlet 0.5 over classes."""

Poisoned = tuple[PeerData, ForgetRequest]


def load(
    name: str, *, rows: int | None = None, test_rows: int | None = None
) -> Dataset:
    """Return a data set, thinned to as many rows, always the same ones."""
    whole = datasets.build(name)
    return replace(
        whole,
        train=_some(whole.train, rows, 0),
        test=_some(whole.test, test_rows, 1),
        sha256="",
    )


def held_out(source: Dataset, seed: int, share: float = 0.2) -> Dataset:
    """Return the training rows split into training and validation; no test row."""
    order = RngTree(seed).child("validation").numpy("data-split")
    places = torch.from_numpy(order.permutation(len(source.train)))
    cut = round(share * len(places))
    parts = (places[cut:].sort().values, places[:cut].sort().values)
    train, test = (
        TensorBatch(source.train.inputs[part], source.train.labels[part])
        for part in parts
    )
    return replace(source, train=train, test=test, sha256="")


def _some(batch: TensorBatch, count: int | None, draw: int) -> TensorBatch:
    if count is None or count >= len(batch):
        return batch
    order = RngTree(0).child("thinned").numpy("data-split", draw=draw)
    index = torch.from_numpy(np.sort(order.permutation(len(batch))[:count]))
    return TensorBatch(batch.inputs[index], batch.labels[index])


def forget_set(setting: str, data: PeerData, *, peer: int, seed: int) -> Poisoned:
    """Return the data to train on and the request that comes afterwards.

    Args:
        setting: One of ``SETTINGS``.
        data: What the peers hold.
        peer: Whose rows go.
        seed: Names the forget set.

    Returns:
        The data, poisoned for two of the settings, and the request.
    """
    return SETTINGS[setting](data, peer, seed)


def _class(data: PeerData, peer: int, seed: int) -> Poisoned:
    """Forget a class; in a network the one that the peer has most of."""
    class_id = (3 + seed) % data.num_classes
    if data.n > 1:
        class_id = int(data.local(peer).labels.bincount().argmax())
    return data, ForgetRequest.class_(class_id, peers=(peer,))


def _random(fraction: float) -> Callable[[PeerData, int, int], Poisoned]:
    def chosen(data: PeerData, peer: int, seed: int) -> Poisoned:
        return data, ForgetRequest.samples(peer=peer, fraction=fraction, seed=seed)

    return chosen


def _user(data: PeerData, peer: int, seed: int) -> Poisoned:
    """Forget one user: a whole peer of a network, else a keyed part of the rows."""
    # None of the data sets says who wrote what, so users are made.
    if data.n > 1:
        return data, ForgetRequest.whole_peer(peer, reason="user")
    rows = data.rows(peer)
    parts = split(
        "dirichlet",
        data.store.labels[rows],
        USERS,
        RngTree(seed).child("users"),
        {"alpha": 0.5, "min_per_peer": 20},
    )
    return data, ForgetRequest.samples(
        peer=peer, indices=parts[seed % USERS], reason="user"
    )


def _mislabel(data: PeerData, peer: int, seed: int) -> Poisoned:
    fraction = 0.1 if data.n == 1 else 0.5
    return mislabelled(data, fraction=fraction, peer=peer, seed=seed)


def _backdoor(data: PeerData, peer: int, seed: int) -> Poisoned:
    return backdoored(
        data,
        trigger=Trigger(size=2 if data.store.inputs[0].numel() < 100 else 4),
        target=seed % data.num_classes,
        fraction=0.1 if data.n == 1 else 0.3,
        peer=peer,
        seed=seed,
    )


SETTINGS: dict[str, Callable[[PeerData, int, int], Poisoned]] = {
    "class": _class,
    "random-10": _random(0.1),
    "random-50": _random(0.5),
    "user": _user,
    "mislabel": _mislabel,
    "backdoor": _backdoor,
}
