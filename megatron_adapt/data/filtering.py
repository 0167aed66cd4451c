"""A corpus through filters, one behind another: OUTPUT has the documents that are left, in the order of the input.

All documents are read once into OUTPUT.parts (``filter_work.py``) and mapped from there: what needs memory is the filters (each
file of ``filters/`` says how much) and some 60 bytes a document here. The disk holds the text once, and once more for each
filter that cuts. Nothing depends on the number of workers, and nothing appears under a final name before all is written.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from megatron_adapt import __version__, options
from megatron_adapt.data import filters
from megatron_adapt.data.assembly import sync_folder
from megatron_adapt.data.corpus import check_on_error
from megatron_adapt.data.filter_lines import write_lines
from megatron_adapt.data.filter_work import Reading, Work, identity
from megatron_adapt.data.held_out import writing
from megatron_adapt.data.parts import write_atomically
from megatron_adapt.data.sources import TEXT_DOCUMENTS, Paths, find_repeatable, find_sources, is_stream
from megatron_adapt.data.texts import Outcome, Texts, cut
from megatron_adapt.errors import ConfigError, DataError

REPORT, SKIPPED = ".report.json", ".skipped.jsonl"
_OUTPUTS = (".jsonl", ".jsonl.gz", ".jsonl.zst")


@dataclass(frozen=True)
class Stage:
    """A filter that is through.

    Attributes:
        texts, numbers: what came to it: documents, and their numbers [documents] in the input.
        entry: what the report says about it.
    """

    name: str
    texts: Texts
    numbers: np.ndarray
    outcome: Outcome
    entry: dict[str, Any]


def filter_corpus(
    paths: Paths,
    output: str | Path,
    chosen: Sequence[tuple[str, Mapping[str, Any]]],
    *,
    text_key: str = "text",
    text_documents: str = "blocks",
    on_error: str = "stop",
    max_documents: int | None = None,
    against: Sequence[Reading] = (),
    dropped: str | Path | None = None,
    dry_run: bool = False,
    workers: int | None = None,
    on_skip: Callable[[str], None] | None = None,
    tell: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Write the documents that filters leave to ``output``, and last what was done to OUTPUT.report.json.

    Args:
        paths: files, folders, globs, "-" (JSON lines on standard input), "hf:NAME[@CONFIG][:SPLIT]".
        output: a .jsonl, .jsonl.gz or .jsonl.zst; each line an object with nothing but ``text_key``.
        chosen: (name, options) of filters in the order in which they are applied; each sees what those before it left.
        on_error: "stop" at a bad line, or "skip" it and write it to OUTPUT.skipped.jsonl.
        max_documents: only the first so many that have text come to the filters.
        against: other corpora. Filters that compare documents take them for text that stands before: what repeats it is dropped or
            cut. Of them nothing is dropped, and nothing written.
        dropped: a file of the same kinds for what is dropped or cut, and why.
        dry_run: nothing is written but the folder of parts, which is removed.
        workers: threads or processes, None: one for each core.
        tell: receives a line about each thing that is done.

    Returns:
        The content of OUTPUT.report.json, and "seconds" beside: equal input, equal files.

    Raises:
        ConfigError: a filter, an option or a path that cannot be.
        DataError: bad input, no document at all, none that is left, a full disk.
    """
    started = time.monotonic()
    check_on_error(on_error)
    if text_documents not in TEXT_DOCUMENTS:
        raise ConfigError(f"text_documents must be one of {', '.join(TEXT_DOCUMENTS)}, not {text_documents!r}")
    if workers is not None and workers < 1:
        raise ConfigError(f"workers must be at least 1, not {workers}")
    output, dropped = Path(output), None if dropped is None else Path(dropped)
    run = [(name, filters.read_options(name, given)) for name, given in chosen]
    if not run:
        raise ConfigError(f"no filter is given; there are {', '.join(filters.names())}")
    own = Reading(find_sources(paths), text_key, text_documents, on_error, max_documents)
    others = [replace(other, paths=find_repeatable(other.paths)) for other in against]
    _check_others(own, others, [name for name, _ in run])
    _check_paths([name for each in (*others, own) for name in each.paths], output, dropped)
    tell = tell or (lambda line: None)
    with Work(output) as work:
        *known, read = work.read([*others, own], on_skip)
        tell(f"read: {read['documents']} documents, {read['bytes']} bytes of text{_beside(known)}")
        threads = workers or len(os.sched_getaffinity(0))
        stages, texts = _run(work, run, threads, sum(facts["documents"] for facts in known), tell)
        report = {
            "megatron_adapt": __version__,
            "versions": {"numpy": np.__version__, "python": platform.python_version()},
            "reading": own.settings(),
            "read": read,
            **({"against": [{"reading": other.settings(), "read": facts} for other, facts in zip(others, known)]} if others else {}),
            "filters": [stage.entry for stage in stages],
            "documents": len(texts),
            "bytes": texts.bytes,
        }
        if not dry_run:
            if not len(texts):
                counts = ", ".join(f"{stage.name} {sum(stage.entry['dropped'].values())}" for stage in stages)
                raise DataError(
                    f"no document is left of {read['documents']} ({counts}); loosen a filter (--dry-run shows what each one drops)"
                )
            report = _write(work, output, dropped, text_key, stages, texts, report)
    return {**report, "seconds": time.monotonic() - started}


