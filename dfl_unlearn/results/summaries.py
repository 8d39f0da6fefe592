"""Rows of many seeds as one line per point: mean, spread, count and the worst.

Everything is done on columns: a sweep of 200 networks of 64 peers has a million rows.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from dfl_unlearn.results.sweep_protocols import CLAIMS
from dfl_unlearn.store.table import ATTACKS, NETWORK

if TYPE_CHECKING:
    import pandas as pd

LARGEST = ("epsilon-spent",)
"""Metrics that are bounds: of several seeds' the largest holds, not the mean."""

_LINE = ("protocol", "request", "world", "set", "metric", "unit")
_SAME = ("case", "protocol", "request", "set", "metric", "unit", "peer")
VALUES = (
    "claim",
    "nominal_epsilon",
    "mean",
    "spread",
    "count",
    "asked",
    "worst",
    "peer_spread",
    "peer_worst",
    "how",
    "note",
)


def summarize(
    rows: "pd.DataFrame",
    point_of: Mapping[str, int],
    points: "pd.DataFrame",
    claims: "pd.DataFrame",
) -> "pd.DataFrame":
    """Return one row per point, protocol, request, world, set and metric.

    Args:
        rows: Metric rows, texts as categories.
        point_of: Case -> number of its point; all cases that were asked for.
        points: Columns to put in front, one row per point.
        claims: Columns ``case``, ``protocol``, ``request``, ``claim`` and ``epsilon``
            (claimed or nominal).

    Returns:
        The columns of ``points``, ``protocol``, ``request``, ``world``, ``set``,
        ``metric``, ``unit`` and ``VALUES``.
    """
    import pandas as pd

    rows = _with_reference(rows)
    rows["point"] = rows["case"].map(point_of).astype("int64")
    finite = np.isfinite(rows["value"])
    rows["infinite"] = np.isinf(rows["value"]) & ~rows["withheld"]
    rows["extreme"] = rows["value"].mask(rows["withheld"])
    rows["value"] = rows["value"].where(finite & ~rows["withheld"])
    by = ["point", *_LINE]
    network, peers = rows[rows["peer"] == NETWORK], rows[rows["peer"] != NETWORK]
    groups = network.groupby(by, sort=False, observed=True)
    lines = groups["value"].agg(mean="mean", spread="std", count="count")
    lines["rows"] = groups.size()
    lines["withheld"] = groups["withheld"].any()
    lines["infinite"] = groups["infinite"].sum()
    lines = lines.join(_claimed(network, claims, by))
    lines["worst"] = _worst(network, by)
    each = peers.groupby(["case", *by], sort=False, observed=True)
    known = each["value"].std(ddof=0).mask(each["infinite"].any())
    spreads = known.groupby(by, sort=False, observed=True).mean()
    lines["peer_spread"] = spreads.reindex(lines.index)
    lines["peer_worst"] = _worst(peers, by).reindex(lines.index)
    lines = lines.reset_index()
    largest = lines["metric"].isin(LARGEST)
    lines["how"] = np.where(largest, "max", "mean")
    bound = groups["value"].max().to_numpy()
    complete = lines["count"] == lines["rows"]
    lines["mean"] = lines["mean"].mask(largest, np.where(complete, bound, np.nan))
    lines["spread"] = lines["spread"].mask(largest)
    after = lines["world"] == "after"
    lines["claim"] = lines["claim"].where(after, "")
    lines["nominal_epsilon"] = lines["nominal_epsilon"].where(after)
    told = "infinite in " + lines["infinite"].astype(str)
    told = told + " of " + lines["rows"].astype(str) + " seeds"
    told = told.where(lines["infinite"] > 0, "")
    lines["note"] = told.mask(lines["withheld"], "no reference")
    lines["asked"] = lines["point"].map(pd.Series(point_of).value_counts())
    front = points.loc[lines["point"]].reset_index(drop=True)
    texts = lines.astype(dict.fromkeys((*_LINE, "how", "note", "claim"), "str"))
    return front.join(texts[[*_LINE, *VALUES]])


def _with_reference(rows: "pd.DataFrame") -> "pd.DataFrame":
    """Add the retrained value of the same case and peer, and whether one is withheld.

    Args:
        rows: Metric rows.

    Returns:
        The rows with ``gap``, the distance to the reference, and ``withheld``.
    """
    same = list(_SAME)
    known = rows.loc[rows["world"] == "reference", [*same, "value"]]
    known = known.rename(columns={"value": "reference"})
    rows = rows.merge(known, on=same, how="left")
    reference = rows["reference"].where(np.isfinite(rows["reference"]))
    attack = rows["metric"].map(lambda name: name.startswith(ATTACKS)).astype(bool)
    network = rows.loc[rows["peer"] == NETWORK, [*same[:-1], "world"]].assign(
        known=reference[rows["peer"] == NETWORK].notna()
    )
    rows = rows.merge(network, on=[*same[:-1], "world"], how="left")
    rows["withheld"] = attack & ~rows.pop("known").fillna(False).astype(bool)
    rows["gap"] = (rows["value"] - reference).abs()
    return rows.drop(columns=["reference"])


def _worst(rows: "pd.DataFrame", by: list[str]) -> "pd.Series[float]":
    """Return the worst value of each group, the first of equals; it may be infinite."""
    rows = rows[rows["extreme"].notna()]
    on_forgotten = (rows["set"] == "forget") & (rows["world"] != "reference")
    unknown = rows["gap"].isna().groupby([rows[c] for c in by], observed=True)
    by_gap = on_forgotten & ~unknown.transform("any")
    lowest = (rows["unit"] == "fraction") & (rows["set"] != "forget")
    value = rows["extreme"]
    badness = value.where(~lowest, -value).where(~by_gap, rows["gap"])
    first = rows.assign(badness=badness).sort_values(
        "badness", ascending=False, kind="stable"
    )
    return first.drop_duplicates(by).set_index(by)["extreme"]


def _claimed(
    network: "pd.DataFrame", claims: "pd.DataFrame", by: list[str]
) -> "pd.DataFrame":
    """Return the least that the seeds' certificates claim, and the largest epsilon."""
    import pandas as pd

    rank = {claim: k for k, claim in enumerate(CLAIMS, start=1)}
    key = ["case", "protocol", "request"]
    told = network[key].astype("str").merge(claims, on=key, how="left")
    ranks = told["claim"].map(rank).fillna(0).to_numpy()
    groups = network.assign(rank=ranks, epsilon=told["epsilon"].to_numpy()).groupby(
        by, sort=False, observed=True
    )
    least = groups["rank"].min().map(lambda k: CLAIMS[int(k) - 1] if k else "")
    return pd.DataFrame({"claim": least, "nominal_epsilon": groups["epsilon"].max()})
