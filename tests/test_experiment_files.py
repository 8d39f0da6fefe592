"""Experiments from files: every doubtful value is refused with its key path."""

import json
import os
from contextlib import nullcontext
from dataclasses import replace

import pytest

from dfl_unlearn._configfile import read_config_file, to_toml
from dfl_unlearn.engine.faults import (
    Delay,
    Duplicate,
    FaultPlan,
    MarkovChurn,
    MessageLoss,
    NetworkSplit,
    Reorder,
    ScheduledChurn,
    Straggler,
    fault_models,
)
from dfl_unlearn.engine.stored import config_from, config_to
from dfl_unlearn.engine.trainers.dp_gossip import DpGossip
from dfl_unlearn.errors import (
    ConfigError,
    DflUnlearnError,
    InputFileError,
    InputTooLargeError,
    InvalidArgumentError,
    TopologyError,
    UnsupportedFormatError,
    UnsupportedRequestError,
)
from dfl_unlearn.experiment import (
    DEMO,
    build_parts,
    check_requests,
    load_experiment,
    read_experiment,
    run_experiment,
    to_config,
)

GOOD = """
name = "small"
[topology]
use = "ring"
n = 4
[data]
use = "gaussian-classes"
[training]
rounds = 5
[training.local]
learning_rate = 0.1
[[forget]]
kind = "samples"
peer = 1
fraction = 0.2
[[unlearning]]
use = "newton-fisher"
delta = 1e-5
"""


FILES = (
    "config.json",
    "config.toml",
    "manifest.json",
    "done.json",
    "topology.graphml",
    "weights.safetensors",
    "results.jsonl",
    "ledger.jsonl",
    "state/final.safetensors",
    "record/plan.json",
    "outcomes/r0.newton-fisher/certificate.json",
    "reference/r0/manifest.json",
    "figures/topology.png",
    "report.html",
    "tables/metrics.csv",
    "tables/metrics.parquet",
    "tables/peers.csv",
)


def load(tmp_path, text, *overrides, name="exp.toml"):
    path = tmp_path / name
    path.write_text(text)
    return load_experiment(path, overrides)


