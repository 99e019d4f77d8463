"""The local stack on a real engine: `make stack-test` brings it up, breaks it, takes it down.

The steps run in their order, each on what the one before left. It has a project name and ports of
its own, so that a stack that somebody uses is left alone.
"""

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Self
from urllib.error import URLError
from urllib.request import Request, urlopen

from tests.brokers import free_port
from tests.programs import LAST_SYNC

ROOT = Path(__file__).parents[1]
WHOLE = 900  # seconds for all of it
LONGEST = 420  # seconds for one command: images may have to be pulled
PATIENCE = 90.0  # seconds until what is going to be true is true
COMPOSE = ("docker", "compose", "--ansi=never", "--progress=quiet")
ALL_PROFILES = ("--profile", "*")
PORTS = ("API", "ELASTICSEARCH", "GRAFANA", "KAFKA", "POSTGRES", "PROMETHEUS")
SBOM = "/opt/last-sync/sbom.cdx.json"
DISTRIBUTIONS = """
from importlib.metadata import distributions
for one in distributions():
    print(one.name, one.version)
"""
CRASH = "import os, signal, sys; os.kill(int(sys.argv[1]), signal.SIGKILL)"


class StackError(Exception):
    """What was claimed is not so."""


class Stack:
    """The project's docker-compose.yml, under a name of its own."""

    def __init__(self) -> None:
        self.ports = {name: free_port() for name in PORTS}
        self._environ = {
            **os.environ,
            **{f"{name}_PORT": str(port) for name, port in self.ports.items()},
            "COMPOSE_PROJECT_NAME": f"last-sync-test-{secrets.token_hex(3)}",
            "API_KEY": "a-key-of-the-test",
            "WORKER_TAG": "test",
            "PUBLISHER_PAUSE": "0.5",
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            print("\nWhat the services said:", flush=True)
            for what in (["ps", "--all"], ["logs", "--no-color", "--tail=40"]):
                subprocess.run([*COMPOSE, *ALL_PROFILES, *what], env=self._environ, cwd=ROOT)
        self.compose("down", "--volumes", "--remove-orphans", "--timeout=5")

    @property
    def project(self) -> str:
        return self._environ["COMPOSE_PROJECT_NAME"]

    def compose(self, *arguments: str, stdin: str = "") -> str:
        return self._output([*COMPOSE, *ALL_PROFILES, *arguments], stdin=stdin)

    def up(self, *options: str, profiles: tuple[str, ...] = ()) -> None:
        chosen = [f"--profile={name}" for name in profiles]
        waiting = ["up", "--wait", "--wait-timeout=300", "--quiet-pull"]
        self._output([*COMPOSE, *chosen, *waiting, *options])

    def cli(self, *arguments: str, stdin: str = "") -> str:
        return self.compose("run", "--rm", "--no-TTY", "cli", *arguments, stdin=stdin)

    def publish(self, connector: str, indexed: int) -> None:
        """Send an event from this machine, through the port that the broker publishes."""
        event = f"--connector-id={connector} --job-type=full --status=completed"
        broker = f"--bootstrap-servers=localhost:{self.ports['KAFKA']}"
        self._output([LAST_SYNC, "publish", *event.split(), f"--indexed={indexed}", broker])

    def indexed(self, connector: str) -> int | None:
        """Ask the API for the count of the last sync."""
        url = f"http://localhost:{self.ports['API']}/_connector/{connector}"
        key = {"Authorization": f"ApiKey {self._environ['API_KEY']}"}
        try:
            with urlopen(Request(url, headers=key), timeout=5) as answer:
                found: int | None = json.load(answer).get("last_indexed_document_count")
                return found
        except (URLError, ConnectionError):
            return None

    def inspect(self, service: str) -> dict[str, Any]:
        (container,) = self.compose("ps", "--all", "--quiet", service).split()
        (found,) = json.loads(self._output(["docker", "inspect", container]))
        return dict(found)

    def crash(self, service: str) -> None:
        """Kill the process as the kernel would, so that it is for the restart policy to help."""
        before = self.inspect(service)
        pid, restarts = str(before["State"]["Pid"]), before["RestartCount"]
        helper = ["docker", "run", "--rm", "--pid=host", "--user=0", "--entrypoint=python"]
        self._output([*helper, self.inspect("worker")["Image"], "-c", CRASH, pid])
        until(lambda: self.inspect(service)["RestartCount"] > restarts, f"{service} came back")

    def left(self, kind: str) -> list[str]:
        """Name the volumes, containers or networks that belong to this project."""
        label = f"label=com.docker.compose.project={self.project}"
        every = ["--all"] if kind == "container" else []
        return self._output(["docker", kind, "ls", "--quiet", *every, "--filter", label]).split()

    def _output(self, command: list[str], *, stdin: str = "") -> str:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=self._environ,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=LONGEST,
        )
        if done.returncode:
            raise StackError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
        return done.stdout


