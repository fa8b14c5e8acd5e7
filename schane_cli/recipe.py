"""The recipe: every number of an experiment, declared once, checked once, and saved with the run.

A recipe file is YAML with the sections below; a key left out takes the field's default. Precedence:
field default < recipe file < `--set key=value` < named flag. No torch here, so that help stays fast.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import cache
from itertools import accumulate
from pathlib import Path
from reprlib import Repr
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

from schane_cli import plugins
from schane_cli.errors import BadRequest, nearest

BUILT_IN_LOSSES = ("schane", "easy", "supcon", "simclr", "ce")
MAX_SEED = 2**32 - 1
MAX_SEEDS = 1000  # of one command
MAX_CHARACTERS, MAX_DEPTH = 1_000_000, 50  # of a recipe or study file
OPEN_KEYS = ("augment.second", "model.args", "loss.args")  # mappings whose keys --set reaches by a further dot
MAX_VALUES = 100_000  # in a recipe or study file, aliases counted where they are used


Share = Annotated[float, Field(gt=0, le=1)]
Ratio = Annotated[float, Field(ge=0.01, le=100)]
Strength = Annotated[float, Field(ge=0, le=10)]
Hue = Annotated[float, Field(ge=0, le=0.5)]
Shots = Annotated[int, Field(ge=1, le=10_000)]


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=(), defer_build=True
    )


class DataRecipe(_Section):
    """Which images, how they are split, how they are read."""

    dataset: str = Field("digits", description="dataset name, folder:PATH, csv:FILE, hfds:NAME or wds:PATH")
    root: Path = Field(Path("~/.cache/schane/data"), description="folder that holds the datasets")
    image_size: int = Field(224, ge=8, le=4096, description="side of the square input, pixels")
    val_fraction: float = Field(
        0.1, gt=0, lt=1, description="share of train held out as val where there is no val split"
    )
    test_fraction: float = Field(
        0.2, gt=0, lt=1, description="share of all images held out where there is no test split"
    )
    split_seed: int = Field(0, ge=0, le=MAX_SEED, description="seed of the splits made by the two fractions")
    train_per_class: int | None = Field(
        None, ge=1, le=10_000_000, description="train on only this many images of each class"
    )
    train_on: Literal["train", "trainval"] = Field("train", description="trainval adds the val images to train")
    workers: int = Field(-1, ge=-1, le=256, description="loader processes; -1 chooses by cores and devices")
    image_column: str | None = Field(None, description="image column of csv: and hfds:, if it is not found by name")
    label_column: str | None = Field(None, description="label column of csv: and hfds:, if it is not found by name")
    exclude: Path | None = Field(None, description="CSV with a column path: images to leave out, as data check writes")
    relabel: Path | None = Field(None, description="CSV with columns path and label: images to relabel")
    broken: Literal["stop", "leave_out"] = Field("stop", description="what to do about images that cannot be read")
    leave_out_shared: bool = Field(False, description="leave out of train the images that are also in val or test")


class AugmentRecipe(_Section):
    """Random views of a training image (torchvision v2). The defaults are the SCHaNe release's."""

    views: int = Field(2, ge=1, le=64, description="independent random views of each image")
    crop_scale: tuple[Share, Share] = Field((0.2, 1.0), description="share of the image that a random crop takes")
    crop_ratio: tuple[Ratio, Ratio] = Field((0.75, 4 / 3), description="aspect ratio of the crop")
    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")
    rotation: float = Field(0.0, ge=0, le=180, description="largest rotation either way, degrees")
    color_jitter: tuple[Strength, Strength, Strength, Hue] = Field(
        (0.4, 0.4, 0.4, 0.1), description="brightness, contrast, saturation, hue"
    )
    color_jitter_p: float = Field(0.8, ge=0, le=1, description="probability of the colour jitter")
    grayscale: float = Field(0.2, ge=0, le=1, description="probability of dropping colour")
    policy: str = Field(
        "none", description="none, ta_wide (TrivialAugment), or timm's spelling: rand-m9-mstd0.5-inc1, augmix-m3, 3a"
    )
    blur: float = Field(0.0, ge=0, le=1, description="probability of a Gaussian blur, sigma 0.1 to 2 pixels")
    solarize: float = Field(0.0, ge=0, le=1, description="probability of inverting the values above half")
    erase: float = Field(0.0, ge=0, le=1, description="probability of filling a random box with noise")
    second: dict[str, Any] = Field({}, description="keys of this section that differ in every view but the first")

    @property
    def second_view(self) -> "AugmentRecipe | None":
        """The section as it is for every view but the first; None where all views are drawn alike."""
        if not self.second:
            return None
        return AugmentRecipe.model_validate({**self.model_dump(mode="json"), **self.second, "second": {}})

    @model_validator(mode="after")
    def _second_differs(self) -> "AugmentRecipe":
        if not self.second:
            return self
        if self.views == 1:
            raise ValueError("second: there is one view, so there is no second one; set augment.views=2")
        refused = sorted(self.second.keys() & {"views", "second"})
        if refused:
            raise ValueError(f"second: it cannot hold {refused[0]!r}, which belongs to all views")
        try:
            _ = self.second_view
        except ValidationError as error:
            text = "; ".join(describe_error(item, unknown=_unknown_of_view) for item in error.errors())
            raise ValueError(f"second: {text}") from None
        return self

    @model_validator(mode="after")
    def _in_order(self) -> "AugmentRecipe":
        for name in ("crop_scale", "crop_ratio"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}: the lower end {low:g} is above the upper end {high:g}")
        return self


