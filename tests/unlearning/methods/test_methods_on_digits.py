"""What methods with two objectives do on digits, against the acceptance levels.

Training: MLP 64-128-64-10, SGD 0.1 with momentum and cosine, 60 epochs.
"""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.data.sources import datasets
from dfl_unlearn.engine.config import LocalSteps, SimulationConfig
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.models.zoo import models
from dfl_unlearn.record.plan import RecordPlan
from dfl_unlearn.rng import RngTree
from dfl_unlearn.topology.graph import Topology
from dfl_unlearn.unlearning.local import only, uses_of
from dfl_unlearn.unlearning.local_tasks import local_task
from dfl_unlearn.unlearning.methods.dual_optim import DualOptim
from dfl_unlearn.unlearning.methods.fine_tune import FineTune
from dfl_unlearn.unlearning.methods.random_label import RandomLabel
from dfl_unlearn.unlearning.methods.salun import SalUn
from dfl_unlearn.unlearning.methods.sfron import SfRon
from dfl_unlearn.unlearning.optimizers import LocalOptimizer

pytestmark = pytest.mark.slow

MODEL = models.build("mlp", input_shape=(64,), num_classes=10, hidden=(128, 64))
SEEDS = range(6)


def trained(data, seed):
    return simulate(
        Topology.single(),
        data,
        MODEL,
        SimulationConfig(
            rounds=60,
            seed=seed,
            local=LocalSteps(
                epochs=1,
                batch_size=64,
                learning_rate=0.1,
                lr_schedule="cosine",
                momentum=0.9,
                weight_decay=5e-4,
            ),
            evaluate_every=0,
            record=RecordPlan(parts=frozenset()),
        ),
    )


@cache
def mislabelled(seed):
    """A task to forget a tenth of the rows, whose labels are wrong; and retraining."""
    digits = datasets.build("digits")
    inputs, labels = (
        torch.as_tensor(a) for a in (digits.train.inputs, digits.train.labels)
    )
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(len(labels), len(labels) // 10, replace=False))
    labels = labels.clone()
    labels[rows] = (
        labels[rows] + torch.from_numpy(rng.integers(1, 10, len(rows)))
    ) % 10
    data = PeerData.from_tensors([(inputs, labels)], test=digits.test, num_classes=10)
    request = ForgetRequest.samples(peer=0, indices=rows, request_id="r0")
    retrained = trained(data.without(request.resolve(data)), seed + 1000)
    task = local_task(trained(data, seed), request)
    return task, retrained.state.params[0], data.test


@cache
def class_three(seed):
    data = PeerData.load("digits", peers=1, seed=0)
    return local_task(trained(data, seed), ForgetRequest.class_(3, request_id="r0"))


def unlearned(method, task, seed):
    return method.unlearn(only(task, uses_of(method)), RngTree(seed)).params


@torch.no_grad()
def accuracy(params, batch):
    guess = MODEL.predict(params, batch.inputs).argmax(1)
    return 100 * float((guess == batch.labels).double().mean())


@torch.no_grad()
def entropies(params, inputs):
    logs = torch.log_softmax(MODEL.predict(params, inputs).double(), 1)
    return -(logs.exp() * logs).sum(1, keepdim=True).numpy()


def called_member(params, task, test):
    """Share of the forgotten rows that an attack on entropies calls members."""
    from sklearn.linear_model import LogisticRegression

    members, others = (entropies(params, b.inputs) for b in (task.retain, test))
    attack = LogisticRegression(class_weight="balanced")
    attack.fit(np.vstack([members, others]), [1] * len(members) + [0] * len(others))
    return 100 * float(attack.predict(entropies(params, task.forget.inputs)).mean())


def scores(params, task, test):
    """FA, RA, TA and the attack, in percent."""
    sets = (task.forget, task.retain, test)
    return [*(accuracy(params, b) for b in sets), called_member(params, task, test)]


def tuned(family):
    """Scores ``(seeds, 4)`` of the method whose means are nearest to retraining's."""
    reference = np.array(
        [scores(again, task, test) for task, again, test in map(mislabelled, SEEDS)]
    )
    found = []
    for method in family:
        rows = []
        for seed in SEEDS:
            task, _, test = mislabelled(seed)
            rows.append(scores(unlearned(method, task, seed), task, test))
        table = np.array(rows)
        found.append((np.abs(table.mean(0) - reference.mean(0)).mean(), table))
    return min(found, key=lambda pair: pair[0])


def adamw(rate):
    return LocalOptimizer(kind="adamw", learning_rate=rate, weight_decay=0.05)


def test_two_optimizers_halve_the_spread_of_sfron_where_its_rate_is_tuned():
    # Measured, mean standard deviation of FA, RA, TA and the attack: 10.7 against 0.9.
    # Nearly all of the 10.7 is the attack, whose coefficient changes its sign on two of
    # six forget sets, where members and others are alike. That of the three accuracies
    # alone is 0.4 for both. An alpha of 0.25, which a paired gap finds for one
    # optimizer, spreads no more than two optimizers do (1.15 against 1.04, ten sets).
    base = SfRon(alpha=1.0)
    one = tuned(replace(base, forget_learning_rate=r) for r in (0.005, 0.01, 0.02))
    two = tuned(
        DualOptim(base=base, forget_optimizer=adamw(r)) for r in (1e-3, 1.5e-3, 2e-3)
    )
    assert two[1].std(0).mean() <= one[1].std(0).mean() / 2
    assert two[0] < 2  # percentage points from retraining


def class_accuracies(method):
    """What is left of class 3, in percent, of five trainings."""
    return np.array(
        [
            accuracy(unlearned(method, class_three(s), s), class_three(s).forget)
            for s in range(5)
        ]
    )


def test_two_optimizers_soften_the_edge_between_nothing_and_all_of_a_class():
    # Measured: at most 42.9 with one optimizer, 13.3 with two, where about half of a
    # class is left. Here the spread is one of accuracies.
    one = [class_accuracies(SfRon(alpha=a)).std() for a in (1.8, 2.0, 2.2)]
    rates = (3e-4, 4e-4, 5e-4)
    two = [class_accuracies(DualOptim(forget_optimizer=adamw(r))).std() for r in rates]
    assert max(two) <= max(one) / 2


@pytest.mark.parametrize("method", [RandomLabel(), SalUn()])
def test_random_labels_forget_a_class_and_keep_the_others(method):
    # Measured, means of five: 0.0 and 99.4 with random labels, 0.3 and 99.3 with SalUn.
    kept = [
        accuracy(unlearned(method, class_three(s), s), class_three(s).retain)
        for s in range(5)
    ]
    assert class_accuracies(method).mean() <= 1
    assert np.mean(kept) >= 99
    assert accuracy(class_three(0).params, class_three(0).forget) > 99


def test_fine_tuning_does_not_forget_a_class():
    assert class_accuracies(FineTune()).min() >= 80


@pytest.mark.parametrize("method", [DualOptim(), SfRon()])
def test_defaults_of_sfron_forget_a_class(method):
    task = class_three(0)
    params = unlearned(method, task, 0)
    assert accuracy(params, task.forget) <= 1
    assert accuracy(params, task.retain) >= 97
