"""How texts are put into requests, and how a refused request is taken apart. Pure.

`pack` fills requests by tokens and by inputs. `Isolation` finds the texts that a provider refuses: it says which group
to send next and is told whether the provider took it. One refused text in a request of n costs at most log2(n) + 1
requests more, because every probe also carries what the earlier ones left open; one more where it is so long that its
requests may have been refused for their size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field

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
    """The texts of one request until each was taken or refused. Send `group`, say how it went with `told`, repeat.

    tokens: of each text, where they are known.
    refused: the texts found so far, each refused alone, or refused in a request that was no larger than one that was
    taken without it.
    taken: how many were taken.

    suspects: with `aside`, a refused request; one of them is to blame. aside: not taken yet, and sent with every probe.
    Where a suspect is taken alone, the request was refused and not a text: then the rest goes in halves, and a text is
    blamed only when it is refused alone.
    """

    texts: InitVar[Sequence[Digest]]
    tokens: Mapping[Digest, int] = field(default_factory=dict)
    refused: list[Digest] = field(default_factory=list)
    taken: int = 0
    _suspects: list[Digest] = field(default_factory=list)
    _aside: list[Digest] = field(default_factory=list)
    _later: list[list[Digest]] = field(default_factory=list)
    _by_halves: bool = False
    _refused_sizes: list[tuple[int, int]] = field(default_factory=list)  # texts, tokens; of the search under way

    def __post_init__(self, texts: Sequence[Digest]) -> None:
        self._aside = list(texts)

    @property
    def group(self) -> list[Digest]:
        """What to send next; empty when nothing is left."""
        s = self._suspects
        return s[: len(s) // 2] + self._aside or s

    def told(self, is_taken: bool, *, too_large: bool = False) -> None:
        """What the provider said of `group`. too_large: it refused the request for its size, no text is to blame."""
        sent, suspects, aside = self.group, self._suspects, self._aside
        half, size = len(suspects) // 2, (len(sent), sum(self.tokens.get(d, 0) for d in sent))
        if not is_taken:
            self._refused_sizes = [*self._refused_sizes, size] if suspects else [size]
        self._suspects, self._aside = [], []
        self.taken += len(sent) if is_taken else 0
        if too_large and len(sent) > 1:
            self._put_off(suspects + aside)
        elif half:
            self._suspects = suspects[half:] if is_taken else suspects[:half]
            self._aside = [] if is_taken else aside + suspects[half:]
        elif suspects and aside:  # all but the last suspect were sent
            sizes = self._refused_sizes
            if is_taken and any(n == 1 or (n <= size[0] and tokens <= size[1]) for n, tokens in sizes):
                self.refused += suspects
            else:  # it goes alone: what was refused with it may have been refused for its size
                self._suspects = suspects
                self._later += [] if is_taken else [aside]
        elif is_taken:
            self._by_halves |= bool(suspects)
        elif len(sent) == 1:
            self.refused += sent
        elif self._by_halves:
            self._put_off(sent)
        else:
            self._suspects = sent
        if not self.group and self._later:
            self._aside = self._later.pop()

    def _put_off(self, group: list[Digest]) -> None:
        half = len(group) // 2
        self._later += [group[half:], group[:half]]
