r"""The effective mixing matrix of a round in which messages are missing or old.

With base weights W, let :math:`a_{ij}` be the age of the row that peer i takes from
peer j, if it takes one. A round mixes

.. math:: x_i \leftarrow \sum_{j} A_{ij} \, x_j^{(t - a_{ij})}, \qquad \sum_j A_{ij}=1,

and the weight of what is missing goes where the policy says (see ``FaultPlan``). A peer
that is down takes nothing and gives nothing, so its row is that of the identity and its
parameters stay the same bits. All matrices have W's pattern of entries.

Push-sum [paper: Kempe, Dobra and Gehrke 2003; in terms of estimates: derived]: with
column-stochastic A and masses w, values :math:`s_i = w_i x_i` mix as :math:`s^+ = A s`,
:math:`w^+ = A w`, so the estimates mix by the row-stochastic
:math:`R_{ij} = A_{ij} w_j / w^+_i`. Masses do not depend on data.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from dfl_unlearn.engine.faults import WeightPolicy
from dfl_unlearn.errors import InvalidArgumentError
from dfl_unlearn.topology.graph import Topology

Floats = NDArray[np.float64]
Index = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Arcs:
    """Who sends to whom on a network, and where in W the weights stand.

    Attributes:
        topology: The network.
        pattern: W with an entry on every diagonal place, CSR; only places count.
        target: Receiver of every arc, in the order of the rows of W, shape ``(E,)``.
        source: Sender, shape ``(E,)``.
        weight: ``W[target, source]``, shape ``(E,)``.
        place: Of every arc among the entries of ``pattern``, shape ``(E,)``.
        own: Of every peer's weight on itself, shape ``(N,)``.
        diagonal: That weight, shape ``(N,)``.
        back: Number of the reverse arc, -1 without one, shape ``(E,)``.
    """

    topology: Topology
    pattern: csr_array
    target: Index
    source: Index
    weight: Floats
    place: Index
    own: Index
    diagonal: Floats
    back: Index

    @classmethod
    def of(cls, topology: Topology) -> "Arcs":
        """Take a network apart."""
        w, n = topology.weights, topology.n
        # Adding ones on the diagonal makes a place there without moving the others.
        eye = csr_array((np.ones(n), np.arange(n), np.arange(n + 1)), shape=(n, n))
        pattern = csr_array(w + eye)
        pattern.sort_indices()
        rows = np.repeat(np.arange(n), np.diff(pattern.indptr))
        columns = pattern.indices.astype(np.int64)
        diagonal_entry = rows == columns
        place = np.flatnonzero(~diagonal_entry)
        target, source = rows[place], columns[place]
        key = target * n + source
        at = np.searchsorted(key, source * n + target)
        at = np.minimum(at, max(len(key) - 1, 0))
        paired = key[at] == source * n + target if len(key) else np.zeros(0, bool)
        return cls(
            topology=topology,
            pattern=pattern,
            target=target,
            source=source,
            weight=pattern.data[place],
            place=place,
            own=np.flatnonzero(diagonal_entry),
            diagonal=np.asarray(w.diagonal(), dtype=np.float64),
            back=np.where(paired, at, -1),
        )

    @property
    def symmetric(self) -> bool:
        """Whether W equals its transpose, up to 1e-12."""
        if (self.back < 0).any():
            return False
        apart = np.abs(self.weight - self.weight[self.back])
        return bool(apart.max(initial=0.0) <= 1e-12)


@dataclass(frozen=True, kw_only=True, eq=False)
class Mixing:
    """The effective weights of a round.

    Attributes:
        entries: Age -> entries on the places of ``Arcs.pattern``, ascending by age; age
            0 is always there.
        mass: Mass of push-sum after the round, shape ``(N,)``, or None.
    """

    entries: dict[int, Floats]
    mass: Floats | None

    def total(self, arcs: Arcs) -> csr_array:
        """Return the weights of all ages together, without zeros, shape ``(N, N)``."""
        data = np.sum(list(self.entries.values()), axis=0)
        base = arcs.pattern
        found = csr_array((data, base.indices, base.indptr), shape=base.shape)
        found = found.copy()
        found.eliminate_zeros()
        return found

    def column_sums(self, arcs: Arcs) -> Floats:
        """Return the sums of the columns over all ages, shape ``(N,)``."""
        data: Floats = np.sum(list(self.entries.values()), axis=0)
        n = arcs.topology.n
        return np.bincount(arcs.pattern.indices, data, n).astype(np.float64)

    def keeps_mean(self, arcs: Arcs) -> bool:
        """Tell whether the round keeps the peers' plain mean, to 1e-9 of its size."""
        if any(entries.any() for age, entries in self.entries.items() if age):
            return False
        return bool(np.abs(self.column_sums(arcs) - 1).max() <= 1e-9)


