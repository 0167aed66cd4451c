"""The methods of vocab/methods against their published formulas, written out again without blocks or tricks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from harness import assets
from method_cases import CORPUS, WORDS, matrix, world, write_vectors
from vocabularies import write_tokenizer

from megatron_adapt.errors import ConfigError, DataError
from megatron_adapt.hf.tokenizer import Tokenizer
from megatron_adapt.vocab import methods, similarity, word_vectors
from megatron_adapt.vocab.helper import Helper
from megatron_adapt.vocab.material import Material
from megatron_adapt.vocab.matching import token_keys
from megatron_adapt.vocab.methods import align, omp
from megatron_adapt.vocab.pieces import Pieces


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    one, other = one.astype(np.float64), other.astype(np.float64)
    return (one @ other.T) / np.linalg.norm(one, axis=1)[:, None] / np.linalg.norm(other, axis=1)[None]


def simplex(scores: np.ndarray) -> np.ndarray:
    """Sparsemax by bisection on tau: the weights max(z - tau, 0) sum to 1."""
    low, high = scores.max() - 1, scores.max()
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(scores - middle, 0).sum() > 1 else (low, middle)
    return np.maximum(scores - low, 0)


def real_matrix(source: Tokenizer) -> torch.Tensor:
    """The embedding of a really trained model where there is one, cut to the source's size."""
    from megatron_adapt.hf.weights import WeightReader

    with WeightReader(assets("models", "en-novels-5m")) as reader:
        return reader.get("lm_head.weight")[: source.vocab_size].float()


@pytest.mark.parametrize("make", [matrix, real_matrix])
def test_clp_is_its_formula(make):
    here = world()
    maps = methods.build("clp", here.material(), here.options("clp") | {"variant": "original"})
    assert maps.output is maps.input
    helper = Helper.load(here.folder / "helper", here.target).input
    ids = here.material().matching.source_ids
    keys = token_keys(here.target).keys
    overlap = np.array([i for i in range(len(ids)) if ids[i] >= 0 and isinstance(keys[i], bytes)])
    old = make(here.source)
    new = maps.input.apply(old, seed=0)
    for token in here.material().new():
        s = cosines(helper[[token]], helper[overlap])[0]
        expected = (s / s.sum()) @ old[ids[overlap]].double().numpy()
        assert np.abs(new[token].double().numpy() - expected).max() <= 1e-5 * max(1, np.abs(expected).max())


@pytest.mark.parametrize("make", [matrix, real_matrix])
def test_focus_is_its_algorithm(make):
    here = world()
    maps = methods.build("focus", here.material(), {"variant": "original", "vectors": here.folder / "tokens.vec"})
    words, vectors = word_vectors.read_vectors(here.folder / "tokens.vec")
    vector_of = dict(zip(words, vectors))
    ids, tokens = here.material().matching.source_ids, here.target.tokens()
    anchors = [i for i in range(len(ids)) if ids[i] >= 0 and tokens[i] in vector_of and tokens[i] not in ("<s>", "</s>")]
    old = make(here.source)
    new = maps.input.apply(old, seed=0)
    composed = [i for i in here.material().new() if tokens[i] in vector_of]
    assert len(composed) > 200 and maps.input.drawn.sum() == len(here.material().new()) - len(composed)
    similar = cosines(np.stack([vector_of[tokens[i]] for i in composed]), np.stack([vector_of[tokens[i]] for i in anchors]))
    for token, scores in zip(composed, similar):
        expected = simplex(scores) @ old[ids[anchors]].double().numpy()
        assert np.abs(new[token].double().numpy() - expected).max() <= 1e-5 * max(1, np.abs(expected).max())


def test_focus_original_needs_the_published_vectors():
    with pytest.raises(ConfigError, match=r"variant original is defined by fastText vectors .* vectors=FILE.vec"):
        methods.build("focus", world().material(), {"variant": "original"})


