"""The Triton kernels: their arithmetic under Triton's interpreter on CPU, their compilation for CUDA, and on a GPU."""

import importlib.util
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from schane_cli.losses.contrastive import CrossBatchMemory, SchaneLoss, SupConLoss
from tests.losses.test_contrastive import batch, relative, value_and_gradient

CASES = {
    "one tile": (2, 16, {"temperature": 0.5}),
    "borders of rows, columns and features": (70, 40, {"temperature": 0.5}),
    "hardness 0": (45, 16, {"temperature": 0.3, "hardness": 0.0}),
    "hardness 2.5, low temperature": (45, 33, {"temperature": 0.01, "hardness": 2.5}),
    "hardness 5": (33, 16, {"temperature": 0.02, "hardness": 5.0, "positives": "sum"}),
    "constant weights": (45, 16, {"temperature": 0.2, "stop_gradient": True}),
    "supcon": (45, 20, {"temperature": 0.2}),
    "rows that are not anchors": (40, 16, {"temperature": 0.2, "hardness": 0.7}),
    "one class": (20, 16, {"temperature": 0.2}),
}
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton on this platform")


def deviations(case: str, device: str, allow_tf32: bool = False) -> dict[str, float]:
    """Of value and gradient from the dense form in float64."""
    n, d, options = CASES[case]
    projection, labels = batch(n, d, 5, dtype=torch.float32)
    labels = labels * 0 if case == "one class" else labels
    kind = SupConLoss if case == "supcon" else SchaneLoss
    outcomes = []
    for dtype, backend in ((torch.float64, "dense"), (torch.float32, "triton")):
        memory = None
        if case == "rows that are not anchors":
            memory = CrossBatchMemory(size=30, dim=d).to(device)
            memory.push(torch.nn.functional.normalize(projection[:25]).to(device), labels[:25].to(device))
        criterion = kind(**options, backend=backend, memory=memory, allow_tf32=allow_tf32)
        outcomes.append(value_and_gradient(criterion, projection.to(device, dtype), labels.to(device)))
    (expected, slope), (value, gradient) = outcomes
    return {"value": relative(value, expected), "gradient": relative(gradient, slope)}


def interpret() -> None:
    """Prints the deviations of all cases. Runs in a process of its own: Triton reads TRITON_INTERPRET on import."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor, scope):
        patch(tensor, scope)  # its own __index__ calls int() on one-element arrays, which NumPy 2.4 refuses
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patched
    torch.set_num_threads(1)
    print(json.dumps({case: deviations(case, "cpu") for case in CASES}))


@pytest.fixture(scope="module")
def interpreted() -> dict[str, dict[str, float]]:
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", "from tests.losses.test_triton import interpret; interpret()"],
        cwd=root,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        pytest.fail(f"the interpreter run failed:\n{run.stderr[-3000:]}")
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize("case", CASES)
def test_interpreted_kernels_give_what_the_dense_form_gives_in_float64(interpreted, case):
    assert interpreted[case]["value"] < 1e-5
    assert interpreted[case]["gradient"] < 1e-4


COMPILE = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from schane_cli.losses import triton as kernels
numbers = {name: "fp32" for name in ("scale", "hardness")}
tensors = {name: "*fp32" for name in ("pool", "sums", "numbers", "grad")} | {"classes": "*i32"}
blocks = {"HARDNESS_KIND": KIND, "ROWS": 128, "COLUMNS": 64, "INNER": 32, "OUTPUT": 128, "PRECISION": "tf32x3"}
for kernel in (kernels._sums_kernel, kernels._gradient_kernel):
    fixed = {name: value for name, value in blocks.items() if name in kernel.arg_names}
    types = {name: (numbers | tensors).get(name, "i32") for name in kernel.arg_names if name not in fixed}
    aligned = [name for name in types if name in tensors or name in ("n", "d")]
    source = ASTSource(
        fn=kernel,
        signature={name: types.get(name, "constexpr") for name in kernel.arg_names},
        constexprs=fixed,
        attrs={(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    done = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8, "num_stages": 2})
    print(kernel.__name__, len(done.asm["cubin"]), done.metadata.shared)
"""


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize("hardness_kind", [0, 1, 2])
def test_the_kernels_compile_for_hopper_without_a_device(hardness_kind):
    root = Path(__file__).parents[2]
    script = COMPILE.replace("KIND,", f"{hardness_kind},", 1)
    run = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    for line in run.stdout.splitlines():
        assert int(line.split()[2]) <= 227 * 1024, f"more shared memory than a multiprocessor has: {line}"


@needs_triton
def test_triton_off_cuda_is_refused_by_name():
    pytest.importorskip(
        "triton.knobs", reason="Triton before 3.4 (torch 2.8): tiled, with a warning", exc_type=ImportError
    )
    projection, labels = batch(8, 4, 2, dtype=torch.float32)
    with pytest.raises(ValueError, match="backend is 'triton' and projection is on cpu; it must be on CUDA"):
        SchaneLoss(temperature=0.5, backend="triton")(projection, labels)
    with pytest.raises(ValueError, match=r"backend is 'triton' and projection is torch.float64"):
        SchaneLoss(temperature=0.5, backend="triton")(projection.double(), labels)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
class TestOnAGpu:
    @pytest.mark.parametrize("case", CASES)
    def test_kernels_give_what_the_dense_form_gives_in_float64(self, case):
        outcomes = deviations(case, "cuda")
        assert outcomes["value"] < 1e-5
        assert outcomes["gradient"] < 1e-4

    @pytest.mark.parametrize(("n", "d"), [(4097, 128), (1000, 768), (257, 1024)])
    @pytest.mark.parametrize("temperature", [0.01, 0.5])
    def test_real_sizes_stay_within_1e_5_and_1e_4(self, n, d, temperature):
        projection, labels = (tensor.cuda() for tensor in batch(n, d, 20, dtype=torch.float32))
        form = partial(SchaneLoss, temperature=temperature)
        expected, slope = value_and_gradient(form(backend="dense"), projection.double(), labels)
        value, gradient = value_and_gradient(form(), projection, labels)
        assert relative(value, expected) < 1e-5
        assert relative(gradient, slope) < 1e-4

    def test_the_same_input_gives_the_same_bits(self):
        projection, labels = (tensor.cuda() for tensor in batch(3001, 128, 20, dtype=torch.float32))
        first, again = (value_and_gradient(SchaneLoss(temperature=0.1), projection, labels) for _ in range(2))
        assert torch.equal(first[0], again[0])
        assert torch.equal(first[1], again[1])

    def test_tf32_is_used_only_where_asked(self):
        projection, labels = (tensor.cuda() for tensor in batch(2048, 128, 20, dtype=torch.float32))
        _, slope = value_and_gradient(SchaneLoss(temperature=0.1, backend="dense"), projection.double(), labels)
        _, full = value_and_gradient(SchaneLoss(temperature=0.1), projection, labels)
        _, fast = value_and_gradient(SchaneLoss(temperature=0.1, allow_tf32=True), projection, labels)
        assert relative(full, slope) < 1e-5 < relative(fast, slope) < 1e-2

    def test_65536_rows_need_at_most_512_megabytes_over_the_inputs(self):
        projection = torch.randn(65536, 128, device="cuda", requires_grad=True)
        labels = torch.arange(65536, device="cuda") % 1000
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        SchaneLoss(temperature=0.1)(projection, labels).backward()
        assert torch.cuda.max_memory_allocated() - before < 512 * 2**20
