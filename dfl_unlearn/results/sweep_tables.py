"""A sweep's tables as files, which are copies of what its cases say."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

from dfl_unlearn.store.files import make_folder, write_file
from dfl_unlearn.store.table import harmless

if TYPE_CHECKING:
    import pandas as pd


def write_tables(
    folder: Path, summary: "pd.DataFrame", rows: "pd.DataFrame", cases: "pd.DataFrame"
) -> tuple[Path, ...]:
    """Write tables as CSV and Parquet, each file whole or not at all.

    Texts that a spreadsheet would run as a formula get a leading apostrophe in CSV; a
    value that is not finite is written as ``nan``, ``inf`` or ``-inf``, an axis that a
    sweep does not have as nothing.

    Args:
        folder: Where to; made if it does not exist.
        summary: For ``table``.
        rows: For ``rows``.
        cases: For ``cases``, as CSV only.

    Returns:
        The files.
    """
    contents = {
        "table.csv": _csv(summary),
        "table.parquet": _parquet(summary),
        "rows.csv": _csv(rows),
        "rows.parquet": _parquet(rows),
        "cases.csv": _csv(cases),
    }
    make_folder(folder)
    for name, content in contents.items():
        write_file(folder / name, content)
    return tuple(folder / name for name in contents)


def _csv(frame: "pd.DataFrame") -> bytes:
    frame = frame.copy(deep=False)
    for column in frame.columns:
        if frame[column].dtype.kind not in "biuf":
            values = frame[column].unique()
            texts = {v: harmless(v) if isinstance(v, str) else v for v in values}
            frame[column] = frame[column].map(texts).astype(object).fillna("")
    head = [harmless(column) for column in frame.columns]
    text: str = frame.to_csv(
        index=False, header=head, na_rep="nan", lineterminator="\n"
    )
    return text.encode()


def _parquet(frame: "pd.DataFrame") -> bytes:
    """Return a frame as Parquet; a column of several kinds becomes texts."""
    import pandas as pd

    frame = frame.copy(deep=False)
    for column in frame.columns:
        known = frame[column].dropna()
        if pd.api.types.infer_dtype(known).startswith("mixed"):
            frame[column] = frame[column].map(str, na_action="ignore").astype("str")
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    return buffer.getvalue()
