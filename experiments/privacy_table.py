"""What the sweeps of ``sweep_privacy.py`` found, read from their cases' folders."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from dfl_unlearn.results.sweep import Attempt, Case, SweepView
from dfl_unlearn.store.files import to_json
from dfl_unlearn.store.folder import RunFolder
from dfl_unlearn.unlearning.contracts import label_of
from dfl_unlearn.unlearning.forms import protocol_of

NOTHING = 0.1
"""Accuracy above guessing below which a model is called noise."""
GUESSING = 0.1
"""Accuracy of guessing one of ten digits."""

TERMS = {
    "newton-fisher joint": "the public cap on the distance to the exact minimizer",
    "newton-fisher release": "the public cap on the distance to the exact minimizer",
    "newton-fisher view": "the public cap, which here must cover what is known without "
    "a message: the recorded residual over l2",
    "rr-du": "the distance of the start, (residual + removed gradient) / l2, all of "
    "which the walk has to learn again",
    "at-peer.r2d.rewind_network": "how far the forgotten row moved the state gone "
    "back to, and how little of it later rounds are proven to forget",
    "fine-tune": "the public cap on the residual over rate x l2: descent is slow where "
    "curvature is small, and the bound takes it to be small everywhere",
    "dp-gossip": "clipping norm x forgotten rows, in every step of training",
}
KEYS = ["sweep", "protocol", "setting", "epsilon"]
SHOWN = [
    *KEYS,
    "status",
    "seeds",
    "refused",
    "mean",
    "std",
    "worst",
    "retrained",
    "lost",
    "lost_to_best",
]


def released(
    name: str, view: SweepView, epsilon_of: Mapping[float, float]
) -> Iterator[dict[str, Any]]:
    """Yield a row per outcome and per refusal in the finished cases of a sweep.

    Args:
        name: What the rows call the sweep.
        view: The sweep.
        epsilon_of: Noise multiplier of ``dp-gossip`` -> the epsilon that it was for.

    Yields:
        Protocol, setting, the epsilon asked for, seed and status; of an outcome also
        the certificate's numbers and the test accuracy (mean and worst peer) before,
        after (``mean``, ``worst``) and in the retrained network.
    """
    frame = view.frame
    accuracy = frame[frame["metric"] == "test-accuracy"]
    for case in view.cases:
        if case.status != "done":
            continue
        folder = RunFolder(case.folder)
        config = folder.read_json("config.json")
        state = folder.read_tensors("state/final.safetensors")["params"]
        rows = accuracy[accuracy["case"] == case.name]
        attempts = by_form(view, case)
        refused = list(case.refused)
        for form in config["unlearning"]:
            row = {
                "sweep": name,
                **asked(form, config["training"]["trainer"], epsilon_of),
                "seed": case.seed,
                "model_length": float(state.norm(dim=1).mean()),
                "dimension": int(state.shape[1]),
            }
            attempt = attempts.get(to_json("", form))
            if attempt is None:
                label = label_of(protocol_of(form))
                why = next(r for r in refused if r.protocol == label)
                refused.remove(why)
                error = f"{why.error}: {why.message}"
                yield {**row, "status": "refused", "error": error}
                continue
            told = attempt.certificate
            row |= {
                "status": attempt.claim,
                "certified_epsilon": told.epsilon,
                "sensitivity": told.sensitivity,
                "noise_std": told.noise_std,
            }
            for world, part in rows[rows["protocol"] == attempt.name].groupby(
                "world", observed=True
            ):
                values = part.set_index("peer")["value"]
                prefix = {"before": "before_", "reference": "retrained_"}.get(world, "")
                row[f"{prefix}mean"] = values[-1]
                row[f"{prefix}worst"] = values.drop(-1).min()
            yield row


def by_form(view: SweepView, case: Case) -> dict[str, Attempt]:
    """Return the attempts of a case by their protocols' fields, as JSON."""
    folder = RunFolder(case.folder)
    told = [
        folder.read_json(str(path.relative_to(case.folder)))
        for path in case.folder.glob("outcomes/*/outcome.json")
    ]
    told.sort(key=lambda outcome: outcome["order"])
    forms = [to_json("", outcome["protocol"]) for outcome in told]
    return dict(zip(forms, view.attempts[case.name], strict=True))


