"""Vocabularies: read without a library, compared by hash first, aligned by token text, rows gathered lazily."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consilience import Recipe
from consilience.checkpoints.open import open_checkpoint
from consilience.checkpoints.sources import Stored
from consilience.errors import CheckpointError, Problems, RecipeError
from consilience.merging.chat_templates import built_in_templates, choose_template, model_template, template_problem
from consilience.merging.memory import InMemory
from consilience.merging.request import TokenizerRule, TokenRule
from consilience.merging.tokenizer_files import TokenizerContent, read_tokenizer, tokenizer_hash
from consilience.merging.vocabulary import is_vocabulary_name, read_vocabulary, vocabulary_problems
from consilience.merging.vocabulary_align import Alignment, align
from consilience.merging.vocabulary_rows import AVERAGE, PADDING, ZERO, RowMap, Rows
from tests.merging.checkpoints import llama_tensors, read_weights, tokenizer, write_model

# reading


def write(folder: Path, **files: Any) -> tuple[Path, list[str]]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder, sorted(p.name for p in folder.iterdir())


def test_vocab_txt(tmp_path: Path) -> None:
    content = read_tokenizer(*write(tmp_path, vocab__txt="[PAD]\n[UNK]\nwort\n##e\n"))
    assert content.kind == "WordPiece"
    assert content.tokens == {"[PAD]": 0, "[UNK]": 1, "wort": 2, "##e": 3}


def test_vocab_json_with_merges_and_added_tokens(tmp_path: Path) -> None:
    vocabulary = {"a": 0, "b": 1, "ab": 2, "<eos>": 3}
    content = read_tokenizer(
        *write(
            tmp_path, vocab__json=vocabulary, merges__txt="#version: 0.2\na b\n", added_tokens__json={"<x>": 4, "a": 0}
        )
    )
    assert content.kind == "BPE" and content.merges == [("a", "b")]
    assert content.tokens == {**vocabulary, "<x>": 4} and list(content.added) == ["<x>"]


def test_tokenizer_json_of_each_kind(tmp_path: Path) -> None:
    added = [{"id": 2, "content": "<s>", "special": True}]
    unigram = {"model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.5]]}, "added_tokens": added}
    content = read_tokenizer(*write(tmp_path / "u", tokenizer__json=unigram))
    assert content.tokens == {"<unk>": 0, "a": 1, "<s>": 2} and content.scores == {"<unk>": 0.0, "a": -1.5}
    bpe = {"model": {"vocab": {"a": 0, "b": 1, "ab": 5}, "merges": [["a", "b"]]}}
    content = read_tokenizer(*write(tmp_path / "b", tokenizer__json=bpe))
    assert (content.kind, content.merges, content.tokens["ab"]) == ("BPE", [("a", "b")], 5)


def test_added_tokens_of_the_tokenizer_config_count(tmp_path: Path) -> None:
    decoder = {"added_tokens_decoder": {"3": {"content": "<pad>", "special": True}}}
    folder, names = write(tmp_path, tokenizer__json=tokenizer(["a", "b", "c"]), tokenizer_config__json=decoder)
    content = read_tokenizer(folder, names)
    assert content.tokens["<pad>"] == 3 and content.added["<pad>"]["special"] is True


def test_sentencepiece_alone_is_refused_with_the_way_out(tmp_path: Path) -> None:
    folder, names = write(tmp_path, tokenizer__model="\x0a\x0b")
    assert tokenizer_hash(folder, names) != ""
    with pytest.raises(CheckpointError, match=r"only a sentencepiece model \(tokenizer.model\).*save_pretrained"):
        read_tokenizer(folder, names)


@pytest.mark.parametrize("text", ["[", "{}", '{"model": {"vocab": {"a": "x"}}}', '{"model": {"vocab": 3}}'])
def test_broken_tokenizer_json_is_a_checkpoint_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        read_tokenizer(*write(tmp_path, tokenizer__json=text))


@pytest.mark.parametrize(
    ("name", "vocabulary"),
    [
        ("model.embed_tokens.weight", True),
        ("model.language_model.embed_tokens.weight", True),
        ("lm_head.weight", True),
        ("lm_head.bias", True),
        ("embeddings.word_embeddings.weight", True),
        ("transformer.wte.weight", True),
        ("shared.weight", True),
        ("cls.predictions.decoder.bias", True),
        ("cls.predictions.bias", True),
        ("gpt_neox.embed_in.weight", True),
        ("embed_out.weight", True),
        ("0_Transformer/embeddings.word_embeddings.weight", True),
        ("final_logits_bias", True),
        ("embeddings.position_embeddings.weight", False),
        ("transformer.wpe.weight", False),
        ("model.layers.0.self_attn.q_proj.weight", False),
        ("encoder.layer.0.output.dense.weight", False),
        ("pooler.dense.bias", False),
    ],
)
def test_vocabulary_names(name: str, vocabulary: bool) -> None:
    assert is_vocabulary_name(name) is vocabulary


# alignment


@dataclass
class Table:
    words: list[str]
    rows: int = 0
    added: dict[str, dict[str, Any]] = field(default_factory=dict)
    kind: str = "WordLevel"

    def __post_init__(self) -> None:
        self.rows = self.rows or len(self.words)

    @property
    def content(self) -> TokenizerContent:
        return TokenizerContent(self.kind, {w: i for i, w in enumerate(self.words)}, self.added)


def aligned(rule: TokenizerRule, base: str | None = None, **tables: Table) -> Alignment:
    problems = Problems()
    made = align(rule, tables, base, list(tables), problems)
    assert not problems.found
    return made


def origin_of(made: Alignment, model: str, token: str) -> Any:
    """Where a token's row comes from, in words."""
    mapped, number = made.maps[model], made.tokens[token]
    origin, row = int(mapped.origin[number]), int(mapped.row[number])
    if origin >= 0:
        return made.models[origin], row
    if origin == AVERAGE:
        return [(made.models[m], r) for m, r in mapped.averages[row]]
    return {ZERO: "zero", PADDING: "padding"}[origin]


