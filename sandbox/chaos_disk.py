"""A small disk for the target: a tmpfs that carries its database, filled by a file and freed again.

The mount is made in a mount namespace of this process and its children, so that it is gone with them whatever ends
them. Where the kernel does not permit that, there is no disk and the reason is kept; nothing else changes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import tempfile
from pathlib import Path

import psycopg
from psycopg import sql

from sandbox.programs import service_user
from sandbox.stack import TARGET_DATABASE, Sandbox

SIZE_MB = 512
CLONE_NEWNS = 0x00020000
TABLESPACE = "small_disk"
BLOCK = bytes(1 << 16)


class SmallDisk:
    """Made before the sandbox starts: the servers have to see the mount. why_not: the reason where there is none."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="revector-disk-"))
        self.why_not: str | None = None
        try:
            self._mount()
        except (OSError, subprocess.CalledProcessError) as error:
            self.why_not = f"a tmpfs cannot be mounted here: {error}"

    def carry(self, sandbox: Sandbox) -> None:
        """Move the target's database onto it, before anybody is connected."""
        if self.why_not is not None:
            return
        with psycopg.connect(sandbox.target.dsn("postgres"), autocommit=True) as connection:
            place = sql.Literal(str(self.folder / "data"))
            connection.execute(sql.SQL("create tablespace {} location {}").format(sql.Identifier(TABLESPACE), place))
            move = sql.SQL("alter database {} set tablespace {}")
            connection.execute(move.format(sql.Identifier(TARGET_DATABASE), sql.Identifier(TABLESPACE)))

    def fill(self) -> int:
        """A file of all that is free, then more until nothing fits any more; its bytes."""
        with (self.folder / "filler").open("ab", buffering=0) as file, contextlib.suppress(OSError):
            place = os.statvfs(self.folder)
            with contextlib.suppress(OSError):  # somebody else took some meanwhile
                os.posix_fallocate(file.fileno(), 0, place.f_bavail * place.f_frsize)
            while file.write(BLOCK):
                continue
        return (self.folder / "filler").stat().st_size

    def is_full(self, dsn: str) -> bool:
        """Whether the database on it is refused a new page, as SQLSTATE 53100 says."""
        try:
            with psycopg.connect(dsn, connect_timeout=5) as connection:
                connection.execute(
                    "create table public.does_not_fit as select repeat('x', 1000) from generate_series(1, 2000)"
                )
                connection.rollback()
        except psycopg.errors.DiskFull:
            return True
        return False

    def free(self) -> None:
        (self.folder / "filler").unlink(missing_ok=True)

    def close(self) -> None:
        """After the sandbox has stopped; repeatable."""
        if self.why_not is None:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=False, capture_output=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _mount(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNS) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        for words in (
            ["mount", "--make-rprivate", "/"],
            ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m,mode=0711", "tmpfs", str(self.folder)],
        ):
            subprocess.run(words, check=True, capture_output=True)
        self.folder.chmod(0o711)
        data, user = self.folder / "data", service_user()
        data.mkdir(mode=0o700)
        if user.uid is not None and user.gid is not None:
            os.chown(data, user.uid, user.gid)
