"""Laws of `roomtone.secret`."""

import pickle
from pathlib import Path

import pytest

from roomtone import secret
from roomtone.secret import Secret, SecretError, find_key


@pytest.fixture
def credentials(tmp_path: Path) -> dict[str, str]:
    """The environment of a service with the credential."""
    folder = tmp_path / "credentials"
    folder.mkdir()
    (folder / secret.CREDENTIAL).write_text("from-credential\n")
    return {"CREDENTIALS_DIRECTORY": str(folder)}


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """A file of the user's with a key."""
    path = tmp_path / "key"
    path.write_text("from-file\n")
    path.chmod(0o600)
    return path


def test_order(credentials: dict[str, str], key_file: Path) -> None:
    """The credential comes before the variable, the variable before the file."""
    variable = {secret.VARIABLE: "from-variable"}

    assert find_key(key_file, credentials | variable) == Secret("from-credential")
    assert find_key(key_file, variable) == Secret("from-variable")
    assert find_key(key_file, {}) == Secret("from-file")
    assert find_key(None, {}) is None


def test_other_credentials(credentials: dict[str, str]) -> None:
    """A service with other credentials only has no key from there."""
    Path(credentials["CREDENTIALS_DIRECTORY"], secret.CREDENTIAL).rename(
        Path(credentials["CREDENTIALS_DIRECTORY"], "other")
    )

    assert find_key(None, credentials) is None


def test_empty_variable() -> None:
    """A variable that is set to nothing gives no key, as in a compose file whose own variable is unset."""
    assert find_key(None, {secret.VARIABLE: " "}) is None


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_readable_by_others(key_file: Path, mode: int) -> None:
    """A key file that others can open is refused, with the command that closes it."""
    key_file.chmod(mode)

    with pytest.raises(SecretError, match=f"chmod 600 {key_file}"):
        find_key(key_file, {})


@pytest.mark.parametrize(
    ("content", "says"),
    [("", "is empty"), ("two words", "more than a key"), ("k\u00e4y", "ASCII"), ("a\nb", "one word")],
)
def test_no_key_in_it(key_file: Path, content: str, says: str) -> None:
    """A value that cannot be a key is refused with its place, and is not shown."""
    key_file.write_text(content)

    with pytest.raises(SecretError, match=says) as caught:
        find_key(key_file, {})
    assert not content or content not in str(caught.value)


def test_absent_file(tmp_path: Path) -> None:
    """A key file that is named and absent is an error: to go on without would send speech elsewhere."""
    with pytest.raises(SecretError, match=r"\[service\] api_key_file: .*/absent is not there; write the key into it"):
        find_key(tmp_path / "absent", {})
    with pytest.raises(SecretError, match=f"{tmp_path} is not a regular file"):
        find_key(tmp_path, {})


def test_key_for_a_file(tmp_path: Path) -> None:
    """A key in the place of its file's name is refused with the reason, and is not shown."""
    with pytest.raises(SecretError, match="looks like a key, and must name a file") as caught:
        find_key(tmp_path / "0123456789abcdef0123456789abcdef", {})

    assert "0123456789" not in str(caught.value)


def test_shows_nothing() -> None:
    """A secret shows itself in no form that logs and errors use."""
    key = Secret("tell-nobody")

    for shown in (str(key), repr(key), f"{key}", f"{[key]}"):
        assert "tell-nobody" not in shown
    with pytest.raises(TypeError):
        pickle.dumps(key)
    assert key.reveal() == "tell-nobody"


