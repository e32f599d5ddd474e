"""One place where librdkafka's errors become `daemon.errors`.

A broker that is away comes back by itself, so most errors mean "try again". Refused credentials and missing ACLs do
not; offsets that are gone halt the stream. The text names the operation and the error's name, never librdkafka's
prose, which may quote configuration.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from confluent_kafka import KafkaError, KafkaException

from daemon.errors import ConfigError, OffsetsGone, PermissionRefused, Problem, RevectorError, TransientError

_CREDENTIALS = {KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED}
_ACLS = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
}
# `auto.offset.reset=error` turns every offset the broker does not have into _AUTO_OFFSET_RESET.
_GONE = {KafkaError.OFFSET_OUT_OF_RANGE, KafkaError._AUTO_OFFSET_RESET}
ABSENT = {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION}


def translate(error: KafkaError, operation: str) -> RevectorError:
    """What a librdkafka error means for `operation`."""
    code = error.code()
    what = f"kafka: {operation} failed with {error.name()}"
    if code in _CREDENTIALS:
        return PermissionRefused("password-refused", what, "check the SASL or TLS settings under [kafka.properties]")
    if code in _ACLS:
        return PermissionRefused("permission-denied", what, "docs/howto/deploy.md lists the ACLs that are needed")
    if code in _GONE:
        return offsets_gone(what)
    if code in ABSENT:
        hint = "the topic was deleted or is not readable: give it back, then let the stream go on behind what is lost"
        return OffsetsGone("topic-missing", what, hint)
    if code == KafkaError._INVALID_ARG:
        hint = "see librdkafka's CONFIGURATION.md for the names and values of properties"
        return ConfigError([Problem("kafka-property-invalid", "kafka", "a property is not accepted", hint)])
    return TransientError("kafka-unreachable", what, "check that the brokers run and that the network reaches them")


def offsets_gone(what: str) -> OffsetsGone:
    """The halt that stands in the place of a silent jump. what: which offsets, and what the broker still has."""
    hint = "what was deleted was never applied: raise the topic's retention, then let the stream go on behind it"
    return OffsetsGone("offsets-gone", what, hint)


@contextmanager
def translated(operation: str) -> Iterator[None]:
    """Raise librdkafka's errors from the block as ours."""
    try:
        yield
    except KafkaException as error:
        raise translate(error.args[0], operation) from error
