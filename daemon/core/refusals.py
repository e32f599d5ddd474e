"""What a provider's refusal of one text means, in words, from what is kept of it: status, code and parameter.

The form is one line of words, `status-400 context_length_exceeded input`; a word that the provider did not give is
left out. A refusal of our own has no status, only a code. Nothing here can be row text: prose is never kept.

Pure. Where the meaning of a code is documented by providers it is said; everything else is said to be unknown.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

TOO_LONG = "input-too-long"  # ours: more tokens than the model takes, so it was not sent
ANSWERED = 200  # with the id of the check that the answer failed as the code
# Checks that a single text can fail again and again; an answer that is cut off or mislabelled is no text's fault.
OF_A_TEXT = frozenset(("provider-not-finite", "provider-zero-vector", "provider-norm"))

_STATUS = re.compile(r"status-(\d{3})", re.ASCII)
_PARAMETER = re.compile(r"(?:input|model|dimensions|encoding_format|user)\b.*", re.ASCII)
_LENGTH = re.compile(r"length|too[_-]?(?:long|large)|max[_-]?tokens|context", re.IGNORECASE)
_CONTENT = re.compile(r"content|filter|moderation|policy|safety", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Refusal:
    """status None: it was refused before it was sent. code, parameter None: the provider named none."""

    status: int | None = None
    code: str | None = None
    parameter: str | None = None

    def __str__(self) -> str:
        """`status 400, code context_length_exceeded, parameter input`."""
        parts = (("status", self.status), ("code", self.code), ("parameter", self.parameter))
        return ", ".join(f"{word} {value}" for word, value in parts if value is not None) or "unknown"


def refusal(reason: str) -> Refusal:
    """Read the kept form. Unknown words are no error: an older program may have written them."""
    words = reason.split()
    found = _STATUS.fullmatch(words[0]) if words else None
    status = int(found.group(1)) if found else None
    rest = words[1:] if found else words
    if len(rest) == 1 and status is not None and _PARAMETER.fullmatch(rest[0]):
        return Refusal(status, None, rest[0])
    return Refusal(status, rest[0] if rest else None, rest[1] if len(rest) > 1 else None)


def meaning(refused: Refusal) -> str:
    """Why, in one sentence."""
    if refused.code == TOO_LONG:
        return "A piece of the text has more tokens than the model takes, so it was not sent."
    if refused.status == ANSWERED:
        return "The provider answers this text, and what it answers cannot be right."
    if _is_length(refused):
        return "The provider finds the text too long."
    if refused.code and _CONTENT.search(refused.code):
        return "The provider refuses the text for what it says."
    if refused.status is None:
        return "The provider refuses the text; it is not known why."
    if refused.code or refused.parameter:
        return "The provider refuses the text; its documentation explains the code."
    return "The provider refuses the text without naming a code."


def remedy(refused: Refusal) -> str:
    """What to do, without a full stop. A changed row is tried again by itself, whatever the reason."""
    if _is_length(refused):
        return (
            "shorten the row at the source, or add a generation with smaller chunks (`chunk_tokens`); or accept that "
            "the row is not found"
        )
    if refused.code and _CONTENT.search(refused.code):
        return "change the row at the source, or accept that it is not found"
    return "mend what the code names and retry, or change the row at the source, or accept that it is not found"


def _is_length(refused: Refusal) -> bool:
    """A failure of the server (5xx) is taken for a refusal only where it says that the text is too large for it."""
    if refused.status == ANSWERED:
        return False
    too_large = refused.status is not None and (refused.status == 413 or refused.status >= 500)
    return too_large or (refused.code is not None and _LENGTH.search(refused.code) is not None)
