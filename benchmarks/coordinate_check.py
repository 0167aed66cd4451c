"""Coordinate check of muP: how far activations move in the first steps, at each width (Yang et al. 2022, appendix D.1).

    python benchmarks/coordinate_check.py [--family llama] [--heads more|wider] [--tied] [--optimizer adamw]

Trains models of several widths on the same tokens with the same learning rate, once by muP from the narrowest, once as
they are, and prints by how much (root mean square) the scores of attention, the residual stream and the logits change.
Under muP that does not depend on the width, otherwise it grows. Exits with 1 where muP's residual stream or logits grow
or shrink by more than a factor of 1.6 from the narrowest model to the widest, where its scores grow, or where the
logits of models as they are do not grow. Scores of wider heads shrink at first, with the root of their size, for as
long as queries and keys are mostly random.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron.core.distributed import finalize_model_grads
from megatron_adapt.config import Optimizer
from megatron_adapt.engine import backend, model as models, optimizer as optimizers
from megatron_adapt.engine.backend import Layout
from megatron_adapt.engine.batches import Batch
from megatron_adapt.engine.chunks import run
from megatron_adapt.engine.losses import language_model_loss, micro_batches, positions
from megatron_adapt.families import family_named, initial_tensors, mup
from megatron_adapt.families.rules import hf_to_megatron

VOCABULARY, LENGTH, BATCH, LAYERS, HEAD = 64, 32, 8, 2, 8
TOLERANCE = 1.6  # from the narrowest to the widest model
NAMES = {  # family: what it calls width, feed-forward units, heads, key/value heads, layers, positions
    "gpt2": ("n_embd", "n_inner", "n_head", None, "n_layer", "n_positions"),
    "mpt": ("d_model", None, "n_heads", None, "n_layers", "max_seq_len"),
    "gpt_neox": (
        "hidden_size", "intermediate_size", "num_attention_heads", None, "num_hidden_layers", "max_position_embeddings",
    ),
}  # fmt: skip
OTHERS = (*NAMES["gpt_neox"][:3], "num_key_value_heads", *NAMES["gpt_neox"][4:])
# Without a cap scores can be seen where they are made.
EXTRA = {"gemma2": {"attn_logit_softcapping": None}}


def config(family: str, width: int, narrow: int, heads: str, tied: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """(keys of config.json for a width, those of them that change with it); ``heads``: more of them, or wider ones."""
    hidden, ffn, count, groups, layers, length = NAMES.get(family, OTHERS)
    number = width // HEAD if heads == "more" else narrow // HEAD
    widths = {hidden: width, ffn: 4 * width, count: number, groups: number // 2}
    if "head_dim" in family_named(family).names:
        widths["head_dim"] = width // number
    if family.startswith("gemma"):
        widths["query_pre_attn_scalar"] = width // number  # as if there were none: the root of head_dim
    widths = {key: value for key, value in widths.items() if key is not None}
    fixed = {"tie_word_embeddings": tied, layers: LAYERS, length: LENGTH, "initializer_range": 0.05}
    return {**widths, **fixed, **EXTRA.get(family, {})}, widths


class InMemory:
    """Hugging Face tensors, as conversion reads them."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = dict(tensors)

    def names(self) -> list[str]:
        return list(self.tensors)

    def info(self, name: str) -> tuple:
        return tuple(self.tensors[name].shape), "float32"

    def get(self, name: str) -> Tensor:
        return self.tensors[name]


