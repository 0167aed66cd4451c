"""A recipe of chats beside text, from the corpora to the report."""

from __future__ import annotations

import json
import re

import numpy as np
import tiny
from chats import SPECIAL, TEMPLATES, chat, write_chats, write_tokenizer
from commands import Shop


def test_chats_beside_text(shop: Shop) -> None:
    draw = np.random.default_rng(0)
    words = ["Igel", "Garten", "heute", "nicht", "Ja"]
    talks = [chat("Sag etwas", *(" ".join(draw.choice(words, 4)) for _ in range(2 * draw.integers(1, 3) - 1))) for _ in range(60)]
    write_chats(shop / "talk.jsonl", [*talks, [{"role": "user", "content": "Und?"}]])
    write_tokenizer(shop / "talking")
    dated = "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}{{ date_string }}" + TEMPLATES["chatml"]
    (shop / "chatml.jinja").write_text(dated)
    sft = {"data": {"talk": 1, "german": 0.2}, "epochs": 0.1, "packing": "documents", "sequence_length": 64}
    tree = tiny.recipe(
        name="talk", output="talk", vocabulary=None, phases=[tiny.phase("sft", None, **sft)], parallel={"data": 2},
        model={"from_scratch": {"config": tiny.CONFIG, "tokenizer": "talking"}}, evaluation={"corpora": ["talk"]},
        data={
            "talk": {"path": "talk.jsonl", "messages": "messages", "chat_template": "chatml.jinja", "held_out": 0.1, "chat_template_kwargs": {"date_string": "May"}},
            "german": {"path": "de.jsonl"},
        },
    )  # fmt: skip
    tiny.write(shop.folder, tree, "talk.yaml")
    out = shop.run("run", "talk.yaml").succeeded().out
    metrics = json.loads((shop / "talk/data/base/talk/receipt.json").read_text())["metrics"]
    assert f"{metrics['trained_tokens']:,} tokens are learnt, 1 chats with nothing to learn left out" in out
    assert re.search(r"chats have \d+ to \d+ tokens, 99% of them at most \d+\n", out)
    text = json.loads((shop / "talk/data/base/german/receipt.json").read_text())["metrics"]["tokens"]
    lines = [json.loads(line) for line in (shop / "talk/adapted/sft/metrics.jsonl").read_text().splitlines()]
    # Chats fill whole samples: an epoch has a little more positions than tokens.
    assert (metrics["tokens"] + text) / 10 / 256 <= len(lines) <= ((metrics["tokens"] * 1.2 + text) / 10 / 256) + 1
    assert 0.05 < lines[-1]["learnt"] < 0.6 and f" tokens/s ({lines[-1]['learnt']:.0%} learnt) | " in out
    assert lines[-1]["loss/talk"] > 0 and lines[-1]["loss/german"] > 0
    found = {
        stage: json.loads((shop / "talk/evaluation" / stage / "receipt.json").read_text())["metrics"]["talk"]
        for stage in ("base", "adapted-sft")
    }
    held_out = [json.loads(line) for line in (shop / "talk/data/base/talk/held_out.jsonl").read_text().splitlines()]
    assert found["base"]["bytes"] == sum(line["bytes"] for line in held_out) and found["base"]["documents"] == len(held_out) == 6
    assert found["adapted-sft"]["bits_per_byte"] < found["base"]["bits_per_byte"]
    assert (shop / "talk/model/chat_template.jinja").read_text() == dated  # what a user of the model needs
    assert "chats were learnt with chat_template_kwargs: give date_string='May' to apply_chat_template when generating, too" in out
    assert all(line["text"].startswith("May<|im_start|>user") for line in held_out)
    ends = [SPECIAL.index("</s>"), SPECIAL.index("<|im_end|>")]
    assert json.loads((shop / "talk/model/generation_config.json").read_text())["eos_token_id"] == ends
    assert json.loads((shop / "talk/model/receipt.json").read_text())["metrics"]["eos_token_id"] == ends
    assert "generation_config.json: text ends at '<|im_end|>' (3) as well, which ends answers, not at '</s>' (1) alone" in out
    shop.run("export", "talk/adapted/sft", "talk/plain", "--dtype", "float32", "--verify", "weights").succeeded()  # the checkpoint knows it all
    for name in ("chat_template.jinja", "generation_config.json"):
        assert (shop / "talk/plain" / name).read_text() == (shop / "talk/model" / name).read_text()
    assert "everything of 'talk' is done" in shop.run("run", "talk.yaml").succeeded().out
    (shop / "chatml.jinja").write_text(dated + "{# another #}")
    shop.run("run", "talk.yaml").refused("data/base/talk", "the content of its input 'chat_template' changed")
