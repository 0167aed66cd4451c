"""Train a tokenizer on a corpus and write it as a Hugging Face directory.

Three kinds, after the two conventions of the field:

* ``bpe``: byte-level BPE as in GPT-2 and Llama 3. All 256 bytes are in the vocabulary and every text round-trips.
* ``sentencepiece-bpe`` and ``unigram``: sentencepiece as Llama 1/2 and Mistral set it up: byte fallback, no
  normalisation, white space kept, no line dropped for its length. Trained on lines, so a line break is always the byte
  piece ``<0x0A>``.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator

from megatron_adapt.errors import ConfigError, DataError
from megatron_adapt.hf.tokenizer import Tokenizer
from megatron_adapt.vocab.derived import round_trip
from megatron_adapt.vocab.specials import Specials

SAMPLE_BYTES = 1_000_000  # of the training text, kept to measure bytes per token
TRAINING_THREADS = 4  # fixed: the number of threads enters the order of sums, and so the result

# How byte-level BPE cuts words where a token is not to hold any number of digits: as Llama 3 and Qwen 2 do.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|SPACES"
)
GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|SPACES"
DIGITS = {"three": r"\p{N}{1,3}", "single": r"\p{N}"}
SPACES = {"runs": r"\s+(?!\S)|\s+", "single": r"\s"}


@dataclass(frozen=True)
class Scheme:
    """What a vocabulary may hold.

    Attributes:
        digits: a token holds any number of digits ("runs"), at most "three" (bpe), or a "single" one.
        whitespace: several spaces may be one token ("runs"), or each is one ("single").
        multiple: reserved tokens ``<|reserved_N|>`` fill the vocabulary up to a multiple of this.
        like: a tokenizer whose special tokens, their roles and chat template are taken over, instead of ``<s>``, ``</s>``.
        sentinels: special tokens ``<extra_id_N>`` for denoising, and ``[R]``, ``[S]``, ``[X]`` with them.
    """

    digits: str = "runs"
    whitespace: str = "runs"
    multiple: int = 1
    like: Path | None = None
    sentinels: int = 0


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, output: str | Path, kind: str = "bpe", scheme: Scheme = Scheme()
) -> dict[str, Any]:
    """Train on ``texts`` and write ``output``: tokenizer.json, tokenizer_config.json and, for the sentencepiece kinds,
    tokenizer.model. ``AutoTokenizer.from_pretrained(output)`` loads it and, like ``Tokenizer.encode``, adds no BOS.

    Args:
        texts: documents; read once.
        vocab_size: the exact number of ids, special tokens ``<s>`` and ``</s>`` (and ``<unk>``) and those for denoising included;
            reserved tokens come on top.
        output: a directory that does not exist yet or is empty; it appears complete or not at all.
        kind: ``bpe``, ``sentencepiece-bpe`` or ``unigram``.

    Returns:
        kind, vocab_size, reserved, documents, bytes (UTF-8), seconds, bytes_per_token and round_trip (on the first
        megabyte: documents, and how many come back changed from decoding), digest.

    Raises:
        ConfigError: unknown kind, a vocabulary below the minimum, a scheme that the kind cannot have, or an output that
            exists.
        DataError: the corpus is empty, or too small for that many pieces (the message gives the possible number).
    """
    start = time.perf_counter()
    output = Path(output)
    if kind not in KINDS:
        raise ConfigError(f"unknown kind of tokenizer {kind!r}; one of {', '.join(KINDS)}.")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"{output} already exists; remove it or name another directory.")
    if scheme.digits == "three" and kind != "bpe":
        raise ConfigError(f"sentencepiece cannot count digits: digits 'three' belongs to bpe, not to {kind}.")
    specials = Specials.of(scheme.like, kind).with_denoising(scheme.sentinels)
    size = -(-vocab_size // scheme.multiple) * scheme.multiple
    specials = specials.with_reserved(size - vocab_size)
    corpus = _Corpus(texts)
    files = KINDS[kind](corpus, size, specials, scheme)
    if not corpus.bytes:  # only now known: the corpus is read once
        raise DataError("the corpus for the tokenizer holds no text.")
    _write_directory(output, files | {"tokenizer_config.json": specials.config()} | specials.template)
    tokenizer = Tokenizer.load(output)
    if tokenizer.vocab_size != size:
        raise AssertionError(f"{tokenizer.vocab_size} ids in {output} where {size} were trained")
    tokens = sum(len(ids) for ids in tokenizer.encode(corpus.sample))
    sample_bytes = sum(len(text.encode()) for text in corpus.sample)
    return {
        "kind": kind,
        "vocab_size": size,
        "reserved": size - vocab_size,
        "documents": corpus.documents,
        "bytes": corpus.bytes,
        "seconds": time.perf_counter() - start,
        "bytes_per_token": sample_bytes / tokens,
        "round_trip": round_trip(tokenizer, corpus.sample),
        "digest": tokenizer.digest,
    }


class _Corpus:
    """Counts what passes, keeps the first megabyte, and remembers an error of the reader, which sentencepiece would
    otherwise turn into one of its own."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = texts
        self.documents = self.bytes = 0
        self.sample: list[str] = []
        self.error: BaseException | None = None

    def __iter__(self) -> Iterator[str]:
        try:
            for text in self._texts:
                try:
                    size = len(text.encode())
                except UnicodeEncodeError as error:
                    raise DataError(
                        f"document {self.documents + 1} of the corpus contains the lone surrogate "
                        f"U+{ord(text[error.start]):04X}, which is not Unicode text; repair or drop it."
                    ) from None
                if self.bytes < SAMPLE_BYTES and size:
                    self.sample.append(text[:SAMPLE_BYTES])
                self.documents += 1
                self.bytes += size
                yield text
        except BaseException as error:
            self.error = error
            raise

    def lines(self) -> Iterator[str]:
        for text in self:
            yield from (line for line in text.split("\n") if line)


