"""The server's address and token. They are checked before anything heavy is imported."""

import ipaddress
import os
import socket

from sfd.errors import UserError


def read_token() -> str | None:
    """The token of the environment variable ``SFD_TOKEN``; None if there is none. Raises :class:`UserError` for one that is no token."""
    token = os.environ.get("SFD_TOKEN")
    if token is not None and (not token or token != token.strip()):
        raise UserError("SFD_TOKEN is empty, or begins or ends with white space; set a token, or unset the variable")
    return token


def bind(host: str, port: int) -> socket.socket:
    """A socket at the address, which does not listen yet; port 0 is a free one. Raises :class:`UserError` if it is taken."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise UserError(
            f"cannot serve at {host} port {port} ({error.strerror or error}); choose another --host or --port (0: a free port)"
        ) from None
    return listener


def is_local(listener: socket.socket) -> bool:
    """Whether only this machine can reach it."""
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def url_of(listener: socket.socket) -> str:
    """Its address for a browser."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
