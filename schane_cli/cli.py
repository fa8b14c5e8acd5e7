"""The command line: one thin function per command. Nothing heavy is imported before a command runs."""

import ctypes
import os
import shutil
import sys
from contextlib import closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from schane_cli import __version__
from schane_cli.cli_data import data_app
from schane_cli.cli_output import Json, first_process_only, print_summary, process_number
from schane_cli.cli_recipes import recipes_app
from schane_cli.errors import BadRequest, SchaneError, require_package
from schane_cli.flags import RecipeValues, complete_recipe, recipe_flags, refuse_training_values
from schane_cli.preflight import (
    EXPORT_FORMATS,
    PROJECTIONS,
    REVIEW_SPLITS,
    SOUPS,
    SPLITS,
    EmbedOptions,
    PredictOptions,
    find_checkpoint,
    require_choice,
    require_epochs,
    require_images,
    require_known,
    require_machine,
    require_place,
    require_request,
    resumed_recipe,
    run_to_resume,
    split_arguments,
)
from schane_cli.recipe import (
    Recipe,
    parse_seeds,
    protocol_values,
    resolve_recipe,
)
from schane_cli.run import RunFolder, new_run_path
from schane_cli.timm_names import require_backbone

if TYPE_CHECKING:
    from schane_cli.terminal import Terminal

app = typer.Typer(
    name="schane",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich help alone takes 0.2 s to import
    help="Fine-tune image models with a supervised contrastive loss that weights hard negatives (arXiv:2308.14893).",
    epilog="Example: schane finetune && schane embed results/finetune/*",
)
app.add_typer(recipes_app, name="recipes")
app.add_typer(data_app, name="data")

# The keys that people sweep from the shell, in the order in which help shows them.
TRAINING_KEYS = (
    "data.dataset",
    "data.root",
    "model.backbone",
    "model.weights",
    "loss.name",
    "seed",
    "train.epochs",
    "train.batch_size",
    "train.chunk_size",
    "train.compile",
    "train.lr",
    "loss.temperature",
    "loss.hardness",
    "loss.contrastive_weight",
)
FEWSHOT_KEYS = ("fewshot.ways", "fewshot.shots", "fewshot.queries", "fewshot.episodes", "fewshot.classifier")

RecipeName = Annotated[
    str | None,
    typer.Option("--recipe", help="recipe by name (schane recipes ls) or path", autocompletion=complete_recipe),
]
Resume = Annotated[str | None, typer.Option("--resume", metavar="RUN|auto", help="resume a stopped run; auto finds it")]
Out = Annotated[Path | None, typer.Option("--out", help="run folder; results/<command>/... by default")]
Split = Annotated[str, typer.Option("--split", help="train, val or test")]
TopK = Annotated[int, typer.Option("--top-k", help="number of most likely classes to write per image; 0: all")]
MinConfidence = Annotated[
    float | None, typer.Option("--min-confidence", help="below this confidence the prediction is 'unsure'")
]
CopyTo = Annotated[
    Path | None, typer.Option("--copy-to", metavar="DIR", help="copy each image into DIR/<its prediction>")
]
Link = Annotated[bool, typer.Option("--link", help="with --copy-to: symbolic links instead of copies")]


def _resolve(
    command: str, recipe: str | None, values: RecipeValues, resume: str | None, out: Path | None, terminal: "Terminal"
) -> Recipe:
    """The recipe to run, that of the run folder where `resume` names one; prints what differs from the recipe file."""
    if resume is not None and resume != "auto":
        for flag, value in (("--recipe", recipe), ("--out", out)):
            if value is not None:
                raise BadRequest(f"{flag} does not act with --resume {resume}: the run has its own")
        return resumed_recipe(command, Path(resume), values)
    given = {key: value for key, value in values.items() if key != "data.dataset"}
    resolved, changed = resolve_recipe(recipe=recipe, dataset=values.get("data.dataset"), overrides=given)
    require_machine(resolved.flat())
    require_known(resolved)
    _require_data(resolved.data.dataset, resolved.data.root)
    if command == "finetune":
        _refuse_fewshot(resolved.data.dataset)
    if resume != "auto":
        require_place(out)
    for line in changed:
        terminal.say(f"changed   {line}")
    return resolved


