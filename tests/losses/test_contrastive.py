"""The objectives against a double loop written from the method's definition, the release's values, and properties."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from schane_cli import losses as registry
from schane_cli.losses import CrossBatchMemory, SchaneLoss, SimCLRLoss, SupConLoss, contrastive_loss
from schane_cli.losses import contrastive as losses

BACKENDS = ("dense", "tiled")


def double_loop_schane(
    projection: Tensor,
    labels: Tensor,
    temperature: float,
    hardness: float,
    positives: str = "mean",
    stop_gradient: bool = False,
) -> Tensor:
    """Anchor by anchor, pair by pair, in the input's dtype. Exponentials are shifted by the row's largest cosine
    in numerator and denominator alike, which the printed form leaves out and a float64 needs at temperature 0.01."""
    z = F.normalize(projection, dim=1)
    losses = []
    for i in range(len(z)):
        cosine = [z[i] @ z[j] for j in range(len(z))]
        top = max(c.item() for j, c in enumerate(cosine) if j != i)
        pos = [torch.exp((cosine[j] - top) / temperature) for j in range(len(z)) if j != i and labels[j] == labels[i]]
        negatives = [j for j in range(len(z)) if labels[j] != labels[i]]
        if not pos or not negatives:
            continue
        peak = max(cosine[k].item() for k in negatives)
        raw = torch.stack([torch.exp(hardness * (cosine[k] - peak) / temperature) for k in negatives])
        weight = raw / raw.mean()
        weight = weight.detach() if stop_gradient else weight
        neg = sum(w * torch.exp((cosine[k] - top) / temperature) for w, k in zip(weight, negatives, strict=True))
        total = torch.stack(pos).sum()
        if positives == "mean":
            mean = total / len(pos)
            losses.append(-torch.log(mean / (mean + neg)))
        else:
            losses.append(-torch.log(total / (total + neg) / len(pos)))
    return torch.stack(losses).mean() if losses else projection.sum() * 0


def double_loop_supcon(projection: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """L_out of arXiv:2004.11362, term by term."""
    z = F.normalize(projection, dim=1)
    losses = []
    for i in range(len(z)):
        logit = {j: z[i] @ z[j] / temperature for j in range(len(z)) if j != i}
        denominator = torch.logsumexp(torch.stack(list(logit.values())), 0)
        terms = [denominator - logit[j] for j in logit if labels[j] == labels[i]]
        if terms:
            losses.append(torch.stack(terms).mean())
    return torch.stack(losses).mean() if losses else projection.sum() * 0


def value_and_gradient(loss: Callable[[Tensor, Tensor], Tensor], projection: Tensor, labels: Tensor):
    leaf = projection.detach().clone().requires_grad_()
    value = loss(leaf, labels)
    value.backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad


def relative(ours: Tensor, reference: Tensor) -> float:
    """Largest deviation relative to the largest entry: a gradient's small entries are differences of large ones."""
    scale = float(reference.abs().max()) or 1.0
    return float((ours.double() - reference.double()).abs().max()) / scale


