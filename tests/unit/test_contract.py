"""The contract's identity, and the text that vectors are made from."""

import dataclasses
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.core.contract import (
    Chunker,
    Contract,
    TemplateError,
    changed,
    difference,
    digest,
    from_json,
    placeholders,
    render,
    whole_document,
)

CONTRACT = Contract(
    provider="openai",
    model="small",
    revision="",
    dimensions=256,
    vector_type="vector",
    metric="cosine",
    normalised=True,
    document_prefix="passage: ",
    query_prefix="query: ",
    templates={"article": "{title}\n\n{body}"},
)

OTHER: dict[str, Any] = {
    "provider": "local",
    "model": "large",
    "revision": "2",
    "dimensions": 512,
    "vector_type": "halfvec",
    "metric": "l2",
    "normalised": False,
    "document_prefix": "",
    "query_prefix": "",
    "templates": {"article": "{title}"},
    "chunker": Chunker(version="2"),
    "canonical_form": 2,
}


def test_every_field_is_part_of_the_id() -> None:
    assert set(OTHER) == {f.name for f in dataclasses.fields(Contract)}
    ids = {dataclasses.replace(CONTRACT, **{name: value}).id for name, value in OTHER.items()}
    assert len(ids | {CONTRACT.id}) == len(OTHER) + 1


def test_id_does_not_depend_on_the_order_of_tables() -> None:
    one = dataclasses.replace(CONTRACT, templates={"a": "{x}", "b": "{y}"})
    other = dataclasses.replace(CONTRACT, templates={"b": "{y}", "a": "{x}"})
    assert one.id == other.id


def test_id_stays_the_same_between_versions_of_the_program() -> None:
    assert CONTRACT.id == "4321e221df3a53f2"


def test_a_contract_stored_before_chunkers_named_a_tokenizer_is_read_and_keeps_its_id() -> None:
    stored = json.loads(
        """{"provider": "openai", "model": "small", "revision": "", "dimensions": 256, "vector_type": "vector",
        "metric": "cosine", "normalised": true, "document_prefix": "passage: ", "query_prefix": "query: ",
        "templates": {"article": "{title}\\n\\n{body}"},
        "chunker": {"name": "whole", "version": "1", "limits": {}}, "canonical_form": 1}"""
    )
    assert from_json(stored) == CONTRACT
    assert CONTRACT.as_json() == stored


@pytest.mark.parametrize(
    "chunker",
    [
        Chunker("tokens", "1", {"tokens": 512, "overlap": 50}, "cl100k_base"),
        Chunker("tokens", "2", {"tokens": 512, "overlap": 50}, "cl100k_base"),
        Chunker("tokens", "1", {"tokens": 256, "overlap": 50}, "cl100k_base"),
        Chunker("tokens", "1", {"tokens": 512, "overlap": 0}, "cl100k_base"),
        Chunker("tokens", "1", {"tokens": 512, "overlap": 50}, "o200k_base"),
    ],
)
def test_what_cuts_is_part_of_the_id_and_survives_json(chunker: Chunker) -> None:
    cut = dataclasses.replace(CONTRACT, chunker=chunker)
    assert from_json(json.loads(json.dumps(cut.as_json()))) == cut
    first = dataclasses.replace(CONTRACT, chunker=Chunker("tokens", "1", {"tokens": 512, "overlap": 50}, "cl100k_base"))
    assert (cut.id == first.id) is (chunker == first.chunker)


# Asymmetric models as their makers describe them: (document prefix, query prefix, id).
NOMIC = ("search_document: ", "search_query: ", "90ef26e35c0cb546")
QWEN3 = (
    "",
    "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:",
    "d51267b3f1446698",
)


@pytest.mark.parametrize(("document", "query", "id"), [NOMIC, QWEN3])
def test_document_and_query_side_of_a_model_are_apart(document: str, query: str, id: str) -> None:
    sided = dataclasses.replace(CONTRACT, document_prefix=document, query_prefix=query)
    assert sided.id == id
    assert digest("text", sided) == hashlib.sha256(f"{document}text".encode()).digest()
    swapped = dataclasses.replace(CONTRACT, document_prefix=query, query_prefix=document)
    assert swapped.id != id
    assert digest("text", swapped) != digest("text", sided)


def test_the_query_side_changes_the_contract_and_no_digest() -> None:
    """Readers have to put another prefix before a query; the stored vectors stay what they are."""
    other = dataclasses.replace(CONTRACT, query_prefix="Instruct: find\nQuery:")
    assert other.id != CONTRACT.id
    assert digest("text", other) == digest("text", CONTRACT)


def test_json_round_trip_gives_an_equal_contract() -> None:
    document = json.loads(json.dumps(CONTRACT.as_json()))
    assert from_json(document) == CONTRACT
    assert from_json(document).id == CONTRACT.id