def _unknown_of_view(key: str) -> str:
    return f"unknown key {key!r}{nearest(key, AugmentRecipe.model_fields)}"


class ModelRecipe(_Section):
    """The backbone and its two heads."""

    backbone: str = Field("beit_base", description="timm model name, or a short name such as beit_base")
    weights: str = Field(
        "pretrained", description="pretrained, random, or where to start from: FILE, RUN, local-dir:PATH, hf-hub:NAME"
    )
    args: dict[str, Any] = Field({}, description="further arguments for timm.create_model")
    drop_path: float = Field(0.0, ge=0, lt=1, description="stochastic depth rate")
    projection_dim: int = Field(
        128, ge=0, le=65_536, description="output width of the projection head; 0: no head, h itself"
    )
    freeze: tuple[str, ...] = Field((), description="parameters kept fixed, by name prefix; 'backbone' for a probe")
    lora_rank: int = Field(
        0, ge=0, le=4096, description="train low-rank adapters of this rank and the heads alone (extra lora); 0: none"
    )
    lora_targets: tuple[str, ...] = Field(
        ("*",),
        min_length=1,
        max_length=100,
        description="linear and 1x1 layers with an adapter, by the end of their name",
    )

    @model_validator(mode="after")
    def _something_trains(self) -> "ModelRecipe":
        if self.lora_rank and "backbone" in self.freeze:
            raise ValueError("lora_rank trains adapters of the backbone, and freeze fixes the backbone; leave one out")
        if self.lora_rank and self.weights == "random":
            raise ValueError("lora_rank adapts pretrained weights, and weights is random")
        return self


class LossRecipe(_Section):
    """L = contrastive_weight * L_contrastive + (1 - contrastive_weight) * L_CE  (arXiv:2308.14893).

    `SchaneLoss` has the same defaults. Its file can be copied out and used on its own, so it has them too; a test
    keeps the two equal.
    """

    name: str = Field("schane", description="schane, easy, supcon, simclr, ce, or a loss of an installed package")
    args: dict[str, Any] = Field({}, description="further arguments for the loss of an installed package")
    contrastive_weight: float = Field(0.9, ge=0, lt=1, description="lambda, the share of the contrastive term")
    temperature: float = Field(0.5, gt=0, le=1000, description="tau, divides the cosine similarity")
    hardness: float = Field(1.0, ge=0, le=1000, description="beta, the weight of hard negatives; 0 weights all equally")
    positives: Literal["mean", "sum"] = Field("mean", description="mean (the release) or sum (CLCE's equation)")
    stop_gradient: bool = Field(False, description="no gradient through the hardness weights")
    contrastive_pool: Literal["global", "local"] = Field(
        "global", description="negatives from all processes, or only its own"
    )
    memory_size: int = Field(
        0, ge=0, le=10_000_000, description="past projections kept as extra positives and negatives; 0: none"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="label smoothing of the cross-entropy")
    class_weights: Literal["none", "balanced", "effective"] = Field(
        "none", description="class weights in the cross-entropy: 1 / images, or 1 / their effective number"
    )
    logit_adjustment: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="add this times log(share of the class) to training logits; 1 aims at balanced accuracy",
    )
    mixup: float = Field(0.0, ge=0, le=1000, description="mixup alpha, on the cross-entropy branch only; 0: off")
    cutmix: float = Field(0.0, ge=0, le=1000, description="cutmix alpha, on the cross-entropy branch only; 0: off")


