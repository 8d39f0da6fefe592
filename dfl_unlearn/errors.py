"""Every exception of the package: one root, each class with its exit code.

Wording: ``<argument or file: key>: <what it must be>, got <value>; <what to do>``.
The command line prints the message without a traceback and exits with the class's
``exit_code``. Only errors that something raises are defined here.
"""

from typing import Any, ClassVar


class DflUnlearnError(Exception):
    """Root of all errors raised on purpose; never raised itself.

    Attributes:
        outcomes: Where a list of requests ended with this error: the outcomes of those
            that were carried out before.
    """

    exit_code: ClassVar[int] = 1
    outcomes: tuple[Any, ...] = ()


# --- arguments -----------------------------------------------------------------


class InvalidArgumentError(DflUnlearnError, ValueError):
    """An argument's value lies outside what is allowed."""

    exit_code = 2


class InvalidTypeError(DflUnlearnError, TypeError):
    """An argument has the wrong type."""

    exit_code = 2


class InvalidHyperparameterError(InvalidArgumentError):
    """A protocol's or trainer's field lies outside what is allowed."""


class InvalidPrivacyParameterError(InvalidArgumentError):
    """An epsilon, delta or noise scale lies outside what is allowed."""


class UnknownNameError(InvalidArgumentError):
    """A name is not in a registry."""


class UnknownPeerError(InvalidArgumentError):
    """A peer index is not in ``0 .. N-1``."""


class InvalidForgetSetError(InvalidArgumentError):
    """A forget set is empty, or has duplicate, unknown or too many items."""


# --- topology, data, models ----------------------------------------------------


class TopologyError(DflUnlearnError, ValueError):
    """A graph cannot serve as a network of peers."""

    exit_code = 2


class DisconnectedGraphError(TopologyError):
    """A graph falls into several components."""


class InvalidMixingMatrixError(TopologyError):
    """A mixing matrix is negative, not stochastic, off the graph, or does not mix."""


class DataError(DflUnlearnError, ValueError):
    """Data has NaN, a label out of range, or leaves a peer without rows."""

    exit_code = 2


class UnsupportedModelError(DflUnlearnError, TypeError):
    """A module has state that crosses samples, or randomness that is not keyed."""

    exit_code = 2


class UnsupportedRequestError(DflUnlearnError, ValueError):
    """A method does not serve this kind of request, trainer or model."""

    exit_code = 2


class MissingNeedError(DflUnlearnError):
    """Something a protocol needs is absent; raised before any compute."""

    exit_code = 2


class MissingRecordError(MissingNeedError):
    """Training did not keep a part of the record that a protocol needs."""


class MissingInputError(MissingNeedError):
    """An input that a function needs was not given."""


# --- files and configuration ---------------------------------------------------


class ConfigError(DflUnlearnError, ValueError):
    """A configuration has an unknown key, a wrong type or a value out of range."""

    exit_code = 2


class InputFileError(DflUnlearnError, OSError):
    """A file is missing, unreadable, a directory, or not UTF-8."""

    exit_code = 2


class ConfigMismatchError(DflUnlearnError):
    """A resumed run is asked for with other settings than it began with."""

    exit_code = 2


class DataMismatchError(DflUnlearnError):
    """A resumed run is given other data than it was trained on."""

    exit_code = 2


class MissingDataError(InputFileError):
    """A data set's files are absent."""


class InputTooLargeError(InputFileError):
    """A file is larger than the limit for its kind."""


class UnsupportedFormatError(InputFileError):
    """A file's type is not one that is read here."""


class UnsafeFormatError(InputFileError):
    """A file's format can carry code or an expansion attack, or a link misleads."""


class DependencyError(DflUnlearnError, ImportError):
    """A library cannot be imported."""

    exit_code = 2


class RayVersionError(DependencyError):
    """The installed Ray is too old to be run safely."""


class TorchvisionBuildError(DependencyError):
    """torchvision's compiled part does not match the installed torch."""


# --- numbers -------------------------------------------------------------------


class NumericalError(DflUnlearnError, ArithmeticError):
    """NaN or infinity in a state, bound, noise or curve."""

    exit_code = 2


class NonPositiveCurvatureError(NumericalError):
    """A solver met a direction with v'Hv <= 0."""


class SolverDivergedError(NumericalError):
    """A series grows that should shrink: its scale or damping is too small."""


class SolverNotConvergedError(NumericalError):
    """A solver's residual is above its tolerance at the iteration limit."""


class ReconstructionError(NumericalError):
    """A step of training cannot be undone: it is too long, or a residual stays."""


# --- refusals ------------------------------------------------------------------


class RefusedError(DflUnlearnError):
    """Base of the refusals: nothing was sent, no number is printed."""

    exit_code = 4


class PrivacyBudgetExceededError(RefusedError):
    """A release would pass the privacy budget."""


class ResidualExceedsCapError(RefusedError):
    """A measured residual is above the public cap."""


class SensitivityUnprovenError(RefusedError):
    """A sensitivity is claimed that does not follow."""


class StaleModelError(RefusedError):
    """A peer was to send a model from before a request that was carried out."""


class SubsamplingAssumptionError(RefusedError):
    """Less is charged for sampling without what the bound for it needs."""


class AdjacencyMismatchError(RefusedError):
    """Curves of different neighbouring relations were combined."""


class GroupPrivacyError(RefusedError):
    """The group rule was asked of a curve that is not Gaussian-like."""


class UnsupportedMechanismError(RefusedError):
    """The accountant does not know the mechanism."""


class RequestRateError(RefusedError):
    """An owner asks for more of its data at once than screening allows."""


class InsecureRayError(RefusedError):
    """Ray listens where other machines can reach it."""


class ResumeWouldUndoUnlearningError(RefusedError):
    """Only states from before a committed forget request are left to go on from."""


class InsecureNoiseError(RefusedError):
    """A model with simulated noise was to be exported as secure."""


# --- resources and stored state --------------------------------------------------


class ResourceError(DflUnlearnError):
    """Memory, peers, edges or parameters would pass a limit."""

    exit_code = 5


class StoreWriteError(ResourceError):
    """A file could not be written."""


class RunLockedError(ResourceError):
    """Another process uses the run folder."""


class CorruptStateError(DflUnlearnError):
    """Base of the errors about damaged stored state."""

    exit_code = 6


class NoValidCheckpointError(CorruptStateError):
    """There are checkpoints and none of them verifies."""


class StoreCorruptError(CorruptStateError):
    """A results, state or manifest file is damaged."""


class LedgerCorruptError(CorruptStateError):
    """The ledger's chain of hashes is broken."""


class LedgerFormatError(CorruptStateError):
    """A ledger line has a value that the format does not allow."""


class ReplayDivergedError(CorruptStateError):
    """A replay of training ends in another state than the run's."""


class NoiseStreamChangedError(CorruptStateError):
    """The keyed noise generator gives other values than when the run was made."""


# --- the engine ------------------------------------------------------------------


class StalledError(DflUnlearnError):
    """No worker finished its part of a round in time."""

    exit_code = 7


class StaleStateError(DflUnlearnError):
    """A worker does not hold the rows it was asked for; the driver sends them again."""