def test_union_is_the_base_then_new_tokens_then_added_ones() -> None:
    made = aligned(
        TokenizerRule("union"),
        "b",
        a=Table(["x", "<s>", "y"], added={"<s>": {"special": True}}),
        b=Table(["z", "y"]),
        c=Table(["y", "<e>", "w", "<s>"], added={"<e>": {}, "<s>": {}}),
    )
    assert made.lead == "b"
    assert made.tokens == {"z": 0, "y": 1, "x": 2, "w": 3, "<s>": 4, "<e>": 5}
    assert set(made.additions.added) == {"<s>", "<e>"} and made.additions.added["<s>"]["special"] is True
    assert any("'<s>' has different settings (special)" in notice for notice in made.notices)


def test_default_rows_in_the_order_of_the_rules() -> None:
    tables = {"a": Table(["all", "ab"]), "b": Table(["ab", "all", "only"]), "c": Table(["all"])}
    with_base = aligned(TokenizerRule("union"), "b", **tables)
    without = aligned(TokenizerRule("union"), None, **tables)
    assert origin_of(with_base, "c", "all") == ("c", 0)
    assert origin_of(with_base, "a", "only") == origin_of(with_base, "c", "only") == ("b", 2)
    assert origin_of(with_base, "c", "ab") == ("b", 0)
    assert origin_of(without, "c", "ab") == [("a", 1), ("b", 0)]
    assert "'c' has no row for 1 of 3 tokens; each is the mean of the models that have it ('ab')" in without.notices


def test_rules_of_single_tokens() -> None:
    rules = {
        "new": TokenRule("token", "b", token="x"),
        "byid": TokenRule("token", "b", token_id=1),
        "void": TokenRule("zero"),
        "both": TokenRule("model", "a", force=True),
        "mine": TokenRule("model", "b"),
        "none": TokenRule(),
    }
    made = aligned(TokenizerRule("a", tokens=rules), None, a=Table(["both", "mine"]), b=Table(["x", "both", "mine"]))
    assert made.lead == "a" and len(made.tokens) == 6
    assert origin_of(made, "a", "new") == origin_of(made, "b", "new") == ("b", 0)
    assert origin_of(made, "a", "byid") == ("b", 1)
    assert origin_of(made, "b", "void") == "zero" == origin_of(made, "b", "none")
    assert origin_of(made, "b", "both") == ("a", 0)
    assert (origin_of(made, "a", "mine"), origin_of(made, "b", "mine")) == (("a", 1), ("b", 2))
    assert any("no model has a row for 1 token(s), which become zeros ('none')" in n for n in made.notices)


