"""The hooks of the command sink: events become lines, and exit status 0 is the acknowledgement."""

from roomtone import Audio, Durable, Unprocessable, encode, hookimpl
from roomtone_command.program import Program, RunResult

DATA_ERROR = 65
"""EX_DATAERR of sysexits.h: the input is wrong, and will be wrong again."""


class CommandFailed(Exception):  # noqa: N818 - it states a fact about the program
    """The program did not accept its events, and will get them again. The text has its name and its exit; a note has
    its standard error, which may quote the events.
    """


class Feeder:
    """Runs the program for each `batch` events, and at the flush for the rest.

    A hook starts it at most once, so that the sink's timeout is for one run.
    """

    def __init__(self, program: Program, *, batch: int, audio: bool) -> None:
        self._program = program
        self._batch = batch
        self._audio = audio
        self._pending: list[Durable] = []

    @hookimpl
    async def event(self, event: Durable) -> None:
        """Keep the event until there are enough. Raises Unprocessable only for an event in a run of its own."""
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
        """Hand over the kept events. On failure they stay, so that a flush that succeeds has handed over everything."""
        if self._pending:
            await self._run(self._pending)
            self._pending = []

    async def _run(self, events: list[Durable]) -> None:
        """Raises CommandFailed, or Unprocessable if the program refuses the only event that it got.

        Of several events the refused one is not known: delivery then sends them one by one.
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
