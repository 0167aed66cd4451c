"""tools/checkpoint/convert.py: Megatron's flags become our command line, and wrong ones are refused."""

from __future__ import annotations

import runpy
from typing import Callable

import pytest
from harness import ROOT


@pytest.fixture(scope="module")
def command() -> Callable[[list[str]], list[str]]:
    return runpy.run_path(str(ROOT / "tools" / "checkpoint" / "convert.py"))["command"]


IMPORT = "--model-type GPT --loader hf --saver megatron --load-dir in --save-dir out"
EXPORT = "--loader megatron --saver hf --load-dir in --save-dir out"


@pytest.mark.parametrize(
    "given, wanted",
    [
        (IMPORT, "import in out"),
        (f"{IMPORT} --verify weights", "import in out --verify weights"),
        (EXPORT, "export in out"),
        (
            f"{EXPORT} --hf-config c --dtype keep --tie untie --max-shard-size 1GB --family llama --verify off",
            "export in out --verify off --dtype keep --max-shard-size 1GB --tie untie --family llama --hf-config c",
        ),
    ],
)
def test_flags(command, given: str, wanted: str) -> None:
    assert command(given.split()) == wanted.split()


@pytest.mark.parametrize(
    "given, message",
    [
        ("--loader hf --saver hf --load-dir a --save-dir b", "one is hf, the other megatron"),
        (f"{IMPORT} --dtype keep", "--dtype goes with --saver hf"),
        (EXPORT.replace("--load-dir in", ""), "the following arguments are required: --load-dir"),
        (EXPORT.replace("megatron", "mcore"), "argument --loader: invalid choice: 'mcore'"),
    ],
)
def test_wrong_flags(command, given: str, message: str, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        command(given.split())
    assert caught.value.code == 2 and message in capsys.readouterr().err
