"""A webhook's address, divided into what may be shown and what may not."""

import httpx2


class Address:
    """Where to post. `url` has no user, password, query or fragment, so it and all that is made of it may be logged.

    `target` is what the request asks for, query and all; `auth` is user and password, if the address has them. Where
    the address as a whole is a secret, as those of chat services are, `shown` ends with the host.
    """

    def __init__(self, text: str, *, is_secret: bool = False) -> None:
        """Raises ValueError, which says nothing of the text, where it is no address to post to."""
        try:
            whole = httpx2.URL(text)
        except (httpx2.InvalidURL, UnicodeError):
            raise ValueError("is no address; write https://host/path") from None
        if " " in text or (whole.port or 0) > 65_535:
            raise ValueError("is no address; write https://host/path")
        if whole.scheme not in {"http", "https"} or not whole.host:
            raise ValueError("must begin with https:// (or http://) and a host")
        self.target = whole.raw_path
        self.auth = (whole.username, whole.password) if whole.userinfo else None
        path = "/" if is_secret else whole.path
        self.url = whole.copy_with(userinfo=b"", query=None, fragment=None, path=path)
        self.shown = str(self.url)

    def __repr__(self) -> str:
        return f"Address({self.shown})"