BAD = {
    "unknown key": (
        ("learning_rate = 0.1", "learning_rte = 0.1"),
        r"exp.toml: training.local.learning_rte: unknown key. "
        r"Did you mean 'learning_rate'\?",
    ),
    "wrong type": (
        ("rounds = 5", 'rounds = "100"'),
        r'training.rounds: expected integer.*, got string "100"',
    ),
    "a boolean is no integer": (("rounds = 5", "rounds = true"), "training.rounds"),
    "a float is no integer": (("rounds = 5", "rounds = 1.0"), "training.rounds"),
    "out of range": (("delta = 1e-5", "delta = 1.5"), r"delta: must be .*got 1.5"),
    "not finite": (
        ("learning_rate = 0.1", "learning_rate = inf"),
        "training.local.learning_rate: must be finite, got inf",
    ),
    "not a number": (("learning_rate = 0.1", "learning_rate = nan"), "must be finite"),
    "overflows": (("learning_rate = 0.1", "learning_rate = 1e999"), "must be finite"),
    "huge integer": (
        ("rounds = 5", "rounds = 1" + "0" * 4999),
        "rounds: .*5000 digits",
    ),
    "unknown name": (('use = "ring"', 'use = "rign"'), "topology.use.*'ring'"),
    "unknown protocol": (
        ('use = "newton-fisher"', 'use = "newton"'),
        "unlearning.0.use.*newton-fisher",
    ),
    "an object": (
        ("rounds = 5", 'rounds = 5\nschedule = "x"'),
        r"training.schedule: unknown key. Known: rounds, .*",
    ),
    "bad run name": (('"small"', '"../x"'), "run name: must match"),
    "missing field": (("peer = 1", ""), "forget.0.*peer: is missing"),
    "nothing would arrive": (
        (
            "rounds = 5",
            'rounds = 5\n[[training.faults.models]]\nuse = "message-loss"\np = 1.0\n',
        ),
        r"exp.toml: training.faults.models.0.p: must be < 1 \(nothing would ever "
        r"arrive\), got 1.0",
    ),
    "a fault that is not there": (
        (
            "rounds = 5",
            'rounds = 5\n[[training.faults.models]]\nuse = "message-lost"\np = 0.1\n',
        ),
        "training.faults.models.0.use: .*Did you mean 'message-loss'",
    ),
    "a fault's field": (
        (
            "rounds = 5",
            "rounds = 5\n[[training.faults.models]]\nuse = "
            '"markov-churn"\np_leave = 1.5\np_return = 0.2\n',
        ),
        "training.faults.models.0.p_leave: .*got 1.5",
    ),
    "field of another kind": (('kind = "samples"', 'kind = "peer"'), "fraction"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_names_file_key_and_value(tmp_path, case):
    (old, new), message = BAD[case]
    assert old in GOOD
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, GOOD.replace(old, new))


def test_all_errors_are_reported_together(tmp_path):
    text = GOOD.replace("rounds = 5", 'rounds = "x"\nseeed = 1').replace(
        "delta = 1e-5", "delta = 2"
    )
    with pytest.raises(ConfigError) as error:
        load(tmp_path, text)
    lines = str(error.value).splitlines()
    assert len(lines) == 3
    assert all(line.startswith("exp.toml: ") for line in lines)


def test_a_repeated_json_key_is_refused(tmp_path):
    text = '{\n "seed": 1,\n "seed": 2\n}'
    with pytest.raises(ConfigError, match=r"exp.json: duplicate key 'seed' \(line 3\)"):
        load(tmp_path, text, name="exp.json")


@pytest.mark.parametrize("text", ['{"a": NaN}', '{"a": 1e999}'])
def test_json_numbers_must_be_finite(tmp_path, text):
    with pytest.raises(ConfigError, match=r"must be finite|unknown key"):
        load(tmp_path, text, name="exp.json")


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.toml", "a = " + "[" * 40), ("a.json", "[" * 100_000)],
)
def test_deep_nesting_is_refused_before_parsing(tmp_path, name, text):
    with pytest.raises(ConfigError, match=f"{name}: nested deeper than 32 levels"):
        load(tmp_path, text, name=name)


def test_a_large_file_is_refused(tmp_path):
    with pytest.raises(InputTooLargeError, match="limit 1 M"):
        load(tmp_path, "#" * (2**20 + 1))


def test_bytes_that_are_not_utf8_are_located(tmp_path):
    path = tmp_path / "a.toml"
    path.write_bytes(b"name = 'x'\n# caf\xe9\n")
    with pytest.raises(InputFileError, match="not valid UTF-8 at byte 16"):
        load_experiment(path)


def test_a_byte_order_mark_is_dropped(tmp_path):
    path = tmp_path / "a.toml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert load_experiment(path).name == "small"


def test_yaml_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(UnsupportedFormatError, match="use TOML or JSON"):
        load(tmp_path, "a: 1", name="a.yaml")
    with pytest.raises(InputFileError, match=r"none.toml: no such file"):
        load_experiment(tmp_path / "none.toml")
    (tmp_path / "d.toml").mkdir()
    with pytest.raises(InputFileError, match="director"):
        load_experiment(tmp_path / "d.toml")


def test_defaults_are_filled_and_come_back_the_same(tmp_path):
    first = load(tmp_path, GOOD)
    text = to_toml(to_config(first))
    assert load(tmp_path, text, name="again.toml") == first
    assert load(tmp_path, json.dumps(to_config(first)), name="again.json") == first


def test_the_demo_comes_back_the_same():
    demo = read_experiment(DEMO)
    assert read_experiment(to_config(demo)) == demo


def test_every_fault_model_comes_back_from_its_file(tmp_path):
    faults = FaultPlan(
        models=(
            MarkovChurn(p_leave=0.1, p_return=0.3),
            ScheduledChurn(events=((3, 1, "down"), (5, 1, "up"))),
            MessageLoss(p=0.2),
            Delay(probabilities=(0.5, 0.5), max_staleness=2),
            Straggler(share=0.2, slowdown=3),
            NetworkSplit(start=1, end=4, peers=(0, 1)),
            Duplicate(p=0.1),
            Reorder(p=0.1),
        ),
        weight_policy="self",
        patience=7,
    )
    assert {fault_models.name_of(m) for m in faults.models} == set(fault_models.names())
    plain = load(tmp_path, GOOD)
    experiment = replace(plain, training=replace(plain.training, faults=faults))
    text = to_toml(to_config(experiment))
    assert "[[training.faults.models]]" in text
    assert load(tmp_path, text, name="faults.toml") == experiment
    assert config_from(json.loads(json.dumps(config_to(experiment.training)))) == (
        experiment.training
    )


def test_overrides_win_over_the_file(tmp_path):
    experiment = load(
        tmp_path,
        GOOD,
        "training.local.learning_rate=0.05",
        "unlearning.0.epsilon=0.5",
        "training.trainer.form=cta",
        "seed=7",
    )
    assert experiment.training.local.learning_rate == 0.05
    assert experiment.unlearning[0].epsilon == 0.5
    assert experiment.training.trainer.form == "cta"
    assert experiment.training.seed == 7


def test_a_preset_file_stands_for_its_family(tmp_path):
    preset = tmp_path / "mine.toml"
    preset.write_text('generator = "torus"\n[parameters]\nn = 9\n')
    text = GOOD.replace('use = "ring"\nn = 4', f"use = '{preset}'")
    experiment = load(tmp_path, text)
    assert build_parts(experiment)[0].n == 9
    assert read_experiment(to_config(experiment)) == experiment
    with pytest.raises(InvalidArgumentError, match=r"topology: .*unknown field 'm'"):
        build_parts(load(tmp_path, text, "topology.m=1"))


def test_another_name_drops_the_fields_of_the_former(tmp_path):
    text = GOOD.replace('use = "ring"', 'use = "watts-strogatz"\nk = 2')
    experiment = load(tmp_path, text, "topology.use=complete")
    assert experiment.topology.use == "complete"
    assert "k" not in experiment.topology.fields
    experiment = load(tmp_path, text, "topology.use=karate-34")
    assert build_parts(experiment)[0].n == 34


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.rounds", "must look like key=value"),
        ("unlearning.3.epsilon=1", "index below 1"),
        ("training.rounds.x=1", "must lead to a table"),
        ("training.rounds=five words", "TOML syntax"),
        ("training.roundz=1", "Did you mean 'rounds'"),
    ],
)
def test_bad_overrides_are_named(tmp_path, override, message):
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, GOOD, override)


