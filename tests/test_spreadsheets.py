"""CSV tables: no text from outside is a formula for a spreadsheet, and each comes back as it was."""

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from schane_cli.commands.predict import images_to_name
from schane_cli.datasets.load import listed_parts
from schane_cli.datasets.tables import read_table_file
from schane_cli.recipe import build_recipe
from schane_cli.spreadsheets import FORMULA_SIGNS, csv_text, read_csv, write_csv
from tests.conftest import run_cli

NAMES = [
    "=cmd|' /C calc'!A0",
    "+1",
    "-2",
    "@SUM(A1)",
    "\ttab",
    "'quoted",
    "'=both",
    "a\nb",
    'a,"b"',
    "[/red]\x1b[31m",
    "NA",
    "",
]


def test_texts_in_csv_tables_are_no_formulas_and_come_back_as_they_were(tmp_path: Path) -> None:
    table = pd.DataFrame({"class": NAMES, "accuracy": np.linspace(-1, 1, len(NAMES))})
    write_csv(table, tmp_path / "table.csv", index=False)
    with (tmp_path / "table.csv").open(newline="") as file:
        cells = [row[0] for row in csv.reader(file)]
    assert len(cells) == 1 + len(NAMES)
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    back = read_csv(tmp_path / "table.csv", dtype={"class": str})
    assert back["class"].tolist() == NAMES
    np.testing.assert_allclose(back["accuracy"], table["accuracy"])
    counts = pd.DataFrame([[1, 2], [3, 4]], index=pd.Index(["=a", "b"], name="label"), columns=["=a", "b"])
    write_csv(counts, tmp_path / "counts.csv")
    assert read_csv(tmp_path / "counts.csv", index_col=0, dtype={"label": str}).equals(counts)


def test_numbers_stay_numbers_whatever_their_sign_and_width() -> None:
    table = pd.DataFrame({"a": np.array([-0.5, 0.1], np.float32), "b": [-1, 2], "c": ["-0.5", "x"], "d": [True, False]})
    assert csv_text(table, index=False).split() == ["a,b,c,d", "-0.5,-1,'-0.5,True", "0.1,2,x,False"]
    assert csv_text(table[:0], index=False).split() == ["a,b,c,d"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, `=a` and `-b`, of pictures whose names would be formulas; one of them cannot be read."""
    rng = np.random.default_rng(0)
    for label in ("=a", "-b"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(12):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"=cmd({number}).png")
    (tmp_path / "photos" / "=a" / "@broken.png").write_bytes(b"nothing")
    return tmp_path / "photos"


def parts_of(folder: Path, **keys: str) -> dict[str, str]:
    recipe = build_recipe({"data": {"dataset": f"folder:{folder}", "broken": "leave_out", **keys}})
    parts = listed_parts(recipe.data).values()
    return {name: part.class_names[label] for part in parts for name, label in zip(part.ids, part.labels, strict=True)}


def test_lists_that_schane_writes_name_the_same_files_when_it_reads_them(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli("data", "check", f"folder:{folder}", "--write", tmp_path / "bad.csv") == 1
    assert (tmp_path / "bad.csv").read_text().splitlines()[1].startswith("'=a/@broken.png,")
    all_of_them = parts_of(folder)
    left = parts_of(folder, exclude=str(tmp_path / "bad.csv"))
    assert all_of_them.keys() - left.keys() == {"=a/@broken.png"}
    write_csv(pd.DataFrame({"path": ["=a/=cmd(3).png"], "label": ["-b"]}), tmp_path / "relabel.csv", index=False)
    relabelled = parts_of(folder, relabel=str(tmp_path / "relabel.csv"))
    assert {name for name, label in relabelled.items() if label != all_of_them[name]} == {"=a/=cmd(3).png"}
    assert relabelled["=a/=cmd(3).png"] == "-b"


def test_a_table_of_pictures_that_schane_wrote_is_a_source_of_pictures(folder: Path) -> None:
    table = folder / "=a" / "table.csv"
    names = ["=cmd(1).png", "=cmd(2).png"]
    write_csv(pd.DataFrame({"path": names}), table, index=False)
    images, _ = images_to_name([f"csv:{table}"], {})
    assert [Path(name).name for name in images.ids] == names


@pytest.mark.parametrize("sign", FORMULA_SIGNS)
def test_a_name_written_by_hand_needs_no_mark(tmp_path: Path, sign: str) -> None:
    name = f"{sign.strip() or '='}a.png"
    (tmp_path / "list.csv").write_text(f"path\n{name}\n")
    rows, _ = read_table_file(tmp_path / "list.csv", ("path",))
    assert rows == [{"path": name}]


def test_a_list_is_written_to_a_regular_file_only(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in ("/dev/null", tmp_path, tmp_path / "nowhere" / "bad.csv"):
        assert run_cli("data", "check", f"folder:{folder}", "--write", place) == 2
        assert "no file can be written there" in capsys.readouterr().err