def check_weights(arcs: Arcs, policy: WeightPolicy) -> None:
    """Refuse a policy that does not go with the weights of a network.

    Args:
        arcs: The network.
        policy: Where missing weight goes.

    Raises:
        InvalidArgumentError: If what the policy is to keep was never there.
    """
    if policy == "symmetric_drop" and not arcs.symmetric:
        raise InvalidArgumentError(
            "faults.weight_policy: must not be 'symmetric_drop' on weights that are "
            "not symmetric (both ends of an edge keep the same weight); use 'self' or "
            "'push_sum'"
        )
    if policy == "push_sum" and arcs.topology.stochastic == "row":
        raise InvalidArgumentError(
            "faults.weight_policy: must not be 'push_sum' on weights whose columns do "
            "not sum to 1; use 'self'"
        )
    if policy != "push_sum" and arcs.topology.stochastic == "column":
        raise InvalidArgumentError(
            f"faults.weight_policy: must be 'push_sum' on column-stochastic weights, "
            f"got {policy!r}"
        )


def missing_pairs(arcs: Arcs, age: Index, policy: WeightPolicy) -> Bools:
    """Tell which arcs bring nothing, shape ``(E,)``.

    Args:
        arcs: The network.
        age: Of the row that each arc brings, -1 for none, shape ``(E,)``.
        policy: ``symmetric_drop`` leaves out the reverse of a missing arc, too.

    Returns:
        True where the weight goes elsewhere.
    """
    missing: Bools = age < 0
    if policy == "symmetric_drop":
        missing = missing | missing[arcs.back]
    return missing


def effective(
    arcs: Arcs,
    age: Index,
    *,
    policy: WeightPolicy,
    crashed: Bools,
    own: bool,
    mass: Floats | None,
) -> Mixing:
    """Return the effective weights of a round.

    Args:
        arcs: The network.
        age: Of the row that each arc brings, -1 for none, shape ``(E,)``.
        policy: Where the weight of what is missing goes.
        crashed: Who restarts in this round, shape ``(N,)``; nobody takes its row.
        own: Whether it restarts from its own checkpoint instead of the neighbours; its
            row is then the identity's, on what was put there.
        mass: Mass of push-sum before the round, or None.

    Returns:
        Weights whose rows sum to 1.
    """
    missing = missing_pairs(arcs, age, policy)
    weight = np.where(missing, 0.0, arcs.weight)
    kept_by = arcs.source if policy == "push_sum" else arcs.target
    n = arcs.topology.n
    diagonal = arcs.diagonal + np.bincount(
        kept_by[missing], weights=arcs.weight[missing], minlength=n
    )
    # Who takes nothing keeps its own bits; a sum of weights may be off by an ulp.
    alone = np.bincount(arcs.target, weights=~missing, minlength=n) == 0
    if policy != "push_sum":
        diagonal[alone] = 1.0
    if crashed.any():
        weight, diagonal = _restarts(arcs, age, weight, diagonal, crashed, own)
    after = None
    if mass is not None:
        moved = weight * mass[arcs.source]
        kept = diagonal * mass
        after = kept + np.bincount(arcs.target, weights=moved, minlength=n)
        weight, diagonal = moved / after[arcs.target], kept / after
    entries = {}
    for a in range(int(age.max(initial=0)) + 1):
        data = np.zeros(len(arcs.pattern.data))
        data[arcs.place] = np.where(age == a, weight, 0.0)
        if a == 0:
            data[arcs.own] = diagonal
        entries[a] = data
    return Mixing(entries=entries, mass=after)


def _restarts(
    arcs: Arcs,
    age: Index,
    weight: Floats,
    diagonal: Floats,
    crashed: Bools,
    own: bool,
) -> tuple[Floats, Floats]:
    """Give restarting peers a row that leaves out what they lost."""
    takes = crashed[arcs.target]
    found = np.where(age >= 0, arcs.weight, 0.0)
    if own:
        found = np.zeros_like(found)
    total = np.bincount(arcs.target, weights=found, minlength=len(diagonal))
    share = found / np.where(total > 0, total, 1.0)[arcs.target]
    weight = np.where(takes, share, weight)
    diagonal = np.where(crashed, 0.0 if not own else 1.0, diagonal)
    return weight, diagonal
