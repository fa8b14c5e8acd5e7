"""What works: one backbone of every timm module through a run, an evaluation and both exports, as users do it.

    python benchmarks/backbones.py [--onnx] [--only NAME ...] [--seconds 120]
    python benchmarks/backbones.py --markdown

Random weights, the smallest image of SIZES that the backbone takes, twelve cuts of scikit-learn's two photographs in
three classes. `schane finetune` makes one training step and scores val and test; the checkpoint is read back; `schane
export` compares photographs with what eval scores. Each backbone has a process of its own with a limit of processor
seconds, and a line for each half (timm, ONNX) in results/benchmarks/backbones.jsonl: a second call runs what is missing
there, small backbones first. --onnx adds the slower ONNX export. --markdown writes the table of these lines.
"""

import argparse
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from importlib import metadata
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.models import list_models, list_modules

from schane_cli.commands.export import TOLERANCE, export
from schane_cli.commands.finetune import finetune
from schane_cli.errors import BadRequest, SchaneError
from schane_cli.models.checkpoint import load_checkpoint
from schane_cli.recipe import build_recipe
from schane_cli.terminal import Terminal

NAMES = (
    "beit_base_patch16_224",
    "eca_botnext26ts_256",
    "mobileone_s1",
    "cait_xxs24_224",
    "coat_tiny",
    "convit_tiny",
    "convmixer_768_32",
    "convnext_atto",
    "cpubone_nano",
    "crossvit_tiny_240",
    "csatv2",
    "cs3darknet_focus_s",
    "cspnext_tiny",
    "davit_tiny",
    "deit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "densenet121",
    "dla34",
    "dpn48b",
    "edgenext_xx_small",
    "efficientformer_l1",
    "efficientformerv2_s0",
    "tinynet_e",
    "tf_efficientnet_lite0",
    "mobilenetv2_035",
    "efficientvim_m1",
    "efficientvit_b0",
    "efficientvit_m0",
    "vit_tiny_patch16_dinov3_qkvb",
    "fasternet_t0",
    "fastvit_t8",
    "focalnet_tiny_srf",
    "gcvit_xxtiny",
    "ghostnet_050",
    "hardcorenas_a",
    "hgnetv2_b0",
    "hiera_tiny_224",
    "sam2_hiera_tiny",
    "hrnet_w18_small",
    "iformer_t",
    "inception_next_atto",
    "inception_resnet_v2",
    "inception_v3",
    "inception_v4",
    "lcnetv2_small",
    "levit_128s",
    "lowformer_b0",
    "mambaout_femto",
    "maxvit_pico_rw_256",
    "poolformerv2_s12",
    "caformer_s18",
    "convformer_s18",
    "mixer_s16_224",
    "mobilenetv3_small_050",
    "mobilevit_xxs",
    "mvitv2_tiny",
    "nest_tiny",
    "nextvit_small",
    "nf_regnet_b0",
    "pit_ti_224",
    "pit_ti_distilled_224",
    "pvt_v2_b0",
    "rdnet_tiny",
    "regnetx_002",
    "repghostnet_050",
    "repvit_m0_9",
    "res2net50_48w_2s",
    "resnest14d",
    "resnet10t",
    "resnet12",
    "resnetv2_18",
    "rexnet_100",
    "selecsls42",
    "legacy_seresnet18",
    "sequencer2d_s",
    "shvit_s1",
    "skresnet18",
    "starnet_s050",
    "swiftformer_xs",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
    "swinv2_cr_tiny_224",
    "tiny_vit_5m_224",
    "tnt_s_legacy_patch16_224",
    "tresnet_m",
    "twins_svt_small",
    "vgg11",
    "visformer_tiny",
    "vit_tiny_patch16_224",
    "vit_tiny_r_s16_p8_224",
    "vit_relpos_small_patch16_224",
    "vitamin_small_224",
    "volo_d1_224",
    "ese_vovnet19b_slim",
    "legacy_xception",
    "xception41",
    "xcit_nano_12_p16_224",
    "mobilenetv5_base",
    "naflexvit_base_patch16_gap",
    "nasnetalarge",
    "pnasnet5large",
    "qwen3_vit_88m",
    "samvit_base_patch16_224",
    "gemma4_vit_167m",
    "deepseek_vit_412m",
)
RUNS = Path("results/benchmarks/backbones.jsonl")
HALVES = ("timm", "onnx")
SIZES = (64, 96, 128, 192, 224, 240, 256, 299, 320, 384, 512, 768, 1024)
QUIET = Terminal(quiet=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=RUNS)
    parser.add_argument("--onnx", action="store_true", help="export to ONNX as well")
    parser.add_argument("--only", nargs="*", default=NAMES)
    parser.add_argument("--seconds", type=int, default=120, help="processor seconds a backbone may take")
    parser.add_argument("--markdown", action="store_true", help="write the table beside the lines, and run nothing")
    asked = parser.parse_args()
    if asked.markdown:
        asked.runs.with_suffix(".md").write_text(report(read(asked.runs)))
        return
    halves = HALVES if asked.onnx else HALVES[:1]
    done = {(line["backbone"], line["half"]) for line in read(asked.runs)}
    parameters = {line["backbone"]: line["parameters"] for line in read(asked.runs) if "parameters" in line}
    for name in sorted(asked.only, key=lambda name: parameters.get(name, float("inf"))):
        missing = [half for half in halves if (name, half) not in done]
        for line in in_a_process(name, missing, asked.seconds) if missing else []:
            with asked.runs.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)


