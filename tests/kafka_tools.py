"""Kafka's own command-line tools, for the commands that a page tells people to run."""

import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.brokers import JVM_OPTIONS, KAFKA, class_archive, fetch_jars, find_java

ARTIFACT = f"org.apache.kafka:kafka-tools:{KAFKA}:jar"
COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy"
MAIN = {
    "kafka-consumer-groups.sh": "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
    "kafka-transactions.sh": "org.apache.kafka.tools.TransactionsCommand",
}
FETCH_TIMEOUT = 300.0  # seconds


def install(folder: Path, environ: Mapping[str, str]) -> None:
    """Put the scripts into the folder, under the names that Kafka gives them."""
    java, jars = find_java(environ), fetch_jars(environ)
    options = " ".join(JVM_OPTIONS)
    classes = (
        f'"-XX:SharedArchiveFile={class_archive(java, jars)}" -cp "{jars}/*:{fetch_tools(jars)}/*"'
    )
    for name, main in MAIN.items():
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec "{java}" {options} {classes} {main} "$@"\n')
        script.chmod(0o755)


def fetch_tools(jars: Path) -> Path:
    """Return the folder of the tools' jar, fetched from Maven Central once."""
    tools = jars.with_name(f"kafka-tools-{KAFKA}")
    if tools.is_dir():
        return tools
    maven = shutil.which("mvn")
    assert maven is not None, f"there is no mvn to fetch {ARTIFACT} with"
    with tempfile.TemporaryDirectory(dir=jars.parent) as scratch:
        fetched = Path(scratch, "libs")
        command = [
            maven,
            "-q",
            "-B",
            COPY,
            f"-Dartifact={ARTIFACT}",
            f"-DoutputDirectory={fetched}",
        ]
        subprocess.run(command, check=True, timeout=FETCH_TIMEOUT, cwd=scratch)
        if not tools.is_dir():
            fetched.rename(tools)
    return tools
