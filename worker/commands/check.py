"""`check`, and how verdicts are told."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from worker.errors import MisconfiguredError
from worker.options import (
    CANNOT_START,
    FAILED,
    as_json,
    example,
    flag,
    kafka_settings,
    loaded,
    out,
    put,
    run_async,
    store_setting,
)
from worker.variables import variable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.settings import Settings
    from worker.topics import Verdict


@click.command(
    epilog=example("last-sync check --store sqlite:///last-sync.db\nlast-sync check --live")
)
@flag("--live", is_flag=True, help="Ask the running worker instead.")
@kafka_settings
@store_setting
@as_json
def check(*, live: bool, as_json: bool, **given: Any) -> None:
    """Look at everything that run needs, and give each a verdict.

    With --live, ask /livez and /readyz of the worker at LAST_SYNC_HEALTH_HOST and _PORT, as a
    container's health check. The exit code is 0 when it is live: one that holds is not ready, and
    a restart would not help it.
    """
    if live:
        report_live(loaded(given), as_json=as_json)
    else:
        from worker.app import checks

        report_verdicts(run_async(checks.check(loaded(given))), as_json=as_json)


def report_live(settings: Settings, *, as_json: bool) -> None:
    from worker import probe

    if settings.health_port is None:
        raise MisconfiguredError(
            f"{variable('health_port')} is not set: without a port the worker serves no health"
        )
    found = probe.ask(settings.health_host, settings.health_port)
    healthy = probe.healthy(found)
    if as_json:
        checks = [{"name": name, "ok": ok, "text": text} for name, (ok, text) in found.items()]
        put({"ok": healthy, "checks": checks})
    else:
        out("\n".join(probe.lines(found)))
    if not healthy:
        sys.exit(FAILED)


def report_verdicts(found: Sequence[Verdict], *, as_json: bool) -> None:
    good = all(verdict.ok for verdict in found)
    if as_json:
        checks = [{"name": v.name, "ok": v.ok, "text": v.text} for v in found]
        put({"ok": good, "checks": checks})
    else:
        for verdict in found:
            out(f"{'ok ' if verdict.ok else 'BAD'} {verdict.name}: {verdict.text}")
    if not good:
        sys.exit(CANNOT_START)
