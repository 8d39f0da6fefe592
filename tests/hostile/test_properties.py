"""Any configuration is a valid run or a named error; what is written is read again."""

import json
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dfl_unlearn._configfile import parse_override, read_config_file, to_toml
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.errors import ConfigError, DflUnlearnError
from dfl_unlearn.experiment import (
    build_parts,
    load_experiment,
    read_experiment,
    to_config,
)

HALF = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

# --- files of plain tables --------------------------------------------------------

KEYS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
SCALARS = (
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
)
TABLES = st.dictionaries(
    KEYS,
    st.recursive(
        SCALARS,
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3)
        ),
        max_leaves=8,
    ),
    max_size=4,
)


@HALF
@given(tables=TABLES)
def test_any_tables_are_read_as_they_were_written(tmp_path, tables):
    (tmp_path / "a.toml").write_text(to_toml(tables), newline="")
    (tmp_path / "a.json").write_text(json.dumps(tables))
    assert read_config_file(tmp_path / "a.toml") == tables
    assert read_config_file(tmp_path / "a.json") == tables


@HALF
@given(text=st.text(max_size=60))
def test_any_text_is_a_table_or_a_named_error(tmp_path, text):
    codes = []
    for name in ("a.toml", "a.json"):
        (tmp_path / name).write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            assert isinstance(read_config_file(tmp_path / name), dict)
        except DflUnlearnError as error:
            codes.append(error.exit_code)
    try:
        parse_override(text)
    except DflUnlearnError as error:
        codes.append(error.exit_code)
    assert set(codes) <= {2}


# --- experiments --------------------------------------------------------------------

ODD = st.sampled_from(
    [0, -1, 1, 2**31, 2**63, 1e308, 5e-324, math.inf, math.nan, True, "", "x", [], {}]
)


def mostly(good):
    """A good value, now and then an odd one."""
    return st.integers(0, 39).flatmap(lambda dice: good if dice else ODD)


def table(required=None, **optional):
    """Fields that must be there and fields that may."""
    given = {key: mostly(value) for key, value in optional.items()}
    return st.fixed_dictionaries(required or {}, optional=given)


def named(**entries):
    """One of several entries by name, each with its own fields."""
    return st.sampled_from(sorted(entries)).flatmap(
        lambda name: table(
            {"use": st.just(name.replace("_", "-")), **entries[name][0]},
            **entries[name][1],
        )
    )


def peers(least, most=9):
    return {"n": mostly(st.integers(least, most))}


MIXING = {"mixing": st.sampled_from(["lazy", "max-degree", "laplacian"])}
TOPOLOGY = named(
    ring=(peers(3), MIXING),
    path=(peers(2), MIXING),
    star=(peers(2), MIXING),
    complete=(peers(2), MIXING),
    torus=({"n": st.sampled_from([9, 12])}, {"rows": st.sampled_from([3, 4])}),
    hypercube=({"n": st.sampled_from([2, 4, 8])}, MIXING),
    single=({"n": st.just(1)}, {}),
    erdos_renyi=(peers(4), {"p": st.floats(0.4, 0.9)}),
    random_regular=(peers(5), {"degree": st.integers(2, 4)}),
    rign=(peers(3), {}),
)
PARTITION = named(
    iid=({}, {}),
    dirichlet=({"alpha": st.floats(0.05, 5)}, {"min_per_peer": st.integers(0, 2)}),
    shards=({}, {"per_peer": st.integers(1, 2)}),
)
DATA = table(
    {
        "use": st.just("gaussian-classes"),
        "per_class": mostly(st.integers(4, 12)),
        "dim": mostly(st.integers(1, 6)),
    },
    classes=st.integers(2, 4),
    spread=st.floats(0, 2),
    partition=PARTITION,
)
MODEL = named(
    logistic=({}, {"l2": st.floats(0, 1), "bias": st.booleans()}),
    mlp=({}, {"hidden": st.lists(st.integers(1, 8), max_size=2)}),
    linear=({}, {}),
)
LOCAL = table(
    steps=st.integers(1, 3),
    batch_size=st.integers(1, 8),
    learning_rate=st.floats(1e-4, 10),
    momentum=st.floats(0, 0.99),
    clip_norm=st.floats(0.01, 5),
    lr_schedule=st.sampled_from(["constant", "cosine", "inverse_sqrt"]),
)
TRAINING = table(
    {"rounds": st.integers(1, 3), "local": LOCAL},
    trainer=st.sampled_from(
        [{"form": "cta"}, {"use": "gradient-tracking"}, {"use": 3}]
    ),
    dtype=st.sampled_from(["float32", "float64"]),
    block_peers=st.integers(1, 4),
    evaluate_every=st.integers(0, 3),
    common_init=st.booleans(),
    kernel=st.sampled_from(["auto", "stacked", "vmap", "loop"]),
    seed=st.integers(0, 2**63 - 1),
)
EXPERIMENT = table(
    {
        "topology": TOPOLOGY,
        "data": DATA,
        "model": MODEL,
        "training": TRAINING,
    },
    name=st.sampled_from(["a", "run-1", "../x"]),
    seed=st.integers(0, 2**63 - 1),
)


ENDS = (
    "trained",
    "refused while reading",
    "refused while building or training with code 2",
    "refused while building or training with code 5",
    "too large for this test",
)


def small(experiment):
    """Whether a run takes milliseconds; the odd values may ask for more."""
    topology, data = experiment.topology, experiment.data
    sizes = [topology.fields.get("n", 8), data.fields["per_class"], data.fields["dim"]]
    local = experiment.training.local
    return max(sizes) < 50 and local.steps < 50 and data.fields["classes"] < 50


def check(tables, folder):
    """Carry out what can be carried out; return what became of it."""
    try:
        experiment = read_experiment(tables)
    except ConfigError:
        return "refused while reading"
    # A second reading of what was understood gives the same experiment.
    config = to_config(experiment)
    (folder / "exp.toml").write_text(to_toml(config), newline="")
    (folder / "exp.json").write_text(json.dumps(config, allow_nan=False))
    assert load_experiment(folder / "exp.toml") == experiment
    assert load_experiment(folder / "exp.json") == experiment
    if not small(experiment):
        return "too large for this test"
    try:
        topology, data, model = build_parts(experiment)
        run = simulate(topology, data, model, experiment.training)
    except DflUnlearnError as error:
        return f"refused while building or training with code {error.exit_code}"
    assert run.state.params.isfinite().all()
    assert run.state.round == experiment.training.rounds
    again = simulate(topology, data, model, experiment.training)
    assert again.digest == run.digest
    return "trained"


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@HALF
@given(tables=EXPERIMENT)
def test_any_configuration_is_a_run_or_a_named_error(tmp_path, tables):
    assert check(tables, tmp_path) in ENDS


@pytest.mark.chaos
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@settings(HALF, max_examples=5000)
@given(tables=EXPERIMENT)
def test_thousands_of_configurations_are_runs_or_named_errors(tmp_path, tables):
    assert check(tables, tmp_path) in ENDS


def test_the_generated_configurations_reach_every_end(tmp_path):
    """Otherwise the test above could pass by refusing everything."""
    seen = {}

    @settings(HALF, max_examples=60, derandomize=True, database=None)
    @given(tables=EXPERIMENT)
    def count(tables):
        end = check(tables, tmp_path)
        seen[end] = seen.get(end, 0) + 1

    with np.errstate(over="ignore"):
        count()
    assert set(seen) >= set(ENDS[:3])
    assert seen["trained"] >= 10