def test_tokens_beyond_the_rows_have_no_row() -> None:
    made = aligned(TokenizerRule("base"), "a", a=Table(["x", "<pad>"], rows=1), b=Table(["x", "<pad>"]))
    assert origin_of(made, "a", "<pad>") == ("b", 1) and made.rows == 2


def test_padding_of_the_lead_is_kept_and_a_multiple_is_met() -> None:
    tables = {"a": Table(["x", "y"], rows=8), "b": Table(["y", "z"])}
    kept = aligned(TokenizerRule("union"), "a", **tables)
    assert kept.rows == 8 and (kept.maps["a"].origin[3:] == PADDING).all()
    assert aligned(TokenizerRule("union", 4), "a", **tables).rows == 4
    assert aligned(TokenizerRule("union", 16), "a", **tables).rows == 16


def test_rules_that_cannot_be_met_are_all_reported() -> None:
    rules = {
        "p": TokenRule("model", "b"),
        "q": TokenRule("token", "b", token="gone"),
        "r": TokenRule("token", "b", token_id=99),
        "s": TokenRule("model", "nobody"),
    }
    problems = Problems()
    align(TokenizerRule("a", tokens=rules), {"a": Table(["x"]), "b": Table(["x"])}, None, ["a", "b"], problems)
    assert len(problems.found) == 4
    for words in ("token 'p'", "token 'gone'", "row 99 (it has 1)", "'nobody' is no model"):
        assert any(words in problem for problem in problems.found)


def test_merges_of_bpe_are_joined() -> None:
    class Bpe(Table):
        @property
        def content(self) -> TokenizerContent:
            merges = [(w[:-1], w[-1]) for w in self.words if len(w) > 1]
            return TokenizerContent("BPE", {w: i for i, w in enumerate(self.words)}, {}, merges)

    made = aligned(TokenizerRule("union"), "a", a=Bpe(["a", "b", "ab"]), b=Bpe(["b", "a", "ba", "ab", "abb"]))
    assert made.additions.merges == [("b", "a"), ("ab", "b")]


WORDS = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=8, unique=True)


@given(st.lists(WORDS, min_size=1, max_size=4), st.booleans(), st.none() | st.integers(1, 5))
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_every_token_of_a_union_keeps_its_own_row(vocabularies: list[list[str]], base: bool, pad: int | None) -> None:
    tables = {f"m{i}": Table(words) for i, words in enumerate(vocabularies)}
    made = aligned(TokenizerRule("union", pad), "m0" if base else None, **tables)
    assert set(made.tokens) == {word for words in vocabularies for word in words}
    assert sorted(made.tokens.values()) == list(range(len(made.tokens)))
    assert [made.tokens[word] for word in vocabularies[0]] == list(range(len(vocabularies[0])))
    assert made.rows % (pad or 1) == 0 and made.rows >= len(made.tokens)
    for name, table in tables.items():
        for word, row in table.content.tokens.items():
            assert origin_of(made, name, word) == (name, row)


# rows


@dataclass(frozen=True)
class Recorded:
    """A source that remembers what was read of it."""

    inner: InMemory
    reads: list[tuple[int, int]] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def read(self, start: int, stop: int, out: np.ndarray) -> None:
        self.reads.append((start, stop))
        self.inner.read(start, stop, out)


def source(rows: int, width: int, seed: int = 0) -> InMemory:
    values = np.random.default_rng(seed).standard_normal(rows * width).astype(np.float32)
    return InMemory(values, "F32", (rows, width))


def dense(rows: Rows) -> np.ndarray:
    """All rows, computed the slow way."""
    tables = [s.raw.astype(np.float64).reshape(-1, rows.width) for s in rows.sources]  # type: ignore[attr-defined]
    out = np.zeros((len(rows.map), rows.width))
    real = np.flatnonzero(rows.map.origin != PADDING)
    for i in real:
        origin, row = rows.map.origin[i], rows.map.row[i]
        if origin >= 0:
            out[i] = tables[origin][row]
        elif origin == AVERAGE:
            out[i] = np.mean([tables[m][r] for m, r in rows.map.averages[row]], axis=0)
    if len(real):
        out[rows.map.origin == PADDING] = out[real].mean(axis=0)
    return out


