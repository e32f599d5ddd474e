"""Secrets do not reach a log: one processor between every record and its rendering.

Three nets, each on every text of a record: the secrets themselves, as they were revealed to this process; what looks
like one by its place (`password=…`, `Authorization: …`, user:password in a URL); and what looks like one by its form
(provider keys, private keys). An exception is told by its type and its frames; its message only where the class is
known to carry no row text, because drivers quote the row that they refuse.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import quote, quote_plus

from daemon.errors import RevectorError

HIDDEN = "***"
SHORTEST = 4  # a shorter secret would take letters out of ordinary words
DEEPEST = 8

_VALUE = r"""("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[^\s,;&'"})\]]+)"""
_NAME = r"""[\w.-]*(?:password|passwd|passphrase|secret|api[_-]?key|token)(?:["']?\s*[=:]\s*)"""
_PATTERNS = (
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.S), HIDDEN),
    (re.compile(r"(?i)((?:proxy-)?authorization[\"']?\s*[=:]\s*[\"']?)(?:[a-z]+\s+)?[^\s,\"'}]+"), rf"\1{HIDDEN}"),
    (re.compile(r"\b((?i:bearer)|Basic)\s+[\w.~+/=-]{8,}"), rf"\1 {HIDDEN}"),
    (re.compile(r"(://[^/\s:@\"']*:)[^/\s\"']*@"), rf"\1{HIDDEN}@"),
    (re.compile(rf"(?i)({_NAME}){_VALUE}"), rf"\1{HIDDEN}"),
    (re.compile(r"\bsk-[\w-]{8,}"), HIDDEN),
)
_SPEAKING = (RevectorError, TypeError, AttributeError, NameError, ImportError, OSError, NotImplementedError)


class Redaction:
    """A structlog processor. `hide` may be called from any thread, at any time."""

    def __init__(self) -> None:
        self._secrets: tuple[str, ...] = ()

    def hide(self, secret: str) -> None:
        """Take this text out of everything that is logged from here on, also where it is quoted for a URL."""
        if len(secret) >= SHORTEST:
            forms = {secret, quote(secret, safe=""), quote_plus(secret)}
            self._secrets = tuple(sorted({*self._secrets, *forms}, key=len, reverse=True))

    def text(self, text: str) -> str:
        """The same text without secrets."""
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        for pattern, instead in _PATTERNS:
            text = pattern.sub(instead, text)
        return text

    def __call__(self, logger: Any, method: str, record: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Every value of the record, whatever it is nested in."""
        for name, value in record.items():
            record[name] = self._value(value, DEEPEST)
        return record

    def _value(self, value: Any, depth: int) -> Any:
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict) and depth:
            return {self.text(str(k)): self._value(v, depth - 1) for k, v in value.items()}
        if isinstance(value, list | tuple) and depth:
            return [self._value(v, depth - 1) for v in value]
        return self.text(str(value))


def told(error: BaseException) -> str:
    """A traceback without values: causes first, each with its frames, type and, where it may speak, message."""
    lines: list[str] = []
    _tell(error, lines, set())
    return "\n".join(lines)


def _tell(error: BaseException, lines: list[str], seen: set[int]) -> None:
    seen.add(id(error))
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None and id(before) not in seen:
        _tell(before, lines, seen)
        lines.append("then:")
    lines += [f"  {f.filename}:{f.lineno} in {f.name}" for f in traceback.extract_tb(error.__traceback__)]
    kind = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
    speaks = isinstance(error, _SPEAKING)
    lines.append(f"{kind}: {error}" if speaks else kind)
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            if id(member) not in seen:
                lines.append("of which:")
                _tell(member, lines, seen)
