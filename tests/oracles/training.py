"""D-SGD written out: one peer, one step, one sample after the other, in float64."""

from hashlib import sha256

import numpy as np
import torch


def order(seed, sizes, peer, epoch, block_peers):
    """A peer's row order in one of its epochs, from the documented key."""
    block = peer // block_peers
    first = block * block_peers
    text = f"dfl-unlearn/1|{seed}|batch|block:{block}|-|{epoch}|0"
    key = int.from_bytes(sha256(text.encode()).digest()[:16], "big")
    rows = int(sum(sizes[first : first + block_peers]))
    uniforms = np.random.Generator(np.random.Philox(key=key)).random(rows)
    begin = int(sum(sizes[first:peer]))
    return np.argsort(uniforms[begin : begin + sizes[peer]], kind="stable")


def rows_of_step(seed, sizes, peer, step, batch_size, block_peers):
    """Local row numbers of a peer's k-th step, forgotten ones included."""
    if batch_size is None:
        return np.arange(sizes[peer])
    batches = -(-sizes[peer] // batch_size)
    epoch, position = divmod(step, batches)
    whole = order(seed, sizes, peer, epoch, block_peers)
    return whole[position * batch_size : (position + 1) * batch_size]


def gradient(losses, row, x, y, weights, clip_norm):
    """Weighted sum of per-sample gradients, each clipped by itself."""
    total = torch.zeros_like(row)
    for k in range(len(y)):
        leaf = row.clone().requires_grad_()
        losses(leaf, x[k : k + 1], y[k : k + 1])[0].backward()
        one = leaf.grad
        if clip_norm is not None and float(one.norm()) > clip_norm:
            one = one * (clip_norm / float(one.norm()))
        total += weights[k] * one
    return total


def train(
    initial,
    losses,
    peers,
    w,
    *,
    seed,
    rates,
    steps,
    batch_size,
    scale,
    keep,
    counted,
    form="atc",
    l2=0.0,
    weight_decay=0.0,
    momentum=0.0,
    clip_norm=None,
    block_peers=16,
):
    """All peers' parameters after ``len(rates)`` rounds.

    ``peers`` holds (inputs, labels), ``keep`` and ``counted`` a mask, ``steps`` and
    ``scale`` a number for each peer; a peer with scale 0 only mixes.
    """
    x = initial.double().clone()
    sizes = [len(y) for _, y in peers]
    velocity = torch.zeros_like(x)
    for t, rate in enumerate(rates):
        moved = x.clone()
        for i, (inputs, labels) in enumerate(peers):
            for s in range(steps[i]):
                if scale[i] == 0:
                    continue
                rows = rows_of_step(
                    seed, sizes, i, t * steps[i] + s, batch_size, block_peers
                )
                count = max(1, int(counted[i][rows].sum()))
                weights = keep[i][rows] / count
                g = scale[i] * (
                    gradient(
                        losses, moved[i], inputs[rows], labels[rows], weights, clip_norm
                    )
                    + l2 * moved[i]
                )
                g = g + weight_decay * moved[i]
                if momentum:
                    velocity[i] = momentum * velocity[i] + g
                    g = velocity[i]
                moved[i] = moved[i] - rate * g
        x = w @ moved if form == "atc" else w @ x + (moved - x)
    return x


def track(
    initial,
    losses,
    peers,
    w,
    *,
    seed,
    rates,
    batch_size,
    scale,
    keep,
    counted,
    l2=0.0,
    weight_decay=0.0,
    block_peers=16,
):
    """Gradient tracking: X+ = W(X - rate Q), Q+ = WQ + G+ - G, Q0 = G0."""
    sizes = [len(y) for _, y in peers]

    def gradients(x, t):
        total = torch.zeros_like(x)
        for i, (inputs, labels) in enumerate(peers):
            if scale[i] == 0:
                continue
            rows = rows_of_step(seed, sizes, i, t, batch_size, block_peers)
            weights = keep[i][rows] / max(1, int(counted[i][rows].sum()))
            g = gradient(losses, x[i], inputs[rows], labels[rows], weights, None)
            total[i] = scale[i] * (g + l2 * x[i]) + weight_decay * x[i]
        return total

    x = initial.double().clone()
    g = gradients(x, 0)
    q = g
    for t, rate in enumerate(rates):
        x = w @ (x - rate * q)
        new = gradients(x, t + 1)
        q, g = w @ q + new - g, new
    return x


def private_rows(seed, sizes, peer, t, rate, block_peers=16):
    """Local rows that join a peer's step of a round, from the documented key."""
    first = peer // block_peers * block_peers
    text = f"dfl-unlearn/1|{seed}|batch|block:{peer // block_peers}|-|{t}|0"
    key = int.from_bytes(sha256(text.encode()).digest()[:16], "big")
    rows = int(sum(sizes[first : first + block_peers]))
    uniforms = np.random.Generator(np.random.Philox(key=key)).random(rows)
    begin = int(sum(sizes[first:peer]))
    return np.flatnonzero(uniforms[begin : begin + sizes[peer]] < rate)


def private_noise(seed, peers, peer, t, size, block_peers=16):
    """Standard normal numbers of a peer's private step, from the documented key."""
    block = peer // block_peers
    text = f"dfl-unlearn/1|{seed}|train-noise|block:{block}|-|{t}|0"
    key = int.from_bytes(sha256(text.encode()).digest()[:16], "big")
    count = min(block_peers, peers - block * block_peers)
    drawn = np.random.Generator(np.random.Philox(key=key)).standard_normal(
        (count, size)
    )
    return torch.from_numpy(drawn[peer - block * block_peers])


def private_train(
    initial,
    losses,
    peers,
    w,
    *,
    seed,
    rates,
    rate,
    clip_norm,
    noise_multiplier,
    keep,
    form="atc",
    l2=0.0,
    weight_decay=0.0,
    block_peers=16,
):
    """DP-SGD with gossip: a Poisson batch, clipped one by one, noise on the sum."""
    x = initial.double().clone()
    sizes = [len(y) for _, y in peers]
    for t, step in enumerate(rates):
        moved = x.clone()
        for i, (inputs, labels) in enumerate(peers):
            rows = private_rows(seed, sizes, i, t, rate, block_peers)
            rows = rows[keep[i][rows]]
            total = gradient(
                losses, x[i], inputs[rows], labels[rows], np.ones(len(rows)), clip_norm
            )
            noise = private_noise(seed, len(peers), i, t, x.shape[1], block_peers)
            total = total + noise_multiplier * clip_norm * noise
            g = total / (rate * sizes[i]) + (l2 + weight_decay) * x[i]
            moved[i] = x[i] - step * g
        x = w @ moved if form == "atc" else w @ x + (moved - x)
    return x