def _train_byte_level(corpus: _Corpus, vocab_size: int, specials: Specials, scheme: Scheme) -> dict[str, bytes]:
    from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as RustTokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    minimum = len(alphabet) + len(specials.tokens)
    if vocab_size < minimum:
        raise ConfigError(f"vocab_size {vocab_size} is too small: 256 bytes, {_listed(specials)} need {minimum}.")
    tokenizer = RustTokenizer(models.BPE())
    plain = (scheme.digits, scheme.whitespace) == ("runs", "runs")  # GPT-2's words, which the library has built in
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=plain)
    pattern = (WORDS if scheme.digits in DIGITS else GPT2_WORDS).replace("SPACES", SPACES[scheme.whitespace])
    cut = pre_tokenizers.Split(Regex(pattern.replace("DIGITS", DIGITS.get(scheme.digits, ""))), "isolated")
    tokenizer.pre_tokenizer = byte_level if plain else pre_tokenizers.Sequence([cut, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=specials.tokens,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    try:
        tokenizer.train_from_iterator(corpus, trainer)
    except BaseException:
        if corpus.error is not None:
            raise corpus.error from None
        raise
    size = tokenizer.get_vocab_size()
    if corpus.bytes and size < vocab_size:
        raise _too_small(vocab_size, size)
    return {"tokenizer.json": tokenizer.to_str(pretty=True).encode()}


def _train_sentencepiece(
    corpus: _Corpus, vocab_size: int, specials: Specials, scheme: Scheme, model_type: str
) -> dict[str, bytes]:
    import sentencepiece

    if vocab_size <= 256 + len(specials.tokens):
        raise ConfigError(f"vocab_size {vocab_size} is too small: 256 bytes, {_listed(specials)} leave no piece.")
    model = io.BytesIO()
    roles = [specials.roles.get(role) for role in ("unk", "bos", "eos", "pad")]
    ids = dict(zip(("unk_id", "bos_id", "eos_id", "pad_id"), (-1 if token is None else specials.tokens.index(token) for token in roles)))
    pieces = {f"{role}_piece": token for role, token in specials.roles.items()}
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=corpus.lines(), model_writer=model, model_type=model_type, vocab_size=vocab_size,
            byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
            add_dummy_prefix=True, allow_whitespace_only_pieces=scheme.whitespace == "runs", split_digits=scheme.digits == "single",
            **ids, **pieces, control_symbols=[token for token in specials.tokens if token not in roles],
            character_coverage=0.9995, max_sentence_length=1 << 30,
            num_threads=TRAINING_THREADS, minloglevel=3,
        )  # fmt: skip
    except Exception as error:
        if corpus.error is not None:
            raise corpus.error from None
        raise _explained(error, corpus, vocab_size) from None
    proto = model.getvalue()
    return {
        "tokenizer.model": proto,
        "tokenizer.json": _converted(proto, specials).encode(),
    }


def _listed(specials: Specials) -> str:
    names = specials.tokens
    return " and ".join(names) if len(names) < 9 else f"{len(names)} special tokens ({names[0]} ... {names[-1]})"


def _explained(error: Exception, corpus: _Corpus, vocab_size: int) -> Exception:
    """sentencepiece's failed checks in our words."""
    message = str(error)
    if not corpus.bytes:
        return DataError("the corpus for the tokenizer holds no text.")
    if too_high := re.search(r"set it to a value <= (\d+)", message):
        return _too_small(vocab_size, int(too_high.group(1)))
    if too_low := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return DataError(
            f"vocab_size {vocab_size} is too small: this corpus needs {too_low.group(1)} ids for its characters, "
            f"256 bytes and special tokens alone."
        )
    return DataError(f"sentencepiece could not train on this corpus: {' '.join(message.split())}")


def _too_small(vocab_size: int, possible: int) -> DataError:
    return DataError(
        f"corpus too small: it yields {possible} pieces where vocab_size asks for {vocab_size}; "
        f"ask for at most {possible} or give more text."
    )


def _converted(proto: bytes, specials: Specials) -> str:
    """The tokenizer.json that cuts text like a sentencepiece model."""
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as RustTokenizer

    parsed = sentencepiece_model_pb2.ModelProto()
    parsed.ParseFromString(proto)
    pieces = [(piece.piece, piece.score) for piece in parsed.pieces]
    if parsed.trainer_spec.model_type == parsed.trainer_spec.BPE:
        ids = {piece: index for index, (piece, _) in enumerate(pieces)}
        model: Any = models.BPE(ids, _merges(ids), unk_token=specials.roles["unk"], fuse_unk=True, byte_fallback=True)
    else:
        model = models.Unigram(pieces, unk_id=specials.tokens.index(specials.roles["unk"]), byte_fallback=True)
    tokenizer = RustTokenizer(model)
    # Not the Metaspace pre-tokenizer: it adds no prefix to a text that begins with a space, sentencepiece does.
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    if isinstance(model, models.Unigram):
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(specials.literal_pieces()), "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0),
    ])  # fmt: skip
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in specials.tokens])
    return tokenizer.to_str(pretty=True)


def _merges(ids: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to join two pieces into a third, in the order of the joined piece: sentencepiece has no merge list,
    it always joins the pair whose result is the earliest piece."""
    merges = []
    for piece in ids:  # in order of id, so of score
        splits = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        known = [(left, right) for left, right in splits if left in ids and right in ids]
        merges += sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    return merges


def _write_directory(output: Path, files: dict[str, bytes]) -> None:
    """All files or none: a temporary directory beside ``output``, then one rename."""
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        for name, content in files.items():
            with open(temporary / name, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        temporary.chmod(0o777 & ~_umask())
        os.replace(temporary, output)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


KINDS: dict[str, Callable[[_Corpus, int, Specials, Scheme], dict[str, bytes]]] = {
    "bpe": _train_byte_level,
    "sentencepiece-bpe": partial(_train_sentencepiece, model_type="bpe"),
    "unigram": partial(_train_sentencepiece, model_type="unigram"),
}
