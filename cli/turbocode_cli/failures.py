"""What a user is told about an exception: one line, a hint, and an exit code (docs/cli.md lists them)."""

from __future__ import annotations

import errno
import json
import re
import signal
import sys
import traceback
from dataclasses import asdict, dataclass

import click

from turbocode.errors import StorageError, TurbocodeError
from turbocode_cli.interruption import Terminated
from turbocode_cli.output import SCHEMA_VERSION, Invocation, printable

EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_TERMINATED = 128 + signal.SIGTERM
_DISK_ERRNOS = frozenset({errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
_SUGGESTION = re.compile(r"\s\(?((?:Did you mean|Commands are)\s.*?)[.)]*$")


@dataclass(frozen=True)
class Failure:
    """code (`E_...`), exit_code, message of one line, and where known the file, the object in it and what to do."""

    code: str
    exit_code: int
    message: str
    file: str | None = None
    object: str | None = None
    hint: str | None = None

    def lines(self) -> list[str]:
        """The line on what is wrong and, if there is one, the line on what to do."""
        parts = [printable(part) for part in (self.file, self.object) if part]
        where = ":".join(parts)
        first = f"turbocode: error: {where}: {self.message}" if where else f"turbocode: error: {self.message}"
        return [first, f"  hint: {self.hint}"] if self.hint else [first]


def describe_failure(exception: BaseException) -> Failure:
    """The failure that an exception means; one that nobody foresaw is an internal error."""
    match exception:
        case TurbocodeError():
            return Failure(
                exception.code,
                exception.exit_code,
                _one_line(exception.message),
                exception.file,
                exception.object,
                None if exception.hint is None else _one_line(exception.hint),
            )
        case click.ClickException():
            return _usage_failure(exception)
        case KeyboardInterrupt() | click.Abort():
            return Failure("E_INTERRUPTED", EXIT_INTERRUPTED, "interrupted")
        case Terminated():
            return Failure("E_TERMINATED", EXIT_TERMINATED, "terminated")
        case MemoryError():
            return Failure("E_MEMORY", StorageError.exit_code, "out of memory", hint="try a smaller --max-memory")
        case OSError() if exception.errno in _DISK_ERRNOS:
            name = exception.filename
            return Failure(
                StorageError.code,
                StorageError.exit_code,
                f"input or output failed: {exception.strerror}",
                name if isinstance(name, str) else None,
            )
    return Failure(
        TurbocodeError.code,
        TurbocodeError.exit_code,
        _one_line(f"internal error, please report: {type(exception).__name__}: {exception}"),
        hint="turbocode --debug COMMAND ... shows where",
    )


def report_failure(failure: Failure, exception: BaseException, invocation: Invocation, *, as_json: bool) -> None:
    """Prints a failure on stderr and, unless a document is there already, as a JSON document on stdout."""
    if invocation.debug and failure.code == TurbocodeError.code:
        traceback.print_exception(exception)
    print("\n".join(failure.lines()), file=sys.stderr, flush=True)
    if as_json and not invocation.has_emitted:
        fields = asdict(failure)
        fields["exit"] = fields.pop("exit_code")
        print(json.dumps({"schema_version": SCHEMA_VERSION, "error": fields}, indent=2), flush=True)


def _usage_failure(exception: click.ClickException) -> Failure:
    """The failure for click's own errors; the suggestion at the end of its text becomes the hint."""
    message = _one_line(exception.format_message())
    suggestion = _SUGGESTION.search(message)
    hint = None
    if suggestion:
        message, hint = message[: suggestion.start()], suggestion[1][0].lower() + suggestion[1][1:]
    elif isinstance(exception, click.UsageError) and exception.ctx is not None:
        hint = f"{exception.ctx.command_path} --help"
    return Failure("E_USAGE", exception.exit_code, message.rstrip("."), hint=hint)


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))