def test_wechsel_is_its_formula():
    here = world()
    given = here.options("wechsel") | {"variant": "original", "k": 1000}  # all of them: of equal cosines no choice is right
    maps = methods.build("wechsel", here.material(), given)
    english, left = word_vectors.read_vectors(here.folder / "en.vec")
    german, right = word_vectors.read_vectors(here.folder / "de.vec")
    left, right = similarity.unit(left).astype(float), similarity.unit(right).astype(float)
    index, other = {word: i for i, word in enumerate(english)}, {word: i for i, word in enumerate(german)}
    cased = [(f(a), f(b)) for a, b in WORDS for f in (str, str.lower, lambda word: word[:1].upper() + word[1:])]
    pairs = [(index[a], other[b]) for a, b in dict.fromkeys(cased) if a in index and b in other]
    u, _, v = np.linalg.svd(left[[a for a, _ in pairs]].T @ right[[b for _, b in pairs]])

    def tokens_of(tokenizer, words, vectors):
        total = np.zeros((tokenizer.vocab_size, vectors.shape[1]))
        for rank, word in enumerate(words, 1):
            for spelled in (word, " " + word):
                for token in tokenizer.encode([spelled])[0]:
                    total[token] += vectors[rank - 1] / rank
        return total

    sources, targets = tokens_of(here.source, english, left @ (u @ v)), tokens_of(here.target, german, right)
    have = np.flatnonzero(np.abs(sources).sum(1))
    old = matrix(here.source)
    new = maps.input.apply(old, seed=0)
    special = {here.target.bos_id, here.target.eos_id}
    wanted = [i for i in np.flatnonzero(np.abs(targets).sum(1)) if i not in special]
    assert len(wanted) > 10
    for token in wanted:
        scores = cosines(targets[[token]], sources[have])[0]
        weights = np.exp(scores / 0.1) / np.exp(scores / 0.1).sum()
        expected = weights @ old[have].double().numpy()
        assert np.abs(new[token].double().numpy() - expected).max() <= 2e-4


def test_omp_finds_sparse_combinations():
    generator = np.random.default_rng(0)
    anchors = generator.normal(size=(80, 40)).astype(np.float32)
    truth = np.zeros((20, 80))
    for row in truth:
        row[generator.choice(80, 4, replace=False)] = generator.choice([-2, -1, 1, 2], 4)
    rows, columns, values = omp.pursue((truth @ anchors).astype(np.float32), anchors, 12, 0.0, 1e-6, True)
    found = np.zeros_like(truth)
    found[rows, columns] = values
    assert (np.abs(found - truth).max(1) < 1e-4).mean() >= 0.9


@pytest.mark.parametrize("ridge", [0.0, 0.01])
def test_omp_survives_duplicates_and_few_anchors(ridge):
    generator = np.random.default_rng(1)
    anchors = np.repeat(generator.normal(size=(5, 16)), 3, axis=0).astype(np.float32)
    vectors = generator.normal(size=(10, 16)).astype(np.float32)
    rows, columns, values = omp.pursue(vectors, anchors, 15, ridge, 0.0, True)
    assert np.isfinite(values).all() and np.abs(values).max() < 100
    kept = omp._distinct(anchors, methods.read_options("omp", {"helper": "x", "weakest": 0}))
    assert kept.tolist() == [True, False, False] * 5
    rebuilt = np.zeros((10, 16))
    np.add.at(rebuilt, rows, values[:, None] * anchors[columns])
    best = np.stack([np.linalg.lstsq(anchors.T, x, rcond=None)[0] @ anchors for x in vectors.astype(float)])
    assert np.allclose(rebuilt, best, atol=1e-3) if ridge == 0 else np.linalg.norm(rebuilt) <= np.linalg.norm(best) + 1e-6


def test_focus_is_the_package_of_its_authors(monkeypatch):
    """The rows that deepfocus (pip install deepfocus, which compiles fastText) makes of the same vectors."""
    package = pytest.importorskip("deepfocus.focus", reason="deepfocus is not installed: the formula is checked above")
    from transformers import PreTrainedTokenizerFast

    here = world()
    tokenizers = [PreTrainedTokenizerFast(tokenizer_file=str(here.folder / name / "tokenizer.json")) for name in ("target", "source")]
    words, vectors = word_vectors.read_vectors(here.folder / "tokens.vec")
    monkeypatch.setattr(package, "load_target_token_embedding", lambda **_: dict(zip(words, vectors)))
    overlap = package.get_overlapping_tokens(*tokenizers, match_symbols=False, exact_match_all=True, fuzzy_match_all=False)[0]
    theirs = {entry.target.id: entry.source[0].id for entry in overlap.values()}
    old = matrix(here.source)
    expected = package.FOCUS(*tokenizers, old, fasttext_model_path="x", verbosity="silent")
    # its matching takes some tokens for others, so its pairs are given to ours
    material = here.material()
    material.matching.source_ids[:] = -1
    material.matching.source_ids[list(theirs)] = list(theirs.values())
    maps = methods.build("focus", material, {"variant": "original", "vectors": here.folder / "tokens.vec"})
    fixed = torch.from_numpy(~maps.input.drawn)
    assert fixed.sum() > 600
    assert (maps.input.apply(old, seed=0)[fixed] - expected[fixed]).abs().max() <= 1e-5 * expected.abs().max()


