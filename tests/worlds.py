"""A small world for multi-process tests: tiny models, a tokenizer, corpora, and phases trained on them in any layout.

Importing this module imports Megatron, once, so that the forked ranks need not. The test process itself has one thread
and leaves all model work to its children.
"""

from __future__ import annotations

import json
import pickle
import random
import shutil
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Mapping

import torch
from torch.distributed.checkpoint import FileSystemReader, TensorStorageMetadata, load

import megatron_adapt.engine  # noqa: F401
from megatron_adapt import launch
from megatron_adapt.config import Phase
from megatron_adapt.data.preprocess import preprocess
from megatron_adapt.engine import backend, checkpoint, convert, loop, model as models
from megatron_adapt.engine.backend import Layout
from megatron_adapt.families import family_named, find_family, initial_tensors
from megatron_adapt.hf.directory import HFDirectory
from megatron_adapt.hf.tokenizer import Tokenizer
from megatron_adapt.hf.weights import WeightWriter
from megatron_adapt.pipeline import preload_files, preload_transformers
from megatron_adapt.vocab.train import Scheme, train_tokenizer

torch.set_num_threads(1)  # threads do not survive a fork
preload_files()
preload_transformers()

VOCABULARY = 321  # what tensor-parallel ranks can share is tested with EVEN
EVEN = 324
SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.1,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "untied": {},
    # Enough for all but four stages or chunks of a pipeline, in half the time.
    "short": {"num_hidden_layers": 2},
    "short tied": {"num_hidden_layers": 2, "tie_word_embeddings": True},
    "tied": {"tie_word_embeddings": True},
    "mha": {"num_key_value_heads": 4, "tie_word_embeddings": True, "vocab_size": EVEN},
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "llama3": {"rope_theta": 500.0, "rope_scaling": LLAMA3, "head_dim": 16},
    "bf16": {"dtype": "bfloat16"},
    "twelve heads": {
        "num_hidden_layers": 2, "num_attention_heads": 12, "num_key_value_heads": 12, "hidden_size": 48,
        "vocab_size": 323,
    },
}
SEED = 7
# A phase that is interrupted and continued, and where.
STEPS = {"steps": 6, "save_every": 2, "keep_last": 9}
LAYOUTS = {
    "one": (Layout(), 1),
    "TP2": (Layout(tensor=2), 2),
    "PP2": (Layout(pipeline=2), 2),
    "DP2": (Layout(), 2),
    "TP2xPP2": (Layout(tensor=2, pipeline=2), 4),
    "TP2+SP": (Layout(tensor=2, sequence=True), 2),
    "DP2+DO": (Layout(distributed_optimizer=True), 2),
    "TP2xDP2+DO": (Layout(tensor=2, distributed_optimizer=True), 4),
    "PP2xDP2+DO": (Layout(pipeline=2, distributed_optimizer=True), 4),
    "PP2xVP2": (Layout(pipeline=2, virtual_pipeline=2), 2),
    "CP2": (Layout(context=2), 2),
    "CP2+DO": (Layout(context=2, distributed_optimizer=True), 2),
    "PP2xVP2xDP2+DO": (Layout(pipeline=2, virtual_pipeline=2, distributed_optimizer=True), 4),
}


def on_ranks(count: int, function: Callable[[], Any]) -> list[Any]:
    """What ``function`` returns on each of ``count`` forked ranks; its errors are raised here."""
    with tempfile.TemporaryDirectory() as folder:

        def keep() -> None:
            value = function()
            (Path(folder) / str(backend.rank())).write_bytes(pickle.dumps(value))

        assert not launch.fork(count, keep, threads=1).stopped
        return [pickle.loads((Path(folder) / str(rank)).read_bytes()) for rank in range(count)]


