"""Protocols as JSON values, and back; methods inside them stand under ``use``."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from dfl_unlearn._strict import read_strict
from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.registry import Registry
from dfl_unlearn.unlearning.contracts import UnlearningProtocol, unlearners
from dfl_unlearn.unlearning.local import UnlearningMethod, methods

REGISTRIES: dict[Any, Registry[Any]] = {
    UnlearningProtocol: unlearners,
    UnlearningMethod[TensorBatch]: methods,
}
"""What stands under ``use``, by the type that a field is annotated with."""


def form_of(protocol: UnlearningProtocol) -> dict[str, Any]:
    """Return a protocol's name and fields as JSON values; ``protocol_of`` reads it."""
    return {"use": unlearners.name_of(protocol)} | _fields(protocol)


def protocol_of(form: Mapping[str, Any]) -> UnlearningProtocol:
    """Return the protocol that ``form_of`` wrote."""
    kind: Any = UnlearningProtocol
    protocol: UnlearningProtocol = read_strict(
        kind, dict(form), "", registries=REGISTRIES, path="protocol"
    )
    return protocol


def _fields(value: Any) -> dict[str, Any]:
    return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}


def _plain(value: Any) -> Any:
    """Return nested dataclasses as tables; a method's has its name under ``use``."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(entry) for entry in value]
    if not is_dataclass(value) or isinstance(value, type):
        return value
    known = any(type(value) is methods.get(name) for name in methods)
    return ({"use": methods.name_of(value)} if known else {}) | _fields(value)