def _require_data(names: str | None, root: Path | None = None) -> None:
    """BadRequest for datasets, given as A,B, that are not known or not there; with `root`, not in it."""
    if names:
        from schane_cli.datasets.catalog import require_source

        for name in names.split(","):
            require_source(name, root)


def _refuse_fewshot(name: str) -> None:
    from schane_cli.datasets.catalog import refuse_fewshot

    refuse_fewshot(name)


def _to_resume(command: str, resume: str | None, recipe: Recipe, out: Path | None, terminal: "Terminal") -> Path | None:
    """The folder of the run to resume, the same on every process; None for a new run."""
    if resume != "auto":
        return Path(resume) if resume is not None else None
    from schane_cli.distributed import on_first

    stopped = on_first(lambda: run_to_resume(command, recipe, out))
    if stopped is not None:
        terminal.say(f"resuming  {stopped}")
    return stopped


def _end_if_done(command: str, recipe: Recipe, out: Path | None, as_json: bool, terminal: "Terminal") -> None:
    """End with the summary where `--resume auto --out X` finds its run finished: a queue gave the job out again."""
    run = RunFolder(out) if out is not None else None
    if run is None or run.state != "reported" or run_to_resume(command, recipe, run.path) is None:
        return
    terminal.say(f"finished already; report at {run.page}")
    print_summary({**run.read_summary(), "run": str(run.path)}, as_json)
    raise typer.Exit


def _end_if_only_the_page_is_missing(
    place: Path | None, as_json: bool, terminal: "Terminal", resuming: bool = False
) -> None:
    """Draw the page of a run folder that this very command finished but for its page, and end with its summary.

    With `resuming` the command need not be the same.
    """
    run = RunFolder(place) if place is not None else None
    first = process_number() == 0  # its page may be there when the others look
    if run is None or run.state not in ({"finished"} if first else {"finished", "reported"}):
        return
    if not resuming and run.read_environment().get("command", [])[1:] != sys.argv[1:]:
        return
    first_process_only()
    shutil.rmtree(run.parts, ignore_errors=True)  # of schane predict, killed just before it removed them
    from schane_cli.reports.report import report as run_report

    run_report(run.path, terminal)
    print_summary({**run.read_summary(), "run": str(run.path)}, as_json)
    raise typer.Exit


