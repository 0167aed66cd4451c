"""What was wanted of the figures in results.json of first_call.py, beside what was measured."""

from __future__ import annotations

from typing import Any, Callable, Iterator, NamedTuple

Results = dict[str, dict[str, Any]]


class Goal(NamedTuple):
    text: str
    least: float
    found: Callable[[Results], float | None]


def of(section: str, key: str) -> Callable[[Results], float | None]:
    return lambda results: results.get(section, {}).get(key)


def over_the_faster_peer(results: Results) -> float | None:
    ours = results.get("llama_1b_packed_te", {}).get("tokens_per_second")
    peers = [value for key, value in results.get("llama_1b_packed_transformers", {}).items() if key.endswith("tokens_per_second")]
    return ours / max(peers) if ours and peers else None


GOALS = (
    Goal("Llama-3.1-8B's shape, 8,192 tokens, bf16: share of the measured matrix rate", 0.60, of("llama_8b_te", "share_of_matmul")),
    Goal("the same in fp8: tokens/s", 15_000, of("llama_8b_fp8", "tokens_per_second_at_full_depth")),
    Goal("Llama-3.2-1B's shape, packed: times the faster of transformers, eager and compiled", 1.5, over_the_faster_peer),
    Goal("Mistral-7B's shape: bf16-true, times bf16-mixed", 1.0, of("mistral_7b_te", "times_bf16_mixed")),
    Goal("embedding and output alone: times the full phase", 1.3, of("embedding_only_te", "times_full")),
    Goal("packed chats: times the useful tokens of padded ones", 2.0, of("packed_chat_te", "times_padded")),
)
NEAR = 0.10  # by how much check's estimate of the memory may be off


def rows(results: Results) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every measured model, those within other sections' results as well."""
    for name, result in results.items():
        if "estimated_to_measured" in result:
            yield name, result
        for part, inner in result.items():
            if isinstance(inner, dict) and "estimated_to_measured" in inner:
                yield f"{name}, {part}", inner


def verdicts(results: Results) -> Iterator[str]:
    """A line for each goal and for each estimate of memory."""
    for goal in GOALS:
        value = goal.found(results)
        if value is not None:
            outcome = "met" if value >= goal.least else "not met"
            yield f"{goal.text}: {value:,.5g}, wanted {goal.least:,.5g}: {outcome}"
    for name, row in rows(results):
        ratio = row["estimated_to_measured"]
        outcome = "met" if abs(ratio - 1) <= NEAR else "not met"
        yield f"memory of {name}: {row['estimated_gb']:.1f} GB estimated, {row['memory_gb']:.1f} measured ({ratio:.2f}): {outcome}"
