"""How the scriptable provider behaves: the document that `PUT /script` takes, and the names of its faults.

A script is whole: what it does not say is as in `Script()`, an honest provider without limits or delay. Unknown keys
are refused. The names of the faults say what the client meets; `UNBILLED` ones are answered before anything was
embedded, the others after, so their tokens are billed as a real provider bills them.
"""

from __future__ import annotations

import math
import random
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Unbilled = Literal[
    "status-400",  # for no text's sake
    "status-401",
    "status-403",
    "status-404",  # as for a model that does not exist
    "status-413",
    "status-500",
    "status-502",
    "status-503",
    "quota",  # 429 insufficient_quota
    "throttled",  # 429 whatever the limits say
    "redirect",  # 307 to another origin
    "silent",  # no headers, nothing, until the client goes
]
Billed = Literal[
    "hang",  # headers, then nothing until the client goes
    "reset",  # half the body, then a TCP reset
    "truncated",  # half the JSON in a complete response
    "html",  # a page with status 200
    "too-few",
    "too-many",
    "shuffled",  # another order, labelled right: to be restored
    "index-twice",
    "index-beyond",
    "dimensions",
    "nan",
    "infinite",
    "zero",
    "too-long",  # not of length 1
    "floats",  # number lists though base64 was asked
    "gzip-bomb",
    "oversized",
    "other-name",  # the answer names another model
    "other-model",  # vectors of another seed under the same name
]
Fault = Literal[Unbilled, Billed]

UNBILLED: tuple[str, ...] = Unbilled.__args__  # type: ignore[attr-defined]
BILLED: tuple[str, ...] = Billed.__args__  # type: ignore[attr-defined]
HARMLESS = ("shuffled", "floats")  # a correct client gets right vectors from these

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(gt=0)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Limits(_Part):
    """What is permitted in a minute; None: anything.

    kind: a token bucket that refills all the time and holds `window_s` worth, or a window of `window_s` that starts
    anew. start: the share of it that is free at first. counts_refused: refused requests use up requests too.
    headers: send x-ratelimit-*.
    """

    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    kind: Literal["bucket", "window"] = "bucket"
    window_s: Positive = 60.0
    start: Share = 1.0
    counts_refused: bool = False
    headers: bool = True


class Latency(_Part):
    """How long an answer takes. seconds: the time, the upper end (uniform, from `least_s`) or the median
    (lognormal)."""

    kind: Literal["fixed", "uniform", "lognormal"] = "fixed"
    seconds: Annotated[float, Field(ge=0)] = 0.0
    least_s: Annotated[float, Field(ge=0)] = 0.0
    sigma: Annotated[float, Field(ge=0)] = 0.5
    per_1k_tokens_s: Annotated[float, Field(ge=0)] = 0.0

    def of(self, tokens: int, rng: random.Random) -> float:
        """Seconds for a request of that many tokens."""
        if self.kind == "uniform":
            base = rng.uniform(min(self.least_s, self.seconds), self.seconds)
        elif self.kind == "lognormal" and self.seconds > 0:
            base = rng.lognormvariate(math.log(self.seconds), self.sigma)
        else:
            base = self.seconds
        return base + self.per_1k_tokens_s * tokens / 1000


class Faults(_Part):
    """Which requests meet what. always: every one; else next: the coming ones in turn, "ok" for none; else
    probability: by chance. retry_after_s goes with 429 and 503, None sends none."""

    always: Fault | None = None
    next: tuple[Fault | Literal["ok"], ...] = ()
    probability: dict[Fault, Share] = Field(default_factory=dict)
    retry_after_s: Annotated[float, Field(ge=0)] | None = None
    oversized_mb: Count = 1024


class Poison(_Part):
    """A request with a text that contains one of `markers` is refused whole; the prose quotes that text."""

    markers: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    status: int = 400
    code: str | None = None
    param: str | None = "input"


class Script(_Part):
    """A provider's behaviour.

    seed: of chance. dimensions: of a vector where the request names none. model_seed: whose vectors. answers_as: the
    model's name in answers, None for the one asked for. count_texts: remember how often each text was billed.
    usage: whether answers say what they cost. most_*: of a request and of an input, as OpenAI's.
    """

    seed: int = 0
    models: tuple[str, ...] = ("test-embedding", "text-embedding-3-small", "text-embedding-3-large")
    dimensions: Count = 256
    model_seed: int = 0
    answers_as: str | None = None
    encoding: Literal["asked", "floats"] = "asked"
    limits: Limits = Limits()
    latency: Latency = Latency()
    faults: Faults = Faults()
    poison: Poison = Poison()
    count_texts: bool = False
    usage: bool = True
    most_inputs: Count = 2048
    most_input_tokens: Count = 8192
    most_tokens: Count = 300_000

    @classmethod
    def read(cls, document: Any) -> Script:
        """Raises pydantic.ValidationError."""
        return cls.model_validate(document)


class Chance:
    """The faults and delays of one script, request by request: the same seed gives the same ones in the same order."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._rng = random.Random(script.seed)
        self._next = list(script.faults.next)

    @property
    def left(self) -> int:
        """How many of `next` are still to come."""
        return len(self._next)

    def fault(self) -> str | None:
        faults = self._script.faults
        if faults.always is not None:
            return faults.always
        if self._next:
            planned = self._next.pop(0)
            return None if planned == "ok" else planned
        drawn = self._rng.random()
        for name, share in faults.probability.items():
            if drawn < share:
                return name
            drawn -= share
        return None

    def latency(self, tokens: int) -> float:
        return self._script.latency.of(tokens, self._rng)
