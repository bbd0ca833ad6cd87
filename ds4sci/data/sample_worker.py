"""Worker process of ``ds4sci.data.sample_pools``: its program, and the messages it sends.

All workers read positions from one pipe, 8 bytes each: the kernel hands every record to one reader, and a worker that
is killed holds no lock. Each worker has a socket of its own to the parent, of type SEQPACKET, on which a message
arrives entirely or not at all. Arrays, and everything else above ``INLINE_BYTES``, are sent as a file in memory
(``memfd``), so that a worker never waits for its parent to read; the kernel frees it when no process has it open.

The program needs only the standard library until it has received ``sys.path`` and the function. A worker ends when the
pipe or its socket is closed, so that none outlives its parent by more than one sample.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable
from typing import Any

POSITION = struct.Struct("=q")
READY, CLAIM, DONE, FAILED = range(4)
"""Kinds of messages: the worker has loaded its function · it begins a sample · the sample · the sample's error."""

INLINE_BYTES = 4096
MESSAGE_BYTES = 2 * INLINE_BYTES
_HEAD = struct.Struct("=BqI")
_LENGTH = struct.Struct("=Q")
_ALIGNMENT = 64


def send(connection: socket.socket, kind: int, position: int = -1, value: Any = None) -> None:
    """Send one message: ``value`` may hold numpy arrays, which are not copied into its pickle."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    parts = [memoryview(head), *(buffer.raw() for buffer in buffers)]
    lengths = b"".join(_LENGTH.pack(len(part)) for part in parts)
    start = _HEAD.pack(kind, position, len(parts))
    size = sum(_padded(len(part)) for part in parts)
    if len(lengths) + size <= INLINE_BYTES:
        connection.sendall(start + lengths + b"".join(bytes(part).ljust(_padded(len(part)), b"\0") for part in parts))
        return
    file = os.memfd_create("ds4sci-sample")
    try:
        lengths = lengths.ljust(_padded(len(lengths)), b"\0")
        os.ftruncate(file, len(lengths) + size)
        offset = _write_all(file, memoryview(lengths), 0)
        for part in parts:
            _write_all(file, part, offset)
            offset += _padded(len(part))
        socket.send_fds(connection, [start], [file])
    finally:
        os.close(file)


def receive(connection: socket.socket) -> tuple[int, int, Any] | None:
    """Receive (kind, position, value), or None at the end of the connection. Arrays are writable."""
    flags = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
    try:
        message, files, _, _ = socket.recv_fds(connection, MESSAGE_BYTES, 1, flags)
    except ConnectionResetError:
        return None
    if not message:
        return None
    kind, position, count = _HEAD.unpack_from(message)
    if files:
        try:
            memory = _read_all(files[0])
        finally:
            os.close(files[0])
    else:
        memory = memoryview(bytearray(message[_HEAD.size :]))
    lengths = [length for (length,) in _LENGTH.iter_unpack(memory[: count * _LENGTH.size])]
    offset = count * _LENGTH.size
    offset = _padded(offset) if files else offset
    parts = []
    for length in lengths:
        parts.append(memory[offset : offset + length])
        offset += _padded(length)
    return kind, position, pickle.loads(parts[0], buffers=parts[1:])


def main(positions: int, connection: socket.socket) -> None:
    """Make samples until the parent closes the pipe ``positions`` or the ``connection``."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # those of the process group are for the parent
        signal.signal(number, signal.SIG_IGN)
    message = receive(connection)
    if message is None:
        return
    sys.path[:], pickled = message[2]
    try:
        make: Callable[[int], Any] = pickle.loads(pickled)
    except Exception as error:
        send(connection, FAILED, -1, _describe(error))
        return
    send(connection, READY)
    while len(record := os.read(positions, POSITION.size)) == POSITION.size:
        (position,) = POSITION.unpack(record)
        send(connection, CLAIM, position)
        try:
            send(connection, DONE, position, make(position))
        except (BrokenPipeError, ConnectionResetError):  # the parent has ended
            return
        except Exception as error:  # of the sample, or it cannot be pickled
            send(connection, FAILED, position, _describe(error))


def _describe(error: Exception) -> tuple[str, str, str]:
    """Return the type, the message and the stack of ``error``."""
    return type(error).__name__, str(error), "".join(traceback.format_exception(error))


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _read_all(file: int) -> memoryview:
    """Return the contents of ``file``. They are copied: a mapping would hold the file open as long as its arrays."""
    memory = memoryview(bytearray(os.fstat(file).st_size))
    offset = 0
    while offset < len(memory):
        offset += os.preadv(file, [memory[offset:]], offset)
    return memory


def _write_all(file: int, part: memoryview, offset: int) -> int:
    """Write ``part`` at ``offset`` and return the offset behind it."""
    while len(part):
        written = os.pwrite(file, part, offset)
        part, offset = part[written:], offset + written
    return offset


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the parent has ended
        main(int(sys.argv[1]), socket.socket(fileno=int(sys.argv[2])))
    sys.stdout.flush()
    os._exit(0)  # at once: the parent may wait, and there is nothing to clean up