def test_clipped_and_soft_weights():
    vectors, anchors = np.array([[1.0, 0.0], [-1.0, 0.0]]), np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    rows, columns, weights = similarity.weights_over(vectors, anchors, "clip", 2)
    half = math.sqrt(0.5)
    assert list(zip(rows, columns)) == [(0, 0), (0, 1), (1, 2)]
    assert np.allclose(weights, [1 / (1 + half), half / (1 + half), 1])
    rows, columns, weights = similarity.weights_over(vectors[:1], anchors, "softmax", 2, 0.5)
    expected = np.exp([2, 2 * half])
    assert columns.tolist() == [0, 1] and np.allclose(weights, expected / expected.sum())


def test_vectors_of_tokens_in_the_same_company_are_alike():
    generator = np.random.default_rng(3)
    # 0 and 1 stand between the same neighbours, 2 between others.
    documents = []
    for _ in range(400):
        documents.append(np.array([10 + generator.integers(5), generator.integers(2), 15 + generator.integers(5)]))
        documents.append(np.array([20 + generator.integers(5), 2, 25 + generator.integers(5)]))
    vectors, counts = word_vectors.from_corpus(documents, 40, 8, 5, 3, seed=0)
    similar = cosines(vectors[[0]], vectors[[1, 2]])[0]
    assert similar[0] > 0.9 and similar[1] < 0.3
    assert counts[:3].sum() == 800 and (vectors[30:] == 0).all()
    assert (word_vectors.from_corpus(documents, 40, 8, 5, 3, seed=0)[0] == vectors).all()
    assert (word_vectors.from_corpus(documents, 40, 8, 5, 1000, seed=0)[0] == 0).all()


def test_broken_vector_files(tmp_path):
    for text, message in (
        ("der 1 2\n", r"v.vec:1: expected the number of words and of dimensions"),
        ("1 2\nder 1\n", r"v.vec:2: expected a word and 2 finite numbers"),
        ("1 2\nder 1 nan\n", r"v.vec:2: expected a word and 2 finite numbers"),
        ("1 2\n", r"v.vec holds no vectors"),
    ):
        (tmp_path / "v.vec").write_text(text)
        with pytest.raises(DataError, match=message):
            word_vectors.read_vectors(tmp_path / "v.vec")
    (tmp_path / "v.vec").write_bytes(b"1 2\n\xff 1 2\n")
    with pytest.raises(DataError, match=r"v.vec:2: not UTF-8"):
        word_vectors.read_vectors(tmp_path / "v.vec")
    with pytest.raises(ConfigError, match="cannot read the vectors .*none.vec: No such file"):
        word_vectors.read_vectors(tmp_path / "none.vec")
    write_vectors(tmp_path / "v.vec", ["a b", "c"], np.random.default_rng(0), 2)
    assert word_vectors.read_vectors(tmp_path / "v.vec")[0] == ["a b", "c"]
    with pytest.raises(DataError, match="holds no vectors of the words looked for"):
        word_vectors.read_vectors(tmp_path / "v.vec", ["x"])


PAIRS = [("gpt2", "de-32k"), ("mistral-7b-v0.1", "de-bpe-50k"), ("gpt2", "ar-32k"), ("mistral-7b-v0.1", "ar-32k")]


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_pieces_make_up_the_bytes_of_real_tokens(source, target):
    old, new = Tokenizer.load(assets("tokenizers", source)), Tokenizer.load(assets("tokenizers", target))
    pieces, keys = Pieces(old, token_keys(old)), token_keys(new).keys
    ordinary = [key for key in keys if isinstance(key, bytes)][::7]
    cut = [pieces.of(key) for key in ordinary]
    assert all(ids for ids in cut)
    assert [b"".join(map(pieces.bytes_of, ids)) for ids in cut] == ordinary
    assert max(map(len, cut)) > 3