class TrainRecipe(_Section):
    """The optimisation. Defaults follow the release, with the learning rate scaled to a batch of 128 images."""

    epochs: int = Field(
        50, ge=0, le=100_000, description="passes over the training images; 0 (few-shot only): no training"
    )
    head_epochs: int = Field(
        0, ge=0, le=100_000, description="epochs of the heads alone before these, with their own schedule (LP-FT)"
    )
    seen_images: int | None = Field(
        None,
        ge=0,
        le=10_000_000_000,
        description="choose epochs (5 to 50) to see about this many images (0: keep the epochs), and a batch that fits",
    )
    batch_size: int = Field(128, ge=1, le=1_000_000, description="images per step over all processes, before views")
    optimizer: str = Field("adamw", description="any optimizer of timm's factory")
    lr: float = Field(1e-4, gt=0, le=1000, description="peak learning rate")
    min_lr: float = Field(1e-6, ge=0, le=1000, description="learning rate at the end of the cosine")
    warmup_epochs: float = Field(5.0, ge=0, le=100_000, description="epochs of linear warm-up, at most half of the run")
    weight_decay: float = Field(0.05, ge=0, le=1000, description="weight decay (none on biases and 1-d weights)")
    layer_decay: float = Field(1.0, gt=0, le=1, description="learning rate factor from each layer to the one below")
    clip_grad: float | None = Field(None, gt=0, le=1_000_000, description="largest gradient norm")
    ema_decay: float | None = Field(None, gt=0, lt=1, description="decay of the weight average, which is evaluated")
    keep_epochs: int = Field(
        0, ge=0, le=100_000, description="keep the weights of the last N epochs, for schane average RUN"
    )
    sampling: Literal["uniform", "balanced"] = Field(
        "uniform", description="balanced draws every class equally often; the epoch keeps its length"
    )
    classes_per_batch: int | None = Field(
        None, ge=2, le=1_000_000, description="draw each batch from this many classes, equally"
    )
    chunk_size: int | None = Field(
        None, ge=1, le=1_000_000, description="images per forward pass; the gradient is the batch's"
    )
    batchnorm: Literal["auto", "running", "frozen"] = Field(
        "auto", description="BatchNorm trains by the batch (running) or by the weights' own statistics (frozen)"
    )
    amp: Literal["auto", "bfloat16", "off"] = Field("auto", description="autocast; auto is bfloat16 on CUDA")
    compile: bool = Field(False, description="torch.compile the model")
    checkpoint_activations: bool = Field(
        False, description="recompute activations in the backward pass: less memory, same weights, more time"
    )
    sharding: Literal["ddp", "fsdp"] = Field(
        "ddp", description="several processes: each has a copy of the model, or (fsdp) a share of its tensors"
    )
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = Field(
        (), description="also log the metrics to tensorboard, wandb, mlflow"
    )

    @property
    def all_epochs(self) -> int:
        """Those of the heads alone and those of all weights."""
        return self.head_epochs + self.epochs

    @model_validator(mode="after")
    def _heads_come_first(self) -> "TrainRecipe":
        if self.head_epochs and not self.epochs:
            raise ValueError("head_epochs come before epochs, of which there are 0")
        return self

    @model_validator(mode="after")
    def _chunk_fits(self) -> "TrainRecipe":
        if self.chunk_size and self.chunk_size > self.batch_size:
            raise ValueError(f"chunk_size {self.chunk_size} is larger than batch_size {self.batch_size}")
        return self

    @model_validator(mode="after")
    def _one_way_to_balance(self) -> "TrainRecipe":
        if self.classes_per_batch and self.sampling == "balanced":
            raise ValueError("classes_per_batch draws balanced batches already; leave sampling out")
        return self


