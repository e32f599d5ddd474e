"""What a Kafka handle is opened with, and when another cluster is noticed behind the same address."""

from __future__ import annotations

import pytest
from confluent_kafka.admin import AdminClient

from connectors.kafka_log import connection
from connectors.kafka_topics import NO_ID, KafkaTopics


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"reconnect.backoff.ms": "5000"},  # beyond our longest wait
        {"reconnect.backoff.ms": "5000", "reconnect.backoff.max.ms": "60000"},
        {"socket.timeout.ms": "61000", "fetch.wait.max.ms": "20000"},
    ],
)
def test_properties_of_the_user_win_and_go_together_with_ours(given: dict[str, str]) -> None:
    settings = connection(given)
    assert settings.items() >= given.items()
    assert ("reconnect.backoff.max.ms" in settings) is (given.keys() != {"reconnect.backoff.ms"})
    AdminClient({name: str(value) for name, value in settings.items()})  # refuses what contradicts itself


@pytest.mark.parametrize(
    ("id", "asked"), [("VLsk9jJgSJ6m3s0A5xPMVg", ["one"]), (NO_ID, ["one", "other"])], ids=["ids", "no-ids"]
)
async def test_topics_without_ids_of_their_own_do_not_vouch_for_the_cluster(
    monkeypatch: pytest.MonkeyPatch, id: str, asked: list[str]
) -> None:
    topics, answers = KafkaTopics({}, ["shop.app.doc"]), ["one", "other"]
    monkeypatch.setattr(topics, "_described", lambda names: dict.fromkeys(names, (id, 3)))
    monkeypatch.setattr(topics, "_cluster_id", lambda: answers.pop(0))
    found = [(await topics.identity()).cluster_id for _ in range(2)]
    await topics.close()
    assert found == [asked[0], asked[-1]]
