"""The hooks of the command sink: events become lines, and exit status 0 is the acknowledgement."""

from roomtone import Audio, Durable, Unprocessable, encode, hookimpl
from roomtone_command.program import Program, RunResult

DATA_ERROR = 65
"""EX_DATAERR of sysexits.h: the input is wrong, and will be wrong again."""


class CommandFailed(Exception):  # noqa: N818 - it says what is true of the program
    """The program did not take its events, and will get them again. Says which program and what it did; a note has
    what it said, which may be what it got.
    """


class Feeder:
    """One run of the program for each `batch` events, and one for what is left at the flush.

    A hook starts it once at most, so that the sink's timeout is one run's.
    """

    def __init__(self, program: Program, *, batch: int, audio: bool) -> None:
        self._program = program
        self._batch = batch
        self._audio = audio
        self._pending: list[Durable] = []

    @hookimpl
    async def event(self, event: Durable) -> None:
        """Keep the event until there are enough. Raises Unprocessable only where one was handed over alone."""
        if isinstance(event, Audio) and not self._audio:
            return
        if self._batch == 1:
            await self._run([event])
            return
        self._pending.append(event)
        if len(self._pending) < self._batch:
            return
        try:
            await self.flush()
        except BaseException:
            self._pending.pop()  # this hook has not returned, so this event comes again, and no flush may have it
            raise

    @hookimpl
    async def flush(self) -> None:
        """Hand over what is kept. What fails stays, so that a flush that succeeds has handed over everything."""
        if self._pending:
            await self._run(self._pending)
            self._pending = []

    async def _run(self, events: list[Durable]) -> None:
        """Raises CommandFailed, or Unprocessable where the program refuses the one event that it got.

        Of several it is not known which one is meant: the delivery then sends them one by one.
        """
        outcome = await self._program.run(b"".join(encode(event) + b"\n" for event in events))
        if outcome.status == 0:
            return
        text = f"{self._program.name} {outcome.description}"
        if outcome.status == DATA_ERROR and len(events) == 1:
            raise Unprocessable(f"{text}: {outcome.stderr}" if outcome.stderr else text)
        raise _failed(text, outcome)


def _failed(text: str, outcome: RunResult) -> CommandFailed:
    error = CommandFailed(text)
    if outcome.stderr:
        error.add_note(outcome.stderr)
    return error
