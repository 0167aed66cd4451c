"""The schema of a recipe: one frozen model per mapping, unknown keys refused.

Each model checks its own keys and values. A phase's are in `config_phases`. What concerns several keys at once is in `config_checks`; files, overrides
and the wording of errors are in `recipe`, whose `load` is the way to get a `Recipe`.
"""

from __future__ import annotations

from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, model_validator

from megatron_adapt.config_denoising import Denoising  # noqa: F401
from megatron_adapt.config_phases import (  # noqa: F401 (a part of the schema like any other, to all who read it)
    ADJUSTABLE, BF16_ALONE, FP8, Dropout, Optimizer, Phase, Precision, RampUp, Schedule, Spikes,
)
from megatron_adapt.config_strict import Strict
from megatron_adapt.config_types import DTYPES, TIES, VERIFY, Bytes, Count, Integer, Name, Number, Switch, Text, Texts, got


class TokenizerTraining(Strict):
    """A tokenizer trained on corpora of the recipe."""

    corpora: list[Text] = Field(min_length=1, description="names of the corpora (under data) to train on")
    vocab_size: Annotated[Integer, Field(ge=300)] = Field(description="number of ids, special tokens included")
    type: Literal["bpe", "sentencepiece-bpe", "unigram"] = Field("bpe", description="kind of tokenizer")
    digits: Literal["runs", "three", "single"] = Field("runs", description="how many digits a token may hold")
    whitespace: Literal["runs", "single"] = Field("runs", description="whether several spaces may be one token")
    multiple: Count = Field(1, description="reserved tokens are added up to a multiple of this")
    sentinels: Count | None = Field(None, description="special tokens for denoising: so many <extra_id_N>, and [R], [S], [X]; null: none")
    like: Text | None = Field(None, description="tokenizer whose special tokens and chat template are taken over")
    max_bytes: Bytes | None = Field(None, description="read at most this much text; null reads all")


class TokenizerExtension(Strict):
    """The model's own tokenizer with further tokens; old ids stay."""

    corpora: list[Text] = Field(min_length=1, description="names of the corpora (under data) to learn from")
    tokens: Count = Field(description="number of new tokens")
    min_count: Count = Field(2, description="how often a pair has to come to become a token")
    reuse: Switch = Field(False, description="take ids first that have no token, are reserved, or that no text can make")
    sentinels: Count | None = Field(None, description="special tokens for denoising on top: so many <extra_id_N>, and [R], [S], [X]; null: none")
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


class FromScratch(Strict):
    """A new model instead of a pretrained one."""

    config: dict[str, Any] = Field(description="Hugging Face config of the model, without vocab_size")
    tokenizer: TokenizerChoice = Field(description="its tokenizer, which also sets the size of its vocabulary")
    phases: list[Phase] = Field(default_factory=list, description="pretraining before the vocabulary is swapped")


class MaximalUpdate(Strict):
    """Maximal update parametrisation: initial values and learning rates follow from a narrow model's."""

    base: dict[str, Any] = Field(description="keys of the narrow model's config.json where it differs: its widths")


class Model(Strict):
    """Where the weights come from."""

    alternatives: ClassVar[tuple[str, ...]] = ("source", "from_scratch")
    source: Text | None = Field(None, description="Hugging Face directory of a pretrained model")
    from_scratch: FromScratch | None = Field(None, description="a new model instead")
    mup: MaximalUpdate | None = Field(
        None, description="muP: learning rates and initial values are given for a narrow model; null: for this one"
    )


DEFAULT = "default"  # in place of a vocabulary method: what measures best in most cases
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
    method: Text = Field(
        DEFAULT, description="how new embedding rows start; default: focus, calibrated, where there is text, else subwords; auto: as measures best"
    )
    compare: list[Text] = Field(default_factory=list, description="methods trained beside it for comparison")
    options: dict[Name, dict[Name, Any]] = Field(default_factory=dict, description="method name: its options")
    corpora: list[Text] = Field(
        default_factory=list, description="corpora (under data) whose text methods may read; empty: the tokenizer's"
    )
    calibrate: Switch | None = Field(
        None, description="fit the output matrix to when and how often tokens come in that text; null: default (up to 4 GB of weights) and auto do where it can be"
    )
    probe: Probe = Field(default_factory=Probe, description="of method auto")
    pad_to_multiple: Count = Field(1, description="rows are added up to a multiple of this")


class Filter(Strict):
    """A filter of a corpus and its options, which are the keys beside its name; plain text in the YAML is short for `name`."""

    model_config = ConfigDict(extra="allow")
    name: Text = Field(description="name of the filter")

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if not isinstance(value, (dict, cls)):
            raise ValueError(f"expected the name of a filter or a mapping with 'name' and options, got {got(value)}")
        return value


