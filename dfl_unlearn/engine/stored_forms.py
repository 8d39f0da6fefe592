"""Configurations and requests as JSON values, in manifests and beside outcomes."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from dfl_unlearn.accounting.ledger import PrivacyBudget
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.clock import NetworkClock
from dfl_unlearn.engine.config import LocalSteps, SimulationConfig, trainers
from dfl_unlearn.engine.faults import FaultPlan, fault_models
from dfl_unlearn.errors import InvalidArgumentError
from dfl_unlearn.record.plan import RecordPlan


def config_to(config: SimulationConfig) -> dict[str, Any]:
    """Return a configuration as JSON values; ``config_from`` reads it.

    Args:
        config: The configuration.

    Returns:
        Field name -> value; the trainer stands under ``use``.

    Raises:
        InvalidArgumentError: If it has a schedule, which cannot be written.
    """
    if config.schedule is not None:
        raise InvalidArgumentError(
            f"config.schedule: must be None to store a run, got "
            f"{type(config.schedule).__name__}; give the network as topology"
        )
    values = {f.name: getattr(config, f.name) for f in fields(config)}
    del values["schedule"]
    return values | {
        "trainer": {"use": trainers.name_of(config.trainer)}
        | fields_of(config.trainer),
        "local": fields_of(config.local),
        "faults": fields_of(config.faults)
        | {
            "models": [
                {"use": fault_models.name_of(m)} | fields_of(m)
                for m in config.faults.models
            ]
        },
        "record": fields_of(config.record) | {"parts": sorted(config.record.parts)},
        "privacy_budget": fields_of(config.privacy_budget),
        "clock": fields_of(config.clock),
    }


def config_from(values: Mapping[str, Any]) -> SimulationConfig:
    """Return the configuration that ``config_to`` wrote."""
    trainer = dict(values["trainer"])
    record = dict(values["record"])
    return SimulationConfig(
        **{
            **values,
            "trainer": trainers.build(trainer.pop("use"), **trainer),
            "local": LocalSteps(**values["local"]),
            "faults": _faults_from(values.get("faults", {})),  # none in older folders
            "record": RecordPlan(**{**record, "parts": frozenset(record["parts"])}),
            "privacy_budget": PrivacyBudget(**values["privacy_budget"]),
            "clock": NetworkClock(**values.get("clock", {})),  # none in older folders
        }
    )


def _faults_from(values: Mapping[str, Any]) -> FaultPlan:
    models = []
    for entry in values.get("models", ()):
        given = {name: _tuples(value) for name, value in entry.items()}
        models.append(fault_models.build(given.pop("use"), **given))
    return FaultPlan(**{**values, "models": tuple(models)})


def _tuples(value: Any) -> Any:
    """Return JSON lists as tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def request_to(request: ForgetRequest) -> dict[str, Any]:
    """Return a request as JSON values; ``request_from`` reads it."""
    return fields_of(request)


def request_from(values: Mapping[str, Any]) -> ForgetRequest:
    """Return the request that ``request_to`` wrote."""
    return ForgetRequest(
        **{
            **values,
            "items": tuple(tuple(rows) for rows in values["items"]),
            "peers": tuple(values["peers"]),
            "coalesced": tuple(values.get("coalesced", ())),  # none in older folders
        }
    )


def fields_of(value: Any) -> dict[str, Any]:
    """Return a dataclass's fields by name, their values as they are."""
    return {f.name: getattr(value, f.name) for f in fields(value)}
