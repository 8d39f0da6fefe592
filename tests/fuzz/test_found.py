"""What the fuzzers found that no exception shows: files that were read as others."""

import json

import pytest

from dfl_unlearn._configfile import parse_override, read_config_file
from dfl_unlearn._jsontext import from_json
from dfl_unlearn._strict import read_strict
from dfl_unlearn.accounting.certificate import Certificate
from dfl_unlearn.engine.run import load_run
from dfl_unlearn.errors import (
    ConfigError,
    InputFileError,
    StoreCorruptError,
    TopologyError,
)
from dfl_unlearn.experiment import load_experiment, read_experiment
from dfl_unlearn.store.folder import RunFolder
from dfl_unlearn.store.understood import understood
from dfl_unlearn.topology.files import load_topology
from dfl_unlearn.unlearning.store import load_outcomes

GRAPHML = (
    '<graphml xmlns="http://graphml.graphdrawing.org/xmlns" xmlns:y="urn:y">{0}'
    '<node id="0"/><node id="1"/><node id="2"/><edge source="0" target="1"/>'
    '{1} source="1" target="2"/></graph></graphml>'
)
UNDIRECTED = '<graph edgedefault="undirected">'


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.edges", "0 1 1_0\n", "weight must be positive and finite, got '1_0'"),
        ("a.edges", "0 1 \u0661\n", "weight must be positive and finite"),
        (
            "a.graphml",
            GRAPHML.format('<graph edgedefault="Directed">', "<edge"),
            "edgedefault must be directed or undirected, got 'Directed'",
        ),
        (
            "a.graphml",
            GRAPHML.format(UNDIRECTED, "<y:edge"),
            "3 of 3 nodes and 1 of 2 edges",
        ),
        (
            "a.gml",
            'graph [ node [ id 0 label "a" label "b" ] node [ id 1 label "c" ] '
            "edge [ source 0 target 1 ] ]",
            r"a node must have one label, got \['a', 'b'\]",
        ),
        (
            "a.gml",
            "graph [ node [ id 0 ] node [ id 1 ] edge [ source 0 target 1e3 ] ]",
            "got '1e3'; write numbers as 12 or 0.5e3",
        ),
    ],
)
def test_a_graph_file_is_not_read_as_another_graph(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises((TopologyError, InputFileError), match=message):
        load_topology(tmp_path / name)


def test_a_sound_graphml_of_the_same_form_is_read(tmp_path):
    (tmp_path / "a.graphml").write_text(GRAPHML.format(UNDIRECTED, "<edge"))
    assert load_topology(tmp_path / "a.graphml").n == 3


@pytest.mark.parametrize("text", ["a=1\nb=2", "a=1\n[b]", 'a="x"\n\nc=3'])
def test_an_override_has_one_value(text):
    with pytest.raises(ConfigError, match="must be a value in TOML syntax"):
        parse_override(text)
    assert parse_override("a.b=[1,\n2]") == (("a", "b"), [1, 2])


def test_a_key_of_an_override_is_neither_deep_nor_repeated_at_length():
    with pytest.raises(ConfigError, match="nested deeper than 32 levels") as caught:
        parse_override(".".join("a" * 5000) + "=1")
    assert len(str(caught.value)) < 400
    with pytest.raises(ConfigError) as caught:
        parse_override("a" * 5000 + "={")
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("key", ["\u00b2", "\u0661", "9" * 5000])
def test_an_index_of_an_override_is_made_of_plain_digits(tmp_path, key):
    file = tmp_path / "a.toml"
    file.write_text('[[unlearning]]\nuse = "retrain"\n')
    with pytest.raises(ConfigError, match="must be an index below 1"):
        load_experiment(file, [f"unlearning.{key}.use=retrain"])


def test_digits_in_a_text_stay_beside_a_number_that_is_too_long(tmp_path):
    file = tmp_path / "a.toml"
    digits = "7" * 4400
    file.write_text(f'text = "{digits}"\nn = {"9" * 4301}\n"{digits}" = 1\n')
    found = read_config_file(file)
    assert found["text"] == digits
    assert digits in found
    assert found["n"] == 10**4300
    file.write_text(f"n = {'9' * 4301}\n= 1")
    with pytest.raises(ConfigError, match="not valid TOML"):
        read_config_file(file)


def test_a_value_in_place_of_a_list_of_protocols_is_named():
    with pytest.raises(ConfigError, match="unlearning: expected list of table, got"):
        read_experiment({"unlearning": 75807})


@pytest.mark.parametrize(
    ("family", "chances"),
    [
        ("stochastic-block", {"p_in": 0.6, "p_out": 1e-32}),
        ("stochastic-block", {"p_in": 1e-32, "p_out": 1e-300}),
        ("erdos-renyi", {"p": 1e-32}),
    ],
)
def test_a_chance_next_to_nothing_gives_no_connected_network(family, chances):
    with pytest.raises(TopologyError, match="must be large enough"):
        load_topology(family, n=16, **chances)


def test_half_of_a_surrogate_pair_is_refused_where_it_enters(tmp_path):
    file = tmp_path / "a.json"
    for text in ('{"a": "\\ud800"}', '{"\\udfff": 1}'):
        file.write_text(text)
        with pytest.raises(ConfigError, match=r"a\.json: .* half of a surrogate pair"):
            read_config_file(file)
    with pytest.raises(ConfigError, match="half of a surrogate pair"):
        parse_override("data.root='\udcff'")
    file.write_text('{"a": "\\ud83d\\ude00"}')
    assert read_config_file(file) == {"a": "\U0001f600"}


def test_an_integer_that_nothing_counts_is_bounded():
    with pytest.raises(ConfigError, match=r"topology\.n: must be below 2\*\*64"):
        read_experiment({"topology": {"use": "ring", "n": 10**5000}})
    assert read_strict(dict[str, int], {"n": 2**64 - 1}, "") == {"n": 2**64 - 1}


@pytest.mark.parametrize(
    "text",
    ["1e999", "-1e999", "NaN", '{"a": 1, "a": 1}', '"\\ud800"', "9" * 5000, "[" * 9999],
)
def test_json_that_python_lets_pass_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        from_json(text)
    assert from_json('{"a": [1e308, "\\ud83d\\ude00"]}') == {"a": [1e308, "\U0001f600"]}


def test_a_tensor_without_numbers_has_no_length_beyond_all_arrays(tmp_path):
    folder = RunFolder.create(tmp_path, "a")
    entry = {"dtype": "I64", "shape": [0, 2**62], "data_offsets": [0, 0]}
    head = json.dumps({"a": entry}).encode()
    (folder.root / "a.safetensors").write_bytes(len(head).to_bytes(8, "little") + head)
    with pytest.raises(StoreCorruptError, match="the shape"):
        folder.read_tensors("a.safetensors")


def test_understood_names_the_file_and_lets_own_errors_pass():
    missing = r"x\.json: .* got none for 'a'"
    with pytest.raises(StoreCorruptError, match=missing), understood("x.json"):
        {}["a"]
    large = "got OverflowError"
    with pytest.raises(StoreCorruptError, match=large), understood("x.json"):
        int(float("inf"))
    with pytest.raises(InputFileError, match="mine"), understood("x.json"):
        raise InputFileError("mine")
    with pytest.raises(MemoryError), understood("x.json"):
        raise MemoryError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from fuzz.stored_targets import tiny_run

    return tiny_run(tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("manifest.json", "round", "3"),
        ("manifest.json", "round", True),
        ("manifest.json", "round", -1),
        ("manifest.json", "forgotten", 5),
        ("manifest.json", "ledger", [1.5, "x"]),
        ("manifest.json", "info", 5),
        ("outcomes/r0.retrain/outcome.json", "order", "a"),
        ("outcomes/r0.retrain/outcome.json", "cost", {"rounds": 1, "x": 2}),
        ("outcomes/r0.retrain/outcome.json", "cost", {"rounds": "1"}),
        ("outcomes/r0.retrain/outcome.json", "round", "3"),
        ("outcomes/r0.retrain/outcome.json", "notes", [1]),
        ("outcomes/r0.retrain/outcome.json", "status", "certified"),
        ("outcomes/r0.retrain/outcome.json", "trace", {"x": ["a"]}),
        ("outcomes/r0.retrain/request.json", "items", 7),
        ("outcomes/r0.at-peer/outcome.json", "personal", 7),
        ("outcomes/r0.at-peer/outcome.json", "personal", "ab"),
        ("manifest.json", "personal", ["x"]),
    ],
)
def test_a_value_of_the_wrong_kind_in_a_run_folder_is_refused(run, file, key, value):
    folder = RunFolder(run)
    before = folder.read_text(file)
    folder.write_json(file, {**json.loads(before), key: value})
    try:
        with pytest.raises((StoreCorruptError, ValueError, TypeError)) as caught:
            load_outcomes(load_run(run))
        assert caught.type.__module__ == "dfl_unlearn.errors"
    finally:
        folder.write_text(file, before)
    assert len(load_outcomes(load_run(run))) == 5


@pytest.mark.parametrize("value", ["NaN", "1", "null", "1e999"])
def test_a_certificate_has_no_field_of_another_kind(run, value):
    text = (run / "outcomes/r0.newton-fisher/certificate.json").read_text()
    found = Certificate.from_json(text)
    assert found == Certificate.from_json(found.to_json())
    flag = '"order_at_edge": false'
    assert flag in text
    with pytest.raises(StoreCorruptError):
        Certificate.from_json(text.replace(flag, f'"order_at_edge": {value}'))