def asked(
    protocol: Mapping[str, Any],
    trainer: Mapping[str, Any],
    epsilon_of: Mapping[float, float],
) -> dict[str, Any]:
    """Return protocol with its scope, setting and epsilon, as the table has them."""
    name, setting = label_of(protocol_of(protocol)), ""
    if protocol["use"] == "newton-fisher":
        name += f" {protocol['scope']}"
        setting = f"residual_cap {protocol['residual_cap']:g}"
    if protocol["use"] == "dp-gossip":
        epsilon = epsilon_of[trainer["noise_multiplier"]]
        setting = f"clip_norm {trainer['clip_norm']:g}"
    else:
        epsilon = protocol.get("method", protocol)["epsilon"]
    return {"protocol": name, "setting": setting, "epsilon": epsilon}


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row per sweep, protocol, setting and epsilon: means over seeds.

    ``std`` is the sample standard deviation over seeds, ``worst`` the mean over seeds
    of the worst peer's accuracy. Losses are percentage points: ``lost`` against
    retraining of the same training and seed, ``lost_std`` its standard deviation over
    seeds, ``lost_to_best`` against retraining in the sweep ``rewinding``. Retraining
    with ``dp-gossip`` has the same noise and is no yardstick: its losses are both
    against ``rewinding``.
    """
    best = rows[rows["sweep"] == "rewinding"].groupby("seed")["retrained_mean"].first()
    best = rows["seed"].map(best)
    own = rows["retrained_mean"].where(rows["protocol"] != "dp-gossip", best)
    rows = rows.assign(
        lost=100 * (own - rows["mean"]),
        lost_to_best=100 * (best - rows["mean"]),
        refused=rows["status"] == "refused",
    )
    found = []
    for keys, part in rows.groupby(KEYS, sort=False):
        kept = part[~part["refused"]]
        found.append(
            {
                **dict(zip(KEYS, keys, strict=True)),
                "status": ", ".join(sorted(set(part["status"]))),
                "seeds": len(kept),
                "refused": int(part["refused"].sum()),
                "certified_epsilon": kept["certified_epsilon"].max(),
                "mean": kept["mean"].mean(),
                "std": kept["mean"].std(),
                "worst": kept["worst"].mean(),
                "before": kept["before_mean"].mean(),
                "retrained": kept["retrained_mean"].mean(),
                "retrained_worst": kept["retrained_worst"].mean(),
                "lost": kept["lost"].mean(),
                "lost_std": kept["lost"].std(),
                "lost_to_best": kept["lost_to_best"].mean(),
                "sensitivity": kept["sensitivity"].mean(),
                "noise_std": kept["noise_std"].mean(),
                "model_length": kept["model_length"].mean(),
                "dimension": kept["dimension"].max(),
            }
        )
    return pd.DataFrame(found)


def verdicts(table: pd.DataFrame) -> Iterator[str]:
    """Yield per protocol where it keeps what retraining keeps, loses, or is noise.

    Worse is by more than a point and by more than two standard errors over the seeds;
    between the two the seeds do not tell. With one seed the errors are unknown, and
    the line says so.
    """
    for (sweep, protocol, setting), part in table.groupby(KEYS[:3], sort=False):
        said: dict[str, list[str]] = {}
        for row in part.itertuples():
            said.setdefault(verdict(row), []).append(f"{row.epsilon:g}")
        words = "; ".join(f"{what} at ε {', '.join(e)}" for what, e in said.items())
        alone = " (one seed)" if part["seeds"].max() == 1 else ""
        if part["refused"].sum() and part["seeds"].sum():
            alone += f" (refused {part['refused'].sum()} times)"
        name = " ".join(word for word in (f"{sweep}:", protocol, setting) if word)
        yield f"{name}: {words}{alone}"


def verdict(row: Any) -> str:
    """Return in a few words what became of accuracy."""
    if row.seeds == 0:
        return "refuses"
    if "heuristic" in row.status:
        return "claims nothing"
    if row.mean < GUESSING + NOTHING:
        return "leaves noise"
    error = 0.0 if math.isnan(row.lost_std) else row.lost_std / math.sqrt(row.seeds)
    if abs(row.lost) <= 1:
        return "as good as retraining"
    if abs(row.lost) <= 2 * error:
        return "not told apart from retraining by these seeds"
    if row.lost > 0:
        return "worse than retraining"
    return "more accurate than retraining, as it trains further"


def refusals(rows: pd.DataFrame) -> Iterator[str]:
    """Yield why protocols refused, each reason once with an example."""
    if "error" not in rows:
        return
    refused = rows[rows["status"] == "refused"]
    for (protocol, setting), part in refused.groupby(["protocol", "setting"]):
        epsilons = ", ".join(f"{e:g}" for e in sorted(part["epsilon"].unique()))
        yield (
            f"{protocol} {setting}".rstrip()
            + f" refused {len(part)} times, at ε {epsilons}: {part['error'].iloc[0]}"
        )


def blamed(table: pd.DataFrame) -> Iterator[str]:
    """Yield for what loses more than a point at the ε nearest 1 what its noise is."""
    for _, part in table.groupby(KEYS[:3], sort=False):
        row = part.iloc[(part["epsilon"].map(math.log)).abs().argmin()]
        if not row["lost"] > 1:
            continue
        length = row["noise_std"] * math.sqrt(row["dimension"])
        size = (
            f"noise of length {length:.3g} beside a model of {row['model_length']:.3g}"
        )
        if row["protocol"] == "dp-gossip":
            size = f"noise of {row['noise_std']:.3g} in every step of training"
        else:
            scale = row["noise_std"] / row["sensitivity"]
            size += (
                f": sensitivity {row['sensitivity']:.3g} x s(ε, δ) {scale:.3g} x "
                f"sqrt(P) {math.sqrt(row['dimension']):.3g}"
            )
        yield (
            f"{row['protocol']} {row['setting']}".rstrip()
            + f" loses {row['lost']:.2f} points at ε {row['epsilon']:g} ({size}); the "
            f"sensitivity is {TERMS[row['protocol']]}"
        )
