"""What the product needs from outside, one protocol per outside system.

Each docstring states ordering, durability and repeatability before the signature: an adapter in `connectors/` and its
in-memory twin in `tests/fakes` pass the same conformance suite (`tests/ports/`). Adapters take no decision about
sync and never commit on their own: `Target.begin` is the one unit of work that Replica, Vectors and Ledger share.

Raises, for all ports: TransientError (away, throttled, serialisation, deadlock: forget memory and try again),
PermissionRefused, and what a method names itself.
"""

from __future__ import annotations

from daemon.core.catalog import CatalogColumn, TableCatalog
from daemon.core.chunking import Tokenizer
from daemon.core.model import Backlog, Break, IndexState, SourceTableState
from daemon.core.setup import PublishedTable, SlotState, SourceSetup, TargetSetup, TopicSetup
from daemon.ports.audit import Audit, ChunkPage, ChunkText, Comparisons, RowPieces, RowText, Scan, Suspect
from daemon.ports.embedder import Embedded, Embedder, Matrix, Throttled
from daemon.ports.feed import Capture, ChangeFeed, Decoder, Offsets, Polled, RawRecord
from daemon.ports.groundwork import Groundwork
from daemon.ports.ledger import BackfillRange, Ledger, MigrationState, Realignment, StoredCertificate
from daemon.ports.source import Blocker, Counted, DigestPage, KeyPage, Page, SampledRow, Source, SourceRow
from daemon.ports.target import ChosenRow, Condition, Document, Indexes, Replica, Target, UnitOfWork, Vectors

__all__ = [
    "Audit",
    "BackfillRange",
    "Backlog",
    "Blocker",
    "Break",
    "Capture",
    "CatalogColumn",
    "ChangeFeed",
    "ChosenRow",
    "ChunkPage",
    "ChunkText",
    "Comparisons",
    "Condition",
    "Counted",
    "Decoder",
    "DigestPage",
    "Document",
    "Embedded",
    "Embedder",
    "Groundwork",
    "IndexState",
    "Indexes",
    "KeyPage",
    "Ledger",
    "Matrix",
    "MigrationState",
    "Offsets",
    "Page",
    "Polled",
    "PublishedTable",
    "RawRecord",
    "Realignment",
    "Replica",
    "RowPieces",
    "RowText",
    "SampledRow",
    "Scan",
    "SlotState",
    "Source",
    "SourceRow",
    "SourceSetup",
    "SourceTableState",
    "StoredCertificate",
    "Suspect",
    "TableCatalog",
    "Target",
    "TargetSetup",
    "Throttled",
    "Tokenizer",
    "TopicSetup",
    "UnitOfWork",
    "Vectors",
]
