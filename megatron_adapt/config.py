"""The schema of a recipe: one frozen model per mapping, unknown keys refused.

Each model checks its own keys and values. What concerns several keys at once is in `config_checks`; files, overrides
and the wording of errors are in `recipe`, whose `load` is the way to get a `Recipe`.
"""

from __future__ import annotations

from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from megatron_adapt.config_types import (
    DTYPES, TIES, Bytes, Count, Integer, Name, NotNegative, Number, Parts, Positive, Share, Switch, Text, Texts, got,
)


# bf16-mixed: float32 main weights and moments; bf16-true: weights, gradients and moments in bf16; fp8-...: bf16-mixed whose
# matrix products are in fp8, scaled by tensor (current), by block, or as MXFP8. Transformer Engine's delayed scaling is left
# out: it depends on steps before, which a checkpoint does not hold.
FP8 = ("fp8-current", "fp8-blockwise", "fp8-mx")
Precision = Annotated[
    Literal["fp32", "bf16-mixed", "bf16-true", "fp8-current", "fp8-blockwise", "fp8-mx"], BeforeValidator(lambda value: "bf16-mixed" if value == "bf16" else value)
]


class Strict(BaseModel):
    """Frozen, without unknown keys. Of `alternatives` one holds: a later file that sets one displaces the others."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    alternatives: ClassVar[tuple[str, ...]] = ()


class TokenizerTraining(Strict):
    """A tokenizer trained on corpora of the recipe."""

    corpora: list[Text] = Field(min_length=1, description="names of the corpora (under data) to train on")
    vocab_size: Annotated[Integer, Field(ge=300)] = Field(description="number of ids, special tokens included")
    type: Literal["bpe", "sentencepiece-bpe", "unigram"] = Field("bpe", description="kind of tokenizer")
    digits: Literal["runs", "three", "single"] = Field("runs", description="how many digits a token may hold")
    whitespace: Literal["runs", "single"] = Field("runs", description="whether several spaces may be one token")
    multiple: Count = Field(1, description="reserved tokens are added up to a multiple of this")
    like: Text | None = Field(None, description="tokenizer whose special tokens and chat template are taken over")
    max_bytes: Bytes | None = Field(None, description="read at most this much text; null reads all")


class TokenizerExtension(Strict):
    """The model's own tokenizer with further tokens; old ids stay."""

    corpora: list[Text] = Field(min_length=1, description="names of the corpora (under data) to learn from")
    tokens: Count = Field(description="number of new tokens")
    min_count: Count = Field(2, description="how often a pair has to come to become a token")
    reuse: Switch = Field(False, description="take ids first that have no token, are reserved, or that no text can make")
    max_bytes: Bytes | None = Field(None, description="read at most this much text; null reads all")


class TokenizerPruning(Strict):
    """The model's own tokenizer with those tokens only that some text needs."""

    corpora: list[Text] = Field(min_length=1, description="names of the corpora (under data) whose tokens stay")
    min_count: Count = Field(1, description="how often a token has to come to stay")
    keep: Count | None = Field(None, description="keep at most so many tokens, the most frequent; null: no limit")
    max_bytes: Bytes | None = Field(None, description="read at most this much text; null reads all")


class TokenizerChoice(Strict):
    """An existing tokenizer or one to make; plain text in the YAML is short for `path`."""

    alternatives: ClassVar[tuple[str, ...]] = ("path", "train", "extend", "prune")
    path: Text | None = Field(None, description="directory or file of a tokenizer")
    train: TokenizerTraining | None = Field(None, description="train a new tokenizer instead")
    extend: TokenizerExtension | None = Field(None, description="add tokens to the model's own instead")
    prune: TokenizerPruning | None = Field(None, description="remove tokens from the model's own instead")

    @property
    def making(self) -> TokenizerTraining | TokenizerExtension | TokenizerPruning | None:
        """How it is made, if it is."""
        return self.train or self.extend or self.prune

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"path": value}
        if not isinstance(value, (dict, cls)):
            raise ValueError(f"expected the path of a tokenizer or a mapping with 'path', 'train', 'extend' or 'prune', got {got(value)}")
        return value


