"""The special tokens of a tokenizer to be trained: its own few, or those of another tokenizer with its chat template."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from megatron_adapt.errors import ConfigError
from megatron_adapt.hf.directory import read_json
from megatron_adapt.hf.tokenizer import ROLES, Tokenizer

BOS, EOS, UNK = "<s>", "</s>", "<unk>"


def denoising_tokens(sentinels: int) -> list[str]:
    """What denoising needs besides BOS and EOS, as a recipe names it by default: three modes and so many sentinels; none for 0."""
    return [*(f"[{kind}]" for kind in "RSX"), *(f"<extra_id_{number}>" for number in range(sentinels))] if sentinels else []


@dataclass(frozen=True)
class Specials:
    """Special tokens, which get the first ids.

    Attributes:
        tokens: in the order of their ids. roles: "bos", "eos", "unk", "pad" -> token.
        settings: further entries of tokenizer_config.json. template: files with a chat template, by name.
    """

    tokens: list[str]
    roles: dict[str, str]
    settings: dict[str, str] = field(default_factory=dict)
    template: dict[str, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, like: Path | None, kind: str) -> Specials:
        """``<s>``, ``</s>`` and, for sentencepiece, ``<unk>``; or those of the tokenizer ``like``.

        Raises:
            ConfigError: ``like`` has no tokenizer, or no special token at all.
        """
        if like is None:
            roles = {"bos": BOS, "eos": EOS} if kind == "bpe" else {"unk": UNK, "bos": BOS, "eos": EOS}
            return cls([*roles.values()], roles)
        source = Tokenizer.load(like)
        tokens = source.tokens()
        ids = {role: index for role in ROLES if (index := getattr(source, f"{role}_id")) is not None}
        added = (source.backend_json or {}).get("added_tokens") or []
        special = {*(entry["id"] for entry in added if entry.get("special")), *ids.values()}
        if not special:
            raise ConfigError(f"{like} has no special tokens that could be taken over.")
        names = [str(tokens[index]) for index in sorted(special)]
        roles = {role: str(tokens[index]) for role, index in ids.items()}
        if kind != "bpe":  # sentencepiece needs one, and gives no two roles to a token
            taken = [token for role, token in roles.items() if role != "unk"]
            if roles.get("unk") in (None, *taken):
                roles["unk"] = UNK
                names = [UNK, *(name for name in names if name != UNK)]
            if len(set(taken)) < len(taken):
                raise ConfigError(f"{like} has one token for several of BOS, EOS and PAD, which sentencepiece cannot have; train bpe.")
        template = {file.name: file.read_bytes() for file in source.files if file.name.startswith("chat_template")}
        config = next((read_json(file) or {} for file in source.files if file.name == "tokenizer_config.json"), {})
        settings = {"chat_template": config["chat_template"]} if config.get("chat_template") else {}
        return cls(names, roles, settings, template)

    def with_denoising(self, sentinels: int) -> Specials:
        """Those of :func:`denoising_tokens` more that are not there."""
        return replace(self, tokens=list(dict.fromkeys([*self.tokens, *denoising_tokens(sentinels)])))

    def with_reserved(self, count: int) -> Specials:
        """``count`` more tokens ``<|reserved_N|>``, which mean nothing yet."""
        free = (name for number in range(count + len(self.tokens)) if (name := f"<|reserved_{number}|>") not in self.tokens)
        return replace(self, tokens=[*self.tokens, *(name for name, _ in zip(free, range(count)))])

    def config(self) -> bytes:
        """The content of tokenizer_config.json."""
        config = {
            # The generic class: named ones (LlamaTokenizer) are rebuilt by transformers 5 without the file's normalizer.
            "tokenizer_class": "PreTrainedTokenizerFast",
            **{f"{role}_token": self.roles[role] for role in ("bos", "eos", "unk", "pad") if role in self.roles},
            "clean_up_tokenization_spaces": False,
            "model_max_length": 10**30,  # transformers' spelling of "no limit"
            **self.settings,
        }
        return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()

    def literal_pieces(self) -> str:
        """A pattern that matches the first character of every special token, and of ``<0x0A>``, written out in a text.

        A Unigram model of the tokenizers library would find it there as that very piece; sentencepiece never does.
        Cutting behind this character keeps it text.
        """
        texts = [f"{re.escape(token[0])}(?={re.escape(token[1:])})" for token in self.tokens if len(token) > 1]
        return "|".join([r"<(?=0x[0-9A-F]{2}>)", *texts])
