"""Apache Kafka's jars from Maven Central, kept in a cache that several runs may share.

The folder appears whole or not at all: Maven copies into a temporary folder beside it, which is
then renamed; a lock keeps two runs from doing the same work. Standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

KAFKA_VERSION = "4.3.1"
SCALA_VERSION = "2.13"
LOG4J_VERSION = "2.24.3"
PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
MIN_JAVA = 17
DOWNLOAD_TIMEOUT_S = 900
LOCK_TIMEOUT_S = DOWNLOAD_TIMEOUT_S + 60

# Kafka itself, its tools (DumpLogSegments, ProducerPerformance), and a logger to say why it died.
DEPENDENCIES = (
    ("org.apache.kafka", f"kafka_{SCALA_VERSION}", KAFKA_VERSION),
    ("org.apache.kafka", "kafka-tools", KAFKA_VERSION),
    ("org.apache.logging.log4j", "log4j-slf4j-impl", LOG4J_VERSION),
    ("org.apache.logging.log4j", "log4j-core", LOG4J_VERSION),
)


class ClusterError(Exception):
    """Something about the local Kafka failed; the message says what and what to do."""


class ToolMissing(ClusterError):
    """Java or Maven is not installed."""


def cache_folder() -> Path:
    """Where the jars of this version are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "mpproducer" / f"kafka-{KAFKA_VERSION}"


def java() -> str:
    """The java command; raises ToolMissing when there is none, or none new enough."""
    home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=str(Path(home, "bin"))) if home else None
    found = found or shutil.which("java")
    install = "install it: apt-get install default-jre-headless"
    if found is None:
        raise ToolMissing(f"Java is missing (Kafka {KAFKA_VERSION} needs {MIN_JAVA}); {install}")
    shown = subprocess.run(
        [found, "-version"], check=False, capture_output=True, text=True, timeout=60
    ).stderr
    match = re.search(r'version "(\d+)', shown)
    if match is None or int(match[1]) < MIN_JAVA:
        first = shown.strip().splitlines()[:1]
        raise ToolMissing(f"Java {MIN_JAVA} or newer is needed, {found} says {first}; {install}")
    return found


def maven() -> str:
    """The mvn command; raises ToolMissing when there is none."""
    found = shutil.which("mvn")
    if found is None:
        raise ToolMissing("Maven (mvn) is missing; install it: apt-get install maven")
    return found


def ready() -> bool:
    """Whether the jars are in the cache."""
    return (cache_folder() / "lib" / ".complete").exists()


def ensure() -> Path:
    """The folder with the jars, fetched if need be. Raises ClusterError."""
    folder = cache_folder()
    lib = folder / "lib"
    if ready():
        return lib
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "lock", LOCK_TIMEOUT_S):
        if not ready():
            _fetch(folder, lib)
    return lib


def _fetch(folder: Path, lib: Path) -> None:
    sys.stderr.write(f"kafka: fetching Apache Kafka {KAFKA_VERSION} from Maven (54 MB, once)\n")
    with tempfile.TemporaryDirectory(dir=folder, prefix="fetch-") as text:
        work = Path(text)
        (work / "pom.xml").write_text(_pom())
        command = [
            maven(), "-q", "-B", "-f", str(work / "pom.xml"), PLUGIN,
            f"-DoutputDirectory={work / 'lib'}", "-DincludeScope=runtime",
        ]  # fmt: skip
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as process:
            try:
                output, _ = process.communicate(timeout=DOWNLOAD_TIMEOUT_S)
            except BaseException as error:
                process.kill()
                if isinstance(error, subprocess.TimeoutExpired):
                    raise ClusterError(f"Maven took more than {DOWNLOAD_TIMEOUT_S} s") from None
                raise
        if process.returncode != 0:
            raise ClusterError(f"Maven failed with status {process.returncode}:\n{output[-4000:]}")
        if not (work / "lib" / f"kafka_{SCALA_VERSION}-{KAFKA_VERSION}.jar").exists():
            raise ClusterError(f"Maven brought no Kafka:\n{output[-4000:]}")
        (work / "lib" / ".complete").touch()
        if lib.exists():  # left by something that did not finish
            lib.rename(work / "incomplete")
        (work / "lib").rename(lib)


def _pom() -> str:
    rows = "".join(
        f"<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId>"
        f"<version>{version}</version></dependency>"
        for group, artifact, version in DEPENDENCIES
    )
    return (
        '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>'
        "<groupId>mpproducer</groupId><artifactId>kafka-jars</artifactId><version>1</version>"
        f"<dependencies>{rows}</dependencies></project>"
    )


def ending(folder: Path) -> Path:
    """Where the supervisor of a cluster's folder writes why it ended, unless it was its owner."""
    return folder.with_suffix(".end")


@contextlib.contextmanager
def locked(path: Path, timeout_s: float) -> Iterator[None]:
    """Hold an exclusive flock on `path`; raises ClusterError when it stays taken."""
    deadline = time.monotonic() + timeout_s
    while True:
        with path.open("w") as file:
            while not _try_lock(file):
                if time.monotonic() > deadline:
                    raise ClusterError(f"{path} stayed locked for {timeout_s:.0f} s")
                time.sleep(0.05)
            # Its last holder may have removed the file: then this lock protects nothing.
            if _is_still(path, file):
                yield
                return


def _is_still(path: Path, file: TextIO) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_ino == os.fstat(file.fileno()).st_ino
    return False


def _try_lock(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
