"""A checkpoint and tokenized corpora -> the checkpoints of one phase."""

from __future__ import annotations

from typing import Any

from megatron_adapt.engine import backend, loop
from megatron_adapt.engine.loop import Job
from megatron_adapt.steps.reporter import Reporter


def run(job: Job, reporter: Reporter) -> dict[str, Any]:
    """Trains, or continues where the newest checkpoint in ``job.output`` stands; returns the last step's metrics."""
    with backend.session(job.layout, job.seed):
        reporter.log(f"on {backend.name()}, {job.precision}, {job.steps:,} steps")
        return loop.train(job, reporter.log, reporter.progress)
