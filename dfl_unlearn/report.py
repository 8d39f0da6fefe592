"""One self-contained page about a run: no script, no request to anything outside.

The order is that of contracts.md §15: result, question, certificate, influence,
training, figures before and after, methods, limits, settings. Sections without content
are left out. Every text passes through ``_html``, which escapes it.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import dfl_unlearn
from dfl_unlearn import _html as h
from dfl_unlearn._html import Html
from dfl_unlearn._stats import round_up
from dfl_unlearn.accounting.certificate import (
    CLAIMED,
    Assumption,
    Certificate,
    not_covered,
)
from dfl_unlearn.accounting.entries import NoiseMode
from dfl_unlearn.engine.exposure import Sent, sent_before
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.errors import MissingInputError
from dfl_unlearn.evaluation.audit_store import load_audits
from dfl_unlearn.pages.document import document
from dfl_unlearn.plots import draw, plots, render
from dfl_unlearn.results.view import ResultsView
from dfl_unlearn.store.files import write_file, writing
from dfl_unlearn.store.table import Summary
from dfl_unlearn.unlearning.claims import training_rounds
from dfl_unlearn.unlearning.contracts import Outcome

_DPI = 200
_PIXELS_PER_INCH = 115  # a figure of full width then fills the page
_COSTS = "cost-"  # in the table of protocols
_CLAIMS = {
    "exact": "exact",
    "certified": "certified",
    "certified_conditional": "certified, conditional",
    "heuristic": "heuristic",
    "pending": "pending",
    "none": "no claim",
}
_MEANING = {
    "exact": "The result is distributed exactly as if the data had never been there.",
    "certified": "Every constant behind the claim is proven, enforced, or measured "
    "against a public cap.",
    "certified_conditional": "The claim holds if the assumptions marked below hold; "
    "this program could not prove them.",
    "heuristic": "This is not a guarantee: the numbers below are what would hold if "
    "the stated reasons did not stand against it.",
    "pending": "Some peers have not been corrected yet; nothing is claimed so far.",
    "none": "This protocol makes no claim. What it achieves can only be measured.",
}
_SCOPES = {
    "release": "an observer who sees one peer's final model",
    "joint": "an observer who sees the final models of all peers together",
    "view": "one peer that is no owner, with every message it saw",
    "view_joint": "all peers but the owners together, with every message they saw",
    "transcript": "all other peers together, as far as the walk itself goes",
}
_VERDICTS = {
    "consistent": "Nothing contradicts the claim, and releases that were broken on "
    "purpose were refuted.",
    "refuted": "The claim is wrong: the releases are told apart better than it allows, "
    "or their noise or shift is not as stated.",
    "powerless": "This audit is too small to contradict the claim and says nothing.",
    "invalid": "This audit did not refute what was broken on purpose and says nothing.",
}
# Beside what every certificate says of itself.
_LIMITS = (
    "verification by outsiders: models and logs alone cannot prove that unlearning was "
    "executed; the certificate is about the algorithm as this program ran it",
    "side channels: timing, traffic, and the fact that a request took place",
    "membership scores are indicators, not proofs; they mean something only beside "
    "the retrained network's",
)


def write_report(
    source: Outcome | Sequence[Outcome] | TrainedRun | ResultsView, path: str | Path
) -> Path:
    """Write one HTML page with figures inside, whole or not at all.

    Args:
        source: An outcome, several outcomes of one run, a run alone, or a view.
        path: The file, e.g. ``"report.html"``; its folder is made.

    Returns:
        The path.
    """
    path = Path(path)
    page = report_page(ResultsView.of(source))
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, page.encode())
    return path


def report_page(view: ResultsView) -> str:
    """Return the page as text.

    Args:
        view: What to report on.

    Returns:
        A whole HTML document.
    """
    title = f"dfl_unlearn: {_run_name(view)}"
    sections = (
        _result(view),
        _question(view),
        _claims(view),
        _influence(view),
        _training(view),
        _measured(view),
        _methods(view),
        _dilution(view),
        _audits(view),
        _limits(view),
        _settings(view),
    )
    return document(title, h.join(*sections, between="\n"))


def _figure(view: ResultsView, name: str) -> Html:
    """Return a registered plot as an embedded picture; nothing if it has no input."""
    try:
        figure = draw(name, view)
    except MissingInputError:
        return Html()
    caption = " ".join((plots.get(name).__doc__ or name).split("Args:")[0].split())
    data = base64.b64encode(render(figure, "png", _DPI)).decode()
    picture = h.image(
        f"data:image/png;base64,{data}",
        alt=caption,
        width=round(_PIXELS_PER_INCH * figure.get_size_inches()[0]),
    )
    return h.tag("figure", picture, h.tag("figcaption", caption))


# --- sections, in the order of the page ----------------------------------------------


def _result(view: ResultsView) -> Html:
    if not view.outcomes:
        lead = (
            f"{view.topology.n} peers trained for {view.run.config.rounds} rounds; "
            "nothing has been forgotten yet."
        )
        return h.join(h.tag("h1", _run_name(view)), h.tag("p", lead, class_="lead"))
    outcome, label = view.outcomes[0], view.labels[0]
    certificate = outcome.certificate
    size = outcome.request.size(view.run.data)
    claim = _status(certificate)
    words = [
        f"Forgetting {size:,} record{'' if size == 1 else 's'} of {_owners(outcome)} "
        f"by {label} is "
    ]
    if certificate is None:
        words = [words[0].removesuffix("is "), "comes without a claim"]
    elif certificate.epsilon is not None and certificate.status != "exact":
        words += [
            f"{_CLAIMS[claim]} at ε = {round_up(certificate.epsilon):g}, "
            f"δ = {round_up(certificate.delta or 0.0):g} ({certificate.scope})"
        ]
    else:
        words += [_CLAIMS[claim]]
    words += [_accuracy_words(view)]
    return h.join(
        h.tag("h1", f"Forgetting {_owners(outcome)}'s data", _badge(claim)),
        h.tag("p", "".join(words), class_="lead"),
    )


def _question(view: ResultsView) -> Html:
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
            ("Forget", _what(outcome)),
            (
                "Records",
                f"{size:,} of the {owned:,} held there ({100 * size / owned:.1f} %)",
            ),
            ("Requester", f"peer {request.requester} of {view.topology.n}"),
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
                    + _several(request.coalesced),
                )
            )
        if request.adaptive:
            facts.append(("Chosen", "after seeing released models"))
        if request.reason:
            facts.append(("Reason", request.reason))
        parts.append(h.facts(facts))
    names = ", ".join(view.labels)
    return h.section("What was asked", *parts, h.tag("p", f"Carried out by: {names}."))


def _claims(view: ResultsView) -> Html:
    if not view.outcomes:
        return Html()
    blocks = [
        _claim(label, outcome)
        for label, outcome in zip(view.labels, view.outcomes, strict=True)
    ]
    return h.section("What is guaranteed", *blocks)


def _influence(view: ResultsView) -> Html:
    trace = view.influence()
    spread = trace.effective_spread()[-1]
    words = (
        f"When training ended, the influence of peer {trace.source}'s data was spread "
        f"over {spread:.1f} of {view.topology.n} peers; its distance to an even spread "
        f"was {trace.distance_to_uniform()[-1]:.3g} (0 is even, 1 is one place). "
    )
    words += {
        "exact": "Shares are norms of the exact derivative of each model in the weight "
        "of that data: what a small change does, not what leaving all of it out does.",
        "norm_bound": "Shares are norm bounds on the sensitivity of each model to that "
        "data.",
        "mixing_power": "Shares follow the mixing matrix alone: for this training no "
        "bound on the sensitivity itself is at hand.",
    }[trace.mode]
    return h.section(
        "Where the influence went",
        h.tag("p", words),
        _figure(view, "topology"),
        h.tag("h3", "Over hops and rounds"),
        _figure(view, "influence-hops"),
        _figure(view, "influence-heatmap"),
        _figure(view, "influence-front"),
    )


def _training(view: ResultsView) -> Html:
    pictures = [_figure(view, "accuracy"), _figure(view, "consensus")]
    return h.section("Accuracy and consensus", *pictures) if any(pictures) else Html()


def _measured(view: ResultsView) -> Html:
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


def _methods(view: ResultsView) -> Html:
    if not view.outcomes:
        return Html()
    rows = []
    for label, outcome, table in zip(
        view.labels, view.outcomes, view.tables, strict=True
    ):
        gap = "-"
        for line in table.summary():
            if line.metric in ("test-accuracy", "test-mse") and line.after is not None:
                if line.reference is not None:
                    gap = _difference(line.after - line.reference, line.unit)
                break
        cost = outcome.cost
        rows.append(
            (
                label,
                _badge(_status(outcome.certificate)),
                gap,
                f"{cost.gradient_evaluations:,}",
                f"{cost.messages:,}",
                f"{cost.payload_bytes:,}",
                f"{cost.rounds:,}",
                f"{cost.wall_seconds:.2f}",
                f"{cost.simulated_seconds:.2f}",
            )
        )
    head = (
        "protocol",
        "claim",
        "test gap to retrained",
        "gradient evaluations",
        "messages",
        "bytes sent",
        "rounds",
        "seconds",
        "simulated seconds",
    )
    return h.section(
        "Protocols compared",
        _figure(view, "methods"),
        h.table("", head, rows, frozenset(range(2, 9))),
    )


def _dilution(view: ResultsView) -> Html:
    """Return what gossip made of a local correction, where rounds followed one."""
    if not any("peers_forget_loss" in outcome.trace for outcome in view.outcomes):
        return Html()
    return h.section(
        "What gossip left of a local correction", _figure(view, "dilution")
    )


def _audits(view: ResultsView) -> Html:
    """Return what trying to refute the certificates gave, where it was tried."""
    mine = {(o.request.request_id, o.label) for o in view.outcomes}
    blocks: list[object] = []
    for outcome, audit in load_audits(view.run):
        name = (outcome.request.request_id, outcome.label)
        if name not in mine:
            continue
        blocks.append(h.tag("h3", f"{name[1]} on request {name[0]}: {audit.verdict}"))
        blocks.append(h.tag("p", _VERDICTS[audit.verdict]))
        blocks.append(h.tag("pre", str(audit)))
    if not blocks:
        return Html()
    lead = (
        "An audit trains networks with and without the data many times and guesses "
        "which is which. It can refute a certificate and cannot prove one."
    )
    return h.section("Audit", h.tag("p", lead), *blocks)


def _limits(view: ResultsView) -> Html:
    if not view.outcomes:
        return Html()
    claims = [o.certificate for o in view.outcomes if o.certificate is not None]
    modes: set[NoiseMode] = {c.noise_mode for c in claims} or {"simulated"}
    limits = (*not_covered(*sorted(modes)), *_LIMITS)
    return h.section("What this does not prove", h.items(limits))


def _settings(view: ResultsView) -> Html:
    run = view.run
    rows = [
        (h.tag("code", key), h.tag("code", value)) for key, value in _flat(view.config)
    ]
    versions = run.info.get("versions", {"dfl_unlearn": dfl_unlearn.__version__})
    facts = [
        ("Run", _run_name(view)),
        ("Digest", h.tag("code", run.digest, class_="hash")),
        ("Versions", ", ".join(f"{k} {v}" for k, v in versions.items())),
        *(
            (
                "BLAS" if key == "blas" else key.replace("_", " ").capitalize(),
                _fact(value),
            )
            for key, value in run.info.get("arithmetic", {}).items()
        ),
        *_faults(run),
    ]
    return h.section(
        "Settings",
        h.facts(facts),
        h.table("", ("setting", "value"), rows),
        h.tag(
            "footer",
            f"Written by dfl_unlearn {dfl_unlearn.__version__}. Equal settings give "
            "the same digest again.",
        ),
    )


def _faults(run: TrainedRun) -> list[tuple[str, str]]:
    """Return what went wrong in the simulated network in training; mostly nothing."""
    if not run.config.faults:
        return []
    seen = run.info.get("faults", {"totals": {}})["totals"]
    counts = ", ".join(f"{name.replace('_', ' ')} {n}" for name, n in seen.items())
    broken = run.config.faults.breaks(run.config.trainer)
    return [
        ("Faults of the network", counts or "none happened"),
        ("What they change", "; ".join(broken) or "nothing in the results"),
    ]


def _fact(value: object) -> object:
    """Return a list of tables, such as the BLAS libraries, as words."""
    if not isinstance(value, list):
        return value
    return "; ".join(
        " ".join(str(v) for k, v in item.items() if k != "num_threads")
        for item in value
    )


# --- pieces ------------------------------------------------------------------------


def _claim(label: str, outcome: Outcome) -> Html:
    """Return one protocol's certificate in words, with everything it rests on."""
    certificate = outcome.certificate
    status = _status(certificate)
    parts: list[object] = [
        h.tag("h3", label, _badge(status)),
        h.tag("p", _MEANING[status]),
    ]
    if certificate is not None:
        parts += _certificate(certificate)
    accounts = outcome.ledger.table(sent=_sent(outcome))
    if accounts:
        groups: dict[Any, list[str]] = {}
        for row in accounts:
            groups.setdefault(replace(row, observer=""), []).append(row.observer)
        parts.append(
            h.table(
                "Ledger: what each observer can tell about each owner, in total",
                (
                    "owner",
                    "observer",
                    "messages before the request",
                    "releases",
                    "ε",
                    "δ",
                    "ε left",
                    "status",
                ),
                [
                    (
                        row.owner,
                        _several(names),
                        f"{row.pre_request or 0:,}",
                        row.releases,
                        f"{round_up(row.epsilon, 4):g}",
                        f"{row.delta:g}",
                        "no cap"
                        if row.remaining is None
                        else f"{-round_up(-row.remaining, 4):g}",
                        _CLAIMS.get(row.status, row.status or "-"),
                    )
                    for row, names in groups.items()
                ],
                frozenset({2, 3, 4, 5, 6}),
            )
        )
    if outcome.notes:
        parts.append(h.items(outcome.notes))
    return h.tag("div", *parts, class_=f"claim {status}")


