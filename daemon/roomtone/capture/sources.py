"""The kinds of source of a room's audio, as its `source` table names them. Pure."""

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import msgspec


class Microphone(msgspec.Struct, frozen=True, tag_field="kind", tag="microphone", forbid_unknown_fields=True):
    """A microphone by a name that survives a reboot: `default`, `pulse`, `pipewire`, a source of the sound server, an
    ALSA card id or hw: name, a USB vendor:product[:serial], or a part of PortAudio's name.
    """

    device: Annotated[str, msgspec.Meta(min_length=1)] = "default"


class File(msgspec.Struct, frozen=True, tag_field="kind", tag="file", forbid_unknown_fields=True):
    """A sound file, played once: in real time, or as fast as it is taken."""

    path: Annotated[str, msgspec.Meta(min_length=1)]
    pace: Literal["realtime", "fast"] = "realtime"


class Command(msgspec.Struct, frozen=True, tag_field="kind", tag="command", forbid_unknown_fields=True):
    """A program that writes 16-bit little-endian mono at the room's rate to its standard output, without a header.

    `restart` says whether exit status 0 is the end of the data or, with `always`, one more reason to start it again.
    `environment` names variables of the daemon's environment that the program gets beyond those that all programs get.
    """

    argv: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    restart: Literal["on-failure", "always"] = "on-failure"
    environment: tuple[Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], ...] = ()


Source: TypeAlias = Microphone | File | Command


def name_of(source: Source) -> str:
    """The source's name for users. A command's arguments are left out: they may hold passwords."""
    match source:
        case Microphone(device=device):
            return f"microphone {device}"
        case File(path=path):
            return f"file {Path(path).name}"
        case Command(argv=argv):
            return f"command {Path(argv[0]).name}"