def test_one_seed_serves_every_section_without_its_own(tmp_path):
    text = GOOD.replace('name = "small"', "seed = 5").replace(
        'use = "ring"', 'use = "erdos-renyi"\np = 0.9'
    )
    experiment = load(tmp_path, text)
    assert experiment.training.seed == 5
    assert experiment.topology.fields["seed"] == 5
    assert experiment.forget[0].seed == 5
    own = load(tmp_path, text.replace("rounds = 5", "rounds = 5\nseed = 2"))
    assert own.training.seed == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("forget.0.peer=9", "peer: must be in 0..3, got 9"),
        ("data.partition.use=by-size", "sizes"),
        ("topology.n=1", "at least 2 peers|>= 3"),
        ("model.use=linear", "num_classes"),
    ],
)
def test_nothing_is_written_before_everything_was_checked(tmp_path, override, message):
    runs = tmp_path / "runs"
    with pytest.raises(DflUnlearnError, match=message):
        run_experiment(load(tmp_path, GOOD, override), runs)
    assert not runs.exists()


def test_an_experiment_fills_its_folder(tmp_path):
    experiment = load(tmp_path, GOOD, "unlearning.0.recovery_rounds=0")
    lines = []
    run, outcomes, tables = run_experiment(
        experiment, tmp_path / "r", tell=lines.append
    )
    assert run.folder == tmp_path / "r" / "small"
    assert outcomes[0].reference is not None
    assert len(tables) == 1
    assert lines[0].startswith("training 4 peers on ring")
    for rel in FILES:
        assert (run.folder / rel).is_file(), rel
    again = load_experiment(run.folder / "config.toml")
    second, _, _ = run_experiment(again, tmp_path / "r")
    assert second.folder.name == "small-2"
    assert second.digest == run.digest


def test_private_training_and_its_baseline_stand_in_a_file(tmp_path):
    text = GOOD.replace(
        "rounds = 5", 'rounds = 5\ntrainer = { use = "dp-gossip", rate = 0.5 }'
    ).replace('"newton-fisher"', '"dp-gossip"')
    experiment = load(tmp_path, text, "training.trainer.noise_multiplier=20.0")
    assert to_config(experiment)["unlearning"] == [{"use": "dp-gossip", "delta": 1e-5}]
    run, (outcome,), _ = run_experiment(experiment, tmp_path / "r")
    assert run.config.trainer == DpGossip(rate=0.5, noise_multiplier=20.0)
    assert outcome.certificate.status == "certified"
    at = run.folder / "outcomes/r0.dp-gossip/certificate.json"
    assert json.loads(at.read_text())["scope"] == "view_joint"
    assert "certified" in (run.folder / "report.html").read_text()


