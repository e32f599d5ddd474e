"""What a single setting must satisfy: checks and the value types that they make.

A check raises `fault`: a stable id, a message and a hint, and never the refused value where it could be a secret.
`daemon.settings` builds its classes from the annotated types at the end of this module; `daemon.config` turns faults
into problems with a place. Nothing here reads a file, the environment or a network.
"""

from __future__ import annotations

import difflib
import re
import zoneinfo
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, NamedTuple, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from daemon import conninfo
from daemon.core import contract

_RESERVED = frozenset({"public", "revector", "information_schema"})
_IDENTIFIER = r'[A-Za-z_][A-Za-z0-9_$]*|"(?:[^"]|"")+"'
_AZURE_VERSION = re.compile(r"\?api-version=[\w.-]+\Z", re.ASCII)  # the one query an address needs: Azure by deployment
_RELATION = re.compile(rf"(?P<schema>{_IDENTIFIER})\.(?P<name>{_IDENTIFIER})")

# Keys of [kafka.properties] that decide what exactly-once rests on, with the reason they are ours.
OWNED_PROPERTIES: Mapping[str, str] = {
    "auto.offset.reset": "an offset that is gone must halt, not be skipped",
    "client.id": "it is revector-<name>-<role>",
    "enable.auto.commit": "the target's checkpoint is the only authority on what is done",
    "enable.auto.offset.store": "the target's checkpoint is the only authority on what is done",
    "enable.partition.eof": "offsets behind the last record are counted from it",
    "group.id": "it is revector.<name>",
    "isolation.level": "an aborted transaction's records must not be applied",
}
SECRET_PROPERTIES = frozenset(
    {
        "sasl.oauthbearer.client.secret",
        "sasl.oauthbearer.assertion.private.key.passphrase",
        "sasl.oauthbearer.assertion.private.key.pem",
        "sasl.password",
        "ssl.key.password",
        "ssl.key.pem",
        "ssl.keystore.password",
    }
)


class Fault(NamedTuple):
    """One refused key. path: below the value that the check looks at."""

    path: tuple[str | int, ...]
    id: str
    message: str
    hint: str


def fault(id: str, message: str, hint: str) -> PydanticCustomError:
    """The error that a check raises for one value."""
    return faults([Fault((), id, message, hint)])


def faults(found: list[Fault]) -> PydanticCustomError:
    """The error that a check raises for several keys at once."""
    return PydanticCustomError("revector", "refused", {"faults": found})


class Frozen(BaseModel):
    """Strict (TOML has types), closed (unknown keys are refused), immutable."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True)


class Secret(Frozen):
    """Where a secret lies; the secret itself is read when it is needed (`Loaded.reveal`) and never kept."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 1})

    env: str | None = Field(default=None, min_length=1, description="Name of an environment variable.")
    file: str | None = Field(
        default=None, min_length=1, description="Path of a file; a relative one starts at the config's folder."
    )
    credential: str | None = Field(
        default=None, pattern=r"^[^/]+$", description="Name of a systemd credential, a file in $CREDENTIALS_DIRECTORY."
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(v is not None for v in (self.env, self.file, self.credential)) != 1:
            raise fault("secret-reference", "a secret has one source", "write one of env, file, credential")
        return self

    def __str__(self) -> str:
        kind, value = next((k, v) for k, v in self if v is not None)
        return f"{kind} {value}"

    def __repr__(self) -> str:
        return f"Secret({self})"


def _dsn(value: object, info: ValidationInfo) -> conninfo.Conninfo:
    environ: Mapping[str, str] = (info.context or {}).get("environ", {})
    if not isinstance(value, str):
        raise fault("wrong-type", "must be a string", "write a libpq connection string")
    try:
        return conninfo.secured(conninfo.parse(value), environ)
    except ValueError as error:
        raise fault("dsn-invalid", str(error), 'such as "host=db dbname=app user=revector" or postgresql://…') from None


def _relation(value: str) -> str:
    if not _RELATION.fullmatch(value):
        hint = 'such as "app.article"; quote odd names: app."Article"'
        raise fault("table-invalid", "not a schema and a table", hint)
    return value


def relation(source: str) -> tuple[str, str]:
    """(schema, table) as the catalogue spells them: unquoted names in lower case."""
    match = _RELATION.fullmatch(source)
    if match is None:
        raise ValueError("not a schema and a table")
    return _spelled(match["schema"]), _spelled(match["name"])


def _spelled(identifier: str) -> str:
    return identifier[1:-1].replace('""', '"') if identifier.startswith('"') else identifier.lower()


def _template(value: str) -> str:
    try:
        contract.placeholders(value)
    except contract.TemplateError as error:
        hint = 'such as "{title}\\n\\n{body}"; {{ and }} stand for braces'
        raise fault("template-invalid", str(error), hint) from None
    return value


def _http_url(value: str) -> str:
    try:
        url = urlsplit(value)
        sound = url.scheme in {"http", "https"} and url.hostname and (url.port or True)
    except ValueError:
        sound = False
    if not sound:
        raise fault("url-invalid", "not an http or https URL", "such as https://host:8083")
    if "@" in url.netloc or url.query or url.fragment:
        raise fault("url-invalid", "user, query and fragment have no place in it", "use the keys for credentials")
    return value


def _provider_url(value: str) -> str:
    url = urlsplit(_http_url(_AZURE_VERSION.sub("", value)))
    if url.scheme == "http" and not conninfo.is_local(url.hostname or ""):
        raise fault("provider-in-clear", "texts and key would leave this machine in clear", "use https")
    return value


def _listen(value: str) -> str:
    host, colon, port = value.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) < 65536):
        raise fault("listen-invalid", "not an address and a port", 'such as "127.0.0.1:9464"')
    return value