class FewshotRecipe(_Section):
    """Episodes of the few-shot evaluation."""

    ways: int = Field(5, ge=2, le=10_000, description="classes in an episode (n_way)")
    shots: tuple[Shots, ...] = Field(
        (1, 5), min_length=1, max_length=100, description="labelled images per class (n_shot)"
    )
    queries: int = Field(15, ge=1, le=10_000, description="images to classify per class (n_query)")
    episodes: int = Field(600, ge=2, le=1_000_000, description="number of episodes")
    classifier: tuple[str, ...] = Field(
        ("centroid", "logistic"), min_length=1, max_length=100, description="classifiers on the frozen embedding"
    )
    normalize: bool = Field(True, description="L2-normalise the embedding first")
    support_copies: int = Field(0, ge=0, le=1000, description="random views that replace each support image; 0: none")
    episode_seed: int = Field(0, ge=0, le=MAX_SEED, description="seed of the episodes, the same for every checkpoint")
    dirichlet: float | None = Field(
        None, gt=0, le=1_000_000, description="alpha of Dirichlet-imbalanced queries; null: balanced"
    )


# Protocols of the field: what `--protocol` sets, below `--set` and flags. Sources: rfs, Tian et al. (arXiv:2003.11539);
# release, GLA-IR/SCHaNe; accurate, the 10,000 episodes of SimpleShot (arXiv:1911.04623) and TIM (arXiv:2008.11297).
PROTOCOLS: dict[str, dict[str, Any]] = {
    "rfs": {
        "fewshot.episodes": 600,
        "fewshot.normalize": True,
        "fewshot.support_copies": 5,
        "fewshot.classifier": ["logistic"],
    },
    "release": {
        "fewshot.episodes": 3000,
        "fewshot.normalize": False,
        "fewshot.support_copies": 5,
        "fewshot.classifier": ["logistic"],
    },
    "accurate": {
        "fewshot.episodes": 10_000,
        "fewshot.normalize": True,
        "fewshot.support_copies": 0,
        "fewshot.classifier": ["centroid", "logistic"],
    },
}


class Recipe(_Section):
    """One experiment, whole."""

    seed: int = Field(0, ge=0, le=MAX_SEED, description="seed of initial weights, order and views")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    data: DataRecipe = Field(default_factory=DataRecipe)
    augment: AugmentRecipe = Field(default_factory=AugmentRecipe)
    model: ModelRecipe = Field(default_factory=ModelRecipe)
    loss: LossRecipe = Field(default_factory=LossRecipe)
    train: TrainRecipe = Field(default_factory=TrainRecipe)
    fewshot: FewshotRecipe = Field(default_factory=FewshotRecipe)

    def flat(self) -> dict[str, Any]:
        """Every value under its dotted key, as plain YAML values: {"loss.temperature": 0.5, ...}."""
        return flatten(self.model_dump(mode="json"))

    def with_values(self, overrides: Mapping[str, Any]) -> "Recipe":
        """This recipe with other values at dotted keys. Raises BadRequest as `build_recipe` does."""
        return _checked(self.model_dump(mode="json"), overrides)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}; a value of OPEN_KEYS stays one value."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and name not in OPEN_KEYS:
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


@cache
def _yaml_loader() -> Any:
    """PyYAML's safe loader, in which 1e-4 is a number and not a string (YAML 1.1 asks for 1.0e-4)."""
    import yaml

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers = {key: list(value) for key, value in yaml.SafeLoader.yaml_implicit_resolvers.items()}  # noqa: RUF012

    scientific = re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", scientific, list("-+0123456789"))
    return Loader