def sentences(seed: int, count: int) -> list[str]:
    """Documents of a made-up language with some regularity: a model learns something from a few steps."""
    draw = random.Random(seed)

    def word() -> str:
        return "".join(draw.choice("bdklmnrst") + draw.choice("aeiouä") for _ in range(draw.randint(1, 3)))

    def sentence() -> str:
        return " ".join(draw.choices(words, k=draw.randint(3, 9))).capitalize() + "."

    words = [word() for _ in range(60)]
    return [" ".join(sentence() for _ in range(draw.randint(1, 5))) for _ in range(count)]


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def phase(**changes: Any) -> Phase:
    """Five steps on both corpora; keyword arguments replace or add keys of the recipe's phase."""
    settings: dict[str, Any] = {
        "name": "full", "train": "all", "data": {"first": 0.7, "second": 0.3}, "steps": 5, "sequence_length": 32,
        "batch_size": 8, "micro_batch_size": 2, "optimizer": {"lr": 3e-3},
        "schedule": {"type": "cosine", "warmup": 0.2}, "log_every": 100,
    }  # fmt: skip
    return Phase(**{**settings, **changes})


@dataclass(frozen=True)
class Outcome:
    """What a phase left behind: its folder, and metrics.jsonl without what measures time."""

    folder: Path

    @property
    def metrics(self) -> list[dict[str, float]]:
        lines = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        timing = ("tokens_per_second", "tflops_per_rank", "memory_gb")
        return [{key: value for key, value in line.items() if key not in timing} for line in lines]

    @property
    def losses(self) -> list[float]:
        return [line["loss"] for line in self.metrics]

    @property
    def norms(self) -> list[float]:
        return [line["grad_norm"] for line in self.metrics]


class World:
    """Tokenizer, corpora and models are made at once, checkpoints of the models on first use."""

    def __init__(self, folder: Path, sentinels: int = 0) -> None:
        self.folder = folder
        self.held_out = write_jsonl(folder / "held_out.jsonl", sentences(3, 20))
        texts = {"first": sentences(1, 200), "second": sentences(2, 60)}
        self.corpora = {name: folder / name for name in texts}
        self.tokenizer = folder / "tokenizer"
        self._initial: dict[str, dict[str, torch.Tensor]] = {}

        def make() -> None:
            train_tokenizer([text for part in texts.values() for text in part], VOCABULARY, self.tokenizer, scheme=Scheme(sentinels=sentinels))
            tokenizer = Tokenizer.load(self.tokenizer)
            for name, part in texts.items():
                preprocess([write_jsonl(folder / f"{name}.jsonl", part)], tokenizer, folder / name, append_bos=True)
            for name, changes in MODELS.items():
                self._write_model(self.model(name), changes)

        launch.fork(1, make, threads=1)

    def model(self, name: str) -> Path:
        """The Hugging Face directory of one of ``MODELS``."""
        return self.folder / f"hf-{name}"

    def _write_model(self, path: Path, changes: Mapping[str, Any]) -> None:
        family = family_named("llama")
        config = family.complete_config({**SIZES, **changes}, changes.get("vocab_size", VOCABULARY), 0, 1)
        path.mkdir()
        (path / "config.json").write_text(json.dumps(config))
        for file in self.tokenizer.iterdir():
            (path / file.name).write_bytes(file.read_bytes())
        with WeightWriter(path) as writer:
            for name, tensor in initial_tensors(family, family.read_config(config), 5, config["dtype"]):
                if tensor.dim() == 1:  # norms differ from one, or nothing would notice one in the wrong place
                    tensor = tensor + torch.linspace(-0.5, 0.5, len(tensor)).roll(len(name)).to(tensor.dtype)
                writer.add(name, tensor)

    def imported(self, name: str) -> Path:
        """A checkpoint of one of ``MODELS`` in float32."""
        path = self.folder / f"import-{name}"
        if checkpoint.latest(path) is None:

            def work() -> None:
                model, _ = hf_model(self.model(name))
                checkpoint.save(path, model, None, checkpoint.Position(), self.model(name))

            launch.fork(1, work, threads=1)
        return path

    def initial(self, name: str) -> dict[str, torch.Tensor]:
        """Every parameter of one of ``MODELS`` before training."""
        if name not in self._initial:
            self._initial[name] = tensors(self.imported(name))
        return self._initial[name]

    def job(
        self, folder: Path, layout: Layout, settings: Phase, start: Path, precision: str = "fp32",
        mup: dict[str, Any] | None = None,
    ) -> loop.Job:
        held_out = {"text": self.held_out} if settings.evaluate_every else {}
        return loop.Job(
            phase=settings, steps=settings.steps, layout=layout, precision=precision, seed=SEED, start=start,
            output=folder, corpora=self.corpora, held_out=held_out, evaluation_bytes=1500, mup=mup or {},
        )  # fmt: skip

    def train(
        self,
        folder: Path,
        layout: Layout = Layout(),
        ranks: int = 0,
        start: Path | str = "short",
        precision: str = "fp32",
        mup: dict[str, Any] | None = None,
        **changes: Any,
    ) -> Outcome:
        """Run or continue ``phase(**changes)`` from a checkpoint or a model's name; 0 ranks: as few as possible.

        ``mup``: fields of ``ModelShape`` that the base of muP has.
        """
        source = self.imported(start) if isinstance(start, str) else start
        job = self.job(folder, layout, phase(**changes), source, precision, mup)
        outcome = launch.fork(ranks or layout.model_ranks, lambda: run_job(job), threads=1)
        assert not outcome.stopped
        return Outcome(folder)


