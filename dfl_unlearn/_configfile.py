"""Configuration files as plain tables, after a safety scan; and TOML written.

Size, encoding, depth, duplicate keys and huge integers are checked before or while a
file is parsed, since the parsers of the standard library fail on them silently or with
errors of their own. YAML is refused: it reads ``no`` as False and ``1e-5`` as text.
"""

import json
import re
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dfl_unlearn import _validate
from dfl_unlearn._textfile import read_utf8
from dfl_unlearn.errors import (
    ConfigError,
    UnsupportedFormatError,
)

MAX_BYTES = 2**20
MAX_DEPTH = 32

_INT_DIGITS = 4300  # Python's own limit for reading a decimal integer
_MARK = 10**3000  # stands for the first integer beyond it, _MARK + 1 for the second
# Strings and comments are consumed whole, closed or not, so the scan is linear.
_TOML_TOKEN = re.compile(
    r'"""(?:\\.?|[^\\])*?(?:"""|\Z)|'
    r"'''.*?(?:'''|\Z)|"
    r'"(?:\\.?|[^"\\\n])*"?|'
    r"'[^'\n]*'?|#[^\n]*|[\[\]{}]",
    re.DOTALL,
)
_AFTER_KEY = re.compile(r"[ \t\r\n]*:")
_JSON_TOKEN = re.compile(r'"(?:\\.?|[^"\\])*"?|[\[\]{}]', re.DOTALL)
_STAND_IN = re.compile(r"(?<![0-9])10{2990}([0-9]{10})(?![0-9])")
_LONG_NUMBER = re.compile(rf"[0-9][0-9_]{{{_INT_DIGITS - 1},}}")


def read_config_file(path: str | Path) -> dict[str, Any]:
    """Read a TOML or JSON file into plain tables.

    Args:
        path: A file that ends in ``.toml`` or ``.json``; at most 1 MiB of UTF-8.

    Returns:
        The file's tables. Numbers may still be infinite or NaN: ``_strict.read_strict``
        refuses them with their key path.

    Raises:
        UnsupportedFormatError: If the file is of another type.
        ConfigError: If the text is not valid, nested deeper than 32 levels, or has a
            duplicate key.
    """
    where = _validate.clean(str(path))
    kind = Path(path).suffix.lower()
    if kind not in (".toml", ".json"):
        why = "YAML changes values silently; " if kind in (".yaml", ".yml") else ""
        raise UnsupportedFormatError(
            f"{where}: must end in .toml or .json, got {_validate.show(kind)}; "
            f"{why}use TOML or JSON"
        )
    raw = read_utf8(
        Path(path), where, max_bytes=MAX_BYTES, remedy="for a configuration"
    )
    text = raw.decode()
    return _parse_toml(text, where) if kind == ".toml" else _parse_json(text, where)


def parse_override(text: str) -> tuple[tuple[str, ...], Any]:
    """Split ``a.b.0=value`` into its key path and its value.

    Args:
        text: Dotted keys and list indices, ``=``, and a value in TOML syntax; a bare
            word is a string.

    Returns:
        The path and the value.

    Raises:
        ConfigError: If there is no ``=`` or no key, or the value is not valid.
    """
    _check_pairs(text, _validate.show(text))
    key, equals, value = text.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    if not equals or not all(path):
        raise ConfigError(
            f"{_validate.show(text)}: must look like key=value, e.g. training.rounds=50"
        )
    if len(path) > MAX_DEPTH:
        raise ConfigError(_too_deep(_validate.clean(key)[:200]))
    value = value.strip()
    try:
        tables = _parse_toml(f"value = {value}", key)
        if len(tables) > 1:
            raise ConfigError(f"{key}: more than one value")
        return path, tables["value"]
    except ConfigError:
        if re.fullmatch(r"[^\W\d][\w./-]*|[./][\w./-]*", value):
            return path, value
        remedy = "put text with blanks into quotes, as in 'key=\"some text\"'"
        if not value:
            remedy = "give a value after every = and between commas"
        elif value[0] in "[{":
            remedy = "put text in brackets into quotes, as in 'key={use=\"ring\"}'"
        raise ConfigError(
            f"{_validate.clean(key)[:200]}: must be a value in TOML syntax, got "
            f"{_validate.show(value)}; {remedy}"
        ) from None


def _parse_toml(text: str, where: str) -> dict[str, Any]:
    _check_depth(_TOML_TOKEN, text, where)
    digits: list[str] = []

    def shorten(found: re.Match[str]) -> str:
        digits.append(found[0])
        return str(_MARK + len(digits) - 1)

    try:
        try:
            tables = tomllib.loads(text)
        except tomllib.TOMLDecodeError:
            raise
        except ValueError:
            # An integer beyond Python's limit. Read again with a stand-in, so that the
            # error that must follow can name its key.
            tables = tomllib.loads(_LONG_NUMBER.sub(shorten, text))
    except RecursionError as error:
        raise ConfigError(_too_deep(where)) from error
    except ValueError as error:
        raise ConfigError(f"{where}: not valid TOML: {error}") from error
    _check_nesting(tables, where)
    return typing.cast(dict[str, Any], _restore(tables, digits))


