"""Moonshine, a turn engine. The wheel of `moonshine-voice` 0.0.73 has the weights of tiny-en inside (MIT license).

Later wheels have no weights and download them. So the version is pinned, and nothing here uses the package's download.
A folder of another Moonshine model of the same shape can be named instead: it needs the files of FILES.
"""

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from roomtone.recognizer.adapter import INSTALL
from roomtone.recognizer.engine import RATE, Capabilities, EngineInfo, EngineSettings, EngineUnavailable
from roomtone.recognizer.model_files import check_model, size_of

FILES = ("encoder_model.ort", "decoder_model_merged.ort", "tokenizer.bin")
MIN_SAMPLES = RATE // 2  # less is padded: the encoder wants a few frames
OPTIONS = {"architecture", "max_tokens_per_second"}


class Moonshine:
    """The engine. Made by `open_engine`. One turn at a time: a room's turn waits until the other room's is decoded."""

    def __init__(self, transcriber: Any, info: EngineInfo) -> None:
        self.info = info
        self._transcriber = transcriber
        self._lock = threading.Lock()

    def decode(self, audio: bytes, terms: tuple[str, ...] = ()) -> str:
        """The text of one turn."""
        samples = memoryview(audio.ljust(2 * MIN_SAMPLES, b"\0")).cast("h")
        floats = [sample / 32_768 for sample in samples]
        with self._lock:
            lines = self._transcriber.transcribe_without_streaming(floats, RATE).lines
        return " ".join(line.text.strip() for line in lines)


def open_engine(settings: EngineSettings) -> Moonshine:
    """Load the model, 0.5 to 1 s. Raises EngineUnavailable."""
    if unknown := sorted(settings.options.keys() - OPTIONS):
        raise EngineUnavailable(f"[recognizer.options] {unknown[0]}: moonshine takes {', '.join(sorted(OPTIONS))} only")
    if settings.threads is not None:
        raise EngineUnavailable("[recognizer] threads: moonshine uses one thread; remove this line")
    spec = find_spec("moonshine_voice")
    if spec is None or spec.origin is None:
        raise EngineUnavailable(INSTALL.format("moonshine-voice 0.0.73"))
    home = Path(spec.origin).parent / "assets" / "tiny-en"
    model = settings.model or home
    if model == home and not home.is_dir():
        raise EngineUnavailable(
            "this version of moonshine-voice has no weights: run  pip install moonshine-voice==0.0.73  or name a model"
        )
    check_model(model, FILES)
    try:
        transcriber = _load(model, settings.options)
    except (ImportError, OSError) as error:
        raise EngineUnavailable(f"moonshine-voice does not load here: {error}") from error
    capabilities = Capabilities(punctuates=True)
    license_ = "MIT, moonshine_voice-0.0.73.dist-info/licenses/LICENSE" if model == home else ""
    return Moonshine(transcriber, EngineInfo("moonshine", model.name, capabilities, size_of(model, FILES), license_))


def _load(model: Path, options: dict[str, Any]) -> Any:
    from moonshine_voice.errors import MoonshineError  # noqa: PLC0415 - an extra
    from moonshine_voice.moonshine_api import ModelArch  # noqa: PLC0415 - the same
    from moonshine_voice.transcriber import Transcriber  # noqa: PLC0415 - the same

    name = str(options.get("architecture", "tiny"))
    try:
        architecture = ModelArch[name.upper()]
    except KeyError:
        known = ", ".join(arch.name.lower() for arch in ModelArch)
        raise EngineUnavailable(f"[recognizer.options] architecture = {name!r}: choose one of {known}") from None
    # The adapter has detected the speech; a second detector would cut the turn again and drop its soft ends.
    given = {"vad_threshold": "0", **{key: str(value) for key, value in options.items() if key != "architecture"}}
    try:
        with _quiet():
            return Transcriber(str(model), architecture, options=given)
    except MoonshineError as error:
        raise EngineUnavailable(f"[recognizer] model = {str(model)!r}: {error}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """The C library writes its errors to the standard error stream, where the log is."""
    ctypes.CDLL(None).fflush(None)
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as null:
            os.dup2(null.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
