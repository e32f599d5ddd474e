"""Tokenizers count what providers count, and what they cut loses nothing and exceeds nothing."""

import importlib.metadata
import itertools
import re
from collections import Counter
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import wordllama
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as HuggingFace

from connectors import tokenizers
from connectors.tokenizers import ENCODINGS, PIECE_CHARACTERS, BpeTokenizer, FileTokenizer, load
from daemon.core.chunking import Tokenizer, cut_of
from daemon.core.contract import SPLITTER, Chunker, Cut
from daemon.errors import ConfigError
from tests import builders

FILE = next(Path(wordllama.__file__).parent.rglob("*tokenizer*.json"))
CL100K, O200K, FROM_FILE = BpeTokenizer("cl100k_base"), BpeTokenizer("o200k_base"), FileTokenizer(FILE.read_text())
ALL = [CL100K, O200K, FROM_FILE]
TEXT = "\n\n".join(topics[name] for name in sorted(topics))  # the language reference: 460 kB of prose and code

ODD = {
    "emoji": "\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466" * 300,
    "chinese": "我们在早上去市场买菜。今天天气很好！" * 100,
    "chinese without punctuation": "我们在早上去市场买菜今天天气很好" * 60,
    "zero width": "a\u200bb\u200c\ufeffc\u2060 " * 300,
    "combining": "e" + "\u0301" * 600 + " n\u0303" * 300,
    "right to left": "שלום עולם. مرحبا بالعالم! " * 80,
    "controls": "a\x01b\x1fc\x7f\x85\u2028d\u2029 " * 200,
    "one word": "abcdefghij" * 400,
    "one letter": "a" * 4000,
    "digits": "0123456789" * 400,
    "special tokens": "<|endoftext|><|fim_prefix|> [SEP] </s><unk>" * 100,
    "windows lines": "one line\r\nand another\r\n\r\n" * 150,
    "blank lines": "a\n\n\n\n \n\t\n" * 300,
    "code": "def f(x):\n    if x:\n\treturn {'a': [1, 2]}\n\n" * 100,
}


def cut(tokenizer: Tokenizer, tokens: int, overlap: int = 0) -> Cut:
    chunker = Chunker("tokens", SPLITTER, {"tokens": tokens, "overlap": overlap}, tokenizer.identity)
    return cut_of(builders.contract(chunker=chunker), tokenizer)


def bare(*texts: str) -> str:
    """The texts as one, without white space."""
    return "".join(c for text in texts for c in text if not c.isspace())


@pytest.mark.parametrize(
    ("text", "cl100k", "o200k"),
    [
        ("", 0, 0),
        ("hello world", 2, 2),
        ("tiktoken is great!", 6, 6),
        ("antidisestablishmentarianism", 6, 6),
        ("2 + 2 = 4", 7, 7),
        ("お誕生日おめでとう", 9, 8),
    ],
)
def test_encodings_count_as_openai_publishes(text: str, cl100k: int, o200k: int) -> None:
    assert (CL100K.count(text), O200K.count(text)) == (cl100k, o200k)


@pytest.mark.parametrize("tokenizer", [CL100K, O200K])
def test_text_that_looks_like_a_special_token_is_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.count("<|endoftext|>") == 7
    chunks = cut(tokenizer, 16)("<|endoftext|>" * 20)
    assert "".join(chunks) == "<|endoftext|>" * 20
    assert max(map(tokenizer.count, chunks)) <= 16


def test_a_file_counts_as_its_tokenizer_does_without_special_tokens() -> None:
    reference = HuggingFace.from_str(FILE.read_text())
    for text in ("hello world", TEXT[:15_000], *ODD.values()):
        assert FROM_FILE.count(text) == len(reference.encode(text, add_special_tokens=False).ids)


def test_truncation_and_padding_of_a_file_do_not_touch_the_count_or_the_chunks() -> None:
    shortened = HuggingFace.from_str(FILE.read_text())
    shortened.enable_truncation(8)
    shortened.enable_padding(length=64)
    tokenizer = FileTokenizer(shortened.to_str())
    assert tokenizer.count("hello world") == 2
    assert cut(tokenizer, 32)(TEXT[:5000]) == cut(FROM_FILE, 32)(TEXT[:5000])