def run_job(job: loop.Job) -> None:
    with backend.session(job.layout, job.seed):
        loop.train(job)


def hf_model(path: Path, layout: Layout = Layout(), precision: str = "fp32") -> tuple[Any, Any]:
    """(model filled from a Hugging Face directory, its shape); starts the backend."""
    backend.start(layout, SEED)
    directory = HFDirectory.open(path)
    shape = find_family(directory.config).read_config(directory.config)
    model = models.build(shape, layout, precision)
    convert.load_hf(model, directory, shape)
    return model, shape


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the newest checkpoint in ``folder``, unsharded, read by torch alone: no Megatron, no ranks."""
    reader = FileSystemReader(checkpoint.resolve(folder).path)
    entries = reader.read_metadata().state_dict_metadata.items()
    state = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in entries
        if isinstance(entry, TensorStorageMetadata)
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that there is one process
        load(state, storage_reader=reader, no_dist=True)
    return state


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The model's part of ``stored``, by canonical name."""
    return {name: tensor for name, tensor in stored(folder).items() if not name.startswith("optimizer.")}


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal shape, dtype and bits: a NaN equals itself, and 0 differs from -0."""
    ours, theirs = (tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other))
    return one.shape == other.shape and one.dtype == other.dtype and ours.equal(theirs)


def changed(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> set[str]:
    """Names of the tensors of which any bit differs."""
    assert set(before) == set(after)
    return {name for name in before if not torch.equal(before[name], after[name])}


def interrupted_after(step: int, run: Outcome, folder: Path) -> Path:
    """A folder as a run leaves it that died after ``step`` was saved and the next step was logged."""
    folder.mkdir()
    for number in range(2, step + 1, 2):
        shutil.copytree(run.folder / f"step_{number:08d}", folder / f"step_{number:08d}")
    lines = (run.folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[: step + 1]) + lines[0][:20])
    return folder


def without_checksums(folder: Path, **changes: Any) -> None:
    """Make a checkpoint one that is older than checksums, with changes of its mark (None: without that key)."""
    (folder / "checksums.json").unlink()
    file = folder / checkpoint.MARK
    mark = json.loads(file.read_text())
    for part in ("files", "digests"):
        mark[part].pop("checksums.json")
    mark |= {"digest": None} | changes
    file.write_text(json.dumps({key: value for key, value in mark.items() if value is not None}))


def flip(file: Path, at: int, bits: int = 1) -> None:
    """Change bits of one byte; doing it again changes them back."""
    with open(file, "r+b") as opened:
        opened.seek(at)
        (byte,) = opened.read(1)
        opened.seek(at)
        opened.write(bytes([byte ^ bits]))


def assert_identical(run: Outcome, reference: Outcome) -> None:
    assert run.metrics == reference.metrics
    assert changed(stored(reference.folder), stored(run.folder)) == set()  # Adam's moments included
