"""Argument checks: what passes, and messages that name argument, value and remedy."""

import math
from fractions import Fraction

import numpy as np
import pytest

from dfl_unlearn import _validate
from dfl_unlearn.errors import (
    ConfigError,
    InvalidArgumentError,
    InvalidPrivacyParameterError,
    InvalidTypeError,
)


@pytest.mark.parametrize(
    "value", [1, 0.5, np.float32(0.5), np.int64(1), Fraction(1, 2)]
)
def test_a_number_inside_the_bounds_passes(value):
    _validate.number(rate=value, above=0, at_most=1)
    _validate.number(rate=value, at_least=0, below=2)


@pytest.mark.parametrize(
    ("bounds", "value", "needed"),
    [
        ({"above": 0}, 0, "> 0"),
        ({"at_least": 0}, -1e-300, ">= 0"),
        ({"below": 1}, 1.0, "< 1"),
        ({"at_most": 1}, 1.5, "<= 1"),
        ({"above": 0, "at_most": 1}, 2, "> 0 and <= 1"),
        ({"at_least": 0, "below": 1}, math.nan, ">= 0 and < 1"),
        ({"above": 0}, math.inf, "> 0"),
    ],
)
def test_a_number_outside_the_bounds_is_named_with_its_value(bounds, value, needed):
    with pytest.raises(InvalidArgumentError) as caught:
        _validate.number(rate=value, why="lower it", **bounds)
    assert str(caught.value) == (
        f"rate: must be a finite number {needed}, got {value!r}; lower it"
    )


@pytest.mark.parametrize("value", [True, "0.5", None, 1j, [0.5]])
def test_what_is_no_real_number_is_a_type_error(value):
    with pytest.raises(InvalidTypeError, match=r"rate: must be a finite number, got "):
        _validate.number(rate=value)


def test_the_callers_error_class_is_raised():
    with pytest.raises(InvalidPrivacyParameterError, match=r"epsilon: .* got -1$"):
        _validate.number(epsilon=-1, above=0, error=InvalidPrivacyParameterError)
    with pytest.raises(ConfigError, match=r"rounds: must be an integer >= 1, got 0$"):
        _validate.integer(rounds=0, at_least=1, error=ConfigError)


def test_all_named_values_are_checked():
    with pytest.raises(InvalidArgumentError, match=r"^second: "):
        _validate.number(first=1.0, second=-1.0, above=0)
    with pytest.raises(InvalidArgumentError, match=r"^second: "):
        _validate.integer(first=1, second=-1, at_least=0)
    with pytest.raises(InvalidArgumentError, match=r"^second: "):
        _validate.one_of((1, 2), first=1, second=3)
    with pytest.raises(InvalidTypeError, match=r"^second: "):
        _validate.of_type(int, first=1, second="1")
    with pytest.raises(InvalidArgumentError, match=r"^second: "):
        _validate.identifier(first="a", second="")


def test_integers_pass_and_what_looks_like_one_does_not():
    _validate.integer(rounds=3, peers=np.int32(3), at_least=0, at_most=3)
    for value in (True, 3.0, "3", None):
        with pytest.raises(InvalidTypeError, match=r"rounds: must be an integer, got "):
            _validate.integer(rounds=value)


def test_an_integer_outside_the_bounds_is_named_with_its_value():
    with pytest.raises(InvalidArgumentError) as caught:
        _validate.integer(rounds=11, at_least=1, at_most=10, why="train in parts")
    assert str(caught.value) == (
        "rounds: must be an integer >= 1 and <= 10, got 11; train in parts"
    )


def test_one_of_compares_types_too():
    _validate.one_of(("tree", "flood", 1), how="tree")
    for value in ("fleet", 1.0, True, None, ["tree"]):
        with pytest.raises(
            InvalidArgumentError, match=r"how: must be one of tree, flood"
        ):
            _validate.one_of(("tree", "flood", 1), how=value)


def test_of_type_names_the_types_and_the_remedy():
    _validate.of_type((int, str), peer=3, name="a")
    with pytest.raises(InvalidTypeError) as caught:
        _validate.of_type((int, str), peer=2.5, why="give its index")
    assert (
        str(caught.value) == "peer: must be a int or str, got float 2.5; give its index"
    )


@pytest.mark.parametrize("name", ["a", "run-2", "R0.1_x", "0" * 64])
def test_run_names_that_are_safe_on_disk_pass(name):
    _validate.identifier(name=name)


@pytest.mark.parametrize("name", ["", ".", "..", "-a", "a/b", "a b", "ä", "0" * 65, 3])
def test_run_names_that_are_not_are_refused(name):
    with pytest.raises(InvalidArgumentError, match=r"^name: must match \[A-Za-z0-9\]"):
        _validate.identifier(name=name)


def test_a_name_may_not_end_with_a_line_break():
    with pytest.raises(InvalidArgumentError):
        _validate.identifier(name="run\n")


def test_shown_values_are_short_and_harmless():
    assert _validate.show(0.5) == "0.5"
    assert len(_validate.show("x" * 1000)) == 200
    assert _validate.show("x" * 1000).endswith("...")
    assert "\x1b" not in _validate.show("\x1b[31mred")
    assert "\u202e" not in _validate.show("abc\u202edef")
    assert _validate.show(10**5000) == "a number with 5001 digits"


def test_clean_text_has_no_control_or_direction_characters():
    assert _validate.clean("a\x00b\x1b[2J\u200fc\u2028d\ne") == "ab[2Jcde"


def test_text_for_a_terminal_has_no_control_or_invisible_letters():
    hidden = "\x00\x1b[31m\x9b\u200b\u202e\u2066\ufeff\xad\u061c\U000e0041\udc80"
    assert _validate.clean(f"a{hidden}b") == "a[31mb"
    assert _validate.clean("Ärger ∞ 东京 🙂 x_1 $5") == "Ärger ∞ 东京 🙂 x_1 $5"
    _validate.clean("x\udcff").encode()  # undecodable bytes of a command line


@pytest.mark.parametrize("name", ["con", "NUL", "Com1", "lpt9.log", "aux.x.y"])
def test_names_of_devices_are_refused(name):
    with pytest.raises(ConfigError, match=r"run name: must match .*device.*rename it"):
        _validate.identifier(error=ConfigError, **{"run name": name})


@pytest.mark.parametrize("name", ["console", "com10", "con-1", "null", "a.con"])
def test_names_that_only_look_like_devices_pass(name):
    _validate.identifier(name=name)
