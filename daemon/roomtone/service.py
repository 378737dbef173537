"""START HERE. The whole daemon: what runs inside what, and so what ends before what.

The indentation of `run` is the order of shutdown. A first SIGTERM cancels capture alone: the spools end, streaming
drains what they hold and ends its sessions, the journal grows no more, and the sinks get what is left. Streaming has a
share of the grace period, so that a dead network cannot use up the sinks'. A second signal, or the end of the grace
period, leaves at once, which the spool and the journal make harmless.
"""

import signal
from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import structlog
import trio

from roomtone import places
from roomtone.capture.feed import File
from roomtone.capture.recorder import record
from roomtone.capture.spool import Spool, open_spool
from roomtone.config import Config, Room, find_key
from roomtone.delivery import Delivery
from roomtone.journal import Journal, open_journal
from roomtone.live import Live
from roomtone.sinks import Context
from roomtone.speech.endpoint import Endpoint, open_endpoints
from roomtone.speech.minutes import Desk
from roomtone.speech.parameters import US_MODELS, Streaming
from roomtone.speech.transcriber import transcribe

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

STREAMING_SHARE = 1 / 3


async def run(config: Config, environ: Mapping[str, str]) -> None:
    """Record, transcribe and deliver, until a signal comes or until every source has ended and all is settled.

    Errors: a state folder that is in use or not writable, a room whose rate has changed, a broken journal: these are
    for a person, and nothing is recorded yet. Whatever comes later is contained where it happens.
    """
    state = config.state(environ)
    streams = {name: (room.streaming, room.rate) for name, room in config.rooms.items()}
    with trio.CancelScope() as hard, places.lock(state):
        async with trio.open_nursery() as watching, open_journal(state / "journal.sqlite") as journal:
            live, closing, sinks = Live(), trio.Event(), dict[str, Delivery]()
            async with trio.open_nursery() as delivery:
                for name, sink in config.sinks.items():
                    context = _context(name, config, environ, state)
                    sinks[name] = Delivery(name, sink, journal=journal, live=live, context=context, closing=closing)
                    delivery.start_soon(sinks[name].run)
                async with open_endpoints(streams, find_key(config, environ)) as endpoints, AsyncExitStack() as stack:
                    spools = {name: await _open_spool(stack, name, config, state) for name in config.rooms}
                    async with trio.open_nursery() as streaming:
                        for name, room in config.rooms.items():
                            desk = _desk(name, room, spools[name], journal, live, endpoints[name])
                            streaming.start_soon(partial(transcribe, desk, realtime=not isinstance(room.source, File)))
                        async with trio.open_nursery() as capture:
                            for name in config.rooms:
                                capture.start_soon(_capture, name, config, spools[name], journal, live)
                            watching.start_soon(
                                _obey_signals, config.service.grace, hard, streaming.cancel_scope, capture.cancel_scope
                            )
                closing.set()
            watching.cancel_scope.cancel()


async def _obey_signals(
    grace: float, hard: trio.CancelScope, streaming: trio.CancelScope, capture: trio.CancelScope
) -> None:
    """The first signal ends capture and gives the rest its time; the second one ends everything."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        number = await anext(signals)
        log.info("service.stopping", signal=signal.Signals(number).name, grace=grace)
        now = trio.current_time()
        hard.deadline, streaming.deadline = now + grace, now + grace * STREAMING_SHARE
        capture.cancel()
        await anext(signals)
        log.warning("service.leaving", reason="a second signal")
        hard.cancel()


async def _capture(name: str, config: Config, spool: Spool, journal: Journal, live: Live) -> None:
    """Record the room; the end of its source, and of capture, is the end of the spool's data."""
    room = config.rooms[name]
    try:
        await record(
            name,
            room.source,
            rate=room.rate,
            frame=room.frame,
            folder=config.folder,
            spool=spool,
            journal=journal,
            live=live,
        )
    finally:
        spool.end_of_data()


def _desk(name: str, room: Room, spool: Spool, journal: Journal, live: Live, endpoint: Endpoint) -> Desk:  # noqa: PLR0917 - it bundles them
    return Desk(
        room=name,
        rate=room.rate,
        frame=room.frame,
        spool=spool,
        journal=journal,
        live=live,
        endpoint=endpoint,
        speech_model=room.streaming.speech_model,
        two_finals=_has_two_finals(room.streaming),
    )


def _has_two_finals(streaming: Streaming) -> bool:
    """Whether the model can send an unformatted and then a formatted final of one turn: see `speech/turns.py`."""
    return bool(streaming.format_turns) and streaming.speech_model in US_MODELS


async def _open_spool(stack: AsyncExitStack, name: str, config: Config, state: Path) -> Spool:
    opening = open_spool(
        state / "spool" / name, rate=config.rooms[name].rate, sync_interval=config.service.sync_interval
    )
    return await stack.enter_async_context(opening)


def _context(name: str, config: Config, environ: Mapping[str, str], state: Path) -> Context:
    return Context(
        name=name,
        folder=config.sinks_folder(environ),
        state=places.private_folder(state / "sinks" / name),
        rates={room: table.rate for room, table in config.rooms.items()},
    )