class Corpus(Strict):
    """Text or chats to train or evaluate on."""

    alternatives: ClassVar[tuple[str, ...]] = ("held_out", "held_out_path")
    path: Texts = Field(description="file, directory, glob or hf:NAME[@CONFIG][:SPLIT], or a list of them")
    text_key: Text = Field("text", description="key of the text in a line of JSON")
    text_documents: Literal["blocks", "lines", "files"] = Field(
        "blocks", description="documents of .txt: what stands between blank lines, each line, or each file"
    )
    messages: Text | None = Field(
        None, description="key of a chat's messages instead, a list of {role, content} or {from, value}; null: it is text"
    )
    chat_template: Text | None = Field(None, description="chats: file with their template (Jinja); null: the tokenizer's")
    chat_template_kwargs: dict[Name, Any] = Field(default_factory=dict, description="chats: what else their template is given, by name")
    tools: Text | None = Field("tools", description="chats: key of the assistant's tools, where a line has it; null: none are read")
    system: Text | None = Field("system", description="chats: key of a system message beside the others, where a line has it; null: none is read")
    loss_on: Literal["answers", "last", "all"] = Field("answers", description="chats: what is learnt")
    held_out: Annotated[Number, Field(ge=0, le=0.5)] = Field(0.0, description="share of documents kept for evaluation")
    held_out_path: Text | None = Field(None, description="text for evaluation in a file of its own instead")
    bos: Switch | None = Field(None, description="documents begin with BOS; null: where the tokenizer has one besides its EOS")
    eos: Switch = Field(True, description="documents end with EOS")
    on_error: Literal["stop", "skip"] = Field("stop", description="what to do with a bad line")
    max_documents: Count | None = Field(None, description="use only the first so many documents")
    filters: list[Filter] = Field(default_factory=list, description="what cleans it before anything else reads it, one behind another")
    against: list[Text] = Field(
        default_factory=list, description="corpora (under data) whose text it is cleaned of as well, by filters that compare documents"
    )
    unique_tokens: Count | None = Field(None, description="train on exactly so many tokens of it, again and again; null: all")
    shuffled_epochs: Count = Field(1, description="passes shuffled into one another; 1: all once before anything twice")


def parts_of_sequences(tensor: int, context: int, sequence: bool) -> int:
    """Equal parts that a sequence is cut into: two for each context rank (``engine.context``), and those of sequence parallelism."""
    return (2 * context if context > 1 else 1) * (tensor if sequence else 1)


class Parallel(Strict):
    """How many ranks share the work, in each direction."""

    tensor: Count = Field(1, description="ranks that share each layer")
    context: Count = Field(1, description="ranks that share each sequence")
    pipeline: Count = Field(1, description="stages the layers are split into")
    virtual_pipeline: Count = Field(1, description="stages of each pipeline rank, interleaved with the others'")
    data: Count = Field(1, description="copies of the model, each with its share of the batch")
    sequence: Switch = Field(False, description="split activations along the sequence too (needs tensor > 1)")
    distributed_optimizer: Switch = Field(
        False, description="data and context ranks share the optimizer's state, and float32 weights if there are any, instead of holding copies"
    )

    @property
    def model_ranks(self) -> int:
        """Ranks that one copy of the model needs: tensor x context x pipeline."""
        return self.tensor * self.context * self.pipeline

    @property
    def world_size(self) -> int:
        """Number of ranks: tensor x context x pipeline x data."""
        return self.model_ranks * self.data


class Harness(Strict):
    """Tasks of EleutherAI's lm-evaluation-harness, on the model before and after."""

    tasks: list[Text] = Field(min_length=1, description="names of tasks or groups, as the harness has them")
    folder: Text | None = Field(None, description="folder with tasks of one's own (.yaml)")
    num_fewshot: Annotated[Integer, Field(ge=0)] | None = Field(None, description="examples in front of a question; null: the task's")
    limit: Count | None = Field(None, description="only so many questions of a task, to try things out; null: all")
    batch_size: Count = Field(8, description="questions at a time")
    apply_chat_template: Switch = Field(False, description="put questions as chats, by the tokenizer's template")


class Evaluation(Strict):
    """Bits per byte on held-out text, and tasks."""

    corpora: list[Text] | None = Field(None, description="corpora to evaluate on; null: all with held-out text")
    max_bytes: Bytes | None = Field(200_000, description="text used per corpus; null uses all")
    sequence_length: Count | None = Field(None, description="tokens per window; null: as in training")
    harness: Harness | None = Field(None, description="tasks on which the models before and after are compared")


class Export(Strict):
    """The Hugging Face directory at the end."""

    dtype: Literal[DTYPES] = Field("bfloat16", description="type of the exported weights")
    tie: Literal[TIES] = Field("keep", description="whether the head shares the embedding's matrix")
    max_shard_size: Bytes = Field(5_000_000_000, description="largest size of a weight file in bytes")
    verify: Literal[VERIFY] | None = Field(
        None, description="what exports, and imports, compare: nothing (off), weights, or logits too; null: logits if the model fits into memory"
    )


class Wandb(Strict):
    """Weights & Biases; plain text in the YAML is short for `project`."""

    project: Text = Field(description="project that a run for each phase goes to")
    entity: Text | None = Field(None, description="user or team that owns it; null: the user's default")
    group: Text | None = Field(None, description="what the phases' runs are grouped under; null: the recipe's name")

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        return {"project": value} if isinstance(value, str) else value


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
    backend: Literal["auto", "te", "torch"] = Field("auto", description="whose layers, and AdamW, a GPU computes with")
    phases: list[Phase] = Field(min_length=1, description="the phases of training, in order")
    evaluation: Evaluation = Field(default_factory=Evaluation, description="what is measured")
    export: Export = Field(default_factory=Export, description="the exported model")
    wandb: Wandb | None = Field(None, description="Weights & Biases project for the curves, beside TensorBoard")


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
