"""Data sets as tensors; those here need no file and no download."""

from dataclasses import dataclass
from hashlib import sha256
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from dfl_unlearn import _validate
from dfl_unlearn._limits import LOAD_BYTES, check_cap
from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.registry import Registry
from dfl_unlearn.rng import RngTree

_TEST_SHARE = 0.2


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """A data set with its rows for training and its rows for tests.

    Attributes:
        train: Rows that peers share out.
        test: Rows that no peer trains on.
        num_classes: Number of classes; 0 means regression.
        name: Registered name, or one of your own.
        source: Where it comes from, in a sentence.
        sha256: Of both parts' inputs and labels.
        feature_bound: Public bound on the size of every feature, known without
            looking at the rows, or None; images of bytes have 1 in any case.
        norm_bound: Public bound on the norm of every row, known in the same way, or
            None.
    """

    train: TensorBatch
    test: TensorBatch
    num_classes: int
    name: str
    source: str
    sha256: str = ""
    feature_bound: float | None = None
    norm_bound: float | None = None

    def __post_init__(self) -> None:
        """Check the types and fill the hash."""
        _validate.of_type(TensorBatch, train=self.train, test=self.test)
        _validate.integer(num_classes=self.num_classes, at_least=0)
        _validate.of_type(str, name=self.name, source=self.source, sha256=self.sha256)
        if not self.sha256:
            object.__setattr__(self, "sha256", _digest(self.train, self.test))


datasets: Registry[Dataset] = Registry(
    "datasets",
    packages=(
        "dfl_unlearn.data.sources",
        "dfl_unlearn.data.arrays",
        "dfl_unlearn.data.vision",
        "dfl_unlearn.data.parquet",
    ),
)


@datasets.register("digits")
def digits() -> Dataset:
    """Handwritten digits, 1,797 images of 8 x 8 pixels, embedded in scikit-learn.

    Pixels 0..16 are divided by 16, exactly in float32. A fifth of each class, always
    the same rows, is the test set.

    Returns:
        1,438 rows to train on, 359 to test; inputs ``(R, 64)`` in [0, 1], 10 classes.
    """
    from sklearn.datasets import load_digits

    raw = load_digits()
    test = held_out(raw.target, "digits")
    inputs = (raw.data / 16).astype(np.float32)
    return Dataset(
        train=_rows(inputs, raw.target, ~test),
        test=_rows(inputs, raw.target, test),
        num_classes=10,
        name="digits",
        source="scikit-learn: test part of Optical Recognition of Handwritten Digits "
        "(E. Alpaydin and C. Kaynak, 1998, UCI)",
        feature_bound=1.0,
    )


@datasets.register("breast-cancer")
def breast_cancer() -> Dataset:
    """Breast cancer diagnosis, 569 records of 30 features, embedded in scikit-learn.

    Each feature is standardized with mean and standard deviation of the training
    rows. A fifth of each class, always the same rows, is the test set.

    Returns:
        456 rows to train on, 113 to test; inputs ``(R, 30)``, 2 classes.
    """
    from sklearn.datasets import load_breast_cancer

    raw = load_breast_cancer()
    test = held_out(raw.target, "breast-cancer")
    mean, std = raw.data[~test].mean(axis=0), raw.data[~test].std(axis=0)
    inputs = ((raw.data - mean) / std).astype(np.float32)
    return Dataset(
        train=_rows(inputs, raw.target, ~test),
        test=_rows(inputs, raw.target, test),
        num_classes=2,
        name="breast-cancer",
        source="scikit-learn: Breast Cancer Wisconsin (Diagnostic) (W. Wolberg, "
        "O. Mangasarian, N. Street and W. Street, 1993, UCI)",
    )


@datasets.register("breast-cancer-unit")
def breast_cancer_unit(*, statistics: Literal["all", "test"] = "all") -> Dataset:
    """Breast cancer diagnosis with rows of norm 1, a constant among the features.

    The 30 features are standardized with means and (population) standard deviations,
    every row is scaled to norm 1, a 1 is appended and the row divided by sqrt 2. So no
    row can be longer than 1, whoever it is about, which makes constants of linear
    models **proven** (use them with ``bias=False``).

    Args:
        statistics: Of which rows means and deviations are: ``all`` 569, as is usual,
            though a certificate then takes them as public and does not cover what
            forgotten rows did to them; or ``test``, which no training row goes into.

    Returns:
        Rows 3, 7, 11, ... to test (142), the other 427 to train on; inputs ``(R, 31)``
        float64, 2 classes.
    """
    from sklearn.datasets import load_breast_cancer

    _validate.one_of(("all", "test"), statistics=statistics)
    raw = load_breast_cancer()
    test = np.arange(len(raw.data)) % 4 == 3
    known = raw.data[test] if statistics == "test" else raw.data
    return _unit_dataset(
        "breast-cancer-unit",
        (raw.data - known.mean(axis=0)) / known.std(axis=0),
        raw.target,
        test,
        "scikit-learn: Breast Cancer Wisconsin (Diagnostic) (W. Wolberg, "
        "O. Mangasarian, N. Street and W. Street, 1993, UCI), rows of norm 1",
    )