@given(st.data())
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_any_range_of_rows_equals_the_gathered_matrix(data: st.DataObject) -> None:
    width, count = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 12))
    sources = (source(9, width, 1), source(40, width, 2))
    kinds = data.draw(st.lists(st.sampled_from([0, 0, 1, ZERO, PADDING, AVERAGE]), min_size=count, max_size=count))
    averages = (((0, 3), (1, 30)), ((1, 0),))
    limits = {0: 8, 1: 39, AVERAGE: 1, ZERO: 0, PADDING: 0}
    row = [data.draw(st.integers(0, limits[kind])) for kind in kinds]
    rows = Rows(sources, RowMap(np.array(kinds, np.int32), np.array(row), averages), "F32", (count, width))
    start = data.draw(st.integers(0, rows.numel))
    stop = data.draw(st.integers(start, rows.numel))
    expected = dense(rows).reshape(-1)[start:stop]
    for dtype in (np.float32, np.float64):
        out = np.empty(stop - start, dtype)
        rows.read(start, stop, out)
        np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(rows.read_raw(start, stop), expected.astype(np.float32))


def test_consecutive_rows_are_read_at_once_and_others_not_at_all() -> None:
    recorded = Recorded(source(100_000, 4))
    order = np.r_[50_000:50_100, 10:20]
    rows = Rows((recorded,), RowMap(np.zeros(110, np.int32), order), "F32", (110, 4))
    rows.read(4, 396, np.empty(392))
    assert recorded.reads == [(200_004, 200_396)]
    recorded.reads.clear()
    rows.read(0, 440, np.empty(440))
    assert recorded.reads == [(40, 80), (200_000, 200_400)]


def test_scattered_rows_are_read_in_bounded_stretches() -> None:
    recorded = Recorded(source(60_000, 8))
    order = np.random.default_rng(0).permutation(60_000)[:20_000]
    rows = Rows((recorded,), RowMap(np.zeros(20_000, np.int32), order), "F32", (20_000, 8))
    out = np.empty(160_000)
    rows.read(0, 160_000, out)
    assert len(recorded.reads) == 4 and max(stop - start for start, stop in recorded.reads) <= 1 << 17
    np.testing.assert_array_equal(out.reshape(-1, 8), recorded.inner.raw.reshape(-1, 8)[order])


def test_shuffled_neighbours_are_read_in_one_go() -> None:
    recorded = Recorded(source(64, 4))
    order = np.random.default_rng(0).permutation(64)
    rows = Rows((recorded,), RowMap(np.zeros(64, np.int32), order), "F32", (64, 4))
    out = np.empty(256)
    rows.read(0, 256, out)
    assert recorded.reads == [(0, 256)]
    np.testing.assert_array_equal(out.reshape(64, 4), recorded.inner.raw.reshape(64, 4)[order])


def test_chunks_give_the_same_bytes_as_one_read() -> None:
    origin = np.array([0, PADDING, 0, ZERO, AVERAGE] * 20, np.int32)
    mapped = RowMap(origin, np.where(origin == 0, np.arange(100) % 50, 0), (((0, 1), (0, 2)),))
    rows = Rows((source(50, 7),), mapped, "F32", (100, 7))
    whole = np.empty(700, np.float32)
    rows.read(0, 700, whole)
    parts = np.empty(700, np.float32)
    for start in range(0, 700, 33):
        stop = min(start + 33, 700)
        pickle.loads(pickle.dumps(rows)).read(start, stop, parts[start:stop])
    assert whole.tobytes() == parts.tobytes()


