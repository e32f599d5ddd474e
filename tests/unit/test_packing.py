"""Requests are filled and lose no text; of a refused request exactly the texts to blame are found, and cheaply."""

import math
import random
from collections.abc import Callable, Collection

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from daemon.core.packing import Isolation, RequestLimits, input_tokens, pack

Takes = Callable[[Collection[bytes]], bool]


def digests(n: int) -> list[bytes]:
    return [at.to_bytes(2) for at in range(n)]


def numbered(tokens: Collection[int]) -> list[tuple[bytes, int]]:
    return list(zip(digests(len(tokens)), tokens, strict=True))


LIMITS = st.builds(RequestLimits, inputs=st.integers(1, 12), tokens=st.integers(1, 500))
TOKENS = st.lists(st.integers(0, 700), max_size=80)


@given(tokens=TOKENS, limits=LIMITS)
def test_every_text_is_packed_once(tokens: list[int], limits: RequestLimits) -> None:
    requests = pack(numbered(tokens), limits)
    assert sorted(d for request in requests for d in request) == digests(len(tokens))
    assert all(requests)


@given(tokens=TOKENS, limits=LIMITS)
def test_no_request_exceeds_a_limit_and_a_text_above_it_travels_alone(tokens: list[int], limits: RequestLimits) -> None:
    of = dict(numbered(tokens))
    for request in pack(of.items(), limits):
        assert len(request) <= limits.inputs
        assert sum(of[d] for d in request) <= limits.tokens or len(request) == 1


@given(tokens=TOKENS, limits=LIMITS)
def test_requests_are_in_the_order_of_their_first_texts_and_texts_in_theirs(
    tokens: list[int], limits: RequestLimits
) -> None:
    requests = pack(numbered(tokens), limits)
    firsts = [request[0] for request in requests]
    assert firsts == sorted(firsts)
    assert all(request == sorted(request) for request in requests)


@given(tokens=st.lists(st.integers(1, 512), max_size=500), inputs=st.integers(1, 64))
def test_all_requests_but_the_last_are_full(tokens: list[int], inputs: int) -> None:
    limits = RequestLimits(inputs, 5120)  # ten texts of the longest kind
    of = dict(numbered(tokens))
    for request in pack(of.items(), limits)[:-1]:
        assert sum(of[d] for d in request) >= 0.9 * limits.tokens or len(request) == limits.inputs


@pytest.mark.parametrize("limits", [RequestLimits(256, 50_000), RequestLimits(2048, 300_000)])
def test_requests_of_chunks_as_they_are_use_what_the_provider_permits(limits: RequestLimits) -> None:
    """Chunks of 512 tokens and the shorter ends of documents, in no order."""
    draw = random.Random(7)
    tokens = [512 if draw.random() < 0.6 else draw.randint(5, 512) for _ in range(5000)]
    requests = pack(numbered(tokens), limits)
    least = max(math.ceil(sum(tokens) / limits.tokens), math.ceil(len(tokens) / limits.inputs))
    assert len(requests) <= least + 1


@pytest.mark.parametrize(
    ("tokens", "requests"),
    [
        ([6, 4, 1, 10, 3], [[0, 1], [2, 4], [3]]),  # full to the token
        ([6, 5, 4, 5], [[0, 2], [1, 3]]),  # into the first with room, not the last
        ([11, 0, 10], [[0], [1, 2]]),  # nothing joins a text that is too long
        ([9, 1, 1, 1, 1, 9], [[0, 1], [2, 3, 4], [5]]),  # inputs end a request that has room
        ([9, 2, 2, 2, 2, 1], [[0, 5], [1, 2, 3], [4]]),
        ([8, 3, 3, 3, 1, 1, 1], [[0, 4, 5], [1, 2, 3], [6]]),  # full by inputs behind one with room
    ],
)
def test_a_text_goes_into_the_first_request_with_room(tokens: list[int], requests: list[list[int]]) -> None:
    packed = pack(numbered(tokens), RequestLimits(inputs=3, tokens=10))
    assert [[int.from_bytes(d) for d in request] for request in packed] == requests


