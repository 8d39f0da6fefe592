"""A run as TensorBoard shows it: curves of training, metrics of forgetting."""

from pathlib import Path
from typing import Any

import numpy as np

from dfl_unlearn import _validate
from dfl_unlearn.accounting.certificate import Certificate
from dfl_unlearn.engine.backends.contract import RoundInfo
from dfl_unlearn.engine.run import History, TrainedRun
from dfl_unlearn.errors import DependencyError
from dfl_unlearn.store.table import NETWORK, WORLDS, ResultsTable


class TensorBoard:
    """A callback that writes event files; ``tensorboard --logdir FOLDER`` shows them.

    It reads and changes nothing, so a watched run has the digest of an unwatched one.
    Steps are rounds. A run that is gone on with takes its curves up where it goes on;
    events of later rounds, which a kill left behind, are not shown. Every round that is
    written is on disk before the next one begins, so a kill leaves no gap.

    Scalars of training are ``loss/mean``, ``loss/worst``, ``loss/spread`` (largest
    minus smallest batch loss over peers), ``time/seconds`` (of one round),
    ``faults/<kind>`` (counts), and at evaluated rounds ``test-score/mean``,
    ``test-score/worst`` and ``consensus/distance``.

    Example:
        >>> from dfl_unlearn.engine.tracking import TensorBoard
        >>> board = TensorBoard("runs/board")
        >>> simulate("ring", data, "logistic", callbacks=[board])  # doctest: +SKIP
    """

    def __init__(self, folder: str | Path, every: int = 1) -> None:
        """Prepare the callback; nothing is written before the first round.

        Args:
            folder: Takes the event files; made when needed.
            every: Rounds between two points of the curves of ``on_round``, >= 1.

        Raises:
            DependencyError: If the package tensorboard is not installed.
        """
        _validate.integer(every=every, at_least=1)
        check_installed()
        self._folder = Path(folder)
        self._every = every
        self._writer: Any = None

    def on_round(self, info: RoundInfo) -> None:
        """Write loss over peers, time and faults of a round."""
        writer = self._training(info.round)
        if info.round % self._every:
            return
        scalars = {
            "loss/mean": info.loss.mean(),
            "loss/worst": info.loss.max(),
            "loss/spread": np.ptp(info.loss),
            "time/seconds": info.seconds,
        }
        scalars |= {f"faults/{kind}": count for kind, count in info.faults.items()}
        _write(writer, scalars, info.round)

    def on_evaluate(self, history: History) -> None:
        """Write test scores over peers and the consensus distance of the last round."""
        done = int(history.rounds[-1])
        scores = history.accuracy[-1]
        scalars = {
            "test-score/mean": scores.mean(),
            "test-score/worst": scores.min(),
            "consensus/distance": history.consensus[-1],
        }
        _write(self._training(done), scalars, done)

    def on_end(self, run: TrainedRun) -> None:
        """Close the event file of training."""
        self.close()

    def close(self) -> None:
        """Close the event file of training; a further round opens another one."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def on_forgotten(
        self, label: str, table: ResultsTable, certificate: Certificate | None
    ) -> None:
        """Write what a protocol did; a second call with the label replaces the first.

        The metrics of the whole network, and means over peers of the others, go to
        ``forgetting/<label>/before``, ``after`` and ``reference`` in the folder. Each
        is a run of its own in TensorBoard, so that a metric's values share a chart.
        ``after`` holds the claimed epsilon and the certificate's text too.

        Args:
            label: Names the outcome, e.g. one of ``ResultsView.labels``.
            table: What ``evaluate`` returned.
            certificate: The outcome's claim, or None.
        """
        for world in WORLDS:
            scalars = _means(table, world)
            texts = {}
            if world == "after":
                epsilon = None if certificate is None else certificate.epsilon
                if epsilon is not None:
                    scalars["certificate/epsilon"] = epsilon
                texts["certificate"] = str(certificate or "no claim")
            if not scalars and not texts:
                continue
            place = self._folder / "forgetting" / _file_name(label) / world
            for old in place.glob("events.out.tfevents.*"):
                old.unlink()  # purging hides scalars only, not the certificate's text
            writer = _writer(place, purge_step=0)
            for name, text in texts.items():
                writer.add_text(name, f"```\n{text}\n```", 0)
            _write(writer, scalars, 0)
            writer.close()

    def _training(self, done: int) -> Any:
        if self._writer is None:
            self._writer = _writer(self._folder / "training", purge_step=done)
        return self._writer


def check_installed() -> None:
    """Refuse to go on without the package tensorboard.

    Raises:
        DependencyError: If it is not installed; names the command that installs it.
    """
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise DependencyError(
            f"tensorboard: must be installed to write event files, got {error}; "
            "pip install 'dfl-unlearn[tensorboard]'"
        ) from error


def _writer(folder: Path, *, purge_step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=purge_step)


def _write(writer: Any, scalars: dict[str, Any], step: int) -> None:
    for name, value in scalars.items():
        writer.add_scalar(name, float(value), step)
    writer.flush()


def _means(table: ResultsTable, world: str) -> dict[str, Any]:
    """Return one value per metric and set: the network's, else the mean over peers."""
    network: dict[str, float] = {}
    peers: dict[str, list[float]] = {}
    for row in table.rows:
        if row["world"] != world:
            continue
        name = "/".join(filter(None, (row["metric"], row["set"])))
        if row["peer"] == NETWORK:
            network[name] = row["value"]
        else:
            peers.setdefault(name, []).append(row["value"])
    return {name: np.mean(values) for name, values in peers.items()} | network


def _file_name(label: str) -> str:
    """Return a label as the name of a folder."""
    return "".join(c if c.isalnum() or c in "-_.=" else "_" for c in label).strip(".")
