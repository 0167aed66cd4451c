"""A whole run of filters: what is written, in which order, what is refused, and what a kill leaves."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from harness import ROOT, assets
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_adapt.data import filter_command, filter_work, filtering, filters
from megatron_adapt.data.corpus import read_documents
from megatron_adapt.data.filtering import filter_corpus
from megatron_adapt.data.texts import Texts, cut
from megatron_adapt.errors import ConfigError, DataError

NOTICE = "Alle Rechte vorbehalten. Jede Verwendung dieses Textes bedarf der schriftlichen Zustimmung des Verlages und seiner Autoren."
DOCUMENTS = [
    "Eins ist kein Text, zwei sind es auch nicht.",
    f"Drei. {NOTICE}",
    "Eins ist kein Text,\nzwei sind es  auch nicht. ",
    f"Vier Äpfel 😀. {NOTICE} Ende.",
    "kurz",
    NOTICE,
]
ALL = [("exact", {}), ("substring", {}), ("rules", {"min_words": 3, "min_letter_words": 0.5})]


def write(file: Path, documents: list[Any], key: str = "text") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps({key: text}, ensure_ascii=False) + "\n" for text in documents), encoding="utf-8")
    return file


def lines(file: Path) -> list[dict[str, Any]]:
    data = file.read_bytes()
    if file.suffix == ".gz":
        data = gzip.decompress(data)
    elif file.suffix == ".zst":
        data = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data)).read()
    return [json.loads(line) for line in data.decode("utf-8").splitlines()]


@pytest.fixture
def corpus(tmp_path) -> Path:
    return write(tmp_path / "in" / "a.jsonl", DOCUMENTS)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_what_is_left_and_what_is_said(corpus, tmp_path, suffix):
    output, dropped = tmp_path / "new" / f"clean{suffix}", tmp_path / "elsewhere" / f"dropped{suffix}"
    told: list[str] = []
    report = filter_corpus(corpus, output, ALL, dropped=dropped, tell=told.append)
    assert lines(output) == [{"text": text} for text in (*DOCUMENTS[:2], "Vier Äpfel 😀. Ende.")]
    assert [document.text for document in read_documents(output)] == [*DOCUMENTS[:2], "Vier Äpfel 😀. Ende."]
    file = str(corpus)
    assert lines(dropped) == [
        {"file": file, "line": 3, "filter": "exact", "reason": "duplicate", "repeats": f"{file}:1", "text": DOCUMENTS[2]},
        {"file": file, "line": 4, "filter": "substring", "reason": "cut", "text": f"{NOTICE} "},
        {"file": file, "line": 5, "filter": "rules", "reason": "min_words", "value": 1.0, "text": "kurz"},
        {"file": file, "line": 6, "filter": "substring", "reason": "nothing is left", "text": NOTICE},
    ]
    assert report.pop("seconds") > 0
    assert json.loads(Path(f"{output}.report.json").read_text(encoding="utf-8")) == report
    exact, substring, rules = report["filters"]
    assert (exact["documents_in"], exact["documents_out"], exact["dropped"]) == (6, 5, {"duplicate": 1})
    assert (substring["dropped"], substring["spans"], substring["bytes_cut"]) == ({"nothing is left": 1}, 1, len(NOTICE) + 1)
    assert substring["options"] == {"action": "span", "characters": 100, "gigabytes": 4.0}
    assert rules["dropped"] == {"min_words": 1} and rules["options"]["min_words"] == 3
    assert rules["bytes_out"] == report["bytes"] == sum(len(line["text"].encode()) for line in lines(output))
    assert report["read"]["bytes"] == sum(len(text.encode()) for text in DOCUMENTS)
    assert report["read"]["inputs"] == [{"name": file, "size": corpus.stat().st_size, "sha256": digest(corpus)}]
    assert report["output"] == {"name": output.name, "size": output.stat().st_size, "sha256": digest(output)}
    assert report["dropped"]["sha256"] == digest(dropped)
    assert told[1] == f"exact: 5 of 6 documents stay, {exact['bytes_out']} of {exact['bytes_in']} bytes (duplicate 1)"
    assert told[2].endswith("(nothing is left 1), 1 spans cut") and len(told) == 4
    assert sorted(path.name for path in output.parent.iterdir()) == sorted([output.name, f"{output.name}.report.json"])


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_the_same_for_any_number_of_workers(tmp_path):
    texts = [document.text[:2000] for document in read_documents(assets("text", "en_wikipedia_demo.jsonl.gz"))]
    near, parts = [text[50:] for text in texts[::3]], ["Neu. " + text[900:] for text in texts[1::3]]
    source = write(tmp_path / "a.jsonl", [*texts, *near, *texts[::7], *parts])
    chosen = [("exact", {}), ("near", {"threshold": 0.9}), ("substring", {"gigabytes": 0.001}), ("rules", {"min_words": 150})]
    found = []
    for workers in (1, 2, 5):
        report = filter_corpus(source, tmp_path / "out.jsonl", chosen, workers=workers, dropped=tmp_path / "dropped.jsonl.gz")
        del report["seconds"]
        found.append((report, (tmp_path / "out.jsonl").read_bytes(), (tmp_path / "dropped.jsonl.gz").read_bytes()))
    assert found[0] == found[1] == found[2]
    assert all(sum(entry["dropped"].values()) or entry.get("spans") for entry in found[0][0]["filters"])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(st.sampled_from("aö漢😀"), max_size=6), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6), st.integers(0, 6)), max_size=8),
    st.lists(st.booleans(), min_size=6, max_size=6),
)
def test_cut(tmp_path_factory, documents, places, stay):
    """Spans of documents with gaps between them, compared with strings."""
    texts = Texts.of(documents)
    expected, spans, behind = list(documents), [], {}
    for number, begin, end in sorted(places):
        if number < len(documents) and stay[number] and behind.get(number, -1) < begin < end <= len(documents[number]):
            behind[number] = end
            first = int(texts.begins[number])
            spans.append((number, *(first + len(documents[number][:at].encode()) for at in (begin, end))))
    for number, begin, end in reversed(spans):
        data = expected[number].encode()
        expected[number] = (data[: begin - texts.begins[number]] + data[end - texts.begins[number] :]).decode()
    is_kept = np.array(stay[: len(documents)])
    rows = np.array(spans, np.int64).reshape(-1, 3)
    rows[:, 0] = (np.cumsum(is_kept) - 1)[rows[:, 0]]
    left = cut(texts.where(is_kept), rows, tmp_path_factory.getbasetemp() / "cut")
    assert [left[number] for number in range(len(left))] == [text for text, is_in in zip(expected, is_kept) if is_in]


def test_every_kind_of_input(tmp_path):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"body": ["Tabelle eins", "doppelt"]}), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"body": "doppelt"}\n\n{"body": ""}\n{"body": "a\\ud800b"}'))
    (tmp_path / "c.txt").write_bytes("\ufeffeins\r\nzwei\n\n\ndoppelt\n".encode())
    report = filter_corpus(tmp_path, tmp_path / "out.jsonl", [("exact", {})], text_key="body", dropped=tmp_path / "gone.jsonl", workers=1)
    assert [line["body"] for line in lines(tmp_path / "out.jsonl")] == ["Tabelle eins", "doppelt", "a\ufffdb", "eins\nzwei"]
    assert {key: report["read"][key] for key in ("documents", "empty", "replaced_surrogates")} == {
        "documents": 6, "empty": 1, "replaced_surrogates": 1,
    }  # fmt: skip
    first = f"{tmp_path / 'a.parquet'}:2"
    assert [(line["line"], line["repeats"]) for line in lines(tmp_path / "gone.jsonl")] == [(1, first), (5, first)]


def test_dry_run_writes_nothing(corpus, tmp_path):
    report = filter_corpus(corpus, tmp_path / "out" / "clean.jsonl", ALL, dry_run=True)
    assert report["documents"] == 3 and "output" not in report
    assert not list((tmp_path / "out").iterdir())
    assert filter_corpus(corpus, tmp_path / "out" / "clean.jsonl", [("rules", {})], dry_run=True)["documents"] == 0


def test_bad_lines(corpus, tmp_path):
    with corpus.open("ab") as stream:
        stream.write(b'{"text": 3}\n{"text": "\xff"}\n{"text": "sieben acht neun"}\n')
    output = tmp_path / "clean.jsonl"
    with pytest.raises(DataError, match=r"a\.jsonl:7: the value of 'text' is a JSON number instead of a string; correct it or skip"):
        filter_corpus(corpus, output, ALL)
    assert not list(tmp_path.glob("clean*"))
    skipped: list[str] = []
    report = filter_corpus(corpus, output, ALL, on_error="skip", on_skip=skipped.append)
    assert len(skipped) == report["read"]["skipped"] == 2 and skipped[1].startswith(f"{corpus}:8: not UTF-8")
    assert [entry["line"] for entry in lines(Path(f"{output}.skipped.jsonl"))] == [7, 8]
    assert lines(output)[-1]["text"] == "sieben acht neun"
    filter_corpus(write(tmp_path / "b.jsonl", DOCUMENTS), output, ALL, on_error="skip")
    assert not Path(f"{output}.skipped.jsonl").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output": "clean.json"}, "clean.json has to end in .jsonl, .jsonl.gz, .jsonl.zst"),
        ({"output": "in/a.jsonl"}, "a.jsonl is an input and would be overwritten; choose another output"),
        ({"dropped": "in/a.jsonl"}, "a.jsonl is an input and would be overwritten; choose another output"),
        ({"dropped": "clean.jsonl"}, "what is kept and what is dropped cannot both go to"),
        ({"output": "folder.jsonl"}, "folder.jsonl is a folder; name a file"),
        ({"chosen": []}, "no filter is given; there are exact, near, perplexity, rules, substring"),
        ({"chosen": [("exat", {})]}, "no filter 'exat'. Did you mean 'exact'?"),
        ({"workers": 0}, "workers must be at least 1, not 0"),
        ({"text_documents": "pages"}, "text_documents must be one of blocks, lines, files, not 'pages'"),
        ({"on_error": "ignore"}, "on_error must be 'stop' or 'skip', not 'ignore'"),
    ],
)
def test_refused(corpus, tmp_path, change, message):
    (tmp_path / "folder.jsonl").mkdir()
    given = {"output": "clean.jsonl", "chosen": ALL, **change}
    given.update({key: tmp_path / given[key] for key in ("output", "dropped") if key in given})
    before = corpus.read_bytes()
    with pytest.raises(ConfigError) as caught:
        filter_corpus(corpus, given.pop("output"), given.pop("chosen"), **given)
    assert message in str(caught.value) and corpus.read_bytes() == before


def test_nothing_to_filter_and_nothing_left(tmp_path):
    output = tmp_path / "clean.jsonl"
    with pytest.raises(DataError, match="empty.jsonl: no document has text; nothing to filter"):
        filter_corpus(write(tmp_path / "empty.jsonl", ["", ""]), output, ALL)
    assert not Path(f"{output}.parts").exists()
    with pytest.raises(DataError, match=r"no document is left of 2 \(exact 1, rules 1\); loosen a filter \(--dry-run shows"):
        filter_corpus(write(tmp_path / "short.jsonl", ["kurz", "kurz"]), output, [("exact", {}), ("rules", {})])
    assert not output.exists() and not Path(f"{output}.report.json").exists()


def test_two_runs_do_not_meet(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(filter_work.locking, "PATIENCE", 0.1)
    with filter_work.Work(tmp_path / "clean.jsonl"):
        with pytest.raises(DataError, match="another process is writing this file; wait for it or choose another name"):
            filter_corpus(corpus, tmp_path / "clean.jsonl", ALL)


def test_a_full_disk(corpus, tmp_path, monkeypatch):
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", "disk")

    monkeypatch.setattr(filtering.os, "replace", full)
    with pytest.raises(DataError, match="cannot write disk: No space left on device"):
        filter_corpus(corpus, tmp_path / "clean.jsonl", ALL)
    assert not (tmp_path / "clean.jsonl").exists()


# ------------------------------------------------------------------------------------------------ kill -9


def killed(point: str, *arguments: Any) -> None:
    """Runs in a process that ends by SIGKILL at a call of something, before which ``count`` calls went through."""
    owner, name, count = {"read": (filter_work, "_add", 1), "filter": (filters, "run", 1), "kept": (filter_work.Work, "keep", 1),
                          "written": (filtering, "_losses", 0), "published": (filtering, "sync_folder", 0),
                          "renamed": (filtering.os, "replace", 5)}[point]  # fmt: skip
    inner, calls = getattr(owner, name), 0

    def call(*given: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > count:
            os.kill(os.getpid(), signal.SIGKILL)
        return inner(*given, **more)

    # Of files that are renamed the first four are the folder's own.
    child = os.fork()
    if not child:
        setattr(owner, name, call)
        filter_corpus(*arguments[:3], dropped=arguments[3], workers=1)
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("point", ["read", "filter", "kept", "written", "renamed", "published"])
def test_killed_it_continues_to_the_same_files(corpus, tmp_path, monkeypatch, point):
    write(tmp_path / "in" / "b.jsonl", ["Noch ein Text, der bleibt."])
    output, dropped = tmp_path / "out" / "clean.jsonl", tmp_path / "out" / "dropped.jsonl"
    arguments = (tmp_path / "in", output, ALL)
    expected = {path.name: path.read_bytes() for path in whole(arguments, tmp_path / "whole")}
    killed(point, *arguments, dropped)
    if point not in ("renamed", "published"):
        assert sorted(path.name for path in output.parent.iterdir()) == ["clean.jsonl.parts"]
    assert Path(f"{output}.report.json").exists() == (point == "published")
    ran: list[str] = []
    inner = filters.run
    monkeypatch.setattr(filters, "run", lambda name, *rest: ran.append(name) or inner(name, *rest))
    filter_corpus(*arguments, dropped=dropped, workers=1)
    assert {path.name: path.read_bytes() for path in output.parent.iterdir()} == expected
    again = {"read": 3, "filter": 2, "kept": 2}.get(point, 0)
    assert ran == ["exact", "substring", "rules"][3 - again :]


def whole(arguments: tuple[Any, ...], folder: Path) -> list[Path]:
    filter_corpus(arguments[0], folder / "clean.jsonl", arguments[2], dropped=folder / "dropped.jsonl", workers=1)
    return list(folder.iterdir())


@pytest.mark.parametrize("change", ["input", "options", "key"])
def test_what_is_left_of_another_run_is_not_used(corpus, tmp_path, change):
    output = tmp_path / "out" / "clean.jsonl"
    killed("written", corpus, output, ALL, tmp_path / "out" / "dropped.jsonl")
    chosen, key = list(ALL), "text"
    if change == "input":
        write(corpus, [*DOCUMENTS, "Noch ein Text, der bleibt."])
    elif change == "options":
        chosen = [("exact", {"compare": "bytes"}), *ALL[1:]]
    else:
        key = "body"
        write(corpus, DOCUMENTS, key)
    filter_corpus(corpus, output, chosen, text_key=key)
    filter_corpus(corpus, tmp_path / "fresh.jsonl", chosen, text_key=key)
    assert output.read_bytes() == (tmp_path / "fresh.jsonl").read_bytes()
    assert len(lines(output)) == (3 if change == "key" else 4)


# ------------------------------------------------------------------------------------------------ command line


def test_the_command_line(corpus, tmp_path, capsys):
    words = ["--input", str(corpus), "--output", str(tmp_path / "clean.jsonl"), "--workers", "1", "--filter", "exact", "compare=letters"]
    assert filter_command.main([*words, "--filter", "rules", "min_words=3"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("read: 6 documents, ") and out[1].startswith("exact: 5 of 6 documents stay, ")
    assert out[3].startswith(f"{tmp_path / 'clean.jsonl'}: 4 of 6 documents, ") and out[3].endswith(" s")
    assert filter_command.main([*words, "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("would be left: 5 of 6 documents, ")
    assert filter_command.main([*words, "compare"]) == 2
    assert capsys.readouterr().err == "--option compare: expected key=value.\n"
    with corpus.open("ab") as stream:
        stream.write(b"nonsense\n")
    assert filter_command.main([*words, "--on-error", "skip"]) == 0
    shown = capsys.readouterr()
    assert shown.err.startswith(f"skipped {corpus}:7: not JSON") and "1 bad lines skipped" in shown.out


def test_the_tool_and_the_verb_are_the_same(corpus, tmp_path):
    for command in ([str(ROOT / "tools" / "filter_corpus.py")], ["-m", "megatron_adapt", "filter"]):
        words = [sys.executable, *command, "--input", "-", "--output", "out/clean.jsonl", "--filter", "exact"]
        done = subprocess.run(words, cwd=tmp_path, input=corpus.read_bytes(), capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert len(lines(tmp_path / "out" / "clean.jsonl")) == 5
        shutil.rmtree(tmp_path / "out")
    shown = subprocess.run([*words[:4], "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "near: documents that say nearly the same as an earlier kept one, by MinHash; the first is kept." in shown
    assert "    threshold=0.8  Jaccard index from which on two documents are the same" in shown