def _restore(value: Any, digits: list[str]) -> Any:
    """Put back what stand-ins stood for: digits in texts, and a number as long."""
    if not digits:
        return value
    if isinstance(value, dict):
        return {_restore(k, digits): _restore(v, digits) for k, v in value.items()}
    if isinstance(value, list):
        return [_restore(item, digits) for item in value]
    if isinstance(value, str):
        return _STAND_IN.sub(lambda found: _told(found, digits), value)
    if isinstance(value, int) and _MARK <= abs(value) < _MARK + len(digits):
        size = len(digits[abs(value) - _MARK].replace("_", ""))
        return (-1 if value < 0 else 1) * 10 ** (size - 1)
    return value


def _told(found: re.Match[str], digits: list[str]) -> str:
    at = int(found[1])
    return digits[at] if at < len(digits) else found[0]


def _parse_json(text: str, where: str) -> dict[str, Any]:
    _check_depth(_JSON_TOKEN, text, where)

    def integer(digits: str) -> int:
        return int(digits) if len(digits) <= _INT_DIGITS else 10 ** (len(digits) - 1)

    try:
        tables = json.loads(text, parse_int=integer)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where}: not valid JSON: {error}") from error
    if not isinstance(tables, dict):
        raise ConfigError(
            f"{where}: must hold one JSON object, got {_validate.show(tables)}"
        )
    scopes: list[set[str]] = []
    for token in _JSON_TOKEN.finditer(text):
        if token[0] in "{[":
            scopes.append(set())
        elif token[0] in "]}":
            scopes.pop()
            continue
        elif "\\u" in token[0]:
            _check_pairs(json.loads(token[0]), where)
        if token[0][0] == '"' and _AFTER_KEY.match(text, token.end()):
            key = json.loads(token[0])
            if key in scopes[-1]:
                line = text.count("\n", 0, token.start()) + 1
                raise ConfigError(
                    f"{where}: duplicate key {_validate.show(key)} (line {line})"
                )
            scopes[-1].add(key)
    return tables


def _check_pairs(text: str, where: str) -> None:
    """Refuse half of a surrogate pair, which no file can be written with."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{where}: must be Unicode text, got half of a surrogate pair "
            f"{_validate.show(text[error.start])}; write the letter itself"
        ) from error


def _check_depth(token: re.Pattern[str], text: str, where: str) -> None:
    depth = 0
    for found in token.finditer(text):
        if found[0] in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise ConfigError(_too_deep(where))
        elif found[0] in "]}":
            depth -= 1


def _check_nesting(tables: dict[str, Any], where: str) -> None:
    """Refuse depth made by dotted keys; walks level by level, without recursion."""
    level: list[Any] = [tables]
    for _ in range(MAX_DEPTH + 1):
        level = [
            item
            for value in level
            for item in (value.values() if isinstance(value, dict) else value)
            if isinstance(item, dict | list)
        ]
        if not level:
            return
    raise ConfigError(_too_deep(where))


def _too_deep(where: str) -> str:
    return f"{where}: nested deeper than {MAX_DEPTH} levels"


def to_toml(tables: Mapping[str, Any]) -> str:
    """Write plain tables as TOML text that ``read_config_file`` reads back.

    Args:
        tables: String keys; values are tables, lists, strings, numbers, booleans, or
            None, which is written as ``"none"``.

    Returns:
        The text: scalars of a table first, then its tables.
    """
    lines: list[str] = []
    _write_table(tables, (), lines)
    return "\n".join(lines).strip() + "\n"


def toml_value(value: Any) -> str:
    """Write one value as TOML in one line, tables and lists included."""
    return _literal(value)


def _write_table(
    table: Mapping[str, Any], path: tuple[str, ...], lines: list[str]
) -> None:
    nested = {}
    for key, value in table.items():
        if isinstance(value, Mapping) or (
            isinstance(value, list | tuple)
            and value
            and all(isinstance(item, Mapping) for item in value)
        ):
            nested[key] = value
        else:
            lines.append(f"{_key(key)} = {_literal(value)}")
    for key, value in nested.items():
        name = ".".join(map(_key, (*path, key)))
        many = not isinstance(value, Mapping)
        for item in value if many else (value,):
            lines += ["", f"[[{name}]]" if many else f"[{name}]"]
            _write_table(item, (*path, key), lines)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _literal(key)


def _literal(value: Any) -> str:
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_key(k)} = {_literal(v)}" for k, v in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_literal, value))}]"
    if value is None:
        return '"none"'
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value)
