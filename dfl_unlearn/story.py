"""The result of a run as lines of text, for a terminal."""

from collections.abc import Sequence

from dfl_unlearn._stats import round_up
from dfl_unlearn.engine.influence import best_influence
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.results.view import ResultsView
from dfl_unlearn.store.table import NETWORK, ResultsTable
from dfl_unlearn.unlearning.contracts import Outcome

_ROUNDS = (1, 2, 4, 8, 16, 64)


def training_lines(trained: TrainedRun) -> list[str]:
    """Return how training went, in one line."""
    history = trained.history
    assert history is not None
    last = history.accuracy[-1]
    word = "test accuracy" if trained.data.num_classes else "minus test error"
    return [
        f"TRAINED  {trained.topology.n} peers, {trained.state.round} rounds, "
        f"{trained.info['seconds']:.2f} s: {word} {last.mean():.4f} "
        f"(worst peer {last.min():.4f}), digest {trained.digest[:16]}"
    ]


def influence_lines(trained: TrainedRun, source: int) -> list[str]:
    """Return a peer's influence by hop and round; nothing without a record."""
    if trained.record is None:
        return []
    trace = best_influence(trained, source)
    shares, spread = trace.by_hop(), trace.effective_spread()
    rounds = len(trace.rounds)
    chosen = sorted({min(r, rounds) for r in (*_ROUNDS, rounds)})
    how = trace.mode.replace("_", " ")
    lines = [
        f"INFLUENCE  of peer {source}, mean share per peer by hop ({how})",
        "  hop " + "".join(f"{f'round {r}':>11}" for r in chosen),
    ]
    for hop in range(shares.shape[1]):
        cells = "".join(f"{shares[r - 1, hop]:>11.2%}" for r in chosen)
        lines.append(f"  {hop:>3} {cells}")
    on = "".join(f"{f'{spread[r - 1]:.1f} peers':>11}" for r in chosen)
    return [*lines, f"  on  {on}"]


def comparison_lines(
    outcomes: Sequence[Outcome], tables: Sequence[ResultsTable]
) -> list[str]:
    """Return the protocols side by side, before and retrained first.

    Args:
        outcomes: Of one request.
        tables: One table of metrics per outcome.

    Returns:
        One line per protocol below three of heading.
    """
    request = outcomes[0].request
    rows = request.size(outcomes[0].run.data)
    lines = [
        f"FORGOTTEN  {rows} rows ({request.kind}) of peer "
        f"{', '.join(map(str, request.peers))}; mean over peers"
    ]
    score = "accuracy" if outcomes[0].run.data.num_classes else "mse"
    heads = ("test", "retain", "forget")
    labels = ResultsView.of(outcomes).labels
    width = max(15, *(len(label) + 1 for label in labels))
    lines.append(
        f"  {'protocol':<{width}}{'claim':<24}"
        + "".join(f"{h:>9}" for h in heads)
        + f"{'gradients':>12}{'messages':>10}{'seconds':>9}"
        + f"{'simulated':>11}"
    )
    first = _means(tables[0])
    for label, world in (("(before)", "before"), ("(retrained)", "reference")):
        cells = [first.get((f"{h}-{score}", world)) for h in heads]
        if any(c is not None for c in cells):
            lines.append(f"  {label:<{width}}{'':<24}" + "".join(map(_cell, cells)))
    for name, outcome, table in zip(labels, outcomes, tables, strict=True):
        means = _means(table)
        cells = [means.get((f"{h}-{score}", "after")) for h in heads]
        claim = "none"
        if outcome.certificate is not None:
            claim = outcome.certificate.status
            if outcome.certificate.epsilon:
                claim += f" eps={round_up(outcome.certificate.epsilon):g}"
        if outcome.status == "incomplete" and claim != "pending":
            claim += ", incomplete"
        cost = outcome.cost
        lines.append(
            f"  {name:<{width}}{claim:<24}"
            + "".join(map(_cell, cells))
            + f"{cost.gradient_evaluations:>12,}{cost.messages:>10,}"
            + f"{cost.wall_seconds:>9.2f}{cost.simulated_seconds:>11.2f}"
        )
    return lines


def _means(table: ResultsTable) -> dict[tuple[str, str], float]:
    return {
        (row["metric"], row["world"]): row["value"]
        for row in table.rows
        if row["peer"] == NETWORK
    }


def _cell(value: float | None) -> str:
    return f"{'-' if value is None else f'{value:.4f}':>9}"
