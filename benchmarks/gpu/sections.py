"""The checks of first_call.py. Each returns numbers to report and raises when the GPU path is not right.

``tiny`` means a dry run on a CPU: smaller sizes, and Transformer Engine's part left out.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import signal
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
import workload
from family_checks import sizes_of

from megatron_adapt.analysis import estimate
from megatron_adapt.engine import backend, checkpoint, evaluate, loop, metrics, model as models, verify
from megatron_adapt.engine.backend import Layout
from megatron_adapt.engine.convert import load_hf
from megatron_adapt.engine.packing import Documents
from megatron_adapt.errors import ConfigError
from megatron_adapt.families import family_named
from megatron_adapt.hf.directory import HFDirectory, read_json

CPU_SIZES = workload.llama(512, 64, 176, 2, 4, 2)
GPU_SIZES = workload.llama(2048, 512, 1408, 6, 8, 2, tied=False)
PACKAGES = ("torch", "bitsandbytes", "transformer-engine", "megatron-core", "transformers", "triton", "flash-attn", "safetensors")

transformer_engine_is_there = backend.has_transformer_engine  # use() replaces the backend's own


def versions(tiny: bool, scratch: Path) -> dict:
    found: dict[str, object] = {"python": platform.python_version(), "device": backend.name()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    if backend.has_gpu():
        found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
        found |= {"capability": torch.cuda.get_device_capability(), "memory_gb": torch.cuda.mem_get_info()[1] / 1e9}
    found["transformer_engine_works"] = backend.has_transformer_engine()
    if not tiny:
        assert backend.has_gpu(), "torch sees no GPU"
        assert backend.has_transformer_engine(), "transformer_engine.pytorch cannot be imported"
    return found


def te_layer(tiny: bool, scratch: Path) -> dict:
    """One Transformer Engine layer, forward and backward, outside Megatron: is the installation sound?"""
    import transformer_engine.pytorch as te

    layer = te.TransformerLayer(
        512, 1408, 8, num_gqa_groups=2, hidden_dropout=0.0, attention_dropout=0.0, normalization="RMSNorm",
        activation="swiglu", bias=False, self_attn_mask_type="causal", params_dtype=torch.bfloat16, device="cuda",
    )  # fmt: skip
    x = torch.randn(256, 4, 512, dtype=torch.bfloat16, device="cuda", requires_grad=True)
    out = layer(x)
    out.float().square().mean().backward()
    gradients = [x.grad] + [p.grad for p in layer.parameters()]
    assert out.isfinite().all() and all(g is not None and g.isfinite().all() for g in gradients), "not finite"
    return {"output_std": out.float().std().item(), "gradient_norm": x.grad.float().norm().item()}


def use(spec: str) -> None:
    """Choose Transformer Engine's layers and optimizer ("te"), or what a GPU without it would use ("plain")."""
    assert spec == "plain" or transformer_engine_is_there(), "Transformer Engine is not there"
    backend.has_transformer_engine = lambda: spec == "te"


def specs() -> list[str]:
    return ["te", "plain"] if transformer_engine_is_there() else ["plain"]