class Optimizer(Strict):
    """AdamW or LionW."""

    type: Literal["adamw", "lionw"] = Field("adamw", description="algorithm")
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
    recompute: Literal["none", "selective", "full"] = Field(
        "none", description="activations computed again in the backward pass instead of kept: none, those inside MLPs, all"
    )
    optimizer: Optimizer = Field(description="how the weights are updated")
    init_state: Literal["keep", "reset"] = Field(
        "reset", description="optimizer state of what the phase before trained: goes on, or starts anew like the rest"
    )
    schedule: Schedule = Field(default_factory=Schedule, description="learning rate over the steps")
    on_spike: Spikes = Field(default_factory=Spikes, description="what happens when the loss jumps")
    precision: Precision | None = Field(None, description="arithmetic of this phase; null: the recipe's")
    evaluate_every: Count | None = Field(None, description="steps between evaluations while training; null: none")
    save_every: Count | None = Field(None, description="steps between checkpoints; null: only at the end")
    keep_last: Count = Field(1, description="checkpoints of this phase to keep")
    keep_every: Count | None = Field(None, description="those of multiples of so many steps are kept as well; null: none")
    async_save: Switch = Field(False, description="go on training while checkpoints are written, from a copy in main memory")
    log_every: Count = Field(10, description="steps between log lines")

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

    def steps_for(self, tokens: int) -> int:
        """The fewest steps that train on so many tokens."""
        missing, begin = -(-tokens // self.sequence_length), 0
        for size, end in self._ramp():
            if missing <= size * (end - begin):
                return begin - (-missing // size)
            missing, begin = missing - size * (end - begin), end
        return begin - (-missing // self.batch_size)

    def _ramp(self) -> list[tuple[int, int]]:
        """(sequences of a step, the step before which that ends) of each interval below `batch_size`."""
        if self.ramp_up is None:
            return []
        start, by, over = self.ramp_up.start, self.ramp_up.by, self.ramp_up.over
        sizes = range(start, self.batch_size, by)
        return [(size, -(-(number + 1) * over // len(sizes))) for number, size in enumerate(sizes)]


# Keys of a phase that may change for what is left of it once it has begun.
ADJUSTABLE = {"data", "tokens", "steps", "epochs", "batch_size", "ramp_up", "schedule"}


class FromScratch(Strict):
    """A new model instead of a pretrained one."""

    config: dict[str, Any] = Field(description="Hugging Face config of the model, without vocab_size")
    tokenizer: TokenizerChoice = Field(description="its tokenizer, which also sets the size of its vocabulary")
    phases: list[Phase] = Field(default_factory=list, description="pretraining before the vocabulary is swapped")


class Model(Strict):
    """Where the weights come from."""

    alternatives: ClassVar[tuple[str, ...]] = ("source", "from_scratch")
    source: Text | None = Field(None, description="Hugging Face directory of a pretrained model")
    from_scratch: FromScratch | None = Field(None, description="a new model instead")


AUTO = "auto"  # in place of a vocabulary method: try all, keep the best
CALIBRATED = "+calibrate"  # behind a method's name among those to try


class Probe(Strict):
    """How `method: auto` finds the best method. Documents measured on are hidden from all methods."""

    methods: list[Text] = Field(
        default_factory=list, description="whom to try, NAME or NAME+calibrate; empty: all that apply"
    )
    steps: Annotated[Integer, Field(ge=0)] = Field(50, description="training steps of the vocabulary's rows alone before the second measurement; 0: none")
    max_bytes: Bytes = Field(200_000, description="text to measure on")


class Vocabulary(Strict):
    """The tokenizer to swap to, and how its embedding rows start."""

    tokenizer: TokenizerChoice = Field(description="the new tokenizer")
    method: Text = Field("subwords", description="how the new embedding rows are initialised; auto: as measures best")
    compare: list[Text] = Field(default_factory=list, description="methods trained beside it for comparison")
    options: dict[Name, dict[Name, Any]] = Field(default_factory=dict, description="method name: its options")
    corpora: list[Text] = Field(
        default_factory=list, description="corpora (under data) whose text methods may read; empty: the tokenizer's"
    )
    calibrate: Switch | None = Field(
        None, description="fit the output matrix to how often tokens come in that text; null: auto does where it can"
    )
    probe: Probe = Field(default_factory=Probe, description="of method auto")
    pad_to_multiple: Count = Field(1, description="rows are added up to a multiple of this")


class Corpus(Strict):
    """Text to train or evaluate on."""

    alternatives: ClassVar[tuple[str, ...]] = ("held_out", "held_out_path")
    path: Texts = Field(description="file, directory, glob or hf:NAME[@CONFIG][:SPLIT], or a list of them")
    text_key: Text = Field("text", description="key of the text in a line of JSON")
    held_out: Annotated[Number, Field(ge=0, le=0.5)] = Field(0.0, description="share of documents kept for evaluation")
    held_out_path: Text | None = Field(None, description="text for evaluation in a file of its own instead")
    bos: Switch | None = Field(None, description="documents begin with BOS; null: where the tokenizer has one besides its EOS")
    eos: Switch = Field(True, description="documents end with EOS")
    on_error: Literal["stop", "skip"] = Field("stop", description="what to do with a bad line")
    max_documents: Count | None = Field(None, description="use only the first so many documents")
    unique_tokens: Count | None = Field(None, description="train on exactly so many tokens of it, again and again; null: all")
    shuffled_epochs: Count = Field(1, description="passes shuffled into one another; 1: all once before anything twice")


class Parallel(Strict):
    """How many ranks share the work, in each direction."""

    tensor: Count = Field(1, description="ranks that share each layer")
    pipeline: Count = Field(1, description="stages the layers are split into")
    data: Count = Field(1, description="copies of the model, each with its share of the batch")
    sequence: Switch = Field(False, description="split activations along the sequence too (needs tensor > 1)")
    distributed_optimizer: Switch = Field(
        False, description="data ranks share the optimizer's state and float32 weights instead of holding copies"
    )

    @property
    def world_size(self) -> int:
        """Number of ranks: tensor x pipeline x data."""
        return self.tensor * self.pipeline * self.data


class Evaluation(Strict):
    """Bits per byte on held-out text."""

    corpora: list[Text] | None = Field(None, description="corpora to evaluate on; null: all with held-out text")
    max_bytes: Bytes | None = Field(200_000, description="text used per corpus; null uses all")
    sequence_length: Count | None = Field(None, description="tokens per window; null: as in training")


class Export(Strict):
    """The Hugging Face directory at the end."""

    dtype: Literal[DTYPES] = Field("bfloat16", description="type of the exported weights")
    tie: Literal[TIES] = Field("keep", description="whether the head shares the embedding's matrix")
    max_shard_size: Bytes = Field(5_000_000_000, description="largest size of a weight file in bytes")


class Recipe(Strict):
    """Everything that a run does."""

    name: Text = Field(description="name of the run")
    output: Text = Field(description="directory for everything the run writes")
    seed: Annotated[Integer, Field(ge=0)] = Field(1234, description="seed of every random choice")
    model: Model = Field(description="where the weights come from")
    vocabulary: Vocabulary | None = Field(None, description="vocabulary to swap to; null keeps the model's own")
    data: dict[Name, Corpus] = Field(description="the corpora by name")
    parallel: Parallel = Field(default_factory=Parallel, description="how the ranks share the work")
    precision: Precision = Field("bf16-mixed", description="arithmetic of training")
    backend: Literal["auto", "te", "torch"] = Field("auto", description="whose layers a GPU computes with")
    phases: list[Phase] = Field(min_length=1, description="the phases of training, in order")
    evaluation: Evaluation = Field(default_factory=Evaluation, description="what is measured on held-out text")
    export: Export = Field(default_factory=Export, description="the exported model")


def step_into(schema: Any, step: str | int) -> Any:
    """The annotation of what is at key or index `step` of a value annotated `schema`; None where the schema ends."""
    for kind in kinds(schema):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            field = kind.model_fields.get(str(step))
            return field.annotation if field is not None else None
        if get_origin(kind) in (dict, list):
            return get_args(kind)[-1]
    return None


def model_of(schema: Any) -> type[Strict] | None:
    """The model that a value annotated `schema` is, if it is one."""
    return next((kind for kind in kinds(schema) if isinstance(kind, type) and issubclass(kind, Strict)), None)


def is_mix(schema: Any) -> bool:
    """Whether values annotated `schema` are a phase's weights by corpus, from which null removes one."""
    values = [get_args(kind)[1] for kind in kinds(schema) if get_origin(kind) is dict]
    return any(value is not Any and model_of(value) is None for value in values)


def kinds(schema: Any) -> list[Any]:
    """The types that an annotation allows, without Annotated and None."""
    if get_origin(schema) is Annotated:
        return kinds(get_args(schema)[0])
    if get_origin(schema) in (Union, UnionType):
        return [kind for part in get_args(schema) for kind in kinds(part)]
    return [] if schema in (None, type(None)) else [schema]
