"""`schane report`, and the page of a run that was killed before it was drawn."""

import json
from pathlib import Path

import pytest

from schane_cli.cli import main
from schane_cli.run import RunFolder
from tests.jobs import TINY, run_tiny


def test_a_run_killed_before_its_page_gets_it_by_three_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunFolder(tmp_path / "run")
    run_tiny(run.path)
    quick = [f"--set={key}={value}" for key, value in TINY.items()]
    before = run.last.stat().st_mtime_ns
    for arguments in (
        ["report", str(run.path)],
        ["finetune", *quick, "--out", str(run.path)],
        ["finetune", "--resume", str(run.path)],
        ["finetune", *quick, "--resume", "auto", "--out", str(run.path)],
    ):
        run.page.unlink(missing_ok=True)
        with pytest.raises(SystemExit) as exit_:
            main([*arguments, "--json"])
        assert not exit_.value.code
        assert run.state == "reported"
    assert run.last.stat().st_mtime_ns == before  # nothing was trained again
    summaries = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert summaries[0] == {"run": str(run.path), "page": str(run.page)}
    assert len({summary["test_accuracy"] for summary in summaries[1:]}) == 1


def test_a_folder_without_a_finished_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["report", str(tmp_path)])
    assert exit_.value.code == 2
    assert "no finished run at" in capsys.readouterr().err
