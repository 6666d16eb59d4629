"""Whether the model hub can be reached: its client tries again for a minute where it cannot."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants

_PATIENCE_S = 5.0


def why_unreachable() -> str | None:
    """Why no connection to the hub can be made, in words; None where one can, or where a proxy makes them."""
    try:
        address = urlsplit(constants.ENDPOINT)
        host, port = address.hostname or "", address.port or (80 if address.scheme == "http" else 443)
    except ValueError as error:
        return f"HF_ENDPOINT, {constants.ENDPOINT}, is no address: {error}"
    if not host or address.scheme not in ("http", "https"):
        return f"HF_ENDPOINT, {constants.ENDPOINT}, is no address: it begins with https://"
    if {address.scheme, "all"} & getproxies().keys():
        return None
    try:
        # A captive network takes connections, and never answers.
        with closing(_connection(address.scheme, host, port)) as connection:
            connection.request("HEAD", "/")
            connection.getresponse()
    except TimeoutError:
        return f"{host} does not answer within {_PATIENCE_S:g} s"
    except OSError as error:
        return f"{host} cannot be reached: {error.strerror or error}"
    except HTTPException as error:
        return f"{host} does not answer as a web server does ({type(error).__name__})"
    except UnicodeError as error:
        return f"HF_ENDPOINT, {constants.ENDPOINT}, is no address: {error}"
    return None


def _connection(scheme: str, host: str, port: int) -> HTTPConnection:
    """One that verifies nothing and tells nothing: whom to trust the hub's own client knows."""
    if scheme == "http":
        return HTTPConnection(host, port, timeout=_PATIENCE_S)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return HTTPSConnection(host, port, timeout=_PATIENCE_S, context=context)


@contextmanager
def no_retries() -> Iterator[str | None]:
    """Tells the hub's client to take what it has in its cache, and to ask for nothing, where the hub cannot be reached. Gives the reason."""
    reason = None if constants.HF_HUB_OFFLINE else why_unreachable()
    if reason is None:
        yield None
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield reason
    finally:
        constants.HF_HUB_OFFLINE = False
