"""`python -m roomtone.recognizer.trial`: engines listed and tried, one JSON object a line. See `roomtone engines`.

The first line of standard input is a JSON object with `Request`. A program of its own, so that its memory and processor
time are the engine's, and an engine that crashes takes nothing with it.
"""

import re
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from roomtone import descriptors
from roomtone.recognizer.engine import EngineSettings, EngineUnavailable, StreamEngine, TurnSettings
from roomtone.recognizer.engines import DEFAULT, names, open_engine

FRAME_MS = 100
PROGRESS_INTERVAL_S = 0.2
FAILED = 1


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Try one engine on this audio, 16-bit mono at the engine's rate in a raw file; without a file, list all."""

    engine: str | None = None
    model: str | None = None
    threads: int | None = None
    sha256: str | None = None
    options: dict[str, Any] = {}
    audio: str | None = None
    text: str | None = None


def main() -> int:
    """Answer one request; the exit status is for sys.exit."""
    descriptors.prepare()
    request = msgspec.json.decode(sys.stdin.buffer.readline(), type=Request)
    settings = EngineSettings(
        Path(request.model) if request.model else None, request.threads, request.sha256, request.options
    )
    if request.audio is None:
        for line in _list(request, settings):
            _say(line)
        return 0
    try:
        engine = open_engine(request.engine, settings)
    except EngineUnavailable as unavailable:
        _say({"error": str(unavailable)})
        return FAILED
    _say(_try(engine, Path(request.audio).read_bytes(), request.text))
    return 0


def word_errors(spoken: str, heard: str) -> float:
    """Words to change, add and remove, as a share of the words that were spoken; case and punctuation do not count."""
    reference, hypothesis = (re.findall(r"[\w']+", text.casefold()) for text in (spoken, heard))
    row = list(range(len(hypothesis) + 1))
    for i, word in enumerate(reference, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(hypothesis, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (word != other))
    return row[-1] / max(1, len(reference))


def _list(request: Request, settings: EngineSettings) -> Iterator[dict[str, Any]]:
    """Each engine with its identity, or why it does not open. The configured one is opened as it is configured."""
    chosen = request.engine or DEFAULT
    known = dict(names())
    for name in [*known, *([chosen] if chosen not in known else [])]:
        line: dict[str, Any] = {"name": name, "package": known.get(name, ""), "used": name == chosen}
        try:
            info = open_engine(name, settings if name == chosen else EngineSettings()).info
            yield line | {"info": msgspec.to_builtins(info)}
        except EngineUnavailable as unavailable:
            yield line | {"error": str(unavailable)}


def _try(engine: StreamEngine, audio: bytes, text: str | None) -> dict[str, Any]:
    """Decode it frame after frame.

    The latency of a turn is the pause before its end and the processor time of its end, so that a busy machine does not
    change it.
    """
    size, seconds = 2 * engine.rate * FRAME_MS // 1000, len(audio) / 2 / engine.rate
    heard: list[str] = []
    latencies: list[float] = []
    begun, said = time.process_time(), time.monotonic()
    with engine.open(TurnSettings()) as stream:
        for at in range(0, len(audio) + size, size):
            asked = time.process_time()
            hypotheses = stream.feed(audio[at : at + size]) if at < len(audio) else stream.endpoint()
            for final in (hypothesis for hypothesis in hypotheses if hypothesis.final and hypothesis.words):
                heard.append(" ".join(word.text for word in final.words))
                pause = min(at + size, len(audio)) / 2 / engine.rate - final.words[-1].end / engine.rate
                latencies.append(max(0.0, pause) + time.process_time() - asked)
            if time.monotonic() - said > PROGRESS_INTERVAL_S:
                said = time.monotonic()
                _say({"done": min(1.0, at / max(1, len(audio)))})
    used = time.process_time() - begun
    return {
        "info": msgspec.to_builtins(engine.info),
        "turns": heard,
        "seconds": seconds,
        "word_error_rate": None if text is None else word_errors(text, " ".join(heard)),
        "cpu_per_second": used / max(seconds, 1e-3),
        "latency": statistics.median(latencies) if latencies else None,
        "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
    }


def _say(line: dict[str, Any]) -> None:
    sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