@app.command(epilog="Examples: schane finetune | schane finetune --dataset cifar100 --backbone beit_base --loss ce")
@recipe_flags(*TRAINING_KEYS, "device", any_key=True)
def finetune(
    values: RecipeValues,
    recipe: RecipeName = None,
    seeds: Annotated[
        str | None, typer.Option("--seeds", metavar="0-4", help="several seeds, each in its own folder")
    ] = None,
    resume: Resume = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Fine-tune a backbone: train on train, choose the epoch on val, read test once."""
    from schane_cli.terminal import Terminal

    terminal = Terminal(json=json)
    listed = _listed_seeds(seeds, values, resume, out)
    resolved = _resolve("finetune", recipe, values, "auto" if listed and resume else resume, out, terminal)
    require_epochs(resolved)
    if listed:
        resolved = resolved.model_copy(update={"seed": listed[0]})
    command = f"finetune --seeds {','.join(map(str, listed))}" if listed else "finetune"
    if resume == "auto":
        _end_if_done(command, resolved, out, json, terminal)

    from schane_cli.commands.finetune import finetune as run_finetune
    from schane_cli.commands.finetune import finetune_seeds
    from schane_cli.commands.results import share_results
    from schane_cli.distributed import process_group, rank
    from schane_cli.reports.finetune import finetune_report, seeds_report

    with process_group(resolved.device, resumable=True):
        resumed = _to_resume(command, resume, resolved, out, terminal)
        if listed:
            summary = finetune_seeds(resolved, listed, out=out, terminal=terminal, resume=resumed)
        else:
            summary = run_finetune(resolved, out=out, terminal=terminal, resume=resumed)
        if rank() == 0:
            (finetune_report if seeds is None else seeds_report)(Path(summary["run"]), terminal)
            share_results(Path(summary["run"]), terminal)
            print_summary(summary, json)


def _listed_seeds(seeds: str | None, values: RecipeValues, resume: str | None, out: Path | None) -> list[int]:
    """The numbers of --seeds, at least two; none without it."""
    if seeds is None:
        return []
    if "seed" in values:
        raise BadRequest("--seeds and --seed exclude each other")
    if resume == "auto" and out is None:
        raise BadRequest("--seeds with --resume auto needs --out FOLDER, the one of the first call")
    if resume not in {None, "auto"} and out is not None:
        raise BadRequest(f"--out does not act with --resume {resume}: the run has its own")
    listed = parse_seeds(seeds, "--seeds")
    if len(listed) == 1:
        raise BadRequest(f"--seeds {seeds} names one seed; --seed runs one")
    return listed


@app.command(epilog="Examples: schane fewshot --shots 5 | schane fewshot RUN_A RUN_B --shots 1,5 --protocol rfs")
@recipe_flags(*TRAINING_KEYS, *FEWSHOT_KEYS, "device", any_key=True)
def fewshot(
    values: RecipeValues,
    checkpoints: Annotated[
        list[Path] | None,
        typer.Argument(help="checkpoints or run folders; without any, train first"),
    ] = None,
    recipe: RecipeName = None,
    protocol: Annotated[str | None, typer.Option("--protocol", help="rfs, release or accurate")] = None,
    allow_seen_classes: Annotated[
        bool,
        typer.Option("--allow-seen-classes", help="evaluate a checkpoint trained on test classes; results are marked"),
    ] = False,
    support: Annotated[
        Path | None, typer.Option("--support", metavar="DIR", help="class folders of a few photos of your own")
    ] = None,
    query: Annotated[
        list[str] | None, typer.Option("--query", metavar="IMAGES", help="with --support: images to classify")
    ] = None,
    top_k: TopK = 1,
    min_confidence: MinConfidence = None,
    copy_to: CopyTo = None,
    link: Link = False,
    resume: Resume = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """N-way K-shot accuracy on classes that training never saw."""
    from schane_cli.terminal import Terminal

    terminal = Terminal(json=json)
    options = _predict_options(top_k, False, min_confidence, copy_to, link)
    if options != PredictOptions() and not query:
        raise BadRequest("--top-k, --min-confidence, --copy-to and --link are for the images of --query")
    if support is not None or query:
        if support is None or resume or protocol or allow_seen_classes or len(checkpoints or []) > 1:
            raise BadRequest(
                "--query needs --support DIR, and both go only with one run, or with --backbone and --init"
            )
        _own_photos(support, query or [], options, checkpoints or [], recipe, values, out, json, terminal)
        return
    values = {**(protocol_values(protocol) if protocol else {}), **values}
    if checkpoints:
        refuse_training_values(values)
        _require_data(values.get("data.dataset"), values.get("data.root"))
        require_place(out)
        for checkpoint in checkpoints:
            find_checkpoint(checkpoint)
        for name, given in (("recipe", recipe), ("resume", resume)):
            if given is not None:
                raise BadRequest(f"--{name} does not act with a checkpoint, which brings its own recipe")
        _end_if_only_the_page_is_missing(out, json, terminal)
        from schane_cli.commands.fewshot import checkpoint_recipe

        resolved = checkpoint_recipe(checkpoints[0], values)
    else:
        resolved = _resolve("fewshot", recipe, values, resume, out, terminal)
        if resume == "auto":
            _end_if_done("fewshot", resolved, out, json, terminal)

    from schane_cli.commands.fewshot import fewshot as run_fewshot
    from schane_cli.commands.results import share_results
    from schane_cli.distributed import process_group, rank
    from schane_cli.reports.fewshot import fewshot_report

    with process_group(resolved.device, resumable=not checkpoints):
        summary = run_fewshot(
            checkpoints or [],
            resolved,
            allow_seen_classes=allow_seen_classes,
            out=out,
            terminal=terminal,
            resume=_to_resume("fewshot", resume, resolved, out, terminal),
        )
        if rank() == 0:
            fewshot_report(Path(summary["run"]), terminal)
            if not checkpoints:
                share_results(Path(summary["run"]), terminal)
            print_summary(summary, json)


def _predict_options(
    top_k: int, embedding: bool, min_confidence: float | None, copy_to: Path | None, link: bool
) -> PredictOptions:
    options = PredictOptions(top_k, embedding, min_confidence, None if copy_to is None else str(copy_to), link)
    options.check()
    return options


def _own_photos(
    support: Path,
    query: list[str],
    options: PredictOptions,
    checkpoints: list[Path],
    recipe: str | None,
    values: RecipeValues,
    out: Path | None,
    json: bool,
    terminal: "Terminal",
) -> None:
    """`schane fewshot --support`: one's own photos in place of a dataset's episodes."""
    if checkpoints:
        refuse_training_values(values)
        find_checkpoint(checkpoints[0])
    require_place(out)
    _require_data(f"folder:{support}")
    resolved, _ = resolve_recipe(recipe=recipe, dataset=f"folder:{support}", overrides=values)
    _end_if_only_the_page_is_missing(out, json, terminal)

    from schane_cli.commands.fewshot_folder import fewshot_folder
    from schane_cli.distributed import process_group
    from schane_cli.reports.predict import predict_report

    with process_group(resolved.device):
        summary = fewshot_folder(
            support,
            query,
            checkpoint=checkpoints[0] if checkpoints else None,
            recipe=resolved,
            options=options,
            out=out,
            terminal=terminal,
        )
    if summary:
        if query:
            predict_report(Path(summary["run"]), terminal)
        print_summary(summary, json)


@app.command("eval", epilog="Examples: schane eval RUN | schane eval RUN --corruptions --ood cifar100")
@recipe_flags("data.root", "device")
def evaluate(
    values: RecipeValues,
    checkpoint: Annotated[Path, typer.Argument(help="checkpoint file or run folder")],
    dataset: Annotated[
        str | None, typer.Option("--dataset", metavar="A,B", help="datasets to score on; the checkpoint's by default")
    ] = None,
    split: Split = "test",
    corruptions: Annotated[
        bool, typer.Option("--corruptions", help="also score 14 kinds of corruption at 5 severities each")
    ] = False,
    ood: Annotated[
        str | None,
        typer.Option("--ood", metavar="A,B", help="also detect these datasets as out-of-distribution"),
    ] = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Score a checkpoint: accuracy, calibration, mistakes and throughput, with n and intervals."""
    from schane_cli.terminal import Terminal

    terminal = Terminal(json=json)
    find_checkpoint(checkpoint)
    require_choice("split", split, SPLITS)
    for names in (dataset, ood):
        _require_data(names, values.get("data.root"))
    require_place(out)
    _end_if_only_the_page_is_missing(out, json, terminal)

    from schane_cli.commands.evaluate import Extras
    from schane_cli.commands.evaluate import evaluate as run_evaluate
    from schane_cli.distributed import process_group, rank
    from schane_cli.reports.evaluate import eval_report

    with process_group(values.get("device", "auto")):
        summary = run_evaluate(
            checkpoint,
            datasets=dataset.split(",") if dataset else (),
            overrides=values,
            split=split,
            extras=Extras(corruptions, tuple(ood.split(",")) if ood else ()),
            out=out,
            terminal=terminal,
        )
        if rank() == 0:
            eval_report(Path(summary["run"]), terminal)
            print_summary(summary, json)


@app.command(
    epilog="Examples: schane predict RUN photos/ | schane predict RUN one.jpg --json | "
    "schane predict RUN photos/ --min-confidence 0.9 --copy-to sorted/"
)
@recipe_flags("data.root", "device", any_key=True)
def predict(
    values: RecipeValues,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN... IMAGES...",
            help="run folders or checkpoints (of several, probabilities are averaged), then folders, files, patterns, "
            "csv:FILE, hfds:NAME or wds:PATH",
        ),
    ] = None,
    top_k: TopK = 1,
    min_confidence: MinConfidence = None,
    embedding: Annotated[bool, typer.Option("--embedding", help="also write embeddings (parquet)")] = False,
    copy_to: CopyTo = None,
    link: Link = False,
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="RUN", help="resume a stopped schane predict")
    ] = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Classify new images: predictions with a calibrated confidence as CSV and parquet, and a page to look through."""
    from schane_cli.terminal import Terminal

    terminal = Terminal(json=json)
    if (resume is None) == (not arguments):
        raise BadRequest("schane predict takes RUN and IMAGES, or --resume FOLDER alone")
    options = _predict_options(top_k, embedding, min_confidence, copy_to, link)
    if arguments:
        runs, sources = split_arguments(arguments)
        for run in runs:
            find_checkpoint(run)
        require_images(sources)
    if resume is not None:
        if out is not None:
            raise BadRequest(f"--out does not act with --resume {resume}: the run has its own")
        require_request(resume)
    require_place(out)
    _end_if_only_the_page_is_missing(out or resume, json, terminal, resuming=resume is not None)

    from schane_cli.commands.predict import name_one_file, predict_request
    from schane_cli.distributed import process_group
    from schane_cli.reports.predict import predict_report

    if json and out is None and arguments:
        answer = name_one_file(arguments, options, values, terminal)
        if answer is not None:
            print_summary(answer, json)
            return
    with process_group(values.get("device", "auto"), resumable=True):
        summary = predict_request(arguments or [], options, values, out=out, terminal=terminal, resume=resume)
    if summary:
        predict_report(Path(summary["run"]), terminal)
        print_summary(summary, json)


@app.command(
    epilog="Examples: schane embed RUN | schane embed RUN_BY_CE RUN_BY_SCHANE --dataset cifar100 | "
    "schane embed RUN --split val --layer projection"
)
@recipe_flags("data.dataset", "data.root", "device")
def embed(
    values: RecipeValues,
    checkpoints: Annotated[
        list[Path],
        typer.Argument(help="checkpoints, run folders or tables (embeddings.parquet), side by side"),
    ],
    split: Split = "test",
    layer: Annotated[str, typer.Option("--layer", help="embedding, projection or logits")] = "embedding",
    points: Annotated[int, typer.Option("--points", help="use at most this many images, drawn at random")] = 10_000,
    perplexity: Annotated[
        float | None,
        typer.Option("--perplexity", help="t-SNE's effective number of neighbours; default 30, fewer for few images"),
    ] = None,
    npy: Annotated[bool, typer.Option("--npy", help="also write the vectors as one .npy array")] = False,
    images: Annotated[
        list[str] | None, typer.Option("--images", metavar="IMAGES", help="embed images without labels, not a dataset")
    ] = None,
    projection: Annotated[
        str, typer.Option("--projection", help="with --images: tsne, or umap (extra umap), to draw the map by")
    ] = "tsne",
    figures: Annotated[list[str] | None, typer.Option("--figures", help="also save the figures as pdf or svg")] = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Measure and draw embeddings: tables, quality with intervals, pictures, and a page to explore them."""
    from schane_cli.terminal import Terminal

    terminal = Terminal(json=json)
    options = EmbedOptions(split, layer, points, perplexity, npy, tuple(figures or ()))
    options.check()
    for checkpoint in checkpoints:
        find_checkpoint(checkpoint)
    _require_data(values.get("data.dataset"), values.get("data.root"))
    require_place(out)
    require_choice("--projection", projection, PROJECTIONS)
    if (images or projection != "tsne") and (
        not images or len(checkpoints) > 1 or "data.dataset" in values or npy or figures
    ):
        raise BadRequest("--images goes with one checkpoint, --projection, --perplexity, --out and --device only")
    _end_if_only_the_page_is_missing(out, json, terminal)
    alone = bool(images) or any(checkpoint.suffix == ".parquet" for checkpoint in checkpoints)
    if alone:  # several processes have nothing to share
        first_process_only()
    if images:
        from schane_cli.commands.embed_unlabelled import embed_unlabelled
        from schane_cli.reports.embed_unlabelled import unlabelled_report

        summary = embed_unlabelled(
            checkpoints[0],
            images,
            projection=projection,
            perplexity=perplexity,
            overrides=values,
            out=out,
            terminal=terminal,
        )
        unlabelled_report(Path(summary["run"]), terminal)
        print_summary(summary, json)
        return
    from schane_cli.commands.embed import embed as run_embed
    from schane_cli.distributed import process_group
    from schane_cli.reports.embed import embed_report

    with nullcontext() if alone else process_group(values.get("device", "auto")):
        embedded = run_embed(checkpoints, overrides=values, options=options, out=out, terminal=terminal)
    if embedded is not None:
        embed_report(embedded, terminal)
        print_summary(embedded.summary, json)


