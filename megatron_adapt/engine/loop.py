"""One phase of training: freeze, wrap, build the optimizer, loop; saved, resumed and stopped exactly."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from functools import partial
from typing import Any, Callable

import torch
from torch import Tensor

from megatron.core import parallel_state
from megatron.core.distributed import finalize_model_grads
from megatron_adapt import schedule as schedules
from megatron_adapt.analysis.estimate import flops_per_token
from megatron_adapt.data.denoising import Ids
from megatron_adapt.engine import (
    agreement, backend, carry, checkpoint, evaluate, fp8, guard, memory, model as models, noise, optimizer as optimizers, stretches,
)  # fmt: skip
from megatron_adapt.engine.batches import Batch, Batches
from megatron_adapt.engine.checkpoint import Checkpoint, Position
from megatron_adapt.engine.chunks import chunks, run
from megatron_adapt.engine.job import Job
from megatron_adapt.engine.losses import language_model_loss, micro_batches, regularize, row_shape, shares
from megatron_adapt.engine.metrics import Metrics
from megatron_adapt.engine.stopping import Stopped, StopRequest
from megatron_adapt.errors import CheckpointError, ConfigError
from megatron_adapt.families import find_family, mup
from megatron_adapt.families.family import ModelShape
from megatron_adapt.hf.tokenizer import Tokenizer

DONE = {
    "log": "nothing is done about it", "skip": "the step's update is left out",
    "rollback": "back to the last checkpoint, without the data since",
}  # fmt: skip


def train(
    job: Job, log: Callable[[str], None] = print, progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Run (or continue) a phase inside a started backend; returns its last metrics.

    ``log`` gets readable lines on rank 0, ``progress`` (steps done, all steps) on every rank.

    Leaves ``job.output/step_N`` checkpoints. Raises ``Stopped`` after a signal, with a checkpoint saved.
    """
    return _Run(job, log, progress).run()