def until(condition: Callable[[], object], claim: str, patience: float = PATIENCE) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            raise StackError(f"not so within {patience:.0f} s: {claim}")
        time.sleep(0.2)


def must(condition: object, claim: str) -> None:
    if not condition:
        raise StackError(f"not so: {claim}")


def comes_up_on_a_fresh_clone(stack: Stack) -> None:
    stack.up("--build")


def listens_on_loopback_only(stack: Stack) -> None:
    lines = stack.compose("ps", "--format", "json").splitlines()
    published = [one for line in lines for one in json.loads(line)["Publishers"]]
    hosts = {one["URL"] for one in published if one["PublishedPort"]}
    must(hosts == {"127.0.0.1"}, f"ports are published on 127.0.0.1 alone, not on {hosts}")


def runs_without_rights(stack: Stack) -> None:
    script = "id -u; touch /opt/x /var/lib/last-sync/x 2>&1; python -m pip --version 2>&1"
    said = stack.compose("exec", "--no-TTY", "worker", "sh", "-c", f"{script}; true")
    must(said.startswith("10001\n"), f"the worker has a user of its own: {said}")
    must(said.count("Read-only file system") == 2, f"its file system is read-only: {said}")
    must("No module named pip" in said, f"the image has no pip: {said}")


def lists_what_is_in_its_image(stack: Stack) -> None:
    held = stack.compose("exec", "--no-TTY", "worker", "python", "-c", DISTRIBUTIONS)
    listed = json.loads(stack.compose("exec", "--no-TTY", "worker", "cat", SBOM))
    whole = [listed["metadata"]["component"], *listed["components"]]
    found = {canonical(each["name"], each["version"]) for each in whole}
    wanted = {canonical(*line.split()) for line in held.splitlines()}
    must(found == wanted, f"the SBOM names each distribution and no other: {found ^ wanted}")


def canonical(name: str, version: str) -> str:
    return f"{re.sub('[-_.]+', '-', name).lower()} {version}"


def shows_an_event_in_the_api(stack: Stack) -> None:
    stack.cli("connectors", "add", "hr-wiki", "crm")
    stack.publish("hr-wiki", 1)
    until(lambda: stack.indexed("hr-wiki") == 1, "the API shows the event's count")


def dead_letters_what_nobody_registered(stack: Stack) -> None:
    stack.publish("old-intranet", 1)
    until(lambda: "old-intranet" in stack.cli("dlq", "list"), "the event is a dead letter")


def recovers_from_the_death_of_the_worker(stack: Stack) -> None:
    stack.crash("worker")
    stack.publish("hr-wiki", 2)
    until(lambda: stack.indexed("hr-wiki") == 2, "the next worker goes on")


def recovers_from_the_death_of_the_broker(stack: Stack) -> None:
    restarts = stack.inspect("worker")["RestartCount"]
    stack.crash("kafka")
    stack.up()
    stack.publish("hr-wiki", 3)
    until(lambda: stack.indexed("hr-wiki") == 3, "the worker goes on with the new broker")
    must(stack.inspect("worker")["RestartCount"] == restarts, "the worker held, and did not end")


