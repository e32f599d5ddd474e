"""What somebody with the right to do so has to run where a part refuses revector: SQL for either role, Kafka ACLs.

`doctor` and `init --apply` print these lines as they are; docs/howto/deploy.md explains them. Pure text: a role or
principal that is not known is written as a word in capitals that a person replaces.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_PLAIN = re.compile(r"[a-z_][a-z0-9_]*")
# PostgreSQL documentation, appendix C: reserved words cannot be names unless they are quoted.
_RESERVED_WORDS = """
    all analyse analyze and any array as asc asymmetric authorization binary both case cast check collate collation
    column concurrently constraint create cross current_catalog current_date current_role current_schema current_time
    current_timestamp current_user default deferrable desc distinct do else end except false fetch for foreign freeze
    from full grant group having ilike in initially inner intersect into is isnull join lateral leading left like limit
    localtime localtimestamp natural not notnull null offset on only or order outer overlaps placing primary references
    returning right select session_user similar some symmetric system_user table tablesample then to trailing true
    union unique user using variadic verbose when where window with
"""
_RESERVED = frozenset(_RESERVED_WORDS.split())


def quoted(name: str) -> str:
    """An SQL identifier, quoted where it has to be."""
    if _PLAIN.fullmatch(name) and name not in _RESERVED:
        return name
    return '"' + name.replace('"', '""') + '"'


def relation(schema: str, name: str) -> str:
    return f"{quoted(schema)}.{quoted(name)}"


def source_grants(role: str | None, tables: Mapping[tuple[str, str], Sequence[str]]) -> list[str]:
    """For revector's role at the source. tables: (schema, table) -> columns to read."""
    who = quoted(role) if role else "ROLE"
    schemas = sorted({schema for schema, _ in tables})
    lines = [f"GRANT USAGE ON SCHEMA {', '.join(map(quoted, schemas))} TO {who};"] if schemas else []
    for (schema, name), columns in tables.items():
        what = f"SELECT ({', '.join(map(quoted, columns))})" if columns else "SELECT"
        lines.append(f"GRANT {what} ON {relation(schema, name)} TO {who};")
    return lines


def target_grants(role: str | None, database: str | None) -> list[str]:
    """For revector's role at the target: it makes its schemas there, and owns them."""
    who, where = quoted(role) if role else "ROLE", quoted(database) if database else "DATABASE"
    return [f"GRANT CONNECT, CREATE ON DATABASE {where} TO {who};"]


def kafka_acls(principal: str | None, topics: Sequence[str], group: str) -> list[str]:
    """For revector's principal: what its reading needs, and the courtesy for lag tools."""
    add = f"kafka-acls.sh --bootstrap-server SERVER --add --allow-principal 'User:{principal or 'PRINCIPAL'}'"
    named = " ".join(f"--topic '{topic}'" for topic in topics)
    return [
        f"{add} --operation Describe --operation DescribeConfigs --operation Read {named}",
        f"{add} --operation Read --group '{group}'   # optional: lag tools see how far it is",
    ]


def kafka_create_acl(principal: str | None, topics: Sequence[str]) -> str:
    """For whoever makes the topics."""
    named = " ".join(f"--topic '{topic}'" for topic in topics)
    who = f"--allow-principal 'User:{principal or 'PRINCIPAL'}'"
    return f"kafka-acls.sh --bootstrap-server SERVER --add {who} --operation Create {named}"
