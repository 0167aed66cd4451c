"""What follows from a recipe's denoising, for ``check``: tokens that a tokenizer lacks, and what of a sequence is text, hidden or empty."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from megatron_adapt.config import Denoising, Phase, Recipe, TokenizerChoice
from megatron_adapt.data.denoising import Ids, Mixture, too_few
from megatron_adapt.data.windows import DenoisedOrder
from megatron_adapt.errors import ConfigError
from megatron_adapt.hf.tokenizer import Tokenizer
from megatron_adapt.plan import Plan
from megatron_adapt.steps.preprocess import windows
from megatron_adapt.steps.receipt import read
from megatron_adapt.vocab.specials import Specials, denoising_tokens


def problems(recipe: Recipe) -> Iterator[str]:
    """Tokens that phases denoise with and that their tokenizer will not have."""
    for kind, phase in _denoising(recipe):
        try:
            ids, mixture = _ids(recipe, kind, phase.denoising), _mixture(phase)
        except ConfigError as error:
            yield f"phase '{phase.name}': {str(error).removesuffix('.')}"
            continue
        if mixture.sentinels > len(ids.sentinels):
            yield f"phase '{phase.name}': {too_few(mixture, len(ids.sentinels))}"


def text_share(phase: Phase, name: str) -> float:
    """Tokens of text by tokens of sequences, of a corpus of text in a phase."""
    return _mixture(phase).rates()[0] if phase.denoises(name) else 1.0


def lines(plan: Plan) -> Iterator[str]:
    """What a sequence holds: by the formulas, and where a corpus is tokenized as it is packed."""
    for kind, phase in _denoising(plan.recipe):
        mixture = _mixture(phase)
        text, hidden = mixture.rates()
        there = len(_ids(plan.recipe, kind, phase.denoising).sentinels)
        parts = [f"{one.name} {share:.0%}" for one, share in zip(phase.denoising.mixture, mixture.shares)]
        parts += [f"text as it is {mixture.shares[-1]:.0%}"] if mixture.shares[-1] else []
        yield (
            f"{phase.name}: denoising ({', '.join(parts)}) of up to {max(mixture.capacities):,} tokens of text at a time; of long documents "
            f"{text:.0%} of a sequence is text and {hidden:.0%} is hidden text; {mixture.sentinels} sentinels needed, {there} there"
        )
        for name, order in _tokenized(plan, kind, phase):
            counts = order.counts(0)
            positions = counts.samples * (phase.sequence_length + 1)
            yield (
                f"{phase.name}: {name}: {counts.samples:,} sequences an epoch, {1 - counts.tokens / positions:.2%} of them left free by packing, "
                f"{counts.learnt / counts.samples:,.0f} tokens learnt in each"
            )


def _denoising(recipe: Recipe) -> Iterator[tuple[str, Phase]]:
    """Phases that denoise, each with the kind of its tokenizer."""
    scratch = recipe.model.from_scratch
    final = "target" if recipe.vocabulary else "base"
    for kind, phases in (("base", scratch.phases if scratch else []), (final, recipe.phases)):
        yield from ((kind, phase) for phase in phases if phase.denoising is not None)


def _mixture(phase: Phase) -> Mixture:
    """Of documents without BOS and EOS, which leave most room for text."""
    assert phase.denoising is not None
    return Mixture(phase.denoising, phase.sequence_length + 1, bos=False, eos=False)


def _tokenized(plan: Plan, kind: str, phase: Phase) -> Iterator[tuple[str, DenoisedOrder]]:
    for step in plan.steps:
        name = step.output.name
        if step.verb == "preprocess" and step.name.split("/")[1] == kind and name in phase.data and phase.denoises(name):
            corpus = plan.recipe.data[name]
            if corpus.messages is None and read(step.output):
                yield name, windows(step.output, phase, plan.recipe.seed, name, corpus)


def _ids(recipe: Recipe, kind: str, settings: Denoising) -> Ids:
    """Those that the tokenizer has, or will have once it is made."""
    scratch, vocabulary = recipe.model.from_scratch, recipe.vocabulary
    own = scratch.tokenizer if scratch else None
    choice = vocabulary.tokenizer if vocabulary and kind == "target" else own
    if choice is None:
        return Ids.find(settings, Tokenizer.load(str(recipe.model.source)))
    if choice.path is not None:
        return Ids.find(settings, Tokenizer.load(choice.path))
    if choice.train is not None:
        return _trained(settings, choice)
    if own is not None and own.train is not None:  # its own is made, too
        special, roles = _special(own)
    else:
        tokenizer = Tokenizer.load(str(own.path if own else recipe.model.source))
        special, roles = list(tokenizer.special_tokens()), {"eos": tokenizer.eos_id, "bos": tokenizer.bos_id}
    special += denoising_tokens(choice.extend.sentinels or 0) if choice.extend else []
    return _among(settings, special, roles)


def _trained(settings: Denoising, choice: TokenizerChoice) -> Ids:
    return _among(settings, *_special(choice))


def _special(choice: TokenizerChoice) -> tuple[list[str], dict[str, object]]:
    """Special tokens of a tokenizer that is to be trained, and those of roles."""
    training = choice.train
    assert training is not None
    specials = Specials.of(Path(training.like) if training.like else None, training.type).with_denoising(training.sentinels or 0)
    reserved = -training.vocab_size % training.multiple
    return specials.with_reserved(reserved).tokens, dict(specials.roles)


def _among(settings: Denoising, special: list[str], roles: dict[str, object]) -> Ids:
    """Numbered as they come: which id each gets is not asked."""
    numbers = {token: number for number, token in enumerate(dict.fromkeys(special))}
    bos, eos = (numbers.get(str(found), -1) if (found := roles.get(role)) is not None else None for role in ("bos", "eos"))
    return Ids.among(settings, numbers, bos, eos, "the tokenizer that is to be made")
