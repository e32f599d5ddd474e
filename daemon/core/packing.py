"""How texts are put into requests, and how a refused request is taken apart. Pure.

`pack` fills requests by tokens and by inputs. `Isolation` finds the texts that a provider refuses: it says which group
to send next and is told whether the provider took it. One refused text in a request of n costs at most log2(n) + 1
requests more, because every probe also carries what the earlier ones left open.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

Digest = bytes


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Of one request. A text that has more tokens than a request may hold travels alone."""

    inputs: int
    tokens: int


# What the providers document: inputs and tokens of a request, tokens of an input. OpenAI, "Create embeddings".
OPENAI_MODELS = ("text-embedding-3-small", "text-embedding-3-large", "text-embedding-ada-002")
OPENAI_INPUT_TOKENS = 8192


def input_tokens(model: str) -> int | None:
    """Most tokens of one input, for the models whose limit is documented."""
    return OPENAI_INPUT_TOKENS if model in OPENAI_MODELS else None


def pack(texts: Iterable[tuple[Digest, int]], limits: RequestLimits) -> list[list[Digest]]:
    """(digest, tokens) in order -> requests. First fit: a text goes into the first request with room for it, so the
    order of requests is that of their first texts and all but the last few are full."""
    requests: list[list[Digest]] = []
    room: list[int] = []
    first_open = 0
    for digest, tokens in texts:
        at = next(
            (n for n in range(first_open, len(requests)) if tokens <= room[n] and len(requests[n]) < limits.inputs),
            None,
        )
        if at is None:
            requests.append([digest])
            room.append(limits.tokens - tokens)
        else:
            requests[at].append(digest)
            room[at] -= tokens
        while first_open < len(requests) and (room[first_open] <= 0 or len(requests[first_open]) >= limits.inputs):
            first_open += 1
    return requests


@dataclass(slots=True)
class Isolation:
    """The texts of one request until each was taken or refused.

    `group` is what to send next, None when nothing is left; `told` says whether the provider took it. refused: found
    so far. A text is refused when it was refused alone, or when a request was refused with it and taken without it.

    suspects: a request of these and `aside` was refused, and one of the suspects is to blame; aside: not yet taken.
    When a blame does not hold (the suspect is taken alone, so it was the request that was refused), the rest is halved
    and every half sent.
    """

    texts: Sequence[Digest]
    refused: list[Digest] = field(default_factory=list)
    taken: int = 0
    _suspects: list[Digest] = field(default_factory=list)
    _aside: list[Digest] = field(default_factory=list)
    _plain: list[list[Digest]] = field(default_factory=list)
    _sent: list[Digest] | None = None
    _alone: bool = False  # the last suspect has to be sent alone before it is blamed
    _doubtful: bool = False  # a blame did not hold

    def __post_init__(self) -> None:
        self._plain = [list(self.texts)] if self.texts else []

    @property
    def group(self) -> list[Digest] | None:
        """What to send next."""
        if self._sent is None:
            self._sent = self._next()
        return self._sent

    def _next(self) -> list[Digest] | None:
        s, z = self._suspects, self._aside
        if not s:
            return self._plain[-1] if self._plain else None
        if len(s) == 1:
            return s if self._alone or not z else z
        return s[: len(s) // 2] + z

    def told(self, is_taken: bool, *, too_large: bool = False) -> None:
        """What the provider said of `group`. too_large: it refused the request for its size, no text is to blame."""
        sent, self._sent = self._sent, None
        if sent is None:
            raise AssertionError("nothing was sent")
        self.taken += len(sent) if is_taken else 0
        if too_large and len(sent) > 1:
            self._halve([*self._suspects, *self._aside] if self._suspects else self._plain.pop())
        elif not self._suspects:
            self._told_plain(sent, is_taken)
        elif len(self._suspects) == 1:
            self._told_last(is_taken)
        else:
            self._told_probe(is_taken)

    def _told_plain(self, sent: list[Digest], is_taken: bool) -> None:
        self._plain.pop()
        if is_taken:
            return
        if len(sent) == 1:
            self.refused += sent
        elif self._doubtful:
            self._halve(sent)
        else:
            self._suspects, self._aside = sent, []

    def _told_probe(self, is_taken: bool) -> None:
        half = len(self._suspects) // 2
        first, second = self._suspects[:half], self._suspects[half:]
        if is_taken:
            self._suspects, self._aside = second, []
        else:
            self._suspects, self._aside = first, self._aside + second

    def _told_last(self, is_taken: bool) -> None:
        suspect, aside = self._suspects[0], self._aside
        if not self._alone and aside:  # `aside` was sent
            if is_taken:  # refused with the suspect, taken without it
                self.refused.append(suspect)
                self._suspects, self._aside = [], []
            else:
                self._alone = True
            return
        self._suspects, self._aside, self._alone = [], [], False
        if not is_taken:
            self.refused.append(suspect)
        else:
            self._doubtful = True
        if aside:
            self._plain.append(aside)

    def _halve(self, group: list[Digest]) -> None:
        self._suspects, self._aside, self._alone, self._doubtful = [], [], False, True
        half = len(group) // 2
        self._plain += [group[half:], group[:half]]
