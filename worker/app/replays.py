"""Letters are replayed, discarded, or edited."""

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AsyncExitStack
from functools import partial

from worker.app.stores import opened_for_merging
from worker.dead_letters import ANY_SIZE, DeadLetterTopic
from worker.open_letters import OpenLetter, OpenLetters
from worker.replay import Edited, Replay, Result, Signature, apply_edited, close, patiently
from worker.settings import Settings
from worker.signals import stopping


async def replay(
    settings: Settings,
    letters: OpenLetters,
    wanted: Sequence[OpenLetter],
    signature: Signature,
    *,
    dry_run: bool,
    other_stores: Collection[str] = (),
    rate: int | None = None,
) -> AsyncIterator[list[Result]]:
    """Run the letters against the store, and close those that it settles; or say what would be."""
    async with AsyncExitStack() as stack:
        stop = stack.enter_context(stopping())
        store = await stack.enter_async_context(opened_for_merging(settings, make=False))
        topic = None
        if not dry_run:
            topic = await stack.enter_async_context(DeadLetterTopic.opened(settings, ANY_SIZE))
        run = Replay(
            letters=letters,
            store=store,
            topic=topic,
            signature=signature,
            other_stores=other_stores,
            batch_size=min(settings.batch_size, store.most),
            rate=rate,
            stop=stop,
        )
        async for results in run.run(wanted):
            yield results


async def discard(
    settings: Settings, wanted: Sequence[OpenLetter], signature: Signature
) -> AsyncIterator[int]:
    """Close the letters without applying them; gives how many after each batch."""
    with stopping() as stop:
        async with DeadLetterTopic.opened(settings, ANY_SIZE) as topic:
            for start in range(0, len(wanted), settings.batch_size):
                if stop.is_set():
                    return
                batch = wanted[start : start + settings.batch_size]
                closed = [(letter, "discarded") for letter in batch]
                await patiently(partial(close, topic, closed, signature), stop)
                yield len(batch)


async def edit(
    settings: Settings,
    letters: Sequence[OpenLetter],
    edited: Edited,
    signature: Signature,
    *,
    other_stores: Collection[str],
    dry_run: bool,
) -> Result:
    """Apply an edited letter and close all of that id, or change nothing."""
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(opened_for_merging(settings, make=False))
        topic = None
        if not dry_run:
            topic = await stack.enter_async_context(DeadLetterTopic.opened(settings, ANY_SIZE))
        return await apply_edited(
            letters, edited, store, topic, signature=signature, other_stores=other_stores
        )
