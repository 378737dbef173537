"""Where the files lie that the configuration means now, and what becomes of those that lie elsewhere.

The directory can be another one than it was: then the files of before are still ours, as far as they can be reached,
and nothing waits for one that cannot.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from roomtone_wav.recording import Recording

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class RecordingFolder:
    """The directory as it is configured. `warn` has a notice made of what cannot be done elsewhere."""

    def __init__(self, directory: Path, warn: Callable[[str], None]) -> None:
        self.directory = directory
        self._warn = warn
        self._reported: set[str] = set()

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
        """For work on the recording's files: an OSError passes for those of this directory, and for others it becomes a
        notice, once in the life of the sink for each thing to do, and a line of the log.
        """
        try:
            yield
        except OSError as error:
            if self.contains(recording):
                raise
            self.report(recording, doing, error)

    def report(self, recording: Recording, doing: str, error: Exception) -> None:
        """Say that something cannot be done with a recording that lies elsewhere."""
        log.warning("recording.out_of_reach", path=recording.path, doing=doing, error=str(error))
        if doing not in self._reported:
            self._reported.add(doing)
            reason = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
            self._warn(
                f"{recording.path} lies outside of {self.directory} and could not be {doing}: {reason}. It stays as it "
                "is, new files begin here; let the daemon write there again, or see to those files by hand"
            )