def test_pieces_of_half_a_character_and_of_words():
    source = Tokenizer.load(assets("tokenizers", "mistral-7b-v0.1"))
    pieces, tokens = Pieces(source, token_keys(source)), source.tokens()
    assert [tokens[i] for i in pieces.of("ä".encode()[:1])] == ["<0xC3>"]
    assert [tokens[i] for i in pieces.of(" Straße".encode())] == ["▁Stra", "ße"]
    assert [tokens[i] for i in pieces.of("Straße".encode())] == ["Str", "a", "ße"] or tokens[pieces.of(b"Stra")[0]][0] != "▁"


def test_a_vocabulary_without_a_byte_has_no_pieces(tmp_path):
    source = Tokenizer.load(write_tokenizer(tmp_path / "s", ["a", "b", "ab", "▁"], "sentencepiece", {}))
    pieces = Pieces(source, token_keys(source))
    assert pieces.of(b"ac") is None and pieces.of(b"") is None
    assert pieces.of(b" ab") in ([3, 2], [3, 0, 1])


def test_wordpiece_is_cut_into_continuations(tmp_path):
    source = Tokenizer.load(write_tokenizer(tmp_path / "w", ["[UNK]", "Haus", "##tür", "##Haus"], "wordpiece", {"unk": "[UNK]"}))
    pieces = Pieces(source, token_keys(source))
    assert pieces.of(" Haustür".encode()) == [1, 2] and pieces.of("Haustür".encode()) == [3, 2]


def brute_force(source: Tokenizer, target: Tokenizer, texts: list[str]) -> dict[int, dict[int, float]]:
    """For every target token: the uniform weights of source tokens over the bytes of its occurrences."""
    old, new = align.byte_lengths(token_keys(source)), align.byte_lengths(token_keys(target))
    totals: dict[int, dict[int, float]] = {}
    for text in texts:
        (a,), (b,) = source.encode([text]), target.encode([text])
        owner = [i for i, token in enumerate(a) for _ in range(old[token])][old[a].sum() - len(text.encode()) :]
        at = 0
        for token in b:
            inside = sorted(set(owner[at : at + new[token]]))
            at += new[token]
            for piece in inside:
                row = totals.setdefault(int(token), {})
                row[int(a[piece])] = row.get(int(a[piece]), 0) + 1 / len(inside)
    return {token: {i: w / sum(row.values()) for i, w in row.items()} for token, row in totals.items()}


def test_align_counts_what_stands_in_the_same_place():
    here = world()
    texts = here.german[:12]
    material = here.material(texts=lambda: texts)
    maps = methods.build("align", material, {"variant": "original", "least": 1})
    expected = brute_force(here.source, here.target, texts)
    new = [int(token) for token in material.new() if int(token) in expected]
    assert len(new) == maps.report["aligned_tokens"] > 200
    for token in new:
        entries = slice(maps.input.indptr[token], maps.input.indptr[token + 1])
        found = dict(zip(maps.input.source_ids[entries].tolist(), maps.input.weights[entries].tolist()))
        assert found.keys() == expected[token].keys()
        assert all(abs(found[i] - weight) < 1e-5 for i, weight in expected[token].items())


def test_align_warns_of_text_in_another_language():
    import json

    english = [json.loads(line)["text"] for line in open(CORPUS / "en.jsonl")][:20]
    maps = methods.build("align", world().material(texts=lambda: ["7 8 9"]), {})
    assert "is it in the target language" in maps.warnings[0]
    assert methods.build("focus", world().material(texts=lambda: english), {}).warnings


def test_a_helper_with_another_vocabulary(tmp_path):
    here = world()
    with pytest.raises(ConfigError, match="the helper must have the target's tokenizer .* first id .* in the helper, .* in the target"):
        methods.build("clp", Material(here.source, here.source), here.options("clp"))
    with pytest.raises(ConfigError, match="none is expected|no config.json|neither|not"):
        Helper.load(tmp_path, here.target)


def test_a_tied_helper_serves_both_matrices():
    here = world()
    maps = methods.build("omp", here.material(), {"helper": here.folder / "tied-helper"})
    assert maps.output is maps.input
    maps = methods.build("omp", here.material(), here.options("omp"))
    assert maps.output is not maps.input and maps.report["input"]["largest_coefficient"] < 10


