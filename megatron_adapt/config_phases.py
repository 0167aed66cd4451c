"""The part of a recipe's schema that says how a phase is trained: its data, optimizer, schedule and precision."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from megatron_adapt.config_denoising import Denoising
from megatron_adapt.config_strict import Strict
from megatron_adapt.config_types import Count, Name, NotNegative, Number, Parts, Positive, Recompute, Share, Switch, Text

# bf16-mixed: float32 main weights and moments; bf16-true: weights, gradients and moments in bf16; fp8-...: bf16-mixed, or with
# -true bf16-true, whose matrix products are in fp8, scaled by tensor (current, or delayed: by what tensors were in the steps
# before), by block, or as MXFP8.
FP8_TRUE = ("fp8-current-true", "fp8-delayed-true", "fp8-blockwise-true", "fp8-mx-true")
FP8 = ("fp8-current", "fp8-delayed", "fp8-blockwise", "fp8-mx", *FP8_TRUE)
FP8_SINCE = {  # by precision without "-true": the compute capability of the first GPUs that have it, and what these are called
    "fp8-current": ((8, 9), "Ada and Hopper"),
    "fp8-delayed": ((8, 9), "Ada and Hopper"),
    "fp8-blockwise": ((9, 0), "Hopper"),
    "fp8-mx": ((10, 0), "Blackwell"),
}
FP8_POSITIONS = 32  # what the positions of a rank's pass have to be a multiple of
BF16_ALONE = ("bf16-true", *FP8_TRUE)  # no float32 copies of weights, gradients and moments

Precision = Annotated[
    Literal[
        "fp32", "bf16-mixed", "bf16-true", "fp8-current", "fp8-delayed", "fp8-blockwise", "fp8-mx",
        "fp8-current-true", "fp8-delayed-true", "fp8-blockwise-true", "fp8-mx-true",
    ],  # fmt: skip
    BeforeValidator(lambda value: "bf16-mixed" if value == "bf16" else value),
]


def fp8_multiple(precision: str) -> int:
    """What the sides of matrices have to be multiples of in this precision."""
    return (32 if precision.startswith("fp8-mx") else 16) if precision in FP8 else 1


def bf16_of(precision: str) -> str:
    """The precision whose weights, gradients and moments one of fp8 has, too."""
    return "bf16-true" if precision in FP8_TRUE else "bf16-mixed"


class Optimizer(Strict):
    """AdamW, LionW or Muon."""

    type: Literal["adamw", "adamw8bit", "lionw", "muon"] = Field(
        "adamw", description="algorithm; adamw8bit: moments of 8 bits (bitsandbytes); muon: adamw but for matrices inside layers"
    )
    offload: Switch = Field(False, description="adamw: moments in main memory, where the CPU computes the update (needs a GPU)")
    paged: Switch = Field(False, description="adamw8bit: moments may move to main memory while the GPU has too little")
    lr: Positive = Field(description="peak learning rate")
    embedding_lr: Positive | None = Field(None, description="peak learning rate of embedding and output rows; null: lr")
    weight_decay: NotNegative = Field(0.1, description="decoupled weight decay")
    decay_by: Literal["lr", "schedule"] = Field(
        "lr", description="the decay of a step is weight_decay times the learning rate, or times its share of the peak"
    )
    decay_embeddings: Switch = Field(True, description="whether embedding and output rows decay")
    beta1: Annotated[Number, Field(ge=0, lt=1)] = Field(0.9, description="decay rate of the first moment")
    beta2: Annotated[Number, Field(ge=0, lt=1)] = Field(
        0.95, description="decay rate of the second moment; lionw: of the momentum, where beta1 weighs it in the update"
    )
    eps: Positive = Field(1e-8, description="added to the denominator (adamw)")
    momentum: Annotated[Number, Field(ge=0, lt=1)] = Field(0.95, description="muon: decay rate of the matrices' momentum")
    rounding: Literal["stochastic", "kahan", "nearest"] = Field("stochastic", description="of weights under bf16-true")
    clip_grad: NotNegative = Field(1.0, description="largest norm of the gradient; 0 turns clipping off")
    z_loss: NotNegative = Field(0.0, description="times the squared logarithm of the softmax's denominator, added to the loss")
    embedding_gradient: Annotated[Number, Field(gt=0, le=1)] = Field(
        1.0, description="share of the gradient that reaches the input embedding"
    )


class Schedule(Strict):
    """The learning rate over the steps of a phase. A length below 1 is a share of the steps, else a number of steps."""

    type: Literal["constant", "linear", "cosine", "inverse-sqrt", "wsd", "infinite"] = Field(
        "cosine", description="shape of the decay"
    )
    warmup: NotNegative = Field(0.0, description="length of the linear warm-up, a share (<1) or steps (>=1)")
    warmup_from: Share = Field(0.0, description="where the warm-up starts, as a share of the peak (re-warming)")
    cooldown: NotNegative = Field(0.0, description="infinite: length of the fall to the constant part, in steps")
    constant_ratio: Share = Field(0.5, description="infinite: learning rate of the constant part, as a share of the peak")
    decay: NotNegative = Field(0.1, description="length of the final decay of wsd (a share or steps) and infinite (steps)")
    decay_shape: Literal["linear", "cosine", "1-sqrt", "exponential"] = Field("linear", description="wsd: how it decays")
    min_lr_ratio: Share = Field(0.0, description="final learning rate as a share of the peak")
    floor: Literal["interpolate", "clamp"] = Field(
        "interpolate", description="the decay ends at min_lr_ratio, or goes to 0 and is cut off there"
    )
    over: Literal["phase", "run"] = Field("phase", description="steps that the schedule spans: its phase's or all phases'")
    counting: Literal["useful", "from-0", "from-1"] = Field(
        "useful", description="number of the first step: from-0 starts at 0, from-1 ends at the lowest, useful does neither"
    )


class Spikes(Strict):
    """What happens when a loss is not finite, or jumps; plain text in the YAML is short for `action`."""

    action: Literal["log", "skip", "rollback"] = Field(
        "log", description="note it; leave the update out; or go back to the last checkpoint and leave out the data since"
    )
    factor: Annotated[Number, Field(gt=1)] = Field(2.0, description="a spike is so many times the mean of recent losses")
    window: Count = Field(100, description="recent losses: so many steps")

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        return {"action": value} if isinstance(value, str) else value


class RampUp(Strict):
    """Smaller batches at first: `start`, then `by` more at equal intervals, and after `over` steps `batch_size`."""

    start: Count = Field(description="sequences of the first step")
    by: Count = Field(description="sequences more each time")
    over: Count = Field(description="steps until batch_size is reached")


Rate = Annotated[Number, Field(ge=0, lt=1)]


class Dropout(Strict):
    """Shares of activations that are zeroed in training, at random; in the YAML a number alone is all three."""

    hidden: Rate = Field(0.0, description="of what attention and MLP add to the residual stream")
    attention: Rate = Field(0.0, description="of attention weights")
    embedding: Rate = Field(0.0, description="of the first layer's input")

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        return dict.fromkeys(cls.model_fields, value) if isinstance(value, (int, float, str)) else value


LOGITS_OF_A_SLICE = 1 << 26


def slices_logits(choice: str, count: int) -> bool:
    """Whether so many logits of one rank's forward pass are computed in slices, for a phase's `logits`."""
    return choice == "sliced" or (choice == "auto" and count > 1 << 28)


class Phase(Strict):
    """One stretch of training with its own data, optimizer and trainable parts."""

    alternatives: ClassVar[tuple[str, ...]] = ("tokens", "steps", "epochs", "share")
    name: Name = Field(description="name of the phase, also of its directory")
    train: Parts = Field("all", description="what trains: all, embedding, output, norms, layers[a:b], regex:...")
    data: dict[Text, Positive] = Field(min_length=1, description="corpus name: weight in the mix")
    tokens: Count | None = Field(None, description="length in tokens")
    steps: Count | None = Field(None, description="length in optimizer steps")
    epochs: Positive | None = Field(None, description="length in passes over the phase's corpora taken together")
    share: Annotated[Number, Field(gt=0, lt=1)] | None = Field(None, description="length as a share of all phases' tokens")
    sequence_length: Count = Field(description="tokens per sequence")
    batch_size: Count = Field(description="sequences per optimizer step, over all ranks")
    ramp_up: RampUp | None = Field(None, description="smaller batches at first")
    micro_batch_size: Count = Field(1, description="sequences per forward pass of one rank")
    packing: Literal["chunks", "documents"] = Field(
        "chunks", description="whether the documents in a sequence see one another, or each itself alone"
    )
    restart_positions: Switch = Field(True, description="learned positions begin at 0 in each of the documents, not once")
    loss_per: Literal["token", "sequence", "document"] = Field(
        "token", description="of what the loss of a step is the mean: tokens, or means of sequences' or documents' tokens"
    )
    recompute: Recompute = Field(
        "none", description="activations computed again in the backward pass instead of kept: none, those inside MLPs (selective), "
        "those of so many layers of each rank, all (full); auto: of as few layers as the GPU's memory allows"
    )  # fmt: skip
    logits: Literal["auto", "whole", "sliced"] = Field(
        "auto", description="logits of a micro-batch held whole, or in slices of the vocabulary, which are computed again in the "
        "backward pass; auto: slices where a rank had more than 2^28 of them"
    )  # fmt: skip
    dropout: Dropout = Field(default_factory=Dropout, description="activations zeroed at random in training")
    neftune_alpha: NotNegative = Field(
        0.0, description="noise on the embedding in training, uniform up to neftune_alpha / sqrt(length x hidden size); 0: none"
    )
    neftune_per: Literal["document", "sequence"] = Field("document", description="whose length that is")
    denoising: Denoising | None = Field(None, description="learn what is hidden of a text (UL2) instead of every next token; null: not")
    optimizer: Optimizer = Field(description="how the weights are updated")
    init_state: Literal["keep", "reset"] = Field(
        "reset", description="optimizer state of what the phase before trained: goes on, or starts anew like the rest"
    )
    schedule: Schedule = Field(default_factory=Schedule, description="learning rate over the steps")
    on_spike: Spikes = Field(default_factory=Spikes, description="what happens when the loss jumps")
    precision: Precision | None = Field(None, description="arithmetic of this phase; null: the recipe's")
    amax_history: Count = Field(1024, description="fp8-delayed: so many micro-batches' largest numbers of a tensor are remembered")
    amax_choice: Literal["max", "most-recent"] = Field("max", description="fp8-delayed: which of them scales the tensor")
    evaluate_every: Count | None = Field(None, description="steps between evaluations while training; null: none")
    save_every: Count | None = Field(None, description="steps between checkpoints; null: only at the end")
    keep_last: Count = Field(1, description="checkpoints of this phase to keep")
    keep_every: Count | None = Field(None, description="those of multiples of so many steps are kept as well; null: none")
    async_save: Switch = Field(False, description="go on training while checkpoints are written, from a copy in main memory")
    log_every: Count = Field(10, description="steps between log lines")

    def denoises(self, corpus: str) -> bool:
        """Whether a corpus of the phase is denoised if it is text."""
        return self.denoising is not None and self.denoising.applies(corpus)

    @property
    def known_steps(self) -> int | None:
        """Optimizer steps, the last one possibly beyond ``tokens`` (rounded up); None for a length in epochs."""
        return self.steps if self.steps is not None or self.tokens is None else self.steps_for(self.tokens)

    def batch_at(self, step: int) -> int:
        """Sequences of the 0-based ``step``."""
        return next((size for size, end in self._ramp() if step < end), self.batch_size)

    def samples(self, steps: int) -> int:
        """Sequences of the first ``steps`` steps together."""
        total = begin = 0
        for size, end in self._ramp():
            total += size * (min(end, steps) - min(begin, steps))
            begin = end
        return total + self.batch_size * max(steps - begin, 0)

    def saves_at(self, step: int) -> bool:
        """Whether a checkpoint is due after so many steps, wherever the phase ends and whoever stops it."""
        return self.save_every is not None and step % self.save_every == 0

    def steps_for(self, tokens: int) -> int:
        """The fewest steps that train on so many tokens."""
        missing, begin = -(-tokens // self.sequence_length), 0
        for size, end in self._ramp():
            if missing <= size * (end - begin):
                return begin - (-missing // size)
            missing, begin = missing - size * (end - begin), end
        return begin - (-missing // self.batch_size)

    def checkpoints(self, steps: int, done: int = 0, there: int = 0) -> int:
        """The most checkpoints that lie on the disk at one time, the one being written included.

        ``done``: steps that are behind, with ``there`` checkpoints of them.
        """
        every = self.save_every or steps
        count = min(there - done // every + -(-steps // every), self.keep_last + 1)
        return count + (steps // self.keep_every - done // self.keep_every if self.keep_every else 0)

    def _ramp(self) -> list[tuple[int, int]]:
        """(sequences of a step, the step before which that ends) of each interval below `batch_size`."""
        if self.ramp_up is None:
            return []
        start, by, over = self.ramp_up.start, self.ramp_up.by, self.ramp_up.over
        sizes = range(start, self.batch_size, by)
        return [(size, -(-(number + 1) * over // len(sizes))) for number, size in enumerate(sizes)]


# Keys of a phase that may change for what is left of it once it has begun.
ADJUSTABLE = {"data", "tokens", "steps", "epochs", "batch_size", "ramp_up", "schedule"}
