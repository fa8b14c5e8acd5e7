"""The one training core, under finetune and few-shot base training: stopped anywhere and resumed, it ends with
the same weights, bit for bit."""

import time
from collections.abc import Callable
from contextlib import closing, nullcontext, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

import numpy as np
import torch
import torch.distributed as dist
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from schane_cli.distributed import rank, same_everywhere, world_size
from schane_cli.errors import SchaneError
from schane_cli.features.extract import extract, forward, scoring_batch
from schane_cli.images.imageset import ImageSet
from schane_cli.images.loader import StepSampler, train_loader, train_transform, worker_count
from schane_cli.images.preprocessing import InputSpec
from schane_cli.metrics.classification import accuracy_and_nll
from schane_cli.models.checkpoint import pack
from schane_cli.models.files import save_whole
from schane_cli.models.lora import has_lora, merge_lora
from schane_cli.models.model import Outputs, SchaneModel, checkpoint_activations, freeze, leaving_no_trace, place
from schane_cli.models.sharding import is_sharded, shard, share_buffers, whole
from schane_cli.recipe import Recipe
from schane_cli.run import RunFolder
from schane_cli.terminal import Task, Terminal
from schane_cli.training import batchnorm, hooks
from schane_cli.training.cost import CostMeter
from schane_cli.training.gradient import (
    buffers_kept,
    cached_backward,
    chunk_backward,
    largest_fitting,
    make_batch,
    whole_backward,
)
from schane_cli.training.interruption import Interrupted, StopSignal
from schane_cli.training.objective import LossParts, Objective, contrastive_weight
from schane_cli.training.optimizer import make_optimizer, make_scheduler
from schane_cli.training.phases import Phase, body, phase_of_last, phases
from schane_cli.training.state import Parts, collect, put_back
from schane_cli.training.trackers import Trackers

LOG_EVERY_STEPS = 50
FEWEST_POINTS = 20  # of a learning curve: a short run logs more often
SAVE_EVERY_SECONDS = 600.0


@dataclass(frozen=True)
class Outcome:
    """What a training run reached on val, and what it cost."""

    best_epoch: int
    val_accuracy: float
    val_n: int
    train_seconds: float
    images_per_second: float
    data_wait_percent: float
    views_forwarded: int
    peak_memory_bytes: int | None
    energy_joules: float | None


@dataclass
class Job:
    """All that a training run needs."""

    recipe: Recipe
    model: SchaneModel
    spec: InputSpec
    train: ImageSet
    val: ImageSet
    run: RunFolder
    terminal: Terminal
    device: torch.device
    command: str
    images: dict[str, Any] = field(default_factory=dict)  # of every split, as `images.identity.record` puts it
    # Scores a model where accuracy on `val` is not the aim (episodes on val classes): (accuracy, a loss to break ties)
    validate: Callable[[SchaneModel], tuple[float, float]] | None = None
    stored: dict[str, Any] | None = None  # the content of last.pt where a stopped run is resumed