@pytest.mark.parametrize("tokenizer", ALL)
def test_a_long_text_is_counted_in_pieces_to_within_a_token_each(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = TEXT[: 4 * PIECE_CHARACTERS]
    pieces = tokenizer.count(text)
    monkeypatch.setattr(tokenizers, "PIECE_CHARACTERS", len(text))
    assert 0 <= pieces - tokenizer.count(text) <= 8


@pytest.mark.parametrize("tokenizer", ALL)
@pytest.mark.parametrize("name", ODD)
def test_odd_text_is_cut_within_the_limit_and_nothing_of_it_is_lost(name: str, tokenizer: Tokenizer) -> None:
    chunks = cut(tokenizer, 48)(ODD[name])
    assert len(chunks) > 1
    assert bare(*chunks) == bare(ODD[name])
    for each in (chunks, cut(tokenizer, 48, 12)(ODD[name])):
        assert max(map(tokenizer.count, each)) <= 48


@pytest.mark.parametrize(("tokens", "overlap"), [(16, 0), (64, 8), (512, 50), (512, 256)])
def test_prose_is_cut_within_the_limit_and_nothing_of_it_is_lost(tokens: int, overlap: int) -> None:
    text = TEXT[: 160 * tokens]
    chunks = cut(CL100K, tokens, overlap)(text)
    assert max(map(CL100K.count, chunks)) <= tokens
    at = covered = 0
    for chunk in chunks:
        at = text.index(chunk, at)
        assert not text[covered:at].strip()
        at, covered = at + 1, max(covered, at + len(chunk))
    assert not text[covered:].strip()


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=400))
def test_any_text_is_cut_within_the_limit_and_nothing_of_it_is_lost(text: str) -> None:
    chunks = cut(CL100K, 16)(text)
    assert all(chunk.strip() for chunk in chunks)
    assert max(map(CL100K.count, chunks), default=0) <= 16
    assert bare(*chunks) == bare(text)


@pytest.mark.parametrize("text", ["", " ", "\n\t \r\n", "\u3000\u00a0\u2028", "\x1c\x1d", " \n" * 5000])
@pytest.mark.parametrize("tokenizer", ALL)
def test_a_blank_document_has_no_chunk(text: str, tokenizer: Tokenizer) -> None:
    assert cut(tokenizer, 16)(text) == []


def test_a_chunk_repeats_the_end_of_the_one_before_it_up_to_the_overlap() -> None:
    document = " ".join(f"word{n}" for n in range(700))  # less than a segment
    chunks = cut(CL100K, 128, 32)(document)
    repeated = []
    for one, other in itertools.pairwise(chunks):
        size = next(n for n in range(len(other), -1, -1) if one.endswith(other[:n]))
        repeated.append(CL100K.count(other[:size]))
    assert len(chunks) > 4
    assert all(0 < tokens <= 32 for tokens in repeated)


@pytest.mark.parametrize("tokenizer", ALL)
def test_a_document_is_cut_the_same_way_again(tokenizer: Tokenizer) -> None:
    text = TEXT[:40_000]
    again = load(tokenizer.identity, Path()) if tokenizer.identity in ENCODINGS else load(FILE.name, FILE.parent)
    assert again.identity == tokenizer.identity
    assert cut(tokenizer, 64, 8)(text) == cut(tokenizer, 64, 8)(text) == cut(again, 64, 8)(text)


def test_white_space_inside_a_chunk_stays_and_at_its_ends_goes() -> None:
    assert cut(CL100K, 64)("  one\n\n\ttwo  three \n") == ["one\n\n\ttwo  three"]


@pytest.mark.parametrize("overlap", [0, 25])
def test_a_changed_word_of_a_document_of_fifty_chunks_changes_three_of_them_at_most(overlap: int) -> None:
    cutter = cut(CL100K, 256, overlap)
    document = TEXT[: TEXT.index(cutter(TEXT[:60_000])[50])]
    before = cutter(document)
    assert 49 <= len(before) <= 52
    words = list(re.finditer(r"\w+", document))
    for word in words[5 :: len(words) // 12]:
        after = cutter(document[: word.start()] + "a few more words" + document[word.end() :])
        assert 1 <= sum((Counter(after) - Counter(before)).values()) <= 3


def test_the_contract_names_the_splitter_that_is_installed() -> None:
    minor = ".".join(importlib.metadata.version("semantic-text-splitter").split(".")[:2])
    assert SPLITTER.startswith(f"semantic-text-splitter {minor},")


def test_a_tokenizer_is_found_by_the_name_of_its_encoding_or_file() -> None:
    assert load("o200k_base", Path()).identity == "o200k_base"
    assert load(FILE.name, FILE.parent).identity == load(str(FILE), Path()).identity
    assert re.fullmatch("sha256:[0-9a-f]{16}", load(str(FILE), Path()).identity)


WORDS_ONLY = (
    '{"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "?"}}'
)


@pytest.mark.parametrize(
    ("name", "content", "id"),
    [
        ("p50k_base", None, "tokenizer-missing"),
        ("no.json", None, "tokenizer-missing"),
        (".", None, "tokenizer-missing"),
        ("t.json", b"{}", "tokenizer-unreadable"),
        ("t.json", b"not json", "tokenizer-unreadable"),
        ("t.json", b"\xff\xfe\x00", "tokenizer-unreadable"),
        ("t.json", WORDS_ONLY.encode(), "tokenizer-unreadable"),  # it cannot count a word that it does not know
    ],
)
def test_a_name_that_is_no_tokenizer_is_refused(tmp_path: Path, name: str, content: bytes | None, id: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=r"generation\.tokenizer") as caught:
        load(name, tmp_path)
    assert caught.value.id == id
    assert caught.value.problems[0].hint