@pytest.mark.parametrize("name", OTHER)
def test_difference_names_the_field_that_differs(name: str) -> None:
    (line,) = difference(CONTRACT, dataclasses.replace(CONTRACT, **{name: OTHER[name]}))
    assert line.startswith(name)
    assert " -> " in line


def test_difference_of_equal_contracts_is_empty() -> None:
    assert difference(CONTRACT, dataclasses.replace(CONTRACT)) == []


def test_difference_shows_a_table_that_only_one_has() -> None:
    more = dataclasses.replace(CONTRACT, templates={**CONTRACT.templates, "note": "{text}"})
    assert difference(CONTRACT, more) == ["templates.note: none -> '{text}'"]
    assert difference(more, CONTRACT) == ["templates.note: '{text}' -> none"]


def test_difference_shortens_long_templates_to_where_they_differ() -> None:
    one, other = ("{title} " + "words and words " * 20 + end + " more" * 20 for end in ("{body}", "{text}"))
    (line,) = difference(
        dataclasses.replace(CONTRACT, templates={"article": one}),
        dataclasses.replace(CONTRACT, templates={"article": other}),
    )
    assert "{body}" in line and "{text}" in line
    assert len(line) < 160
    assert line.count("…") == 4


@pytest.mark.parametrize(("one", "other"), [("{a}" + "x" * 100, "{a}" + "x" * 99), ("{a}", "{a}" + "x" * 100)])
def test_difference_shows_where_one_text_ends(one: str, other: str) -> None:
    (line,) = difference(
        dataclasses.replace(CONTRACT, templates={"t": one}), dataclasses.replace(CONTRACT, templates={"t": other})
    )
    left, right = line.removeprefix("templates.t: ").split(" -> ")
    assert left != right
    assert len(line) < 160


def test_a_changed_contract_is_refused_field_by_field_with_the_way_forward() -> None:
    chunker = Chunker("tokens", "1", {"tokens": 256, "overlap": 25}, "cl100k_base")
    stored = dataclasses.replace(CONTRACT, chunker=chunker)
    wider = dataclasses.replace(chunker, limits={"tokens": 512, "overlap": 25})
    configured = dataclasses.replace(stored, document_prefix="", chunker=wider)
    error = changed("v2", stored.as_json(), configured.as_json())
    assert (error.id, str(error)) == ("contract-changed", "generation v2: its contract has changed")
    assert error.hint.splitlines()[1:3] == [
        "document_prefix: 'passage: ' -> ''",
        "chunker.limits.tokens: 256 -> 512",
    ]
    assert "[[generation]]" in error.hint
    assert "revector generation add" in error.hint


def test_render_puts_values_and_null_as_nothing() -> None:
    assert render("{title}\n\n{body}", {"title": "T", "body": None}) == "T\n\n"


def test_render_keeps_escaped_braces_and_braces_of_values() -> None:
    assert render("{{{title}}} }}", {"title": "{body} {{"}) == "{{body} {{} }"


def test_render_refuses_a_column_without_value() -> None:
    with pytest.raises(KeyError, match="body"):
        render("{title}{body}", {"title": "T"})


def test_placeholders_are_distinct_and_in_order() -> None:
    assert placeholders("{b} {a} {b} {{c}}") == ("b", "a")


@pytest.mark.parametrize(
    ("template", "match"),
    [
        ("", "no .column."),
        ("plain {{title}}", "no .column."),
        ("{title", "single `{` at character 1"),
        ("title}", "single `}` at character 6"),
        ("a {}", "at character 3 is not a column"),
        ("{title!r}", "not a column"),
        ("{title:>10}", "not a column"),
        ("{title.x}", "not a column"),
        ("{title[0]}", "not a column"),
        ("{0}", "not a column"),
    ],
)
def test_template_takes_columns_only(template: str, match: str) -> None:
    with pytest.raises(TemplateError, match=match):
        placeholders(template)


@given(text=st.text(), value=st.text())
def test_literal_text_and_values_arrive_unchanged(text: str, value: str) -> None:
    template = text.replace("{", "{{").replace("}", "}}") + "{v}"
    assert render(template, {"v": value}) == text + value


@pytest.mark.parametrize(("text", "chunks"), [("a b", ["a b"]), (" a\n", [" a\n"]), ("", []), (" \n\t", [])])
def test_whole_document_is_one_chunk_or_none(text: str, chunks: list[str]) -> None:
    assert whole_document(text) == chunks


def test_digest_covers_prefix_and_text() -> None:
    assert digest("text", CONTRACT) == hashlib.sha256(b"passage: text").digest()
    assert digest("text", CONTRACT) != digest("text", dataclasses.replace(CONTRACT, document_prefix=""))
