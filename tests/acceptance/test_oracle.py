"""Many events in any order, through the real program: the store equals the oracle."""

from tests.acceptance import generator
from tests.acceptance.conftest import Stack


async def test_20_000_shuffled_events_give_what_the_oracle_says_and_a_second_run_changes_nothing(
    stack: Stack,
) -> None:
    made = generator.topic()
    await stack.fill(made)
    await stack.drain()
    await stack.assert_true_to(made)
    before, letters = stack.rows(), await stack.letters()
    await stack.drain(LAST_SYNC_KAFKA_GROUP_ID=f"{stack.topics.group}.again")
    assert stack.rows() == before
    again = await stack.letters()
    assert letters.items() <= again.items()
    assert len(again) == 2 * len(letters)  # the other group's letters are its own


async def test_a_smaller_batch_gives_the_same_rows(stack: Stack) -> None:
    made = generator.topic(2_000, 50)
    await stack.fill(made)
    await stack.drain(LAST_SYNC_BATCH_SIZE="7")
    await stack.assert_true_to(made)