@app.command(epilog="Examples: schane review RUN | schane review RUN --split all")
@recipe_flags("data.root", "device", any_key=True)
def review(
    values: RecipeValues,
    checkpoint: Annotated[Path, typer.Argument(help="checkpoint file or run folder")],
    split: Annotated[str, typer.Option("--split", help="train, val, test or all")] = "train",
    out: Out = None,
    json: Json = False,
) -> None:
    """Find likely label errors, near-duplicates, outliers and look-alikes in a run's data; decide on a page."""
    first_process_only()
    from schane_cli.terminal import Terminal

    terminal = Terminal(json=json)
    find_checkpoint(checkpoint)
    require_choice("split", split, REVIEW_SPLITS)
    require_place(out)
    _end_if_only_the_page_is_missing(out, json, terminal)

    from schane_cli.commands.review import review as run_review
    from schane_cli.reports.review import review_report

    summary = run_review(checkpoint, split=split, overrides=values, out=out, terminal=terminal)
    review_report(Path(summary["run"]), terminal)
    print_summary(summary, json)


@app.command(epilog="Examples: schane average RUN_A RUN_B RUN_C | schane average RUN --soup uniform")
@recipe_flags("data.root", "device")
def average(
    values: RecipeValues,
    runs: Annotated[
        list[Path],
        typer.Argument(help="run folders, folders of seeds or checkpoints; of one run, the epochs that it kept"),
    ],
    soup: Annotated[str, typer.Option("--soup", help="greedy, uniform, or the better of both on val (best)")] = "best",
    out: Out = None,
    json: Json = False,
) -> None:
    """Average the weights of runs, or of a run's last epochs, into one run, chosen on val."""
    first_process_only()
    from schane_cli.terminal import Terminal

    terminal = Terminal(json=json)
    require_choice("--soup", soup, SOUPS)
    for run in runs:
        if not run.exists():
            raise BadRequest(f"no checkpoint or run folder at {run}")
    require_place(out)
    _end_if_only_the_page_is_missing(out, json, terminal)

    from schane_cli.commands.average import average as run_average
    from schane_cli.reports.average import average_report

    summary = run_average(runs, soup=soup, overrides=values, out=out, terminal=terminal)
    average_report(Path(summary["run"]), terminal)
    print_summary(summary, json)