def test_rows_name_their_inputs_and_their_map(tmp_path: Path) -> None:
    stored = Stored(tmp_path / "w", 0, "F32", (4, 2))
    one = Rows((stored,), RowMap(np.int32([0, 0]), np.array([1, 2])), "F32", (2, 2))
    other = Rows((stored,), RowMap(np.int32([0, 0]), np.array([1, 3])), "F32", (2, 2))
    assert one.inputs() == (stored,) and (one.numel, one.nbytes, one.width) == (4, 16, 2)
    assert str(one) != str(other) and str(one) == str(pickle.loads(pickle.dumps(one)))
    with pytest.raises(ValueError, match="elements"):
        one.read(0, 9, np.empty(9))


# merging


def family(root: Path, *vocabularies: list[str], **options: Any) -> list[Path]:
    return [
        write_model(root / name, llama_tensors(seed, vocabulary=len(words), **options), words=words)
        for seed, (name, words) in enumerate(zip("abc", vocabularies, strict=False))
    ]


FIRST = ["<unk>", "one", "two", "three"]
SECOND = ["<unk>", "three", "four", "one", "five"]


def run(recipe: Recipe, out: Path) -> tuple[dict[str, torch.Tensor], dict[str, int], tuple[str, ...]]:
    result = recipe.run(out, progress=False)
    return read_weights(out), dict(read_vocabulary(open_checkpoint(out)).tokens), result.notices


def test_union_of_two_vocabularies_merges_by_token(tmp_path: Path) -> None:
    a, b = family(tmp_path, FIRST, SECOND)
    recipe = Recipe(method="linear", experts={"a": str(a), "b": str(b)}, tokenizer="union")
    merged, tokens, notices = run(recipe, tmp_path / "out")
    left, right = read_weights(a), read_weights(b)
    assert set(tokens) == {*FIRST, *SECOND}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        for token, row in tokens.items():
            own = left[name][FIRST.index(token)] if token in FIRST else right[name][SECOND.index(token)]
            other = right[name][SECOND.index(token)] if token in SECOND else left[name][FIRST.index(token)]
            torch.testing.assert_close(merged[name][row], (own + other) / 2)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["vocab_size"] == 6
    assert any("'a' has no row for 2 of 6 tokens; each comes from 'b' ('four', 'five')" in n for n in notices)


def test_vocabulary_of_another_model_moves_ids_and_carries_its_files(tmp_path: Path) -> None:
    a, b = family(tmp_path, FIRST, SECOND)
    (a / "vocab.txt").write_text("\n".join(FIRST))
    (b / "tokenizer_config.json").write_text('{"model_max_length": 7}')
    (a / "generation_config.json").write_text('{"eos_token_id": [3, 1], "temperature": 3}')
    recipe = Recipe(
        method="task_arithmetic", base=str(a), experts={"b": str(b)}, tokenizer={"source": "b", "pad_to_multiple_of": 8}
    )
    merged, tokens, notices = run(recipe, tmp_path / "out")
    assert tokens == {word: i for i, word in enumerate(SECOND)}
    embedding = merged["model.embed_tokens.weight"]
    assert embedding.shape[0] == 8
    right = read_weights(b)["model.embed_tokens.weight"]
    torch.testing.assert_close(embedding[:5], right)
    torch.testing.assert_close(embedding[5:], right.mean(0).expand(3, -1), rtol=1e-5, atol=1e-6)
    assert not (tmp_path / "out/vocab.txt").exists()
    assert json.loads((tmp_path / "out/tokenizer_config.json").read_text()) == {"model_max_length": 7}
    generation = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert generation == {"eos_token_id": [1, 3], "temperature": 3}
    assert any("ids of special tokens follow" in notice for notice in notices)


def test_one_vocabulary_is_left_alone_whatever_the_rule(tmp_path: Path) -> None:
    a, b = family(tmp_path, FIRST, FIRST)
    experts = {"a": str(a), "b": str(b)}
    plain = Recipe(method="linear", experts=experts).plan()
    for rule in ("union", "base", "b", {"source": "union", "pad_to_multiple_of": 2}):
        planned = Recipe(method="linear", experts=experts, tokenizer=rule).plan()
        assert [task.sources for task in planned.tasks] == [task.sources for task in plain.tasks]
        assert not planned.side_files