def read(path: Path) -> list[dict[str, Any]]:
    """The lines made so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def in_a_process(name: str, halves: Sequence[str], seconds: int) -> list[dict[str, Any]]:
    """A line for each half of one backbone, made by a copy of this process that may take so many processor seconds."""
    module = next((module for module in list_modules() if name in list_models(module=module)), "schane")
    with tempfile.TemporaryDirectory() as folder:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
            with os.fdopen(writer, "w") as pipe:
                for line in once(name, halves, Path(folder)):
                    print(json.dumps(line), file=pipe, flush=True)
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            lines = [json.loads(line) for line in pipe]
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    slow = -code in {signal.SIGXCPU, signal.SIGKILL}
    ended = {"error": f"took over {seconds} processor seconds" if slow else f"the process crashed ({code})"}
    versions = {package: metadata.version(package) for package in ("timm", "torch", "onnx", "onnxscript")}
    shown = {"backbone": name, "module": module, "date": str(date.today()), "versions": versions}
    return [{**shown, "half": half, **(line or ended)} for half, line in zip_longest(halves, lines)]


def once(name: str, halves: Sequence[str], folder: Path) -> Iterator[dict[str, Any]]:
    """Train, evaluate and reload one backbone, export it by each half; what was measured on the way, or an error."""
    photographs(folder / "data")
    started = time.process_time()
    trained: dict[str, Any] = {}
    for half in halves:
        try:
            trained = trained or {**trained_once(name, folder), "train_cpu_seconds": process_seconds(started)}
            started = time.process_time()
            exported = export(folder / "run", format=half, out=folder / half, terminal=QUIET)
            difference = {"largest_logit": exported["max_abs_logit"], "difference": exported["max_abs_difference"]}
            yield {**trained, "export_cpu_seconds": process_seconds(started), **difference}
        except SchaneError as error:
            yield {"error": str(error).replace(str(folder), "")}
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            yield {"error": f"TRACEBACK {type(error).__name__}: {error}"}


def trained_once(name: str, folder: Path) -> dict[str, Any]:
    summary, size = smallest(lambda size: train(name, size, folder))
    model = load_checkpoint(folder / "run").model
    return {
        "size": size,
        "parameters": sum(parameter.numel() for parameter in model.backbone.parameters()),
        "embedding_dim": model.embedding_dim,
        "direct": model.heads.direct,
        "test_n": summary["test_n"],
    }


def process_seconds(since: float) -> float:
    return round(time.process_time() - since, 1)


def smallest(run: Callable[[int], dict[str, Any]]) -> tuple[dict[str, Any], int]:
    """The run at the first of SIZES that the backbone takes."""
    refused: BadRequest | None = None
    for size in SIZES:
        try:
            return run(size), size
        except BadRequest as error:
            if "cannot take images of" not in str(error):
                raise
            refused = error
    assert refused is not None
    raise refused


def train(name: str, size: int, folder: Path) -> dict[str, Any]:
    """One step of the SCHaNe objective on six images, two views each; the epoch's weights are scored."""
    values = {
        "data.dataset": f"folder:{folder / 'data'}",
        "data.image_size": size,
        "data.workers": 0,
        "model.backbone": name,
        "model.weights": "random",
        "train.epochs": 1,
        "train.batch_size": 6,
        "train.lr": 1e-3,
        "train.warmup_epochs": 0,
        "device": "cpu",
    }
    return finetune(build_recipe({}, values), out=folder / "run", terminal=QUIET)


