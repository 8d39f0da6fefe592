"""Certificates in words, with all they rest on; audits; what nothing here proves."""

from dataclasses import replace
from typing import Any

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
from dfl_unlearn.evaluation.audit_store import load_audits
from dfl_unlearn.pages import wording
from dfl_unlearn.results.view import ResultsView
from dfl_unlearn.unlearning.claims import training_rounds
from dfl_unlearn.unlearning.contracts import Outcome

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


def claims(view: ResultsView) -> Html:
    """Return every outcome's certificate, assumptions, exposure and ledger."""
    if not view.outcomes:
        return Html()
    blocks = [
        _claim(label, outcome)
        for label, outcome in zip(view.labels, view.outcomes, strict=True)
    ]
    return h.section("What is guaranteed", *blocks)


def audits(view: ResultsView) -> Html:
    """Return what trying to refute the certificates gave, where it was tried."""
    mine = {(o.request.request_id, o.label) for o in view.outcomes}
    blocks: list[object] = []
    for outcome, audit in load_audits(view.run):
        name = (outcome.request.request_id, outcome.label)
        if name not in mine:
            continue
        blocks.append(h.tag("h3", f"{name[1]} on request {name[0]}: {audit.verdict}"))
        blocks.append(h.tag("p", _VERDICTS[audit.verdict]))
        blocks.append(h.text_block(str(audit)))
    if not blocks:
        return Html()
    lead = (
        "An audit trains networks with and without the data many times and guesses "
        "which is which. It can refute a certificate and cannot prove one."
    )
    return h.section("Audit", h.tag("p", lead), *blocks)


def limits(view: ResultsView) -> Html:
    """Return what no certificate and no measurement on the page proves."""
    if not view.outcomes:
        return Html()
    claims = [o.certificate for o in view.outcomes if o.certificate is not None]
    modes: set[NoiseMode] = {c.noise_mode for c in claims} or {"simulated"}
    limits = (*not_covered(*sorted(modes)), *_LIMITS)
    return h.section("What this does not prove", h.items(limits))


def _claim(label: str, outcome: Outcome) -> Html:
    """Return one protocol's certificate in words, with everything it rests on."""
    certificate = outcome.certificate
    status = wording.status(certificate)
    parts: list[object] = [
        h.tag("h3", label, wording.badge(status)),
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
                        wording.several(names),
                        f"{row.pre_request or 0:,}",
                        row.releases,
                        f"{round_up(row.epsilon, 4):g}",
                        f"{row.delta:g}",
                        "no cap"
                        if row.remaining is None
                        else f"{-round_up(-row.remaining, 4):g}",
                        wording.CLAIMS.get(row.status, row.status or "-"),
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
        facts.append(("Released to", wording.several(certificate.observers)))
    if certificate.pending_peers:
        facts.append(("Not corrected", ", ".join(map(str, certificate.pending_peers))))
    parts: list[object] = [h.facts(facts)] if facts else []
    if certificate.reasons:
        parts += [wording.heading("Why not higher"), h.items(certificate.reasons)]
    if certificate.assumptions:
        parts.append(
            h.table(
                "Assumptions and constants",
                ("name", "value", "source", "state", "note"),
                [_assumption(a) for a in certificate.assumptions],
            )
        )
    if certificate.exposure:
        parts += [wording.heading("What stays exposed"), h.items(certificate.exposure)]
    if certificate.notes:
        parts += [wording.heading("Notes"), h.items(certificate.notes)]
    return parts


def _assumption(a: Assumption) -> tuple[object, ...]:
    value = a.value if isinstance(a.value, str) else f"{a.value:.6g}"
    return a.name, value, a.source, h.tag("span", a.state, class_=a.state), a.note