def parse_yaml(text: str, where: str) -> Any:
    """YAML text as plain values; BadRequest that names `where` for anything else."""
    import yaml

    depths = accumulate((mark in "[{") - (mark in "]}") for mark in re.findall(r"[\[\]{}]", text))
    if len(text) > MAX_CHARACTERS or max(depths, default=0) > MAX_DEPTH:  # which PyYAML takes minutes to read
        raise BadRequest(f"{where} is longer than {MAX_CHARACTERS:,} characters, or nested more than {MAX_DEPTH} deep")
    try:
        value = yaml.load(text, Loader=_yaml_loader())
    except RecursionError:
        raise BadRequest(f"{where} is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:  # a date that does not exist is a ValueError
        raise BadRequest(f"{where} is not valid YAML: {' '.join(str(error).split())[:300]}") from None
    _require_small(value, where)
    return value


def _require_small(value: Any, where: str) -> None:
    """BadRequest for a tree so large, or so deep, that only an alias of aliases can have made it."""
    count, waiting = 0, [(value, 0)]
    while waiting:
        node, depth = waiting.pop()
        count += 1
        if count > MAX_VALUES or depth > MAX_DEPTH:
            raise BadRequest(f"{where} holds more than {MAX_VALUES:,} values, or is nested more than {MAX_DEPTH} deep")
        if isinstance(node, int) and node.bit_length() > 1024:  # Python itself refuses to print a much longer one
            raise BadRequest(f"{where} holds an integer of more than 300 digits")
        if isinstance(node, Mapping):
            waiting += [(item, depth + 1) for item in node.values()]
        elif isinstance(node, list | tuple | set):
            waiting += [(item, depth + 1) for item in node]


def parse_seeds(text: str, name: str = "seeds") -> list[int]:
    """`3`, `0-4` or `0,3,7-9` as a list of different seeds, in the order given; `name` is what the user calls them.

    Raises:
        BadRequest: anything else, a seed above MAX_SEED, or more than MAX_SEEDS of them.
    """
    wrong = BadRequest(f"{name}: numbers and ranges like 0-4 or 0,3,7, at most {MAX_SEEDS}; got {shown(text)}")
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,10})(?:-([0-9]{1,10}))?\s*", part)
        if match is None:
            raise wrong
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last <= min(MAX_SEED, first + MAX_SEEDS) or len(seeds) > MAX_SEEDS:
            raise wrong
        seeds += range(first, last + 1)
    if len(seeds) > MAX_SEEDS:
        raise wrong
    return list(dict.fromkeys(seeds))


def recipe_folder() -> Path:
    """The folder of the recipes that come with the package (in a wheel, or in a checkout)."""
    inside = Path(__file__).parent / "recipes"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "recipes"


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in recipe_folder().glob("*.yaml"))


def find_recipe(name_or_path: str) -> Path:
    """The file of a recipe given by name (`digits`) or by path (`./mine.yaml`)."""
    path = Path(name_or_path).expanduser()
    if path.suffix in {".yaml", ".yml"} or "/" in name_or_path:
        if not path.is_file():
            raise BadRequest(f"no recipe file at {path}")
        return path
    if name_or_path not in recipe_names():
        hint = nearest(name_or_path, recipe_names())
        raise BadRequest(f"unknown recipe {name_or_path!r}{hint} (schane recipes ls shows all)")
    return recipe_folder() / f"{name_or_path}.yaml"


def recipe_title(name: str) -> str:
    """The first line of a recipe's header."""
    return find_recipe(name).read_text(encoding="utf-8").partition("\n")[0].removeprefix("#").strip()