class Trained:
    """A model of one width and how its activations change while it is trained on one batch; on one rank."""

    def __init__(
        self, name: str, given: Mapping[str, Any], base: Mapping[str, Any] | None, settings: Optimizer, seed: int
    ) -> None:
        family = family_named(name)
        shape = family.read_config(family.complete_config(given, VOCABULARY, 0, 1))
        fields = mup.base_fields(family, given, base) if base is not None else {}
        problems = [*mup.problems(shape, fields), *mup.problems(shape, fields, settings)] if fields else []
        if problems:
            sys.exit("; ".join(problems))
        scalings = mup.scalings(shape, fields) if fields else {}
        tensors = InMemory(dict(initial_tensors(family, shape, seed, scalings=scalings)))
        self.model = models.build(shape, Layout(), "fp32")
        parameters = dict(models.named_parameters(self.model))
        for parameter, tensor in hf_to_megatron(family, shape, tensors):
            parameters[parameter].data.copy_(tensor)
        self.model.config.finalize_model_grads_func = finalize_model_grads
        self.wrapped = models.wrap(self.model, "fp32")
        self.settings = settings
        self.optimizer = optimizers.build(settings, self.wrapped, "fp32", scalings=scalings)
        # The second half is the first one: what comes next stands before, where attention has to find it.
        half = torch.randint(2, VOCABULARY, (BATCH, LENGTH // 2), generator=torch.Generator().manual_seed(seed))
        self.tokens = torch.cat([half, half, half[:, :1]], dim=1)

    def step(self, tokens: Tensor, factor: float = 1.0) -> float:
        """One update on ``tokens`` [b, s + 1], with ``factor`` times the learning rate; the loss before it."""
        rows, length = len(tokens), tokens.size(1) - 1
        batch = Batch(tokens[None], torch.zeros(1, rows).long())
        self.wrapped.zero_grad_buffer()
        self.optimizer.zero_grad()
        step = language_model_loss(1)
        outputs = run(step, self.wrapped, lambda: micro_batches(batch), 1, length, rows, forward_only=False)
        optimizers.prepare(self.optimizer)
        optimizers.clip(self.optimizer, self.settings.clip_grad)
        optimizers.set_learning_rate(self.optimizer, factor)
        optimizers.update(self.optimizer)
        sums, counts, _ = outputs[0].flatten().tolist()
        return sums / counts

    @torch.no_grad()
    def activations(self) -> dict[str, Tensor]:
        rows = self.tokens[:, :-1]
        found: dict[str, list[Tensor]] = defaultdict(list)
        hooks = [
            layer.register_forward_hook(lambda module, inputs, output: found["residual stream"].append(output[0]))
            for layer in self.model.decoder.layers
        ]
        with seen_scores(found["scores"]):
            found["logits"] = [self.model.eval()(rows, positions(rows), None)]
        self.model.train()
        for hook in hooks:
            hook.remove()
        return {name: torch.cat([each.flatten() for each in parts]) for name, parts in found.items() if parts}


@contextmanager
def seen_scores(found: list[Tensor]) -> Iterator[None]:
    """Keep the scores of attention, which is computed at once."""
    attend = F.scaled_dot_product_attention

    def keep(q: Tensor, k: Tensor, v: Tensor, *more: Any, scale: float, **options: Any) -> Tensor:
        found.append(q @ k.repeat_interleave(q.size(1) // k.size(1), dim=1).transpose(-1, -2) * scale)
        return attend(q, k, v, *more, scale=scale, **options)

    F.scaled_dot_product_attention = keep
    try:
        yield
    finally:
        F.scaled_dot_product_attention = attend


def change(trained: Trained, steps: int) -> dict[str, float]:
    """Root mean square of what ``steps`` updates change of each kind of activation."""
    before = trained.activations()
    for _ in range(steps):
        trained.step(trained.tokens)
    after = trained.activations()
    return {name: float((after[name] - before[name]).square().mean().sqrt()) for name in before}


def table(
    family: str, widths: list[int], heads: str, tied: bool, settings: Optimizer, steps: int, seeds: int
) -> dict[str, list[dict[str, float]]]:
    """For "muP" and "as it is": by width, the change of each kind of activation, averaged over seeds."""
    found: dict[str, list[dict[str, float]]] = {"muP": [], "as it is": []}
    _, base = config(family, widths[0], widths[0], heads, tied)
    for width in widths:
        given, _ = config(family, width, widths[0], heads, tied)
        for name, kind in (("muP", base), ("as it is", None)):
            runs = [change(Trained(family, given, kind, settings, seed), steps) for seed in range(seeds)]
            found[name].append({key: sum(each[key] for each in runs) / seeds for key in runs[0]})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", default="llama")
    parser.add_argument("--heads", choices=("more", "wider"), default="more", help="what a wider model has of them")
    parser.add_argument("--tied", action="store_true", help="the head is the embedding")
    parser.add_argument("--optimizer", default="adamw")
    parser.add_argument("--lr", type=float, default=None)
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    lr = given.lr or (3e-3 if given.optimizer == "lionw" else 1e-2)
    settings = Optimizer(type=given.optimizer, lr=lr, weight_decay=0.0, clip_grad=0.0)
    with backend.session(Layout(), 0):
        found = table(given.family, given.widths, given.heads, given.tied, settings, given.steps, given.seeds)
    failed = False
    for name, rows in found.items():
        print(f"{name}: change after {given.steps} steps of {given.optimizer}, {lr:g}")
        for key in rows[0]:
            growth = rows[-1][key] / rows[0][key]
            print(f"  {key:16}" + "".join(f"{row[key]:10.4f}" for row in rows) + f"   x {growth:.2f}")
            least = 0.0 if key == "scores" else 1 / TOLERANCE
            failed |= name == "muP" and not least < growth < TOLERANCE
        failed |= name == "as it is" and rows[-1]["logits"] / rows[0]["logits"] < TOLERANCE
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