@app.command(epilog="Examples: schane augment digits | schane augment --dataset pets --set augment.policy=ta_wide")
@recipe_flags("data.dataset", "data.root", "seed", any_key=True)
def augment(
    values: RecipeValues,
    recipe: Annotated[str | None, typer.Argument(help="recipe name or path", autocompletion=complete_recipe)] = None,
    out: Annotated[Path | None, typer.Option("--out", help="picture to write: png, pdf or svg")] = None,
    json: Json = False,
) -> None:
    """Draw the random views that a recipe trains on, of eight training images."""
    first_process_only()
    from schane_cli.terminal import Terminal

    terminal = Terminal(json=json)
    resolved = _resolve("augment", recipe, values, None, None, terminal)
    from schane_cli.commands.augment import augment as run_augment
    from schane_cli.reports.augment import augment_picture
    from schane_cli.run import new_run_path, refuse_existing

    folder = new_run_path("augment", Path(resolved.data.dataset).name)
    wanted = out or folder
    picture = refuse_existing(wanted if out and out.suffix else wanted.with_name(f"{wanted.name}.png"))
    augment_picture(run_augment(resolved), picture, f"training views of {resolved.data.dataset}", terminal)
    print_summary({"command": "augment", "picture": picture}, json)


@app.command(epilog="Examples: schane export RUN | schane export RUN --format onnx --out model")
def export(
    checkpoint: Annotated[Path, typer.Argument(help="checkpoint file or run folder")],
    format: Annotated[str, typer.Option("--format", help="timm (safetensors and config of its hub) or onnx")] = "timm",
    out: Out = None,
    json: Json = False,
) -> None:
    """Write a checkpoint's backbone for timm or ONNX, and compare it with the original."""
    first_process_only()
    require_choice("--format", format, EXPORT_FORMATS)
    find_checkpoint(checkpoint)
    if out is not None and out.exists():
        raise BadRequest(f"{out} exists already; choose another --out")
    from schane_cli.commands.export import export as run_export
    from schane_cli.terminal import Terminal

    print_summary(run_export(checkpoint, format=format, out=out, terminal=Terminal(json=json)), json)


