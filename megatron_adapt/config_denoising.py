"""The part of a recipe's schema that says how a phase denoises: UL2's mixture of denoisers (Tay et al. 2022, arXiv 2205.05131)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from megatron_adapt.config_strict import Strict
from megatron_adapt.config_types import INVALID, Count, Number, Positive, Text, got

if TYPE_CHECKING:
    from megatron_adapt.config_phases import Phase

Found = tuple[tuple[str | int, ...], str]


class Denoiser(Strict):
    """One way to hide a part of a text."""

    kind: Literal["R", "S", "X"] = Field(description="R: spans, as T5 has them; S: the end of the text; X: much of it, or long spans")
    span: Annotated[Number, Field(ge=1)] | None = Field(None, description="R and X: tokens of a hidden span, on average")
    ratio: Annotated[Number, Field(gt=0, lt=1)] = Field(description="share of the text that is hidden")
    weight: Positive = Field(1.0, description="how often it is drawn, against the others")
    token: Text | None = Field(None, description="special token that its samples begin with; null: [R], [S] or [X]")

    @property
    def name(self) -> str:
        """'R 3/0.15', 'S 0.25'"""
        return f"{self.kind} {self.ratio:g}" if self.span is None else f"{self.kind} {self.span:g}/{self.ratio:g}"

    @property
    def mode(self) -> str:
        """The token that its samples begin with."""
        return self.token or f"[{self.kind}]"


# Spans, shares and kinds of the UL2 paper's table 2, as Muennighoff et al. 2023 drew them, each as often as any other.
UL2 = (
    {"kind": "R", "span": 3, "ratio": 0.15}, {"kind": "R", "span": 8, "ratio": 0.15}, {"kind": "S", "ratio": 0.25},
    {"kind": "X", "span": 3, "ratio": 0.5}, {"kind": "X", "span": 8, "ratio": 0.5}, {"kind": "X", "span": 64, "ratio": 0.15},
    {"kind": "X", "span": 64, "ratio": 0.5},
)  # fmt: skip


def _named(value: Any) -> Any:
    if isinstance(value, str):
        if value != "ul2":
            raise ValueError(f"expected 'ul2' or a list of denoisers, got {got(value)}")
        return [dict(denoiser) for denoiser in UL2]
    return value


class Denoising(Strict):
    """What is learnt of a text is what was hidden of it; in the YAML `ul2` alone is all defaults, and a list is `mixture`."""

    mixture: Annotated[list[Denoiser], Field(min_length=1), BeforeValidator(_named)] = Field(
        default_factory=lambda: [Denoiser(**denoiser) for denoiser in UL2], description="the denoisers; ul2: the seven of the paper"
    )
    causal: Annotated[Number, Field(ge=0, lt=1)] = Field(0.0, description="share of windows of text that are learnt as they stand instead")
    corpora: list[Text] | None = Field(None, description="which of the phase's corpora; null: all of text")
    sentinel: Text = Field("<extra_id_{}>", description="special tokens that stand for hidden spans, {} being 0, 1, 2 ...")
    separator: Text | None = Field(None, description="special token between a corrupted text and what was hidden of it; null: none")
    decoder: Literal["causal", "prefix"] = Field(
        "causal", description="what stands before the targets of a sample is seen left to right, or (prefix) in both directions"
    )
    window: Count | None = Field(None, description="at most so many tokens of text in a sample; null: as many as fit in a sequence")

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        return {"mixture": value} if isinstance(value, (str, list)) else value

    @property
    def digest(self) -> str:
        """Of what decides which text lies in which sample."""
        return hashlib.sha256(self.model_dump_json(exclude={"corpora", "sentinel", "decoder"}).encode()).hexdigest()[:10]

    def applies(self, corpus: str) -> bool:
        """Whether a corpus of the phase is denoised if it is text; chats never are."""
        return self.corpora is None or corpus in self.corpora


def check(data: Mapping[str, Any], phases: Iterable[tuple[tuple[str | int, ...], Phase]], context: Any) -> Iterator[Found]:
    """(path of a key, what is wrong with it) of the phases; ``data``: the recipe's corpora by name, ``context``: ranks that share a sequence."""
    chats = {name for name, corpus in data.items() if isinstance(getattr(corpus, "messages", None), str)}
    for path, phase in phases:
        if isinstance(phase.denoising, Denoising):
            if phase.denoising.decoder == "prefix" and context not in (1, INVALID):
                why = "'prefix' goes with whole sequences, which parallel.context cuts; use 'causal', or parallel.context 1"
                yield (*path, "denoising", "decoder"), why
            yield from (((*path, *key), text) for key, text in _phase(phase, chats))


def _phase(phase: Phase, chats: set[str]) -> Iterator[Found]:
    settings = phase.denoising
    assert settings is not None
    default = type(settings).model_fields
    if phase.packing == "chunks":
        yield ("packing",), "samples of denoising must not see one another, nor be cut; set it to 'documents'"
    mix = phase.data if isinstance(phase.data, dict) else {}
    if settings.corpora is None and mix and set(mix) <= chats:
        yield ("denoising",), f"belongs to text, and all of this phase's corpora are chats ({', '.join(mix)}); remove it"
    for index, name in enumerate(settings.corpora if isinstance(settings.corpora, list) else []):
        if name in chats:
            yield ("denoising", "corpora", index), f"'{name}' holds chats, and only text is denoised"
        elif mix and name not in (INVALID, *mix):
            yield ("denoising", "corpora", index), f"'{name}' is not in this phase's data: {', '.join(mix)}"
    if isinstance(settings.sentinel, str) and settings.sentinel.count("{}") != 1:
        yield ("denoising", "sentinel"), f"needs one {{}} where the number of a sentinel stands, such as <extra_id_{{}}>, got {settings.sentinel!r}"
    elif settings.sentinel != default["sentinel"].default and isinstance(settings.mixture, list) and _ends_alone(settings.mixture):
        yield ("denoising", "sentinel"), "stands for hidden spans, and S hides the text's end, without one; remove it"
    for index, denoiser in enumerate(settings.mixture if isinstance(settings.mixture, list) else []):
        if isinstance(denoiser, Denoiser) and INVALID not in (denoiser.kind, denoiser.span):
            place = ("denoising", "mixture", index, "span")
            if denoiser.kind == "S" and denoiser.span is not None:
                yield place, "belongs to R and X: what S hides is the text's end; remove it"
            elif denoiser.kind != "S" and denoiser.span is None:
                yield place, f"missing; {Denoiser.model_fields['span'].description}"


def _ends_alone(mixture: list[Any]) -> bool:
    return all(isinstance(denoiser, Denoiser) and denoiser.kind == "S" for denoiser in mixture)
