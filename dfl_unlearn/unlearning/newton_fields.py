"""What the fields of the Newton/Fisher protocol may be, alone and together."""

from typing import TYPE_CHECKING, Literal, get_args

from dfl_unlearn import _validate
from dfl_unlearn._limits import MAX_ROUNDS
from dfl_unlearn.accounting.entries import NoiseMode
from dfl_unlearn.engine.transport import Dissemination
from dfl_unlearn.errors import (
    InvalidHyperparameterError,
    InvalidPrivacyParameterError,
)
from dfl_unlearn.unlearning.influence_weights import InfluenceWeights
from dfl_unlearn.unlearning.newton_curvature import DIAGONALS, Curvature

if TYPE_CHECKING:
    from dfl_unlearn.unlearning.protocols.newton_fisher import NewtonFisher

Target = Literal["consensus", "dsgd_fixed_point"]
NewtonScope = Literal["joint", "release", "view", "view_joint"]
NoisePlacement = Literal["broadcast_model", "broadcast_correction", "independent"]
StatePolicy = Literal["published_state", "secret_state"]
NoiseCalibration = Literal["analytic", "classic", "rdp", "oracle_residual"]


def check_fields(protocol: "NewtonFisher") -> None:
    """Check the fields, each alone and then together.

    Args:
        protocol: The protocol.
    """
    wrong = InvalidHyperparameterError
    _validate.number(
        epsilon=protocol.epsilon, above=0, error=InvalidPrivacyParameterError
    )
    _validate.number(
        delta=protocol.delta, above=0, below=1, error=InvalidPrivacyParameterError
    )
    for name, kind in (
        ("scope", NewtonScope),
        ("target", Target),
        ("curvature", Curvature),
        ("influence_weights", InfluenceWeights),
        ("calibration", NoiseCalibration),
        ("state_policy", StatePolicy),
        ("noise_placement", NoisePlacement),
        ("dissemination", Dissemination),
        ("noise_mode", NoiseMode),
    ):
        _validate.one_of(get_args(kind), **{name: getattr(protocol, name)})
    _validate.number(damping=protocol.damping, at_least=0, error=wrong)
    if protocol.sparsify is not None:
        _validate.number(sparsify=protocol.sparsify, above=0, at_most=1, error=wrong)
    _validate.integer(newton_steps=protocol.newton_steps, at_least=1, error=wrong)
    _validate.integer(
        newton_steps_max=protocol.newton_steps_max,
        at_least=protocol.newton_steps,
        at_most=MAX_ROUNDS,
        error=wrong,
    )
    if protocol.align_to is not None:
        _validate.number(align_to=protocol.align_to, above=0, error=wrong)
    _validate.number(residual_cap=protocol.residual_cap, above=0, error=wrong)
    _validate.of_type(
        bool,
        assume_stationary=protocol.assume_stationary,
        assume_secure_aggregation=protocol.assume_secure_aggregation,
        convex_head=protocol.convex_head,
        disclose_m=protocol.disclose_m,
    )
    _validate.integer(
        recovery_rounds=protocol.recovery_rounds,
        at_least=0,
        at_most=MAX_ROUNDS,
        error=wrong,
    )
    _check_together(protocol)