def _timezone(value: str) -> str:
    try:
        zoneinfo.ZoneInfo(value)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        close = difflib.get_close_matches(value, sorted(zoneinfo.available_timezones()), n=1)
        hint = f"did you mean `{close[0]}`?" if close else "such as Europe/Berlin, or UTC"
        raise fault("timezone-unknown", "is no name of the IANA time zone database", hint) from None
    return value


def _name(value: str) -> str:
    if value in _RESERVED or value.startswith("pg_"):
        raise fault("name-reserved", "it becomes a schema's name, and this one is taken", "choose another name")
    return value


def _property_faults(properties: Mapping[str, Any]) -> Iterator[Fault]:
    for key, value in properties.items():
        if key in OWNED_PROPERTIES:
            yield Fault((key,), "kafka-property-owned", f"revector sets it: {OWNED_PROPERTIES[key]}", "remove it")
        elif isinstance(value, Mapping):
            if not _is_reference(value):
                yield Fault((key,), "secret-reference", "not a secret's place", 'such as { env = "KAFKA_PASSWORD" }')
        elif not isinstance(value, str | int | float):
            yield Fault((key,), "wrong-type", "must be a string, a number or a boolean", "see librdkafka's reference")
        elif key in SECRET_PROPERTIES:
            hint = 'write { env = "…" }, { file = "…" } or { credential = "…" }'
            yield Fault((key,), "secret-in-file", "a secret has no place in a config file", hint)
    servers = str(properties.get("bootstrap.servers") or "")
    if not servers:
        hint = 'add "bootstrap.servers" = "host:9092"'
        yield Fault((), "kafka-servers-missing", '"bootstrap.servers" is required', hint)
    elif "security.protocol" not in properties and not all(is_local_server(s) for s in servers.split(",")):
        hint = 'set "security.protocol" to "SASL_SSL" or "SSL" (or to "PLAINTEXT", knowing that rows travel in clear)'
        yield Fault(("bootstrap.servers",), "kafka-in-clear", "brokers off this machine and no security.protocol", hint)


def _is_reference(value: Mapping[str, Any]) -> bool:
    return len(value) == 1 and all(k in Secret.model_fields and v and isinstance(v, str) for k, v in value.items())


def is_local_server(server: str) -> bool:
    return conninfo.is_local(server.strip().rpartition("://")[2].rpartition(":")[0])


def _properties(value: object) -> dict[str, str | Secret]:
    if not isinstance(value, Mapping):
        raise fault("wrong-type", "must be a table", 'such as [kafka.properties]\n"bootstrap.servers" = "host:9092"')
    if found := list(_property_faults(value)):
        raise faults(found)
    return {k: Secret(**v) if isinstance(v, Mapping) else _property(v) for k, v in value.items()}


def _property(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


_PROPERTIES_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["bootstrap.servers"],
    "propertyNames": {"not": {"enum": sorted(OWNED_PROPERTIES)}},
    "additionalProperties": {
        "anyOf": [
            {"type": ["string", "number", "boolean"]},
            {
                "type": "object",
                "propertyNames": {"enum": ["env", "file", "credential"]},
                "additionalProperties": {"type": "string", "minLength": 1},
                "minProperties": 1,
                "maxProperties": 1,
            },
        ],
    },
}
Dsn = Annotated[conninfo.Conninfo, PlainValidator(_dsn), WithJsonSchema({"type": "string"})]
Properties = Annotated[Mapping[str, str | Secret], PlainValidator(_properties), WithJsonSchema(_PROPERTIES_SCHEMA)]
HttpUrl = Annotated[str, AfterValidator(_http_url)]
ProviderUrl = Annotated[str, AfterValidator(_provider_url)]
Timezone = Annotated[str, AfterValidator(_timezone)]
Listen = Annotated[str, AfterValidator(_listen)]
Relation = Annotated[str, AfterValidator(_relation)]
Template = Annotated[str, AfterValidator(_template)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,30}$")]
MigrationName = Annotated[Name, AfterValidator(_name)]
Text = Annotated[str, Field(min_length=1)]
Names = Annotated[tuple[Text, ...], Field(strict=False)]