@app.command(epilog="Examples: schane doctor | schane doctor --json | schane doctor --backbone beit_base")
@recipe_flags("model.backbone", "device")
def doctor(
    values: RecipeValues,
    json: Json = False,
) -> None:
    """Look at this machine and test the parts that results depend on, in about half a minute."""
    if "model.backbone" in values:
        require_backbone(values["model.backbone"])
    from schane_cli.commands.doctor import doctor as run_doctor
    from schane_cli.terminal import Terminal

    terminal = Terminal(json=json)
    findings = run_doctor(values.get("model.backbone"), device_name=values.get("device", "auto"), terminal=terminal)
    print_summary(findings, json)
    raise typer.Exit(0 if findings["ok"] else 1)


@app.command(epilog="Examples: schane compare RUN_CE RUN_SCHANE | schane compare 'results/finetune/cifar100-*'")
def compare(
    runs: Annotated[list[str], typer.Argument(help="run folders, folders of runs (seeds, studies), or globs")],
    metric: Annotated[str | None, typer.Option("--metric", help="metric to compare; test_accuracy by default")] = None,
    baseline: Annotated[
        str | None, typer.Option("--baseline", help="group to compare with; by default cross-entropy, else the first")
    ] = None,
    common_seeds: Annotated[
        bool, typer.Option("--common-seeds", help="if seeds are missing, use those that all groups have")
    ] = False,
    out: Out = None,
    json: Json = False,
) -> None:
    """Say which runs are better and how sure that is: means, paired differences, effect size, cost."""
    first_process_only()
    from schane_cli.commands.compare import compare as run_compare
    from schane_cli.reports.compare import write_comparison
    from schane_cli.terminal import Terminal

    terminal = Terminal(json=json)
    blocks, notes = run_compare(runs, metric=metric, baseline=baseline, common_seeds=common_seeds)
    folder = RunFolder(out or new_run_path("compare", blocks[0].metric))
    folder.create_comparison()
    with closing(folder):
        print_summary(write_comparison(blocks, notes, folder, terminal), json)