def test_subwords_count_from_either_end():
    here = world()
    maps = methods.build("subwords", here.material(), {"input": "last", "output": "first", "norm": "none"})
    pieces, keys = Pieces(here.source, token_keys(here.source)), token_keys(here.target).keys
    token = max(here.material().new(), key=lambda i: len(pieces.of(keys[i]) or ()) if isinstance(keys[i], bytes) else 0)
    ids = pieces.of(keys[token])
    old = matrix(here.source)
    assert maps.input.apply(old, seed=0)[token].equal(old[ids[-1]]) and maps.output.apply(old, seed=0)[token].equal(old[ids[0]])
    tied = methods.build("subwords", here.material(tied=True), {"norm": "none"})
    assert torch.allclose(tied.input.apply(old, seed=0)[token], old[ids].mean(0), atol=1e-5)
    assert "one matrix" in tied.warnings[0]


def test_norms_of_composed_rows():
    here = world()
    old = matrix(here.source)
    mean = old.mean(0)
    rows = {}
    for norm in ("none", "length", "deviation", "clip"):
        token_map = methods.build("subwords", here.material(), {"input": "uniform", "norm": norm}).input
        composed = torch.from_numpy(~token_map.copies() & ~token_map.drawn)
        rows[norm] = token_map.apply(old, seed=0)[composed]
    weights = [(token_map.source_ids[slice(*token_map.indptr[i : i + 2])], token_map.weights[slice(*token_map.indptr[i : i + 2])])
               for i in np.flatnonzero(composed.numpy())]
    lengths = torch.stack([torch.from_numpy(w) @ old[ids].norm(dim=1) for ids, w in weights])
    deviations = torch.stack([torch.from_numpy(w) @ (old[ids] - mean).norm(dim=1) for ids, w in weights])
    assert torch.allclose(rows["length"].norm(dim=1), lengths, rtol=1e-4)
    assert torch.allclose((rows["deviation"] - mean).norm(dim=1), deviations, rtol=1e-3)
    assert (rows["clip"].norm(dim=1) <= lengths * (1 + 1e-5)).all()
    assert torch.allclose(rows["clip"], rows["none"], atol=1e-4)  # sums with positive weights are never longer


@pytest.mark.parametrize(("distribution", "expected"), [
    ("normal", 0.5), ("small_init", math.sqrt(2 / (5 * 16))), ("xavier", math.sqrt(2 / (16 + 900))), ("wang", 2 / 4 / math.sqrt(16)),
])  # fmt: skip
def test_distributions(distribution, expected):
    token_map = methods.build("random", world().material(), {"distribution": distribution, "std": 0.5}).input
    rows = token_map.apply(matrix(world().source), seed=0)
    assert abs(float(rows.std()) / expected - 1) < 0.03 and abs(float(rows.mean())) < expected / 20


def test_dictionary_translates():
    here = world()
    maps = methods.build("dictionary", here.material(), here.options("dictionary") | {"norm": "none"})
    words = {token: index for index, token in enumerate(here.target.tokens())}
    token = words["Ġnicht"]
    assert here.material().matching.source_ids[token] < 0
    pieces = Pieces(here.source, token_keys(here.source)).of(b" not")
    old = matrix(here.source)
    assert torch.allclose(maps.input.apply(old, seed=0)[token], old[pieces].mean(0), atol=1e-5)
    original = methods.build("dictionary", here.material(), here.options("dictionary") | {"variant": "original"})
    assert original.input.counts()["drawn"] > 800 and original.report["pairs_used"] >= 3
    mean = methods.build("dictionary", here.material(), here.options("dictionary") | {"rest": "mean"}).input
    assert mean.spread == 0 and mean.drawn.sum() > 100


def test_broken_dictionaries(tmp_path):
    here = world()
    for text, error, message in (
        ("the der\n", DataError, r"d.tsv:1: expected two words with a tab"),
        ("# nothing\n\n", DataError, "d.tsv holds no pair of words"),
        ("zzz\tqqq\n", ConfigError, "none of 2 pairs has a target word that is one token .* Is the order source, tab, target"),
    ):
        (tmp_path / "d.tsv").write_text(text)
        with pytest.raises(error, match=message):
            methods.build("dictionary", here.material(), {"file": tmp_path / "d.tsv"})
