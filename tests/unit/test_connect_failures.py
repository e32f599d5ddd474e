"""What is taken out of a Java trace: names and sizes, never its prose."""

from __future__ import annotations

import pytest

from connectors.connect_failures import failure_of
from daemon.core.profile import failure_hint

SEND = (
    "org.apache.kafka.connect.errors.ConnectException: Unrecoverable exception from producer send\n\tat a.B(D.java:1)\n"
)
TOO_LARGE = "Caused by: org.apache.kafka.common.errors.RecordTooLargeException: "
CLIENT = "The message is 2097395 bytes when serialized which is larger than 1048576, which is the value of …\n"
BROKER = "The request included a message larger than the max message size the server will accept.\n"


@pytest.mark.parametrize(
    ("trace", "said"),
    [
        (
            SEND + TOO_LARGE + CLIENT,
            "ConnectException, RecordTooLargeException: 2097395 bytes, the producer's limit is 1048576",
        ),
        (SEND + TOO_LARGE + BROKER, "ConnectException, RecordTooLargeException"),
        (SEND, "ConnectException"),
        ("", "no cause is given"),
        ("a row's text: Caused by: nothing\nCaused by: a secret\n", "no cause is given"),
    ],
)
def test_a_failure_is_told_in_names_and_sizes(trace: str, said: str) -> None:
    assert failure_of(trace) == said
    hint = failure_hint(said)
    assert (hint is not None) == ("TooLarge" in said)


def test_prose_that_quotes_a_row_stays_out() -> None:
    trace = (
        "org.apache.kafka.connect.errors.DataException: cannot convert 'sesame of a row'\n"
        "Caused by: org.postgresql.util.PSQLException: ERROR: duplicate key (id)=(sesame)\n"
    )
    assert failure_of(trace) == "DataException, PSQLException"
