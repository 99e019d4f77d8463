"""A believable stream of sync-finished events, for `docker compose --profile demo up`.

Eight connectors sync over and over; one that nobody registered, a misspelt status and a record
delivered twice come up now and then. Each round is one call of `last-sync publish`.
"""

import itertools
import json
import os
import random
import subprocess  # nosec B404 # it runs the program
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

CONNECTORS = (
    "crm-accounts", "hr-wiki", "intranet", "legal-contracts",
    "mail-archive", "product-catalog", "support-tickets", "team-drives",
)  # fmt: skip
# How long ago that was is the container's health; its /tmp is its own.
PUBLISHED = Path("/tmp/published")  # nosec B108
FORGOTTEN = "old-intranet"
JOB_TYPES = ("full", "incremental", "incremental", "access_control")
FAILURES = ("429 from the source", "the token has expired", "timed out after 30 s")
AT_ONCE = 3  # connectors that move on in one round
FAILS, FORGETS, MISSPELLS, REPEATS = 0.15, 0.08, 0.04, 0.1  # chances

chance = random.Random()  # nosec B311 # no secret depends on it

Event = dict[str, Any]


def now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def jobs(connector: str) -> Iterator[Event]:
    """One job after the other, each from pending to its end."""
    while True:
        job: Event = {"id": str(uuid4()), "job_type": chance.choice(JOB_TYPES)}
        yield event(connector, {**job, "status": "pending", "scheduled_at": now()})
        job |= {"scheduled_at": now(), "started_at": now()}
        yield event(connector, {**job, "status": "in_progress"})
        yield event(connector, {**job, **end()})


def end() -> Event:
    counts = {
        "indexed_document_count": chance.randrange(5_000),
        "deleted_document_count": chance.randrange(50),
    }
    if chance.random() < FAILS:
        return {"status": "error", "error": chance.choice(FAILURES), **counts}
    return {"status": "completed", "completed_at": now(), **counts}


def event(connector: str, job: Event) -> Event:
    return {"event_id": str(uuid4()), "connector_id": connector, "occurred_at": now(), "job": job}


def rounds() -> Iterator[list[Event]]:
    running = {connector: jobs(connector) for connector in CONNECTORS}
    forgotten = jobs(FORGOTTEN)
    for number in itertools.count():
        events = [next(running[name]) for name in chance.sample(CONNECTORS, AT_ONCE)]
        if number == 0 or chance.random() < FORGETS:  # there is a letter to look at from the start
            events.append(next(forgotten))
        if chance.random() < MISSPELLS:
            events[0]["job"]["status"] = events[0]["job"]["status"].capitalize()
        if chance.random() < REPEATS:
            events.append(events[0])
        yield events


def run(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["last-sync", *arguments], input=stdin)  # nosec B603 B607 # constants


def main() -> None:
    pause = float(os.environ.get("PUBLISHER_PAUSE", "5"))  # seconds
    run("connectors", "add", *CONNECTORS).check_returncode()
    for events in rounds():
        lines = "\n".join(json.dumps(one) for one in events).encode()
        # What fails says so itself; the next round tries again.
        if run("publish", "--unchecked", stdin=lines).returncode == 0:
            PUBLISHED.touch()
        time.sleep(pause)


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
