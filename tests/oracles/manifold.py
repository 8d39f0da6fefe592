"""ManiF-SMC once more, sample after sample, for a perceptron with one hidden layer.

Float64; parameters are the flat vector of W (h, f), b (h,), V (c, h), a (c,). Gradients
by torch, everything else in loops.
"""

import torch
from torch.nn import functional as F

FEATURES, HIDDEN, CLASSES = 6, 24, 3


def representation(p, x, normalize=True):
    w = p[: HIDDEN * FEATURES].view(HIDDEN, FEATURES)
    z = torch.relu(w @ x + p[HIDDEN * FEATURES : HIDDEN * (FEATURES + 1)])
    return z / z.norm() if normalize else z


def logits(p, x):
    rest = p[HIDDEN * (FEATURES + 1) :]
    v = rest[: CLASSES * HIDDEN].view(CLASSES, HIDDEN)
    return v @ representation(p, x, normalize=False) + rest[CLASSES * HIDDEN :]


def d(a, b):
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))


def neighbours(p, forget, retain, k):
    """For each forgotten row the places of the k most similar, most similar first."""
    found = []
    for x in forget:
        z = representation(p, x, normalize=False)
        sims = []
        for y in retain:
            other = representation(p, y, normalize=False)
            sims.append(float(z @ other / (z.norm() * other.norm())))
        found.append(sorted(range(len(retain)), key=lambda j, s=sims: -s[j])[:k])
    return found


def adam(value, start, rate, steps):
    """Adam by its formulas (Kingma and Ba 2015), betas .9 and .999, eps 1e-8."""
    w, m, v = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for step in range(1, steps + 1):
        leaf = w.clone().requires_grad_()
        (g,) = torch.autograd.grad(value(leaf), leaf)
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g * g
        w = w - rate * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
    return w


def one_step(
    p,
    forget,
    retain,
    labels,
    fresh,
    *,
    current,
    variant,
    margin,
    normalize=True,
    k=5,
    preservation=1.0,
    scale=0.1,
    fixed=0.001,
    cap=None,
    t=0.5,
    w_loss="labels",
    w_rate=5e-3,
    w_steps=20,
    rate=0.01,
    own=None,
):
    """Parameters after one gradient step from ``current`` on all forgotten rows."""
    near = neighbours(p, forget, retain, k)

    def z(q, x):
        return representation(q, x, normalize)

    centres = [sum(z(p, retain[j]) for j in s) / len(s) for s in near]
    own = [z(p, x) for x in forget] if own is None else own

    def gaps(q):
        found = []
        for u, x in enumerate(forget):
            to_centre = d(z(q, x), centres[u])
            if variant == "pull":
                found.append(d(z(q, x), own[u]) - to_centre)
            else:
                found.append(to_centre - d(z(q, retain[near[u][0]]), centres[u]))
        return found

    union = sorted({j for s in near for j in s})

    def curve(w):
        return (1 - t) ** 2 * current + 2 * t * (1 - t) * w + t**2 * p

    def w_objective(w):
        q = curve(w)
        if w_loss == "labels":
            terms = [F.cross_entropy(logits(q, retain[j]), labels[j]) for j in union]
        else:
            terms = [d(z(q, retain[j]), z(p, retain[j])) for j in union]
        return sum(terms) / len(terms)

    with torch.no_grad():
        if margin == "fixed":
            alphas = [torch.tensor(fixed, dtype=p.dtype)] * len(forget)
        elif margin == "midpoint_random":
            found = gaps((current + fresh) / 2)
            alphas = [sum(found) / len(found)] * len(forget)
        else:
            with torch.enable_grad():
                w = adam(w_objective, fresh, w_rate, w_steps)
            alphas = gaps(curve(w))
    alphas = [a.clamp(min=0, max=cap) for a in alphas]

    leaf = current.clone().requires_grad_()
    found = gaps(leaf)
    loss = sum((a - g).clamp(min=0) for a, g in zip(alphas, found, strict=True))
    loss = loss / len(forget)
    if variant == "pull":
        moved = [
            sum(d(z(leaf, retain[j]), z(p, retain[j])) for j in s) / len(s)
            for s in near
        ]
        loss = loss + preservation * sum(moved) / len(moved)
    (g,) = torch.autograd.grad(scale / HIDDEN * loss, leaf)
    return current - rate * g, alphas
