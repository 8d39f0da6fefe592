"""One privacy account per owner and observer, written down before anything is released.

An *owner* is the peer whose data are forgotten, an *observer* whoever sees releases: a
peer, peers that put together what they saw, or the public. Fresh noise is a new
release and a new charge; forwarding or averaging what was released is free. A charge
that was written is never taken back by a crash: an entry that stayed ``reserved``
counts as spent.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path

from dfl_unlearn import _validate
from dfl_unlearn._stats import round_up
from dfl_unlearn.accounting.accounts import (
    LedgerRow,
    account_rows,
    by_index,
    format_rows,
    group_epsilon,
    seen_by,
    together,
    total_curve,
    total_epsilon,
    total_mu,
    views,
)
from dfl_unlearn.accounting.book import EntryBook, check_head, other_noise, replay
from dfl_unlearn.accounting.budget import PrivacyBudget, filter_order_for
from dfl_unlearn.accounting.entries import (
    EVERYONE,
    START,
    EntryState,
    LedgerEntry,
    NoisePurpose,
    Observer,
    Scope,
    check_owner,
    colluding,
    encode,
    looks_complete,
    members,
)
from dfl_unlearn.accounting.gaussian import gaussian_delta
from dfl_unlearn.accounting.journal import Journal, read_journal
from dfl_unlearn.accounting.mechanisms import Adjacency, Mechanism
from dfl_unlearn.accounting.outbox import Outbox
from dfl_unlearn.accounting.rdp import RdpCurve, curve_of
from dfl_unlearn.errors import (
    InvalidArgumentError,
    InvalidPrivacyParameterError,
    LedgerCorruptError,
    PrivacyBudgetExceededError,
    ReplayDivergedError,
)

__all__ = [
    "LedgerEntry",
    "LedgerRow",
    "Observer",
    "PrivacyBudget",
    "PrivacyLedger",
    "colluding",
]

_log = logging.getLogger(__name__)


class PrivacyLedger:
    """Accounts of what each observer could learn about each owner.

    In memory, or bound to a file whose lines are durable before a charge returns. The
    file is chained by hashes and only ever grows.

    Attributes:
        budget: What charges are checked against.
        filter_order: The one Rényi order that counts with adaptive costs, else None.
        outbox: Notes what is released before it is sent, or None.

    Example:
        >>> ledger = PrivacyLedger(PrivacyBudget(epsilon_max=1.0))
        >>> release = GaussianMechanism(noise_std=0.4, sensitivity=0.05)
        >>> entry = ledger.charge("r7", "peer:2", ("peer:0", "peer:3"), release)
        >>> round(ledger.epsilon("peer:2", "peer:0", 1e-5), 3)
        0.434
    """

    def __init__(
        self,
        budget: PrivacyBudget | None = None,
        path: Path | str | None = None,
        *,
        adaptive_costs: bool = False,
        filter_order: float | None = None,
    ) -> None:
        """Open an empty ledger.

        Args:
            budget: None is no cap, at delta 1e-5.
            path: A new file to bind it to, or None to keep it in memory.
            adaptive_costs: Whether the noise or rate of a release may be chosen after
                earlier outputs were seen. Then only a filter at one Rényi order is
                valid, and the budget must have ``epsilon_max``.
            filter_order: That order, one of ``DEFAULT_ORDERS``; None for the best one
                for the budget under a Gaussian.

        Raises:
            InvalidArgumentError: If a filter has no cap, or its order is not known.
        """
        self.budget = PrivacyBudget() if budget is None else budget
        self.filter_order = filter_order_for(self.budget, adaptive_costs, filter_order)
        self._lines: list[bytes] = []
        self._book = EntryBook()
        self._open: set[int] = set()  # places reserved here, not yet settled
        self._ahead: list[bytes] = []  # written by an attempt that was interrupted
        self._journal = None if path is None else Journal.create(Path(path), b"")
        self.outbox: Outbox | None = None

    @property
    def path(self) -> Path | None:
        """The file it is bound to, or None."""
        return None if self._journal is None else self._journal.path

    @property
    def entries(self) -> tuple[LedgerEntry, ...]:
        """All charges with their present state, oldest first."""
        return tuple(self._book.entries)

    @property
    def head(self) -> tuple[int, str]:
        """Number and SHA-256 of the last line; (-1, zeros) when empty."""
        if not self._lines:
            return -1, START
        return len(self._lines) - 1, sha256(self._lines[-1]).hexdigest()

    def charge(
        self,
        request_id: str,
        owner: str,
        observers: tuple[Observer, ...],
        mechanism: Mechanism,
        *,
        release_id: str | None = None,
        group_size: int | None = None,
        scope: Scope = "joint",
        status: str = "",
        assumptions: tuple[str, ...] = (),
        round: int = 0,
        noise_purpose: NoisePurpose = "unlearn-noise",
    ) -> LedgerEntry:
        """Reserve one release for one owner; durable when this returns.

        Args:
            request_id: The forget request it serves.
            owner: Whose forgetting is claimed, ``"peer:<i>"``; ``"*"`` for a release
                that is private for any one record.
            observers: Who will receive or can derive it.
            mechanism: The noise that is about to be drawn; of several sampled steps all
                of it.
            release_id: Names the released bytes; None for a new release. A known one
                is charged only to observers that did not have it.
            group_size: Forgotten records, or None if not disclosed.
            scope: Under ``joint`` and ``view_joint`` the budget also holds for all
                observers together.
            status: Status of the certificate that goes with it.
            assumptions: What the sensitivity rests on.
            round: Training round.
            noise_purpose: First field of the noise key; ``train-noise`` for training
                that is private by itself.

        Returns:
            The entry; ``entry.draw`` is the last field of its noise key.
        """
        return self.charge_owners(
            request_id,
            (owner,),
            observers,
            mechanism,
            release_id=release_id,
            group_size=group_size,
            scope=scope,
            status=status,
            assumptions=assumptions,
            round=round,
            noise_purpose=noise_purpose,
        )[0]

    def charge_owners(
        self,
        request_id: str,
        owners: tuple[str, ...],
        observers: tuple[Observer, ...],
        mechanism: Mechanism,
        *,
        release_id: str | None = None,
        group_size: int | None = None,
        scope: Scope = "joint",
        status: str = "",
        assumptions: tuple[str, ...] = (),
        round: int = 0,
        noise_purpose: NoisePurpose = "unlearn-noise",
    ) -> tuple[LedgerEntry, ...]:
        """Reserve one release that depends on several owners' data: all or nothing.

        Args:
            request_id: As in ``charge``.
            owners: Whose forgetting is claimed; the first names the noise stream.
            observers: As in ``charge``.
            mechanism: As in ``charge``; the one noise they share.
            release_id: As in ``charge``.
            group_size: As in ``charge``.
            scope: As in ``charge``.
            status: As in ``charge``.
            assumptions: As in ``charge``.
            round: As in ``charge``.
            noise_purpose: As in ``charge``.

        Returns:
            One entry per owner.

        Raises:
            PrivacyBudgetExceededError: If an account would pass its cap; nothing was
                written then.
            AdjacencyMismatchError: If an owner was charged under another relation.
            InvalidArgumentError: If an id is malformed, or a known release is charged
                with other noise.
        """
        if not owners or len(set(owners)) != len(owners):
            raise InvalidArgumentError(
                "owners: must be at least one, each named once, "
                f"got {_validate.show(owners)}"
            )
        check_owner(owner=owners[0])
        curve = curve_of(mechanism)
        old = self._book.of_release(release_id)
        noise_owner = old[0].noise_owner if old else owners[0]
        key = f"{noise_purpose}/{noise_owner}/{request_id}/{round}"
        draw = old[0].draw if old else self._book.draws(key)
        name = request_id if noise_purpose == "unlearn-noise" else f"{request_id}/train"
        name += "/all" if noise_owner == EVERYONE else f"/{noise_owner}"
        entries: list[LedgerEntry] = []
        new: list[LedgerEntry] = []
        for owner in owners:
            had = [e for e in old if e.owner == owner and e.noise_drawn]
            served = {one for entry in had for one in entry.observers}
            fresh = tuple(one for one in observers if one not in served)
            if had and not fresh:
                if had[0].mechanism != mechanism:
                    raise InvalidArgumentError(other_noise(had[0], mechanism))
                entries.append(had[0])
                continue
            entry = LedgerEntry(
                seq=len(self._lines) + len(new),
                round=round,
                request_id=request_id,
                release_id=release_id or f"{name}/{round}/{draw}",
                owner=owner,
                observers=fresh,
                scope=scope,
                mechanism=mechanism,
                curve=curve,
                noise_owner=noise_owner,
                noise_purpose=noise_purpose,
                draw=draw,
                group_size=group_size,
                status=status,
                assumptions=tuple(assumptions),
            )
            self._book.check(entry)
            self._check_budget(entry)
            entries.append(entry)
            new.append(entry)
        self._write(new)
        for entry in new:
            self._open.add(self._book.admit(entry))
        return tuple(entries)

    def commit(
        self, request_id: str, *, status: str | None = None
    ) -> tuple[LedgerEntry, ...]:
        """Note that the last message of a request left.

        Settles the reservations that this object made for the request; those of an
        attempt that crashed before it was loaded stay reserved.

        Args:
            request_id: The forget request.
            status: Of the certificate now that all was sent; None is what it was.

        Returns:
            The entries in their new state.
        """
        return self._settle(
            request_id, "committed", noise_drawn=True, note="", status=status
        )

    def abort(
        self, request_id: str, *, noise_drawn: bool = True, note: str = ""
    ) -> tuple[LedgerEntry, ...]:
        """Note that provably nothing of a request left the peer.

        Args:
            request_id: The forget request.
            noise_drawn: Only if False is the charge not counted any more.
            note: Why.

        Returns:
            The entries in their new state.
        """
        return self._settle(request_id, "aborted", noise_drawn=noise_drawn, note=note)

    def spent(self, owner: str, observer: Observer) -> RdpCurve:
        """Return the Rényi curve of everything an observer has seen of an owner.

        Args:
            owner: ``"peer:<i>"`` or ``"*"``.
            observer: A peer, a colluding set (the union of what its members saw, each
                release once), or ``"public"``.

        Returns:
            The sum over the distinct releases.
        """
        seen, all_own = self._seen(owner, observer), self._book.owned(owner)
        default: Adjacency = "add_remove" if owner == EVERYONE else "unlearn"
        relation = all_own[0].mechanism.adjacency if all_own else default
        return total_curve(seen, relation)

    def epsilon(self, owner: str, observer: Observer, delta: float) -> float:
        """Return the total epsilon of an account, rounded up.

        Plain Gaussian releases compose exactly; the Rényi bound holds too, and the
        smaller of both is returned. With any sampled or discrete release in the account
        it is the Rényi bound of all. With adaptive costs it is what the filter has
        counted at its order, see ``filter_order_for`` for what that says.

        Args:
            owner: ``"peer:<i>"`` or ``"*"``.
            observer: As in ``spent``.
            delta: Total delta, in [0, 1).

        Returns:
            Epsilon, at least 0.
        """
        return total_epsilon(
            self._seen(owner, observer), delta, order=self.filter_order
        )

    def public_epsilon(
        self, observer: Observer, delta: float, *, group_size: int = 1
    ) -> float | None:
        """Return what an observer could learn from account ``"*"`` of any few records.

        A request that was chosen after seeing released models is covered by the sum of
        this and its own epsilon, if *everything* released before was charged here.

        Args:
            observer: As in ``spent``.
            delta: Total delta, in [0, 1).
            group_size: Records of one peer that are forgotten together.

        Returns:
            Epsilon at ``delta`` for the group, infinite where nothing is proven; None
            if nothing was ever charged to ``"*"``.
        """
        if not self._book.owned(EVERYONE):
            return None
        seen = self._seen(EVERYONE, observer)
        return group_epsilon(seen, delta, group_size, order=self.filter_order)

    def remaining(self, owner: str, observer: Observer) -> float | None:
        """Return what is left of the epsilon budget, None without a cap.

        Args:
            owner: ``"peer:<i>"`` or ``"*"``.
            observer: As in ``spent``.

        Returns:
            The cap minus the total at the budget's delta, at least 0.
        """
        cap = self.budget.cap(owner, observer)
        if cap is None:
            return None
        return max(0.0, cap - self.epsilon(owner, observer, self.budget.delta_max))

    def table(
        self,
        *,
        owner: str | None = None,
        observer: Observer | None = None,
        delta: float | None = None,
        sent: Mapping[str, Mapping[int, int]] | None = None,
    ) -> tuple[LedgerRow, ...]:
        """Return every account: per owner each observer, all together, the public.

        Args:
            owner: Only this one's; None for all that were charged.
            observer: Only this one, a colluding set too; None for all.
            delta: Give epsilon at this total delta; None is the budget's.
            sent: Owner -> peer -> messages sent before any request, see
                ``engine.exposure.sent_before``; None leaves them out.

        Returns:
            Rows by owner and observer; observers together only where they have more
            than each alone.
        """
        if owner is not None:
            check_owner(owner=owner)
        if observer is not None:
            members(observer)
        if delta is not None:
            _validate.number(
                error=InvalidPrivacyParameterError, at_least=0, below=1, delta=delta
            )
        return tuple(
            row
            for one in sorted(self._book.owners, key=by_index)
            if owner in (None, one)
            for row in account_rows(
                one,
                self._book.owned(one),
                cap=partial(self.budget.cap, one),
                delta=self.budget.delta_max,
                order=self.filter_order,
                at=delta,
                observer=observer,
                sent=None if sent is None else sent.get(one, {}),
            )
        )

    def __str__(self) -> str:
        """Return the table as text; observers with equal accounts share a line."""
        return format_rows(self.table(), self.budget.delta_max)

    def fork(self, path: Path | str | None = None) -> "PrivacyLedger":
        """Return an independent copy; neither sees later charges of the other.

        Args:
            path: A new file for the copy, which then starts with the chain so far.

        Returns:
            The copy, in memory unless bound to ``path``.
        """
        copy = PrivacyLedger(
            self.budget,
            adaptive_costs=self.filter_order is not None,
            filter_order=self.filter_order,
        )
        copy._lines = list(self._lines)
        for entry in self._book.entries:
            copy._book.admit(entry)
        if path is not None:
            copy._journal = Journal.create(Path(path), self._text())
        return copy

    def again(self, path: Path | str) -> "PrivacyLedger":
        """Return a fork that goes through the charges of an earlier attempt again.

        Its file already holds them: whoever makes the same charges finds them there,
        line by line, and nothing is charged twice; others are refused.

        Args:
            path: The file of the earlier attempt, a fork of this ledger.

        Returns:
            The copy; ``ahead`` says how many lines are still to come.

        Raises:
            LedgerCorruptError: If the file was changed, or is of another ledger.
        """
        path = Path(path)
        content = read_journal(path)
        *lines, tail = content.split(b"\n")
        replay(lines, path.name)
        own = len(self._lines)
        if lines[:own] != self._lines[: len(lines)]:
            raise LedgerCorruptError(
                f"{path.name}: must begin with the {own} lines of the run's ledger, "
                "got others; the attempt is of another run or was made before a commit"
            )
        if len(lines) < own:
            path.unlink()  # killed while it was made, nothing was charged in it
            return self.fork(path)
        copy = self.fork()
        copy._ahead = lines[own:]
        size = len(content) - len(tail)
        copy._journal = Journal(path, size=size, torn=len(tail))
        return copy

    def rewound(self, lines: int) -> "PrivacyLedger":
        """Return a copy in memory that goes through the last charges again.

        Args:
            lines: How many of the first lines it begins with.

        Returns:
            The copy; the lines after them are ``ahead``: whoever makes the same charges
            finds them, others are refused.
        """
        copy = PrivacyLedger(
            self.budget,
            adaptive_costs=self.filter_order is not None,
            filter_order=self.filter_order,
        )
        copy._lines, copy._ahead = self._lines[:lines], self._lines[lines:]
        copy._book = replay(copy._lines, "ledger")
        return copy

    @property
    def ahead(self) -> int:
        """Lines of an earlier attempt that were not charged again yet."""
        return len(self._ahead)

    def save(self, path: Path | str) -> None:
        """Write the chain to a new file; this ledger stays bound to where it was.

        Args:
            path: Must not exist yet.
        """
        Journal.create(Path(path), self._text())

    def merge(self, other: "PrivacyLedger") -> "PrivacyLedger":
        """Return the charges of two ledgers as one, each release once.

        What both have under one name, stream and mechanism is taken for the same
        released bytes. The budget is this ledger's and is not checked: what was
        released is written down.

        Args:
            other: A fork of the same ledger, or one of other requests.

        Returns:
            A copy of this ledger in memory, with what only the other had after it; in
            doubt a release counts.

        Raises:
            InvalidArgumentError: If a release has another mechanism or stream in the
                other ledger, or a noise stream serves another release there.
            AdjacencyMismatchError: If an owner was charged under another relation.
        """
        both = self.fork()
        for entry in other.entries:
            both._book.check(entry)
            known = both._book.of_release(entry.release_id)
            own = [old for old in known if old.owner == entry.owner]
            if any(old.curve != entry.curve for old in own):
                raise InvalidArgumentError(
                    f"other: must have the same curve for release {entry.release_id}, "
                    "got another one; one of the ledgers is about another run"
                )
            counted = [old for old in own if old.noise_drawn or not entry.noise_drawn]
            had = {one for old in counted for one in old.observers}
            fresh = tuple(one for one in entry.observers if one not in had)
            if not fresh:
                continue
            new = replace(entry, seq=len(both._lines), observers=fresh)
            first = replace(new, state="reserved", noise_drawn=True, note="")
            both._write([first] if new.state == "reserved" else [first, new])
            both._book.admit(new)
        return both

    @classmethod
    def load(
        cls,
        path: Path | str,
        budget: PrivacyBudget | None = None,
        *,
        expected_head: tuple[int, str] | None = None,
        adaptive_costs: bool = False,
        filter_order: float | None = None,
    ) -> "PrivacyLedger":
        """Read and check a ledger file, and continue it.

        A last line that was cut short is left out and removed by the next charge: its
        write never returned, so no noise was drawn for it.

        Args:
            path: Written by a bound ledger, ``fork`` or ``save``.
            budget: As in the constructor; the file does not hold it.
            expected_head: ``head`` as it was noted elsewhere at an earlier time; the
                file must hold that line and may go on after it. None if nothing is
                known: whole lines missing at the end are not noticed then.
            adaptive_costs: As in the constructor.
            filter_order: As in the constructor.

        Returns:
            The ledger, bound to the file.

        Raises:
            LedgerCorruptError: If a line was changed, removed from the middle or
                moved, or the expected one is not there; names the line.
            LedgerFormatError: If an intact line is not of format 1.
        """
        path = Path(path)
        content = read_journal(path)
        *lines, tail = content.split(b"\n")
        ledger = cls(budget, adaptive_costs=adaptive_costs, filter_order=filter_order)
        ledger._book, ledger._lines = replay(lines, path.name), lines
        if expected_head is not None:
            check_head(lines, expected_head, path.name)
        if looks_complete(tail):
            raise LedgerCorruptError(
                f"{path.name} line {len(lines) + 1}: must end after its checksum, got "
                "more; the line was changed, restore the file from a copy"
            )
        if tail:
            _log.warning(
                "%s: the last line was cut short while it was written (%d bytes); it "
                "is left out, nothing was released for it",
                path.name,
                len(tail),
            )
        size = len(content) - len(tail)
        ledger._journal = Journal(path, size=size, torn=len(tail))
        return ledger

    def verify(self) -> tuple[int, str]:
        """Check the whole chain again, and the file against memory if there is one.

        Returns:
            The head.

        Raises:
            LedgerCorruptError: If the file does not hold this ledger's lines.
        """
        name = "ledger" if self.path is None else self.path.name
        replay(self._lines, name)
        if self.path is not None:
            lines = read_journal(self.path).split(b"\n")
            for at, line in enumerate(self._lines):
                if lines[at : at + 1] != [line]:
                    raise LedgerCorruptError(
                        f"{name} line {at + 1}: must be the line that was written, got "
                        "another; the file was changed, restore it from a copy"
                    )
        return self.head

    def _seen(self, owner: str, observer: Observer) -> list[LedgerEntry]:
        check_owner(owner=owner)
        members(observer)
        return seen_by(self._book.owned(owner), observer)

    def _check_budget(self, new: LedgerEntry) -> None:
        """Check that every account the new entry touches stays within its cap.

        That is also the account of who was named before, or has a cap of its own, and
        sees the release without being named now, as everybody sees a public one.

        Raises:
            PrivacyBudgetExceededError: If one would not.
        """
        delta = self.budget.delta_max
        if self.budget.cap(new.owner) is None and not self.budget.per_observer:
            return
        after = [*self._book.owned(new.owner), new]
        union = together(after) if new.scope in ("joint", "view_joint") else None
        audiences = {entry.observers for entry in after}
        known = {one for some in audiences for one in some} | {
            *self.budget.per_observer
        }
        others = (one for one in sorted(known - {*new.observers}) if new.seen_by(one))
        accounts = (*new.observers, *others, *([] if union is None else [union]))
        checked = set()
        for one, seen in views(after, accounts).items():
            cap = self.budget.cap(new.owner, one)
            if cap is None or (id(seen), cap) in checked:
                continue
            checked.add((id(seen), cap))
            # The cap itself is tested, not a rounded-up epsilon against it: a release
            # calibrated to exactly the cap must fit.
            mu = total_mu(seen) if self.filter_order is None else None
            if mu is not None and gaussian_delta(mu, cap) <= delta:
                continue
            total = total_epsilon(seen, delta, order=self.filter_order)
            if total > cap:
                spent = round_up(self.epsilon(new.owner, one, delta), 4)
                raise PrivacyBudgetExceededError(
                    f"request {new.request_id} needs ε={round_up(total, 4):g} in total "
                    f"at δ={delta:g} for owner {new.owner} and observer {one[:80]}, "
                    f"budget {cap:g} (spent {spent:g}). Nothing was sent; retrain "
                    "instead, or start a run with a larger budget"
                )

    def _settle(
        self,
        request_id: str,
        state: EntryState,
        *,
        noise_drawn: bool,
        note: str,
        status: str | None = None,
    ) -> tuple[LedgerEntry, ...]:
        places = [
            at
            for at in sorted(self._open)
            if self._book.entries[at].request_id == request_id
        ]
        if not places:
            raise InvalidArgumentError(
                "request_id: must have a reservation made by this ledger that is not "
                f"settled yet, got {_validate.show(request_id)}"
            )
        settled = [
            replace(
                self._book.entries[at],
                state=state,
                noise_drawn=noise_drawn,
                note=note,
                status=self._book.entries[at].status if status is None else status,
            )
            for at in places
        ]
        self._write(settled)
        for at, entry in zip(places, settled, strict=True):
            self._book.entries[at] = entry
        self._open.difference_update(places)
        return tuple(settled)

    def _write(self, entries: Iterable[LedgerEntry]) -> None:
        seq, prev = self.head
        lines = []
        for entry in entries:
            seq += 1
            lines.append(encode(entry, seq, prev))
            prev = sha256(lines[-1]).hexdigest()
        known = self._ahead[: len(lines)]
        if known != lines[: len(known)]:
            name = "ledger" if self.path is None else self.path.name
            raise ReplayDivergedError(
                f"{name} line {len(self._lines) + 1}: must be charged as in the "
                "attempt before, got another charge; nothing was sent: use the version "
                "that began it, or ask again under another request_id"
            )
        new = lines[len(known) :]
        if self._journal is not None and new:
            self._journal.append(b"".join(line + b"\n" for line in new))
        del self._ahead[: len(known)]
        self._lines.extend(lines)

    def _text(self) -> bytes:
        return b"".join(line + b"\n" for line in self._lines)