class Trainer:
    """Steps, validation, saving and resuming of one run."""

    def __init__(self, job: Job, resume: dict[str, Any] | None = None) -> None:
        self.job, self.recipe, self.device = job, job.recipe, job.device
        settings = self.recipe.train
        freeze(job.model, self.recipe.model.freeze)
        if settings.checkpoint_activations:
            checkpoint_activations(job.model)
        if contrastive_weight(self.recipe.loss) == 0:
            job.model.projection.requires_grad_(False)  # DDP would wait for a gradient that never arrives
        job.model.batchnorm_frozen = batchnorm.choice(self.recipe) == "frozen"
        job.model.contiguous = settings.sharding == "fsdp"
        self.model = place(job.model, self.device)
        if settings.sharding == "fsdp":
            shard(self.model, self.model.backbone, self.device)
        width = self.recipe.model.projection_dim or self.model.embedding_dim
        counts = torch.from_numpy(np.bincount(job.train.labels, minlength=len(job.train.class_names)))
        self.objective = Objective(self.recipe.loss, counts, width).to(self.device)
        self.sampler = self._sampler(0)
        self._body, self._phases = body(self.model), phases(settings, self.sampler.steps_per_epoch)
        self._enter(phase_of_last(resume["training"]["step"] if resume is not None else 0, self._phases))
        self.ema = ModelEmaV3(self.model, decay=settings.ema_decay, use_warmup=True) if settings.ema_decay else None
        self.step = 0
        self.best: dict[str, float] = {"val_accuracy": -1.0, "val_nll": float("inf"), "epoch": -1}
        self.seconds = self.wait_seconds = 0.0
        self.images_done = self._logged_bytes = 0
        self._stop = StopSignal(self.device)
        self.cost, self.resumed = CostMeter(self.device), resume is not None
        torch.manual_seed(self.recipe.seed + rank())  # each process drops different paths
        if resume is not None:
            self._restore(resume)
        self.forward_model = self._wrapped()

    def _enter(self, phase: Phase) -> None:
        """Freeze or unfreeze the backbone, and begin the phase's own optimizer and schedule."""
        self.phase = phase
        for parameter in self._body:
            parameter.requires_grad_(not phase.heads_alone)
        self.optimizer = make_optimizer(self.model, self.recipe, self.device)
        self.scheduler = make_scheduler(
            self.optimizer,
            self.recipe.train.model_copy(update={"epochs": phase.epochs}),
            phase.end - phase.first_step,
            self.sampler.steps_per_epoch,
        )

    def _begin_next_phase(self) -> None:
        self._enter(self._phases[self._phases.index(self.phase) + 1])
        self.forward_model = self.model  # the wrapper of the phase before goes first, with its hooks on the weights
        self.forward_model = self._wrapped()

    def checkpoint_bytes(self) -> int:
        """The most that the run folder takes, roughly: best.pt, the epochs that are kept, last.pt with two moments
        and EMA, and its successor while both are there."""
        kept = [p for p in self.model.parameters() if p.requires_grad or not self.recipe.model.lora_rank]
        weights = sum(parameter.numel() * parameter.element_size() for parameter in kept)
        return weights * (1 + self.recipe.train.keep_epochs + 2 * (3 + (self.ema is not None)))

    def _sampler(self, start_step: int) -> StepSampler:
        settings = self.recipe.train
        return StepSampler(
            self.job.train.labels,
            batch_size=settings.batch_size,
            epochs=settings.all_epochs,
            seed=self.recipe.seed,
            classes_per_batch=settings.classes_per_batch,
            balanced=settings.sampling == "balanced",
            start_step=start_step,
            rank=rank(),
            world=world_size(),
        )

    def _wrapped(self) -> nn.Module:
        model: nn.Module = self.model
        if self.recipe.train.compile:
            model = torch.compile(model)  # type: ignore[assignment]
        if world_size() > 1 and not is_sharded(self.model):
            model = DistributedDataParallel(model)
            self._settle_buckets(model)
        return model

    def _settle_buckets(self, model: DistributedDataParallel) -> None:
        """One pass as in training, which leaves no trace but the order of DDP's buckets.

        DDP rearranges its buckets after its first pass, and how the gradients of three and more processes are
        rounded depends on the arrangement: a resumed run would begin with another one than the run it continues.
        """
        images = max(self.recipe.train.batch_size // world_size(), 1)
        rows = max(min(self.recipe.train.chunk_size or images, images) * self.recipe.augment.views, 2)
        size = self.job.spec.size
        with leaving_no_trace(self.model, self.device), suppress(torch.OutOfMemoryError):  # the first step explains it
            outputs = self._embed(model, torch.zeros(rows, 3, size, size, dtype=torch.uint8))
            (outputs.projection.float().sum() + outputs.logits.float().sum()).backward()
        self.optimizer.zero_grad(set_to_none=True)

    def run(self) -> Outcome:
        """Train to the end; returns what was reached on val.

        Raises:
            Interrupted: a signal came; last.pt holds the state.
            SchaneError: a loss or gradient that is not finite, no memory, no space.
        """
        total, per_epoch = self.sampler.total_steps, self.sampler.steps_per_epoch
        self.trackers = Trackers(self.recipe.train.trackers if rank() == 0 else (), self.job.run.path, self.recipe)
        bar = self.job.terminal.task("training", total, "step", done=self.step)
        with self._stop.caught(), closing(self.trackers), bar as task:
            if total == 0:  # the weights as they are
                self._end_epoch(0)
                self.save_last()
            started = last_save = time.perf_counter()
            for views, labels, indices in self._stop.until_it_comes(self._loader()):
                self.wait_seconds += time.perf_counter() - started
                figures = self._training_step(views, labels, indices)
                self.images_done += self.recipe.train.batch_size
                self._report(task, figures, time.perf_counter() - started)
                hooks.step_done(self._progress(figures))
                self.seconds += time.perf_counter() - started
                epoch_ends = self.step % per_epoch == 0
                if epoch_ends:
                    self._end_epoch(self.step // per_epoch)
                if epoch_ends or self._save_is_due(last_save):
                    self.save_last()
                    last_save = time.perf_counter()
                started = time.perf_counter()
            if self._stop.agreed:
                self.save_last()
                raise Interrupted(self._stop.agreed, f"{self.job.command} --resume {self.job.run.path}")
        return self._outcome()

    def _progress(self, figures: dict[str, float]) -> hooks.Progress:
        total, epoch = self.sampler.total_steps, self.step // max(self.sampler.steps_per_epoch, 1)
        return hooks.Progress(self.recipe, self.step, total, epoch, figures, self.model)

    def _save_is_due(self, last_save: float) -> bool:
        """Whether the last save is long past, by the first process's clock: saving gathers, so all must agree."""
        if self.step % LOG_EVERY_STEPS:
            return False
        return bool(same_everywhere(time.perf_counter() - last_save > SAVE_EVERY_SECONDS))

    def _loader(self) -> Any:
        recipe = self.recipe
        return train_loader(
            self.job.train,
            self._sampler(self.step),
            train_transform(recipe.augment, self.job.spec.size),
            views=recipe.augment.views,
            workers=worker_count(recipe.data, self.job.train),
            pin_memory=self.device.type == "cuda",
        )

    def _training_step(self, views: torch.Tensor, labels: torch.Tensor, indices: torch.Tensor) -> dict[str, float]:
        """One optimiser step; returns its figures."""
        try:
            return self._step(views, labels, indices)
        except torch.OutOfMemoryError:
            pass  # this frees the frames of the failed step, and with them its tensors, before the search
        self._stop_out_of_memory(views)

    def _step(self, views: torch.Tensor, labels: torch.Tensor, indices: torch.Tensor) -> dict[str, float]:
        if self.step == self.phase.end:
            self._begin_next_phase()
        self.model.train()
        if is_sharded(self.model):
            share_buffers(self.model)
        self.scheduler.step_update(self.step - self.phase.first_step)
        self.optimizer.zero_grad(set_to_none=True)
        parts = self._backward(views, labels, indices)
        norm = self._clipped_norm()
        figures = self._figures(parts, norm)
        if not (np.isfinite(figures["loss"]) and np.isfinite(figures["grad_norm"])):
            self._stop_not_finite(figures, indices)
        self.optimizer.step()
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.model, step=self.step)
        return figures

    def _clipped_norm(self) -> torch.Tensor:
        """The gradient's norm, before it is cut to train.clip_grad."""
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self.recipe.train.clip_grad is not None:
            nn.utils.clip_grads_with_norm_(self.model.parameters(), self.recipe.train.clip_grad, norm)
        return whole(norm).to(self.device)

    def _backward(self, views: torch.Tensor, labels: torch.Tensor, indices: torch.Tensor) -> LossParts:
        batch = make_batch(views, labels, indices, self.objective, self.device)
        chunk_size = self.recipe.train.chunk_size
        # activations that are computed again would count a batch twice in the running statistics
        again = partial(buffers_kept, self.model) if self.recipe.train.checkpoint_activations else nullcontext
        if chunk_size is None or chunk_size >= len(views):
            return whole_backward(self._forward, self.objective, batch, around_backward=again)
        return cached_backward(
            self._forward,
            self.objective,
            batch,
            chunk_rows=chunk_size * views.shape[1],
            model=self.model,
            device=self.device,
            unsynchronised=getattr(self.forward_model, "no_sync", nullcontext),
            around_backward=again,
        )

    def _forward(self, rows: torch.Tensor) -> Outputs:
        return self._embed(self.forward_model, rows)

    def _embed(self, model: nn.Module, rows: torch.Tensor) -> Outputs:
        return forward(model, rows, self.job.spec, self.device, self.recipe.train.amp)

    def _figures(self, parts: LossParts, norm: torch.Tensor) -> dict[str, float]:
        """Loss parts, gradient norm and the contrastive term's counts, as means over processes: one transfer."""
        named = {"loss": parts.total, "contrastive": parts.contrastive, "cross_entropy": parts.cross_entropy}
        named |= {"grad_norm": norm, **self.objective.stats}
        values = torch.stack([value.detach().float() for value in named.values()])
        if world_size() > 1:
            dist.all_reduce(values)
            values /= world_size()
        return dict(zip(named, values.tolist(), strict=True))

    def _stop_not_finite(self, figures: dict[str, float], indices: torch.Tensor) -> None:
        """Save what is needed to replay the step, and say what happened and what to try."""
        path = self.job.run.path / f"not-finite-step{self.step}-rank{rank()}.pt"
        epoch = self.step // self.sampler.steps_per_epoch
        batch = {"step": self.step, "epoch": epoch, "indices": indices.tolist(), "figures": figures}
        save_whole({**self._packed(self.model), "batch": batch}, path)
        parts = ", ".join(f"{key} {figures[key]:.4g}" for key in ("loss", "contrastive", "cross_entropy", "grad_norm"))
        raise SchaneError(
            f"step {self.step} is not finite: {parts}; images {indices[:8].tolist()} and {max(len(indices) - 8, 0)} "
            f"more. {path} holds weights and batch. Try a lower --lr, train.clip_grad=1, a higher --temperature, or "
            "train.amp=off"
        )

    def _stop_out_of_memory(self, views: torch.Tensor) -> NoReturn:
        """Say the largest chunk that fits, found by running chunks of the failed batch."""
        asked = min(self.recipe.train.chunk_size or len(views), len(views))
        rows = views.flatten(0, 1)

        def attempt(chunk: int) -> None:
            self.optimizer.zero_grad(set_to_none=True)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            chunk_backward(partial(self._embed, self.model), rows[: chunk * views.shape[1]], self.optimizer)

        if is_sharded(self.model):  # its passes need all processes, and not all have failed
            raise SchaneError(
                f"step {self.step} ran out of memory with {asked} images per pass; lower train.chunk_size"
            )
        fitting = largest_fitting(attempt, asked)
        advice = f"the largest chunk that fits is {fitting}: pass --chunk-size {fitting} (the batch stays the same)"
        if fitting is None:
            advice = "not even one image fits: take a smaller --backbone or data.image_size"
        raise SchaneError(f"step {self.step} ran out of memory on {self.device} with {asked} images per pass; {advice}")

    def _report(self, task: Task, figures: dict[str, float], step_seconds: float) -> None:
        rate = self.images_done / max(self.seconds + step_seconds, 1e-9)
        wait = self._wait_percent(step_seconds)
        task.advance(1, *self._details(figures), f"{rate:.0f} img/s", f"wait {wait:.0f}%")
        every = min(LOG_EVERY_STEPS, max(1, self.sampler.total_steps // FEWEST_POINTS))
        if rank() == 0 and (self.step % every == 0 or self.step == 1):
            self._log(
                "step",
                step=self.step,
                epoch=self.step / self.sampler.steps_per_epoch,
                lr=max(group["lr"] for group in self.optimizer.param_groups),
                lr_lowest=min(group["lr"] for group in self.optimizer.param_groups),
                images_per_second=rate,
                data_wait_percent=wait,
                gpu_memory_bytes=torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None,
                **figures,
            )

    def _details(self, figures: dict[str, float]) -> list[str]:
        """What the bar shows of the training: the best val accuracy once there is one, and the terms of the loss."""
        details = [f"val {100 * self.best['val_accuracy']:.2f} %"] if self.best["epoch"] >= 0 else []
        if self.recipe.loss.name != "ce":
            details.append(f"con {figures['contrastive']:.3f}")
        return [*details, f"ce {figures['cross_entropy']:.3f}"]

    def _log(self, event: str, **values: Any) -> None:
        """Write to metrics.jsonl, and from there to the trackers."""
        self.trackers.log(self.job.run.log(event, **values))

    def _wait_percent(self, extra_seconds: float = 0.0) -> float:
        return 100 * self.wait_seconds / max(self.seconds + extra_seconds, 1e-9)

    def _end_epoch(self, epoch: int) -> None:
        """Score val; keep the weights if they are the best so far (accuracy, then lower NLL)."""
        model = self.ema.module if self.ema is not None else self.model
        if world_size() > 1:
            share_buffers(model)  # val is scored with the statistics that are saved, not each process's own
        accuracy, nll = (self.job.validate or self._validate)(self._as_read(model))
        better = (accuracy, -nll) > (self.best["val_accuracy"], -self.best["val_nll"])
        scores = {"val_accuracy": accuracy, "val_nll": nll, "epoch": epoch}
        if better:
            self.best = scores
        hooks.epoch_done(self._progress({"val_accuracy": accuracy, "val_nll": nll}))
        kept = epoch > self.recipe.train.all_epochs - self.recipe.train.keep_epochs
        packed = self._packed(model, scores) if (better or kept) and self._packs() else {}
        if rank() != 0:
            return
        if better:
            save_whole(packed, self.job.run.best)
        if kept:
            save_whole(packed, self.job.run.epoch_checkpoint(epoch))
        self._log(
            "epoch",
            epoch=epoch,
            step=self.step,
            val_accuracy=accuracy,
            val_nll=nll,
            val_n=len(self.job.val),
            best=better,
        )

    def _as_read(self, model: SchaneModel) -> SchaneModel:
        """The model as its checkpoint will be read: adapters merged, on the CPU as there, which rounds alike."""
        if not has_lora(model.backbone):
            return model
        merged = deepcopy(model).cpu()
        merge_lora(merged.backbone)
        return place(merged, self.device)

    def _validate(self, model: SchaneModel) -> tuple[float, float]:
        """Accuracy and NLL on val, bit for bit those of `schane eval --split val` on these weights."""
        features = extract(
            model,
            self.job.val,
            self.job.spec,
            device=self.device,
            batch_size=scoring_batch(self.recipe.train),
            workers=worker_count(self.recipe.data, self.job.val),
            amp=self.recipe.train.amp,
        )
        try:
            return accuracy_and_nll(features.logits, features.labels)
        except ValueError as reason:
            raise SchaneError(
                f"val cannot be scored after step {self.step}: {reason}. Try a lower --lr, train.clip_grad=1 or "
                "train.amp=off"
            ) from None

    def _packs(self) -> bool:
        """Whether this process takes part in packing weights: the one that writes, or all where each holds a share."""
        return rank() == 0 or is_sharded(self.model)

    def _packed(self, model: SchaneModel, scores: dict[str, float] | None = None) -> dict[str, Any]:
        """The content of a checkpoint, with the scores of its own epoch, or the best so far."""
        progress = {
            "step": self.step,
            "epoch": self.step / max(self.sampler.steps_per_epoch, 1),  # without epochs any batch size will do
            **(scores or self.best),
            "val_n": len(self.job.val),
        }
        return pack(model, self.recipe, self.job.train.class_names, self.job.spec, progress, self.job.images)

    def save_last(self) -> None:
        """Write last.pt: the weights and all that an exact resume needs; called by every process."""
        state = collect(self._parts())
        packed = self._packed(self.model) if self._packs() else {}
        if rank() != 0:
            return
        metrics = self.job.run.metrics_file
        training = {
            **state,
            "step": self.step,
            "best": self.best,
            "seconds": self.seconds,
            "wait_seconds": self.wait_seconds,
            "images_done": self.images_done,
            "metrics_bytes": metrics.stat().st_size if metrics.exists() else 0,
        }
        save_whole({**packed, "training": training}, self.job.run.last)

    def _parts(self) -> Parts:
        return Parts(self.model, self.objective, self.optimizer, self.ema, self.device)

    def _restore(self, content: dict[str, Any]) -> None:
        put_back(self._parts(), content, self.job.run.last)
        training = content["training"]
        self.step, self.best = training["step"], training["best"]
        self.seconds, self.wait_seconds = training["seconds"], training["wait_seconds"]
        self.images_done = training["images_done"]
        self._logged_bytes = training["metrics_bytes"]

    def cut_log(self) -> None:
        """Cut metrics.jsonl back to where last.pt was written; what was logged later is logged again."""
        self.job.terminal.say(f"resumed   after step {self.step:,} of {self.sampler.total_steps:,}")
        gap = self.job.run.cut_log(self._logged_bytes, self.step) if rank() == 0 else None
        if gap is not None:
            self.job.terminal.say(gap)

    def _outcome(self) -> Outcome:
        return Outcome(
            best_epoch=int(self.best["epoch"]),
            val_accuracy=self.best["val_accuracy"],
            val_n=len(self.job.val),
            train_seconds=self.seconds,
            images_per_second=self.images_done / max(self.seconds, 1e-9),
            data_wait_percent=self._wait_percent(),
            views_forwarded=self.images_done * self.recipe.augment.views,
            peak_memory_bytes=self.cost.peak_memory_bytes(),
            energy_joules=None if self.resumed else self.cost.energy_joules(),  # of the whole run, or of none
        )
