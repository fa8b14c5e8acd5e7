"""The page of any finished run made again, from nothing but its folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from schane_cli.errors import BadRequest
from schane_cli.reports.average import average_report
from schane_cli.reports.compare import compare_report
from schane_cli.reports.embed import embed_report_again
from schane_cli.reports.embed_unlabelled import unlabelled_report
from schane_cli.reports.evaluate import eval_report
from schane_cli.reports.fewshot import fewshot_report
from schane_cli.reports.finetune import finetune_report, seeds_report
from schane_cli.reports.predict import predict_report
from schane_cli.reports.review import review_report
from schane_cli.reports.study import study_report
from schane_cli.run import RunFolder
from schane_cli.terminal import Terminal

Report = Callable[[Path, Terminal], Any]


def report(run: Path, terminal: Terminal) -> Path:
    """Draw the pictures and write the page of a finished run again; returns the page.

    Raises:
        BadRequest: no finished run is there, it is of a kind that has no page, or its files were changed.
    """
    folder = RunFolder(run)
    folder.require_summary()
    folder.tidy()
    summary = folder.read_summary()
    kinds: dict[str, Report] = {
        "finetune": seeds_report if "seeds" in summary else finetune_report,
        "fewshot": predict_report if "support" in summary else fewshot_report,
        "average": average_report,
        "eval": eval_report,
        "embed": unlabelled_report if "sources" in summary else embed_report_again,
        "predict": predict_report,
        "review": review_report,
        "compare": compare_report,
        "study": study_report,
    }
    kind = str(summary.get("command", ""))
    if kind not in kinds:
        raise BadRequest(f"the run at {run} is of kind {kind!r}, which has no page; there are {', '.join(kinds)}")
    try:
        kinds[kind](run, terminal)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        raise BadRequest(
            f"{folder.summary_file} or a table beside it is not what schane {kind} writes ({reason}); run it again"
        ) from error
    return folder.page
