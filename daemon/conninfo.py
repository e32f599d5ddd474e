"""Postgres connection strings as values: parsed, made safe by default, never printed with their password.

Both forms of libpq are read (`host=db dbname=app` and `postgresql://…`) and kept as keywords. What a `PG*` variable
or a service file adds is libpq's business; only what decides about TLS is looked at here: a connection that leaves
this machine gets `sslmode=verify-full` where nobody chose a mode.

Pure: the environment comes in as an argument. No driver: the check of a configuration loads none.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote

_SECRET = frozenset({"password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key"})
HIDDEN = "***"


@dataclass(frozen=True, slots=True)
class Conninfo:
    """A connection string. `str` and `repr` hide its secrets; `reveal` is for the driver alone."""

    parameters: tuple[tuple[str, str], ...]

    def reveal(self) -> str:
        """The keyword form, secrets included."""
        return _joined(self.parameters)

    def __str__(self) -> str:
        return _joined(tuple((k, HIDDEN if k in _SECRET else v) for k, v in self.parameters))

    def __repr__(self) -> str:
        return f"Conninfo({str(self)!r})"

    def get(self, keyword: str) -> str | None:
        return dict(self.parameters).get(keyword)


def parse(text: str) -> Conninfo:
    """Read either form. Raises ValueError with a message that carries no part of the text."""
    if text.startswith(("postgresql://", "postgres://")):
        return Conninfo(tuple(_from_uri(text).items()))
    return Conninfo(tuple(_from_keywords(text).items()))


def secured(conninfo: Conninfo, environ: Mapping[str, str]) -> Conninfo:
    """With `sslmode=verify-full` where the connection leaves this machine and nobody chose a mode.

    A service may choose host and mode, and a mode in the string would override it: left alone (`is_undecided`).
    """
    if conninfo.get("sslmode") or environ.get("PGSSLMODE") or _service(conninfo, environ):
        return conninfo
    if all(is_local(host) for host in _hosts(conninfo, environ)):
        return conninfo
    return Conninfo((*conninfo.parameters, ("sslmode", "verify-full")))


def is_undecided(conninfo: Conninfo, environ: Mapping[str, str]) -> bool:
    """Whether a service decides about TLS, out of our sight."""
    return bool(_service(conninfo, environ)) and not (conninfo.get("sslmode") or environ.get("PGSSLMODE"))


def is_local(host: str) -> bool:
    """Whether a host is a socket folder, an abstract socket, `localhost` or a loopback address."""
    if not host or host.startswith(("/", "@")) or host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _service(conninfo: Conninfo, environ: Mapping[str, str]) -> str | None:
    return conninfo.get("service") or environ.get("PGSERVICE")


def _hosts(conninfo: Conninfo, environ: Mapping[str, str]) -> list[str]:
    """Every address the driver may try; [""] is the default socket. `hostaddr` wins over `host`, as in libpq."""
    address = conninfo.get("hostaddr") or environ.get("PGHOSTADDR")
    return (address or conninfo.get("host") or environ.get("PGHOST") or "").split(",")


def _joined(parameters: tuple[tuple[str, str], ...]) -> str:
    return " ".join(f"{k}={_quoted(v)}" for k, v in parameters)


def _quoted(value: str) -> str:
    if value and not any(c.isspace() or c in "'\\" for c in value):
        return value
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _from_keywords(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    at = 0
    while True:
        while at < len(text) and text[at].isspace():
            at += 1
        if at == len(text):
            return found
        equals = text.find("=", at)
        keyword = text[at:equals].strip() if equals > 0 else ""
        if not keyword or not keyword.replace("_", "").isalnum():
            raise ValueError("expected keyword=value pairs")
        found[keyword], at = _value(text, equals + 1)


def _value(text: str, at: int) -> tuple[str, int]:
    """The value that begins at `at`, and where it ends. Quotes and backslashes as in libpq."""
    while at < len(text) and text[at].isspace():
        at += 1
    quoted = at < len(text) and text[at] == "'"
    at += quoted
    value: list[str] = []
    while at < len(text):
        c = text[at]
        if c == "\\" and at + 1 < len(text):
            at += 1
            value.append(text[at])
        elif quoted and c == "'":
            return "".join(value), at + 1
        elif not quoted and c.isspace():
            break
        else:
            value.append(c)
        at += 1
    if quoted:
        raise ValueError("a quoted value does not end")
    return "".join(value), at


def _from_uri(text: str) -> dict[str, str]:
    # Not urlsplit: its errors quote the text, and libpq takes several hosts.
    rest, _, query = text.partition("://")[2].partition("?")
    authority, _, database = rest.partition("/")
    userinfo, _, places = authority.rpartition("@")
    found: dict[str, str] = {}
    user, colon, password = userinfo.partition(":")
    if user:
        found["user"] = unquote(user)
    if colon:
        found["password"] = unquote(password)
    hosts, ports = zip(*(_place(p) for p in places.split(",")), strict=True)
    if any(hosts):
        found["host"] = ",".join(hosts)
    if any(ports):
        found["port"] = ",".join(ports)
    if database:
        found["dbname"] = unquote(database)
    try:
        found.update(parse_qsl(query.replace("+", "%2B"), keep_blank_values=True, strict_parsing=bool(query)))
    except ValueError:
        raise ValueError("the part after `?` is not keyword=value pairs") from None
    return found


def _place(text: str) -> tuple[str, str]:
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]")
        if not bracket:
            raise ValueError("an address in brackets does not end")
        return host, port.removeprefix(":")
    host, _, port = text.partition(":")
    if port and not port.isdigit():
        raise ValueError("the port is not a number; a password with `@`, `/` or `:` is percent-encoded")
    return unquote(host), port
