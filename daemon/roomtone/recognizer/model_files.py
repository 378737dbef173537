"""Models that lie in a folder of the user's: are all files there, and are they the right ones?"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from roomtone.recognizer.engine import EngineSettings, EngineUnavailable

BLOCK_BYTES = 1 << 20


def check_model(model: Path, files: Sequence[str]) -> None:
    """Raises EngineUnavailable that names the files which the folder lacks."""
    where = f"[recognizer] model = {str(model)!r}"
    if not model.is_dir():
        raise EngineUnavailable(f"{where}: there is no such folder; it must hold {', '.join(files)}")
    if missing := [name for name in files if not (model / name).is_file()]:
        raise EngineUnavailable(f"{where}: the folder lacks {', '.join(missing)}; it must hold {', '.join(files)}")


def check_digest(settings: EngineSettings) -> None:
    """Raises EngineUnavailable if the model has another digest than `sha256` says."""
    if settings.sha256 is None:
        return
    if settings.model is None:
        raise EngineUnavailable(
            "[recognizer] sha256: needs a model beside it; the bundled one is pinned by its package"
        )
    try:
        digest = digest_of(settings.model)
    except OSError as error:
        raise EngineUnavailable(f"[recognizer] model = {str(settings.model)!r}: {error.strerror}") from error
    if digest != settings.sha256.lower():
        raise EngineUnavailable(f"[recognizer] sha256: the model {str(settings.model)!r} has another digest, {digest}")


def digest_of(model: Path) -> str:
    """The SHA-256 of a file; of a folder, that of the lines of `sha256sum` for its files, sorted by name."""
    if model.is_file():
        return _digest(model)
    files = sorted(path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file())
    if not files:
        raise FileNotFoundError(2, "there is no such file or folder, or it is empty", str(model))
    lines = "".join(f"{_digest(model / name)}  {name}\n" for name in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def size_of(model: Path, files: Sequence[str]) -> int:
    """Bytes of these files."""
    return sum((model / name).stat().st_size for name in files)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