@datasets.register("digits-unit")
def digits_unit() -> Dataset:
    """Handwritten digits with rows of norm 1, a constant among the features.

    Every image is scaled to norm 1, a 1 is appended and the row divided by sqrt 2; see
    ``breast-cancer-unit``. No statistics of the rows are used.

    Returns:
        Rows 0, 5, 10, ... to test (360), the other 1,437 to train on; inputs
        ``(R, 65)`` float64, 10 classes.
    """
    from sklearn.datasets import load_digits

    raw = load_digits()
    return _unit_dataset(
        "digits-unit",
        raw.data,
        raw.target,
        np.arange(len(raw.data)) % 5 == 0,
        "scikit-learn: test part of Optical Recognition of Handwritten Digits "
        "(E. Alpaydin and C. Kaynak, 1998, UCI), rows of norm 1",
    )


@datasets.register("gaussian-classes")
def gaussian_classes(
    *,
    classes: int = 3,
    dim: int = 10,
    per_class: int = 200,
    spread: float = 0.5,
    seed: int = 0,
) -> Dataset:
    """Synthetic classes: normal clouds around random points of the unit sphere.

    Args:
        classes: Number of classes, >= 2.
        dim: Number of features, >= 1.
        per_class: Training rows per class; a quarter as many, at least one, to test.
        spread: Standard deviation of a cloud in each feature, >= 0.
        seed: Of centres and clouds.

    Returns:
        ``classes * per_class`` rows to train on; inputs ``(R, dim)`` float32.
    """
    _validate.integer(classes=classes, at_least=2)
    _validate.integer(dim=dim, per_class=per_class, at_least=1)
    _validate.number(spread=spread, at_least=0)
    _validate.integer(seed=seed, at_least=0)
    sizes = per_class, max(1, per_class // 4)
    check_cap(LOAD_BYTES, 8 * classes * (sum(sizes) + 1) * dim, "gaussian-classes")
    rng = RngTree(seed).child("gaussian-classes").numpy("data-split")
    centres = rng.standard_normal((classes, dim))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    parts = []
    for size in sizes:
        labels = np.tile(np.arange(classes), size)
        noise = rng.standard_normal((len(labels), dim))
        inputs = (centres[labels] + spread * noise).astype(np.float32)
        parts.append(_rows(inputs, labels, np.ones(len(labels), dtype=np.bool_)))
    return Dataset(
        train=parts[0],
        test=parts[1],
        num_classes=classes,
        name="gaussian-classes",
        source=f"drawn here: {classes} classes in {dim} dimensions, spread "
        f"{spread:g}, seed {seed}",
    )


def held_out(
    labels: NDArray[np.integer], name: str, share: float = _TEST_SHARE
) -> NDArray[np.bool_]:
    """Return which rows are for tests: a share of each class, fixed for ever.

    Args:
        labels: Class of every row, shape ``(R,)``.
        name: Name of the data set; other names give other rows.
        share: Share of each class, in [0, 1).

    Returns:
        True for test rows, shape ``(R,)``.
    """
    rng = RngTree(name).numpy("data-split")
    test = np.zeros(len(labels), dtype=np.bool_)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        test[rows[: round(share * len(rows))]] = True
    return test


def _unit_dataset(
    name: str,
    inputs: NDArray[np.float64],
    labels: NDArray[np.integer],
    test: NDArray[np.bool_],
    source: str,
) -> Dataset:
    """Return rows ``(x / ||x||, 1) / sqrt 2`` with their public bound 1."""
    rows = inputs / np.linalg.norm(inputs, axis=1, keepdims=True)
    rows = np.column_stack([rows, np.ones(len(rows))]) / np.sqrt(2)
    rows *= 1 - 2.0**-48  # rounding may leave a norm some last digits above 1
    return Dataset(
        train=_rows(rows, labels, ~test),
        test=_rows(rows, labels, test),
        num_classes=int(labels.max()) + 1,
        name=name,
        source=source,
        norm_bound=1.0,
    )


def _rows(
    inputs: NDArray[np.floating], labels: NDArray[np.integer], keep: NDArray[np.bool_]
) -> TensorBatch:
    return TensorBatch(
        torch.from_numpy(inputs[keep]),
        torch.from_numpy(labels[keep].astype(np.int64)),
    )


def _digest(*parts: TensorBatch) -> str:
    digest = sha256()
    for part in parts:
        for tensor in (part.inputs, part.labels):
            digest.update(f"|{tensor.dtype}{tuple(tensor.shape)}|".encode())
            digest.update(np.ascontiguousarray(tensor.numpy()).data)
    return digest.hexdigest()
