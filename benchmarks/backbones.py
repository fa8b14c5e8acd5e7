"""What works: one backbone of every timm module through a run, an evaluation and both exports, as users do it.

    python benchmarks/backbones.py RUNS.jsonl [--onnx] [--only NAME ...] [--seconds 120]
    python benchmarks/backbones.py RUNS.jsonl --markdown results/benchmarks/backbones.md

Random weights, the smallest image of SIZES that the backbone takes, twelve cuts of scikit-learn's two photographs in
three classes. `schane finetune` makes one training step, scores val and test; the checkpoint is read back; `schane
export` compares photographs with what eval scores. Each backbone has a process of its own with a limit of processor
seconds, and its line in RUNS.jsonl: a second call goes on where the first was stopped. --onnx adds the slower ONNX
export.
"""

import argparse
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.models import list_models, list_modules

from schane_cli.commands.export import export
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
SIZES = (64, 96, 128, 192, 224, 240, 256, 299, 320, 384, 512, 768, 1024)
QUIET = Terminal(quiet=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--onnx", action="store_true", help="export to ONNX, of backbones that passed the rest")
    parser.add_argument("--only", nargs="*", default=NAMES)
    parser.add_argument("--seconds", type=int, default=120, help="processor seconds a backbone may take")
    parser.add_argument("--markdown", type=Path)
    asked = parser.parse_args()
    if asked.markdown:
        asked.markdown.write_text(report(read(asked.runs)))
        return
    stage = "onnx" if asked.onnx else "timm"
    done = {line["backbone"] for line in read(asked.runs) if line["stage"] == stage}
    passed = {line["backbone"] for line in read(asked.runs) if line["stage"] == "timm" and "error" not in line}
    for name in asked.only:
        if name in done or (asked.onnx and name not in passed):
            continue
        line = in_a_process(name, stage, asked.seconds)
        with asked.runs.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def in_a_process(name: str, stage: str, seconds: int) -> dict[str, Any]:
    """The line of one backbone, made by a copy of this process that may take so many processor seconds."""
    module = next((module for module in list_modules() if name in list_models(module=module)), "schane")
    shown = {"backbone": name, "module": module, "stage": stage}
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        folder = Path(tempfile.mkdtemp())
        try:
            line = once(name, stage, folder)
        except SchaneError as error:
            line = {"error": str(error).replace(str(folder), "")}
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            line = {"error": f"TRACEBACK {type(error).__name__}: {error}"}
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        os.write(writer, json.dumps(line).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        text = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    slow = -code in {signal.SIGXCPU, signal.SIGKILL}
    ended = f"took over {seconds} processor seconds" if slow else f"the process crashed ({code})"
    return {**shown, **(json.loads(text) if text else {"error": ended})}


def once(name: str, stage: str, folder: Path) -> dict[str, Any]:
    """Train, evaluate, reload and export one backbone; what was measured on the way."""
    photographs(folder / "data")
    started = time.process_time()
    summary, size = smallest(lambda size: train(name, size, folder))
    trained = time.process_time() - started
    loaded = load_checkpoint(folder / "run")
    started = time.process_time()
    exported = export(folder / "run", format=stage, out=folder / stage, terminal=QUIET)
    largest = exported["max_abs_logit"]
    return {
        "size": size,
        "parameters": sum(parameter.numel() for parameter in loaded.model.backbone.parameters()),
        "embedding_dim": loaded.model.embedding_dim,
        "direct": loaded.model.heads.direct,
        "test_n": summary["test_n"],
        "train_cpu_seconds": round(trained, 1),
        "export_cpu_seconds": round(time.process_time() - started, 1),
        "largest_logit": largest,
        "difference": exported["max_abs_difference"],
    }


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
    """The table of what works, and how it was made."""
    rows = {line["backbone"]: line for line in lines if line["stage"] == "timm"}
    onnx = {line["backbone"]: line for line in lines if line["stage"] == "onnx"}
    works = [line for line in rows.values() if "error" not in line]
    exported = [line for line in onnx.values() if "error" not in line]
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("timm", "torch", "onnx", "onnxscript"))
    modules = {line["module"] for line in rows.values()}
    text = [
        "# Which backbones work",
        "",
        f"{len(works)} of {len(rows)} backbones of {len(modules)} timm modules, random weights, went through one "
        "training step, an evaluation, a reload and an export to timm, whose logits for six photographs were compared "
        f"with those that `schane eval` scores. {len(exported)} of the {len(onnx)} tried went to ONNX too and were "
        f"compared likewise in onnxruntime. Made by `benchmarks/backbones.py` on a CPU, one thread; {packages}; "
        f"{date.today()}.",
        "",
        "Size: side of the images in pixels, the smallest tried that the backbone takes. Difference: the largest of "
        "any logit, as a share of the largest logit. Head: `linear` is one linear layer on the embedding; the logits "
        "of the others (two heads, a norm or a second layer in the head, a convolution) are asked of the backbone.",
        "",
        "| module | backbone | parameters, M | size | embedding | head | timm: difference | ONNX: difference |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, line in sorted(rows.items(), key=lambda item: (item[1]["module"], item[0])):
        if "error" in line:
            text.append(f"| {line['module']} | {name} | | | | | {line['error']} | |")
            continue
        head = "linear" if line["direct"] else "own"
        cells = [line["module"], name, f"{line['parameters'] / 1e6:.1f}", line["size"], line["embedding_dim"], head]
        cells += [share(line), share(onnx[name]) if name in onnx else "not run"]
        text.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(text) + "\n"


def share(line: dict[str, Any]) -> str:
    return line["error"] if "error" in line else f"{line['difference'] / max(line['largest_logit'], 1e-30):.1g}"


if __name__ == "__main__":
    main()