class Setup:
    """A tiny model, its corpus and a phase, in a folder of their own, with the backend started."""

    def __init__(self, tiny: bool, scratch: Path, steps: int, family: str = "llama") -> None:
        self.folder, self.family = Path(tempfile.mkdtemp(dir=scratch)), family_named(family)
        sizes = CPU_SIZES if tiny else GPU_SIZES
        if family != "llama":
            sizes = {**sizes_of(family, tiny), "vocab_size": sizes["vocab_size"]}
        self.hf = workload.write_model(self.folder / "hf", sizes, family=self.family)
        self.shape = self.family.read_config(read_json(self.hf / "config.json"))
        length, batch = (64, 4) if tiny else (512, 8)
        self.phase = workload.phase(steps, length, batch, batch // 2)
        self.corpus = workload.write_corpus(self.folder, self.hf, length * batch * (steps + 2))
        backend.start(Layout(), workload.SEED)

    def job(self, precision: str, start: str, name: str, layout: Layout = Layout()) -> loop.Job:
        """From the checkpoint ``start``_start, made where it is not there yet."""
        folder = self.folder / f"{start}_start"
        if not folder.exists():
            workload.import_model(folder, self.hf, precision)
        return replace(workload.job(self.phase, precision, folder, self.folder / name, self.corpus), layout=layout)

    def train(self, precision: str, name: str, log=lambda line: None, layout: Layout = Layout()) -> list[float]:
        """Losses of the engine's loop, from the same weights every time; continues a run that was stopped."""
        job = self.job(precision, name, name, layout)
        backend.start(layout, workload.SEED)
        loop.train(job, log=log)
        return losses_of(job.output)

    def peer(self, precision: str) -> list[float]:
        peer = workload.TransformersLoop(self.hf, self.phase.optimizer, precision)
        stream = workload.batches(self.phase, self.hf, self.corpus)
        return [peer.step(next(stream)) for _ in range(self.phase.steps)]

    def tokens(self) -> torch.Tensor:
        return next(workload.batches(self.phase, self.hf, self.corpus))[0][:, :-1].to(backend.device())

    def model(self, precision: str):
        model = models.build(self.shape, Layout(), precision)
        load_hf(model, HFDirectory.open(self.hf), self.shape)
        return model.eval()

    def transformers_logits(self, dtype: torch.dtype) -> torch.Tensor:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(self.hf, dtype=dtype).to(backend.device()).eval()
        with torch.no_grad():
            return model(self.tokens()).logits.float().cpu()


def losses_of(output: Path) -> list[float]:
    return [line["loss"] for line in metrics.read_lines(output / "metrics.jsonl")]


def largest(ours: list[float], theirs: list[float]) -> float:
    assert len(ours) == len(theirs), (len(ours), len(theirs))
    return max(abs(a / b - 1) for a, b in zip(ours, theirs))


def te_parameters(tiny: bool, scratch: Path, family: str = "llama") -> dict:
    """A model of Transformer Engine's layers has exactly our canonical parameters, on the GPU, marked for Megatron."""
    use("te")
    setup = Setup(tiny, scratch, 1, family)
    model = setup.model("bf16-mixed")
    found = {name: tuple(parameter.shape) for name, parameter in models.named_parameters(model)}
    expected = {name: tuple(size) for name, size in setup.shape.parameter_shapes().items()}
    extra, missing = found.items() - expected.items(), expected.items() - found.items()
    assert not extra and not missing, f"parameters only here: {extra}; missing: {missing}"
    for name, parameter in models.named_parameters(model):
        assert parameter.device == backend.device() and parameter.dtype == torch.bfloat16, (name, parameter.device)
        marked = bool(getattr(parameter, "tensor_model_parallel", False))
        assert marked == estimate.is_cut(name, setup.shape), f"{name}: tensor_model_parallel is {marked}"
    return {"parameters": len(found)}


def train_fp32(tiny: bool, scratch: Path) -> dict:
    """Plain layers, float32: the losses of a transformers loop."""
    setup = Setup(tiny, scratch, 10)
    use("plain")
    difference = largest(setup.train("fp32", "plain"), setup.peer("fp32"))
    assert difference < 1e-4, f"losses differ from transformers' by {difference:.1e} (allowed 1e-4)"
    return {"difference_to_transformers": difference}


def train_bf16(tiny: bool, scratch: Path) -> dict:
    """Both layer specs, bfloat16, against a transformers loop under autocast."""
    setup = Setup(tiny, scratch, 20)
    peer = setup.peer("bf16")
    found: dict[str, float] = {"first_loss": peer[0], "last_loss": peer[-1]}
    for spec in specs():
        use(spec)
        found[f"{spec}_difference_to_transformers"] = largest(setup.train("bf16-mixed", spec), peer)
    worst = max(value for name, value in found.items() if "difference" in name)
    assert worst < 1e-2, f"bf16 losses differ by {worst:.1e} (allowed 1e-2): {found}"
    return found


def train_bf16_true(tiny: bool, scratch: Path) -> dict:
    """Weights, gradients and moments in bfloat16, stochastic rounding: near bf16-mixed, and the same again."""
    setup = Setup(tiny, scratch, 20)
    use("plain")
    mixed, once, again = setup.train("bf16-mixed", "mixed"), setup.train("bf16-true", "true"), setup.train("bf16-true", "again")
    difference = largest(once, mixed)
    assert difference < 2e-2, f"losses differ from bf16-mixed by {difference:.1e} (allowed 2e-2)"
    return {"difference_to_mixed": difference, "repeats": once == again and same_weights(setup, "true", "again")}


def use_optimizer(setup: Setup, **changes: object) -> None:
    setup.phase = setup.phase.model_copy(update={"optimizer": setup.phase.optimizer.model_copy(update=changes)})


def train_muon(tiny: bool, scratch: Path) -> dict:
    """Muon in bf16-mixed: learns at least a fifth of what AdamW does, and the same again; in bf16-true near that."""
    setup = Setup(tiny, scratch, 20)
    use("plain")
    adamw = setup.train("bf16-mixed", "adamw")
    use_optimizer(setup, type="muon")
    once, again, low = setup.train("bf16-mixed", "once"), setup.train("bf16-mixed", "again"), setup.train("bf16-true", "true")
    learnt = (once[0] - once[-1]) / (adamw[0] - adamw[-1])
    assert learnt > 0.2, f"Muon's loss falls by {learnt:.2f} times as much as AdamW's"
    difference = largest(low, once)
    assert difference < 2e-2, f"losses of bf16-true differ from bf16-mixed by {difference:.1e} (allowed 2e-2)"
    return {"fall_by_adamws": learnt, "difference_of_bf16_true": difference, "repeats": once == again and same_weights(setup, "once", "again")}


def train_offload(tiny: bool, scratch: Path) -> dict:
    """AdamW whose moments are in main memory: the losses of AdamW, the same again; on a CPU it is refused."""
    setup = Setup(tiny, scratch, 20)
    use("plain")
    adamw = setup.train("bf16-mixed", "adamw")
    use_optimizer(setup, offload=True)
    if not backend.has_gpu():
        try:
            setup.train("bf16-mixed", "offload")
        except ConfigError as error:
            return {"refused": str(error)}
        raise AssertionError("moments are offloaded although there is no GPU")
    once, again = setup.train("bf16-mixed", "once"), setup.train("bf16-mixed", "again")
    difference = largest(once, adamw)
    assert difference < 2e-3, f"losses differ from AdamW's by {difference:.1e} (allowed 2e-3)"
    return {"difference_to_adamw": difference, "repeats": once == again and same_weights(setup, "once", "again")}


def train_adamw8bit(tiny: bool, scratch: Path) -> dict:
    """Moments of 8 bits, in the GPU's memory and paged: near AdamW's losses, with less memory; continued to the same bits."""
    if importlib.util.find_spec("bitsandbytes") is None:
        return {"skipped": "bitsandbytes is not installed"}
    setup = Setup(tiny, scratch, 20)
    use("plain")
    adamw = setup.train("bf16-mixed", "adamw")
    found: dict[str, object] = {}
    for name, paged in (("resident", False), ("paged", True)) if backend.has_gpu() else (("resident", False),):
        use_optimizer(setup, type="adamw8bit", paged=paged)
        whole = setup.phase
        once = setup.train("bf16-mixed", name)
        difference = largest(once, adamw)
        assert difference < 2e-2, f"{name}: losses differ from AdamW's by {difference:.1e} (allowed 2e-2)"
        setup.phase = whole.model_copy(update={"save_every": 10, "keep_last": 9})
        setup.train("bf16-mixed", f"{name}_cut")
        shutil.rmtree(setup.folder / f"{name}_cut" / "step_00000020")
        continued = setup.train("bf16-mixed", f"{name}_cut")
        found |= {f"{name}_difference": difference, f"{name}_continued_exactly": continued == once and same_weights(setup, name, f"{name}_cut")}
        assert largest(continued, once) < 1e-3, f"{name}: the continued run differs by {largest(continued, once):.1e}"
        setup.phase = whole
    return found


def train_fp8(tiny: bool, scratch: Path, precision: str, family: str = "llama") -> dict:
    """Matrix products in fp8: near bf16-mixed, and the same again."""
    setup = Setup(tiny, scratch, 20, family)
    use("te")
    mixed, once, again = setup.train("bf16-mixed", "mixed"), setup.train(precision, "fp8"), setup.train(precision, "again")
    difference = largest(once, mixed)
    assert difference < 3e-2, f"losses differ from bf16-mixed by {difference:.1e} (allowed 3e-2)"
    return {"difference_to_mixed": difference, "repeats": once == again and same_weights(setup, "fp8", "again")}


def parity_fp32(tiny: bool, scratch: Path, family: str = "llama") -> dict:
    setup = Setup(tiny, scratch, 1, family)
    use("plain")
    ours, theirs = evaluate.logits(setup.model("fp32"), setup.tokens()), setup.transformers_logits(torch.float32)
    difference = (ours - theirs).abs().max().item()
    assert difference <= verify.TOLERANCE, f"logits differ by {difference:.1e} (allowed {verify.TOLERANCE})"
    return {"max_abs_difference": difference, "positions": ours[..., 0].numel()}


def parity_bf16(tiny: bool, scratch: Path, family: str = "llama") -> dict:
    """In bfloat16 nothing is exact: ours may be off from float32 by half as much again as transformers' is."""
    setup = Setup(tiny, scratch, 1, family)
    exact = setup.transformers_logits(torch.float32)
    theirs = (setup.transformers_logits(torch.bfloat16) - exact).square().mean().sqrt().item()
    found = {"transformers_rms_error": theirs, "logits_rms": exact.square().mean().sqrt().item()}
    for spec in specs():
        use(spec)
        ours = evaluate.logits(setup.model("bf16-mixed"), setup.tokens())
        found[f"{spec}_rms_error"] = (ours - exact).square().mean().sqrt().item()
        found[f"{spec}_largest_difference"] = (ours - exact).abs().max().item()
        found[f"{spec}_cosine"] = torch.nn.functional.cosine_similarity(ours.flatten(), exact.flatten(), dim=0).item()
        found[f"{spec}_top1_agreement"] = (ours.argmax(-1) == exact.argmax(-1)).float().mean().item()
        assert found[f"{spec}_rms_error"] <= 1.5 * theirs, f"{spec} layers are less exact than transformers: {found}"
    return found


def packing(tiny: bool, scratch: Path, family: str = "llama") -> dict:
    """Documents in one row: none sees another, each is as it is alone, and both layer specs train alike."""
    setup = Setup(tiny, scratch, 10, family)
    row = setup.tokens().reshape(1, -1)
    size = row.numel()
    lengths = (size // 3, size // 4, size - size // 3 - size // 4)
    documents = Documents.of(lengths, max(lengths), backend.device())
    second = slice(lengths[0], lengths[0] + lengths[1])
    other = row.clone()
    other[:, : lengths[0]] = (other[:, : lengths[0]] + 1) % setup.shape.vocab_size
    setup.phase = setup.phase.model_copy(update={"packing": "documents"})
    found: dict[str, float] = {}
    trained = []
    for spec in specs():
        use(spec)
        model = setup.model("bf16-mixed")

        def logits(tokens: torch.Tensor, positions: torch.Tensor, **packed: object) -> torch.Tensor:
            with torch.no_grad():
                return model(tokens, positions, None, **packed).float().reshape(-1, setup.shape.vocab_size)

        together = logits(row, documents.within[None], packed_seq_params=documents)[second]
        perturbed = logits(other, documents.within[None], packed_seq_params=documents)[second]
        alone = logits(row[:, second], documents.within[None, second])
        leak = (together - perturbed).abs().max().item()
        found[f"{spec}_leak"], found[f"{spec}_rms_to_alone"] = leak, (together - alone).square().mean().sqrt().item()
        assert leak == 0, f"{spec}: a document's logits change by {leak:.1e} with another document"
        assert found[f"{spec}_rms_to_alone"] < 0.02 * alone.square().mean().sqrt().item(), found
        trained.append(setup.train("bf16-mixed", spec))
    found["difference_of_specs"] = largest(trained[0], trained[-1])
    assert found["difference_of_specs"] < 1e-2, found
    return found


def resume(tiny: bool, scratch: Path, spec: str, precision: str = "bf16-mixed") -> dict:
    """A run stopped by SIGTERM half-way and continued = an uninterrupted one, as exactly as the kernels repeat."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    setup = Setup(tiny, scratch, 8)
    use(spec)
    once, again = setup.train(precision, "once"), setup.train(precision, "again")
    lines = []

    def stop_half_way(line: str) -> None:
        lines.append(line)
        if len(lines) == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        setup.train(precision, "stopped", log=stop_half_way)
    except loop.Stopped:
        stopped = checkpoint.resolve(setup.folder / "stopped").position.step
    else:
        raise AssertionError("the run ignored SIGTERM")
    assert stopped == 4, f"stopped at step {stopped}, not 4"
    continued = setup.train(precision, "stopped")
    repeats = once == again and same_weights(setup, "once", "again")
    exact = once == continued and same_weights(setup, "once", "stopped")
    difference = largest(continued, once)
    close = exact or (not repeats and difference < 1e-3)
    assert close, f"the resumed run differs by {difference:.1e}; kernels repeat exactly: {repeats}"
    return {"resumed_equals_uninterrupted": exact, "kernels_repeat_exactly": repeats, "difference": difference}


def same_weights(setup: Setup, *names: str) -> bool:
    states = []
    for name in names:
        model = models.build(setup.shape, Layout(), "bf16-mixed")
        checkpoint.load(checkpoint.resolve(setup.folder / name), model)
        states.append([parameter.detach().clone() for parameter in model.parameters()])
    return all(torch.equal(a, b) for a, b in zip(*states))


def across_specs(tiny: bool, scratch: Path, family: str = "llama") -> dict:
    """A checkpoint of plain layers (as a CPU writes them) loads into Transformer Engine's, and the other way round."""
    setup = Setup(tiny, scratch, 1, family)
    logits = {}
    for spec, other in (("plain", "te"), ("te", "plain")):
        use(spec)
        saved = workload.import_model(setup.folder / spec, setup.hf, "bf16-mixed")
        use(other)
        model = models.build(setup.shape, Layout(), "bf16-mixed")
        checkpoint.load(checkpoint.resolve(saved), model)
        logits[spec] = evaluate.logits(model.eval(), setup.tokens())
    difference = (logits["plain"] - logits["te"]).square().mean().sqrt().item()
    assert difference < 0.05 * logits["te"].square().mean().sqrt().item(), f"logits differ by {difference:.2g} (rms)"
    return {"rms_difference": difference}
