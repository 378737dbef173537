"""The folder of recordings that is configured now, and the treatment of recordings that lie elsewhere.

The directory can change: then the earlier files still belong to the sink as far as they can be reached, and it does not
wait for one that cannot.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import structlog

from roomtone_wav.recording import Recording

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class RecordingFolder:
    """The configured directory and file names. `warn` makes a notice of work that fails in another directory."""

    def __init__(self, directory: Path, template: str, warn: Callable[[str], None]) -> None:
        self.directory = directory
        self._template = template
        self._warn = warn
        self._reported: set[str] = set()

    def path_for(self, recording: Recording) -> Path:
        """The path for a recording that is about to begin. It can be taken."""
        name = file_name(self._template, recording.room, recording.start, recording.first, recording.rate)
        return self.directory / name

    def contains(self, recording: Recording) -> bool:
        """True if the recording lies below the directory."""
        return self.directory in Path(recording.path).parents

    def exists(self, recording: Recording) -> bool:
        """True if the recording's file exists. Errors: OSError for one of this directory that cannot be looked at."""
        try:
            return Path(recording.path).exists()
        except OSError:
            if self.contains(recording):
                raise
            return False

    @contextmanager
    def forgiving(self, recording: Recording, doing: str) -> Iterator[None]:
        """Contain an OSError of work on a recording that lies elsewhere: it becomes a log entry and, once for each kind
        of work while the sink is open, a notice. For a recording in this directory it passes through.
        """
        try:
            yield
        except OSError as error:
            if self.contains(recording):
                raise
            self.report(recording, doing, error)

    def report(self, recording: Recording, doing: str, error: Exception) -> None:
        """Report work that failed on a recording that lies elsewhere."""
        log.warning("recording.out_of_reach", path=recording.path, doing=doing, error=str(error))
        if doing not in self._reported:
            self._reported.add(doing)
            reason = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
            self._warn(
                f"{recording.path} lies outside of {self.directory} and could not be {doing}: {reason}. It stays as it "
                "is, and new files begin in the new directory. Let the daemon write there again, or move the files"
            )


def file_name(template: str, room: str, start: datetime, position: int, rate: int) -> str:
    """The template with these values. A room's name becomes one component of a path."""
    room = room.replace("/", "_").replace("\0", "_").lstrip(".") or "_"
    return template.format(room=room, start=start.astimezone(UTC), position=position, rate=rate)
