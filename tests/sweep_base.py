"""The smallest experiment that sweeps are tried on: four peers, a few rounds."""

import copy

TINY = {
    "name": "tiny",
    "topology": {"use": "ring", "n": 4},
    "data": {"use": "gaussian-classes"},
    "training": {"rounds": 3, "evaluate_every": 0},
}


def tiny(**changes):
    return copy.deepcopy({**TINY, **changes})


def forgetting(**changes):
    """With a request, and a protocol that draws noise."""
    given = {
        "forget": [{"kind": "samples", "peer": 1, "fraction": 0.25}],
        "unlearning": [{"use": "newton-fisher"}, {"use": "fine-tune", "rounds": 1}],
        "evaluation": {"metrics": ["test-accuracy", "epsilon-spent"]},
    }
    return tiny(**{**given, **changes})
