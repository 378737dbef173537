"""Secrets: the sources of the speech service's key, and the masks that keep secrets from being shown.

The key comes from outside the configuration, in this order: the systemd credential `assemblyai-api-key`
(`LoadCredential=` in the unit; readable by the service alone), the environment variable `ASSEMBLYAI_API_KEY`, and the
file that `[service] api_key_file` names. A key in the configuration itself is refused, for configurations are copied
into tickets and repositories.
"""

import errno
import re
import stat
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

CREDENTIAL = "assemblyai-api-key"
VARIABLE = "ASSEMBLYAI_API_KEY"
MASK = "***"

_SECRET_KEY = re.compile(
    r"(^|[_-])(api-?key|key|token|secret|secrets|password|passwd|authorization|cookie|credentials?)$|auth_header_value$",
    re.IGNORECASE,
)
_QUERY_SECRET = re.compile(r"([?&;][^=&;?#\s]*(?:key|token|secret|password|sig|signature)=)[^&\n]+", re.IGNORECASE)
"""Up to the next parameter: addresses that are written by hand may have unescaped spaces and other characters."""
_KEY = re.compile(r"[A-Za-z0-9_-]{24,}")
"""The form of keys, which few file names have: a key in the place of its file's name must not be shown."""
_OPTION = re.compile(r"--?([A-Za-z][\w-]*)")
_VALUE = r"""(?:"[^"]*"|'[^']*'|[^\s"']+)"""
_NAME = r"[\w-]*(?:key|token|secrets?|password|passwd|passphrase|authorization|cookie|credentials?)"
_IN_SCRIPTS = (
    re.compile(rf"((?<![\w/]){_NAME}=){_VALUE}", re.IGNORECASE),
    re.compile(rf"((?<![\w-])--?{_NAME}\s+)(?!-){_VALUE}", re.IGNORECASE),
    re.compile(rf"({_NAME}:\s*)[^\s\"'][^\"'\r\n]*", re.IGNORECASE),
    re.compile(r"(\b(?:Bearer|Basic)\s+)[^\s\"']+"),
    re.compile(r"((?<![\w-])(?:-u|--user|--proxy-user)[\s=]*[\"']?[^\s:\"']+:)[^\s\"']+"),
)
"""Secrets in the words of a command or in the text of a script: each pattern keeps its first group."""
_USER_INFO = re.compile(r"://((?:(?![\s\"'(<,][a-z][a-z0-9+.-]*://).)*)@", re.DOTALL | re.IGNORECASE)
"""Everything up to the last @ of an address, for a password that is not encoded may hold any character, / and @ too."""
_HOST_AND_PATH = re.compile(r"(?:\[[^\]]*\](?::[0-9]{1,5})?|[^\s/?#:@\"'<>]*)[/?#]")
_SCHEME = re.compile(r"\s*[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_ADDRESS_KEYS = ("url", "endpoint")
"""The ends of keys whose values are addresses, even if the scheme is missing."""


class SecretError(Exception):
    """A secret cannot be used. The text says where it was looked for and what to do, and shows nothing of it."""


class Secret:
    """A value that is not shown by accident: only `reveal()` returns it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The value, for the one header that needs it."""
        return self._value

    def __repr__(self) -> str:
        return f"Secret({MASK})"

    def __str__(self) -> str:
        return MASK

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a secret must not be serialized")


def find_key(api_key_file: Path | None, environ: Mapping[str, str]) -> Secret | None:
    """The key of the speech service, or None if none is given. Raises SecretError if it cannot be used."""
    folder = environ.get("CREDENTIALS_DIRECTORY")
    if folder and (path := Path(folder, CREDENTIAL)).exists():
        return _checked(_read(path), f"the credential {CREDENTIAL}")
    # In compose files an unset variable often becomes an empty one: it gives no key.
    if value := environ.get(VARIABLE, "").strip():
        return _checked(value, f"${VARIABLE}")
    if api_key_file is None:
        return None
    try:
        return find_file(api_key_file)
    except SecretError as error:
        raise SecretError(f"[service] api_key_file: {error}") from None


def take(environ: MutableMapping[str, str]) -> dict[str, str]:
    """A copy of this process's environment. The key is removed from the original, so that no child inherits it."""
    taken = dict(environ)
    environ.pop(VARIABLE, None)
    return taken


def refuse_public(key: str, path: Path) -> None:
    """Raise OSError, which names the key of the table and the file, if every user of this machine can read the file.

    Its group may: that is how a service often gets access to another user's secret.
    """
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o007:
        text = f"{key}: is open to every user of this machine (mode {mode:04o}); run: chmod 600"
        raise PermissionError(errno.EACCES, text, str(path))


def find_file(path: Path) -> Secret:
    """The secret in this file, which only its owner may read. Raises SecretError if it cannot be used."""
    try:
        status = path.stat()
    except FileNotFoundError:
        if _KEY.fullmatch(path.name):
            raise SecretError("looks like a key, and must name a file; write the key into one (chmod 600)") from None
        raise SecretError(f"{path} is not there; write the key into it, and nothing else (chmod 600)") from None
    except OSError as error:
        raise SecretError(f"{path} cannot be read: {error.strerror}; give the user of the service access") from None
    if not stat.S_ISREG(status.st_mode):
        raise SecretError(f"{path} is not a regular file; name the file that holds the key")
    if (mode := stat.S_IMODE(status.st_mode)) & 0o077:
        raise SecretError(f"{path} is open to other users (mode {mode:04o}); run: chmod 600 {path}")
    return _checked(_read(path), str(path))


def is_secret_name(key: str) -> bool:
    """True if the value of a key of this name must be masked wherever it is shown."""
    return _SECRET_KEY.search(key) is not None


def mask(value: Any, key: str = "") -> Any:
    """The value, fit to be shown: values of secret keys, headers, and secrets in addresses are masked."""
    match value:
        case dict():
            # Every header may hold a secret; the names of files with secrets are not secret.
            forced = "secret" if key == "headers" else "file" if key.endswith("_files") else None
            return {name: mask(inner, forced or str(name)) for name, inner in value.items()}
        case list() | tuple() if key == "argv" and all(isinstance(inner, str) for inner in value):
            return mask_arguments(value)
        case list() | tuple():
            return [mask(inner, key) for inner in value]
        case str() if value and is_secret_name(key):
            return MASK
        case str():
            has_scheme = not key.endswith(_ADDRESS_KEYS) or _SCHEME.match(value)
            return mask_addresses(value if has_scheme else f"://{value.lstrip('/')}").removeprefix(
                "" if has_scheme else "://"
            )
        case _:
            return value


def mask_arguments(arguments: Sequence[str]) -> list[str]:
    """The words of a command, fit to be shown.

    Masked are the values of options, assignments and headers with a secret's name, and words that look like a key; the
    same in the text of a script, as in `sh -c`.
    """
    shown: list[str] = []
    for argument in arguments:
        option = _OPTION.fullmatch(shown[-1]) if shown else None
        if option and is_secret_name(option[1]) and not argument.startswith("-"):
            shown.append(MASK)
        elif option and option[1] in {"u", "user", "proxy-user"}:
            shown.append(re.sub(r"(?<=:).+", MASK, argument))
        elif option and option[1] in {"H", "header", "headers"}:
            shown.append(re.sub(r"(:\s*)[^\s].*", rf"\1{MASK}", argument))
        elif _KEY.fullmatch(argument) and not argument.isalpha() and not argument.startswith("-"):
            shown.append(MASK)
        else:
            shown.append(_mask_script(argument))
    return shown


def _mask_script(text: str) -> str:
    text = mask(text)
    for pattern in _IN_SCRIPTS:
        text = pattern.sub(rf"\g<1>{MASK}", text)
    return text


def mask_addresses(text: str) -> str:
    """The text without users, passwords and secret parameters in its addresses. Of a malformed address rather too much
    is masked.
    """
    return _QUERY_SECRET.sub(rf"\g<1>{MASK}", _USER_INFO.sub(_mask_user_info, text))


def _mask_user_info(found: re.Match[str]) -> str:
    # An @ in a path or a query divides nothing: the host has ended before it, and no colon begins a password.
    return found.group() if _HOST_AND_PATH.match(found[1]) else f"://{MASK}@"


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8").strip()
    except UnicodeDecodeError:
        raise SecretError(f"{path} is not text; write the key into it and nothing else") from None
    except OSError as error:
        raise SecretError(f"{path} cannot be read: {error.strerror}; give the user of the service access") from None


def _checked(value: str, origin: str) -> Secret:
    if not value:
        raise SecretError(f"{origin} is empty; write the key into it, or remove it")
    if not (value.isascii() and value.isprintable() and " " not in value):
        raise SecretError(f"{origin} holds more than a key; it must be one word of printable ASCII")
    return Secret(value)
