"""The health server inside one process: what it says, and who cannot stop it."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack

import pytest
from prometheus_client import CollectorRegistry

from tests.brokers import HOST
from tests.eventually import eventually
from tests.hostile import HARMLESS, STEERING, assert_harmless
from tests.probes import Probes
from worker import health, health_server, probe
from worker.app import running
from worker.errors import MisconfiguredError, TransientError
from worker.health import Health, Verdict
from worker.health_server import Server, serving
from worker.metrics import Metrics
from worker.stores import open_store
from worker.watchdog import Watchdog


@pytest.fixture
def state() -> Health:
    return Health(metrics=Metrics("0"), watchdog=Watchdog(300), stop=asyncio.Event())


@pytest.fixture
async def probes(state: Health) -> AsyncIterator[Probes]:
    found = Probes()
    verdicts = {"/livez": state.live, "/readyz": state.ready}
    async with serving(HOST, found.port, state.metrics.registry, verdicts):
        yield found


# --- verdicts ------------------------------------------------------------------------------------


def test_a_worker_is_not_ready_before_it_has_joined(state: Health) -> None:
    assert state.ready() == Verdict(ok=False, text="starting: it has not joined the group yet")


def test_a_member_with_partitions_is_ready(state: Health) -> None:
    state.assigned({0, 1}, of=4)
    assert state.ready() == Verdict(ok=True, text="partitions assigned: 2 of 4")


def test_a_member_more_than_there_are_partitions_is_ready_to_take_over(state: Health) -> None:
    state.assigned(set(), of=4)
    assert state.ready().ok
    assert "standing by" in state.ready().text


def test_no_partitions_of_a_topic_that_is_gone_are_no_stand_by(state: Health) -> None:
    state.assigned(set(), of=0)
    assert "no partitions of the topic" in state.ready().text
    assert not state.ready().ok


def test_between_two_assignments_it_is_not_ready(state: Health) -> None:
    state.assigned({0}, of=4)
    state.revoked()
    assert not state.ready().ok
    assert "rebalancing" in state.ready().text


def test_a_hold_is_told_with_its_cause_until_it_is_released(state: Health) -> None:
    state.assigned({0}, of=4)
    state.hold("store", "it is locked")
    assert state.ready() == Verdict(ok=False, text="holding (store): it is locked")
    assert state.live().ok
    state.release()
    assert state.ready().ok


def test_a_wish_to_stop_is_told(state: Health) -> None:
    state.assigned({0}, of=4)
    state._stop.set()
    assert state.ready() == Verdict(ok=False, text="stopping")


def test_a_loop_without_a_step_is_not_live_before_the_watchdog_ends_it(state: Health) -> None:
    state._watchdog._last = time.monotonic() - 149
    assert state.live().ok
    state._watchdog._last = time.monotonic() - 151
    assert state.live() == Verdict(
        ok=False,
        text="the loop has made no step for 151 s; after 300 s the process ends by itself",
    )


class Unreachable:
    """A store that answers only while it is told to."""

    def __init__(self) -> None:
        self.trouble: Exception | None = None
        self.hangs = False

    async def get(self, _: str) -> None:
        if self.hangs:
            await asyncio.Event().wait()
        if self.trouble:
            raise self.trouble


async def test_a_store_that_is_away_without_events_is_noticed(
    state: Health, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "LOOK_AT_STORE", 0.01)
    monkeypatch.setattr(health, "STORE_TIMEOUT", 0.1)
    state.assigned({0}, of=4)
    store = Unreachable()
    watching = asyncio.create_task(state.watch(store))  # type: ignore[arg-type]
    store.trouble = TransientError("it is down")
    await eventually(lambda: "the store cannot be reached: it is down" in state.ready().text)
    state.hold("store", "it is down")
    assert state.ready().text == "holding (store): it is down"  # once is enough
    state.hold("broker", "no answer")
    assert "; the store cannot be reached: it is down" in state.ready().text
    state.release()
    store.hangs = True
    await eventually(lambda: "did not answer" in state.ready().text)
    store.hangs, store.trouble = False, None
    await eventually(lambda: state.ready().ok)
    store.trouble = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        await watching


@pytest.mark.parametrize("url", ["memory://", "sqlite:///{folder}/s.db"])
async def test_a_real_store_passes_the_look(state: Health, url: str, tmp_path: object) -> None:
    async with open_store(url.format(folder=tmp_path)) as store:
        assert await health._trouble(store) is None


# --- the server ----------------------------------------------------------------------------------


async def test_each_route_answers_in_plain_text_and_others_name_the_routes(
    probes: Probes, state: Health
) -> None:
    assert await probes.get("/livez") == (200, "the loop makes steps\n")
    assert (await probes.get("/readyz"))[0] == 503
    state.assigned({0}, of=1)
    assert await probes.get("/readyz?verbose") == (200, "partitions assigned: 1 of 1\n")
    assert (await probes.get("/"))[0] == 404
    assert "/livez, /readyz, /metrics" in (await probes.get("/health"))[1]


async def test_metrics_come_in_the_format_that_is_asked_for(probes: Probes) -> None:
    assert "# EOF" not in (await probes.get("/metrics"))[1]
    text = (await probes.get("/metrics", Accept="application/openmetrics-text; version=1.0.0"))[1]
    assert text.endswith("# EOF\n")


async def test_a_stuck_event_loop_is_told_in_words(
    probes: Probes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health_server, "LOOP_TIMEOUT", 0.2)
    asking = asyncio.create_task(probes.get("/livez"))
    await asyncio.sleep(0)  # the request is on its way
    time.sleep(1.5)  # noqa: ASYNC251 - this is what sticks
    status, text = await asking
    assert status == 503
    assert "the event loop has not answered" in text


async def test_clients_that_say_nothing_delay_nobody_and_are_cut(
    probes: Probes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health_server, "CONNECTION_TIMEOUT", 1.0)
    with ExitStack() as stack:
        silent = [
            stack.enter_context(socket.create_connection((HOST, probes.port))) for _ in range(20)
        ]
        silent[0].sendall(b"GET /livez HTTP/1.1\r\nX-Slow")
        assert (await probes.get("/livez"))[0] == 200
        for connection in silent:
            connection.settimeout(5)
            assert await asyncio.to_thread(connection.recv, 1) == b""


async def test_a_client_that_trickles_is_cut_too(
    probes: Probes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health_server, "CONNECTION_TIMEOUT", 0.5)
    with socket.create_connection((HOST, probes.port)) as connection:

        def refused() -> bool:
            try:
                connection.sendall(b"x")
            except OSError:
                return True
            return False

        await eventually(refused, 5)
    assert (await probes.get("/livez"))[0] == 200


async def test_a_client_that_resets_or_talks_nonsense_ends_nothing(probes: Probes) -> None:
    for said in (b"GET /livez HTTP/1.0\r\n\r\n", b"\x00\xff\r\n\r\n", b"G" * 70_000):
        with socket.create_connection((HOST, probes.port)) as connection:
            connection.sendall(said)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01" + b"\x00" * 7)
    assert (await probes.get("/livez"))[0] == 200


async def test_more_connections_than_allowed_are_refused_until_some_end(
    probes: Probes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health_server, "MAX_CONNECTIONS", 3)
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(socket.create_connection((HOST, probes.port)))
        await probes.becomes("/livez", 0)
    await probes.becomes("/livez", 200, timeout=5)


def test_a_server_that_cannot_accept_does_not_spin() -> None:
    with Server(
        HOST, Probes().port, CollectorRegistry(), lambda _: Verdict(ok=True, text="")
    ) as server:
        server.socket.close()
        began = time.monotonic()
        with pytest.raises(OSError, match="Bad file descriptor"):
            server.get_request()
    assert time.monotonic() - began >= health_server.POLL


async def test_a_busy_port_is_named_with_its_setting(probes: Probes) -> None:
    with pytest.raises(MisconfiguredError) as refused:
        async with serving(HOST, probes.port, CollectorRegistry(), {}):
            pass
    text = str(refused.value)
    assert f"{HOST} port {probes.port}" in text
    assert "LAST_SYNC_HEALTH_PORT" in text
    assert "\n" not in text


@pytest.mark.parametrize("host", ["192.0.2.1", "a..b"])
async def test_an_address_that_is_not_ours_is_named_with_its_setting(host: str) -> None:
    with pytest.raises(MisconfiguredError, match="LAST_SYNC_HEALTH_HOST"):
        async with serving(host, Probes().port, CollectorRegistry(), {}):
            pass


async def test_it_listens_to_version_6_of_the_protocol_too() -> None:
    port = Probes().port
    async with serving("::1", port, CollectorRegistry(), {}):
        with socket.create_connection(("::1", port)) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert await asyncio.to_thread(connection.recv, 12) == b"HTTP/1.0 404"


async def test_the_port_is_free_when_it_has_ended(state: Health) -> None:
    probes = Probes()
    for _ in range(2):
        async with serving(HOST, probes.port, state.metrics.registry, {"/livez": state.live}):
            assert (await probes.get("/livez"))[0] == 200
        assert (await probes.get("/livez"))[0] == 0


async def test_a_server_that_fails_stops_the_worker_with_its_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_: Server) -> None:
        raise RuntimeError("out of order")

    monkeypatch.setattr(Server, "service_actions", fail)
    stop = asyncio.Event()
    work = asyncio.create_task(_until(stop))
    async with serving(HOST, Probes().port, CollectorRegistry(), {}) as task:
        with pytest.raises(RuntimeError, match="out of order"):
            await asyncio.wait_for(running._until_stopped(work, stop, 5, [task]), 10)
    assert work.done()
    assert not work.cancelled()  # it was asked, and came to an orderly end


async def _until(stop: asyncio.Event) -> None:
    await stop.wait()


async def test_no_control_character_of_a_store_s_words_is_in_an_answer(
    state: Health, probes: Probes
) -> None:
    state.hold("store", STEERING)
    _, said = await probes.get("/readyz")
    assert HARMLESS in said
    assert_harmless(said)


def test_the_live_check_prints_no_control_character_whoever_answers() -> None:
    assert_harmless("\n".join(probe.lines({"live": (True, STEERING)})))
