r"""Features of a frozen extractor in place of the rows, for a linear head on them.

A network with a frozen extractor and a linear head is convex in the head. Where the
extractor saw none of the peers' rows, forgetting concerns the head alone, and every
claim about linear models holds for it. Who saw what no program can check for weights
from elsewhere, so it is stated and stands in the certificate.

``random_features`` needs no statement: its extractor is drawn from a seed. With
:math:`w_k \sim N(0, I/s^2)` and :math:`b_k` uniform on :math:`[0, 2\pi)`,

.. math:: \phi_k(x) = \sqrt{2/K}\,\cos(w_k^T x + b_k), \qquad \|\phi(x)\| \le \sqrt 2,

and :math:`\phi(x)^T \phi(y)` approaches :math:`e^{-\|x - y\|^2 / (2 s^2)}`: a smooth
nonlinear model whose inputs have a public bound.

References:
    Rahimi and Recht (2007), Random features for large-scale kernel machines.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from dfl_unlearn import _validate
from dfl_unlearn._arrays import as_features
from dfl_unlearn._assumption import Assumption
from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.errors import DataError
from dfl_unlearn.rng import RngTree

Saw = Literal["other_data", "these_data"]

_CHUNK = 1024
_PROBES = 2  # rows whose features are computed alone as well
_NOTES = {
    "other_data": "stated, not checked: it saw none of the peers' rows, so that these "
    "are in the head alone",
    "these_data": "it saw rows of the peers, and they stay in it whatever the head "
    "forgets",
}


def frozen_features(
    data: PeerData,
    extractor: Callable[[Tensor], Tensor],
    *,
    name: str,
    saw: Saw,
    feature_bound: float | None = None,
) -> PeerData:
    """Return the data with every row replaced by its features.

    Args:
        data: The peers' data.
        extractor: Takes inputs ``(B, ...)`` as models see them (float32, or float64
            where the rows are), returns features ``(B, K)``, each row's from that row
            alone. A module is used in evaluation mode.
        name: What certificates call it.
        saw: What its weights were trained on: ``other_data``, none of the peers' rows
            being among them, or ``these_data``. Claims on the first are conditional on
            the statement, on the second heuristic.
        feature_bound: Public bound on the size of every feature, or None.

    Returns:
        Data of the same peers and rows, for a model with inputs of shape ``(K,)``.

    Raises:
        DataError: If the features are no matrix, or a row's depend on other rows.
    """
    _validate.of_type(PeerData, data=data)
    _validate.of_type(str, name=name)
    _validate.one_of(("other_data", "these_data"), saw=saw)
    if isinstance(extractor, nn.Module):
        extractor.eval()
    source = Assumption(
        name="feature extractor",
        value=name,
        source="assumed",
        state="held" if saw == "other_data" else "violated",
        note=_NOTES[saw],
    )
    return _replaced(data, extractor, source, feature_bound)


def random_features(
    data: PeerData, width: int, *, scale: float | None = None, seed: int = 0
) -> PeerData:
    """Return the data with every row replaced by random Fourier features.

    Args:
        data: The peers' data.
        width: Number of features K.
        scale: Distance s over which the features change; None is the square root of
            the number of inputs. Set it without looking at the rows.
        seed: Of the extractor; public.

    Returns:
        Data of the same peers and rows; every feature lies within ``sqrt(2 / K)``.
    """
    _validate.of_type(PeerData, data=data)
    _validate.integer(width=width, at_least=1)
    inputs = math.prod(data.store.inputs.shape[1:])
    scale = math.sqrt(inputs) if scale is None else scale
    _validate.number(scale=scale, above=0)
    generator = RngTree(seed).numpy("init")
    directions = torch.from_numpy(generator.standard_normal((inputs, width)) / scale)
    phases = torch.from_numpy(generator.uniform(0, 2 * np.pi, width))
    height = math.sqrt(2 / width)

    def extractor(x: Tensor) -> Tensor:
        waves = torch.cos(x.double().flatten(1) @ directions + phases)
        return (height * waves).to(x.dtype)

    source = Assumption(
        name="feature extractor",
        value=f"{width} random Fourier features",
        source="proven",
        note=f"drawn from seed {seed} and scale {scale:g} alone: it saw no data",
    )
    # Rounding to the inputs' type may pass the height by half a unit in the last place.
    return _replaced(data, extractor, source, height * (1 + 2.0**-22))


def _replaced(
    data: PeerData,
    extractor: Callable[[Tensor], Tensor],
    source: Assumption,
    feature_bound: float | None,
) -> PeerData:
    """Return the data on features."""
    return replace(
        data,
        store=_extracted(data.store, extractor),
        test=_extracted(data.test, extractor),
        name=f"{data.name} ({source.value})",
        feature_bound=feature_bound,
        norm_bound=None,  # it was about the rows before
        recipe=None,
        extractor=source,
        backdoor=None,  # the rows are no images any more
    )


def _extracted(
    batch: TensorBatch, extractor: Callable[[Tensor], Tensor]
) -> TensorBatch:
    """Return a batch of features.

    Raises:
        DataError: If they are no matrix, or a row's depend on other rows.
    """
    double = batch.inputs.dtype == torch.float64
    dtype = torch.float64 if double else torch.float32
    with torch.no_grad():
        parts = [
            extractor(as_features(part, dtype)) for part in batch.inputs.split(_CHUNK)
        ]
        alone = [
            extractor(as_features(batch.inputs[i : i + 1], dtype))
            for i in range(min(_PROBES, len(batch)))
        ]
    for part in (*parts, *alone):
        if not isinstance(part, Tensor) or part.ndim != 2:
            shape = tuple(part.shape) if isinstance(part, Tensor) else type(part)
            raise DataError(
                "extractor: must return features of shape (B, K), got "
                f"{_validate.show(shape)}; flatten them"
            )
    features = torch.cat(parts).detach().to(dtype)
    for i, row in enumerate(alone):
        if not torch.allclose(features[i], row[0].to(dtype), rtol=1e-3, atol=1e-4):
            raise DataError(
                f"extractor: must take each row's features from that row alone, got "
                f"others for row {i} alone than among others; freeze its statistics "
                "(e.g. batch norm) first"
            )
    return TensorBatch(features, batch.labels)