def test_tied_models_are_aligned_too(tmp_path: Path) -> None:
    a, b = family(tmp_path, FIRST, SECOND, tied=True)
    recipe = Recipe(method="linear", experts={"a": str(a), "b": str(b)}, tokenizer="base")
    merged, tokens, _ = run(recipe, tmp_path / "out")
    assert "lm_head.weight" not in merged and tokens == {word: i for i, word in enumerate(FIRST)}
    left, right = (read_weights(f)["model.embed_tokens.weight"] for f in (a, b))
    torch.testing.assert_close(merged["model.embed_tokens.weight"][3], (left[3] + right[1]) / 2)
    torch.testing.assert_close(merged["model.embed_tokens.weight"][2], left[2])


def test_different_vocabularies_without_a_rule_name_both_models(tmp_path: Path) -> None:
    a, b = family(tmp_path, FIRST, SECOND)
    with pytest.raises(RecipeError) as caught:
        Recipe(method="linear", experts={"first": str(a), "second": str(b)}).plan()
    message = str(caught.value)
    for word in ("'first'", "'second'", "vocabularies", "tokenizer", "model.embed_tokens.weight", "4 and 5", "union"):
        assert word in message


def test_same_size_but_other_order_is_not_merged_row_by_row(tmp_path: Path) -> None:
    a, b = family(tmp_path, FIRST, ["<unk>", "two", "one", "three"])
    with pytest.raises(RecipeError, match="2 at another id"):
        Recipe(method="linear", experts=[str(a), str(b)]).plan()


def test_same_tokenizer_with_padded_rows_asks_for_a_rule(tmp_path: Path) -> None:
    a = write_model(tmp_path / "a", llama_tensors(0, vocabulary=4), words=FIRST)
    b = write_model(tmp_path / "b", llama_tensors(1, vocabulary=8), words=FIRST)
    with pytest.raises(RecipeError, match=r"share a vocabulary but .* have 4 and 8 rows"):
        Recipe(method="linear", experts=[str(a), str(b)]).plan()
    planned = Recipe(method="linear", experts=[str(b), str(a)], tokenizer="union").plan()
    assert {t.name: t.shape[0] for t in planned.tasks}["lm_head.weight"] == 8


def test_tokens_that_only_one_model_adds_are_a_notice(tmp_path: Path) -> None:
    a = write_model(tmp_path / "a", llama_tensors(0, vocabulary=6), words=FIRST)
    b = write_model(tmp_path / "b", llama_tensors(1, vocabulary=6), words=[*FIRST, "<tool>"])
    planned = Recipe(method="linear", experts=[str(a), str(b)]).plan()
    assert any("differ in 1 token(s) that only one of them has" in notice for notice in planned.notices)


def test_equal_files_are_equal_without_being_parsed(tmp_path: Path) -> None:
    folders = family(tmp_path, FIRST, FIRST)
    for folder in folders:
        (folder / "tokenizer.json").write_text("not json")
    known = [read_vocabulary(open_checkpoint(folder)) for folder in folders]
    assert known[0].hash == known[1].hash != ""
    assert vocabulary_problems(known, []) == []


def test_sentencepiece_models_are_compared_by_hash(tmp_path: Path) -> None:
    folders = family(tmp_path, FIRST, FIRST)
    for folder in folders:
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer.model").write_text("same")
    experts = [str(folder) for folder in folders]
    assert Recipe(method="linear", experts=experts).plan().tasks
    (folders[1] / "tokenizer.model").write_text("other")
    for keys in ({}, {"tokenizer": "union"}):
        with pytest.raises(RecipeError, match="only a sentencepiece model"):
            Recipe(method="linear", experts=experts, **keys).plan()


def test_one_sentencepiece_model_beside_a_tokenizer_json_is_the_same(tmp_path: Path) -> None:
    folders = family(tmp_path, FIRST, FIRST)
    for folder in folders:
        (folder / "tokenizer.model").write_text("same")
    (folders[0] / "tokenizer.json").unlink()
    assert Recipe(method="linear", experts=[str(folder) for folder in folders]).plan().tasks
    (folders[0] / "tokenizer.model").write_text("other")
    with pytest.raises(RecipeError, match="cannot be compared"):
        Recipe(method="linear", experts=[str(folder) for folder in folders]).plan()


