"""What a phase reports: metrics.jsonl beside the checkpoints, TensorBoard, Weights & Biases, and readable lines; on rank 0."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Callable

from megatron_adapt.analysis import wandb_run
from megatron_adapt.engine import backend


class Metrics:
    """``start`` = step the run continues from: later lines of an interrupted run are dropped, never written twice."""

    def __init__(
        self, folder: Path, tensorboard: Path | None, wandb: wandb_run.Run | None, start: int, log: Callable[[str], None]
    ) -> None:
        self.writer = self.file = self.wandb = None
        self.folder, self.tensorboard, self.log = folder, tensorboard, log
        if wandb is not None and backend.rank() == 0:
            self.wandb = wandb_run.Writer(wandb, folder)
        self.rewind(start)

    def rewind(self, start: int) -> None:
        """Go on after step ``start``; lines of later steps are dropped."""
        self._close_files()
        if backend.rank() != 0:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "metrics.jsonl"
        kept = [line for line in read_lines(path) if line["step"] <= start]
        partial = path.with_suffix(".tmp")
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(partial, path)
        self.file = open(path, "a", buffering=1)
        if self.tensorboard is not None:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(self.tensorboard), purge_step=start + 1)

    def add(self, step: int, values: dict[str, Any], show: bool) -> None:
        if self.file is None:
            return
        self.file.write(json.dumps({"step": step} | {k: float(f"{v:.7g}") for k, v in values.items()}) + "\n")
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)
        if self.wandb is not None:
            self.wandb.add(step, values)
        if show:
            self.log(line(step, values))

    def close(self) -> None:
        self._close_files()
        if self.wandb is not None:
            self.wandb.close()

    def _close_files(self) -> None:
        if self.file is not None:
            self.file.close()
        if self.writer is not None:
            self.writer.close()


def line(step: int, values: dict[str, Any]) -> str:
    learnt = f" ({values['learnt']:.0%} learnt)" if "learnt" in values else ""
    text = (
        f"step {step:>6} | loss {values['loss']:.4f} | {values['bits_per_byte']:.3f} bits/byte | lr {values['lr']:.2e} | "
        f"grad norm {values['grad_norm']:.2f} | {values['tokens_per_second']:,.0f} tokens/s{learnt} | "
        f"{values['tflops_per_rank']:.3g} TFLOP/s | {values['memory_gb']:.1f} GB"
    )
    held_out = [f"{name.removeprefix('held_out/')} {value:.3f}" for name, value in values.items() if name.startswith("held_out/")]
    return text + (f" | held out: {', '.join(held_out)} bits/byte" if held_out else "")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a metrics file; a torn last line (the process was killed in it) is left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines
