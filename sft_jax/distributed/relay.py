"""A local TCP relay to the coordinator, so that losing the coordinator does not abort the process.

The distributed runtime calls abort() (SIGABRT) the moment its connection to the coordinator breaks; no Python code
runs. So its client connects to this relay instead: the relay sees the broken connection first, keeps the client's side
open and calls `lost`. jaxlib 0.10 offers no alternative: it aborts even with `jax_enable_recoverability`, and with a
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
    """Listen on a local port and forward its connections to `coordinator`; returns the address `127.0.0.1:port`.

    Args:
      coordinator: host:port; while it is unreachable, connections are closed and the client retries.
      lost: called from a thread when the coordinator closes a connection before the client does.
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
        time.sleep(RETRY_SECONDS)  # the client retries immediately
        client.close()
        return
    upstream.settimeout(None)
    for side in (client, upstream):
        side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client_closed = threading.Event()

    def send() -> None:
        if _copy(client, upstream):
            client_closed.set()
        elif not client_closed.is_set():  # a failed send is sometimes the first sign that the coordinator is gone
            lost()
        _end(upstream)

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    if not _copy(upstream, client):
        client_closed.set()
    elif not client_closed.is_set():
        lost()
    _end(client)
    sender.join()
    client.close()
    upstream.close()


def _end(side: socket.socket) -> None:
    """Shut down rather than close: close() would not wake the other thread out of recv()."""
    with contextlib.suppress(OSError):
        side.shutdown(socket.SHUT_RDWR)


def _copy(source: socket.socket, target: socket.socket) -> bool:
    """Forward bytes until either side closes; returns whether the source closed."""
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
