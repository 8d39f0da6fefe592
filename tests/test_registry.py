"""Names for extension points: found without a list, and never silently mixed up."""

import importlib
from dataclasses import dataclass

import pytest

from dfl_unlearn.errors import InvalidArgumentError, InvalidTypeError, UnknownNameError
from dfl_unlearn.registry import (
    JoinedRegistry,
    Registry,
    field_names,
    required_names,
)


@pytest.fixture
def tools():
    registry = Registry("tools", packages=())

    @registry.register("hammer")
    @dataclass(frozen=True, kw_only=True)
    class Hammer:
        """Drive nails.

        And nothing else.
        """

        weight: float
        handle: str = "ash"

    @registry.register("handsaw")
    def handsaw(*, teeth: int = 40):
        """Cut wood."""
        return teeth

    @registry.register("anything")
    def anything(**fields):
        return fields

    return registry


def test_names_are_sorted_and_countable(tools):
    assert tools.names() == tuple(tools) == ("anything", "hammer", "handsaw")
    assert "hammer" in tools
    assert "hamster" not in tools


def test_help_is_the_first_line_of_the_docstring(tools):
    assert tools.help("hammer") == "Drive nails."
    assert tools.help("anything") == ""


def test_build_passes_the_fields_on(tools):
    built = tools.build("hammer", weight=0.5)
    assert (built.weight, built.handle) == (0.5, "ash")
    assert tools.build("handsaw", teeth=12) == 12
    assert tools.build("anything", colour="red") == {"colour": "red"}


def test_an_entry_and_its_instances_know_their_name(tools):
    assert tools.name_of(tools.get("hammer")) == "hammer"
    assert tools.name_of(tools.build("hammer", weight=1)) == "hammer"
    with pytest.raises(
        UnknownNameError, match=r"tools: int is not registered; add @too"
    ):
        tools.name_of(3)


def test_an_unknown_name_gets_the_nearest_ones(tools):
    with pytest.raises(UnknownNameError) as caught:
        tools.get("hamer")
    assert str(caught.value) == (
        "tools: 'hamer' is not registered; did you mean 'hammer'? "
        "known: anything, hammer, handsaw"
    )
    with pytest.raises(
        UnknownNameError, match="'x' is not registered; known: anything"
    ):
        tools.get("x")


def test_a_name_that_is_no_string_is_refused(tools):
    with pytest.raises(
        InvalidTypeError, match="must be a string, got 7; choose one of"
    ):
        tools.get(7)


def test_an_unknown_field_gets_the_nearest_one(tools):
    with pytest.raises(InvalidArgumentError) as caught:
        tools.build("hammer", wieght=1)
    assert str(caught.value) == (
        "hammer: unknown field 'wieght'; did you mean 'weight'? "
        "its fields are weight, handle"
    )


def test_a_missing_field_is_named(tools):
    with pytest.raises(
        InvalidArgumentError, match="hammer: weight must be given, got no"
    ):
        tools.build("hammer")


def test_a_name_twice_names_both_modules(tools):
    def other():
        """Hit harder."""

    other.__module__ = "my_tools"
    with pytest.raises(InvalidArgumentError) as caught:
        tools.register("hammer")(other)
    assert str(caught.value) == (
        "tools: the name 'hammer' must be unique, got it from "
        f"{__name__} and my_tools; rename one"
    )
    assert tools.help("hammer") == "Drive nails."


def test_the_same_definition_again_is_no_conflict(tools):
    saw = tools.get("handsaw")
    assert tools.register("handsaw")(saw) is saw


def test_fields_are_those_of_the_signature(tools):
    assert field_names(tools.get("hammer")) == ("weight", "handle")
    assert required_names(tools.get("hammer")) == ("weight",)
    assert field_names(tools.get("anything")) is None
    assert required_names(tools.get("anything")) == ()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    return tmp_path


def test_a_new_file_in_the_package_is_enough(folder):
    package = folder / "toolbox_of_a_test"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from dfl_unlearn.registry import Registry\n"
        "tools = Registry('tools', packages=('toolbox_of_a_test',))\n"
    )
    (package / "drill.py").write_text(
        "from toolbox_of_a_test import tools\n\n"
        "@tools.register('drill')\ndef drill():\n    '''Make holes.'''\n"
    )
    registry = importlib.import_module("toolbox_of_a_test").tools
    assert registry.names() == ("drill",)
    assert registry.help("drill") == "Make holes."


def test_an_installed_package_joins_by_its_entry_point(folder):
    (folder / "plane_of_a_test.py").write_text(
        "def plane():\n    '''Make wood smooth.'''\n    return 'smooth'\n"
    )
    info = folder / "plane_of_a_test-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: plane-of-a-test\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[dfl_unlearn.test_tools]\nplane = plane_of_a_test:plane\n"
    )
    registry = Registry("test_tools", packages=())
    assert registry.names() == ("plane",)
    assert registry.build("plane") == "smooth"
    assert Registry("other_tools", packages=()).names() == ()


def test_joined_registries_read_as_one_and_see_what_comes_later(tools):
    others = Registry("others", packages=())
    joined = JoinedRegistry("tools and others", tools, others)
    assert joined.names() == tools.names()

    @others.register("ladder")
    def ladder(*, steps: int = 3):
        """Climb."""
        return steps

    assert joined.names() == ("anything", "hammer", "handsaw", "ladder")
    assert joined.build("ladder", steps=5) == 5
    assert joined.name_of(ladder) == "ladder"
    assert joined.help("hammer") == "Drive nails."
    with pytest.raises(UnknownNameError, match=r"tools and others: 'lader'.*'ladder'"):
        joined.get("lader")
    decorators = r"add @tools\.register\('a-name'\) or @others\.register\('a-name'\)"
    with pytest.raises(UnknownNameError, match=decorators):
        joined.name_of(3)


def test_a_name_in_two_joined_registries_is_refused(tools):
    others = Registry("others", packages=())

    @others.register("hammer")
    def hammer():
        """Drive other nails."""

    with pytest.raises(InvalidArgumentError, match="'hammer' must be unique"):
        JoinedRegistry("both", tools, others).names()
