"""Plain tables turned into frozen dataclasses, without surprises.

Every scalar is checked by pydantic's ``TypeAdapter`` in strict mode, so nothing is
converted silently; unknown keys are refused; all errors of a file are reported
together, each with its key path.

A registered thing stands under ``use``, the other keys of its table are its fields.
TOML has no null, so the word ``"none"`` stands for None where a field allows it.
"""

import dataclasses
import difflib
import inspect
import json
import math
import types
import typing
from collections.abc import Container, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from dfl_unlearn import _validate
from dfl_unlearn.errors import ConfigError, DflUnlearnError
from dfl_unlearn.registry import Registry

T = TypeVar("T")

MAX_ERRORS = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """One field that a file may give.

    Attributes:
        annotation: Its type.
        default: Its default, or ``inspect.Parameter.empty`` if it must be given.
    """

    annotation: Any
    default: Any

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.default is inspect.Parameter.empty


def settings_of(entry: Any, *, positional: bool = True) -> dict[str, Setting]:
    """Return the fields of a dataclass or the keyword arguments of a function.

    Args:
        entry: A dataclass or a function, as a registry holds them.
        positional: Whether a function's arguments before ``*`` count; where they are
            supplied by the package they do not.

    Returns:
        Setting by name, in the order of definition.
    """
    if dataclasses.is_dataclass(entry):
        hints = _hints(typing.cast(Any, entry))
        empty = inspect.Parameter.empty
        found = {}
        for f in dataclasses.fields(entry):
            if f.init:
                default = empty if f.default is dataclasses.MISSING else f.default
                if f.default_factory is not dataclasses.MISSING:
                    default = f.default_factory()
                found[f.name] = Setting(annotation=hints[f.name], default=default)
        return found
    kinds: list[Any] = [inspect.Parameter.KEYWORD_ONLY]
    if positional:
        kinds.append(inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {
        name: Setting(
            annotation=Any if p.annotation is p.empty else p.annotation,
            default=p.default,
        )
        for name, p in _signature(entry).parameters.items()
        if p.kind in kinds
    }


@lru_cache(maxsize=512)
def _hints(entry: Any) -> dict[str, Any]:
    return typing.get_type_hints(entry)


@lru_cache(maxsize=512)
def _signature(entry: Any) -> inspect.Signature:
    return inspect.signature(entry, eval_str=True)


def read_strict(
    cls: type[T],
    mapping: Mapping[str, Any],
    where: str,
    *,
    registries: Mapping[Any, Registry[Any]] | None = None,
    forms: Mapping[Any, Any] | None = None,
    path: str = "",
) -> T:
    """Build a frozen dataclass from plain tables, refusing everything doubtful.

    Args:
        cls: The dataclass, or a type that ``registries`` knows.
        mapping: Tables, lists and scalars, e.g. from ``read_config_file``.
        where: The file's name, put before every error; may be empty.
        registries: Registry by annotated type. Where its entry is a class, the table
            gives the entry's fields. Where it is a function, the annotated type is a
            dataclass with fields ``use`` and ``fields`` (and further ones of its own);
            a class attribute ``positional = True`` lets the file set the function's
            arguments before ``*``, too.
        forms: By annotated type, the dataclass that a table of it is read as; its
            method ``build()`` gives the value.
        path: Key path of ``mapping`` inside the file.

    Returns:
        The instance, all defaults filled in.

    Raises:
        ConfigError: With all errors found, at most 20, one on each line.
    """
    reader = _Reader(registries or {}, forms or {})
    built = reader.value(cls, mapping, path)
    if reader.errors:
        prefix = f"{_validate.clean(where)}: " if where else ""
        lines = [f"{prefix}{error}" for error in reader.errors[:MAX_ERRORS]]
        more = len(reader.errors) - MAX_ERRORS
        if more > 0:
            lines.append(f"{prefix}{more} more errors are not shown")
        raise ConfigError("\n".join(lines))
    return typing.cast(T, built)


class _Reader:
    """Walks annotations and tables side by side and collects what does not fit."""

    def __init__(
        self, registries: Mapping[Any, Registry[Any]], forms: Mapping[Any, Any]
    ) -> None:
        self.registries = registries
        self.forms = forms
        self.errors: list[str] = []

    def value(self, annotation: Any, value: Any, path: str) -> Any:
        members = _members(annotation)
        if type(None) in members and value in (None, "none"):
            return None
        if isinstance(value, dict):
            for member in members:
                if _takes_table(member, self.registries):
                    return self._table(member, value, path)
        elif isinstance(value, list):
            for member in members:
                if typing.get_origin(member) in _SEQUENCES:
                    return self._sequence(member, value, path)
        elif Path in members and isinstance(value, str):
            return Path(value)
        else:
            # Lists are read element by element; pydantic cannot build all of them.
            single = [m for m in members if _is_single(m, self.registries)]
            if single:
                kind: Any = Union[tuple(single)]  # noqa: UP007
                return self._scalar(annotation, kind, value, path)
        return self._fail(path, f"expected {_describe(annotation)}, got {_kind(value)}")

    def _fail(self, path: str, message: str) -> None:
        self.errors.append(f"{path}: {message}" if path else message)

    def _scalar(self, annotation: Any, single: Any, value: Any, path: str) -> Any:
        from pydantic import ValidationError

        if isinstance(value, float) and not math.isfinite(value):
            return self._fail(path, f"must be finite, got {value}")
        try:
            read = _adapter(single).validate_python(value)
        except ValidationError:
            verb = "must be" if _is_choice(annotation) else "expected"
            return self._fail(
                path, f"{verb} {_describe(annotation)}, got {_kind(value)}"
            )
        if isinstance(read, float) and not math.isfinite(read):
            return self._fail(path, f"must be finite, got {_kind(value)}")
        return read

    def _sequence(self, annotation: Any, values: list[Any], path: str) -> Any:
        origin, args = typing.get_origin(annotation), typing.get_args(annotation)
        fixed = origin is tuple and Ellipsis not in args
        if fixed and len(values) != len(args):
            return self._fail(
                path, f"expected {len(args)} values, got a list of {len(values)}"
            )
        kinds = args if fixed else [args[0] if args else Any] * len(values)
        read = [
            self.value(kind, value, f"{path}.{i}")
            for i, (kind, value) in enumerate(zip(kinds, values, strict=True))
        ]
        container = {frozenset: frozenset, list: list, set: set}.get(origin, tuple)
        try:
            return container(read)
        except TypeError:  # unhashable elements of a set: reported already
            return None

    def _table(self, annotation: Any, table: dict[str, Any], path: str) -> Any:
        if typing.get_origin(annotation) in _MAPPINGS:
            kind = (*typing.get_args(annotation), Any, Any)[1]
            return {k: self.value(kind, v, _join(path, k)) for k, v in table.items()}
        if annotation in self.registries:
            return self._entry(annotation, self.registries[annotation], table, path)
        form = self.forms.get(annotation, annotation)
        built = self._build(form, settings_of(form), table, path)
        if annotation in self.forms and built is not None:
            return self._make(built.build, {}, path, names=settings_of(form))
        return built

    def _entry(
        self, annotation: Any, registry: Registry[Any], table: dict[str, Any], path: str
    ) -> Any:
        name = table.get("use", _default_use(annotation))
        at = _join(path, "use")
        if not isinstance(name, str):
            known = ", ".join(registry.names())
            got = f"got {_kind(name)}" if "use" in table else "is missing"
            return self._fail(at, f"must be the name of one of {known}; {got}")
        if name not in registry:
            return self._fail(
                at,
                f"{_validate.show(name)} is not registered. "
                + (registry.elsewhere(name) or _hint(name, registry.names())),
            )
        entry = registry.get(name)
        rest = {key: value for key, value in table.items() if key != "use"}
        if inspect.isclass(entry):
            return self._build(entry, settings_of(entry), rest, path)
        own = settings_of(annotation) if dataclasses.is_dataclass(annotation) else {}
        own = {key: s for key, s in own.items() if key not in ("use", "fields")}
        positional = getattr(annotation, "positional", False)
        theirs = settings_of(entry, positional=positional)
        theirs = {key: s for key, s in theirs.items() if key not in own}
        before = len(self.errors)
        read = self._fields({**theirs, **own}, rest, path)
        if len(self.errors) > before:
            return None
        fields = {key: value for key, value in read.items() if key in theirs}
        mine = {key: value for key, value in read.items() if key in own}
        return self._make(annotation, {"use": name, "fields": fields, **mine}, path)

    def _build(
        self, cls: Any, settings: dict[str, Setting], table: dict[str, Any], path: str
    ) -> Any:
        before = len(self.errors)
        read = self._fields(settings, table, path)
        return self._make(cls, read, path) if len(self.errors) == before else None

    def _fields(
        self, settings: dict[str, Setting], table: dict[str, Any], path: str
    ) -> dict[str, Any]:
        known = tuple(
            key
            for key, setting in settings.items()
            if _readable(setting.annotation, self.registries)
        )
        for key in table:
            if key not in known:
                self._fail(_join(path, key), "unknown key. " + _hint(key, known))
        read = {}
        for key, setting in settings.items():
            if key in table and key in known:
                read[key] = self.value(setting.annotation, table[key], _join(path, key))
            elif setting.required:
                needed = _describe(setting.annotation)
                self._fail(_join(path, key), f"is missing; give {_article(needed)}")
            else:
                read[key] = setting.default
        return read

    def _make(
        self, cls: Any, fields: dict[str, Any], path: str, names: Container[str] = ()
    ) -> Any:
        huge = list(_huge(fields))
        try:
            built = cls(**fields)
        except DflUnlearnError as error:
            text = str(error)
            at, colon, message = text.partition(": ")
            if colon and at.split(".")[0] in (names or fields):
                return self._fail(_join(path, at), message)
            return self._fail(path, text)
        except OverflowError:
            if not huge:
                raise
            built = None
        for key, value in huge:  # no range of the field's own refused it
            got = _validate.show(value)
            self._fail(_join(path, key), f"must be below 2**64 in size, got {got}")
        return None if huge else built


def _huge(fields: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield the fields, or entries of them, that no library counts with."""
    for key, value in fields.items():
        if isinstance(value, Mapping):
            yield from _huge(value)
        elif isinstance(value, int) and abs(value) >= 2**64:
            yield key, value
        elif isinstance(value, tuple | list | set | frozenset):
            yield from _huge({f"{key}.{i}": each for i, each in enumerate(value)})


_SEQUENCES = (tuple, list, frozenset, set, Sequence)
_MAPPINGS = (dict, Mapping)


@lru_cache(maxsize=512)
def _adapter(annotation: Any) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    config = ConfigDict(strict=True, arbitrary_types_allowed=True)
    return TypeAdapter(annotation, config=config)


def _members(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def _takes_table(annotation: Any, registries: Mapping[Any, Registry[Any]]) -> bool:
    return (
        annotation in registries
        or dataclasses.is_dataclass(annotation)
        or typing.get_origin(annotation) in _MAPPINGS
    )


def _is_single(annotation: Any, registries: Mapping[Any, Registry[Any]]) -> bool:
    """Tell whether a file gives such a value as one word or number."""
    kind = typing.get_origin(annotation) or annotation
    return not (
        annotation is type(None)
        or getattr(kind, "_is_protocol", False)  # an object, whatever its registry
        or typing.get_origin(annotation) in _SEQUENCES
        or _takes_table(annotation, registries)
    )


def _readable(annotation: Any, registries: Mapping[Any, Registry[Any]]) -> bool:
    """Tell whether a file can give a value of this type; an object it cannot."""
    return any(
        member in _WORDS
        or typing.get_origin(member) in (Literal, *_SEQUENCES)
        or _takes_table(member, registries)
        for member in _members(annotation)
        if member is not type(None)
    )


def _default_use(annotation: Any) -> Any:
    if not dataclasses.is_dataclass(annotation):
        return None
    found = settings_of(annotation).get("use")
    return None if found is None or found.required else found.default


def _is_choice(annotation: Any) -> bool:
    return all(
        member is type(None) or typing.get_origin(member) is Literal
        for member in _members(annotation)
    )


_WORDS = {
    int: "integer",
    float: "number",
    bool: "true or false",
    str: "string",
    Path: "string",
    type(None): '"none"',
    Any: "value",
}


def _describe(annotation: Any) -> str:
    """Say in words what an annotation allows."""
    words = []
    for member in _members(annotation):
        origin, args = typing.get_origin(member), typing.get_args(member)
        if origin is Literal:
            text = [json.dumps(a) if isinstance(a, str) else str(a) for a in args]
            words.append(text[0] if len(text) == 1 else "one of " + ", ".join(text))
        elif origin in _SEQUENCES:
            inner = f" of {_describe(args[0])}" if args else ""
            words.append(f"list{inner}")
        elif member in _WORDS:
            words.append(_WORDS[member])
        else:
            words.append("table")
    return " or ".join(dict.fromkeys(words))


def _kind(value: Any) -> str:
    """Name a value's kind and show it, in the words of a configuration file."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str):
        text = json.dumps(_validate.clean(value), ensure_ascii=False)
        return "string " + (text if len(text) <= 200 else text[:197] + "...")
    if isinstance(value, int):
        return f"integer {_validate.show(value)}"
    if isinstance(value, float):
        return f"number {value}"
    return f"date or time {value}"


def _hint(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"Did you mean {near[0]!r}?"
    return f"Known: {', '.join(known) or 'none'}"


def _article(words: str) -> str:
    if words.startswith(('"', "one of")):
        return words
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _join(path: str, key: str) -> str:
    key = _validate.clean(key)[:200]
    return f"{path}.{key}" if path else key