def _check_others(own: Reading, others: Sequence[Reading], chosen: Sequence[str]) -> None:
    if others and not any(filters.compares(name) for name in chosen):
        able = [name for name in filters.names() if filters.compares(name)]
        raise ConfigError(
            f"nothing is compared with the other text: of the filters {', '.join(able)} compare documents, not {', '.join(chosen)}"
        )
    for other in others:
        for name in set(map(_place, own.paths)) & set(map(_place, other.paths)):
            raise ConfigError(f"{name} is among the input and among what this is compared with: all of it would be dropped")


def _place(name: str) -> str:
    return name if is_stream(name) else str(Path(name).resolve())


def _beside(known: Sequence[Mapping[str, Any]]) -> str:
    documents, size = (sum(facts[key] for facts in known) for key in ("documents", "bytes"))
    return f", and {documents} documents, {size} bytes to compare with" if known else ""


def _check_paths(names: list[str], output: Path, dropped: Path | None) -> None:
    for path in (output, *([dropped] if dropped is not None else ())):
        if not path.name.endswith(_OUTPUTS) or path.name in _OUTPUTS:
            raise ConfigError(f"{path} has to end in {', '.join(_OUTPUTS)}")
        if path.is_dir():
            raise ConfigError(f"{path} is a folder; name a file")
    if dropped is not None and dropped.resolve() == output.resolve():
        raise ConfigError(f"what is kept and what is dropped cannot both go to {output}")
    written = {path.resolve() for path in (output, dropped, Path(f"{output}{SKIPPED}")) if path is not None}
    for name in names:
        if not is_stream(name) and Path(name).resolve() in written:
            raise ConfigError(f"{name} is an input and would be overwritten; choose another output")


def _run(
    work: Work, run: list[tuple[str, Any]], threads: int, known: int, tell: Callable[[str], None]
) -> tuple[list[Stage], Texts]:
    """All filters, and what is left; without the first ``known`` documents, which stay until the end."""
    texts = work.texts()
    numbers = np.arange(len(texts))
    stages: list[Stage] = []
    for number, (name, chosen) in enumerate(run):
        files = {key: identity(file) for key, file in options.paths(chosen).items()}
        settings = {field.name: getattr(chosen, field.name) for field in fields(chosen)}
        settings = {key: str(value) if isinstance(value, Path) else value for key, value in settings.items()}
        key = json.loads(json.dumps([name, settings, files]))
        outcome = work.result(number, key)
        if outcome is None:
            outcome = filters.run(name, texts, chosen, threads, known)
            work.keep(number, key, outcome)
        is_kept = outcome.reasons < 0
        left = texts.where(is_kept)
        if outcome.spans is not None and len(outcome.spans):
            spans = outcome.spans.copy()
            spans[:, 0] = (np.cumsum(is_kept) - 1)[spans[:, 0]]
            file = work.cut_file(number)
            with writing(file):
                left = cut(left, spans, file)
        counts = np.bincount(outcome.reasons[~is_kept], minlength=len(outcome.names)).tolist()
        entry = {
            "filter": name,
            "options": settings,
            **{f"documents_{at}": len(found) - known for at, found in (("in", texts), ("out", left))},
            **{f"bytes_{at}": found.part(known).bytes for at, found in (("in", texts), ("out", left))},
            "dropped": {reason: count for reason, count in zip(outcome.names, counts) if count},
            **outcome.facts,
        }  # fmt: skip
        stages.append(Stage(name, texts, numbers, outcome, entry))
        tell(_line(entry))
        texts, numbers = left, numbers[is_kept]
    return stages, texts.part(known)