def batch(n: int, d: int, classes: int, seed: int = 0, dtype=torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    projection = torch.randn(n, d, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (n,), generator=generator)
    return (projection + torch.randn(classes, d, generator=generator, dtype=torch.float64)[labels]).to(dtype), labels


CASES = {
    "pair of one class": torch.tensor([3, 3]),
    "two classes": torch.tensor([0, 0, 1, 1]),
    "two views, unbalanced": torch.tensor([5, 5, 5, -1, 2, 5, 5, 5, 5, -1, 2, 5]),
    "three views": torch.arange(4).repeat(3),
    "an anchor without positives": torch.tensor([0, 0, 7, 1, 1, 1, 9]),
    "no positives at all": torch.arange(5),
    "one class": torch.zeros(6, dtype=torch.int64),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("stop_gradient", [False, True])
@pytest.mark.parametrize("positives", ["mean", "sum"])
def test_schane_equals_the_double_loop_in_float64(backend, case, stop_gradient, positives):
    labels = CASES[case]
    for temperature in (0.01, 0.1, 0.5, 1.0):
        for hardness in (0.0, 0.3, 1.0, 5.0):
            projection = torch.randn(len(labels), 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
            options = {
                "temperature": temperature,
                "hardness": hardness,
                "positives": positives,
                "stop_gradient": stop_gradient,
            }
            expected, slope = value_and_gradient(partial(double_loop_schane, **options), projection, labels)
            criterion = SchaneLoss(**options, backend=backend)
            value, gradient = value_and_gradient(criterion, projection, labels)
            assert relative(value, expected) < 1e-10
            assert relative(gradient, slope) < 1e-10


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_supcon_equals_the_double_loop_in_float64(backend, case):
    labels = CASES[case]
    projection = torch.randn(len(labels), 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for temperature in (0.01, 0.1, 0.5, 1.0):
        expected, slope = value_and_gradient(partial(double_loop_supcon, temperature=temperature), projection, labels)
        criterion = SupConLoss(temperature=temperature, backend=backend)
        value, gradient = value_and_gradient(criterion, projection, labels)
        assert relative(value, expected) < 1e-10
        assert relative(gradient, slope) < 1e-10


def test_simclr_with_two_views_is_nt_xent():
    projection, _ = batch(16, 7, 4)
    z = F.normalize(projection, dim=1)
    logits = (z @ z.T / 0.3).masked_fill(torch.eye(16, dtype=torch.bool), -math.inf)
    expected = F.cross_entropy(logits, (torch.arange(16) + 8) % 16)
    loss = SimCLRLoss(temperature=0.3)(projection, torch.arange(8).repeat(2))
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_values_and_gradients_of_the_release_are_met(real_data, backend):
    cases = json.loads((real_data / "release_reference.json").read_text())
    assert len(cases) == 8
    for case in cases:
        views = torch.tensor(case["projection"], dtype=torch.float64)  # (images, views, d)
        flat = torch.cat(views.unbind(1))
        labels = torch.tensor(case["labels"]).repeat(views.shape[1])
        criterion = SchaneLoss(temperature=case["temperature"], hardness=case["hardness"], backend=backend)
        value, gradient = value_and_gradient(criterion, flat, labels)
        slope = torch.cat(torch.tensor(case["gradient"], dtype=torch.float64).unbind(1))
        assert relative(value, torch.tensor(case["loss"], dtype=torch.float64)) < 1e-10
        assert relative(gradient, slope) < 1e-9


def test_a_loss_asked_for_by_name_is_the_class_with_the_options_that_it_has():
    projection, labels = batch(20, 6, 3)
    options = {"hardness": 2.0, "positives": "sum", "stop_gradient": True}
    torch.testing.assert_close(
        contrastive_loss("schane", temperature=0.2, pool="global", **options)(projection, labels),
        SchaneLoss(temperature=0.2, **options)(projection, labels),
    )
    torch.testing.assert_close(
        contrastive_loss("easy", temperature=0.2, pool="local", **options)(projection, labels),
        SchaneLoss(temperature=0.2, hardness=0.0, positives="sum")(projection, labels),
    )
    for name, kind in (("supcon", SupConLoss), ("simclr", SimCLRLoss)):
        criterion = contrastive_loss(name, temperature=0.2, pool="global", **options)
        assert type(criterion) is kind
        torch.testing.assert_close(criterion(projection, labels), SupConLoss(temperature=0.2)(projection, labels))
    with pytest.raises(ValueError, match="name is 'ce'; allowed: schane, easy, supcon, simclr"):
        contrastive_loss("ce", temperature=0.2, pool="global", **options)


def test_a_registered_loss_without_a_constructor_is_given_no_options(monkeypatch: pytest.MonkeyPatch) -> None:
    class Nothing(torch.nn.Module):
        def forward(self, projection: Tensor, labels: Tensor) -> Tensor:
            return 0 * projection.sum()

    monkeypatch.setattr(registry, "_LOSSES", registry._LOSSES | {"nothing": Nothing})
    assert isinstance(contrastive_loss("nothing", temperature=0.2, pool="global"), Nothing)


def closed_form(projection: Tensor, labels: Tensor, temperature: float, hardness: float, positives: str) -> Tensor:
    """The double loop as whole matrices, in the input's dtype: itself held to the double loop by the test below."""
    x = F.normalize(projection, dim=1) @ F.normalize(projection, dim=1).T / temperature
    same = labels[:, None] == labels
    pos, neg = same & ~torch.eye(len(x), dtype=torch.bool), ~same
    valid = pos.any(1) & neg.any(1)
    if not valid.any():
        return projection.sum() * 0
    x, pos, neg = x[valid], pos[valid], neg[valid]
    log_pos = x.masked_fill(~pos, -math.inf).logsumexp(1)
    weight = (hardness * x).masked_fill(~neg, -math.inf).log_softmax(1) + neg.sum(1, keepdim=True).to(x.dtype).log()
    log_neg = (x + weight).masked_fill(~neg, -math.inf).logsumexp(1)
    count = pos.sum(1).to(x.dtype).log()
    log_pos = log_pos - count if positives == "mean" else log_pos
    extra = count if positives == "sum" else 0
    return (torch.logaddexp(log_pos, log_neg) - log_pos + extra).mean()


def test_the_matrix_reference_equals_the_double_loop():
    projection, labels = batch(15, 6, 4)
    for positives in ("mean", "sum"):
        torch.testing.assert_close(
            closed_form(projection, labels, 0.1, 2.0, positives),
            double_loop_schane(projection, labels, 0.1, 2.0, positives),
            rtol=1e-12,
            atol=0,
        )


SIZES = [(2, 16), (3, 1024), (65, 16), (130, 768), (513, 128)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("n", "d"), SIZES)
@pytest.mark.parametrize("positives", ["mean", "sum"])
def test_fp32_stays_within_1e_5_of_the_value_and_1e_4_of_the_gradient(monkeypatch, backend, n, d, positives):
    monkeypatch.setattr("schane_cli.losses.tiled.TILE", 100)  # several tiles, the last one cut
    monkeypatch.setattr("schane_cli.losses.tiled.PANEL_ELEMENTS", 1)
    projection, labels = batch(n, d, 6, seed=n, dtype=torch.float32)
    labels[: n // 2] = 0  # unbalanced
    labels[0], labels[1] = (90, 0) if n == 3 else (labels[0], labels[1])
    for temperature in (0.01, 0.1, 1.0):
        for hardness in (0.0, 0.5, 1.0, 5.0):
            options = {"temperature": temperature, "hardness": hardness, "positives": positives}
            expected, slope = value_and_gradient(partial(closed_form, **options), projection.double(), labels)
            value, gradient = value_and_gradient(SchaneLoss(**options, backend=backend), projection, labels)
            assert relative(value, expected) < 1e-5
            assert relative(gradient, slope) < 1e-4


@pytest.mark.slow
def test_4097_rows_meet_the_float64_form_in_fp32():
    projection, labels = batch(4097, 32, 50, dtype=torch.float32)
    options = {"temperature": 0.05, "hardness": 1.0, "positives": "mean"}
    expected, slope = value_and_gradient(partial(closed_form, **options), projection.double(), labels)
    value, gradient = value_and_gradient(SchaneLoss(**options), projection, labels)
    assert relative(value, expected) < 1e-5
    assert relative(gradient, slope) < 1e-4


@pytest.mark.parametrize(("temperature", "hardness"), [(0.5, 0.0), (0.5, 1.0), (0.3, 0.7), (0.01, 5.0), (0.001, 1.0)])
def test_tiles_of_any_size_give_what_the_dense_form_gives(monkeypatch, temperature, hardness):
    projection, labels = batch(53, 9, 4)
    for criterion in (SchaneLoss, SupConLoss):
        options = {"hardness": hardness, "stop_gradient": True} if criterion is SchaneLoss else {}
        dense = criterion(temperature=temperature, backend="dense", **options)
        expected, slope = value_and_gradient(dense, projection, labels)
        for size in (1, 7, 53, 64):
            monkeypatch.setattr("schane_cli.losses.tiled.TILE", size)
            monkeypatch.setattr("schane_cli.losses.tiled.PANEL_MIN_ROWS", size)
            monkeypatch.setattr("schane_cli.losses.tiled.PANEL_ELEMENTS", 1)
            tiled = criterion(temperature=temperature, backend="tiled", **options)
            value, gradient = value_and_gradient(tiled, projection, labels)
            torch.testing.assert_close(value, expected, rtol=1e-11, atol=0)
            assert relative(gradient, slope) < 1e-10
            for name, number in tiled.stats.items():
                torch.testing.assert_close(number, dense.stats[name], msg=name)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_input_is_computed_in_fp32_at_any_length(backend, dtype):
    projection, labels = batch(24, 16, 4)
    projection = projection.to(dtype)
    for scale in (1.0, 1e-6 if dtype == torch.float16 else 1e-30, 1e4 if dtype == torch.float16 else 1e37):
        scaled = projection * scale
        criterion = SchaneLoss(temperature=0.01, backend=backend)
        value, gradient = value_and_gradient(criterion, scaled, labels)
        expected = double_loop_schane(scaled.double(), labels, 0.01, 1.0)
        assert value.dtype == torch.float32
        assert gradient.dtype == dtype
        assert relative(value, expected) < 1e-5


def test_autocast_around_the_loss_changes_nothing():
    projection, labels = batch(300, 16, 4, dtype=torch.float32)
    expected, slope = value_and_gradient(SchaneLoss(temperature=0.1), projection, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, gradient = value_and_gradient(SchaneLoss(temperature=0.1), projection, labels)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, slope)


def test_hardness_zero_weights_all_negatives_alike():
    projection, labels = batch(30, 8, 4)
    z = F.normalize(projection, dim=1)
    similar = torch.exp(z @ z.T / 0.5)
    same = labels[:, None] == labels
    pos = (similar * (same & ~torch.eye(30, dtype=torch.bool))).sum(1) / (same.sum(1) - 1)
    expected = -torch.log(pos / (pos + (similar * ~same).sum(1))).mean()
    torch.testing.assert_close(SchaneLoss(temperature=0.5, hardness=0.0)(projection, labels), expected)


def test_order_and_length_of_the_rows_do_not_matter():
    projection, labels = batch(40, 8, 5)
    criterion = SchaneLoss(temperature=0.2)
    loss = criterion(projection, labels)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(criterion(projection[order], labels[order]), loss)
    torch.testing.assert_close(criterion(projection * torch.rand(40, 1) * 9, labels * 1000 - 7), loss)


def test_stop_gradient_keeps_the_value_and_changes_the_gradient():
    projection, labels = batch(20, 8, 4)
    value, gradient = value_and_gradient(SchaneLoss(temperature=0.2), projection, labels)
    stopped_value, stopped = value_and_gradient(SchaneLoss(temperature=0.2, stop_gradient=True), projection, labels)
    torch.testing.assert_close(stopped_value, value)
    assert relative(stopped, gradient) > 0.01


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("labels", [torch.zeros(6, dtype=torch.int64), torch.arange(6)])
def test_a_batch_without_valid_anchors_has_loss_zero_and_zero_gradients(backend, labels):
    projection = torch.randn(6, 4)
    value, gradient = value_and_gradient(SchaneLoss(temperature=0.5, backend=backend), projection, labels)
    assert value == 0
    assert torch.equal(gradient, torch.zeros(6, 4))


def test_supcon_counts_an_anchor_with_positives_and_no_negatives():
    projection, _ = batch(6, 4, 1)
    criterion = SupConLoss(temperature=0.5)
    assert criterion(projection, torch.zeros(6, dtype=torch.int64)) > 1
    assert criterion(projection, torch.arange(6)) == 0


def test_a_zero_row_has_cosine_zero_and_no_gradient():
    projection, labels = batch(8, 4, 2)
    projection[3] = 0
    value, gradient = value_and_gradient(SchaneLoss(temperature=0.5), projection, labels)
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()
    assert torch.equal(gradient[3], torch.zeros(4, dtype=torch.float64))


def test_the_stats_are_counts_and_mean_cosines_over_valid_anchors():
    projection, _ = batch(7, 5, 2)
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 9])
    criterion = SchaneLoss(temperature=0.3, hardness=2.0)
    criterion(projection.requires_grad_(), labels)
    stats = {name: float(number) for name, number in criterion.stats.items()}
    z = F.normalize(projection, dim=1).detach()
    cosine, same = z @ z.T, labels[:, None] == labels
    positive = same & ~torch.eye(7, dtype=torch.bool)
    soft, hard, plain = [], [], []
    for i in range(6):
        soft.append(0.3 * math.log(torch.exp(cosine[i][positive[i]] / 0.3).mean()))
        negatives = cosine[i][~same[i]] / 0.3
        hard.append(0.3 * float((3 * negatives).logsumexp(0) - (2 * negatives).logsumexp(0)))
        plain.append(float(cosine[i][~same[i]].mean()))
    expected = {
        "anchors": 7,
        "anchors_without_positive": 1,
        "anchors_without_negative": 0,
        "positives_per_anchor": 12 / 7,
        "positive_similarity": sum(soft) / 6,
        "negative_similarity": sum(hard) / 6,
        "effective_hardness": (sum(hard) - sum(plain)) / 6,
    }
    assert stats == pytest.approx(expected, abs=1e-10)
    assert all(number.ndim == 0 and not number.requires_grad for number in criterion.stats.values())


def test_a_memory_adds_past_rows_as_pairs_and_never_as_anchors():
    memory = CrossBatchMemory(size=12, dim=6)
    criterion = SchaneLoss(temperature=0.3, memory=memory)
    first, first_labels = batch(8, 6, 3, seed=1)
    second, second_labels = batch(8, 6, 3, seed=2)
    alone = SchaneLoss(temperature=0.3)(first, first_labels)
    torch.testing.assert_close(criterion(first, first_labels), alone)
    pool = torch.cat([second, memory.rows()[0].double()])  # the stored unit rows, in fp32
    value, gradient = value_and_gradient(criterion, second, second_labels)

    leaf = pool.clone().requires_grad_()
    z, labels = F.normalize(leaf, dim=1), torch.cat([second_labels, first_labels])
    same = labels[:, None] == labels
    x = z @ z.T / 0.3
    positive = (same & ~torch.eye(16, dtype=torch.bool))[:8]
    log_pos = x[:8].masked_fill(~positive, -math.inf).logsumexp(1) - positive.sum(1).log()
    negative = x[:8].masked_fill(same[:8], -math.inf)
    log_neg = (2 * negative).logsumexp(1) - negative.logsumexp(1) + (~same[:8]).sum(1).log()
    expected = F.softplus(log_neg - log_pos).mean()
    expected.backward()
    torch.testing.assert_close(value, expected.detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, leaf.grad[:8], rtol=1e-5, atol=1e-7)


def test_a_memory_keeps_the_newest_rows_and_survives_its_state_dict():
    memory = CrossBatchMemory(size=5, dim=2)
    for start in (0, 3, 6):
        rows = torch.arange(start, start + 3)
        memory.push(rows[:, None].expand(3, 2).float(), rows)
    assert sorted(memory.rows()[1].tolist()) == [4, 5, 6, 7, 8]
    memory.push(torch.zeros(7, 2), torch.arange(20, 27))
    assert sorted(memory.rows()[1].tolist()) == [22, 23, 24, 25, 26]
    copy = CrossBatchMemory(size=5, dim=2)
    criterion = SchaneLoss(temperature=1.0, memory=copy)
    criterion.load_state_dict(SchaneLoss(temperature=1.0, memory=memory).state_dict())
    for one in (memory, copy):
        one.push(torch.ones(2, 2), torch.tensor([50, 51]))
    assert torch.equal(copy.rows()[1], memory.rows()[1])
    assert torch.equal(copy.rows()[0], memory.rows()[0])


def test_evaluation_reads_the_memory_and_leaves_it_as_it_is():
    memory = CrossBatchMemory(size=8, dim=4)
    criterion = SchaneLoss(temperature=0.5, memory=memory)
    projection, labels = batch(6, 4, 2)
    criterion(projection, labels)
    before = memory.rows()[1].clone()
    criterion.eval()(projection, labels)
    assert torch.equal(memory.rows()[1], before)


BAD = {
    "projection has shape (4,); it must be (n, d)": (torch.randn(4), torch.arange(4)),
    "projection has shape (2, 2, 3)": (torch.randn(2, 2, 3), torch.arange(2)),
    "projection is torch.int64; it must be a floating-point tensor": (torch.ones(4, 2).long(), torch.arange(4)),
    "labels has shape (3,); it must be (4,)": (torch.randn(4, 2), torch.arange(3)),
    "labels has shape (4, 1)": (torch.randn(4, 2), torch.ones(4, 1).long()),
    "labels is torch.float32; it must be an integer tensor": (torch.randn(4, 2), torch.ones(4)),
    "NaN or infinity in 1 of 4 rows, first row 2": (torch.tensor([1.0, 2, math.nan, 3])[:, None], torch.arange(4)),
    "NaN or infinity in 2 of 3 rows, first row 0": (
        torch.tensor([math.inf, 2, -math.inf])[:, None],
        torch.arange(3),
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_refused_by_name_value_and_range(message):
    with pytest.raises(ValueError) as refusal:  # noqa: PT011 (the message is checked in full below)
        SchaneLoss(temperature=0.5)(*BAD[message])
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0; it must be a finite number > 0"),
        ({"temperature": -1}, "temperature is -1;"),
        ({"temperature": math.nan}, "temperature is nan;"),
        ({"temperature": 1.0, "hardness": -0.5}, "hardness is -0.5; it must be a finite number >= 0"),
        ({"temperature": 1.0, "hardness": math.inf}, "hardness is inf;"),
        ({"temperature": 1.0, "positives": "max"}, "positives is 'max'; allowed: mean, sum"),
        ({"temperature": 1.0, "pool": "all"}, "pool is 'all'; allowed: global, local"),
        ({"temperature": 1.0, "backend": "cuda"}, "backend is 'cuda'; allowed: auto, dense, tiled, triton"),
    ],
)
def test_bad_arguments_are_refused_by_name_value_and_range(options, message):
    with pytest.raises(ValueError) as refusal:  # noqa: PT011 (the message is checked in full below)
        SchaneLoss(**options)
    assert message in str(refusal.value)


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_the_check_a_nan_row_makes_the_loss_nan(backend):
    projection, labels = batch(9, 4, 2)
    projection[4, 1] = math.nan
    assert torch.isnan(SchaneLoss(temperature=0.5, backend=backend, check_finite=False)(projection, labels))


def test_the_file_works_when_lifted_out_alone(tmp_path):
    copy = tmp_path / "lifted.py"
    copy.write_text(Path(losses.__file__).read_text())
    script = (
        "import sys, torch; sys.modules['schane_cli'] = None; from lifted import SchaneLoss; torch.manual_seed(0);"
        "z = torch.randn(600, 8, requires_grad=True); loss = SchaneLoss(temperature=0.5)(z, torch.arange(600) % 5);"
        "loss.backward(); print(loss.item())"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    torch.manual_seed(0)
    expected = SchaneLoss(temperature=0.5)(torch.randn(600, 8), torch.arange(600) % 5)
    assert float(run.stdout) == pytest.approx(float(expected), rel=1e-6)


PEAK = """
import math, sys, torch
from schane_cli.losses import SchaneLoss
def high_water():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1])
torch.set_num_threads(1)
z, labels = torch.randn(8192, 128, requires_grad=True), torch.arange(8192) % 100
for temperature in sys.argv[1:]:
    criterion = SchaneLoss(temperature=float(temperature), backend="tiled")
    criterion(z[:1024], labels[:1024]).backward()  # takes what the libraries keep
    peaks = [math.inf]
    while min(peaks) >= 32 and len(peaks) < 4:  # once more where pages come back late
        z.grad = torch.zeros_like(z)
        open("/proc/self/clear_refs", "w").write("5")
        before = high_water()
        criterion(z, labels).backward()
        peaks.append((high_water() - before) / 1024)
    print(min(peaks), peaks)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_8192_rows_need_at_most_32_megabytes_over_the_inputs_at_any_temperature():
    fixed = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # freed tensors leave the process, and count again
    command = [sys.executable, "-c", PEAK, "0.5", "0.01"]
    said = subprocess.run(command, env=fixed, capture_output=True, text=True, check=True).stdout
    assert len(said.splitlines()) == 2
    assert all(8 < float(line.split()[0]) < 32 for line in said.splitlines()), said