def test_a_model_without_tokenizer_takes_the_leads_where_rows_agree(tmp_path: Path) -> None:
    a, b = family(tmp_path, FIRST, SECOND)
    c = write_model(tmp_path / "c", llama_tensors(3, vocabulary=4), words=FIRST)
    (c / "tokenizer.json").unlink()
    planned = Recipe(method="linear", experts=[str(a), str(c)], tokenizer="base").plan()
    assert any("'c' has no tokenizer files" in notice for notice in planned.notices)
    with pytest.raises(RecipeError, match=r"'c' has no tokenizer files .* 4 rows, 'b' has 5"):
        Recipe(method="linear", experts=[str(b), str(c)], tokenizer="base").plan()


def test_a_rule_that_names_no_model_of_the_merge(tmp_path: Path) -> None:
    a, b = family(tmp_path, FIRST, SECOND)
    with pytest.raises(RecipeError, match=r"tokenizer.source: 'bb' is no model of this merge"):
        Recipe(method="linear", experts={"a": str(a), "b": str(b)}, tokenizer="bb").plan()


def test_a_head_of_another_size_cannot_be_matched(tmp_path: Path) -> None:
    a, b = family(tmp_path, FIRST, SECOND)
    tensors = read_weights(b)
    tensors["lm_head.weight"] = torch.zeros(9, 16)
    write_model(b, tensors, words=SECOND)
    with pytest.raises(RecipeError, match=r"'lm_head.weight' of 'b' has 9 rows where .* has 5"):
        Recipe(method="linear", experts=[str(a), str(b)], tokenizer="base").plan()


# tokenizers of the library read what we write


def with_tokenizer(folder: Path, made: Any, seed: int) -> Path:
    """A model with a tokenizer of the tokenizers library."""
    write_model(folder, llama_tensors(seed, vocabulary=made.get_vocab_size()))
    made.save(str(folder / "tokenizer.json"))
    return folder


def trained(kind: str, texts: list[str], special: list[str]) -> Any:
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers

    if kind == "BPE":
        made, trainer = Tokenizer(models.BPE()), trainers.BpeTrainer(vocab_size=40, show_progress=False)
    elif kind == "WordPiece":
        made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        trainer = trainers.WordPieceTrainer(vocab_size=40, special_tokens=["[UNK]"], show_progress=False)
    elif kind == "Unigram":
        made = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(
            vocab_size=30, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
        )
    else:
        made = Tokenizer(models.WordLevel(unk_token="[UNK]"))
        trainer = trainers.WordLevelTrainer(vocab_size=40, special_tokens=["[UNK]"], show_progress=False)
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.train_from_iterator(texts * 4, trainer)
    made.add_special_tokens([AddedToken(token, special=True) for token in special])
    return made


@pytest.mark.parametrize("kind", ["WordLevel", "WordPiece", "BPE", "Unigram"])
def test_union_is_read_by_the_tokenizers_library(tmp_path: Path, kind: str) -> None:
    from tokenizers import Tokenizer

    one = trained(kind, ["the cat sat on the mat", "the other cats sat"], ["<eos>", "<one>"])
    two = trained(kind, ["a dog ran home", "dogs ran on"], ["<eos>", "<two>"])
    folders = [
        with_tokenizer(tmp_path / name, made, seed) for seed, (name, made) in enumerate((("a", one), ("b", two)))
    ]
    recipe = Recipe(
        method="linear",
        experts={"a": str(folders[0]), "b": str(folders[1])},
        tokenizer={"source": "union", "tokens": {"<new>": None}},
    )
    merged, tokens, _ = run(recipe, tmp_path / "out")
    read = Tokenizer.from_file(str(tmp_path / "out/tokenizer.json"))
    assert read.get_vocab() == tokens
    assert set(tokens) == {*one.get_vocab(), *two.get_vocab(), "<new>"}
    assert all(tokens[token] == number for token, number in one.get_vocab().items())
    assert merged["model.embed_tokens.weight"].shape[0] == len(tokens)
    assert read.encode("the<one>dog<two>ran<new><eos>").tokens.count("<two>") == 1
    assert {"<one>", "<two>", "<new>", "<eos>"} <= set(read.encode("a <one> b <two> c <new> d <eos>").tokens)
    if kind != "Unigram":
        assert read.encode("cat").tokens == one.encode("cat").tokens
        assert read.encode("dog").tokens == two.encode("dog").tokens


