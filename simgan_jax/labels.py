"""Real labels, for scoring alone (io): no other module opens a labels file."""

import csv
import os
import pathlib
from collections.abc import Iterable

NAME, LABEL, BATCH = "name", "label", "batch"


class LabelsError(ValueError):
    """A labels file that cannot be used; one line with file, line and remedy."""


def read_labels(path: str | os.PathLike[str], *, batches: Iterable[str] | None = None) -> dict[str, str]:
    """Labels by image name, in file order, of a CSV file with the columns `name` and `label`.

    Args:
      path: the file; further columns are passed over.
      batches: values of its column `batch` to keep; all rows if None.

    Raises:
      LabelsError: no such file, a missing column, a row of other columns, an empty value, a name twice, an unknown
        batch, or no labels at all.
    """
    file = pathlib.Path(path)
    wanted = None if batches is None else set(batches)
    labels: dict[str, str] = {}
    lines: dict[str, int] = {}
    seen: set[str] = set()
    try:
        with open(file, encoding="utf-8-sig", newline="") as text:
            rows = csv.DictReader(text, strict=True)
            needed = [NAME, LABEL] + ([BATCH] if wanted is not None else [])
            missing = [column for column in needed if column not in (rows.fieldnames or ())]
            if missing:
                raise LabelsError(f"{file}: no column {missing[0]!r}: the first line must name {', '.join(needed)}")
            for row in rows:
                _check_row(f"{file}: line {rows.line_num}", row, needed)
                if wanted is not None:
                    seen.add(row[BATCH])
                    if row[BATCH] not in wanted:
                        continue
                name = row[NAME]
                if name in lines:
                    raise LabelsError(
                        f"{file}: line {rows.line_num}: {name!r} was in line {lines[name]}: keep one row an image"
                    )
                lines[name] = rows.line_num
                labels[name] = row[LABEL]
    except OSError as error:
        raise LabelsError(f"{file}: cannot be read ({error.strerror}): check file and permissions") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise LabelsError(f"{file}: no CSV file in UTF-8 ({error}): get the file again") from error
    unknown = sorted((wanted or set()) - seen)
    if unknown:
        raise LabelsError(f"{file}: no batch {unknown[0]!r}: choose among {', '.join(sorted(seen)) or 'none'}")
    if not labels:
        raise LabelsError(f"{file}: holds no labels: give a file with at least one row")
    return labels


def _check_row(place: str, row: dict[str | None, str | None], needed: list[str]) -> None:
    if None in row or None in row.values():
        raise LabelsError(f"{place}: not as many values as columns: repair the row")
    empty = [column for column in needed if not row[column]]
    if empty:
        raise LabelsError(f"{place}: empty {empty[0]}: fill it or remove the row")
