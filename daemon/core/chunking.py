"""From a contract to what cuts its documents, and what a tokenizer has to be for that. Pure.

The chunker's limit is of what the provider gets, so the tokens of the document prefix come off it. Who cuts and counts
is handed in: a contract names its tokenizer and the splitter's version, and a document is never cut by others.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from daemon.core.contract import SPLITTER, WHOLE, Contract, Cut, whole_document
from daemon.errors import ConfigError, Problem

LEAST_TOKENS = 16  # of a chunk's own text: the least that `chunk_tokens` takes
LEAST_ADVANCE = 8  # tokens that a chunk has beyond its overlap; with fewer, each is paid for many times


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
    return tokenizer.cutter(room, overlap)
