"""The sandbox as a whole: every part on free loopback ports, started in parallel, gone at the end.

    with Sandbox.start() as sandbox:
        sandbox.source_dsn, sandbox.kafka, sandbox.connect_url, …

Each part is an object (`source`, `target`, `broker`, `connect`, `embeddings`) that can be stopped, crashed, frozen and
started again on the same port. When the block ends normally nothing is left; when it ends with an exception the logs
stay and the exception's note names their folder; when this process is killed, its guardian cleans up.
"""

import os
import secrets
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from sandbox.connect import Connector, ConnectWorker
from sandbox.kafka import Broker, Door
from sandbox.parts import Part, Ports, PortTaken
from sandbox.postgres import Postgres
from sandbox.processes import Guardian, Program, SandboxError
from sandbox.programs import jars, java, postgres_folder
from sandbox.provider import ProviderServer

START_ATTEMPTS = 3  # a port can be taken between choosing and using it

# The broker's listeners for whoever comes through a proxy (`sandbox.proxied`): revector, and Connect's producers.
PRODUCT_DOOR = "PRODUCT"
CAPTURE_DOOR = "CAPTURE"

SOURCE_DATABASE = "app"
TARGET_DATABASE = "search"


class EmbeddingsServer(Part):
    """The embeddings server's process; `url` is the base URL for OpenAI clients."""

    def __init__(self, guardian: Guardian, port: int, key: str, log: Path) -> None:
        root = str(Path(__file__).resolve().parents[1])
        environment = {"SANDBOX_EMBEDDINGS_KEY": key, "PYTHONPATH": root, "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "sandbox.embeddings", "--port", str(port)]
        super().__init__(guardian, Program("embeddings", command, log, environment), port)
        self.url = f"http://127.0.0.1:{port}/v1"


class Sandbox:
    """A running stack."""

    def __init__(self, folder: Path) -> None:
        """Plan it: folders, ports and programs; `start` starts it."""
        self.folder = folder
        self.logs = folder / "logs"
        self.logs.mkdir()
        self.config = folder / "revector.toml"
        self.config.touch(mode=0o600)  # will hold passwords; whoever writes it keeps the mode
        self.embeddings_key = secrets.token_hex(16)
        self.embeddings_key_file = folder / "embeddings.key"
        self.embeddings_key_file.write_text(self.embeddings_key)
        self.embeddings_key_file.chmod(0o600)
        self.start_s = 0.0
        self._guardian = Guardian(folder)
        self._ports = Ports()
        take, log = self._ports.take, self._log
        self.source = Postgres(self._guardian, "source", take(), folder / "source", log("source"))
        self.target = Postgres(self._guardian, "target", take(), folder / "target", log("target"))
        doors = [Door(name, take(), take()) for name in (PRODUCT_DOOR, CAPTURE_DOOR)]
        self.broker = Broker(self._guardian, (take(), take()), folder / "kafka", log("kafka"), doors)
        self.connect = ConnectWorker(self._guardian, take(), self.broker.address, folder / "connect", log("connect"))
        self.embeddings = EmbeddingsServer(self._guardian, take(), self.embeddings_key, log("embeddings"))
        self.source_dsn = self.source.dsn(SOURCE_DATABASE)
        self.target_dsn = self.target.dsn(TARGET_DATABASE)
        self.kafka = self.broker.address
        self.connect_url = self.connect.url
        self.embeddings_url = self.embeddings.url

    @classmethod
    def start(cls, root: Path | None = None) -> Self:
        """Start everything; the stack can be used when this returns.

        root: where the run's folder is made, default the system's temporary folder. PostgreSQL's account must be
        able to enter it, which is checked. Raises SandboxError.
        """
        postgres_folder(), jars(), java()
        for attempt in range(1, START_ATTEMPTS + 1):
            sandbox = cls(_run_folder(root))
            try:
                sandbox._start_parts()
            except PortTaken:
                sandbox.stop()
                if attempt == START_ATTEMPTS:
                    raise
            except BaseException as error:
                sandbox._stop_after(error)
                raise
            else:
                return sandbox
        raise AssertionError("unreachable")

    def _start_parts(self) -> None:
        began = time.monotonic()
        steps: list[Callable[[], None]] = [self._start_kafka, self._start_source, self._start_target]
        with ThreadPoolExecutor() as pool:
            # Connect waits for the broker by itself; its 3 s of loading classes overlap with the broker's start.
            self.connect.initialise()
            running = [pool.submit(step) for step in steps]
            failed = [error for error in (future.exception() for future in running) if error is not None]
        if failed:
            raise failed[0]
        self.start_s = time.monotonic() - began

    def _start_kafka(self) -> None:
        self.broker.initialise()
        self.broker.start(wait=False)
        self.connect.start(wait=False)
        self.broker.wait_ready()
        self.connect.wait_ready()

    def _start_source(self) -> None:
        self.source.initialise()
        self.source.start()
        self.source.create_database(SOURCE_DATABASE)

    def _start_target(self) -> None:
        self.embeddings.start(wait=False)
        self.target.initialise()
        self.target.start()
        self.target.create_database(TARGET_DATABASE, vector=True)
        self.embeddings.wait_ready()

    @property
    def parts(self) -> dict[str, Part]:
        """Every part by name."""
        return {part.name: part for part in (self.source, self.target, self.broker, self.connect, self.embeddings)}

    @property
    def pids(self) -> dict[str, int]:
        """The running parts' processes, and the guardian's."""
        running = {name: part.pid for name, part in self.parts.items() if part.is_running}
        return running | {"guardian": self._guardian.pid}

    def create_database(self, which: Literal["source", "target"], name: str, *, vector: bool | None = None) -> str:
        """A new database, its DSN. pgvector is installed on the target, unless `vector` says otherwise."""
        cluster = self.source if which == "source" else self.target
        return cluster.create_database(name, vector=which == "target" if vector is None else vector)

    def take_port(self) -> int:
        """A free port, reserved until the sandbox stops."""
        return self._ports.take()

    def connector(self, name: str) -> Connector:
        """The connector of that name, registered or not."""
        return self.connect.connector(name)

    def cluster(self, name: str) -> Postgres:
        """One more Postgres of a test's own, started, with WAL segments of 1 MB; it ends with the sandbox. Several may
        have one name."""
        port = self._ports.take()
        name = f"{name}-{port}"
        cluster = Postgres(self._guardian, name, port, self.folder / name, self._log(name))
        cluster.initialise("--wal-segsize=1")
        cluster.start()
        return cluster

    def scripted_provider(self) -> ProviderServer:
        """One more provider, started: hash vectors, and whatever its script says. It has the sandbox's key."""
        server = ProviderServer(self._guardian, self._ports.take(), self.embeddings_key, self._log("provider"))
        server.start()
        return server

    def other_broker(self) -> Broker:
        """One more Kafka cluster, started and empty: what a client meets that is sent to another address."""
        ports, folder = (self._ports.take(), self._ports.take()), self.folder / f"kafka-{secrets.token_hex(4)}"
        broker = Broker(self._guardian, ports, folder, self._log(folder.name))
        broker.initialise()
        broker.start()
        return broker

    def describe(self) -> dict[str, Any]:
        """What another program needs to use this sandbox; JSON-ready."""
        return {
            "source_dsn": self.source_dsn,
            "target_dsn": self.target_dsn,
            "kafka": self.kafka,
            "connect_url": self.connect_url,
            "embeddings_url": self.embeddings_url,
            "config": str(self.config),
            "logs": str(self.logs),
            "pids": self.pids,
        }

    def stop(self, *, keep_logs: bool = False) -> None:
        """End everything and remove the folder; repeatable."""
        self._guardian.finish(keep_logs=keep_logs)
        self._ports.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if error is None:
            self.stop()
        else:
            self._stop_after(error)

    def _stop_after(self, error: BaseException) -> None:
        """Stop, keep the logs for whoever reads the error, except when somebody just wanted to leave."""
        is_failure = isinstance(error, Exception)
        self.stop(keep_logs=is_failure)
        if is_failure:
            error.add_note(f"the sandbox's logs are in {self.logs}")
            print(f"sandbox: logs kept in {self.logs}", file=sys.stderr)

    def _log(self, name: str) -> Path:
        log = self.logs / f"{name}.log"
        log.touch()
        return log


def _run_folder(root: Path | None) -> Path:
    """A new folder that PostgreSQL's account can enter."""
    folder = Path(tempfile.mkdtemp(prefix="revector-sandbox-", dir=root)).resolve()
    folder.chmod(0o711)
    if os.geteuid() == 0:
        closed = [parent for parent in folder.parents if not parent.stat().st_mode & 0o001]
        if closed:
            folder.rmdir()
            raise SandboxError(
                f"PostgreSQL does not run as root and its account cannot enter {closed[-1]}: "
                "set TMPDIR to a folder that everybody can enter, or call as an ordinary user"
            )
    return folder
