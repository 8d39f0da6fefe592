"""Sweeps made by hand for the tests of their page."""

from results.made_sweep import claimed, make_sweep, row

from dfl_unlearn.store.lines import encode_line

NEWTON, WALK, TUNE = (
    {"use": "newton-fisher"},
    {"use": "rr-du"},
    {"use": "fine-tune"},
)
EPSILONS = (0.5, 1.0, 4.0)
HOSTILE = "<script>alert(1)</script>"


def accuracy(newton, walk, tune, retrained=0.9, before=0.92):
    """Test accuracy of three protocols in the worlds where it is measured."""
    found = []
    for name, after in (
        ("newton-fisher", newton),
        ("rr-du", walk),
        ("fine-tune", tune),
    ):
        for world, value in (
            ("before", before),
            ("after", after),
            ("reference", retrained),
        ):
            found.append(row("test-accuracy", value, world=world, protocol=name))
        cost = {"newton-fisher": 900, "rr-du": 400, "fine-tune": 0}[name]
        found.append(
            row("cost-gradient-evaluations", cost, protocol=name, unit="gradients")
        )
    return found


def privacy_sweep(root, *, seeds=(0, 1, 2), values=None, status="certified", **more):
    """Three protocols over epsilon on two networks; the walk's claim has ``status``.

    ``values(epsilon, seed)`` gives the accuracies of the protocols; on the torus each
    is 0.02 higher.
    """

    def given(epsilon, seed):
        off = 0.01 * (seed - 1)
        return 0.85 + off + 0.01 * epsilon, 0.7 + off + 0.01 * epsilon, 0.89 + off

    axes = {
        "topology": [{"use": "ring", "n": 8}, {"use": "torus", "n": 9}],
        "unlearning.0.epsilon,unlearning.1.epsilon": list(EPSILONS),
    }
    values = values or given

    def rows(point, seed):
        more = 0.02 if point["topology"]["use"] == "torus" else 0.0
        return accuracy(*(v + more for v in values(epsilon_of(point), seed)))

    def attempts(point, seed):
        epsilon = epsilon_of(point)
        return [
            ({**NEWTON, "epsilon": epsilon}, claimed(epsilon)),
            ({**WALK, "epsilon": epsilon}, claimed(epsilon, status)),
            (TUNE, None),
        ]

    base = {
        "topology": {"use": "ring", "n": 8},
        "unlearning": [NEWTON, WALK, TUNE],
        "seed": 0,
    }
    return make_sweep(root, axes, rows, seeds, base=base, attempts=attempts, **more)


def epsilon_of(point):
    """The value of the axis that moves both epsilons."""
    return point["unlearning.0.epsilon,unlearning.1.epsilon"]


def network_sweep(root, *, fronts=(40, 20, 10, 5), seeds=(0, 1)):
    """Four networks with spectral gaps 0.05, 0.1, 0.2, 0.4, and given front times."""
    families = ("ring", "torus", "erdos-renyi", "complete")
    axes = {"topology": [{"use": use, "n": 4} for use in families]}

    def rows(point, seed):
        k = families.index(point["topology"]["use"])
        measured = (
            ("spectral-gap", 0.05 * 2**k, ""),
            ("front-time", fronts[k], "rounds"),
            ("effective-spread", 2.0 + k, "peers"),
        )
        found = [
            row(name, value, unit=unit, world="before")
            | ({"note": "inf"} if value is None else {})
            for name, value, unit in measured
        ]
        peers = [{**found[1], "peer": i, "hop": i, "value": 1.0} for i in range(4)]
        return [*found, *peers, *accuracy(0.8, 0.7, 0.75)]

    def config(point, seed):
        return {"topology": point["topology"]}

    return make_sweep(root, axes, rows, seeds, config=config)


def fail(root, case, message, error="MemoryError"):
    """Note in ``failures.jsonl`` that a case failed."""
    line = {
        "case": case,
        "point": {},
        "seed": 0,
        "error": error,
        "message": message,
        "exit_code": 5,
        "seconds": 1.5,
    }
    with (root / "failures.jsonl").open("ab") as file:
        file.write(encode_line("failures.jsonl", line))
