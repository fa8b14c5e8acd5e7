"""The results of a finished run, given to the trackers of its training."""

from pathlib import Path

from schane_cli.commands.compare import make_run
from schane_cli.errors import SchaneError
from schane_cli.run import RunFolder
from schane_cli.terminal import Terminal
from schane_cli.training.trackers import send_results


def share_results(path: Path, terminal: Terminal) -> None:
    """Send metrics, hyper-parameters and page of a run, and of the runs below it, to its recipe's trackers.

    A tracker that has gone by now is only reported: the run is complete without it.
    """
    for run in RunFolder.below(path):
        if not run.finished or "runs" in run.read_summary() or not run.page.is_file():
            continue
        figures = {
            name: value
            for name, value in make_run(str(run.path), run.read_settings(), run.read_summary()).values.items()
            if value == value  # trackers take no NaN
        }
        try:
            send_results(run.path, figures)
        except SchaneError as error:
            terminal.say(str(error))
