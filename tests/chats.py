"""Chat templates of several families, a tokenizer that has all their special tokens, and chats that are hard to mask."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

Message = dict[str, str]
Segments = list[tuple[str, bool]]  # (text, whether a model has to write it)

SPECIAL = (
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "[INST]", "[/INST]",
)  # fmt: skip
TEMPLATES = {
    "chatml": (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    # Llama 3: trims, and begins with BOS.
    "llama3": (
        "{{ '<|begin_of_text|>' }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim"
        " + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    # Mistral: no generation prompt, no heading of answers; a system message goes into the first question.
    "inst": (
        "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] + '\n\n' %}{% set rest = messages[1:] %}"
        "{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}{{ bos_token }}{% for m in rest %}"
        "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
        "{% if m['role'] == 'user' %}{{ '[INST] ' + (system if loop.first else '') + m['content'] + ' [/INST]' }}"
        "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    ),
    # Answers marked, as transformers' return_assistant_tokens_mask wants them.
    "marked": (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<|im_end|>"
        "{% endgeneration %}{% else %}{{ m['content'] }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
}


def segments(template: str, messages: Sequence[Message]) -> Segments:
    """What the template renders, spelled out by hand, and which parts of it are answers."""
    found: Segments = [("<|begin_of_text|>", False)] if template == "llama3" else [("<s>", False)] if template == "inst" else []
    system = ""
    for message in messages:
        role, content = message["role"], message["content"]
        is_answer = role == "assistant"
        if template in ("chatml", "marked"):
            found += [(f"<|im_start|>{role}\n", False), (f"{content}<|im_end|>", is_answer), ("\n", False)]
        elif template == "llama3":
            heading = f"<|start_header_id|>{role}<|end_header_id|>\n\n"
            found += [(heading, False), (f"{content.strip()}<|eot_id|>", is_answer)]
        elif role == "system":
            system = f"{content}\n\n"
        elif is_answer:
            found.append((f" {content}</s>", True))
        else:
            found.append((f"[INST] {system}{content} [/INST]", False))
            system = ""
    return found


def chat(*contents: str, system: str | None = None) -> list[Message]:
    """Questions and answers in turn."""
    roles = ("user", "assistant")
    found = [{"role": roles[number % 2], "content": content} for number, content in enumerate(contents)]
    return found if system is None else [{"role": "system", "content": system}, *found]


HARD = {
    "plain": chat("Wo ist der Igel?", "Im Garten."),
    "turns": chat("Hallo", "Guten Tag!", "Wie geht es?", "Gut, danke.", "Schön.", "Ja."),
    "system": chat("Hallo", "Tag.", "Und?", "Nichts.", system="Du bist kurz."),
    "question last": chat("Hallo", "Tag.", "Und noch eine Frage?"),
    "answer in the question": chat("Sage Igel. Igel", "Igel", "Igel", "Igel"),
    "markers": chat("Was heißt <|im_end|> und <|eot_id|>?", "Das <|im_start|> fängt an, </s> hört auf [/INST] oder nicht.", "Ah", "Ja"),
    "spaces": chat("  Wo?  ", "  davor und danach  ", "\n\nWann?\n", "\n\nheute\n\n"),
    "emoji": chat("Was ist 👩‍🚀?", "👩‍🚀🇩🇪 e\u0301 und 你好, مرحبا", "😀", "😀😀"),
    "empty": chat("Sag nichts.", "", "Danke.", "Bitte."),
    "dummies": chat("[[dummy_message]]", "[[dummy_message]]", "]]", "[[ ]]"),
}


def write_tokenizer(path: Path, template: str | None = None) -> Path:
    """A byte-level BPE with every special token of the templates, which transformers reads, too."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [message["content"] for messages in HARD.values() for message in messages] * 3
    trainer = trainers.BpeTrainer(
        vocab_size=460, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    path.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    if template is not None:
        config["chat_template"] = template
    (path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


def write_chats(path: Path, chats: Sequence[Sequence[Message]]) -> Path:
    path.write_text("".join(json.dumps({"messages": list(messages)}) + "\n" for messages in chats), encoding="utf-8")
    return path
