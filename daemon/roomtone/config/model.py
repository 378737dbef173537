"""The checked configuration: a frozen Struct for each table, and the key of the speech service.

`config/loader.py` makes it from a file, and reports mistakes.
"""

from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from roomtone import paths, secret
from roomtone.budget.limits import Budget
from roomtone.capture.sources import File, Source
from roomtone.config import validation
from roomtone.config.toml_file import ConfigError
from roomtone.llm.completion import GatewayConfig
from roomtone.llm.conversations import AnalysisPrompt
from roomtone.protocol import parameters
from roomtone.protocol.parameters import Streaming
from roomtone.sinks import Sink
from roomtone.speech.recognizer_process import RecognizerConfig
from roomtone.speech.vad import DetectorMissing, open_detector

Seconds = Annotated[float, msgspec.Meta(gt=0, le=3600)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
Text = Annotated[str, msgspec.Meta(min_length=1)]

NEEDS_KEY = frozenset(parameters.ENDPOINTS)
"""The endpoints that need a key."""


class ServiceConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The `[service]` table: settings of the daemon as a whole."""

    state: Text | None = None
    """The folder of the journal and the spool; else $STATE_DIRECTORY, else the XDG state folder."""
    plugins: tuple[str, ...] = ("plugins",)
    """Files and folders of drop-in plugins, relative to the configuration. The default may be absent."""
    api_key_file: Text | None = None
    """A file with the key of the speech service and nothing else, readable by its owner only."""
    grace: Seconds = 45.0
    """Seconds that stopping may take: for the last turns, Termination, and the sinks."""
    sync_interval: Annotated[float, msgspec.Meta(ge=0.1, le=60)] = 1.0
    """Seconds between two fsyncs of the audio: what a power cut can cost."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    metrics: str | None = None
    """The address of the metrics for Prometheus, as in "127.0.0.1:9464"; none by default. Needs the extra `metrics`."""
    metrics_public: bool = False
    """True to allow an address that other machines reach. There is no password: protect it with a firewall."""
    metrics_textfile: Text | None = None
    """A file of metrics for the node exporter, which must end in .prom; written anew four times a minute."""

    def __post_init__(self) -> None:
        if self.metrics is not None:
            host, _ = address_of(self.metrics)
            if not (self.metrics_public or ip_address(host).is_loopback):
                raise ValueError(
                    "metrics: is open to other machines, without a password; use 127.0.0.1, or set "
                    "metrics_public = true and protect it with a firewall"
                )
        if self.metrics_textfile is not None and not self.metrics_textfile.endswith(".prom"):
            raise ValueError("metrics_textfile: must end in .prom, or the node exporter does not read it")


def address_of(text: str) -> tuple[str, int]:
    """Host and port of `127.0.0.1:9464` or `[::1]:9464`. Raises ValueError."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        ip_address(host)
        if 0 <= int(port) <= 65_535:
            return host, int(port)
    except ValueError:
        pass
    raise ValueError("metrics: is not an address; write 127.0.0.1:9464")


class Storage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The `[storage]` table: limits of the audio and the events that are kept, apart from the files of sinks."""

    spool_gb: Annotated[float, msgspec.Meta(gt=0, le=1e6)] = 10.0
    """GB that the spools of all rooms may take. The oldest audio goes beyond, whatever waits for it."""
    spool_days: Annotated[float, msgspec.Meta(ge=0, le=36_500)] = 2.0
    """Days after which audio goes from the spool that is transcribed, and delivered to every sink that takes audio."""
    free_gb: Annotated[float, msgspec.Meta(ge=0, le=1e6)] = 1.0
    """GB that should stay free on the disk of the state folder, a tenth of the disk at most."""
    journal_gb: Annotated[float, msgspec.Meta(gt=0, le=1e6)] = 2.0
    """GB that the journal may take. The oldest events go beyond, once every sink has acknowledged them."""
    journal_days: Annotated[float, msgspec.Meta(gt=0, le=36_500)] = 365.0
    """Days after which events and coverage go from the journal, once every sink has acknowledged them."""

    @property
    def spool_quota(self) -> int:
        """Bytes."""
        return round(self.spool_gb * 1e9)

    @property
    def free_space(self) -> int:
        """Bytes."""
        return round(self.free_gb * 1e9)

    @property
    def journal_quota(self) -> int:
        """Bytes."""
        return round(self.journal_gb * 1e9)


class GateConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A `[rooms.<name>.gate]` table: when sessions of the room are open."""

    mode: Literal["always", "speech"] = "always"
    """Always, or only during speech, which a voice detector on this machine finds."""
    preroll: Annotated[float, msgspec.Meta(ge=0.5, le=30)] = 2.0
    """Seconds before the first speech that the session gets too."""
    close_after: Annotated[float, msgspec.Meta(ge=5, le=3600)] = 30.0
    """Seconds of silence after which the session is ended."""


class Room(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A `[rooms.<name>]` table: one source of audio, and how its speech is streamed."""

    source: Source
    rate: Annotated[int, msgspec.Meta(ge=8_000, le=96_000)] = 16_000
    """Hz, of the recording and of the stream. Fixed by the room's first sample."""
    frame_ms: Annotated[int, msgspec.Meta(ge=50, le=1_000)] = 200
    """Milliseconds in one block: one write to disk, one message to the service."""
    gate: GateConfig = GateConfig()
    streaming: Streaming = msgspec.field(default_factory=Streaming)
    speakers: dict[Name, Name] = msgspec.field(default_factory=dict)
    """Names for the labels of speakers, which are valid in one session; "*" names every speaker of the room."""

    @property
    def frame(self) -> int:
        """Samples in one block."""
        return self.rate * self.frame_ms // 1000

    @property
    def realtime(self) -> bool:
        """True if the source runs in real time, so that its text should follow closely. A command is kept to that."""
        return not isinstance(self.source, File)


class Config(msgspec.Struct, frozen=True):
    """The checked content of the file at `path`. Relative paths begin at its folder."""

    path: Path
    service: ServiceConfig
    rooms: dict[str, Room]
    sinks: dict[str, Sink]
    storage: Storage = Storage()
    budget: Budget = Budget()
    recognizer: RecognizerConfig = RecognizerConfig()
    gateway: GatewayConfig = msgspec.field(default_factory=GatewayConfig)
    analysis: dict[str, AnalysisPrompt] = {}
    disabled: dict[str, Sink] = {}
    """The sinks of the file that must not run."""
    unloaded: dict[str, str] = {}
    """The sinks whose plugin does not load, each with the reason. All else runs, and their events wait."""
    warnings: tuple[str, ...] = ()
    """Settings that are valid and probably not meant, one line each."""

    @property
    def folder(self) -> Path:
        """The absolute folder at which relative paths of sources and plugins begin."""
        return self.path.absolute().parent

    @property
    def rates(self) -> dict[str, int]:
        """Each room's rate in Hz."""
        return {name: room.rate for name, room in self.rooms.items()}

    @property
    def all_sinks(self) -> dict[str, Sink]:
        """The sinks of the file, disabled ones included."""
        return self.sinks | self.disabled

    @property
    def gateway_key_file(self) -> Path | None:
        """The file that `[gateway] key_file` names."""
        named = self.gateway.key_file
        return self.folder / paths.expand(named) if named else None

    def recognizer_settings(self) -> RecognizerConfig:
        """The `[recognizer]` table with its model as an absolute path."""
        named = self.recognizer.model
        return msgspec.structs.replace(self.recognizer, model=str(self.folder / paths.expand(named)) if named else None)

    def state(self, environ: Mapping[str, str]) -> Path:
        """The folder of the journal and the spool."""
        return paths.state_folder(self.service.state, self.folder, environ)

    def sinks_folder(self, environ: Mapping[str, str]) -> Path:
        """The folder at which relative paths of sinks begin."""
        return paths.sinks_folder(self.folder, environ)


def effective(config: Config, environ: Mapping[str, str]) -> dict[str, Any]:
    """The tables in effect, with defaults and with masked secrets, ready for TOML (which has no null)."""
    tables = {
        "service": msgspec.structs.replace(config.service, state=str(config.state(environ))),
        "storage": config.storage,
        "budget": config.budget,
        "rooms": config.rooms,
        "recognizer": config.recognizer,
        "gateway": config.gateway,
        "analysis": config.analysis,
        "sinks": config.all_sinks,
    }
    masked: dict[str, Any] = secret.mask(_plain(tables))
    return masked


def find_key(config: Config, environ: Mapping[str, str]) -> secret.Secret | None:
    """The key of the speech service, or None. Raises ConfigError if it cannot be used, or if it is missing and a room
    names an endpoint that needs it.
    """
    named = config.service.api_key_file
    try:
        key = secret.find_key(config.folder / paths.expand(named) if named else None, environ)
    except secret.SecretError as error:
        raise ConfigError(f"{config.path}: {error}") from None
    if key is None and (lacking := [room for room in config.rooms.items() if room[1].streaming.endpoint in NEEDS_KEY]):
        raise ConfigError(
            "\n".join(
                f"{config.path}: [rooms.{name}.streaming] endpoint = {validation.show(room.streaming.endpoint)}: needs "
                f'a key; set ${secret.VARIABLE} or [service] api_key_file, or use endpoint = "local"'
                for name, room in lacking
            )
        )
    return key


def missing_detectors(config: Config) -> dict[str, str]:
    """The rooms whose gate has no voice detector, each with the reason."""
    missing = dict[str, str]()
    for name, room in config.rooms.items():
        if room.gate.mode == "speech":
            try:
                open_detector(room.rate)
            except DetectorMissing as error:
                missing[name] = str(error)
    return missing


def _plain(value: Any) -> Any:
    """Tables of TOML, which has no null. Not msgspec's to_builtins: it leaves out the defaults of Structs that are made
    for the wire, and here they are to be seen.
    """
    match value:
        case msgspec.Struct():
            tag = value.__struct_config__.tag
            shown = {} if tag is None else {str(value.__struct_config__.tag_field): str(tag)}
            return _plain(shown | msgspec.structs.asdict(value))
        case dict():
            return {key: _plain(entry) for key, entry in value.items() if entry is not None}
        case list() | tuple():
            return [_plain(entry) for entry in value]
        case Path():
            return str(value)
        case _:
            return value
