"""The temperature of held-out images, and what is said where they determine none."""

import torch

from schane_cli.commands.calibration import calibrate
from schane_cli.reports.predict import sentences


def test_images_that_are_all_right_determine_no_calibration_and_one_sentence_says_so() -> None:
    made = calibrate(5 * torch.eye(4).repeat(2, 1), torch.arange(4).repeat(2))
    assert (made.n, made.fitted, made.temperature) == (8, False, 1.0)
    summary = {"confidence_note": made.note, "temperature_val_n": made.n, "unreadable": 0}
    assert sentences(summary) == [
        "the 8 val images do not determine a calibration; the confidence is the model's own, uncalibrated"
    ]


def test_right_and_wrong_images_determine_one() -> None:
    logits = 5 * torch.eye(4).repeat(2, 1)
    labels = torch.tensor([0, 1, 2, 3, 0, 1, 2, 0])
    made = calibrate(logits, labels)
    assert made.fitted
    assert made.temperature != 1
    assert made.note == ""
