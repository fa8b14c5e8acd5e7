"""What is wrong with a request that can be seen before torch is imported, and the options that commands take.

A mistyped command is answered in a quarter of a second here; the commands themselves check what needs images or models.
"""

import glob
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schane_cli import plugins
from schane_cli.errors import BadRequest, nearest
from schane_cli.recipe import Recipe, TrainRecipe, build_recipe, differences, set_key
from schane_cli.run import RESULTS, RunFolder, refuse_existing
from schane_cli.timm_names import require_backbone, require_optimizer, require_policy

SPLITS = ("train", "val", "test")
REVIEW_SPLITS = (*SPLITS, "all")
LAYERS = ("embedding", "projection", "logits")
VECTOR_FORMATS = ("pdf", "svg")
PROJECTIONS = ("tsne", "umap")
EXPORT_FORMATS = ("timm", "onnx")
SOUPS = ("best", "greedy", "uniform")  # of schane average
CLASSIFIER_NAMES = (
    "centroid",
    "simpleshot",
    "ridge",
    "logistic",
    "bd-cspn",
    "laplacianshot",
)  # of fewshot.classifiers, which a test compares
# Arguments of timm.create_model that users cannot set, and what to do instead. Those of the first table only say
# where weights come from: the recipe of an old checkpoint may hold them, and loading it ignores them.
SOURCE_ARGUMENTS = {
    "pretrained": "model.weights says which weights a run starts from",
    "checkpoint_path": "pass the file by --init",
    "pretrained_cfg": "model.weights says which weights a run starts from; pretrained_cfg_overlay sets preprocessing",
    "pretrained_model_args": "model.weights says which weights a run starts from",
    "pretrained_strict": "model.weights says which weights a run starts from",
    "pretrained_filter_fn": "model.weights says which weights a run starts from",
    "cache_dir": "the environment variable HF_HUB_CACHE sets it",
}
_OWNED_ARGUMENTS = {
    "num_classes": "the dataset says how many classes there are",
    "features_only": "a run needs the whole backbone",
    "out_indices": "a run needs the whole backbone",
    "model_cfg": "choose another --backbone",
    "feature_cfg": "a run needs the whole backbone",
    "scriptable": "it serves only TorchScript",
    "exportable": "schane export needs no preparation",
    "no_jit": "it serves only TorchScript",
}
_WEIGHTS_SUFFIXES = {".pt", ".pth", ".bin", ".safetensors"}
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:[0-9]{1,4})?")


PERPLEXITY = 30.0  # of t-SNE


@dataclass(frozen=True)
class EmbedOptions:
    """What of a checkpoint is looked at: which split, which output, how many points, which neighbourhood size."""

    split: str = "test"
    layer: str = "embedding"
    points: int = 10_000  # figures and pictures of at most so many images, drawn at random
    perplexity: float | None = None  # None: PERPLEXITY, or the largest that fewer images allow
    npy: bool = False
    figure_formats: tuple[str, ...] = ()  # beside PNG

    def check(self) -> None:
        """Raises BadRequest for a value that is not allowed."""
        require_choice("split", self.split, SPLITS)
        require_choice("layer", self.layer, LAYERS)
        perplexity = PERPLEXITY if self.perplexity is None else self.perplexity
        if not 1 <= perplexity <= 1e9 or not 1 <= self.points <= 10**9:
            raise BadRequest(
                f"--perplexity and --points must be at least 1 and at most 1,000,000,000; got {perplexity:g} and "
                f"{self.points:,}"
            )
        if self.perplexity is not None:
            require_points(self.perplexity, self.points, "--points")
        for wanted in self.figure_formats:
            if wanted not in VECTOR_FORMATS:
                raise BadRequest(f"unknown figure format {wanted!r}; allowed: {', '.join(VECTOR_FORMATS)} (beside png)")


@dataclass(frozen=True)
class PredictOptions:
    """What is written of each image. `top_k` 0: the probabilities of all classes."""

    top_k: int = 1
    embedding: bool = False
    min_confidence: float | None = None
    copy_to: str | None = None
    link: bool = False

    def check(self, n_classes: int | None = None) -> None:
        """BadRequest for a value that is not allowed; what depends on the classes is left out without `n_classes`."""
        if not 0 <= self.top_k <= (self.top_k if n_classes is None else n_classes):
            most = "the number of classes" if n_classes is None else f"{n_classes} (the classes)"
            raise BadRequest(f"--top-k must be 1 to {most}, or 0 for all; got {self.top_k}")
        if self.min_confidence is not None and not 0 < self.min_confidence < 1:
            raise BadRequest(f"--min-confidence must lie between 0 and 1; got {self.min_confidence:g}")
        if self.link and self.copy_to is None:
            raise BadRequest("--link says how --copy-to fills its folder; give --copy-to DIR too")


def largest_perplexity(n: int) -> int:
    """The largest whole perplexity that t-SNE can have with `n` images, which must be more than three times as many."""
    return (n - 1) // 3


