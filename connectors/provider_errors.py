"""What a provider's refusal means: status, error object and headers in, one of our errors out. Pure but for the clock.

The statuses are those of OpenAI, Azure, Ollama, vLLM, text-embeddings-inference, LM Studio and llama.cpp (see the page
on providers in the docs). Codes and parameters are kept where they look like words of an interface; prose can quote the
input and goes no further than this module.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

from daemon.core.model import Rates
from daemon.errors import ItemRefused, PermissionRefused, ProviderWrong, RevectorError, TransientError
from daemon.ports.embedder import Throttled

MOST_PER_MINUTE = 10**12  # a larger number is no budget
LONGEST_WAIT_S = 24 * 3600.0  # a provider that asks for more is asked again tomorrow

_WORD = re.compile(r"[\w.\[\]-]{1,64}", re.ASCII)
_OURS = ("model", "dimensions", "encoding_format")
_ITEM = (400, 413, 422)
_AGAIN = (408, 409, 424, 425, 429)  # 424: text-embeddings-inference, its backend failed
_NEVER = (501, 505)  # 501: llama.cpp without --embeddings
# llama.cpp answers 500 for a text that its physical batch or its context cannot hold: no repetition would help it.
_TOO_LONG = re.compile(r"too large to process|larger than the max context|exceeds? the (available )?context", re.I)


def of_status(status: int, body: object, headers: Mapping[str, str]) -> RevectorError:
    """The error that a status is. body: the answer's error object, where it has one."""
    fields = body if isinstance(body, Mapping) else {}
    code, param = _code(fields, status), _word(fields.get("param"))
    what = f"provider: status {status}, code {code or 'none'}, param {param or 'none'}"
    if status in (401, 403):
        hint = "check api_key of the generation (without it no key is sent) and what the key may use"
        return PermissionRefused("provider-key-refused", what, hint)
    if status == 402 or "insufficient_quota" in (code, _word(fields.get("type"))):
        hint = "the account has no credit left: top it up, embedding goes on by itself"
        return TransientError("provider-quota", what, hint, retry_after_s(headers) or 60.0)
    if status == 429:
        hint = "it is repeated; lower limits of the generation if it goes on"
        throttled = Throttled("provider-throttled", what, hint, retry_after_s(headers))
        throttled.rates = rates_of(headers)
        return throttled
    if status in _ITEM and param not in _OURS:
        return ItemRefused(status, code, param)
    if status >= 500 and _TOO_LONG.search(str(fields.get("message", ""))):
        return ItemRefused(status, code, param)
    if status in _AGAIN or (status >= 500 and status not in _NEVER):
        hint = "it is repeated; see the provider's own log or status page if it goes on"
        return TransientError("provider-unavailable", what, hint, retry_after_s(headers))
    if status < 400:
        hint = "put the address that it redirects to into base_url of the generation"
        return ProviderWrong("provider-redirects", what, hint)
    hint = "check model, dimensions and base_url of the generation"
    return ProviderWrong("provider-request-refused", what, hint)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, from `Retry-After-Ms` (Azure, OpenAI) or `Retry-After` (RFC 9110, 10.2.3: seconds or a date);
    never negative."""
    wait = _retry_after_s(headers)
    return None if wait is None else min(wait, LONGEST_WAIT_S)


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    if (milliseconds := headers.get("retry-after-ms")) is not None and re.fullmatch(r"\d+(\.\d+)?", milliseconds):
        return float(milliseconds) / 1000
    if (after := headers.get("retry-after")) is None:
        return None
    if re.fullmatch(r"\d+(\.\d+)?", after, re.ASCII):
        return float(after)
    try:
        now = parsedate_to_datetime(headers["date"]).timestamp() if "date" in headers else time.time()
        return max(0.0, parsedate_to_datetime(after).timestamp() - now)
    except ValueError:
        return None


def rates_of(headers: Mapping[str, str]) -> Rates:
    """The budgets of a minute that OpenAI and Azure name in `x-ratelimit-limit-…`; None for what is absent or no
    budget. Azure says in `x-ratelimit-renewalperiod-…` of how many seconds its number is."""
    return Rates(*(_per_minute(headers, what) for what in ("requests", "tokens")))


def _per_minute(headers: Mapping[str, str], what: str) -> int | None:
    number = _whole(headers.get(f"x-ratelimit-limit-{what}"))
    period_s = _whole(headers.get(f"x-ratelimit-renewalperiod-{what}")) or 60
    if number is None or number > MOST_PER_MINUTE or period_s > LONGEST_WAIT_S:
        return None
    return max(1, number * 60 // period_s)


def _whole(number: str | None) -> int | None:
    """A positive whole number; None for anything else, such as Azure's -1 for a budget that it does not know."""
    return int(number) or None if number is not None and re.fullmatch(r"\d{1,16}", number, re.ASCII) else None


def _code(fields: Mapping[str, object], status: int) -> str | None:
    """The code; where there is none, or only the status again, the type of the error."""
    code = _word(fields.get("code"))
    return code if code and code != str(status) else _word(fields.get("type"))


def _word(value: object) -> str | None:
    """A code or parameter name; anything longer or stranger may be prose."""
    return value if isinstance(value, str) and _WORD.fullmatch(value) else None