def recipe_measured(name: str) -> str | None:
    """The date under `Measured:` in a recipe's header, when it was run as it stands; None where it has not been."""
    header = [line for line in find_recipe(name).read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    measured = re.search(r"# Measured:.*?(\d{4}-\d\d-\d\d)", "\n".join(header), flags=re.DOTALL)
    return measured[1] if measured else None


def read_recipe(path: Path) -> dict[str, Any]:
    """The values of a recipe file as a tree; not yet checked."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(f"recipe {path} cannot be read: {error}") from None
    tree = parse_yaml(text, f"recipe {path}")
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise BadRequest(f"recipe {path} must be a mapping of sections, got {type(tree).__name__}")
    return tree


def parse_set(assignments: Iterable[str]) -> dict[str, Any]:
    """`["loss.temperature=0.3"]` as {"loss.temperature": 0.3}."""
    values = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key:
            raise BadRequest(f"--set takes key=value, got {shown(assignment)}")
        values[key.strip()] = parse_yaml(value, f"the value of --set {key.strip()[:100]}")
    return values


def set_key(tree: dict[str, Any], key: str, value: Any) -> None:
    """Put `value` at a dotted key, in place."""
    *sections, last = key.split(".")
    node = tree
    for section in sections:
        node = node.setdefault(section, {})
        if not isinstance(node, dict):
            raise BadRequest(f"recipe key {key!r} goes below {section!r}, which is a value")
    node[last] = value


def protocol_values(name: str) -> dict[str, Any]:
    """The recipe values of a few-shot protocol, under dotted keys."""
    if name not in PROTOCOLS:
        raise BadRequest(f"unknown protocol {name!r}{nearest(name, PROTOCOLS)}; allowed: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


@cache
def recipe_fields() -> "dict[str, FieldInfo]":
    """Every field of the recipe under its dotted key: type, range and one-line description."""

    def below(section: type[BaseModel], prefix: str) -> "dict[str, FieldInfo]":
        fields: dict[str, FieldInfo] = {}
        for name, field in section.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                fields |= below(field.annotation, f"{prefix}{name}.")
            else:
                fields[prefix + name] = field
        return fields

    return below(Recipe, "")


def known_keys() -> list[str]:
    """Every key a recipe may hold, dotted."""
    return list(recipe_fields())


# What other programs call a value of the recipe, and how the papers write it.
SYNONYMS = {
    "aa": "augment.policy",
    "arch": "model.backbone",
    "architecture": "model.backbone",
    "auto_augment": "augment.policy",
    "batch": "train.batch_size",
    "beta": "loss.hardness",
    "bs": "train.batch_size",
    "clip": "train.clip_grad",
    "cuda": "device",
    "data": "data.dataset",
    "drop_path_rate": "model.drop_path",
    "ema": "train.ema_decay",
    "fewshot": "fewshot.ways",
    "gpu": "device",
    "grad_checkpointing": "train.checkpoint_activations",
    "grad_clip": "train.clip_grad",
    "gradient_checkpointing": "train.checkpoint_activations",
    "img_size": "data.image_size",
    "init": "model.weights",
    "input_size": "data.image_size",
    "k_shot": "fewshot.shots",
    "lambda": "loss.contrastive_weight",
    "learning_rate": "train.lr",
    "llrd": "train.layer_decay",
    "lora": "model.lora_rank",
    "lora_r": "model.lora_rank",
    "loss": "loss.name",
    "max_epochs": "train.epochs",
    "memory_bank": "loss.memory_size",
    "model": "model.backbone",
    "n_episodes": "fewshot.episodes",
    "n_epochs": "train.epochs",
    "n_query": "fewshot.queries",
    "n_shot": "fewshot.shots",
    "n_views": "augment.views",
    "n_way": "fewshot.ways",
    "num_epochs": "train.epochs",
    "num_workers": "data.workers",
    "opt": "train.optimizer",
    "precision": "train.amp",
    "pretrained": "model.weights",
    "proj_dim": "model.projection_dim",
    "queue_size": "loss.memory_size",
    "randaugment": "augment.policy",
    "random_erasing": "augment.erase",
    "reprob": "augment.erase",
    "resolution": "data.image_size",
    "smoothing": "loss.label_smoothing",
    "target_modules": "model.lora_targets",
    "tau": "loss.temperature",
    "train": "train.epochs",
    "warmup": "train.warmup_epochs",
    "wd": "train.weight_decay",
}


def nearest_key(key: str) -> str | None:
    """The recipe key that is meant by `key`: the same last segment, another name for it, else the closest spelling."""
    last = key.rpartition(".")[2].strip("-").replace("-", "_").lower()
    keys = known_keys()
    by_last = {known.rpartition(".")[2]: known for known in reversed(keys)}
    if last in by_last:
        return by_last[last]
    if last in SYNONYMS:
        return SYNONYMS[last]
    close = get_close_matches(key, keys, n=1, cutoff=0.75) or get_close_matches(last, [*by_last, *SYNONYMS], n=1)
    close = close or get_close_matches(key, keys, n=1)
    return next((by_last.get(match) or SYNONYMS.get(match) or match for match in close), None)


def unknown_key(key: str) -> str:
    """`unknown recipe key 'lr'; did you mean 'train.lr'?`"""
    near = nearest_key(key)
    return f"unknown recipe key {key!r}" + (f"; did you mean {near!r}?" if near else "")


def check_keys(keys: Iterable[str]) -> None:
    """BadRequest for dotted keys that no recipe holds, before anything else is done."""
    unknown = [
        key
        for key in keys
        if key not in recipe_fields() and not key.startswith(tuple(f"{known}." for known in OPEN_KEYS))
    ]
    if unknown:
        raise BadRequest("; ".join(unknown_key(key) for key in unknown))


def shown(value: Any) -> str:
    """A value that was given, short enough for a sentence."""
    short = Repr()
    short.maxstring = short.maxother = short.maxlong = 80
    try:
        return short.repr(value)
    except ValueError:  # an integer of more than 4300 digits
        return "a huge number"


def describe_error(error: Mapping[str, Any], *, unknown: Callable[[str], str]) -> str:
    """An item of pydantic's error list as a sentence; `unknown` makes it for a key that the file may not hold."""
    key = ".".join(str(part) for part in error["loc"] if not isinstance(part, int))
    if error["type"] == "extra_forbidden":
        return unknown(key)
    if error["type"] == "model_type":
        return f"{key} is a section of values, got {shown(error.get('input'))}; did you mean {nearest_key(key)!r}?"
    message = error["msg"].removeprefix("Value error, ")
    given = error.get("input")
    got = f", got {shown(given)}" if not isinstance(given, dict) or not given else ""
    return f"{key + ': ' if key else ''}{message[0].lower()}{message[1:]}{got}"


def build_recipe(tree: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Check a tree of values, with dotted overrides on top, and freeze it.

    Raises:
        BadRequest: an unknown key (the one that was probably meant is named), a value out of range, or a loss that
            neither schane nor an installed package has.
    """
    recipe = _checked(tree, overrides or {})
    _check_loss(recipe.loss)
    return recipe


def saved_recipe(tree: Mapping[str, Any]) -> Recipe:
    """The recipe of a run that was trained: the package of its loss may have been uninstalled since, and is not needed.

    A run of schane 0.1.0, whose recipe has no `train.batchnorm`, keeps the running statistics that it was trained with.
    """
    from_0_1_0 = "train" in tree and "batchnorm" not in tree["train"]
    return _checked(tree, {"train.batchnorm": "running"} if from_0_1_0 else {})


def loss_names() -> list[str]:
    """Every loss that `loss.name` takes: the built-in ones, then those of installed packages."""
    return [*BUILT_IN_LOSSES, *plugins.plugin_names(plugins.LOSSES)]


def _check_loss(loss: LossRecipe) -> None:
    if loss.name in BUILT_IN_LOSSES:
        if loss.args:
            raise BadRequest(f"loss.args does not act with {loss.name}, whose arguments are keys of their own")
        return
    names = loss_names()
    if loss.name not in names:
        raise BadRequest(f"loss.name: unknown loss {loss.name!r}{nearest(loss.name, names)}; known: {', '.join(names)}")


def _checked(tree: Mapping[str, Any], overrides: Mapping[str, Any]) -> Recipe:
    merged: dict[str, Any] = _plain(tree)
    for key, value in overrides.items():
        set_key(merged, key, _plain(value))
    try:
        return Recipe.model_validate(merged)
    except ValidationError as error:
        raise BadRequest("; ".join(describe_error(item, unknown=unknown_key) for item in error.errors())) from None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def resolve_recipe(
    *, recipe: str | None, dataset: str | None, overrides: Mapping[str, Any], default: str = "digits"
) -> tuple[Recipe, list[str]]:
    """The recipe of a command and one line for each value that differs from the file it came from.

    With neither `recipe` nor `dataset` it is the embedded `default`; a dataset alone starts from the recipe of its
    own name where there is one, a source of the user's own (`folder:PATH` and the like) from `photos`, and any other
    dataset from the field defaults. Epochs that are given replace those that `train.seen_images` would choose, which
    then (0) sizes the batch alone.
    """
    name = recipe or (default if dataset is None else _recipe_of(dataset))
    tree = read_recipe(find_recipe(name)) if name else {}
    base = build_recipe(tree)
    merged = dict(overrides)
    if dataset is not None:
        merged["data.dataset"] = dataset
    final = build_recipe(tree, merged)
    changed = differences(base, final, label=f"recipe {name}" if name else "default")
    if "train.epochs" in merged and "train.seen_images" not in merged and final.train.seen_images is not None:
        final = final.with_values({"train.seen_images": 0})
    return final, changed


def _recipe_of(dataset: str) -> str | None:
    """The recipe that a dataset starts from: its own, or `photos` for a source of the user's; None: the defaults."""
    if dataset in recipe_names():
        return dataset
    return "photos" if re.match(r"(folder|csv|hfds|wds)[:/]", dataset) else None


def differences(base: Recipe, final: Recipe, *, label: str) -> list[str]:
    """`loss.temperature 0.3 (recipe digits: 0.5)` for each value that `final` changes."""
    before, after = base.flat(), final.flat()
    return [f"{key} {after[key]} ({label}: {before[key]})" for key in after if after[key] != before[key]]


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe as YAML that reads back to an equal recipe."""
    import yaml

    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
