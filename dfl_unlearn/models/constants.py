r"""Constants of convex losses, for bounds and certificates.

Per sample, with ``||x|| <= B`` (``||(x, 1)|| <= B`` with a bias), a linear map
``z = theta x`` and ``F`` with the term ``(lambda/2) ||theta||^2``:

| loss | gradient L | smoothness of F | Hessian-Lipschitz M |
| --- | --- | --- | --- |
| binary logistic | B | B^2/4 + lambda | B^3/(6 sqrt 3) |
| softmax | sqrt(2) B | B^2/2 + lambda | sqrt(2) B^3/(3 sqrt 3) |
| squared error | B (B R + Y), for norm(theta) <= R, abs(y) <= Y | B^2 + lambda | 0 |

The curvature of softmax in direction u (a unit matrix) is the variance, and its rate of
change the third central moment, of a random entry of ``v = u x``, whose entries lie
within ``sqrt(2) B`` of each other; on an interval of length r a variance is at most
``r^2/4`` and a third central moment at most ``r^3 / (6 sqrt 3)``.

Clipping per-sample gradients to norm C of a single-output model only truncates the
derivative of the loss in z: strong convexity and smoothness stay true of the truncated
objective, the Hessian is no longer continuous. For softmax, clipped gradients are no
gradients of a convex function, and only their bound remains.
"""

from math import sqrt

from dfl_unlearn._assumption import Assumption, Source
from dfl_unlearn.models.structure import LossName


def convex_constants(
    loss: LossName,
    l2: float,
    radius: float,
    *,
    clip_norm: float | None = None,
    param_norm: float | None = None,
    label_bound: float | None = None,
) -> dict[str, Assumption]:
    """Return the constants of a linear model with a convex loss.

    Args:
        loss: ``cross-entropy``, ``binary-logistic`` or ``squared-error``.
        l2: lambda, >= 0.
        radius: B, bound on the norm of an input (with a 1 appended if there is a
            bias).
        clip_norm: Per-sample clipping norm used in training, or None.
        param_norm: R, for squared error.
        label_bound: Y, for squared error.

    Returns:
        Name to constant: ``strong_convexity`` (if lambda > 0), ``smoothness``,
        ``gradient_bound`` (data term) and ``hessian_lipschitz``, as far as they hold.
    """
    b = radius
    slope: float | None
    source: Source = "proven"
    if loss == "binary-logistic":
        slope, curvature, change = b, b**2 / 4, b**3 / (6 * sqrt(3))
        formula = "binary logistic: L = B, B^2/4 + lambda, M = B^3/(6 sqrt 3)"
    elif loss == "cross-entropy":
        slope, curvature = sqrt(2) * b, b**2 / 2
        change = sqrt(2) * b**3 / (3 * sqrt(3))
        formula = "softmax: L = sqrt(2) B, B^2/2 + lambda, M = sqrt(2) B^3/(3 sqrt 3)"
    else:
        slope, curvature, change = None, b**2, 0.0
        if param_norm is not None and label_bound is not None:
            # That parameters and labels stay inside is the caller's claim.
            slope, source = b * (b * param_norm + label_bound), "assumed"
        formula = "squared error: L = B (B R + Y), B^2 + lambda, M = 0"
    note = f"{formula}; B = {b:g}"
    found: dict[str, Assumption] = {}
    clips = clip_norm is not None and (slope is None or clip_norm < slope)
    if not (clips and loss == "cross-entropy"):
        if l2 > 0:
            found["strong_convexity"] = Assumption(
                name="strong convexity (lambda)",
                value=l2,
                source="proven",
                note="the l2 term of a convex objective",
            )
        found["smoothness"] = Assumption(
            name="smoothness (beta)", value=curvature + l2, source="proven", note=note
        )
    if clips:
        assert clip_norm is not None
        found["gradient_bound"] = clipped(clip_norm)
        return found
    if slope is not None:
        found["gradient_bound"] = Assumption(
            name="gradient bound (L)", value=slope, source=source, note=note
        )
    found["hessian_lipschitz"] = Assumption(
        name="Hessian-Lipschitz constant (M)",
        value=change,
        source="proven",
        note=note,
    )
    return found


def clipped(clip_norm: float) -> Assumption:
    """Return the gradient bound that per-sample clipping enforces."""
    return Assumption(
        name="gradient bound (L)",
        value=clip_norm,
        source="clipped",
        note="per-sample gradients of the data term are clipped to this norm",
    )
