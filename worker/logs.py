"""Log lines on stderr: pretty on a terminal, JSON elsewhere; never a payload or a secret."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain
from typing import TYPE_CHECKING, Any, TextIO

from worker.text import escaped, harmless

if TYPE_CHECKING:
    import structlog
    from structlog.typing import EventDict, ExcInfo, Processor

AUDIT = "worker.audit"  # its lines are written whatever the level: they are the lasting record

Columns = Mapping[str, Sequence[str | None]]
Layout = Callable[[Mapping[str, str], Columns, Mapping[str, str]], str]


def configure(level: str = "info", form: str = "auto") -> None:
    """Send structlog and the standard library's loggers (aiokafka, Alembic) through one format."""
    pretty = form == "pretty" or (form == "auto" and sys.stderr.isatty())
    colors = sys.stderr.isatty()
    logging.captureWarnings(capture=True)  # as those that Elasticsearch sends
    root = logging.getLogger()
    root.handlers = [_Stderr(lambda: _formatter(_rendering(pretty=pretty, colors=colors)))]
    root.setLevel(logging.WARNING)
    # a line for each of many requests a second, about what is checked and said elsewhere
    for name in ("aiokafka.cluster", "elastic_transport"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    logging.getLogger("worker").setLevel(level.upper())
    audits = logging.getLogger(AUDIT)
    audits.setLevel(logging.INFO)
    audits.handlers = [
        _Stderr(lambda: _AuditLines(_each_pretty(colors=colors) if pretty else _json_lines))
    ]
    audits.propagate = False


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger of structlog's, whose lines go where all others go.

    Importing structlog takes a fifth of a short command's time, so that only those do that log.
    """
    import structlog  # noqa: PLC0415

    if not structlog.is_configured():
        structlog.configure(
            processors=[*_marks(), structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
            wrapper_class=structlog.stdlib.BoundLogger,
            logger_factory=structlog.stdlib.LoggerFactory(),
            cache_logger_on_first_use=False,
        )
    logger: structlog.stdlib.BoundLogger = structlog.get_logger(name)
    return logger


def _marks() -> list[Processor]:
    """What every line gets."""
    import structlog  # noqa: PLC0415

    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]


def _formatter(rendering: Sequence[Processor]) -> logging.Formatter:
    import structlog  # noqa: PLC0415

    formatter = structlog.stdlib.ProcessorFormatter
    return formatter(
        foreign_pre_chain=[*_marks(), structlog.stdlib.add_logger_name],
        processors=[formatter.remove_processors_meta, *rendering],
    )


def _rendering(*, pretty: bool, colors: bool) -> list[Processor]:
    import structlog  # noqa: PLC0415

    if pretty:
        renderer = structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=_traceback)
        return [_escaped, renderer]
    # without locals: they hold payloads and secrets
    transformer = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    return [
        structlog.processors.ExceptionRenderer(transformer),
        structlog.processors.JSONRenderer(),
    ]


def audit(event: str, columns: Columns, **common: str) -> None:
    """Write a line for each row of the columns, and what is common, into each.

    All at once: one after the other, each costs more than the work it tells of.
    """
    logging.getLogger(AUDIT).info(event, extra={"columns": columns, "common": common})


class _AuditLines(logging.Formatter):
    """Lays the lines of `audit` out as those of every other logger."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self._layout = layout

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat().replace("+00:00", "Z")
        end = {"event": record.msg, "level": record.levelname.lower(), "timestamp": at}
        return self._layout(record.__dict__["common"], record.__dict__["columns"], end)


def _json_lines(common: Mapping[str, str], columns: Columns, end: Mapping[str, str]) -> str:
    """Each column encoded in one call, a quarter of the time: no text of JSON has a line's end."""
    begin, rest = (json.dumps(part)[1:-1] for part in (common, end))
    count = max(map(len, columns.values()))
    pieces = [[f"{{{begin}"] * count]
    for name, column in columns.items():
        encoded = json.dumps(column, separators=("\n", ""))[1:-1]
        pieces += [[f', "{name}": '] * count, encoded.splitlines()]
    pieces.append([f", {rest}}}\n"] * count)
    return "".join(chain.from_iterable(zip(*pieces, strict=True)))[:-1]


def _each_pretty(*, colors: bool) -> Layout:
    rendering = _rendering(pretty=True, colors=colors)

    def laid_out(common: Mapping[str, str], columns: Columns, end: Mapping[str, str]) -> str:
        lines = (
            dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
        )
        return "\n".join(map(pretty, ({**common, **line, **end} for line in lines)))

    def pretty(line: Any) -> str:
        for processor in rendering:
            line = processor(None, "info", line)
        return str(line)

    return laid_out


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to what stderr is now: a progress bar takes its place while it stands there."""

    def __init__(self, formatter: Callable[[], logging.Formatter]) -> None:
        super().__init__()
        self._made = formatter

    def emit(self, record: logging.LogRecord) -> None:
        if self.formatter is None:  # most commands write no line
            self.setFormatter(self._made())
        self.setStream(sys.stderr)
        super().emit(record)


def _traceback(file: TextIO, exc_info: ExcInfo) -> None:
    """Without local variables, and the text of an error as harmless as that of any other value."""
    import structlog  # noqa: PLC0415

    plain = io.StringIO()
    structlog.dev.plain_traceback(plain, exc_info)
    file.write(harmless(plain.getvalue()))


def _escaped(_: object, __: str, event: EventDict) -> EventDict:
    """Let no control character of an id or a message reach the terminal; JSON escapes them."""
    return {
        name: escaped(value) if isinstance(value, str) and name != "exception" else value
        for name, value in event.items()
    }
