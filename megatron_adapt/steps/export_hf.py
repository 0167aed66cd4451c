"""A Megatron distributed checkpoint -> a Hugging Face directory that transformers loads, tensor by tensor, verified."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Mapping, Sequence

from megatron_adapt.errors import ConfigError
from megatron_adapt.families.conversion import AsHF, AsMegatron, Canonical, Untied, tied, untied
from megatron_adapt.families.rules import FLOATS, OUTPUT
from megatron_adapt.hf import writer
from megatron_adapt.hf.chat_template import ChatTemplate
from megatron_adapt.hf.directory import HFDirectory, tokenizer_files
from megatron_adapt.hf.tokenizer import Tokenizer
from megatron_adapt.hf.tokenizer_files import write_json
from megatron_adapt.steps import verification
from megatron_adapt.steps.foreign import Source, find_source
from megatron_adapt.steps.reporter import Reporter
from megatron_adapt.streams.bits import Cast, Source as Tensors, differing
from megatron_adapt.torch_dist.directory import Learnt
from megatron_adapt.torch_dist.reader import TensorReader

if TYPE_CHECKING:
    from megatron_adapt.families import ModelShape

def run(
    source: Path,
    output: Path,
    reporter: Reporter,
    dtype: str = "bfloat16",
    max_shard_bytes: float = 5e9,
    texts: Sequence[str] | None = None,
    verify: str | None = None,
    tie: str = "keep",
    family: str | None = None,
    hf_config: Path | None = None,
    learnt: Learnt | None = None,
) -> dict[str, Any]:
    """Write config, tokenizer and weights to ``output``; weight files that are there already and right are kept.

    Args:
        source: a checkpoint of any layout, or a folder whose newest is taken; ours, or one of Megatron-LM or
            Megatron-Bridge (``foreign.py``), for which ``family`` and ``hf_config`` say what it does not say itself.
        dtype: "keep" = config.json's, or where that says none, the checkpoint's.
        tie: "untie" gives a tied model a head of its own, "tie" removes a head that equals the embedding.
        texts, verify: as for an import.
        learnt: None: what the checkpoint says of it. A model that has learnt chats is told at which tokens to stop when it generates
            text, and gets their template.
    """
    found = find_source(source, family, hf_config)
    for note in found.notes:
        reporter.log(note)
    if found.tokenizer is None and verify in (None, "logits"):
        if verify is not None:
            raise ConfigError(f"--verify logits needs a tokenizer, and {found.path} has none. Say --hf-config DIRECTORY.")
        reporter.log("logits are not compared: that needs a tokenizer; all weights are, bit for bit")
        verify = "weights"
    verify = verification.choose(verify, found.shape, reporter)
    result = verification.apart(lambda: _convert(found, output, dtype, max_shard_bytes, tie, verify != "off", reporter))
    learnt = learnt or found.learnt
    if learnt.both_ways:
        reporter.log(
            f"warning: in {', '.join(learnt.both_ways)} the model saw what stands before targets in both directions; what is exported attends "
            "left to right alone, as transformers does: text is continued as it was evaluated, hidden spans are filled in worse"
        )
    if learnt.chat_template is not None:  # transformers prefers this file to what tokenizer_config.json says
        (output / "chat_template.jinja").write_bytes(learnt.chat_template.encode("utf-8"))
    if learnt.chats is not None:
        result |= stop_after_answers(output, reporter, learnt.chats)
    if learnt.chats:
        given = ", ".join(f"{name}={value!r}" for name, value in learnt.chats.items())
        reporter.log(f"chats were learnt with chat_template_kwargs: give {given} to apply_chat_template when generating, too")
    if verify == "logits":
        from megatron_adapt.engine import convert

        # The weights as exported (rounded, if dtype is narrower), computed in float32 by both.
        written = HFDirectory.open(output)
        shape = _tied_as(found.shape, result["tied"])
        result |= verification.logits(output, shape, lambda model: convert.load_hf(model, written, shape), reporter, texts)
    stored = "" if result["stored_dtype"] == result["dtype"] else f" (stored as {result['stored_dtype']})"
    reporter.log(
        f"{found.shape.num_parameters():,} parameters as {result['dtype']}{stored}; {verification.summary(result)}; "
        f"peak memory {result['peak_bytes'] / 1e9:.2f} GB{verification.kept(result)}"
    )
    for change in result["config_changes"]:
        reporter.log(f"config.json: {change}")
    return {"parameters": found.shape.num_parameters(), **result}


def _convert(
    found: Source, output: Path, dtype: str, max_shard_bytes: float, tie: str, verify: bool, reporter: Reporter
) -> dict[str, Any]:
    """In a process of its own: write everything, and compare what it gives back with the checkpoint."""
    where, family = str(found.path), found.family
    source: Tensors = Canonical(family, found.shape, TensorReader(found.path), where, cut_padding=found.is_foreign)
    stored = "/".join(sorted({source.info(name)[1] for name in source.names()}))
    if dtype == "keep":
        dtype = found.config.get("dtype") or found.config.get("torch_dtype") or stored
    if dtype not in FLOATS:
        raise ConfigError(f"{where}: the weights are {dtype}; choose a dtype: {', '.join(FLOATS)}.")
    shape = found.shape
    if tie != "keep":
        shape = untied(family, shape, where) if tie == "untie" else tied(family, shape, source, where)
    config = {key: value for key, value in found.config.items() if key != "torch_dtype"} | {"dtype": dtype}
    expected = set(verification.DTYPE_KEYS)
    if shape.tied != found.shape.tied:
        config[family.names["tied"]] = shape.tied
        expected.add(family.names["tied"])
    if OUTPUT not in source.names() and not shape.tied:
        source = Untied(source)
    source = Cast(source, dtype)
    _clear(output)
    view = AsHF(family, shape, source)
    result: dict[str, Any] = writer.write(view, output, max_shard_bytes, reporter.progress)
    if found.metadata is not None:
        HFDirectory.open(found.metadata, weights=False).copy_metadata(output)
    for file in tokenizer_files(found.tokenizer) if found.tokenizer not in (None, found.metadata) else []:
        shutil.copyfile(file, output / file.name)
    (output / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    written = HFDirectory.open(output)
    changes = verification.configuration(found.config, written.config, expected, str(written.config_path))
    if verify:
        with written.weights() as reader:
            back = AsMegatron(family, shape, reader)
            verification.judge(differing(back, source, back.names()), len(back.names()), str(output))
            result["tensors"] = len(back.names())
    return result | {
        "dtype": dtype,
        "stored_dtype": stored,
        "tied": shape.tied,
        "config_changes": changes,
        "peak_bytes": verification.peak_memory(),
    }


def stop_after_answers(output: Path, reporter: Reporter, keywords: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """generation_config.json of a model of chats names the tokens that end answers, beside the ends of text that it has.

    A base model's end of text seldom is the end of a turn: without this it would be asked for the next question, too.

    Returns:
        {"eos_token_id": [ids]}, or {} where nothing was missing.
    """
    tokenizer, directory = Tokenizer.load(output), HFDirectory.open(output)
    ends = ChatTemplate.load(tokenizer, keywords=keywords).ends()
    tokens = tokenizer.tokens()
    generation = directory.generation_config()
    old = (generation or {}).get("eos_token_id")
    old = directory.config.get("eos_token_id") if old is None else old
    known = [] if old is None else old if isinstance(old, list) else [old]
    added = {index: token for token in ends if (index := tokens.index(token)) not in known}
    if not added:
        return {}
    if generation is None:  # then transformers takes from config.json what that says, and no more once there is a file
        generation = {key: value for key in ("bos_token_id", "pad_token_id") if (value := directory.config.get(key)) is not None}
    write_json(output / "generation_config.json", generation | {"eos_token_id": [*known, *added]})
    named = ", ".join(f"{token!r} ({index})" for index, token in added.items())
    also = ", ".join(f"{tokens[index]!r} ({index})" for index in known if 0 <= index < len(tokens))
    reporter.log(f"generation_config.json: text ends at {named} as well, which ends answers{also and f', not at {also} alone'}")
    return {"eos_token_id": [*known, *added]}


def _clear(output: Path) -> None:
    """Remove what an interrupted export left, but for its finished weight files."""
    output.mkdir(parents=True, exist_ok=True)
    for path in output.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif not (path.name.startswith("model") and path.suffix == ".safetensors"):
            path.unlink()


def _tied_as(shape: ModelShape, is_tied: bool) -> ModelShape:
    return shape if shape.tied == is_tied else replace(shape, tied=is_tied)
