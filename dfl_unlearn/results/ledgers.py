"""The ledgers of a run folder: what was committed, and what each trial would cost."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfl_unlearn.accounting.accounts import LedgerRow
from dfl_unlearn.accounting.entries import Observer
from dfl_unlearn.accounting.ledger import PrivacyLedger
from dfl_unlearn.engine.exposure import sent_before
from dfl_unlearn.engine.stored import LEDGER, noted_head, read_network, read_state
from dfl_unlearn.errors import CorruptStateError, DflUnlearnError
from dfl_unlearn.store.folder import RunFolder
from dfl_unlearn.store.understood import understood
from dfl_unlearn.unlearning.contracts import label_of
from dfl_unlearn.unlearning.forms import protocol_of

COMMITTED = "run"
"""Title of the run's own ledger; a trial's is the name of its folder."""


@dataclass(frozen=True, kw_only=True)
class RunLedgers:
    """All ledgers of a run folder, by title.

    Attributes:
        folder: The run folder.
        places: Title -> path inside the folder, the run's own first.
    """

    folder: RunFolder
    places: dict[str, str]

    @classmethod
    def of(cls, path: str | Path) -> "RunLedgers":
        """Find the ledgers of a run folder; nothing is read yet.

        Args:
            path: The run folder.

        Returns:
            The ledgers, trials in alphabetical order.
        """
        folder = RunFolder(path)
        places = {COMMITTED: LEDGER}
        for place in sorted(folder.path("outcomes").glob(f"*/{LEDGER}")):
            name = place.parent.name
            places[name] = f"outcomes/{name}/{LEDGER}"
        return cls(folder=folder, places=places)

    def what(self, title: str) -> str:
        """Return what a ledger is about, in words."""
        if title == COMMITTED:
            return "committed in this run"
        shown = title + self._label(title)
        return f"outcome {shown}, committed" if self._done(title) else f"trial {shown}"

    def _label(self, title: str) -> str:
        """Return what tables call an outcome's protocol, where its folder does not."""
        place = f"outcomes/{title}/outcome.json"
        if not self.folder.path(place).is_file():
            return ""
        try:
            with understood(self.folder.path(place)):
                label = label_of(protocol_of(self.folder.read_json(place)["protocol"]))
        except DflUnlearnError:  # a protocol of a package that is not here
            return ""
        return "" if f".{label}" in title else f" ({label})"

    def _done(self, title: str) -> bool:
        """Tell whether an outcome's request was committed, and its charges with it."""
        place = f"outcomes/{title}/request.json"
        if not self.folder.path(place).is_file():
            return False
        past = read_state(self.folder)[0].get("carried_out", ())
        with understood(self.folder.path(place)):
            name = self.folder.read_json(place)["request_id"]
            if name not in [one["request"] for one in past]:
                return False
        own = self.folder.path(self.places[title]).read_bytes()
        return self.folder.path(LEDGER).read_bytes().startswith(own)

    def verify(self) -> dict[str, dict[str, Any]]:
        """Check the chain of hashes of every ledger, and that none has lost lines.

        Returns:
            Title -> number of entries and the head's hash.
        """
        heads = {}
        for title in self.places:
            seq, head = self._load(title).verify()
            heads[title] = {"entries": seq + 1, "head": head}
        return heads

    def rows(
        self,
        *,
        owner: str | None = None,
        observer: Observer | None = None,
        delta: float | None = None,
    ) -> dict[str, tuple[LedgerRow, ...]]:
        """Return the accounts of every ledger under the run's budget.

        Args:
            owner: Only this one's.
            observer: Only this one, a colluding set too.
            delta: Give epsilon at this total delta; None is the budget's.

        Returns:
            Title -> rows, with the messages that were sent before any request.
        """
        topology, config, round = read_network(self.folder.root)
        rounds = min(round, config.rounds)
        found = {}
        for title in self.places:
            book = self._load(title)
            book.budget = config.privacy_budget
            owners = {entry.owner for entry in book.entries}
            with understood(f"{self.folder.root}/{self.places[title]}"):
                sent = sent_before(topology, owners, rounds)
            found[title] = book.table(
                owner=owner, observer=observer, delta=delta, sent=sent
            )
        return found

    def _load(self, title: str) -> PrivacyLedger:
        """Return a ledger, read from its file.

        Raises:
            CorruptStateError: If it is damaged; names the file in the run folder.
        """
        place = self.places[title]
        noted = None
        with understood(f"{self.folder.root}: what notes the ledger of {title}"):
            if title == COMMITTED:
                noted = noted_head(read_state(self.folder)[0])
            elif self.folder.path(f"outcomes/{title}/outcome.json").is_file():
                outcome = self.folder.read_json(f"outcomes/{title}/outcome.json")
                noted = noted_head(outcome)
        try:
            return PrivacyLedger.load(self.folder.path(place), expected_head=noted)
        except CorruptStateError as error:
            within = place.removesuffix(LEDGER)
            raise type(error)(f"{self.folder.root}/{within}{error}") from error
