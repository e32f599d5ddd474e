"""What counts tokens and cuts documents: OpenAI's encodings, or any Hugging Face tokenizer file. No network.

The splitter is `semantic-text-splitter`: it fills a chunk up to its limit at the highest boundary that fits (paragraph,
sentence, word) and takes white space off both ends: the chunk as it comes out is what is stored and embedded. Counting
is `rs-bpe` for OpenAI's encodings and `tokenizers` for files, also for the splitter: its own count takes text such as
`<|endoftext|>` for one special token. Where counting holds the interpreter, it does so for a piece of a long text only:
a worker thread beside the loop never keeps it waiting for more than milliseconds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from rs_bpe.bpe import openai
from semantic_text_splitter import TextSplitter

from daemon.core.chunking import Tokenizer, segments
from daemon.core.contract import Cut
from daemon.errors import ConfigError, Problem

ENCODINGS = ("cl100k_base", "o200k_base")
PIECE_CHARACTERS = 16_384  # counted at once: 2 ms with rs-bpe
_ANY_TEXT = "\U0010fffd"  # a file that cannot count it, for want of an unknown token, would fail in mid-run


class _Tokenizer:
    """Implements `daemon.ports.Tokenizer` over a function that counts one piece of text."""

    def __init__(self, identity: str, count: Callable[[str], int]) -> None:
        self.identity = identity
        self._count = count

    def count(self, text: str) -> int:
        """A text of more than 16 384 characters in pieces; for each, it may be counted a token too many."""
        return sum(self._count(piece) for piece in segments(text, PIECE_CHARACTERS))

    def cutter(self, tokens: int, overlap: int) -> Cut:
        splitter = TextSplitter.from_callback(self.count, tokens, overlap)
        return lambda text: [chunk for chunk in splitter.chunks(text) if chunk.strip()]


class BpeTokenizer(_Tokenizer):
    """One of OpenAI's encodings. Text that looks like a special token is text."""

    def __init__(self, encoding: str) -> None:
        super().__init__(encoding, getattr(openai, encoding)().count)


class FileTokenizer(_Tokenizer):
    """A Hugging Face tokenizer.json; truncation and padding that it names are left out."""

    def __init__(self, document: str) -> None:
        from tokenizers import Tokenizer as HuggingFace  # noqa: PLC0415

        tokenizer = HuggingFace.from_str(document)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        identity = f"sha256:{hashlib.sha256(document.encode()).hexdigest()[:16]}"
        # The call for batches: it alone lets other threads run meanwhile.
        super().__init__(identity, lambda text: len(tokenizer.encode_batch_fast([text], add_special_tokens=False)[0]))


def load(name: str, folder: Path) -> Tokenizer:
    """The tokenizer of a configuration; folder: where a relative path starts. Raises ConfigError."""
    if name in ENCODINGS:
        return BpeTokenizer(name)
    where = "generation.tokenizer"
    try:
        tokenizer = FileTokenizer((folder / name).read_text(encoding="utf-8"))
        tokenizer.count(_ANY_TEXT)
        return tokenizer
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