def _check_together(protocol: "NewtonFisher") -> None:
    """Refuse fields that contradict each other.

    Raises:
        InvalidHyperparameterError: Naming one field and what it must be.
        InvalidPrivacyParameterError: If epsilon is too large for the calibration.
    """
    stacked = {
        "curvature": "linearized_gossip",
        "noise_placement": "independent",
        "assume_stationary": False,
        "damping": 0.0,
    }
    for name, needed in stacked.items() if protocol.stacked else ():
        if getattr(protocol, name) != needed:
            raise InvalidHyperparameterError(
                f"{name}: must be {needed!r} with target='dsgd_fixed_point', got "
                f"{getattr(protocol, name)!r}; set it or use target='consensus'"
            )
    _check_views(protocol)
    _check_secure(protocol)
    if protocol.curvature == "linearized_gossip" and not protocol.stacked:
        raise InvalidHyperparameterError(
            "curvature: must be 'exact_cg' or another one of the mean model with "
            "target='consensus', got 'linearized_gossip'; it solves for "
            "target='dsgd_fixed_point'"
        )
    if protocol.calibration == "classic" and protocol.epsilon >= 1:
        raise InvalidPrivacyParameterError(
            "epsilon: must be below 1 with calibration='classic', got "
            f"{protocol.epsilon:g}; use calibration='analytic' (classic adds too "
            "little noise at large epsilon)"
        )
    if protocol.sparsify is not None and (
        protocol.curvature not in DIAGONALS or not protocol.damping > 0
    ):
        raise InvalidHyperparameterError(
            "sparsify: must be None unless curvature='diag_fisher' or "
            "'empirical_fisher' and damping > 0, got "
            f"{protocol.sparsify:g} with curvature={protocol.curvature!r} and "
            f"damping={protocol.damping:g}; dropped entries become the damping"
        )
    own = protocol.noise_placement != "broadcast_model" and not protocol.stacked
    if protocol.align_to is not None and not own:
        raise InvalidHyperparameterError(
            "align_to: must be None unless peers add a correction to models of their "
            f"own, got {protocol.align_to:g} with target={protocol.target!r} and "
            f"noise_placement={protocol.noise_placement!r}; gossip keeps the mean model"
        )
    if protocol.noise_placement == "broadcast_correction" and protocol.scope == "joint":
        raise InvalidHyperparameterError(
            "scope: must be 'release' with noise_placement='broadcast_correction', "
            "got 'joint'; the differences of two peers' models carry no noise "
            "there: use 'broadcast_model' or 'independent' for a joint claim"
        )


def _check_secure(protocol: "NewtonFisher") -> None:
    """Refuse secure noise where what is released does not lie on its grid.

    Raises:
        InvalidHyperparameterError: Naming the field.
    """
    if protocol.noise_mode != "secure":
        return
    if protocol.noise_placement == "broadcast_correction":
        raise InvalidHyperparameterError(
            "noise_placement: must be 'broadcast_model' or 'independent' with "
            "noise_mode='secure', got 'broadcast_correction'; each peer adds its "
            "noised part to a model that is on no grid, and the last bits tell which"
        )
    if protocol.calibration not in ("analytic", "rdp"):
        raise InvalidHyperparameterError(
            "calibration: must be 'analytic' or 'rdp' with noise_mode='secure', got "
            f"{protocol.calibration!r}; secure noise is calibrated by Rényi's measure"
        )


def _check_views(protocol: "NewtonFisher") -> None:
    """Refuse what would send something without noise under a claim about all messages.

    Raises:
        InvalidHyperparameterError: Naming one field and what it must be.
    """
    if not protocol.views:
        if protocol.assume_secure_aggregation:
            raise InvalidHyperparameterError(
                "assume_secure_aggregation: must be False unless scope is 'view' or "
                f"'view_joint', got True with {protocol.scope!r}; claims about final "
                "models do not need it"
            )
        return
    why = "a message without noise would be in view"
    needed: dict[str, tuple[object, str]] = {
        "target": ("consensus", why),
        "noise_placement": (
            "broadcast_model",
            "other placements send more than one noised vector, or some without noise",
        ),
        "assume_stationary": (False, "what training recorded of its residual is used"),
    }
    if not protocol.assume_secure_aggregation:
        needed |= {
            "curvature": ("local", why + "; or set assume_secure_aggregation=True"),
            "state_policy": ("published_state", "only the requester knows the other"),
            "damping": (0.0, "the claim needs the correction as derived"),
            "newton_steps": (1, "a second step would need a message"),
        }
    for name, (value, reason) in needed.items():
        if getattr(protocol, name) != value:
            raise InvalidHyperparameterError(
                f"{name}: must be {value!r} with scope={protocol.scope!r}, got "
                f"{getattr(protocol, name)!r}; {reason}"
            )
