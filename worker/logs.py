"""Log lines on stderr: pretty on a terminal, JSON elsewhere; never a payload or a secret."""

import io
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TextIO

import structlog

from worker.text import escaped, harmless

AUDIT = "worker.audit"  # its lines are written whatever the level: they are the lasting record

Line = Mapping[str, str | None]


def configure(level: str = "info", form: str = "auto") -> None:
    """Send structlog and the standard library's loggers (aiokafka, Alembic) through one format."""
    pretty = form == "pretty" or (form == "auto" and sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if pretty:
        shared.append(_escaped)
    else:
        # without locals: they hold payloads and secrets
        transformer = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        shared.append(structlog.processors.ExceptionRenderer(transformer))
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=_traceback)
        if pretty
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = _Stderr(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.captureWarnings(capture=True)  # as those that Elasticsearch sends
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    # a line for each of many requests a second, about what is checked and said elsewhere
    for name in ("aiokafka.cluster", "elastic_transport"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    logging.getLogger("worker").setLevel(level.upper())
    audits = logging.getLogger(AUDIT)
    audits.setLevel(logging.INFO)
    audits.handlers = [_Stderr(_AuditLines(_each_by(renderer) if pretty else _json_lines))]
    audits.propagate = False


def audit(event: str, lines: Sequence[Line], **common: str) -> None:
    """Write many lines at once: one after the other, each costs more than the work it tells of."""
    logging.getLogger(AUDIT).info(event, extra={"lines": lines, "common": common})


class _AuditLines(logging.Formatter):
    """Lays the lines of `audit` out as those of every other logger."""

    def __init__(self, layout: Callable[[Line, Sequence[Line], Line], str]) -> None:
        super().__init__()
        self._layout = layout

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat().replace("+00:00", "Z")
        end = {"event": record.msg, "level": record.levelname.lower(), "timestamp": at}
        return self._layout(record.__dict__["common"], record.__dict__["lines"], end)


def _json_lines(common: Line, lines: Sequence[Line], end: Line) -> str:
    """The lines encoded in one call, a third of the time, and cut where one ends.

    No text looks like such a place: in JSON a quotation mark within a text has a backslash.
    """
    begin, rest = json.dumps(common)[:-1], json.dumps(end)[1:]
    between = f", {rest}\n{begin}, "
    middle = json.dumps(lines)[2:-2].replace('}, {"', f'{between}"')
    return f"{begin}, {middle}, {rest}"


def _each_by(
    renderer: structlog.typing.Processor,
) -> Callable[[Line, Sequence[Line], Line], str]:
    def laid_out(common: Line, lines: Sequence[Line], end: Line) -> str:
        whole = ({**common, **line, **end} for line in lines)
        return "\n".join(str(renderer(None, "info", _escaped(None, "info", one))) for one in whole)

    return laid_out


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to what stderr is now: a progress bar takes its place while it stands there."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        self.setStream(sys.stderr)
        super().emit(record)


def _traceback(file: TextIO, exc_info: structlog.typing.ExcInfo) -> None:
    """Without local variables, and the text of an error as harmless as that of any other value."""
    plain = io.StringIO()
    structlog.dev.plain_traceback(plain, exc_info)
    file.write(harmless(plain.getvalue()))


def _escaped(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Let no control character of an id or a message reach the terminal; JSON escapes them."""
    return {
        name: escaped(value) if isinstance(value, str) and name != "exception" else value
        for name, value in event.items()
    }
