"""`health`: does the process of this configuration live? For a container's health check: no driver, no secret.

Asks `/livez` of the configured `http.listen`, which a thread of its own answers from the main loop's last turn. An
address that means "every interface" is asked on loopback.
"""

from __future__ import annotations

import http.client

import typer

from daemon.cli.frame import Changes, ConfigFile, ExitCode, Json, Name, frame_of, page

LIMIT_S = 2.0
EVERY_INTERFACE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - addresses to translate


def register(app: typer.Typer) -> None:
    """Add the command."""
    examples = ("revector health", "revector health articles --config articles.toml --json")
    page(app, "health", examples, [ExitCode.NO, ExitCode.CONFIG])(health)


def health(
    context: typer.Context, name: Name = None, file: ConfigFile = None, changes: Changes = None, as_json: Json = False
) -> None:
    """Ask the running process whether its main loop turns (/livez). The answer is no after 2 s."""
    frame = frame_of(context)
    host, port = frame.load(name, file, changes).settings.http.address
    if port == 0:
        example = f"give it, such as --set http.listen={host}:9464"
        raise typer.BadParameter(f"http.listen has port 0, any free one: the process's log says which; {example}")
    reason = unfit(EVERY_INTERFACE.get(host, host), port)
    body = {"ok": reason is None, "reason": reason}
    frame.out.answer("health", body, ["ok" if reason is None else f"no: {reason}"])
    if reason is not None:
        raise typer.Exit(ExitCode.NO)


def unfit(host: str, port: int) -> str | None:
    """Why the process does not count as alive; None where it does."""
    connection = http.client.HTTPConnection(host, port, timeout=LIMIT_S)
    try:
        connection.request("GET", "/livez")
        status = connection.getresponse().status
    except TimeoutError:
        return f"no answer within {LIMIT_S:.0f} s"
    except (OSError, http.client.HTTPException):
        return "nothing answers at http.listen"
    finally:
        connection.close()
    return None if status == 200 else "the main loop does not turn"