def test_mask() -> None:
    """Secrets by name, headers, and what addresses carry are masked; the rest stays as it is."""
    table = {
        "secret": "whsec_x",
        "api_key": "k",
        "webhook_auth_header_value": "v",
        "api_key_file": "key",
        "header_files": {"Authorization": "hook.token"},
        "keyterms_prompt": ["Roomtone"],
        "headers": {"Authorization": "Bearer x", "X-Room": "desk"},
        "argv": ["ffmpeg", "-i", "rtsp://user:word@camera/1", "-f", "s16le"],
        "url": "https://example.org/hook?token=abc&room=desk",
        "rate": 16_000,
    }

    assert secret.mask(table) == {
        "secret": "***",
        "api_key": "***",
        "webhook_auth_header_value": "***",
        "api_key_file": "key",
        "header_files": {"Authorization": "hook.token"},
        "keyterms_prompt": ["Roomtone"],
        "headers": {"Authorization": "***", "X-Room": "***"},
        "argv": ["ffmpeg", "-i", "rtsp://***@camera/1", "-f", "s16le"],
        "url": "https://example.org/hook?token=***&room=desk",
        "rate": 16_000,
    }


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        (["ffmpeg", "-i", "rtsp://bob:hidden@cam/1?token=hidden", "-f", "s16le", "-"],
         ["ffmpeg", "-i", "rtsp://***@cam/1?token=***", "-f", "s16le", "-"]),
        (["listen", "--token", "hidden", "--rate", "16000"], ["listen", "--token", "***", "--rate", "16000"]),
        (["listen", "--api-key=hidden", "-password", "hidden"], ["listen", "--api-key=***", "-password", "***"]),
        (["env", "API_KEY=hidden", "listen", "--token-file", "/etc/t"],
         ["env", "API_KEY=***", "listen", "--token-file", "/etc/t"]),
        (["curl", "-u", "bob:hidden", "-H", "X-Mine: hidden hidden", "--user", "bob"],
         ["curl", "-u", "bob:***", "-H", "X-Mine: ***", "--user", "bob"]),
        (["sh", "-c", "PASSWORD='hidden hidden' curl -u bob:hidden -H 'Authorization: Bearer hidden' --token hidden x"],
         ["sh", "-c", "PASSWORD=*** curl -u bob:*** -H 'Authorization: ***' --token *** x"]),
        (["run", "whsec0bmV2ZXItdG8tYmUtc2Vlbg"], ["run", "***"]),
        (["arecord", "-D", "plughw:CARD=Device,DEV=0", "-c1", "--disable-resample", "/dev/snd/by-path/pci-0000"],
         ["arecord", "-D", "plughw:CARD=Device,DEV=0", "-c1", "--disable-resample", "/dev/snd/by-path/pci-0000"]),
    ],
)  # fmt: skip
def test_arguments(argv: list[str], shown: list[str]) -> None:
    """Of a command what is secret is masked, as an option's value, an assignment, a header, or in a script."""
    assert secret.mask({"source": {"kind": "command", "argv": argv}})["source"]["argv"] == shown


ODD = [*" /?#@:;&%+\"'<>{}[]|^`\\\n\t", "://", "ü", "\u202e", "hi://"]


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("address", ["https://joe:{}@example.org/x", "joe:{}@example.org/x", "//joe:{}@[::1]:80"])
def test_no_character_of_a_password_shows_it(address: str, odd: str) -> None:
    """A password is masked whatever stands in it, though the address is none then, and though its scheme is missing."""
    shown = secret.mask({"url": address.format(f"hid{odd}den")})["url"]

    assert "hid" not in shown
    assert "den" not in shown
    assert "@" in shown


@pytest.mark.parametrize("odd", [character for character in ODD if character not in "&\n"])
def test_no_character_of_a_query_secret_shows_it(odd: str) -> None:
    """The same for a token in a query, up to the next parameter; also if the scheme is missing."""
    for address in ("https://example.org/hook", "example.org/hook"):
        assert "den" not in secret.mask({"url": f"{address}?room=a&token=hid{odd}den"})["url"]
        assert secret.mask({"url": f"{address}?token=hidden&room=a"})["url"].endswith("token=***&room=a")


@pytest.mark.parametrize(
    "address",
    [
        "https://example.org/a@b",
        "https://example.org?to=a@b",
        "https://[::1]:80/a@b",
        "see https://a.b and https://c.d",
    ],
)
def test_an_at_sign_is_no_password(address: str) -> None:
    """An address without a password is shown as it is, though an @ stands somewhere behind its host."""
    assert secret.mask({"url": address}) == {"url": address}


def test_each_address_of_a_text_is_masked() -> None:
    """One address hides no other, and no other shows its password."""
    shown = secret.mask(["try http://a.b/c then http://joe:hidden@d.e or rtsp://x:hid den@f.g/h"])
    assert shown == ["try http://a.b/c then http://***@d.e or rtsp://***@f.g/h"]
