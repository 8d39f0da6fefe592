"""Sweep folders made by hand: nothing is trained here."""

import json
from itertools import product

from results.handmade import certificate

from dfl_unlearn.store.files import to_json
from dfl_unlearn.store.lines import encode_line


def row(metric, value, **columns):
    """A metric row about the network after the request, unless said otherwise."""
    found = {
        "type": "metric",
        "case": "",
        "world": "after",
        "protocol": "fine-tune",
        "request": "r0",
        "round": 30,
        "peer": -1,
        "hop": -1,
        "set": "test" if metric.startswith("test") else "",
        "metric": metric,
        "value": value,
        "unit": "fraction" if metric.endswith("accuracy") else "",
        "seed": 0,
    }
    return found | columns


def per_peer(metric, values, **columns):
    """The network's row, which is the mean, and one per peer."""
    network = row(metric, sum(values) / len(values), **columns)
    return [network] + [
        network | {"peer": i, "hop": i, "value": v} for i, v in enumerate(values)
    ]


def make_case(folder, rows, attempts=(), config=None, done=True, refused=()):
    """A run folder with rows; ``attempts``: (protocol form, certificate or None)."""
    folder.mkdir(parents=True)
    (folder / "lock").touch()
    forms = [form for form, _ in attempts]
    config = {"topology": {"use": "ring", "n": 4}, "unlearning": forms} | (config or {})
    (folder / "config.json").write_text(json.dumps(config))
    lines = [encode_line("results.jsonl", one) for one in rows]
    (folder / "results.jsonl").write_bytes(b"".join(lines))
    for k, (form, claim) in enumerate(attempts):
        place = folder / "outcomes" / f"r0.{form['use']}-{k}"
        place.mkdir(parents=True)
        (place / "outcome.json").write_text(json.dumps({"order": k, "protocol": form}))
        (place / "request.json").write_text(json.dumps({"request_id": "r0"}))
        if claim is not None:
            (place / "certificate.json").write_text(claim.to_json())
    if done:
        complete(folder, refused=refused)


def complete(folder, digest=None, refused=()):
    """Write ``case.json``."""
    told = {
        "format": 1,
        "digest": digest or folder.name * 4,
        "seconds": 2.5,
        "refused": list(refused),
    }
    (folder / "case.json").write_text(json.dumps(told))


def make_sweep(
    root, axes, rows_of, seeds=(0, 1, 2), name="made", base=None, skip=(), **more
):
    """A sweep folder over a grid; ``rows_of(point, seed)`` gives a case's rows.

    ``more`` are functions of the same arguments for ``make_case``; cases whose number
    is in ``skip`` are not made.
    """
    cases = []
    for values in product(*axes.values()):
        point = dict(zip(axes, values, strict=True))
        cases += [{"case": "", "point": point, "seed": seed} for seed in seeds]
    for k, entry in enumerate(cases):
        text = to_json("", [base, entry["point"], entry["seed"]])
        entry["case"] = f"{abs(hash_of(text)):012x}"
        if k not in skip:
            given = (entry["point"], entry["seed"])
            parts = {key: make(*given) for key, make in more.items()}
            make_case(root / "cases" / entry["case"], rows_of(*given), **parts)
    plan = {
        "format": 1,
        "name": name,
        "mode": "grid",
        "axes": axes,
        "seeds": list(seeds),
        "cases": cases,
    }
    if base is not None:
        plan["base"] = base
    (root / "sweep.json").write_text(json.dumps(plan))
    return root


def hash_of(text):
    """48 bits that depend on the text alone."""
    from hashlib import sha256

    return int.from_bytes(sha256(text.encode()).digest()[:6])


def claimed(epsilon, status="certified"):
    """A certificate with an epsilon, claimed or nominal."""
    which = "nominal_epsilon" if status == "heuristic" else "epsilon"
    return certificate(status, noise_std=0.1 / epsilon, **{which: epsilon})
