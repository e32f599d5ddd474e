"""In-memory twins of the ports, and a fault script that wraps any of them.

Each twin passes the conformance suite of its port (`tests/ports/`) that its adapter passes. They keep what makes the
real parts hard: transactions that interleave, redelivery, late delivery by an abandoned task, lost answers. Time is
virtual, randomness comes from the test.
"""

from tests.fakes.broker import MemoryBroker, MemoryDecoder, MemoryFeed
from tests.fakes.capture import MemoryCapture, MemoryConnector
from tests.fakes.clock import VirtualClock
from tests.fakes.embedder import MemoryEmbedder, WordTokenizer, throttled, vector_of
from tests.fakes.faults import Died, FaultMissed, Faults, die, lose, refuse, slow, then
from tests.fakes.source import Blocked, MemorySource, Transaction, UniqueViolation
from tests.fakes.target import MemoryDatabase, MemoryIndexes, MemoryTarget

__all__ = [
    "Blocked",
    "Died",
    "FaultMissed",
    "Faults",
    "MemoryBroker",
    "MemoryCapture",
    "MemoryConnector",
    "MemoryDatabase",
    "MemoryDecoder",
    "MemoryEmbedder",
    "MemoryFeed",
    "MemoryIndexes",
    "MemorySource",
    "MemoryTarget",
    "Transaction",
    "UniqueViolation",
    "VirtualClock",
    "WordTokenizer",
    "die",
    "lose",
    "refuse",
    "slow",
    "then",
    "throttled",
    "vector_of",
]
