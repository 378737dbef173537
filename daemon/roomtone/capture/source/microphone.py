"""A microphone as a source, through PortAudio, with blocking reads.

A callback would be a closure of cffi's, which needs write+execute memory, which a hardened service does not have.
Nothing here closes a stream: a driver may hang in that, and this process is ended and replaced anyway.
"""

import atexit
import contextlib
import itertools
import os
import re
import secrets
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

from roomtone.capture.source.devices import (
    SERVERS,
    DeviceRoute,
    Port,
    ask_server,
    find,
    import_portaudio,
    take_inventory,
)
from roomtone.capture.source.resampling import Resampler
from roomtone.capture.source.ring import CaptureFailure

_INVALID_RATE = -9997
"""PortAudio's paInvalidSampleRate."""
_HARDWARE_LATENCY = 0.5
"""Seconds of audio that a card keeps for us while this process waits for the processor; a sound server keeps more."""

MOVED = "'change' on source-output"
"""Printed by `pactl subscribe` when a recording stream is given another source, among other changes."""


def locate(sounddevice: Any, wanted: str) -> DeviceRoute:
    """The device that the name means, as of now. Errors: CaptureFailure, which lists all devices."""
    try:
        return find(wanted, take_inventory(sounddevice, server=wanted not in SERVERS))
    except CaptureFailure:
        return find(wanted, take_inventory(sounddevice))


def read_microphone(wanted: str, *, rate: int, frame: int, watch: Callable[[str, str], None]) -> Iterator[bytes]:
    """The microphone's audio without end, about `frame` samples at a time, converted if the device refuses the rate.

    `watch(source, mark)` is called once the stream runs, if the device is a named source of the sound server: `mark` is
    the value of the stream's property `roomtone.mark`. Errors: CaptureFailure.
    """
    sounddevice = import_portaudio()
    # Later handlers come first at exit: this one leaves before PortAudio's, which may hang.
    atexit.register(os._exit, 1)
    port, source = locate(sounddevice, wanted)
    mark = secrets.token_hex(8)
    if source is not None:
        os.environ.update(
            PULSE_SOURCE=source,
            PIPEWIRE_NODE=source,
            PULSE_PROP=f"{os.environ.get('PULSE_PROP', '')} roomtone.mark={mark}".strip(),
            PIPEWIRE_PROPS=f"{{ roomtone.mark = {mark} }}",
        )
    stream, native = _open_stream(sounddevice, port, wanted, rate)
    resampler = Resampler(native, rate) if native != rate else None
    if source is not None:
        watch(source, mark)
    while True:
        try:
            # The overflow flag is ignored: servers never set it, and it has no count. Loss shows against the clock.
            data, _ = stream.read(max(1, frame * native // rate))
        except sounddevice.PortAudioError as error:
            raise CaptureFailure("device.lost", f"microphone {wanted} is gone ({_reason(error)})") from error
        yield resampler.convert_integers(bytes(data)) if resampler else bytes(data)


def _open_stream(sounddevice: Any, port: Port, wanted: str, rate: int) -> tuple[Any, int]:
    """A running stream, and its rate: the room's if the device has it, else the device's own, else a common one."""
    rates = list(dict.fromkeys((rate, port.rate, 48_000, 44_100)))
    for native in rates:
        try:
            stream = sounddevice.RawInputStream(
                samplerate=native,
                device=port.number,
                channels=1,
                dtype="int16",
                latency="high" if port.name in SERVERS else _HARDWARE_LATENCY,
            )
            stream.start()
        except sounddevice.PortAudioError as error:
            if error.args[1:2] != (_INVALID_RATE,):
                raise CaptureFailure(
                    "device.refused", f"microphone {wanted} cannot be opened: {_reason(error)}"
                ) from error
        else:
            return stream, native
    raise CaptureFailure("device.refused", f"microphone {wanted} takes none of {', '.join(map(str, rates))} Hz")


def _reason(error: Exception) -> str:
    """The host's own words (`Device or resource busy`), else PortAudio's."""
    host = error.args[2] if len(error.args) > 2 else None
    return str(host[2]) if host else str(error.args[0])


def watch_source(source: str, mark: str, fail: Callable[[CaptureFailure], None]) -> None:
    """Fail when the sound server feeds the stream from another source: it does so silently when the right one goes.

    PulseAudio's module-rescue-streams and PipeWire's session manager move streams, and a client cannot forbid it
    through ALSA. Runs in a thread until the server ends; without `pactl` it does nothing.
    """
    with (
        contextlib.suppress(FileNotFoundError),
        subprocess.Popen(
            ["pactl", "subscribe"],  # noqa: S607 - wherever the system keeps it
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as server,
    ):
        assert server.stdout is not None  # noqa: S101 - it is a pipe
        for event in itertools.chain([MOVED], server.stdout):
            if MOVED in event and (other := _source_of(mark)) not in {None, source}:
                server.kill()
                fail(
                    CaptureFailure("device.lost", f"source {source} is gone, and the sound server went on with {other}")
                )


def _source_of(mark: str) -> str | None:
    """The name of the source that the stream with this mark records from; None when the server does not say."""
    try:
        for section in ask_server("list", "source-outputs").split("Source Output #")[1:]:
            index = re.search(r"^\tSource: (\d+)$", section, flags=re.MULTILINE)
            if index and f'roomtone.mark = "{mark}"' in section:
                names = dict(line.split("\t")[:2] for line in ask_server("list", "short", "sources").splitlines())
                return names.get(index[1])
    except subprocess.SubprocessError:
        return None
    return None
