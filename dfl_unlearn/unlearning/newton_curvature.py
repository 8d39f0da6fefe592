r"""Which curvature the Newton/Fisher correction of the mean model divides by.

============================  ====================================================
``curvature``                 what stands for the Hessian of the retained objective
============================  ====================================================
``exact_cg``                  itself, by conjugate gradients on exact products
``lissa``                     itself, by a Neumann series over random rows
``diag_fisher``               diagonal of the Fisher information
``empirical_fisher``          the same with the labels of the data
``block``                     a dense block of the Fisher information per layer
``kfac``                      a Kronecker product per layer
``full_empirical_fisher``     all of the empirical Fisher information
``local``                     the Hessian of the requester's own retained rows
============================  ====================================================

All have l2 and ``damping`` on the diagonal. None but ``exact_cg`` comes with a bound on
its error; where the model is convex none is needed, since the gradient at the corrected
model bounds the distance however the model was found (decentralized-certified 3.5 item
6). There a line search keeps bad surrogates from diverging and steps go on until the
cap is met or ``newton_steps_max`` is reached. Elsewhere ``newton_steps`` steps are
taken as they come, and the claim is heuristic.
"""

from typing import TYPE_CHECKING, Literal

from dfl_unlearn._assumption import Assumption
from dfl_unlearn.curvature.blocks import check_blocks, layer_blocks, whole_block
from dfl_unlearn.curvature.kfac import check_kfac
from dfl_unlearn.curvature.samples import check_labels
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.errors import UnsupportedRequestError

if TYPE_CHECKING:
    from dfl_unlearn.unlearning.protocols.newton_fisher import NewtonFisher

Curvature = Literal[
    "exact_cg",
    "lissa",
    "diag_fisher",
    "empirical_fisher",
    "block",
    "kfac",
    "full_empirical_fisher",
    "local",
    "linearized_gossip",
]

DIAGONALS = ("diag_fisher", "empirical_fisher")
"""Curvatures that can be made sparse."""


def check_curvature(
    protocol: "NewtonFisher", run: TrainedRun, request: ForgetRequest
) -> None:
    """Refuse a model or request that the curvature is not defined for.

    Args:
        protocol: Its fields.
        run: The trained network.
        request: The resolved request.

    Raises:
        UnsupportedRequestError: If the requester keeps no rows for its own curvature.
    """
    how, model = protocol.curvature, run.model
    if how == "kfac":
        check_kfac(model)
    elif how == "block":
        check_labels(model, "model")
        check_blocks(layer_blocks(model))
    elif how == "full_empirical_fisher":
        check_blocks(whole_block(model))
    elif (
        how == "local"
        and not protocol.alone
        and not run.data.without(request).retained[request.requester]
    ):
        raise UnsupportedRequestError(
            "curvature: must not be 'local' for a requester that keeps no rows, got "
            f"peer {request.requester}; use 'exact_cg' or 'diag_fisher'"
        )


def curvature_claim(protocol: "NewtonFisher", *, bounded: bool) -> list[Assumption]:
    """Return what the curvature adds to the claim; nothing where it is exact.

    Args:
        protocol: Its fields.
        bounded: Whether the claim rests on a measured distance to the target.

    Returns:
        At most one assumption.
    """
    if protocol.alone or protocol.curvature in ("exact_cg", "linearized_gossip"):
        return []
    exact = protocol.curvature in ("lissa", "local")  # Hessians, of other rows
    value = f"{protocol.curvature}, damping {protocol.damping:g}"
    if protocol.sparsify is not None:
        value += f", {protocol.sparsify:g} of it kept"
    if bounded:
        return [
            Assumption(
                name="curvature",
                value=value,
                source="set",
                note="how far it is from the Hessian is not bounded and need not be: "
                "the distance is measured where the corrections led",
            )
        ]
    return [
        Assumption(
            name="curvature error" if exact else "Fisher error",
            value=value,
            source="estimated",
            note="how far the requester's Hessian is from everybody's is not bounded"
            if protocol.curvature == "local"
            else "how far it is from the Hessian is not bounded",
        )
    ]
