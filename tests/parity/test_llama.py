"""A Llama is the same model in Megatron as in transformers: every bit of its weights, the logits of every position."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers.models.llama.modeling_llama  # noqa: F401  once, here: the forked ranks need it
from harness import assets
from megatron.core.pipeline_parallel import get_forward_backward_func
from worlds import MODELS, SEED, SIZES, VOCABULARY, Layout, World, hf_model, on_ranks, sentences

from megatron_adapt.engine import backend, checkpoint, convert, evaluate, model as models, verify, vocabulary
from megatron_adapt.engine.losses import positions
from megatron_adapt.errors import CheckpointError
from megatron_adapt.families import find_family
from megatron_adapt.hf.directory import HFDirectory
from megatron_adapt.hf.tokenizer import Tokenizer

FOUR = Layout(tensor=2, pipeline=2)
LAYOUTS = {
    "TP2": Layout(tensor=2),
    "PP2": Layout(pipeline=2),
    "TP2xPP2": FOUR,
    "TP2+SP": Layout(tensor=2, sequence=True),
}


def compare(path: Path, texts: list[str] | None = None, length: int = 256) -> dict:
    """What ``verify`` says of a directory on one rank; it raises where a bit or a logit differs."""

    def work() -> dict:
        model, shape = hf_model(path)
        directory = HFDirectory.open(path)
        logits = verify.logits(model.eval(), directory, texts, length)
        return logits | {"tensors": verify.weights(model, shape, directory)}

    return on_ranks(1, work)[0]


@pytest.mark.parametrize("name", MODELS)
def test_weights_and_logits_equal_transformers(world: World, name):
    texts = [" ".join(sentences(9, 30)), *verify.SAMPLES]  # several windows of the full 128 positions
    result = compare(world.model(name), texts)
    assert result["max_abs_difference"] <= 1e-4 and result["top1_agreement"] == 1
    assert result["positions"] > 400
    sizes = {**SIZES, **MODELS[name]}
    assert result["tensors"] == 9 * sizes["num_hidden_layers"] + (2 if sizes.get("tie_word_embeddings") else 3)


@pytest.mark.parametrize("name", MODELS)
def test_round_trip_through_a_sharded_checkpoint_keeps_every_bit(world: World, tmp_path: Path, name):
    path = world.model(name)

    def save() -> None:
        model, _ = hf_model(path, FOUR)
        checkpoint.save(tmp_path, model, None, checkpoint.Position(), path)

    def load() -> list[str]:
        backend.start(Layout(), SEED)
        opened = checkpoint.resolve(tmp_path)
        shape = find_family(opened.config).read_config(opened.config)
        model = models.build(shape, Layout(), "fp32")
        checkpoint.load(opened, model)
        dtype = getattr(torch, opened.config["dtype"])
        with HFDirectory.open(path).weights() as reader:
            back = dict(convert.to_hf(model, shape, opened.config, dtype))
            assert set(back) == set(reader.names())
            return [name for name in back if back[name].dtype != dtype or not back[name].equal(reader.get(name))]

    on_ranks(4, save)
    assert on_ranks(1, load) == [[]]


def sharded_logits(model: torch.nn.Module, tokens: torch.Tensor) -> list | None:
    """Logits ``[b, s, vocabulary]`` in any layout, from Megatron's pipeline schedule; None before the last stage."""

    def forward(batches, model):
        return model(*next(batches), None), lambda logits: (logits.new_zeros(()), logits)

    with torch.no_grad():
        outputs = get_forward_backward_func()(
            forward_step_func=forward, data_iterator=iter([(tokens, positions(tokens))]), model=[model],
            num_microbatches=1, seq_length=tokens.size(1), micro_batch_size=tokens.size(0), forward_only=True,
        )  # fmt: skip
    if not outputs:
        return None
    return vocabulary.gathered(outputs[0], model.vocab_size).tolist()


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_logits_do_not_depend_on_the_layout(world: World, layout):
    tokens = torch.arange(2 * 48).view(2, 48) * 7 % VOCABULARY
    names = ("untied", "tied", "llama3", "mha")

    def work(layout: Layout, of) -> list:
        return [of(hf_model(world.model(name), layout)[0].eval(), tokens) for name in names]

    (reference,) = on_ranks(1, lambda: work(Layout(), lambda model, tokens: evaluate.logits(model, tokens).tolist()))
    ranks = on_ranks(layout.model_ranks, lambda: work(layout, sharded_logits))
    assert sum(rank[0] is not None for rank in ranks) == layout.tensor
    for rank in ranks:
        for name, ours, theirs in zip(names, rank, reference):
            if ours is not None:
                torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), atol=1e-5, rtol=0, msg=name)


def test_a_difference_is_noticed(world: World):
    def damage(name: str) -> list[str]:
        model, shape = hf_model(world.model("untied"))
        directory = HFDirectory.open(world.model("untied"))
        with torch.no_grad():
            dict(models.named_parameters(model))[name].view(-1)[3] += 0.01
        messages = []
        for check in (lambda: verify.weights(model, shape, directory), lambda: verify.logits(model, directory)):
            with pytest.raises(CheckpointError) as caught:
                check()
            messages.append(str(caught.value))
        return messages

    ((weights, logits),) = on_ranks(1, lambda: damage("decoder.layers.2.self_attention.linear_qkv.weight"))
    assert "1 of 39 tensors differ from Megatron's after conversion" in weights
    assert "first model.layers.2.self_attn.q_proj.weight" in weights
    assert "logits differ from Megatron's by up to" in logits and "is not the same model" in logits


# ------------------------------------------------------------------------------------------------ really trained models


def test_stories260k_equals_its_reference():
    """Against an independent float64 implementation: last logits, 60 greedy tokens, bits per byte on real text."""
    path = assets("models", "stories260K")
    corpus = assets("text", "en_tinystories_sample.jsonl.gz")
    reference = json.loads((path / "reference.json").read_text())

    def work() -> dict:
        model, _ = hf_model(path)
        model.eval()
        ids = list(reference["prompt_ids"])
        last = evaluate.logits(model, torch.tensor([ids]))[0, -1]
        for _ in range(60):
            ids.append(int(evaluate.logits(model, torch.tensor([ids]))[0, -1].argmax()))
        tokenizer = Tokenizer.load(path)
        texts = evaluate.read_texts(corpus)[: reference["eval_tinystories_first40"]["docs"]]
        text = evaluate.tokenize(texts, tokenizer, 512)
        prompt = [tokenizer.bos_id, *tokenizer.encode([reference["prompt"]])[0].tolist()]
        return {"last": last.tolist(), "ids": ids, "prompt": prompt} | evaluate.bits_per_byte(model, text, Layout())

    (ours,) = on_ranks(1, work)
    assert ours["prompt"] == reference["prompt_ids"] and ours["ids"] == reference["greedy_ids_60"]
    assert ours["last"] == pytest.approx(reference["last_logits"], abs=1e-4)
    expected = reference["eval_tinystories_first40"]
    assert ours["tokens"] == expected["tokens"]
    assert ours["token_loss"] == pytest.approx(expected["nll_per_token"], abs=1e-4)
    assert ours["bits_per_byte"] == pytest.approx(expected["bits_per_byte"], abs=1e-4)


@pytest.mark.parametrize("name", ["stories260K", "en-novels-5m"])
def test_trained_models_equal_transformers(name):
    result = compare(assets("models", name))
    assert result["max_abs_difference"] <= 1e-4 and result["positions"] > 100