def test_other_forms_of_the_tokenizer_follow(tmp_path: Path) -> None:
    made = [trained("BPE", texts, []) for texts in (["low lower lowest"], ["new newer newest"])]
    folders = [with_tokenizer(tmp_path / name, m, i) for i, (name, m) in enumerate(zip("ab", made, strict=True))]
    for folder in folders:
        data = json.loads((folder / "tokenizer.json").read_text())["model"]
        (folder / "vocab.json").write_text(json.dumps(data["vocab"]))
        (folder / "merges.txt").write_text(
            "#version: 0.2\n" + "".join(" ".join(pair) + "\n" for pair in data["merges"])
        )
        (folder / "spiece.model").write_text("opaque")
        (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {}}))
    recipe = Recipe(
        method="linear",
        experts=[str(folder) for folder in folders],
        tokenizer={"source": "union", "tokens": {"<t>": {"zero": True}}},
    )
    _, tokens, notices = run(recipe, tmp_path / "out")
    out = tmp_path / "out"
    assert not (out / "spiece.model").exists() and any("spiece.model" in notice for notice in notices)
    (out / "tokenizer.json").unlink()
    slow = read_tokenizer(out, [p.name for p in out.iterdir()])
    assert slow.tokens == tokens and set(slow.added) == {"<t>"}
    assert {pair for folder in folders for pair in read_tokenizer(folder, ["vocab.json", "merges.txt"]).merges} == set(
        slow.merges
    )


# chat templates


def render(template: str, **special: str) -> str:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    messages = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "good day"},
    ]
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(template)
    return made.render(messages=messages, add_generation_prompt=False, **special)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("alpaca", "be kind\n\n### Instruction:\nhello\n\n### Response:\ngood day"),
        (
            "chatml",
            "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n"
            "<|im_start|>assistant\ngood day<|im_end|>\n",
        ),
        (
            "llama3",
            "<s><|start_header_id|>system<|end_header_id|>\n\nbe kind<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nhello<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\ngood day<|eot_id|>",
        ),
        ("mistral", "<s> [INST] be kind\n\nhello [/INST] good day</s>"),
        ("exaone", "[|system|]be kind[|endofturn|]\n[|user|]hello\n[|assistant|]good day[|endofturn|]\n"),
    ],
)
def test_built_in_templates(name: str, expected: str) -> None:
    text = choose_template(name, {})
    assert name in built_in_templates() and text is not None
    assert render(text, bos_token="<s>", eos_token="</s>") == expected


def test_auto_is_the_most_frequent_and_jinja_is_itself() -> None:
    assert choose_template("auto", {"a": "{{1}}", "b": "{{2}}\n", "c": "{{2}}"}) == "{{2}}\n"
    assert choose_template("auto", {"a": "{{1}}", "b": "{{2}}"}) == "{{1}}"
    assert choose_template("auto", {"a": None}) is None
    assert choose_template("{{ messages }}", {}) == "{{ messages }}"
    assert template_problem(3) and template_problem("auto") is None


def test_chat_template_is_written_where_readers_look(tmp_path: Path) -> None:
    a, b = family(tmp_path, FIRST, FIRST)
    (a / "tokenizer_config.json").write_text('{"chat_template": "old", "x": 1}')
    (a / "chat_template.json").write_text('{"chat_template": "older"}')
    recipe = Recipe(method="linear", experts=[str(a), str(b)], chat_template="chatml")
    _, _, notices = run(recipe, tmp_path / "out")
    text = choose_template("chatml", {})
    config = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
    assert config == {"chat_template": text, "x": 1}
    assert (tmp_path / "out/chat_template.jinja").read_text() == text == model_template(tmp_path / "out")
    assert not (tmp_path / "out/chat_template.json").exists()
    assert any("<|im_start|>, <|im_end|>" in notice for notice in notices)


def test_named_templates_give_the_default_one(tmp_path: Path) -> None:
    several = [{"name": "tool_use", "template": "{{1}}"}, {"name": "default", "template": "{{2}}"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": several}))
    assert model_template(tmp_path) == "{{2}}"