def recovers_from_the_death_of_the_database(stack: Stack) -> None:
    stack.crash("postgres")
    stack.publish("hr-wiki", 4)
    until(lambda: stack.indexed("hr-wiki") == 4, "the worker and the API go on")


def replays_a_letter(stack: Stack) -> None:
    stack.cli("connectors", "add", "old-intranet")
    said = stack.cli("dlq", "replay", "--connector", "old-intranet", "--yes", "--json")
    outcomes = [json.loads(line)["outcome"] for line in said.splitlines()]
    must(outcomes == ["applied"], f"the letter is applied: {said}")
    must(stack.indexed("old-intranet") == 1, "the API shows what the letter said")
    must(not stack.cli("dlq", "list", "--json"), "no letter is left")


def stops_in_order(stack: Stack) -> None:
    for service in ("worker", "api"):
        stack.compose("stop", service)
        code = stack.inspect(service)["State"]["ExitCode"]
        must(code == 0, f"{service} ends with 0 on SIGTERM, not {code}")
    must("worker.stopped" in stack.compose("logs", "worker"), "the worker says that it stopped")


def keeps_its_data(stack: Stack) -> None:
    stack.compose("down")
    must(not stack.left("container"), "`down` removes every container")
    stack.up()
    must(stack.indexed("hr-wiki") == 4, "the database has kept the stats")
    stack.publish("crm", 7)
    until(lambda: stack.indexed("crm") == 7, "the broker has kept topics and offsets")


def streams_the_demo(stack: Stack) -> None:
    stack.cli("connectors", "delete", "old-intranet")
    stack.up(profiles=("demo",))
    syncing = ("intranet", "mail-archive", "support-tickets", "team-drives")
    until(lambda: any(map(stack.indexed, syncing)), "the publisher's events arrive")
    until(lambda: stack.cli("dlq", "list", "--json"), "and some are dead letters")


def leaves_nothing_behind(stack: Stack) -> None:
    stack.compose("down", "--volumes")
    for kind in ("container", "network", "volume"):
        must(not stack.left(kind), f"`down -v` removes every {kind}: {stack.left(kind)}")


STEPS: tuple[Callable[[Stack], None], ...] = (
    comes_up_on_a_fresh_clone,
    listens_on_loopback_only,
    runs_without_rights,
    lists_what_is_in_its_image,
    shows_an_event_in_the_api,
    dead_letters_what_nobody_registered,
    recovers_from_the_death_of_the_worker,
    recovers_from_the_death_of_the_broker,
    recovers_from_the_death_of_the_database,
    replays_a_letter,
    stops_in_order,
    keeps_its_data,
    streams_the_demo,
    leaves_nothing_behind,
)


def engine_trouble() -> str | None:
    """Say what this machine lacks, or None where Docker and Compose answer."""
    for command in (["docker", "version"], ["docker", "compose", "version"]):
        try:
            subprocess.run(command, capture_output=True, check=True, timeout=30)
        except (OSError, subprocess.SubprocessError):
            return f"`{' '.join(command)}` fails: the stack needs a Docker engine with Compose"
    return None


def too_late(_: int, __: FrameType | None) -> None:
    raise StackError(f"not done within {WHOLE} s")


def main() -> None:
    if trouble := engine_trouble():
        sys.exit(f"stack-test: {trouble}")
    signal.signal(signal.SIGALRM, too_late)
    signal.alarm(WHOLE)
    began = time.monotonic()
    try:
        with Stack() as stack:
            for step in STEPS:
                print(f"{time.monotonic() - began:5.0f} s  {step.__name__}", flush=True)
                step(stack)
    except (StackError, subprocess.TimeoutExpired) as error:
        sys.exit(f"stack-test failed: {error}")
    print(f"{time.monotonic() - began:5.0f} s  done")


if __name__ == "__main__":
    main()
