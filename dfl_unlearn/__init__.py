"""Certified unlearning in decentralized learning: simulate, forget, prove, compare.

The names below are loaded on first use, so importing the package imports no
third-party library. Everything else is imported from its module.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "simulate": "dfl_unlearn.engine.simulator",
    "resume": "dfl_unlearn.engine.simulator",
    "unlearn": "dfl_unlearn.unlearning.apply",
    "evaluate": "dfl_unlearn.evaluation.view",
    "write_report": "dfl_unlearn.report",
    "load_topology": "dfl_unlearn.topology.files",
    "load_run": "dfl_unlearn.engine.run",
    "PeerData": "dfl_unlearn.data.peers",
    "FlatModel": "dfl_unlearn.models.flat",
    "SimulationConfig": "dfl_unlearn.engine.config",
    "ForgetRequest": "dfl_unlearn.data.forget",
    "NewtonFisher": "dfl_unlearn.unlearning.protocols.newton_fisher",
    "RrDu": "dfl_unlearn.unlearning.protocols.rr_du",
}

__all__ = [
    "FlatModel",
    "ForgetRequest",
    "NewtonFisher",
    "PeerData",
    "RrDu",
    "SimulationConfig",
    "__version__",
    "evaluate",
    "load_run",
    "load_topology",
    "resume",
    "simulate",
    "unlearn",
    "write_report",
]

if TYPE_CHECKING:
    from dfl_unlearn.data.forget import ForgetRequest
    from dfl_unlearn.data.peers import PeerData
    from dfl_unlearn.engine.config import SimulationConfig
    from dfl_unlearn.engine.run import load_run
    from dfl_unlearn.engine.simulator import resume, simulate
    from dfl_unlearn.evaluation.view import evaluate
    from dfl_unlearn.models.flat import FlatModel
    from dfl_unlearn.report import write_report
    from dfl_unlearn.topology.files import load_topology
    from dfl_unlearn.unlearning.apply import unlearn
    from dfl_unlearn.unlearning.protocols.newton_fisher import NewtonFisher
    from dfl_unlearn.unlearning.protocols.rr_du import RrDu


def __getattr__(name: str) -> Any:
    """Import a public name from its home on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'dfl_unlearn' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names before they are loaded."""
    return sorted(set(globals()) | set(_HOMES))
