"""The open letters of the settings' brokers."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from worker import kafka, topics
from worker.open_letters import OpenLetters
from worker.settings import Settings


@asynccontextmanager
async def dead_letters(
    settings: Settings, *, topics_checked: bool = True
) -> AsyncIterator[OpenLetters]:
    """The dead-letter topic, to be read as a table.

    `topics_checked=False` is for brokers that cannot describe their topics (the demo's).
    """
    if topics_checked:
        async with kafka.admin(settings) as admin:
            await topics.require_dead_letters(admin, settings)
    async with OpenLetters.opened(settings) as letters:
        yield letters
