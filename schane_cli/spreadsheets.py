"""CSV tables that a spreadsheet may open: a text from outside, such as a file's name, is never a formula in them.

A spreadsheet computes a cell that begins with one of `= + - @`, a tab or a carriage return. Such a text is written
behind an apostrophe, a spreadsheet's own mark of text, and whatever reads a table here takes it away again.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from schane_cli.errors import BadRequest
from schane_cli.run import write_text

if TYPE_CHECKING:
    import pandas as pd

FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r")
_MARKED = (*FORMULA_SIGNS, "'")  # an apostrophe of the text's own, too, or it would be taken for the mark


def without_formula(value: Any) -> Any:
    """A cell as it is written: a text that a spreadsheet would compute behind an apostrophe, anything else as it is."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_MARKED) else value


def as_written(value: Any) -> Any:
    """A cell that was read, without the apostrophe that `without_formula` put in front."""
    marked = isinstance(value, str) and value.startswith("'") and value[1:].startswith(_MARKED)
    return value[1:] if marked else value


def csv_text(frame: "pd.DataFrame", **options: Any) -> str:
    """A table as the text of a CSV file; numbers stay numbers. `options` are those of `DataFrame.to_csv`."""
    from pandas.api.types import is_numeric_dtype

    texts = frame.apply(lambda column: column if is_numeric_dtype(column) else column.map(without_formula))
    return str(texts.rename(columns=without_formula, index=without_formula).to_csv(**options))


def write_csv(frame: "pd.DataFrame", path: Path, **options: Any) -> None:
    """A table as a CSV file, written completely or not at all."""
    write_text(path, csv_text(frame, **options))


def read_csv(path: Path, **options: Any) -> "pd.DataFrame":
    """A table that `write_csv` wrote, its texts as they were; BadRequest where it cannot be read."""
    import pandas as pd

    try:
        frame = pd.read_csv(path, keep_default_na=False, **options)
    except (OSError, ValueError) as error:
        raise BadRequest(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return frame.map(as_written).rename(columns=as_written, index=as_written)
