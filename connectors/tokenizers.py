"""What counts tokens and cuts documents: OpenAI's encodings, or any Hugging Face tokenizer file. No network.

The splitter is `semantic-text-splitter`: it fills a chunk up to its limit at the highest boundary that fits (paragraph,
sentence, word). Counting is `rs-bpe` for OpenAI's encodings and `tokenizers` for files. All work here holds the
interpreter for milliseconds only, so that it can run in a worker thread beside the loop.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from rs_bpe.bpe import openai
from semantic_text_splitter import TextSplitter

from daemon.core.contract import Cut
from daemon.errors import ConfigError, Problem

# Encoding -> a model that the splitter knows it by.
ENCODINGS = {"cl100k_base": "text-embedding-3-small", "o200k_base": "gpt-4o"}


class BpeTokenizer:
    """Implements `daemon.ports.Tokenizer` for one of OpenAI's encodings."""

    def __init__(self, encoding: str) -> None:
        self.identity = encoding
        self._count: Callable[[str], int] = getattr(openai, encoding)().count

    def count(self, text: str) -> int:
        return self._count(text)

    def cutter(self, tokens: int, overlap: int) -> Cut:
        return _cut(TextSplitter.from_tiktoken_model(ENCODINGS[self.identity], tokens, overlap))


class FileTokenizer:
    """Implements `daemon.ports.Tokenizer` for a Hugging Face tokenizer.json."""

    def __init__(self, document: str) -> None:
        from tokenizers import Tokenizer as HuggingFace  # noqa: PLC0415

        self.identity = f"sha256:{hashlib.sha256(document.encode()).hexdigest()[:16]}"
        self._document = document
        self._tokenizer = HuggingFace.from_str(document)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def count(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def cutter(self, tokens: int, overlap: int) -> Cut:
        return _cut(TextSplitter.from_huggingface_tokenizer_str(self._document, tokens, overlap))


def load(name: str, folder: Path) -> BpeTokenizer | FileTokenizer:
    """The tokenizer of a configuration; folder: where a relative path starts. Raises ConfigError."""
    if name in ENCODINGS:
        return BpeTokenizer(name)
    where = "generation.tokenizer"
    try:
        return FileTokenizer((folder / name).read_text(encoding="utf-8"))
    except ImportError:
        problem = Problem("tokenizer-package", where, "needs the package tokenizers", "install revector[local]")
    except OSError:
        known = ", ".join(ENCODINGS)
        problem = Problem("tokenizer-missing", where, f"no such file: {name}", f"name a file, or one of {known}")
    except Exception:  # the package raises no type of its own
        problem = Problem(
            "tokenizer-unreadable", where, f"{name} is no tokenizer", "name a Hugging Face tokenizer.json"
        )
    raise ConfigError([problem])


def _cut(splitter: TextSplitter) -> Cut:
    def cut(text: str) -> list[str]:
        return [chunk for chunk in splitter.chunks(text) if chunk.strip()]

    return cut
