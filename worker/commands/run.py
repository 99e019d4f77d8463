"""The commands that go on until they are stopped."""

from typing import Any

import click

from worker.options import (
    example,
    flag,
    kafka_settings,
    loaded,
    run_async,
    setting,
    store_setting,
)


@click.command(epilog=example("last-sync run --store sqlite:///last-sync.db --drain"))
@flag("--drain", is_flag=True, help="Stop once the present end of the topic is passed.")
@kafka_settings
@store_setting
@setting("--batch-size", "batch_size")
@setting("--flood-share", "flood_share")
@setting("--log-level", "log_level")
@setting("--log-format", "log_format")
def run(*, drain: bool, **given: Any) -> None:
    """Read events, apply them to the store, and write dead letters, until stopped."""
    from worker.app import running

    run_async(running.run(loaded(given), drain=drain))


@click.command(epilog=example("last-sync api --store sqlite:///last-sync.db"))
@store_setting
@setting("--host", "api_host")
@setting("--port", "api_port")
@setting("--log-level", "log_level")
@setting("--log-format", "log_format")
def api(**given: Any) -> None:
    """Serve Elasticsearch's connector API over the store, until stopped."""
    from worker.app import serving

    run_async(serving.api(loaded(given)))


@click.command(epilog=example("last-sync demo"))
def demo() -> None:
    """Tell the whole story in seconds, on an embedded broker and a store of its own."""
    from worker import demo as story

    run_async(story.tell(loaded({})))
