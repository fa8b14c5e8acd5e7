"""The results of a finished run, given to the trackers of its training."""

import math
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
        if not run.read_recipe().train.trackers or not run.finished or not run.page.is_file():
            continue
        summary = run.read_summary()
        if "runs" in summary:
            continue
        values = make_run(str(run.path), run.read_settings(), summary).values
        figures = {name: value for name, value in values.items() if not math.isnan(value)}  # trackers take no NaN
        try:
            send_results(run.path, figures)
        except SchaneError as error:
            terminal.say(str(error))