def require_points(perplexity: float, n: int, which: str) -> None:
    """BadRequest for fewer images than t-SNE needs for a perplexity; `which` says whose they are."""
    if n <= 3 * perplexity:
        advice = f"choose --perplexity {largest_perplexity(n)} or less" if n > 3 else "it needs 4 or more for any"
        raise BadRequest(
            f"t-SNE with perplexity {perplexity:g} needs more than {3 * perplexity:g} images and {which} has {n}; "
            f"{advice}"
        )


def require_choice(what: str, value: str, allowed: Collection[str]) -> None:
    """BadRequest for a word that is none of those allowed; the nearest is named."""
    if value not in allowed:
        raise BadRequest(f"unknown {what} {value!r}; allowed: {', '.join(allowed)}{nearest(value, allowed)}")


def require_machine(values: Mapping[str, Any]) -> None:
    """BadRequest for a device that no machine has, or more loader processes than this one has cores.

    `values` are recipe values by dotted key.

    A checkpoint may come from a larger machine: its own number of loader processes is cut to the cores instead.
    """
    device, workers = values.get("device", "auto"), values.get("data.workers", 0)
    if not isinstance(device, str) or not _DEVICE.fullmatch(device):
        raise BadRequest(f"unknown device {str(device)[:80]!r}; allowed: auto, cpu, cuda, cuda:N, mps")
    cores = os.cpu_count() or 1
    if isinstance(workers, int) and workers > cores:
        raise BadRequest(f"data.workers {workers:,} is more than the {cores} cores of this machine; -1 chooses by them")


def require_place(out: Path | None) -> None:
    """BadRequest for a run folder to be that is a file, or holds something that is no run."""
    if out is not None and not RunFolder(out).exists:
        refuse_existing(out)


def find_checkpoint(path: Path) -> Path:
    """The checkpoint file behind a path: itself, or best.pt of a run folder."""
    if path.is_dir():
        best = RunFolder(path).best
        if not best.is_file():
            raise BadRequest(f"{path} holds no trained model yet: it has no checkpoints/best.pt")
        return best
    if not path.exists():
        raise BadRequest(f"no checkpoint or run folder at {path}")
    if not path.is_file():
        raise BadRequest(f"{path} is no file and no run folder")
    return path