def test_the_limit_of_an_input_is_known_for_documented_models_only() -> None:
    assert input_tokens("text-embedding-3-small") == 8192
    assert input_tokens("nomic-embed-text") is None


# --- Isolation


def isolate(n: int, takes: Takes, *, says_too_large_above: int | None = None) -> tuple[Isolation, int, list[bytes]]:
    """Plays a provider until nothing is left. (isolation, requests sent, texts in the order they were taken)"""
    isolation, sent, taken = Isolation(digests(n)), 0, []
    while group := isolation.group:
        sent += 1
        assert len(set(group)) == len(group)
        assert sent <= 8 * n + 8, "it does not end"
        if says_too_large_above is not None and len(group) > says_too_large_above:
            isolation.told(is_taken=False, too_large=True)
            continue
        is_taken = takes(group)
        taken += group if is_taken else []
        isolation.told(is_taken=is_taken)
    return isolation, sent, taken


def found(n: int, poison: Collection[bytes], run: tuple[Isolation, int, list[bytes]]) -> None:
    """Exactly the poison was blamed, and every other text taken, each once."""
    isolation, _, taken = run
    assert sorted(isolation.refused) == sorted(poison)
    assert sorted([*taken, *poison]) == digests(n)
    assert isolation.taken == len(taken)


SETS = st.integers(0, 40).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.sampled_from(digests(n) or [b""]))))


@given(case=SETS)
def test_exactly_the_refused_texts_are_found_and_every_other_taken_once(case: tuple[int, set[bytes]]) -> None:
    n, poison = case[0], case[1] - {b""}
    found(n, poison, isolate(n, poison.isdisjoint))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 31, 64, 100, 256])
def test_one_refused_text_costs_at_most_log2_and_one_request_more_wherever_it_stands(n: int) -> None:
    for poison in digests(n):
        run = isolate(n, {poison}.isdisjoint)
        found(n, [poison], run)
        assert run[1] - 1 <= math.ceil(math.log2(n)) + 1


@given(case=SETS)
def test_several_refused_texts_cost_one_failed_search_and_halving_for_each(case: tuple[int, set[bytes]]) -> None:
    n, poison = case[0], case[1] - {b""}
    depth = math.ceil(math.log2(n or 1))
    _, sent, _ = isolate(n, poison.isdisjoint)
    assert sent <= depth + 4 + 2 * depth * len(poison)


@given(n=st.integers(0, 60), data=st.data())
def test_a_provider_that_refuses_too_many_tokens_without_saying_so_is_told_from_a_refused_text(
    n: int, data: st.DataObject
) -> None:
    """Texts of about one length; no rule within the price of a single search can tell them for every mixture."""
    tokens = dict(numbered(data.draw(st.lists(st.integers(90, 110), min_size=n, max_size=n))))
    most = data.draw(st.integers(110, 7000))
    found(n, [], isolate(n, lambda group: sum(tokens[d] for d in group) <= most))


@example(given=[9, 2, 1, 1], above=1)
@given(given=st.lists(st.integers(1, 100), max_size=50), above=st.integers(0, 400))
def test_no_mixture_of_lengths_makes_a_text_look_refused_where_a_request_holds_too_many_tokens(
    given: list[int], above: int
) -> None:
    """Such as one long text among short ones, at a server that answers 400 to more tokens than it takes at once."""
    tokens = dict(numbered(given))
    most = max(given, default=0) + above
    isolation = Isolation(list(tokens), tokens)
    while group := isolation.group:
        isolation.told(is_taken=sum(tokens[d] for d in group) <= most)
    assert (isolation.refused, isolation.taken) == ([], len(given))


