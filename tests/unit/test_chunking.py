"""What cuts the documents of a contract: the prefix comes off the limit, and long documents go in segments."""

import dataclasses
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.core.chunking import LEAST_ADVANCE, LEAST_TOKENS, SEGMENT_CHARACTERS, cut_of, segments
from daemon.core.contract import SPLITTER, Chunker, Contract, whole_document
from daemon.errors import ConfigError
from tests import builders
from tests.fakes import WordTokenizer


def contract(tokens: int = 32, overlap: int = 0, prefix: str = "", **chunker: Any) -> Contract:
    fields = {"name": "tokens", "version": SPLITTER, "tokenizer": "words", **chunker}
    return builders.contract(
        document_prefix=prefix, chunker=Chunker(limits={"tokens": tokens, "overlap": overlap}, **fields)
    )


def text_of(words: int) -> str:
    return " ".join(f"w{n}" for n in range(words))


def test_without_a_chunker_the_document_is_one_chunk() -> None:
    assert cut_of(builders.contract(), WordTokenizer()) is whole_document


def test_documents_are_cut_at_the_limit_with_the_overlap() -> None:
    chunks = cut_of(contract(20, 5), WordTokenizer())(text_of(40))
    assert [chunk.split()[0] for chunk in chunks] == ["w0", "w15", "w30"]
    assert [len(chunk.split()) for chunk in chunks] == [20, 20, 10]


def test_the_tokens_of_the_document_prefix_come_off_the_limit() -> None:
    (first, *_) = cut_of(contract(32, prefix="search document: "), WordTokenizer())(text_of(100))
    assert len(first.split()) == 30


def test_the_query_prefix_takes_nothing_of_a_chunk() -> None:
    other = dataclasses.replace(contract(32), query_prefix="a long instruction " * 20)
    (first, *_) = cut_of(other, WordTokenizer())(text_of(100))
    assert len(first.split()) == 32


@pytest.mark.parametrize(
    ("tokens", "overlap", "least"), [(40, 0, LEAST_TOKENS), (40, 8, LEAST_TOKENS), (40, 20, 20 + LEAST_ADVANCE)]
)
def test_a_prefix_that_leaves_too_little_of_a_chunk_is_refused(tokens: int, overlap: int, least: int) -> None:
    cut_of(contract(tokens, overlap, "p " * (tokens - least)), WordTokenizer())
    with pytest.raises(ConfigError, match=f"a chunk needs {least} for its text") as caught:
        cut_of(contract(tokens, overlap, "p " * (tokens - least + 1)), WordTokenizer())
    assert caught.value.id == "prefix-too-long"
    assert f"chunk_tokens to {tokens + 1} or more" in caught.value.hint


@pytest.mark.parametrize("chunker", [{"version": "other 1"}, {"tokenizer": "other"}, {"name": "lines"}])
def test_a_contract_of_another_splitter_or_tokenizer_is_not_cut(chunker: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"cut by .* with .*; here are .* and words") as caught:
        cut_of(contract(**chunker), WordTokenizer())
    assert caught.value.id == "chunker-differs"


def test_a_long_document_is_cut_in_segments_and_no_chunk_reaches_over_their_ends() -> None:
    tokens = 32
    words = [f"word{n}" for n in range(4 * SEGMENT_CHARACTERS * tokens // 8)]
    document = " ".join(words)
    chunks = cut_of(contract(tokens), WordTokenizer())(document)
    assert [word for chunk in chunks for word in chunk.split()] == words
    ends = set(itertools.accumulate(len(s.split()) for s in segments(document, SEGMENT_CHARACTERS * tokens)))
    assert len(ends) >= 4
    assert ends <= set(itertools.accumulate(len(chunk.split()) for chunk in chunks))


# --- segments

TEXTS = st.text(st.sampled_from("ab.!?。 \n\r\t\u00e9\u4e2d\U0001f600"), max_size=400)


@given(text=TEXTS, characters=st.integers(8, 64))
def test_segments_join_to_the_text_and_keep_the_limit(text: str, characters: int) -> None:
    pieces = list(segments(text, characters))
    assert "".join(pieces) == text
    assert all(len(piece) <= characters for piece in pieces)
    assert all(pieces) or not text
    assert all(len(piece) >= characters // 8 for piece in pieces[:-1])


@given(text=st.text(max_size=64))
def test_a_short_text_is_one_segment(text: str) -> None:
    assert list(segments(text, 64)) == [text]


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("a" * 40 + "\n" + "b" * 5 + "\n \n" + "c. d " * 20, "\n \nc"),
        ("a. " * 15 + "b\nc" + "d. " * 20, "\ncd"),
        ("a b " * 12 + "c.\td" + " e" * 40, "\td"),
        ("中" * 50 + "。" + "国 " * 40, "国 "),
        ("ab" * 20 + " " + "c" * 90, " cc"),
        ("ab " * 4 + "c" * 10 + " " + "d" * 90, " dd"),  # nothing in the second half: before it
        ("a" * 200, "aaa"),
    ],
)
def test_a_segment_ends_at_the_best_boundary(text: str, end: str) -> None:
    first, second, *_ = segments(text, 64)
    assert second.startswith(end)
    assert len(first) == 8 or len(first) >= 20


def test_a_change_moves_the_ends_of_the_segments_around_it_and_no_others() -> None:
    words = [f"w{n * n}" for n in range(4000)]
    before = set(segments(" ".join(words), 1024))
    for at in (3, 1000, 2000, 3900):
        changed = [*words[:at], "another", "and", "another", *words[at + 1 :]]
        after = list(segments(" ".join(changed), 1024))
        assert len([s for s in after if s not in before]) <= 3
