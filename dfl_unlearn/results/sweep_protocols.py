"""What the protocols of a case are called in a sweep's tables, and what they claim."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from dfl_unlearn.accounting.certificate import Certificate
from dfl_unlearn.errors import DflUnlearnError
from dfl_unlearn.results.settings import differing, flat, shown_settings
from dfl_unlearn.results.sweep_cases import Case
from dfl_unlearn.store.files import from_json, to_json
from dfl_unlearn.store.folder import RunFolder
from dfl_unlearn.store.understood import understood
from dfl_unlearn.unlearning.contracts import label_of
from dfl_unlearn.unlearning.forms import protocol_of

NO_CLAIM = "none"
CLAIMS = (
    NO_CLAIM,
    "heuristic",
    "pending",
    "certified_conditional",
    "certified",
    "exact",
)
"""What an outcome may claim, from the least to the most."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A request that a protocol carried out in a case.

    Attributes:
        name: What tables of the sweep call the protocol: its label, with the settings
            that differ (or a number) where a case tries the same one several times.
        label: What tables of the case alone call it.
        request: Id of the request.
        certificate: What is guaranteed, or None without a claim.
    """

    name: str
    label: str
    request: str
    certificate: Certificate | None

    @property
    def claim(self) -> str:
        """The certificate's status, or ``"none"``."""
        return NO_CLAIM if self.certificate is None else self.certificate.status

    @property
    def epsilon(self) -> float | None:
        """The certificate's epsilon: claimed, or what would follow if it held."""
        known = self.certificate
        if known is None:
            return None
        return known.nominal_epsilon if known.epsilon is None else known.epsilon


def read_attempts(case: Case) -> tuple[Attempt, ...]:
    """Read which requests were carried out in a case, and what is claimed.

    Args:
        case: A complete case.

    Returns:
        The attempts in the order in which they were made.

    Raises:
        StoreCorruptError: If a file lacks a value.
    """
    folder = RunFolder(case.folder)
    with understood(folder.root):
        config = folder.read_json("config.json")
        found = []
        for place in folder.path("outcomes").glob("*/outcome.json"):
            at = f"outcomes/{place.parent.name}"
            told = folder.read_json(f"{at}/outcome.json")
            request = folder.read_json(f"{at}/request.json")["request_id"]
            found.append((told["order"], at, told["protocol"], str(request)))
        found.sort(key=lambda attempt: attempt[:2])
        forms = [*config.get("unlearning", ()), *(form for _, _, form, _ in found)]
        names = _names(forms, case.point)
        return tuple(
            Attempt(
                name=names[to_json("", form)],
                label=_label(to_json("", form)),
                request=request,
                certificate=_certificate(folder, at),
            )
            for _, at, form, request in found
        )


def row_names(
    rows: Sequence[Mapping[str, Any]], attempts: Sequence[Attempt]
) -> list[str]:
    """Return what a sweep's tables call the protocol of each metric row of a case.

    A case writes the rows of its attempts in their order, so where several share label
    and request, the k-th row that says the same is the k-th attempt's.

    Args:
        rows: The rows.
        attempts: The attempts of the case.

    Returns:
        A name per row.

    Raises:
        ValueError: If there are other numbers of rows than of attempts.
    """
    named: dict[tuple[str, str], list[str]] = {}
    for attempt in attempts:
        named.setdefault((attempt.label, attempt.request), []).append(attempt.name)
    if all(names == [label] for (label, _), names in named.items()):
        return [row["protocol"] for row in rows]
    seen: dict[tuple[Any, ...], int] = {}
    result = []
    for row in rows:
        label, request = row["protocol"], row["request"]
        names = named.get((label, request), [label])
        what = (row["world"], row["metric"], row["set"], row["peer"])
        number = seen[label, request, *what] = seen.get((label, request, *what), -1) + 1
        if number >= len(names):
            raise ValueError(
                f"{number + 1} rows of {label} on {request} for {len(names)} attempts"
            )
        result.append(names[number])
    return result


def _telling(settings: Sequence[Mapping[str, Any]], keys: list[str]) -> list[str]:
    """Return the first key that tells all settings apart alone, else all keys."""
    for key in keys:
        if len({to_json("", one.get(key)) for one in settings}) == len(settings):
            return [key]
    return keys


def _names(
    forms: Sequence[Mapping[str, Any]], axes: Mapping[str, Any]
) -> dict[str, str]:
    """Return what each protocol of a case is called, by its form as JSON.

    A setting that an axis varies is not named: lines over the axis keep one name.
    """
    fields = [field.strip() for axis in axes for field in axis.split(",")]
    varied = {f.split(".", 2)[-1] for f in fields if f.startswith("unlearning.")}
    alike: dict[str, dict[str, dict[str, Any]]] = {}
    for form in forms:
        text = to_json("", form)
        alike.setdefault(_label(text), {})[text] = flat(form)
    names: dict[str, str] = {}
    for label, settings in alike.items():
        keys = [k for k in differing(list(settings.values())) if k not in varied]
        keys = _telling(list(settings.values()), keys)
        words = [
            f"{label} {shown_settings(one, keys)}".rstrip() for one in settings.values()
        ]
        if len(set(words)) < len(words):
            words = [f"{label} ({k})" for k in range(1, len(words) + 1)]
            words[0] = label
        names.update(zip(settings, words, strict=True))
    return names


@cache
def _label(text: str) -> str:
    """Return what tables call a protocol, given as JSON."""
    form = from_json(text)
    try:
        return label_of(protocol_of(form))
    except DflUnlearnError:  # of a plugin that is not here
        return str(form["use"])


def _certificate(folder: RunFolder, at: str) -> Certificate | None:
    if not folder.path(f"{at}/certificate.json").is_file():
        return None
    return Certificate.from_json(folder.read_text(f"{at}/certificate.json"))