@given(given=st.lists(st.integers(1, 100), min_size=1, max_size=50), data=st.data())
def test_one_refused_text_among_texts_of_any_length_costs_at_most_one_request_more_for_its_length(
    given: list[int], data: st.DataObject
) -> None:
    tokens = dict(numbered(given))
    poison = data.draw(st.sampled_from(list(tokens)))
    isolation, sent = Isolation(list(tokens), tokens), 0
    while group := isolation.group:
        sent += 1
        isolation.told(is_taken=poison not in group)
    assert isolation.refused == [poison]
    assert sent - 1 <= math.ceil(math.log2(len(given))) + 2


def test_a_request_that_is_taken_costs_nothing_more() -> None:
    run = isolate(9, lambda group: True)
    found(9, [], run)
    assert run[1] == 1


@given(n=st.integers(0, 70), most=st.integers(1, 70))
def test_a_provider_that_calls_requests_too_large_leads_to_no_blame(n: int, most: int) -> None:
    found(n, [], isolate(n, lambda group: True, says_too_large_above=most))


@given(case=SETS, most=st.integers(1, 40))
def test_refused_texts_are_found_also_where_requests_are_too_large(case: tuple[int, set[bytes]], most: int) -> None:
    n, poison = case[0], case[1] - {b""}
    found(n, poison, isolate(n, poison.isdisjoint, says_too_large_above=most))


@given(case=SETS, moods=st.randoms(use_true_random=False))
def test_no_text_is_lost_where_a_request_is_called_too_large_in_mid_search(
    case: tuple[int, set[bytes]], moods: random.Random
) -> None:
    n, poison = case[0], case[1] - {b""}
    isolation, taken = Isolation(digests(n)), []
    while group := isolation.group:
        if len(group) > 1 and moods.random() < 0.3:
            isolation.told(is_taken=False, too_large=True)
        else:
            is_taken = poison.isdisjoint(group)
            taken += group if is_taken else []
            isolation.told(is_taken=is_taken)
    assert sorted([*taken, *poison]) == digests(n)
    assert sorted(isolation.refused) == sorted(poison)


def test_a_request_called_too_large_is_no_evidence_against_a_text() -> None:
    """Without the provider's word for it, the first of these texts looks refused: ten tokens are taken, eleven not."""
    tokens = dict(numbered([9, 2, 1, 1]))
    isolation = Isolation(list(tokens))
    while group := isolation.group:
        fits = sum(tokens[d] for d in group) <= 10
        isolation.told(is_taken=fits, too_large=not fits)
    assert (isolation.refused, isolation.taken) == ([], 4)


def test_a_single_text_that_is_too_large_is_refused() -> None:
    found(4, digests(4)[2:3], isolate(4, {digests(4)[2]}.isdisjoint, says_too_large_above=3))
    isolation = Isolation(digests(1))
    isolation.told(is_taken=False, too_large=True)
    assert (isolation.refused, isolation.group) == (digests(1), [])


@given(n=st.integers(0, 70), most=st.integers(1, 70))
def test_a_provider_that_refuses_large_requests_without_saying_so_leads_to_no_blame(n: int, most: int) -> None:
    found(n, [], isolate(n, lambda group: len(group) <= most))


@given(n=st.integers(2, 40), data=st.data())
def test_a_provider_that_refuses_two_texts_together_and_takes_each_alone_leads_to_no_blame(
    n: int, data: st.DataObject
) -> None:
    pair = data.draw(st.sets(st.sampled_from(digests(n)), min_size=2, max_size=2))
    found(n, [], isolate(n, lambda group: not pair <= set(group)))


@given(n=st.integers(1, 24), answers=st.randoms(use_true_random=False))
def test_a_provider_without_reason_is_asked_a_bounded_number_of_times(n: int, answers: random.Random) -> None:
    isolation, _, taken = isolate(n, lambda group: answers.random() < 0.5)
    assert sorted([*taken, *isolation.refused]) == digests(n)
