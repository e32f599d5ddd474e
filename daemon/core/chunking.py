"""From a contract to what cuts its documents, and what a tokenizer has to be for that. Pure.

The chunker's limit is of what the provider gets, so the tokens of the document prefix come off it. Who cuts and counts
is handed in: a contract names its tokenizer and the splitter's version, and a document is never cut by others.

A long document goes to the splitter in segments. It looks for the best boundary by sizing whatever lies before the next
one, again for each chunk: where paragraphs or words are far apart, its time grows with the square of that distance, to
minutes for 1 MB without a space. In segments it grows with the document (`./dev bench stall`).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

from daemon.core.contract import SPLITTER, WHOLE, Contract, Cut, whole_document
from daemon.errors import ConfigError, Problem

LEAST_TOKENS = 16  # of a chunk's own text: the least that `chunk_tokens` takes
LEAST_ADVANCE = 8  # tokens that a chunk has beyond its overlap; with fewer, each is paid for many times
SEGMENT_CHARACTERS = 64  # of a segment for each token of a chunk: twelve chunks of English, more of other scripts

# Where a segment may end, the better first: before a paragraph, a line, after a sentence, before a space.
_BREAKS = tuple(re.compile(p) for p in (r"\n\s*\n", r"\n", r"(?<=[.!?])\s|(?<=[。！？])", r"\s"))
_LOOK_AHEAD = 32  # characters after a boundary that choose it


class Tokenizer(Protocol):
    """Counts and cuts as a model would. Safe to call from another thread; holds the interpreter for milliseconds."""

    @property
    def identity(self) -> str:
        """What the contract records: the encoding's name, or `sha256:…` of the tokenizer's file."""
        ...

    def count(self, text: str) -> int:
        """Tokens of a text, without special ones. For chunks; a whole document can hold the interpreter for long."""
        ...

    def cutter(self, tokens: int, overlap: int) -> Cut:
        """What cuts a document into chunks of at most `tokens`, each repeating at most `overlap` of the last one.
        The same document is cut the same way on every machine. A blank document has no chunk."""
        ...


def cut_of(contract: Contract, tokenizer: Tokenizer) -> Cut:
    """What cuts the documents of a contract. Safe to call from another thread.

    Raises ConfigError: `chunker-differs` where the contract was made with another splitter or tokenizer,
    `prefix-too-long` where the document prefix leaves too little of a chunk.
    """
    chunker = contract.chunker
    if chunker == WHOLE:
        return whole_document
    if chunker != replace(chunker, name="tokens", version=SPLITTER, tokenizer=tokenizer.identity):
        hint = "install the version of revector that made the contract, or add another [[generation]]"
        message = f"the contract is cut by {chunker.version} with {chunker.tokenizer}; here are {SPLITTER} and "
        raise ConfigError([Problem("chunker-differs", "generation", message + tokenizer.identity, hint)])
    tokens, overlap = chunker.limits["tokens"], chunker.limits["overlap"]
    prefix = tokenizer.count(contract.document_prefix)
    room, least = tokens - prefix, max(LEAST_TOKENS, overlap + LEAST_ADVANCE)
    if room < least:
        message = f"the document prefix takes {prefix} of {tokens} tokens; a chunk needs {least} for its text"
        hint = f"raise chunk_tokens to {prefix + least} or more, or lower chunk_overlap"
        raise ConfigError([Problem("prefix-too-long", "generation.chunk_tokens", message, hint)])
    cut = tokenizer.cutter(room, overlap)
    return lambda text: [chunk for segment in segments(text, SEGMENT_CHARACTERS * room) for chunk in cut(segment)]


def segments(text: str, characters: int) -> Iterator[str]:
    """The text in pieces of at most `characters` (8 or more) that join to it; a shorter text is one piece.

    A piece ends at the best boundary in its second half, or else before it; of equal ones the text that follows
    chooses, not the distance. So a change moves the ends of the pieces around it and no others. Text without any
    boundary is cut at an eighth.
    """
    begin = 0
    while len(text) - begin > characters:
        half, eighth = begin + characters // 2, begin + characters // 8
        end = _boundary(text, half, begin + characters) or _boundary(text, eighth, half) or eighth
        yield text[begin:end]
        begin = end
    yield text[begin:]


def _boundary(text: str, begin: int, end: int) -> int | None:
    for pattern in _BREAKS:
        at = [found.start() for found in pattern.finditer(text, begin, end)]
        if at:
            return min(at, key=lambda n: (zlib.crc32(text[n : n + _LOOK_AHEAD].encode()), n))
    return None