def _line(entry: dict[str, Any]) -> str:
    reasons = ", ".join(f"{reason} {count}" for reason, count in entry["dropped"].items())
    spans = f", {entry['spans']} spans cut" if entry.get("spans") else ""
    return (
        f"{entry['filter']}: {entry['documents_out']} of {entry['documents_in']} documents stay, {entry['bytes_out']} of "
        f"{entry['bytes_in']} bytes{f' ({reasons})' if reasons else ''}{spans}"
    )


def _write(
    work: Work, output: Path, dropped: Path | None, text_key: str, stages: list[Stage], texts: Texts, report: dict[str, Any]
) -> dict[str, Any]:
    """All is on the disk before the first name changes; the report goes first and comes back last."""
    made: dict[Path, Path] = {output: work.folder / "output"}
    kept = ({text_key: texts[number]} for number in range(len(texts)))
    report = {**report, "output": write_lines(made[output], output.name, kept)}
    if dropped is not None:
        made[dropped] = work.folder / "dropped"
        with writing(dropped.parent):
            dropped.parent.mkdir(parents=True, exist_ok=True)
        report["dropped"] = write_lines(made[dropped], dropped.name, _losses(work, stages))
    side, final = Path(f"{output}{SKIPPED}"), Path(f"{output}{REPORT}")
    for path in (final, side):
        with writing(path):
            path.unlink(missing_ok=True)
    if (work.folder / "skipped.jsonl").stat().st_size:
        made[side] = work.folder / "skipped.jsonl"
    for target, source in made.items():
        with writing(target):
            os.replace(source, target)
    with writing(final):
        write_atomically(final, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
        sync_folder(output.parent)
    return report


def _losses(work: Work, stages: list[Stage]) -> Iterator[dict[str, Any]]:
    """What was dropped or cut, in the order of the input."""
    of: list[np.ndarray] = []  # [.., 4]: number in the input, stage, document there, span or -1
    for at, stage in enumerate(stages):
        gone = np.flatnonzero(stage.outcome.reasons >= 0)
        of.append(np.stack([stage.numbers[gone], np.full_like(gone, at), gone, np.full_like(gone, -1)], axis=1))
        if stage.outcome.spans is not None:
            documents = stage.outcome.spans[:, 0]
            each = np.arange(len(documents))
            of.append(np.stack([stage.numbers[documents], np.full_like(documents, at), documents, each], axis=1))
    rows = np.concatenate(of)
    place = work.places()
    for number, at, document, span in rows[np.lexsort(rows.T[::-1])].tolist():
        stage, outcome = stages[at], stages[at].outcome
        file, line = place(number)
        entry: dict[str, Any] = {"file": file, "line": line, "filter": stage.name}
        if span >= 0:
            _, begin, end = outcome.spans[span].tolist()  # type: ignore[index]
            text = stage.texts.text[begin:end].tobytes().decode("utf-8")
            yield {**entry, "reason": "cut", "text": text}
            continue
        entry["reason"] = outcome.names[outcome.reasons[document]]
        if outcome.values is not None and np.isfinite(outcome.values[document]):
            entry["value"] = float(outcome.values[document])
        if outcome.repeats is not None and outcome.repeats[document] >= 0:
            entry["repeats"] = "{}:{}".format(*place(int(stage.numbers[outcome.repeats[document]])))
        yield {**entry, "text": stage.texts[document]}