def split_arguments(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """(runs or checkpoints, sources of images): runs come first, and the first argument always is one.

    Raises:
        BadRequest: no sources.
    """
    runs = [Path(arguments[0])]
    for argument in arguments[1:]:
        path = Path(argument)
        if not ((path / "checkpoints").is_dir() or path.suffix in {".pt", ".pth"}):
            break
        runs.append(path)
    sources = list(arguments[len(runs) :])
    if not sources:
        raise BadRequest(f"no images to classify: give folders, files or patterns after {runs[-1]}")
    return runs, sources


def require_images(sources: Sequence[str]) -> None:
    """BadRequest for a source of images to classify that is a path and leads nowhere."""
    for source in sources:
        if ":" not in source and not glob.has_magic(source) and not Path(source).expanduser().exists():
            raise BadRequest(f"{source} does not exist")


def require_known(recipe: Recipe) -> None:
    """BadRequest for a name in the recipe that nobody has, or a file of it that is not there."""
    known = [*CLASSIFIER_NAMES, *plugins.plugin_names(plugins.CLASSIFIERS)]
    for name in recipe.fewshot.classifier:
        if name not in known:
            raise BadRequest(f"unknown classifier {name!r}{nearest(name, known)}; known: {', '.join(known)}")
    require_optimizer(recipe.train.optimizer)
    require_backbone(recipe.model.backbone)
    require_arguments(recipe.model.args)
    for key, views in (("augment.policy", recipe.augment), ("augment.second.policy", recipe.augment.second_view)):
        if views is not None:
            require_policy(views.policy, key)
    _require_files(recipe)
    require_combinations(recipe, int(os.environ.get("WORLD_SIZE", "1")))


def _require_files(recipe: Recipe) -> None:
    """BadRequest for weights to start from, or a list of corrections, that are not there."""
    weights, kind = recipe.model.weights, recipe.model.weights.partition(":")
    if kind[0] == "local-dir" and not Path(kind[2]).expanduser().is_dir():
        raise BadRequest(f"no folder at {kind[2]}, which model.weights names")
    if Path(weights).suffix in _WEIGHTS_SUFFIXES and ":" not in weights and not Path(weights).expanduser().exists():
        raise BadRequest(f"no checkpoint or run folder at {weights}")
    for key, file in (("data.exclude", recipe.data.exclude), ("data.relabel", recipe.data.relabel)):
        if file is not None and not file.expanduser().exists():
            raise BadRequest(f"{file} cannot be read: {key} names it, and it is not there")


def require_arguments(arguments: Mapping[str, Any]) -> None:
    """BadRequest for one of `model.args` that users cannot set."""
    for key in arguments:
        if key in SOURCE_ARGUMENTS | _OWNED_ARGUMENTS:
            raise BadRequest(f"model.args cannot hold {key!r}: {(SOURCE_ARGUMENTS | _OWNED_ARGUMENTS)[key]}")
    if arguments.get("in_chans", 3) != 3:
        raise BadRequest(f"model.args: in_chans {arguments['in_chans']} is not possible; images have three channels")
    if arguments.get("global_pool", "avg") == "":
        raise BadRequest("model.args: an empty global_pool leaves no pooled feature to train on; leave it out")


def require_combinations(recipe: Recipe, processes: int) -> None:
    """BadRequest for values of the training that exclude each other, or that this many processes cannot share."""
    settings = recipe.train
    if settings.sharding == "fsdp":
        _require_sharding(settings, processes)
        if recipe.model.lora_rank:
            raise BadRequest("model.lora_rank goes without train.sharding fsdp, which would split fixed weights too")
    if recipe.model.lora_rank and settings.batchnorm == "running":
        raise BadRequest(
            "model.lora_rank keeps BatchNorm's statistics, which belong to the weights that are not stored; leave out "
            "train.batchnorm=running"
        )
    if settings.epochs and settings.batch_size < processes:
        raise BadRequest(f"batch size {settings.batch_size} is smaller than the {processes} processes")


def _require_sharding(settings: TrainRecipe, processes: int) -> None:
    """BadRequest for what cannot be combined with a model that is split over processes."""
    if processes == 1:
        raise BadRequest("train.sharding fsdp splits the model over processes; start several with torchrun")
    if settings.batch_size % processes:
        raise BadRequest(
            f"train.sharding fsdp needs equal parts: batch size {settings.batch_size} is not divisible by "
            f"{processes} processes"
        )
    if settings.ema_decay or settings.compile or settings.head_epochs:
        raise BadRequest(
            "train.sharding fsdp cannot be combined with train.ema_decay, train.compile and train.head_epochs"
        )


def require_epochs(recipe: Recipe) -> None:
    """BadRequest for a run whose classifier would be scored untrained."""
    if recipe.train.epochs == 0:
        raise BadRequest(
            "train.epochs 0 leaves the classifier untrained; only schane fewshot, which needs none, takes it"
        )


def resumed_recipe(command: str, path: Path, overrides: Mapping[str, Any]) -> Recipe:
    """The recipe of the run of `command` to resume; BadRequest where there is none, it is finished, or a value differs.

    A run without its page is taken too: the page is all that is made then.
    """
    run = RunFolder(path)
    if not run.exists:
        raise BadRequest(f"nothing to resume at {path}: it holds no {run.recipe_file.name}")
    if run.command not in {command, ""}:
        raise BadRequest(f"the run at {path} was made by schane {run.command}; resume it by that, with --resume {path}")
    if run.state == "reported":
        raise BadRequest(
            f"the run at {path} is finished; schane eval {path} scores it again, schane report {path} draws its page"
        )
    before = run.read_recipe()
    tree = before.model_dump(mode="json")
    for key, value in overrides.items():
        set_key(tree, key, value)
    changed = differences(before, build_recipe(tree), label="run")
    if changed:
        raise BadRequest(f"a resumed run keeps its recipe; these differ: {'; '.join(changed)}")
    return before


def require_request(folder: Path) -> None:
    """BadRequest where `schane predict --resume` finds no stopped run, or a finished one with its page."""
    run = RunFolder(folder)
    if run.state == "reported":
        raise BadRequest(f"the predictions in {folder} are complete; start again in a new folder")
    if not run.request_file.is_file():
        raise BadRequest(f"nothing to resume at {folder}: it holds no {run.request_file.name} of schane predict")


def run_to_resume(command: str, recipe: Recipe, out: Path | None) -> Path | None:
    """What `--resume auto` resumes; None: a new run.

    With `out` it is that folder where a run of this very command and recipe was begun in it, finished or not, so that a
    job that a queue starts again finds its work done. Without, it is the newest unfinished run of the recipe. A folder
    that is no run of this recipe, or cannot be read, is passed over.
    """
    if out is not None:
        return out if _is_run_of(RunFolder(out), command, recipe) else None
    places = [place for place in (RESULTS / command).glob("*") if place.is_dir()]
    candidates = [RunFolder(place) for place in sorted(places, key=_changed_at, reverse=True)]
    unfinished = (run for run in candidates if run.state != "reported" and _is_run_of(run, command, recipe))
    return next((run.path for run in unfinished), None)


def _changed_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # removed since it was listed
        return 0.0


def _is_run_of(run: RunFolder, command: str, recipe: Recipe) -> bool:
    try:
        if not run.exists or run.command not in {command, ""}:
            return False
        stored = run.read_recipe()
        if recipe.train.seen_images is not None:  # the run's data said how large a batch that makes, how many epochs
            chosen = ["batch_size", "chunk_size", *(["epochs"] if recipe.train.seen_images else [])]
            made = {key: getattr(stored.train, key) for key in chosen}
            recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update=made)})
        return stored == recipe
    except (BadRequest, OSError):  # a run of another release, or no run at all
        return False
