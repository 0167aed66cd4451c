"""Signals that ask training to stop: remembered, and acted upon by all ranks at the same step."""

from __future__ import annotations

import signal
from pathlib import Path

from megatron_adapt.engine import backend


class Stopped(Exception):
    """Training was asked to stop (SIGINT or SIGTERM); a checkpoint was saved at ``step``."""

    def __init__(self, step: int, path: Path) -> None:
        super().__init__(f"stopped at step {step}; saved {path}; run again to continue")


class StopRequest:
    """Remembers SIGINT / SIGTERM; ``agreed`` is true on all ranks at the same step."""

    def __init__(self) -> None:
        self.asked = False
        self.previous = {number: signal.signal(number, self._remember) for number in (signal.SIGINT, signal.SIGTERM)}

    def _remember(self, number: int, frame: object) -> None:
        self.asked = True

    def agreed(self, busy: bool) -> tuple[bool, bool]:
        """(whether any rank was asked to stop, whether any rank is ``busy``), the same on all ranks."""
        asked, waiting = backend.agree([float(self.asked), float(busy)])
        return asked > 0, waiting > 0

    def restore(self) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