def _sent(outcome: Outcome) -> Sent:
    """Return what the owners in the ledger sent in training, before any request."""
    run = outcome.run
    schedule = run.topology if run.config.schedule is None else run.config.schedule
    owners = {entry.owner for entry in outcome.ledger.entries}
    return sent_before(schedule, owners, training_rounds(run))


def _certificate(certificate: Certificate) -> list[object]:
    facts: list[tuple[str, object]] = []
    if certificate.scope in _SCOPES:
        facts.append(("Against", f"{_SCOPES[certificate.scope]} ({certificate.scope})"))
    if certificate.epsilon is not None and certificate.delta is not None:
        facts.append(
            (
                "Privacy",
                f"ε = {round_up(certificate.epsilon):g}, "
                f"δ = {round_up(certificate.delta):g}",
            )
        )
    elif certificate.nominal_epsilon is not None:
        facts.append(
            (
                "Nominal only",
                f"ε = {round_up(certificate.nominal_epsilon):g}, "
                f"δ = {certificate.nominal_delta:g}; not a guarantee",
            )
        )
    if certificate.noise_std:
        kind = (
            "a shift of at most"
            if certificate.status in CLAIMED
            else "a nominal shift of"
        )
        law = (
            "Gaussian" if certificate.numerics == "idealized" else "Gaussian on a grid"
        )
        words = (
            f"{law}, standard deviation {certificate.noise_std:.4g}, for {kind} "
            f"{certificate.sensitivity:.4g}"
        )
        facts += [
            ("Noise", f"{words} ({certificate.noise_mode})"),
            ("Accountant", certificate.accountant.replace("_", " ")),
        ]
    if certificate.observers:
        facts.append(("Released to", _several(certificate.observers)))
    if certificate.pending_peers:
        facts.append(("Not corrected", ", ".join(map(str, certificate.pending_peers))))
    parts: list[object] = [h.facts(facts)] if facts else []
    if certificate.reasons:
        parts += [_heading("Why not higher"), h.items(certificate.reasons)]
    if certificate.assumptions:
        parts.append(
            h.table(
                "Assumptions and constants",
                ("name", "value", "source", "state", "note"),
                [_assumption(a) for a in certificate.assumptions],
            )
        )
    if certificate.exposure:
        parts += [_heading("What stays exposed"), h.items(certificate.exposure)]
    if certificate.notes:
        parts += [_heading("Notes"), h.items(certificate.notes)]
    return parts


def _heading(text: str) -> Html:
    return h.tag("p", h.tag("strong", text))


def _assumption(a: Assumption) -> tuple[object, ...]:
    value = a.value if isinstance(a.value, str) else f"{a.value:.6g}"
    return a.name, value, a.source, h.tag("span", a.state, class_=a.state), a.note


def _summary_cells(line: Summary) -> tuple[object, ...]:
    # An area under a curve is a fraction, but nobody reads it in percent.
    unit = "" if line.metric.endswith("-auc") else line.unit
    worst = _number(line.worst, unit)
    if line.worst_peer is not None:
        worst += f" (peer {line.worst_peer})"
    said = "" if unit == "fraction" else unit
    return (
        line.metric,
        line.set,
        _number(line.before, unit),
        _number(line.after, unit),
        _number(line.reference, unit),
        worst,
        _number(line.spread, unit),
        "; ".join(word for word in (said, line.note) if word),
    )


def _number(value: float | None, unit: str) -> str:
    """Return a value as the page shows it: fractions in percent, counts in full."""
    if value is None:
        return "-"
    if unit == "fraction":
        return f"{100 * value:.2f} %"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _difference(value: float, unit: str) -> str:
    if unit == "fraction":
        return f"{100 * value:+.2f} points"
    return f"{value:+.4g}"


