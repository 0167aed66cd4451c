"""A checkpoint and tokenized corpora -> the checkpoints of one phase."""

from __future__ import annotations

from typing import Any

from megatron_adapt.engine import backend, checkpoint, loop
from megatron_adapt.engine.job import Job
from megatron_adapt.families import find_family
from megatron_adapt.steps.reporter import Reporter


def run(job: Job, reporter: Reporter) -> dict[str, Any]:
    """Trains, or continues where the newest checkpoint in ``job.output`` stands; returns the last step's metrics."""
    with backend.session(job.layout, job.seed):
        config = checkpoint.resolve(job.start).config
        layers = backend.layers(find_family(config).read_config(config))
        reporter.log(f"on {backend.name()}, {job.precision}, {job.steps:,} steps; layers: {layers}")
        return loop.train(job, reporter.log, reporter.progress)