class _Run:
    def __init__(self, job: Job, log: Callable[[str], None], progress: Callable[[int, int], None]) -> None:
        self.job, self.phase, self.progress = job, job.phase, progress
        agreement.require_same(job.settings())
        self.log = log if backend.rank() == 0 else lambda line: None
        resumed, damaged = agreement.latest_checkpoint(job.output)
        for problem in damaged:
            self.log(f"{problem} Continuing from {resumed.path.name}, the newest that is intact.")
        self.source: Checkpoint = resumed or checkpoint.resolve(job.start)
        self.position = self.source.position
        if resumed is None:
            ages = carry.ages(self.source) if self.phase.init_state == "keep" else {}
            past = {"consumed": dict(self.position.consumed), "trained": self.position.trained, "learnt": self.position.learnt}
            self.position = Position(phase=self.phase.name, ages=ages, **past)
        if self.position.phase != self.phase.name:
            raise CheckpointError(f"{job.output} holds checkpoints of phase '{self.position.phase}', not of '{self.phase.name}'.")
        self._go_on()
        family = find_family(self.source.config)
        self.shape: ModelShape = family.read_config(self.source.config)
        self.resumed = resumed is not None
        self.hf = self.source.hf
        self.tokenizer = Tokenizer.load(self.hf)
        self.saving: checkpoint.Save | None = None  # what is still being written
        recompute = memory.recompute(self.phase, self.shape, job.layout, job.precision, self.log)
        self.bare = models.build(self.shape, job.layout, job.precision, recompute, self.phase.logits, self.phase.dropout)
        fp8.set_history(self.bare.config, self.phase.amax_history, self.phase.amax_choice)
        patterns = [self.phase.train] if isinstance(self.phase.train, str) else list(self.phase.train)
        self.trainable = models.freeze(self.bare, patterns)
        if resumed is None:
            # Before the optimizer is built: its fp32 main weights are copies of these.
            checkpoint.load(self.source, self.bare)
        if self.phase.denoising is not None and self.phase.denoising.decoder == "prefix":
            backend.require_own_attention(self.shape, f"phase '{self.phase.name}': denoising.decoder: prefix")
        regularize(self.bare, self.phase.optimizer)
        noise.add(self.bare, self.phase)
        self.model = models.wrap(self.bare, job.precision, job.layout.distributed_optimizer)
        scalings = mup.scalings(self.shape, job.mup) if job.mup else {}
        self.optimizer = optimizers.build(
            self.phase.optimizer, self.model, job.precision, job.seed, self.position.ages, scalings
        )
        if resumed is not None:
            checkpoint.load(self.source, self.bare, self.optimizer)
        elif self.position.ages:
            carry.load(self.source, self.bare, self.optimizer)
        config = self.bare.config
        quiet = [chunk.no_sync for chunk in chunks(self.model)]
        config.no_sync_func = quiet if len(quiet) > 1 else quiet[0]
        config.finalize_model_grads_func = finalize_model_grads
        config.grad_scale_func = self.optimizer.scale_loss
        self.batches = Batches(
            job.corpora,
            dict(self.phase.data),
            tokenizer_digest=self.tokenizer.digest,
            sequence_length=self.phase.sequence_length,
            batch_size=self.phase.batch_size,
            micro_batch_size=self.phase.micro_batch_size,
            seed=job.seed,
            consumed=self.position.consumed,
            drawn=self.position.drawn,
            passes=job.passes,
            apart=self.phase.packing == "documents",
            denoising=self.phase.denoising and (self.phase.denoising, Ids.find(self.phase.denoising, self.tokenizer)),
            data_rank=parallel_state.get_data_parallel_rank(),
            data_size=parallel_state.get_data_parallel_world_size(),
        )
        for note in self.batches.notes():
            self.log(note)
        self.held_out = self._held_out()
        self.metrics = Metrics(job.output, job.tensorboard, job.wandb, self.position.step, log)
        self.forward_step = language_model_loss(len(self.batches.names))

    def _go_on(self) -> None:
        """Open a stretch of training with the recipe's settings, which need not be those that the phase began with."""
        position, phase = self.position, self.phase
        for change in stretches.begin(phase, position, self.job.learns):
            self.log(f"from step {position.step + 1:,} on: {change}")
        self.steps = self.job.steps
        if self.job.tokens is not None:  # counted in steps so far, whose batches may have been others
            so_far = phase.samples(position.step) * phase.sequence_length
            self.steps = phase.steps_for(so_far + self.job.tokens - position.tokens)
        if position.step > self.steps:
            raise ConfigError(f"phase '{phase.name}' has trained {position.step:,} steps already, more than {self.steps:,}.")
        self.spanned = stretches.spanned(position, self.job.run, self.steps - self.job.steps)

    def _held_out(self) -> dict[str, evaluate.Text]:
        if not self.phase.evaluate_every:
            return {}
        length = self.job.evaluation_length or self.phase.sequence_length
        return {
            name: evaluate.read(path, self.tokenizer, length, max_bytes=self.job.evaluation_bytes)
            for name, path in self.job.held_out.items()
        }

    def run(self) -> dict[str, Any]:
        stop = StopRequest()
        try:
            return self._steps(stop)
        finally:
            stop.restore()
            self.metrics.close()

    def _steps(self, stop: StopRequest) -> dict[str, Any]:
        job, phase, last = self.job, self.phase, {}
        saved = self.position.step if self.resumed else -1
        self.model.train()
        if self.position.step < self.steps:
            self._require_space()
        while self.position.step < self.steps:
            step = self.position.step
            last = self._step()
            if self.position.step <= step:  # rolled back
                continue
            step = self.position.step
            final = step == self.steps
            if phase.evaluate_every and (step % phase.evaluate_every == 0 or final):
                last |= self._evaluated()
            self.progress(step, self.steps)
            self.metrics.add(step, last, show=self._shown(step))
            stopping, busy = stop.agreed(self.saving is not None and not self.saving.done)
            if not busy:
                self._finish_save()
            if final or stopping or phase.saves_at(step):
                self._save(background=phase.async_save and not (final or stopping))
                saved = step
                if stopping and not final:
                    raise Stopped(step, checkpoint.step_folder(job.output, step))
        if saved < 0:
            self._save(background=False)
        events = self.position.history.events
        return last | {"trained": stretches.of_phase(self.position)} | ({"events": events} if events else {})

    def _shown(self, step: int) -> bool:
        return step % self.phase.log_every == 0 or step in (1, self.steps)

    def _evaluated(self) -> dict[str, float]:
        """Bits per byte, loss per token and per document of every held-out text."""
        kinds = {"held_out": "bits_per_byte", "held_out_loss": "token_loss", "held_out_document_loss": "document_loss"}
        with fp8.without_fp8(self.bare):
            found = {name: evaluate.bits_per_byte(self.model, text, self.job.layout) for name, text in self.held_out.items()}
        return {f"{kind}/{name}": found[name][key] for kind, key in kinds.items() for name in found}

    def _require_space(self) -> None:
        """Whether the phase's checkpoints will fit on the disk is asked now, not hours later."""
        there = len(checkpoint.finished(self.job.output))
        at_once = self.phase.checkpoints(self.steps, self.position.step, there)
        size = checkpoint.size(self.bare, self.optimizer)
        checkpoint.require_space(self.job.output, size, max(1, at_once - there))

    def _save(self, background: bool) -> None:
        self._finish_save()
        phase, step = self.phase, self.position.step
        target = step - step % phase.save_every if phase.save_every and phase.on_spike.action == "rollback" else None
        self.saving = checkpoint.Save(
            self.job.output, self.bare, self.optimizer, self.position, self.hf, phase.keep_last, phase.keep_every, background, target
        )
        if not background:
            self._finish_save()

    def _finish_save(self) -> None:
        if self.saving is not None:
            saving, self.saving = self.saving, None
            self.hf = saving.finish() / "hf"  # it removes old checkpoints, also the one that this run was continued from

    def _step(self) -> dict[str, Any]:
        """One optimizer step; its metrics, the same on every rank."""
        began = time.perf_counter()
        phase, position = self.phase, self.position
        factor = self._schedule_factor(position.step)
        optimizers.set_learning_rate(self.optimizer, factor)
        batch = self.batches.next(phase.batch_at(position.step))
        for chunk in chunks(self.model):
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        seeds = noise.seeds(phase, self.job.seed, position.step)
        counted = shares(batch, phase.loss_per)
        parts = partial(micro_batches, batch, self._scale(batch, counted), phase.restart_positions, seeds, counted)
        outputs = run(self.forward_step, self.model, parts, len(batch.tokens), *row_shape(batch), forward_only=False)
        optimizers.prepare(self.optimizer)
        groups = optimizers.group_norms(self.optimizer, self.bare) if self._shown(position.step + 1) else {}
        norm = optimizers.clip(self.optimizer, phase.optimizer.clip_grad)
        losses = self._losses(outputs)
        if not self._accepted(losses["loss"], norm):
            return {}
        tokens = phase.batch_at(position.step) * phase.sequence_length
        position.step += 1
        position.tokens += tokens
        stretches.advance(position)
        backend.synchronize()
        seconds = time.perf_counter() - began
        world = parallel_state.get_data_parallel_world_size() * self.job.layout.model_ranks
        return losses | {
            "lr": phase.optimizer.lr * factor,
            "grad_norm": norm,
            **{f"grad_norm/{group}": value for group, value in groups.items()},
            "tokens": position.tokens,
            "tokens_per_second": tokens / seconds,
            "tflops_per_rank": tokens / seconds * flops_per_token(self.shape, phase.sequence_length) / world / 1e12,
            "memory_gb": backend.peak_memory() / 1e9,
            **self._changed_weights(),
        }

    def _scale(self, batch: Batch, counted: Tensor | None) -> float | None:
        """What makes the loss the mean over the global batch, of all targets or as these are ``counted``, however many each
        micro-batch has."""
        if batch.weights is None:
            return None
        data_size = parallel_state.get_data_parallel_world_size()
        count = (batch.weights if counted is None else counted).sum(dtype=torch.float64)
        targets = backend.agree([float(count)], "sum")[0] / self.job.layout.model_ranks
        return len(batch.tokens) * data_size / max(targets, 1.0)

    def _accepted(self, loss: float, norm: float) -> bool:
        """Update the weights, unless the step is a spike that is to be left out; False: everything is back at a checkpoint."""
        settings, position = self.phase.on_spike, self.position
        number = position.step + 1
        why = guard.spike(settings, position.history, loss, norm)
        if why is None:
            guard.accept(settings, position.history, loss)
            optimizers.update(self.optimizer)
            return True
        self._finish_save()  # where a run goes back to must not depend on how fast a disk is
        if settings.action == "log" and not (math.isfinite(loss) and math.isfinite(norm)):
            raise CheckpointError(
                f"phase '{self.phase.name}' diverged at step {number}: {why}. Lower optimizer.lr, lengthen schedule.warmup "
                "or set on_spike; checkpoints before this step are intact."
            )
        guard.record(settings, position.history, self.phase.name, number, why)
        self.log(f"spike at step {number}: {why}; {DONE[settings.action]}")
        if settings.action == "log":
            guard.accept(settings, position.history, loss)
            optimizers.update(self.optimizer)
        elif settings.action == "skip":
            position.history.skipped += 1
        else:
            self._roll_back()
        return settings.action != "rollback"

    def _roll_back(self) -> None:
        """Weights, optimizer and schedule of the last checkpoint, or of the start; the data goes on behind the spike."""
        # Not one that this run has passed over, nor one of a stop, which a run that was never stopped has not got.
        source, _ = agreement.latest_checkpoint(self.job.output, self.phase.saves_at)
        if source is not None:
            checkpoint.load(source, self.bare, self.optimizer)
            position = source.position
        else:
            start = checkpoint.resolve(self.job.start)
            checkpoint.load(start, self.bare)
            optimizers.reset(self.optimizer)
            if self.position.ages:
                carry.load(start, self.bare, self.optimizer)
            position = Position(phase=self.phase.name, ages=self.position.ages)
        ahead, history = self.position, position.history
        history = replace(history, events=ahead.history.events, in_a_row=ahead.history.in_a_row)
        # The counters of the data stay the same objects, which self.batches advances.
        self.position = replace(position, consumed=ahead.consumed, drawn=ahead.drawn, learnt=ahead.learnt, history=history)
        stretches.rewind(self.position, ahead)
        self.metrics.rewind(self.position.step)

    def _changed_weights(self) -> dict[str, float]:
        share = optimizers.changed_share(self.optimizer)
        return {} if share is None else {"changed_weights": share}

    def _schedule_factor(self, step: int) -> float:
        schedule = self.phase.schedule
        offset, total = self.spanned if schedule.over == "run" else (0, self.steps)
        return schedules.factor(schedule, offset + step, total)

    def _losses(self, outputs: list) -> dict[str, float]:
        """Sum the per-corpus sums of all micro-batches over data-parallel ranks; known on the last stage only."""
        names = self.batches.names
        flat = [0.0] * (3 * len(names))
        if outputs and parallel_state.get_tensor_model_parallel_rank() == 0:
            flat = sum(outputs).flatten().tolist()
        flat = backend.agree(flat, "sum")
        sums, counts, positions = (flat[begin : begin + len(names)] for begin in range(0, len(flat), len(names)))
        # Bits of the text's bytes: tokens that stand for no text (BOS, EOS) are paid for, too.
        bits = sum(s / math.log(2) for s in sums)
        size = self.batches.size_of(dict(zip(names, positions)), dict(zip(names, counts)))
        result = {"loss": sum(sums) / max(sum(counts), 1.0), "bits_per_byte": bits / max(size, 1.0)}
        if not self.batches.learns_all:
            result["learnt"] = sum(counts) / max(sum(positions), 1.0)
        if len(names) > 1:
            for name, total, count in zip(names, sums, counts):
                if count:
                    result[f"loss/{name}"] = total / count
        return result