def _badge(status: str) -> Html:
    return h.tag("span", _CLAIMS[status], class_=f"badge {status}")


def _status(certificate: Certificate | None) -> str:
    return "none" if certificate is None else certificate.status


def _owners(outcome: Outcome) -> str:
    peers = outcome.request.peers
    if not peers:
        return "no peer"
    if len(peers) == 1:
        return f"peer {peers[0]}"
    return f"{len(peers)} peers"


def _what(outcome: Outcome) -> str:
    request = outcome.request
    if request.kind == "class":
        return f"class {request.class_id} at {_owners(outcome)}"
    return (
        f"everything of {_owners(outcome)}"
        if request.kind == "peer"
        else (f"chosen records of {_owners(outcome)}")
    )


def _several(names: Sequence[str]) -> str:
    if len(names) <= 3:
        return ", ".join(names)
    return f"{names[0]} … {names[-1]} ({len(names)})"


def _accuracy_words(view: ResultsView) -> str:
    """Return the end of the first sentence: the test score now and if retrained."""
    for line in view.tables[0].summary():
        if line.metric in ("test-accuracy", "test-mse") and line.after is not None:
            what = "mean test accuracy" if line.unit == "fraction" else line.metric
            text = f"; {what} is {_number(line.after, line.unit)}"
            if line.before is not None:
                text += f" (before: {_number(line.before, line.unit)}"
                if line.reference is not None:
                    text += f", retrained: {_number(line.reference, line.unit)}"
                text += ")"
            return text + "."
    return "."


def _run_name(view: ResultsView) -> str:
    folder = view.run.folder
    return folder.name if folder is not None else f"run {view.run.digest[:12]}"


def _flat(settings: Mapping[str, Any], path: str = "") -> Iterable[tuple[str, str]]:
    """Yield dotted keys and values of nested settings."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{key}.")
        elif isinstance(value, list):
            yield f"{path}{key}", ", ".join(map(str, value))
        elif isinstance(value, float):
            yield f"{path}{key}", f"{value:g}"
        else:
            yield f"{path}{key}", str(value)