def test_parts_are_built_without_writing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(os.listdir(tmp_path))
    topology, data, model = build_parts(read_experiment(DEMO))
    assert (topology.n, data.n, model.size) == (8, 8, 650)
    assert sorted(os.listdir(tmp_path)) == before


def test_none_is_written_as_a_word_and_read_back(tmp_path):
    experiment = load(tmp_path, GOOD, "training.local.batch_size=none")
    assert experiment.training.local.batch_size is None
    path = tmp_path / "c.toml"
    path.write_text(to_toml(to_config(experiment)))
    table = read_config_file(path)
    assert table["training"]["local"]["batch_size"] == "none"


@pytest.mark.parametrize("named", [True, False])
def test_a_pinned_graph_or_a_file_serves_as_network(tmp_path, named):
    use = "florentine-15"
    if not named:
        use = str(tmp_path / "mine.txt")
        (tmp_path / "mine.txt").write_text("a b\nb c\nc a\nc d\n")
    text = GOOD.replace('use = "ring"\nn = 4', f'use = "{use}"\nmixing = "max-degree"')
    experiment = load(tmp_path, text)
    topology, data, _ = build_parts(experiment)
    assert topology.n == data.n == (15 if named else 4)
    assert load(tmp_path, to_toml(to_config(experiment)), name="b.toml") == experiment
    with pytest.raises(ConfigError, match=r"topology.nn: unknown key"):
        load(tmp_path, text.replace("mixing =", "nn = 3\nmixing ="))


def test_a_name_that_is_no_network_gets_a_hint(tmp_path):
    with pytest.raises(ConfigError, match="'karate' is not registered"):
        load(tmp_path, GOOD.replace('use = "ring"', 'use = "karate"'))


@pytest.mark.parametrize(
    ("forget", "protocol", "faults", "message"),
    [
        ({"kind": "samples", "indices": [0]}, "fine-tune", True, "got fine-tune"),
        ({"kind": "peer"}, "dp-gossip", False, "dp-gossip serves"),
    ],
)
def test_what_no_training_can_mend_is_refused_before_it(
    tmp_path, forget, protocol, faults, message
):
    models = [{"use": "markov-churn", "p_leave": 0.1, "p_return": 0.5}]
    experiment = read_experiment(
        {
            "training": {"faults": {"models": models if faults else []}},
            "forget": [{"peer": 1, **forget}],
            "unlearning": [{"use": protocol}],
        }
    )
    with pytest.raises(UnsupportedRequestError, match=message):
        run_experiment(experiment, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_no_token_can_walk_is_refused_before_training(tmp_path):
    experiment = read_experiment(
        {
            "topology": {"use": "exponential", "n": 8},
            "forget": [{"kind": "samples", "peer": 1, "indices": [0]}],
            "unlearning": [{"use": "rr-du"}],
        }
    )
    with pytest.raises(TopologyError, match=r"undirected.*leave rr-du out"):
        run_experiment(experiment, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_is_no_experiment_and_the_command_for_it_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"with: dfl-unlearn sweep exp\.toml, or"):
        load(tmp_path, GOOD + "\n[sweep]\nseeds = [0, 1]\n")


@pytest.mark.parametrize(
    ("override", "remedy"),
    [
        ("unlearning.epsilon=2", r"have numbers, as in unlearning\.0\.epsilon$"),
        ("training.rounds=", "give a value after every ="),
        ("topology={use=ring,n=4}", "put text in brackets into quotes"),
        ("name=some text", "put text with blanks into quotes"),
    ],
)
def test_a_wrong_override_names_its_own_remedy(tmp_path, override, remedy):
    with pytest.raises(ConfigError, match=remedy):
        load(tmp_path, GOOD, override)


@pytest.mark.parametrize(
    ("unlearning", "peer", "refused"),
    [
        ({"use": "rr-du"}, 1, True),  # peer 0 has no other neighbour
        ({"use": "rr-du"}, 0, False),
        ({"use": "rr-du", "natural_visit": "relay"}, 1, False),
    ],
)
def test_a_token_that_would_strand_is_refused_before_training(
    tmp_path, unlearning, peer, refused
):
    experiment = read_experiment(
        {
            "topology": {"use": "path", "n": 4},
            "training": {"rounds": 1},
            "forget": [{"kind": "samples", "peer": peer, "indices": [0]}],
            "unlearning": [unlearning],
        }
    )
    expected = (
        pytest.raises(TopologyError, match="avoid: every other peer must have")
        if refused
        else nullcontext()
    )
    with expected:
        check_requests(experiment, *build_parts(experiment))
