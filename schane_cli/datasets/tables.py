"""CSV files as spreadsheets and pandas write them: lists of images and labels, lists of images to leave out."""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

from schane_cli.datasets.folders import listed_set
from schane_cli.datasets.labels import number_labels, require_trained, settle_missing
from schane_cli.datasets.parts import Parts
from schane_cli.datasets.split_names import SPLITS, split_of_each
from schane_cli.errors import BadRequest, nearest
from schane_cli.recipe import DataRecipe
from schane_cli.spreadsheets import as_written

_DELIMITERS = (",", ";", "\t", "|")
_BOMS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
Row = dict[str, str]


def csv_parts(dataset: str, file: Path, recipe: DataRecipe) -> Parts:
    """Images listed in a table of path, label and, optionally, split; paths are relative to the table's folder.

    The header may be in any case, its columns renamed by data.image_column and data.label_column, the fields
    separated by comma, semicolon, tab or bar, the text UTF-8 or UTF-16.

    Raises:
        BadRequest: no such file or column, a row of another length, an image listed twice, a label or a file missing,
            an unknown split, a class of val or test without images in train. The line is named.
    """
    path_column, label_column = recipe.image_column or "path", recipe.label_column or "label"
    rows, lines = read_table_file(file, (path_column, label_column))
    if not rows:
        raise BadRequest(f"{file} lists no images")
    path_column, label_column = path_column.casefold(), label_column.casefold()
    rows_of = _rows_by_split(file, rows, lines)
    _require_once(file, [_clean_path(row[path_column]) for row in rows], lines)
    labels = {split: [rows[i][label_column] for i in chosen] for split, chosen in rows_of.items()}

    def where(split: str, row: int) -> str:
        return f"line {lines[rows_of[split][row]]}"

    class_names, numbers = number_labels(labels, lambda split, row: f"{file} {where(split, row)}")
    parts = Parts(notes=_split_like_columns(file, rows, {path_column, label_column}))
    for split, chosen in rows_of.items():
        names = [_clean_path(rows[i][path_column]) for i in chosen]
        parts[split] = listed_set(dataset, split, file.parent, names, numbers[split], class_names)
    settle_missing(parts, where, str(file))
    require_trained(parts, str(file))
    return parts


def _rows_by_split(file: Path, rows: list[Row], lines: list[int]) -> dict[str, list[int]]:
    """The rows of each split, or all of them as `all` where there is no column split."""
    if "split" not in rows[0]:
        return {"all": list(range(len(rows)))}
    chosen: dict[str, list[int]] = {}
    split_by_value = split_of_each({row["split"] for row in rows})
    for number, row in enumerate(rows):
        split = split_by_value[row["split"]]
        if split is None:
            raise BadRequest(
                f"{file} line {lines[number]}: unknown split {row['split']!r}; allowed: train, val, test, or words "
                "for them such as training, valid, validation, dev"
            )
        chosen.setdefault(split, []).append(number)
    return {split: chosen[split] for split in SPLITS if split in chosen}


def _split_like_columns(file: Path, rows: list[Row], used: set[str]) -> list[str]:
    """A sentence for each column that looks like splits but is not named split."""
    others = [name for name in rows[0] if name not in {*used, "split"}]
    columns = [name for name in others if all(split_of_each({row[name] for row in rows}).values())]
    return [f"column {name!r} of {file} looks like splits but is not read: rename it to split" for name in columns]


def _require_once(file: Path, paths: list[str], lines: list[int]) -> None:
    seen: dict[str, int] = {}
    for path, line in zip(paths, lines, strict=True):
        if path in seen:
            raise BadRequest(f"{file} line {line} names {path} again; line {seen[path]} did")
        seen[path] = line


def _clean_path(path: str) -> str:
    return os.path.normpath(path).replace(os.sep, "/")


def read_csv(file: Path, columns: Sequence[str]) -> list[Row]:
    """The rows of a table whose header names at least `columns`; BadRequest with file and line otherwise."""
    rows, _ = read_table_file(file, columns)
    if not rows:
        raise BadRequest(f"{file} lists no images")
    return rows


def read_table_file(file: Path, columns: Sequence[str]) -> tuple[list[Row], list[int]]:
    """The rows of a table, by column in lower case and stripped of spaces, and the line of each.

    An apostrophe before a sign that would begin a formula marks a text, as it does in a spreadsheet: `'=a.png` is the
    file `=a.png`.

    Raises:
        BadRequest: a file that cannot be read, a missing column, a row with more or fewer fields than the header.
    """
    lines = _text_of(file).splitlines(keepends=True)
    skipped = 1 if lines and lines[0].strip().lower().startswith("sep=") else 0
    header_line = lines[skipped] if len(lines) > skipped else ""
    delimiter = lines[0].strip()[4:] if skipped else max(_DELIMITERS, key=header_line.count)
    reader = csv.reader(io.StringIO("".join(lines[skipped:]), newline=""), delimiter=delimiter, skipinitialspace=True)
    rows: list[Row] = []
    numbers: list[int] = []
    try:
        header = [name.strip().casefold() for name in next(reader, [])]
        _require_columns(file, header, columns)
        for fields in reader:
            if not any(field.strip() for field in fields):
                continue
            if len(fields) != len(header):
                raise BadRequest(
                    f"{file} line {reader.line_num + skipped} does not have the {len(header)} fields of the header"
                )
            rows.append(dict(zip(header, (as_written(field.strip()) for field in fields), strict=True)))
            numbers.append(reader.line_num + skipped)
    except csv.Error as error:
        raise BadRequest(f"{file} line {reader.line_num + skipped} cannot be read: {error}") from None
    return rows, numbers


def _require_columns(file: Path, header: list[str], columns: Sequence[str]) -> None:
    for name in columns:
        if name.casefold() not in header:
            raise BadRequest(
                f"{file} has no column {name!r}{nearest(name.casefold(), header)}; its first line must name "
                f"{', '.join(columns)}, or give the names of yours with --set data.image_column=… and "
                "--set data.label_column=…"
            )


def _text_of(file: Path) -> str:
    """A table's text by its byte order mark; without one UTF-8, or UTF-16 where it is full of zeros."""
    try:
        if file.exists() and not file.is_file():  # a pipe would be waited for
            raise BadRequest(f"{file} cannot be read: it is not a regular file")
        data = file.read_bytes()
        if data.startswith((b"PK\3\4", b"PAR1", b"\xd0\xcf\x11\xe0")):
            raise BadRequest(f"{file} is a spreadsheet, an archive or a parquet file; save the table in it as CSV")
        encoding = next((name for mark, name in _BOMS if data.startswith(mark)), "utf-8")
        if encoding == "utf-8" and b"\0" in data[:64]:
            encoding = "utf-16-le" if data[1:2] == b"\0" else "utf-16-be"
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise BadRequest(
            f"{file} cannot be read: it is not UTF-8 or UTF-16 text (byte {error.start}); save it as UTF-8"
        ) from None
    except OSError as error:
        raise BadRequest(f"{file} cannot be read: {error.strerror or error}") from None