def photographs(folder: Path) -> None:
    """Twelve cuts of two photographs as class folders below train, val and test."""
    generator, sources = np.random.default_rng(0), load_sample_images().images
    for split, count in (("train", 2), ("val", 1), ("test", 1)):
        for label in "abc":
            (folder / split / label).mkdir(parents=True)
            for number in range(count):
                height, width, top, left = generator.integers((60, 60, 0, 0), (300, 300, 120, 300))
                cut = sources[ord(label) % 2][top : top + height, left : left + width]
                Image.fromarray(cut).save(folder / split / label / f"{number}.png")


def report(lines: list[dict[str, Any]]) -> str:
    """The table of what works, what does not, and what was not run."""
    timm, onnx = ({line["backbone"]: line for line in lines if line["half"] == half} for half in HALVES)
    header = ("module", "backbone", "parameters, M", "size", "embedding", "head", "timm: difference")
    text = [
        "# Which backbones work",
        "",
        *introduction(timm, onnx),
        "",
        "Size: side of the images in pixels, the smallest tried that the backbone takes. Difference: the largest of "
        "any logit, as a share of the largest logit. Head: `linear` is one linear layer on the embedding; the logits "
        "of the others (two heads, a norm or a second layer in the head, a convolution) are asked of the backbone.",
        "",
        f"| {' | '.join(header)} | ONNX: difference |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    names = sorted({*timm, *onnx}, key=lambda name: ((timm.get(name) or onnx[name])["module"], name))
    return "\n".join([*text, *(row(name, timm.get(name), onnx.get(name)) for name in names)]) + "\n"


def introduction(timm: dict[str, dict[str, Any]], onnx: dict[str, dict[str, Any]]) -> list[str]:
    """What was run, on what, and by name what was not."""
    lines = [*timm.values(), *onnx.values()]
    versions = {f"{package} {version}" for line in lines for package, version in line["versions"].items()}
    first, *_, last = sorted(line["date"] for line in (*lines, *lines))
    text = [
        f"{len(working(timm))} of {len(timm)} backbones of {len({line['module'] for line in lines})} modules, random "
        "weights, went through one training step, an evaluation, a reload and an export to timm, whose logits for six "
        f"photographs were compared with those that `schane eval` scores. {exported(onnx, timm)} Made by "
        f"`benchmarks/backbones.py` on a CPU, one thread; {', '.join(sorted(versions))}; "
        f"{first if first == last else f'{first} to {last}'}.",
    ]
    untried = [name for name in NAMES if name not in timm]
    if untried:
        text += ["", f"Nothing was run for {len(untried)} of its names: {', '.join(untried)}."]
    return text


def exported(onnx: dict[str, dict[str, Any]], timm: dict[str, dict[str, Any]]) -> str:
    """A sentence on the ONNX half."""
    if not onnx:
        return "None was exported to ONNX."
    return (
        f"{len(onnx)} of the {len(timm)} were exported to ONNX too: {len(working(onnx))} gave the same logits in "
        "onnxruntime."
    )


def working(lines: dict[str, dict[str, Any]]) -> list[str]:
    """The backbones without an error whose logits agree: to 1e-4 of the largest, which may be far below 1 here."""
    return [name for name, line in lines.items() if "error" not in line and relative(line) <= TOLERANCE]


def row(name: str, timm: dict[str, Any] | None, onnx: dict[str, Any] | None) -> str:
    usable = next((line for line in (timm, onnx) if line and "error" not in line), None)
    described = ["", "", "", ""]
    if usable:
        head = "linear" if usable["direct"] else "own"
        described = [f"{usable['parameters'] / 1e6:.1f}", usable["size"], usable["embedding_dim"], head]
    cells = [(timm or onnx or {})["module"], name, *described, share(timm), share(onnx)]
    return f"| {' | '.join(map(str, cells))} |"


def share(line: dict[str, Any] | None) -> str:
    if line is None:
        return "not run"
    return line["error"] if "error" in line else f"{relative(line):.1g}"


def relative(line: dict[str, Any]) -> float:
    difference: float = line["difference"] / max(line["largest_logit"], 1e-30)
    return difference


if __name__ == "__main__":
    main()
