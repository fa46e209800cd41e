"""Addresses on this computer."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from captum_iba.errors import InvalidArgumentError

_LAST = 65_535


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens at the address, closed at the end.

    Args:
        host (str): name or number of an interface.
        port (int): 0 for any that is free.

    Raises:
        InvalidArgumentError: the address cannot be had, or the port is taken.
    """
    if not 0 <= port <= _LAST:  # getaddrinfo would take it modulo
        raise InvalidArgumentError(f"port={port}; wanted one from 0 to {_LAST}.")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind)
    except OSError as error:
        raise InvalidArgumentError(f"There is no host={host!r} with port={port} here: {error}.") from error
    with bound:
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            bound.listen()
        except OSError as error:
            raise InvalidArgumentError(
                f"host={host!r}, port={port} cannot be served at: {error}. Wanted another --port."
            ) from error
        yield bound
