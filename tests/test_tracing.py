"""Links to producers' spans, and what asks for traces at all."""

import pytest
from opentelemetry.trace import Link

from worker import settings, tracing
from worker.errors import MisconfiguredError

TRACE = "0af7651916cd43dd8448eb211c80319c"


def parent(number: int) -> bytes:
    return f"00-{TRACE}-{number:016x}-01".encode()


def linked(*headers: tuple[tuple[str, bytes | None], ...]) -> list[Link]:
    return list(tracing.links(headers))


def test_each_producer_s_span_is_linked_once() -> None:
    found = linked(*((("traceparent", parent(n)),) for n in (1, 2, 1, 3, 2)))
    assert [link.context.span_id for link in found] == [1, 2, 3]
    assert {link.context.trace_id for link in found} == {int(TRACE, 16)}
    assert all(link.context.is_remote for link in found)


def test_the_producer_s_trace_state_comes_along() -> None:
    (found,) = linked((("tracestate", b"vendor=x"), ("other", b"y"), ("traceparent", parent(1))))
    assert found.context.trace_state.to_header() == "vendor=x"


@pytest.mark.parametrize(
    "value",
    [None, b"", b"\xff\xfe", b"00-0-0-01", parent(0), b"ff" + parent(1)[2:], b"x" * 10_000],
)
def test_a_malformed_parent_is_left_out_and_hurts_nobody(value: bytes | None) -> None:
    (found,) = linked((("traceparent", value),), (), (("traceparent", parent(7)),))
    assert found.context.span_id == 7


def test_links_end_at_the_limit() -> None:
    many = [(("traceparent", parent(n)),) for n in range(1, 2_000)]
    assert len(linked(*many)) == tracing.MAX_LINKS


@pytest.fixture(autouse=True)
def no_otel(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_TRACES_EXPORTER", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)


ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}


@pytest.mark.parametrize(
    ("env", "wanted"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "x"}, False),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        (ENDPOINT, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, True),
        ({**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"}, False),
        ({**ENDPOINT, "OTEL_SDK_DISABLED": "true"}, False),
        ({**ENDPOINT, "OTEL_SDK_DISABLED": "false"}, True),
        ({**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, True),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, False),
    ],
)
def test_the_standard_variables_ask_for_traces(
    env: dict[str, str],
    wanted: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert settings.tracing_wanted() is wanted


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_TRACES_EXPORTER", "zipkin"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
    ],
)
def test_what_this_worker_cannot_export_by_is_refused_by_name(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each, text in {**ENDPOINT, name: value}.items():
        monkeypatch.setenv(each, text)
    with pytest.raises(MisconfiguredError, match=f"{name}='{value}'.*OTEL_TRACES_EXPORTER=none"):
        settings.tracing_wanted()
