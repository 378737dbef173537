"""A webhook's address, divided into a public and a secret part."""

import httpx2


class Address:
    """The address to post to. `url` has no user, password, query or fragment, so it may be logged.

    `target` is the target of the request, with the query; `auth` is user and password, if the address has them. If the
    whole address is a secret, as with chat services, `shown` ends with the host.
    """

    def __init__(self, text: str, *, is_secret: bool = False) -> None:
        """Raises ValueError, without the text, if it is not an address to post to."""
        try:
            whole = httpx2.URL(text)
        except (httpx2.InvalidURL, UnicodeError):
            raise ValueError("is not an address; write https://host/path") from None
        if " " in text or (whole.port or 0) > 65_535:
            raise ValueError("is not an address; write https://host/path")
        if whole.scheme not in {"http", "https"} or not whole.host:
            raise ValueError("must begin with https:// (or http://) and a host")
        self.target = whole.raw_path
        self.auth = (whole.username, whole.password) if whole.userinfo else None
        path = "/" if is_secret else whole.path
        self.url = whole.copy_with(userinfo=b"", query=None, fragment=None, path=path)
        self.shown = str(self.url)

    def __repr__(self) -> str:
        return f"Address({self.shown})"
