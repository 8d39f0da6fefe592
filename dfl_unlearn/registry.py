"""Names for extension points, found without a list that must be edited.

A registry imports every module of its package on first use and then loads its
entry-point group, so a new file or an installed package is enough to add an entry.
"""

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar, overload

from dfl_unlearn.errors import InvalidArgumentError, InvalidTypeError, UnknownNameError

T = TypeVar("T")
E = TypeVar("E", bound=Callable[..., Any])


class Registry(Generic[T]):
    """Maps registered names to classes or functions of one kind.

    Attributes:
        kind: The plural word that ``dfl-unlearn list`` and the entry-point group use.
    """

    def __init__(self, kind: str, *, packages: tuple[str, ...]) -> None:
        """Create an empty registry.

        Args:
            kind: E.g. ``"topologies"``; the entry-point group is
                ``dfl_unlearn.<kind>``.
            packages: Modules or packages whose import fills the registry.
        """
        self.kind = kind
        self._packages = packages
        self._entries: dict[str, Callable[..., Any]] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[E], E]:
        """Return a decorator that files its argument under ``name``.

        Args:
            name: Lower case with hyphens; the first docstring line of the decorated
                object is its help text.

        Returns:
            The decorator; it returns its argument unchanged.
        """

        def file(entry: E) -> E:
            known = self._entries.get(name)
            if known is not None and (known.__module__, known.__qualname__) != (
                entry.__module__,
                entry.__qualname__,
            ):
                raise InvalidArgumentError(
                    f"{self.kind}: the name {name!r} must be unique, got it from "
                    f"{known.__module__} and {entry.__module__}; rename one"
                )
            self._entries[name] = entry
            return entry

        return file

    def names(self) -> tuple[str, ...]:
        """Return all registered names in alphabetical order."""
        self._load()
        return tuple(sorted(self._entries))

    def get(self, name: str) -> Callable[..., Any]:
        """Return the class or function filed under ``name``.

        Args:
            name: A registered name.

        Returns:
            The entry.

        Raises:
            UnknownNameError: If nothing is filed under it; lists the nearest names.
            InvalidTypeError: If ``name`` is not a string.
        """
        if not isinstance(name, str):
            raise InvalidTypeError(
                f"{self.kind}: a name must be a string, got {name!r}; "
                f"choose one of {', '.join(self.names())}"
            )
        self._load()
        if name not in self._entries:
            if elsewhere := self.elsewhere(name):
                raise UnknownNameError(
                    f"{self.kind}: {name[:200]!r} is not registered; {elsewhere}"
                )
            near = difflib.get_close_matches(name, self._entries, n=3)
            hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
            raise UnknownNameError(
                f"{self.kind}: {name[:200]!r} is not registered; {hint}"
                f"known: {', '.join(self.names())}"
            )
        return self._entries[name]

    def build(self, name: str, /, **fields: Any) -> T:
        """Return ``get(name)(**fields)``.

        Args:
            name: A registered name.
            **fields: The entry's keyword arguments.

        Returns:
            What the entry builds.

        Raises:
            InvalidArgumentError: If the entry does not know a field, or needs another.
        """
        entry = self.get(name)
        allowed = field_names(entry)
        for key in fields:
            if allowed is not None and key not in allowed:
                near = difflib.get_close_matches(key, allowed, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise InvalidArgumentError(
                    f"{name}: unknown field {key!r}; {hint}"
                    f"its fields are {', '.join(allowed) or 'none'}"
                )
        absent = [key for key in required_names(entry) if key not in fields]
        if absent:
            raise InvalidArgumentError(
                f"{name}: {', '.join(absent)} must be given, got nothing"
            )
        built: T = entry(**fields)
        return built

    def help(self, name: str) -> str:
        """Return the first line of the entry's docstring."""
        return (self.get(name).__doc__ or "").strip().split("\n")[0]

    def name_of(self, entry: object) -> str:
        """Return the name under which an entry, or an instance of it, is filed."""
        self._load()
        for name, known in self._entries.items():
            if known is entry or known is type(entry):
                return name
        raise UnknownNameError(
            f"{self.kind}: {type(entry).__name__} is not registered; add "
            f"{self._decorators()} above its definition"
        )

    def elsewhere(self, name: str) -> str:
        """Say where a name belongs that is not here, if that is known.

        Args:
            name: What was asked for.

        Returns:
            A remedy, or an empty text.
        """
        return ""

    def _decorators(self) -> str:
        return f"@{self.kind}.register('a-name')"

    def __contains__(self, name: object) -> bool:
        """Tell whether ``name`` is registered."""
        self._load()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self.names())

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        for package in self._packages:
            module = importlib.import_module(package)
            for found in pkgutil.iter_modules(getattr(module, "__path__", [])):
                importlib.import_module(f"{package}.{found.name}")
        for point in entry_points(group=f"dfl_unlearn.{self.kind}"):
            self.register(point.name)(point.load())


class JoinedRegistry(Registry[T]):
    """Several registries of one contract, read as one; filing goes to a part."""

    def __init__(self, kind: str, *parts: Registry[T]) -> None:
        """Join registries.

        Args:
            kind: How messages call what is in them, e.g. ``"protocols and baselines"``.
            *parts: The registries; no name may be in two of them.
        """
        super().__init__(kind, packages=())
        self._parts = parts

    def _decorators(self) -> str:
        return " or ".join(part._decorators() for part in self._parts)

    def _load(self) -> None:
        # Parts may have grown since the last look.
        entries: dict[str, Callable[..., Any]] = {}
        for part in self._parts:
            for name in part.names():
                if name in entries:
                    raise InvalidArgumentError(
                        f"{self.kind}: the name {name!r} must be unique, got it from "
                        f"{entries[name].__module__} and {part.get(name).__module__}; "
                        "rename one"
                    )
                entries[name] = part.get(name)
        self._entries = entries


@overload
def field_names(entry: type) -> tuple[str, ...] | None: ...
@overload
def field_names(entry: Callable[..., Any]) -> tuple[str, ...] | None: ...
def field_names(entry: Any) -> tuple[str, ...] | None:
    """Return the keyword names a registered entry takes; None if it takes any."""
    import inspect

    names = []
    for parameter in inspect.signature(entry).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            return None
        names.append(parameter.name)
    return tuple(names)


def required_names(entry: Callable[..., Any]) -> tuple[str, ...]:
    """Return the keyword names that a registered entry cannot do without."""
    import inspect

    return tuple(
        parameter.name
        for parameter in inspect.signature(entry).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in {parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL}
    )
