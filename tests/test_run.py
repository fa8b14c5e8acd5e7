"""The run folder as a state machine: what a dead process left, what a living one holds, what is refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from schane_cli.commands.finetune import finetune, run_or_resume
from schane_cli.errors import BadRequest, SchaneError
from schane_cli.models.files import read_tensors
from schane_cli.preflight import resumed_recipe, run_to_resume
from schane_cli.recipe import to_yaml
from schane_cli.run import RunFolder, remove_dead, temporary
from schane_cli.terminal import Terminal
from tests.conftest import run_cli
from tests.jobs import TINY, run_tiny, tiny_recipe

QUIET = Terminal(quiet=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "finished"
    run_tiny(out)
    return out


def copy(source: Path, target: Path, without: tuple[str, ...] = ()) -> RunFolder:
    """The run folder as it was before the files named were written."""
    shutil.copytree(source, target)
    for name in without:
        path = target / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return RunFolder(target)


def test_the_state_of_a_run_is_read_off_its_files(finished: Path, tmp_path: Path) -> None:
    assert RunFolder(tmp_path / "nothing").state == "none"
    assert RunFolder(finished).state == "finished"
    assert copy(finished, tmp_path / "stopped", ("summary.json",)).state == "stopped"
    assert copy(finished, tmp_path / "started", ("summary.json", "checkpoints")).state == "started"
    page = copy(finished, tmp_path / "reported")
    page.page.write_text("")
    assert page.state == "reported"


def test_a_run_killed_before_its_first_checkpoint_starts_anew_in_its_folder(finished: Path, tmp_path: Path) -> None:
    run = copy(finished, tmp_path / "run", ("summary.json", "checkpoints"))
    run.metrics_file.write_text('{"event": "step", "half a li')
    assert run_to_resume("finetune", tiny_recipe(), run.path) == run.path
    run_tiny(run.path, resume=True)
    again, before = read_tensors(run.best)["state_dict"], read_tensors(RunFolder(finished).best)["state_dict"]
    assert all(again[key].equal(value) for key, value in before.items())
    assert len(run.read_events("epoch")) == 3
    assert not run.lock_file.exists()


def test_the_same_command_begins_a_run_anew_that_was_killed_before_its_first_checkpoint(
    finished: Path, tmp_path: Path
) -> None:
    run = copy(finished, tmp_path / "run", ("summary.json", "checkpoints"))
    run_tiny(run.path)
    assert run.finished
    other = copy(finished, tmp_path / "other", ("summary.json", "checkpoints"))
    with pytest.raises(BadRequest, match=r"started with another recipe \(train.lr 0.5 \(there: 0.003\)\)"):
        run_tiny(other.path, train__lr=0.5)
    assert other.state == "started"


def test_a_run_killed_before_its_page_is_not_trained_again(finished: Path, tmp_path: Path) -> None:
    run = copy(finished, tmp_path / "run", ("checkpoints",))
    assert run_tiny(run.path)["test_accuracy"] == RunFolder(finished).read_summary()["test_accuracy"]
    assert not run.checkpoints.exists()
    assert resumed_recipe("finetune", run.path, {}) == tiny_recipe()
    run.page.write_text("")
    with pytest.raises(BadRequest, match="is finished; schane eval"):
        resumed_recipe("finetune", run.path, {})


@pytest.mark.usefixtures("blank_pictures")
def test_the_lock_of_a_process_that_died_after_its_summary_goes_with_the_page(finished: Path, tmp_path: Path) -> None:
    for command in (["report"], ["finetune", "--resume"]):
        run = copy(finished, tmp_path / command[0])
        for left in (run.lock_file, temporary(run.page)):
            left.write_text("process 1 on another machine")
        assert run_cli(*command, run.path) == 0
        assert run.state == "reported"
        assert not list(run.path.rglob(".*"))


@pytest.mark.parametrize("seeds", [[], ["--seeds", "0,1"]], ids=["one seed", "seeds"])
@pytest.mark.usefixtures("blank_pictures")
def test_a_job_that_is_given_out_again_finds_its_run_done(
    seeds: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = [f"--set={key}={value}" for key, value in {**TINY, "train.epochs": 1}.items()]
    job = ["finetune", *quick, *seeds, "--resume", "auto", "--out", tmp_path / "x", "--json"]
    assert run_cli(*job) == 0
    first = capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "x").rglob("*")}
    assert run_cli(*job) == 0
    again = capsys.readouterr()
    assert again.out == first
    assert f"finished already; report at {tmp_path}/x/report.html" in again.err
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "x").rglob("*")} == before
    assert run_cli("finetune", *quick, "--lr", 0.5, "--resume", "auto", "--out", tmp_path / "x") == 2  # another run
    assert "exists already" in capsys.readouterr().err


def test_a_run_of_one_command_is_not_resumed_by_another(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy(finished, tmp_path / "run", ("summary.json",))
    assert run_cli("fewshot", "--resume", run.path) == 2
    assert "was made by schane finetune; resume it by that" in capsys.readouterr().err
    assert run_to_resume("fewshot", tiny_recipe(), run.path) is None


def test_the_page_of_any_command_is_made_by_the_same_command_again(finished: Path, tmp_path: Path) -> None:
    command = ["eval", finished, "--split", "val", "--device", "cpu", "--out", tmp_path / "x"]
    assert run_cli(*command) == 0
    run = RunFolder(tmp_path / "x")
    summary, page = run.summary_file.stat().st_mtime_ns, run.page.read_text()
    run.page.unlink()
    assert run_cli(*command) == 0
    assert run.summary_file.stat().st_mtime_ns == summary
    assert run.page.read_text() == page
    assert run_cli(*command) == 2  # now it is complete
    run.page.unlink()
    assert run_cli(*command[:-2], "--ood", "digits", *command[-2:]) == 2  # another request


@pytest.mark.usefixtures("blank_pictures")
def test_a_comparison_that_was_killed_is_made_anew_and_nothing_else_is_written_over(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished, tmp_path / "a")
    other = tiny_recipe(loss__name="ce")
    shutil.copytree(finished, tmp_path / "b")
    (tmp_path / "b" / "recipe.yaml").write_text(f"# schane: finetune\n{to_yaml(other)}")
    summary = json.loads((tmp_path / "b" / "summary.json").read_text())
    (tmp_path / "b" / "summary.json").write_text(json.dumps({**summary, "loss": "ce"}))
    command = ["compare", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "x"]
    assert run_cli(*command) == 0
    files = sorted(path.name for path in (tmp_path / "x").iterdir())
    for killed_before in ("report.html", "summary.json", "runs.json", "compare.md"):
        (tmp_path / "x" / "report.html").unlink()
        (tmp_path / "x" / killed_before).unlink(missing_ok=True)
        assert run_cli(*command) == 0
        assert sorted(path.name for path in (tmp_path / "x").iterdir()) == files
    assert run_cli(*command) == 2
    (tmp_path / "x" / "report.html").unlink()
    (tmp_path / "x" / "mine.txt").write_text("mine")
    assert run_cli(*command) == 2
    assert "exists already" in capsys.readouterr().err


def test_a_folder_that_a_living_process_writes_is_refused_and_a_dead_ones_is_not(
    finished: Path, tmp_path: Path
) -> None:
    run = copy(finished, tmp_path / "run", ("summary.json",))
    hold = f"from schane_cli.run import RunFolder; from pathlib import Path; r = RunFolder(Path({str(run.path)!r})); "
    code = hold + "r.lock(); print('held', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BadRequest, match=f"is being written by process {holder.pid} on"):
            run_tiny(run.path, resume=True)
        holder.kill()
    run_tiny(run.path, resume=True)
    assert run.finished


def test_a_run_that_another_process_finished_in_the_meantime_is_left_as_it_is(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, lock = copy(finished, tmp_path / "run", ("summary.json",)), RunFolder.lock

    def late(self: RunFolder) -> None:
        shutil.copy(finished / "summary.json", run.summary_file)  # by the other, which has let go of the lock
        lock(self)

    monkeypatch.setattr(RunFolder, "lock", late)
    before = run.metrics_file.read_bytes(), run.last.read_bytes()
    with pytest.raises(BadRequest, match="was finished by another process in the meantime"):
        run_tiny(run.path, resume=True)
    assert (run.metrics_file.read_bytes(), run.last.read_bytes()) == before
    assert not run.lock_file.exists()


def test_resume_auto_passes_over_foreign_and_unreadable_folders(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("schane_cli.preflight.RESULTS", tmp_path)
    stopped = copy(finished, tmp_path / "finetune" / "a-stopped", ("summary.json",))
    for name, content in {"b-old": "model: {gone: 1}", "c-broken": "[", "d-binary": "\x00\xff"}.items():
        folder = tmp_path / "finetune" / name
        folder.mkdir()
        (folder / "recipe.yaml").write_text(content)
    (tmp_path / "finetune" / "z-note.txt").write_text("a file")
    copy(finished, tmp_path / "finetune" / "e-finished").page.write_text("")
    assert run_to_resume("finetune", tiny_recipe(), None) == stopped.path
    assert run_to_resume("finetune", tiny_recipe(seed=7), None) is None


@pytest.mark.parametrize("kept", ["nothing", "half a line"])
def test_a_log_shorter_than_the_checkpoint_remembers_is_cut_to_whole_lines_and_said(
    kept: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy(finished, tmp_path / "run", ("summary.json",))
    if kept == "nothing":
        run.metrics_file.unlink()
    else:
        run.metrics_file.write_bytes(run.metrics_file.read_bytes()[:-20])
    finetune(tiny_recipe(), out=None, terminal=Terminal(), resume=run.path)
    assert "the curves have a gap" in capsys.readouterr().out
    text = run.metrics_file.read_text() if run.metrics_file.exists() else ""
    assert "\0" not in text
    assert all(json.loads(line) for line in text.splitlines())


def test_a_recipe_edited_before_a_resume_is_refused_with_its_keys(finished: Path, tmp_path: Path) -> None:
    run = copy(finished, tmp_path / "run", ("summary.json",))
    run.recipe_file.write_text(run.recipe_file.read_text().replace("lr: 0.003", "lr: 0.5"))
    with pytest.raises(BadRequest, match=r"was changed since the run began: train.lr 0.5 \(checkpoint: 0.003\)"):
        finetune(resumed_recipe("finetune", run.path, {}), out=None, terminal=QUIET, resume=run.path)


def test_half_written_files_of_dead_processes_are_removed_and_of_living_ones_kept(tmp_path: Path) -> None:
    code = "import os; print(os.getpid())"
    dead = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    mine = temporary(tmp_path / "block")
    left = mine.with_name(mine.name.replace(str(os.getpid()), dead.stdout.strip()))
    elsewhere = mine.with_name(f".block.tmp-another-machine-{dead.stdout.strip()}")
    for path in (mine, left, elsewhere):
        path.write_text("")
    remove_dead(tmp_path)
    assert mine.exists()
    assert elsewhere.exists()
    assert not left.exists()


def test_a_file_where_the_run_folder_should_be_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BadRequest, match="exists already; choose another --out"):
        run_tiny(tmp_path / "file")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "note.txt").write_text("mine")
    with pytest.raises(BadRequest, match="exists already; choose another --out"):
        run_tiny(tmp_path / "folder")
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["note.txt"]


def test_a_summary_that_cannot_be_written_leaves_the_old_one_whole(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy(finished, tmp_path / "run")
    before = run.summary_file.read_bytes()

    def full(self: Path, *_: object, **__: object) -> int:
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(SchaneError, match="cannot be written: No space left"):
        run.finish({"accuracy": 1.0})
    monkeypatch.undo()
    assert run.summary_file.read_bytes() == before
    assert not list(run.path.glob(".*"))


def test_a_name_with_a_newline_stays_in_the_comment_of_recipe_yaml(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    hostile = "eval a\nseed: 7\n\x1b[31m\r\u2028model: {args: {x: 1}}"
    recipe = tiny_recipe(data__dataset="folder:/x\ny: [/red]\x1b[31m #")
    run.create(recipe, hostile)
    assert run.read_recipe() == recipe
    assert run.recipe_file.read_text().splitlines()[0].startswith("# schane")
    run.create(recipe, hostile)  # the very same request
    run.close()


def test_a_finished_run_that_is_kept_loses_what_a_dead_process_left(tmp_path: Path) -> None:
    run_tiny(tmp_path / "run", train__epochs=1)
    left = [tmp_path / "run" / name for name in (".lock", ".report.html.tmp-elsewhere-1")]
    for file in left:
        file.touch()
    kept = run_or_resume(finetune, tiny_recipe(train__epochs=1), tmp_path / "run", QUIET)
    assert kept == RunFolder(tmp_path / "run").read_summary()
    assert not any(file.exists() for file in left)