@app.command(epilog="Example: schane report results/finetune/RUN")
def report(
    run: Annotated[Path, typer.Argument(help="folder of a finished run, of any command that has a page")],
    json: Json = False,
) -> None:
    """Draw the pictures and the page of a finished run again, from its folder alone."""
    first_process_only()
    RunFolder(run).require_summary()
    from schane_cli.reports.report import report as run_report
    from schane_cli.terminal import Terminal

    print_summary({"run": run, "page": run_report(run, Terminal(json=json))}, json)


@app.command(epilog="Examples: schane study grid.yaml | schane study grid.yaml --storage postgresql://user@host/db")
@recipe_flags("data.root", "model.weights", "device")
def study(
    values: RecipeValues,
    file: Annotated[Path, typer.Argument(help="study file: recipe, arms or grid or search, seeds")],
    storage: Annotated[
        str | None, typer.Option("--storage", metavar="URL", help="Optuna storage to share; a SQLite file by default")
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="run the failed trials again")] = False,
    out: Out = None,
    json: Json = False,
) -> None:
    """Run a grid or a search over recipe values and seeds; the same command resumes or joins it.

    --data-root, --init and --device describe this machine; everything else is in the file.
    """
    machine = {key: str(value) for key, value in values.items()}
    from schane_cli.commands.study_file import read_study, recipes_of

    for recipe in recipes_of(read_study(file), machine):
        require_known(recipe)
        _require_data(recipe.data.dataset, recipe.data.root)
    require_package("schane study needs Optuna", "study", "optuna")
    from schane_cli.commands.study import study as run_study
    from schane_cli.reports.study import study_report
    from schane_cli.terminal import Terminal

    terminal = Terminal(json=json)
    summary = run_study(
        file,
        out=out,
        storage=storage,
        machine=machine,
        retry_failed=retry_failed,
        writes_summary=process_number() == 0,
        terminal=terminal,
    )
    first_process_only()  # of several workers of one launch the first reports
    study_report(Path(summary["run"]), terminal)
    print_summary(summary, json)
    if summary["trials_failed"]:
        raise typer.Exit(1)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="print the version and exit")] = False) -> None:
    if version:
        print(f"schane {__version__}")
        raise typer.Exit


