"""What the exported model of chats tells those who generate text with it: to stop where an answer ends."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from chats import SPECIAL, TEMPLATES, chat, write_tokenizer
from worlds import SIZES, on_ranks

from megatron_adapt import config_chats, recipe
from megatron_adapt.config import Phase
from megatron_adapt.engine import stretches
from megatron_adapt.families import family_named, initial_tensors
from megatron_adapt.hf.chat_template import ChatTemplate
from megatron_adapt.hf.tokenizer import Tokenizer
from megatron_adapt.hf.weights import WeightWriter
from megatron_adapt.steps import export_hf, import_hf
from megatron_adapt.steps.reporter import Reporter
from megatron_adapt.torch_dist.directory import MARK, Learnt, Position, open_checkpoint, seal

EOS, IM_END, EOT = (SPECIAL.index(token) for token in ("</s>", "<|im_end|>", "<|eot_id|>"))


def model(folder: Path, template: str, generation: dict | None = None, **config) -> Path:
    """Small, with drawn weights."""
    tokenizer = Tokenizer.load(write_tokenizer(folder, TEMPLATES.get(template, template)))
    family = family_named("llama")
    settings = family.complete_config(SIZES, tokenizer.vocab_size, 0, EOS) | config
    (folder / "config.json").write_text(json.dumps(settings))
    with WeightWriter(folder) as writer:
        for name, tensor in initial_tensors(family, family.read_config(settings), 5, settings["dtype"]):
            writer.add(name, tensor)
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def stopped(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[dict | None, dict, str]:
    """(generation_config.json, what the receipt says, what was logged)"""
    said = export_hf.stop_after_answers(folder, Reporter())
    file = folder / "generation_config.json"
    return json.loads(file.read_text()) if file.exists() else None, said, capsys.readouterr().out


def test_a_model_without_generation_config(tmp_path, capsys):
    found, said, log = stopped(model(tmp_path, "chatml", pad_token_id=2), capsys)
    assert found == {"bos_token_id": 0, "pad_token_id": 2, "eos_token_id": [EOS, IM_END]} and said == {"eos_token_id": [EOS, IM_END]}
    assert f"generation_config.json: text ends at '<|im_end|>' ({IM_END}) as well, which ends answers, not at '</s>' ({EOS}) alone" in log
    assert stopped(tmp_path, capsys) == (found, {}, "")  # an export that is done again


def test_what_is_there_stays(tmp_path, capsys):
    found, _, _ = stopped(model(tmp_path, "llama3", {"temperature": 0.6, "eos_token_id": [EOS, 6], "pad_token_id": 0}), capsys)
    assert found == {"temperature": 0.6, "eos_token_id": [EOS, 6, EOT], "pad_token_id": 0}


def test_a_generation_config_that_does_not_say(tmp_path, capsys):
    assert stopped(model(tmp_path, "llama3", {"temperature": 0.6}), capsys)[0] == {"temperature": 0.6, "eos_token_id": [EOS, EOT]}


def test_a_model_without_an_end(tmp_path, capsys):
    found, _, log = stopped(model(tmp_path, "chatml", eos_token_id=None), capsys)
    assert found == {"bos_token_id": 0, "eos_token_id": [IM_END]} and "as well, which ends answers\n" in log


def test_nothing_is_missing_where_answers_end_with_the_end_of_text(tmp_path, capsys):
    assert stopped(model(tmp_path, "inst"), capsys) == (None, {}, "")
    other = model(tmp_path / "other", "chatml", {"eos_token_id": [EOS, IM_END]})
    assert stopped(other, capsys) == ({"eos_token_id": [EOS, IM_END]}, {}, "")


LAST = TEMPLATES["chatml"].replace("'<|im_end|>' + '\n'", "('</s>' if loop.last and m['role'] == 'assistant' else '<|im_end|>')")
ENDS = {"chatml": ["<|im_end|>"], "llama3": ["<|eot_id|>"], "inst": ["</s>"], "marked": ["<|im_end|>"], LAST: ["</s>"]}


@pytest.mark.parametrize("template", ENDS)
def test_the_tokens_that_end_answers(tmp_path, template):
    """Whose end depends on whether more follows, as in the last one, is refused as a conversation of several answers."""
    tokenizer = Tokenizer.load(write_tokenizer(tmp_path, TEMPLATES.get(template, template)))
    assert ChatTemplate.load(tokenizer).ends() == ENDS[template]


def test_marked_answers_may_end_in_two_ways(tmp_path):
    marked = TEMPLATES["marked"].replace("{{ m['content'] }}<|im_end|>{% endgen", "{{ m['content'] }}{% if loop.last %}</s>{% else %}<|im_end|>{% endif %}{% endgen")
    assert ChatTemplate.load(Tokenizer.load(write_tokenizer(tmp_path, marked))).ends() == ["</s>", "<|im_end|>"]


def test_transformers_stops(tmp_path, capsys):
    """At the token that ends an answer, as soon as the model writes it; it went on before."""
    folder = model(tmp_path, "chatml")

    def lengths() -> int:
        from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor

        class Answer(LogitsProcessor):
            """As a trained model would: three tokens, and the end of the turn."""

            def __call__(self, ids, scores):
                scores[:, IM_END if ids.shape[1] == begin + 3 else 40] = 1e9
                return scores

        loaded, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        prompt = tokenizer.apply_chat_template(chat("Wo?"), add_generation_prompt=True, return_tensors="pt", return_dict=True)
        begin = prompt["input_ids"].shape[1]
        inputs = {name: prompt[name] for name in ("input_ids", "attention_mask")}
        return loaded.generate(**inputs, max_new_tokens=9, do_sample=False, logits_processor=[Answer()]).shape[1] - begin

    assert on_ranks(1, lengths) == [9]
    export_hf.stop_after_answers(folder, Reporter())
    assert on_ranks(1, lengths) == [4]


def test_a_checkpoint_says_what_its_model_has_learnt(tmp_path, capsys):
    """An export without the recipe knows it, from whichever phase: chats with a template of their own, and prefixes."""
    position, file = Position(), tmp_path / "llama3.jinja"
    file.write_bytes(("{#- thinking -#}" + TEMPLATES["llama3"].replace("\n", "\r\n")).encode())
    given = {"ul2": Learnt(both_ways=("ul2",)), "sft": Learnt({"thinking": False}, file.read_bytes().decode()), "more": Learnt()}
    for name, learns in given.items():
        position = replace(position, phase=name)
        stretches.begin(Phase(**tiny.phase(name, 1)), position, learns)
    import_hf.run(model(tmp_path / "model", "chatml"), tmp_path / "checkpoint", Reporter(), verify="weights")
    folder = tmp_path / "checkpoint" / "step_00000000"
    (folder / MARK).unlink()
    seal(folder.rename(tmp_path / "checkpoint" / "unmarked"), folder, position, import_hf.WORLD)
    assert open_checkpoint(folder).position == position and position.learnt.both_ways == ("ul2",)
    capsys.readouterr()
    export_hf.run(tmp_path / "checkpoint", tmp_path / "plain", Reporter(), verify="weights")
    assert (tmp_path / "plain" / "chat_template.jinja").read_bytes() == file.read_bytes()
    assert json.loads((tmp_path / "plain" / "generation_config.json").read_text())["eos_token_id"] == [EOS, EOT]
    out = capsys.readouterr().out
    assert "warning: in ul2 the model saw what stands before targets in both directions; what is exported attends left to right alone" in out
    stretches.begin(Phase(**tiny.phase("own", 1)), position, Learnt({}))
    assert position.learnt == Learnt({}, None, ("ul2",))


def test_which_chats_were_learnt_last(tmp_path, monkeypatch):
    tiny.corpora(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jinja").touch()
    talk = {"path": "de.jsonl", "messages": "messages"}
    scratch = {"from_scratch": {"config": tiny.CONFIG, "tokenizer": "with"}}
    data = {"own": talk, "file": talk | {"path": "en.jsonl", "chat_template": "a.jinja"}, "text": {"path": "dev.jsonl"}}
    (tmp_path / "dev.jsonl").write_text('{"text": "a"}\n')

    def found(*phases: list[str]) -> str | None:
        made = [tiny.phase(f"p{number}", 1, data=dict.fromkeys(names, 1), packing="documents") for number, names in enumerate(phases)]
        loaded = recipe.load(tiny.write(tmp_path, tiny.recipe(vocabulary=None, data=data, phases=made, evaluation={"corpora": []}, model=scratch)))
        learnt = config_chats.learnt_last(loaded, loaded.phases)
        return next((name for name, corpus in loaded.data.items() if corpus is learnt), None)

    assert found(["text"]) is None and found(["own"], ["text"]) == "own"
    assert found(["own", "file"]) == "file" and found(["file"], ["own", "text"], ["text"]) == "own"
