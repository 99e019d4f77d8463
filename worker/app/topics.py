"""The two topics are checked, and made."""

from worker import kafka, topics
from worker.settings import Settings
from worker.topics import Verdict


async def check_topics(settings: Settings) -> list[Verdict]:
    async with kafka.admin(settings) as admin:
        return topics.verdicts(await topics.describe(admin, settings), settings)


async def create_topics(
    settings: Settings, *, partitions: int | None, replication_factor: int | None
) -> list[str]:
    async with kafka.admin(settings) as admin:
        return await topics.create(
            admin, settings, partitions=partitions, replication_factor=replication_factor
        )
