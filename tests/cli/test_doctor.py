"""`schane doctor`: the self-tests pass on a sound machine and fail on a broken part."""

import json
from typing import Any

import pytest
import torch

from schane_cli.commands import doctor_checks
from schane_cli.commands.doctor import doctor
from schane_cli.losses import SchaneLoss
from schane_cli.terminal import Terminal
from tests.conftest import run_cli

CPU = torch.device("cpu")


def test_every_check_passes_here_and_the_answer_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("doctor", "--json", "--backbone", "test_vit", "--device", "cpu") == 0
    findings = json.loads(capsys.readouterr().out)
    checks = {check["name"]: check for check in findings["checks"]}
    assert findings["ok"]
    assert {name for name, check in checks.items() if check["ok"]} == {"loss", "gradient caching", "resume"}
    assert torch.__version__.startswith(findings["environment"]["torch"])


def test_a_loss_that_is_off_by_a_part_in_a_thousand_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*arguments: Any, **options: Any) -> Any:
        criterion = SchaneLoss(*arguments, **options)
        return lambda rows, labels: 1.001 * criterion(rows, labels)

    monkeypatch.setattr(doctor_checks, "SchaneLoss", wrong)
    ok, text = doctor_checks.losses_agree(CPU)
    assert not ok
    assert "dense 1e-03" in text


def test_the_double_loop_is_the_loss_that_is_trained() -> None:
    rows, labels = torch.randn(12, 4, generator=torch.Generator().manual_seed(3)).double(), torch.arange(12) % 3
    expected = SchaneLoss(temperature=0.2, hardness=2.0)(rows, labels)
    assert float(doctor_checks.double_loop(rows, labels, temperature=0.2, hardness=2.0)) == pytest.approx(
        float(expected)
    )


def test_a_check_that_raises_is_a_failure_and_the_others_still_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(device: torch.device) -> tuple[bool, str]:
        raise RuntimeError("illegal instruction")

    monkeypatch.setattr("schane_cli.commands.doctor.losses_agree", broken)
    for name in ("resume_is_exact", "loader_speed", "step_speed"):  # which the first test waits for
        monkeypatch.setattr(f"schane_cli.commands.doctor.{name}", lambda *_: (True, "not measured"))
    findings = doctor("test_vit", device_name="cpu", terminal=Terminal(quiet=True))
    checks = {check["name"]: check for check in findings["checks"]}
    assert not findings["ok"]
    assert checks["loss"]["text"] == "RuntimeError: illegal instruction"
    assert checks["resume"]["ok"]


def test_an_unknown_backbone_is_refused_before_anything_is_measured() -> None:
    assert run_cli("doctor", "--backbone", "no_such_net") == 2
