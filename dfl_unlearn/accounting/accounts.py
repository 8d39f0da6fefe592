"""What ledger entries add up to, per owner and observer: pure functions.

Each distinct release an observer has seen counts once, however often and through
whomever it came.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from dfl_unlearn import _validate
from dfl_unlearn._stats import round_up
from dfl_unlearn.accounting.entries import (
    EVERYONE,
    LedgerEntry,
    Observer,
    colluding,
    members,
)
from dfl_unlearn.accounting.gaussian import compose_gaussians, gaussian_epsilon
from dfl_unlearn.accounting.groups import group_curve
from dfl_unlearn.accounting.mechanisms import (
    Adjacency,
    DiscreteGaussianMechanism,
    SampledGaussianMechanism,
)
from dfl_unlearn.accounting.rdp import RdpCurve, rdp_to_epsilon


@dataclass(frozen=True, kw_only=True)
class LedgerRow:
    """One account, for printing.

    Attributes:
        owner: Whose data.
        observer: Who sees; a colluding set stands for its members together.
        releases: Distinct releases seen.
        epsilon: Total at ``delta``.
        delta: What epsilon is given at.
        remaining: Epsilon left at the budget's delta, or None without a cap.
        status: Certificate status of the last release seen, or "".
        pre_request: Messages of the owner that the observer got before any request, to
            which no epsilon is attached; None where they were not counted.
        shared: Whether members of a colluding set saw some release several times, which
            counts once.
    """

    owner: str
    observer: Observer
    releases: int
    epsilon: float
    delta: float
    remaining: float | None
    status: str
    pre_request: int | None = None
    shared: bool = False


def seen_by(entries: Sequence[LedgerEntry], observer: Observer) -> list[LedgerEntry]:
    """Return the entries that count for an observer, each release once.

    Args:
        entries: One owner's.
        observer: A peer, a colluding set, or ``"public"``.

    Returns:
        In the order of the ledger, without those whose noise was never drawn.
    """
    releases: dict[str, LedgerEntry] = {}
    for entry in entries:
        if entry.noise_drawn and entry.seen_by(observer):
            releases.setdefault(entry.release_id, entry)
    return list(releases.values())


def views(
    entries: Sequence[LedgerEntry], observers: Iterable[Observer]
) -> dict[Observer, tuple[LedgerEntry, ...]]:
    """Return what each of many observers has seen.

    Args:
        entries: One owner's.
        observers: Any of them.

    Returns:
        Per observer the entries of ``seen_by``; observers that saw the same share one
        tuple, so a broadcast to a thousand peers is added up once.
    """
    audiences = {entry.observers: entry for entry in entries}.values()
    shared: dict[tuple[bool, ...], tuple[LedgerEntry, ...]] = {}
    seen = {}
    for one in observers:
        key = tuple(entry.seen_by(one) for entry in audiences)
        if key not in shared:
            shared[key] = tuple(seen_by(entries, one))
        seen[one] = shared[key]
    return seen


def total_mu(seen: Sequence[LedgerEntry]) -> float | None:
    """Return the one Gaussian, as shift over noise, that equals all releases.

    Args:
        seen: Distinct releases.

    Returns:
        None unless all are plain Gaussians, among them steps that every record joins:
        no single one equals the others.
    """
    plain: list[float] = []
    for entry in seen:
        if isinstance(entry.mechanism, DiscreteGaussianMechanism):
            return None
        mu = entry.mechanism.mu
        if mu is None:
            return None
        plain.append(mu)
    return compose_gaussians(plain)


def total_curve(
    seen: Sequence[LedgerEntry], adjacency: Adjacency = "unlearn"
) -> RdpCurve:
    """Return the Rényi curve of all releases together.

    Args:
        seen: Distinct releases.
        adjacency: The relation where there is none.

    Returns:
        Their sum.
    """
    if not seen:
        return RdpCurve.zero(adjacency=adjacency)
    return _sum([entry.curve for entry in seen])


def total_epsilon(
    seen: Sequence[LedgerEntry], delta: float, *, order: float | None = None
) -> float:
    """Return epsilon of all releases together, rounded up.

    Args:
        seen: Distinct releases.
        delta: Total delta, in [0, 1).
        order: The only Rényi order that counts, or None.

    Returns:
        The smaller one of the exact value, which plain Gaussians have, and the Rényi
        bound; with an order, the Rényi bound at it.
    """
    curve = total_curve(seen)
    if order is not None:
        return _at(curve, order, delta)
    mu, bound = total_mu(seen), curve.to_epsilon(delta).epsilon
    return bound if mu is None else min(gaussian_epsilon(mu, delta), bound)


def group_epsilon(
    seen: Sequence[LedgerEntry],
    delta: float,
    group_size: int,
    *,
    order: float | None = None,
) -> float:
    """Return epsilon of all releases together for several records of one peer.

    Args:
        seen: Distinct releases, private for one record.
        delta: Total delta, in [0, 1).
        group_size: Records, at least 1.
        order: The only Rényi order that counts, or None.

    Returns:
        As ``total_epsilon``, each release at what it costs the group; exact where all
        are plain Gaussians.
    """
    _validate.integer(at_least=1, group_size=group_size)
    if group_size == 1:
        return total_epsilon(seen, delta, order=order)
    curve = _sum(
        [
            group_curve(entry.mechanism, group_size, entry.curve.orders)
            if isinstance(entry.mechanism, SampledGaussianMechanism)
            else entry.curve.group(group_size)
            for entry in seen
        ]
    )
    if order is not None:
        return _at(curve, order, delta)
    mu, bound = total_mu(seen), curve.to_epsilon(delta).epsilon
    if mu is None:
        return bound
    return min(
        gaussian_epsilon(math.nextafter(group_size * mu, math.inf), delta), bound
    )


def together(entries: Sequence[LedgerEntry]) -> Observer | None:
    """Return all peers that any entry names as one observer; None if it names none."""
    audiences = {entry.observers for entry in entries}
    peers = {peer for some in audiences for one in some for peer in members(one)}
    return colluding(peers) if peers else None


def account_rows(
    owner: str,
    entries: Sequence[LedgerEntry],
    *,
    cap: Callable[[Observer], float | None],
    delta: float,
    order: float | None = None,
    at: float | None = None,
    observer: Observer | None = None,
    sent: Mapping[int, int] | None = None,
) -> tuple[LedgerRow, ...]:
    """Return one owner's accounts.

    Args:
        owner: ``"peer:<i>"``.
        entries: All of this owner's.
        cap: Largest total epsilon of an observer's account, or None.
        delta: The budget's total delta.
        order: The only Rényi order that counts, or None.
        at: Delta at which epsilon is given; None is the budget's.
        observer: Only this account, whether or not it has seen anything; None for all.
        sent: Messages that the owner sent to each peer before any request, or None
            where they were not counted.

    Returns:
        One row for each observer, then for all of them together where that is more
        than any has alone, then for the public.
    """
    known = {one for some in {entry.observers for entry in entries} for one in some}
    known |= {f"peer:{peer}" for peer in sent or ()}
    accounts = sorted(known - {"public"}, key=by_index)
    if observer is not None:
        accounts = [] if observer == "public" else [observer]
    seen = views(entries, (*accounts, "public"))
    union = together(entries)
    if observer is None and union is not None and union not in seen:
        all_seen = tuple(seen_by(entries, union))
        if all(len(all_seen) > len(seen[one]) for one in accounts):
            accounts.append(union)
            seen[union] = all_seen
    at = delta if at is None else at
    totals = {
        key: tuple(total_epsilon(some, d, order=order) for d in (at, delta))
        for key, some in {id(some): some for some in seen.values()}.items()
    }
    rows = []
    for one in (*accounts, *(["public"] if observer in (None, "public") else [])):
        (epsilon, spent), most = totals[id(seen[one])], cap(one)
        peers = members(one)
        several = peers if len(peers) > 1 else ()
        apart = sum(len(seen_by(entries, f"peer:{peer}")) for peer in several)
        rows.append(
            LedgerRow(
                owner=owner,
                observer=one,
                releases=len(seen[one]),
                epsilon=epsilon,
                delta=at,
                remaining=None if most is None else max(0.0, most - spent),
                status=seen[one][-1].status if seen[one] else "",
                pre_request=None
                if sent is None
                else sum(sent.get(peer, 0) for peer in peers),
                shared=apart > len(seen[one]),
            )
        )
    return tuple(rows)


def format_rows(rows: Sequence[LedgerRow], delta: float) -> str:
    """Return accounts as a text table; observers with equal ones share a line.

    Args:
        rows: As from ``account_rows``.
        delta: Named in the heading.

    Returns:
        Lines without a newline at the end.
    """
    counted = any(row.pre_request is not None for row in rows)
    before = ["pre-request msgs"] if counted else []
    head = [f"ε (δ={delta:g})", "budget left", "status"]
    cells = [["owner", "observers", *before, "releases", *head]]
    groups: dict[LedgerRow, list[str]] = {}
    for row in rows:
        groups.setdefault(replace(row, observer=""), []).append(row.observer)
    for row, names in groups.items():
        several = f"{names[0]} … {names[-1]} ({len(names)})"
        status = row.status or "-"
        cells.append(
            [
                row.owner,
                several if len(names) > 4 else ", ".join(names),
                *([str(row.pre_request or 0)] if counted else []),
                str(row.releases),
                f"{round_up(row.epsilon, 4):g}",
                "no cap"
                if row.remaining is None
                else f"{-round_up(-row.remaining, 4):g}",
                f"{status} (same noise, counted once)" if row.shared else status,
            ]
        )
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) for cell, width in zip(line, widths, strict=True)
        ).rstrip()
        for line in cells
    )


def _sum(curves: Sequence[RdpCurve]) -> RdpCurve:
    """Return the curve of all releases together."""
    if not curves:
        return RdpCurve.zero()
    total = curves[0]
    for curve in curves[1:]:
        total = replace(total + curve, description="")
    return replace(total, description=f"{len(curves)} releases")


def _at(curve: RdpCurve, order: float, delta: float) -> float:
    """Return what a filter has counted, without the shortcut for tiny variations."""
    one = curve.restrict((order,))
    return rdp_to_epsilon(one.orders, one.values, delta, variation=False).epsilon


def by_index(name: str) -> tuple[int, list[int]]:
    """Return a sort key for observer and owner ids: size of the set, then indices."""
    peers = [] if name == EVERYONE else sorted(members(name))
    return len(peers), peers
