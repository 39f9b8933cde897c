"""The way to the coordinator, over a port of this machine, so that losing it does not abort the process.

The distributed runtime ends a process with SIGABRT the moment its connection to the coordinator breaks, with no Python
in between. Its client is given a relay's address instead: the relay sees the break first, keeps the client's side open,
and says so. There is no other way with jaxlib 0.10: `jax_enable_recoverability` aborts all the same, and so does a
`missed_heartbeat_callback` (std::bad_cast, before any Python).
"""

import contextlib
import socket
import threading
import time
from collections.abc import Callable

CONNECT_SECONDS = 5.0
RETRY_SECONDS = 0.2
BLOCK_BYTES = 2**16


def open_relay(coordinator: str, lost: Callable[[], None]) -> str:
    """Pass connections to a port of this machine on to `coordinator`; returns that port's address, `127.0.0.1:port`.

    Args:
      coordinator: host:port; while it cannot be reached, connections are closed, and the client tries again.
      lost: called from a thread when the coordinator's end of a connection closes before the client's does.
    """
    host, port = coordinator.rsplit(":", 1)
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            client, _ = listener.accept()
            threading.Thread(target=_serve, args=(client, (host.strip("[]"), int(port)), lost), daemon=True).start()

    threading.Thread(target=accept, daemon=True, name="relay to the coordinator").start()
    return f"127.0.0.1:{listener.getsockname()[1]}"


def _serve(client: socket.socket, coordinator: tuple[str, int], lost: Callable[[], None]) -> None:
    try:
        upstream = socket.create_connection(coordinator, CONNECT_SECONDS)
    except OSError:
        time.sleep(RETRY_SECONDS)  # the client tries again at once
        client.close()
        return
    upstream.settimeout(None)
    for side in (client, upstream):
        side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client_left = threading.Event()

    def send() -> None:
        if _copy(client, upstream):
            client_left.set()
        elif not client_left.is_set():  # the coordinator no longer takes bytes: the first sign of its end, at times
            lost()
        _end(upstream)

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    if not _copy(upstream, client):
        client_left.set()
    elif not client_left.is_set():
        lost()
    _end(client)
    sender.join()
    client.close()
    upstream.close()


def _end(side: socket.socket) -> None:
    """Closing it alone would leave the other thread waiting in it."""
    with contextlib.suppress(OSError):
        side.shutdown(socket.SHUT_RDWR)


def _copy(source: socket.socket, target: socket.socket) -> bool:
    """Pass bytes on until either side has closed; returns whether that was the source."""
    while True:
        try:
            block = source.recv(BLOCK_BYTES)
        except OSError:
            return True
        if not block:
            return True
        try:
            target.sendall(block)
        except OSError:
            return False