def keep_freed_memory() -> None:
    """Let glibc use freed memory again.

    By default it returns every large tensor to the system and takes a page fault for each 4 KiB of the next: a
    convnet's forward pass at 112 px took 1.9 times as long on a CPU, a training step 1.3 times. The price is that a
    process keeps the most that it ever needed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:  # other C libraries have none
        mallopt(-4, 0)  # M_MMAP_MAX: no mappings of their own for large blocks
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the heap's free end stays


def _say_error(sentence: str) -> None:
    """To stderr, names from outside as text: with their control characters made visible."""
    from schane_cli.terminal import visible

    print(f"schane: {visible(sentence, newline=True)}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a SchaneError, or one of the disk, becomes a sentence on stderr and an exit code."""
    # Before torch: waiting threads that spin make a small model ten times slower beside any other busy process.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_freed_memory()
    given, sys.argv = sys.argv, sys.argv if arguments is None else [sys.argv[0], *arguments]  # environment.json has it
    try:
        app()
    except SchaneError as error:
        _say_error(str(error))
        sys.exit(error.exit_code)
    except OSError as error:  # a full, read-only or removed disk, or a name that the file system does not take
        place = f"{str(error.filename)[:300]}: " if error.filename is not None else ""
        _say_error(f"{place}{error.strerror or error}; fix that and give the same command again")
        sys.exit(1)
    finally:
        sys.argv = given


if __name__ == "__main__":
    main()
