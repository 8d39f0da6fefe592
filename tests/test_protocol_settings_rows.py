"""One protocol with several settings in an experiment: every setting keeps its rows."""

import json

from dfl_unlearn.experiment import read_experiment, resume_experiment, run_experiment
from dfl_unlearn.store.folder import RunFolder

TABLE = {
    "name": "twice",
    "topology": {"use": "ring", "n": 4},
    "data": {"use": "gaussian-classes"},
    "training": {"rounds": 4},
    "forget": [{"kind": "samples", "peer": 1, "indices": [0, 4]}],
    "unlearning": [
        {"use": "fine-tune", "rounds": 1},
        {"use": "fine-tune", "rounds": 3},
    ],
    "evaluation": {"metrics": ["test-accuracy", "cost-rounds"]},
    "report": {"figures": [], "html": False},
}


def metric_rows(folder):
    return [
        (row["metric"], row["world"], row["peer"], row["value"])
        for row in RunFolder(folder).records()
        if row["type"] == "metric"
    ]


def test_a_kill_between_rows_that_look_alike_loses_none(tmp_path):
    experiment = read_experiment(json.loads(json.dumps(TABLE)))
    run, _, _ = run_experiment(experiment, tmp_path)
    whole = metric_rows(run.folder)
    costs = [value for metric, _, _, value in whole if metric == "cost-rounds"]
    assert costs == [1.0, 3.0]

    results = run.folder / "results.jsonl"
    lines = results.read_text().splitlines(keepends=True)
    first = next(k for k, line in enumerate(lines) if '"metric"' in line)
    for kept in (first, first + len(whole) // 2, len(lines) - 1):
        results.write_text("".join(lines[:kept]))
        resume_experiment(run.folder)
        assert metric_rows(run.folder) == whole


def test_nothing_is_written_twice(tmp_path):
    experiment = read_experiment(json.loads(json.dumps(TABLE)))
    run, _, _ = run_experiment(experiment, tmp_path)
    whole = metric_rows(run.folder)
    for _ in range(2):
        resume_experiment(run.folder)
    assert metric_rows(run.folder) == whole
    assert len(whole) == 2 * (3 * 5 + 1)
