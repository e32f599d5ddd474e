"""Why a connector or its task failed, out of the Java trace that Kafka Connect gives. Pure.

A trace's prose can quote a row, a query or a setting. What comes out of here is the names of the exceptions, outermost
first, and for a record that was too large the two numbers; nothing else of the text.
"""

from __future__ import annotations

import re

MOST_CAUSES = 6

_EXCEPTION = re.compile(
    r"^(?:Caused by: )?(?:[a-z]\w{0,40}\.){1,10}([A-Z]\w{1,60}(?:Exception|Error))\b", re.ASCII | re.MULTILINE
)
_TOO_LARGE = re.compile(r"is (\d{1,12}) bytes when serialized which is larger than (\d{1,12})\b", re.ASCII)
TOO_LARGE = "RecordTooLargeException"


def failure_of(trace: str) -> str:
    """One line, such as `ConnectException, RecordTooLargeException: 2100000 bytes, the limit is 1048576`."""
    causes = list(dict.fromkeys(match[1] for match in _EXCEPTION.finditer(trace)))[:MOST_CAUSES]
    said = ", ".join(causes) or "no cause is given"
    sizes = _TOO_LARGE.search(trace) if TOO_LARGE in causes else None
    return said if sizes is None else f"{said}: {sizes[1]} bytes, the producer's limit is {sizes[2]}"
