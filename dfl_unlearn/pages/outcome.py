"""What was asked, what came of it in one sentence, and in numbers."""

from dfl_unlearn import _html as h
from dfl_unlearn._html import Html
from dfl_unlearn._stats import round_up
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.pages import wording
from dfl_unlearn.results.view import ResultsView
from dfl_unlearn.store.table import Summary

_COSTS = "cost-"  # in the table of protocols


def result(view: ResultsView) -> Html:
    """Return the result in one sentence."""
    if not view.outcomes:
        lead = (
            f"{view.topology.n} peers trained for {view.run.config.rounds} rounds; "
            "nothing has been forgotten yet."
        )
        return h.join(
            h.tag("h1", wording.run_name(view)), h.tag("p", lead, class_="lead")
        )
    outcome, label = view.outcomes[0], view.labels[0]
    certificate = outcome.certificate
    size = outcome.request.size(view.run.data)
    claim = wording.status(certificate)
    whose = wording.owners(outcome)
    words = [
        f"Forgetting {size:,} record{'' if size == 1 else 's'} of {whose} "
        f"by {label} is "
    ]
    if certificate is None:
        words = [words[0].removesuffix("is "), "comes without a claim"]
    elif certificate.epsilon is not None and certificate.status != "exact":
        words += [
            f"{wording.CLAIMS[claim]} at ε = {round_up(certificate.epsilon):g}, "
            f"δ = {round_up(certificate.delta or 0.0):g} ({certificate.scope})"
        ]
    else:
        words += [wording.CLAIMS[claim]]
    words += [_accuracy_words(view)]
    owner = f"{whose}'" if whose.endswith("s") else f"{whose}'s"
    return h.join(
        h.tag("h1", f"Forgetting {owner} data", wording.badge(claim)),
        h.tag("p", "".join(words), class_="lead"),
    )


def question(view: ResultsView) -> Html:
    """Return what was to be forgotten, where, and compared with what."""
    if not view.outcomes:
        return Html()
    parts = []
    shown = set()
    for outcome in view.outcomes:
        request = outcome.request
        if request.request_id in shown:
            continue
        shown.add(request.request_id)
        if request.is_nothing:
            parts.append(h.tag("p", "No request: the network is as it was trained."))
            continue
        size, held = request.size(view.run.data), view.run.data.retained
        owned = int(held[list(request.peers)].sum())
        facts: list[tuple[str, object]] = [
            ("Request", request.request_id),
            ("Forget", wording.what_goes(outcome)),
            (
                "Records",
                f"{size:,} of the {owned:,} held there ({100 * size / owned:.1f} %)",
            ),
            ("Requester", _requester(request, view.topology.n)),
            (
                "Compared with",
                "retraining on what is left, each peer's loss averaged over "
                + (
                    "its remaining records"
                    if request.normalization == "local_mean"
                    else "its original number of records"
                ),
            ),
        ]
        if request.coalesced:
            facts.append(
                (
                    "Coalesced",
                    f"{len(request.coalesced)} requests as one: "
                    + wording.several(request.coalesced),
                )
            )
        if request.adaptive:
            facts.append(("Chosen", "after seeing released models"))
        if request.reason:
            facts.append(("Reason", request.reason))
        parts.append(h.facts(facts))
    names = ", ".join(view.labels)
    return h.section("What was asked", *parts, h.tag("p", f"Carried out by: {names}."))


def _requester(request: ForgetRequest, n: int) -> str:
    many = len(request.peers)
    if many == 1:
        return f"peer {request.requester} of {n}"
    return (
        f"{many} of {n} peers; figures of influence are about peer {request.requester}"
    )


def measured(view: ResultsView) -> Html:
    """Return the metrics before, after and of the retrained network."""
    if not view.outcomes:
        return Html()
    head = ("metric", "on", "before", "after", "retrained", "worst peer", "spread", "")
    tables = [
        h.table(
            f"{label}: mean over peers; spread is the standard deviation over peers",
            head,
            [
                _summary_cells(line)
                for line in table.summary()
                if not line.metric.startswith(_COSTS)
            ],
            frozenset(range(2, 7)),
        )
        for label, table in zip(view.labels, view.tables, strict=True)
    ]
    return h.section("Before, after, retrained", *tables)


def _summary_cells(line: Summary) -> tuple[object, ...]:
    # An area under a curve is a fraction, but nobody reads it in percent.
    unit = "" if line.metric.endswith("-auc") else line.unit
    worst = wording.number(line.worst, unit)
    if line.worst_peer is not None:
        worst += f" (peer {line.worst_peer})"
    said = "" if unit == "fraction" else unit
    return (
        line.metric,
        line.set,
        wording.number(line.before, unit),
        wording.number(line.after, unit),
        wording.number(line.reference, unit),
        worst,
        wording.number(line.spread, unit),
        "; ".join(word for word in (said, line.note) if word),
    )


def _accuracy_words(view: ResultsView) -> str:
    """Return the end of the first sentence: the test score now and if retrained."""
    for line in view.tables[0].summary():
        if line.metric in ("test-accuracy", "test-mse") and line.after is not None:
            what = "mean test accuracy" if line.unit == "fraction" else line.metric
            text = f"; {what} is {wording.number(line.after, line.unit)}"
            if line.before is not None:
                text += f" (before: {wording.number(line.before, line.unit)}"
                if line.reference is not None:
                    text += f", retrained: {wording.number(line.reference, line.unit)}"
                text += ")"
            return text + "."
    return "."
