"""The codecs of a record batch, as Java's consumer reads them: one stream per batch.

Libraries are imported with their first use: a process pays only for the codec it has.
"""

from __future__ import annotations

import functools
import struct
import threading
import zlib
from collections.abc import Callable, Sequence
from typing import Any, Final

from mpproducer.wire.codec import Buffer, ProtocolError, Reader

XERIAL_MAGIC: Final = b"\x82SNAPPY\0"
_XERIAL_HEADER: Final = XERIAL_MAGIC + struct.pack(">ii", 1, 1)
_XERIAL_BLOCK_BYTES: Final = 32 * 1024
_GZIP_WINDOW: Final = 16 + zlib.MAX_WBITS
_LZ4_MAX_HEADER: Final = 19
_ZSTD_SLICE_BYTES: Final = 1024
_LZ4_FAST: Final = 9
"""Java's default level 9 is its fast compressor; every other level is the high-compression one."""


def compress(codec: str, level: int | None, pieces: Sequence[Buffer]) -> bytes:
    """Return one compressed stream of all pieces in order.

    `level` is the codec's own, None or gzip's -1 for the default. Thread-safe; the libraries
    release the GIL on large pieces.
    """
    if codec == "gzip":
        return _gzip(level, pieces)
    if codec == "snappy":
        return _snappy(pieces)
    if codec == "lz4":
        return _lz4(level, pieces)
    if codec == "zstd":
        return _zstd(level, pieces)
    raise ValueError(f"there is no codec {codec!r}")


def for_small(codec: str, level: int | None) -> Callable[[Sequence[Buffer]], bytes]:
    """`compress` for batches of at most SMALL_BYTES and one thread: what it looks up with each call
    costs as much as a small batch."""
    if codec == "zstd":
        return functools.partial(_zstd_at_once, _new_zstd(level))
    return functools.partial(compress, codec, level)


def _gzip(level: int | None, pieces: Sequence[Buffer]) -> bytes:
    packer = zlib.compressobj(-1 if level is None else level, zlib.DEFLATED, _GZIP_WINDOW)
    return b"".join((*map(packer.compress, pieces), packer.flush()))


def _snappy(pieces: Sequence[Buffer]) -> bytes:
    """Xerial framing: Java reads snappy no other way without guessing."""
    from cramjam import snappy

    out = [_XERIAL_HEADER]
    for block in _blocks(pieces, _XERIAL_BLOCK_BYTES):
        packed = bytes(snappy.compress_raw(block))
        out += (struct.pack(">i", len(packed)), packed)
    return b"".join(out)


def _blocks(pieces: Sequence[Buffer], size_bytes: int) -> list[bytes]:
    """Cut the pieces into blocks of a fixed size, the last one shorter."""
    blocks: list[bytes] = []
    kept = b""
    for piece in pieces:
        view = memoryview(piece)
        if kept:
            need = size_bytes - len(kept)
            kept += bytes(view[:need])
            view = view[need:]
            if len(kept) < size_bytes:
                continue
            blocks.append(kept)
            kept = b""
        whole = len(view) // size_bytes * size_bytes
        blocks += [bytes(view[at : at + size_bytes]) for at in range(0, whole, size_bytes)]
        kept = bytes(view[whole:])
    if kept or not blocks:
        blocks.append(kept)
    return blocks


def _lz4(level: int | None, pieces: Sequence[Buffer]) -> bytes:
    """Independent blocks of 64 KiB, no content size or checksum: Java refuses anything else."""
    import lz4.frame

    packer = lz4.frame.LZ4FrameCompressor(
        block_size=lz4.frame.BLOCKSIZE_MAX64KB,
        block_linked=False,
        compression_level=0 if level in (None, _LZ4_FAST) else level,
        content_checksum=False,
        auto_flush=False,
    )
    out = [packer.begin()]
    out += [packer.compress(piece) for piece in pieces]
    out.append(packer.flush())
    return b"".join(out)


def _new_zstd(level: int | None) -> Any:
    import zstandard

    return zstandard.ZstdCompressor(level=3 if level is None else level, write_content_size=False)


def _zstd_at_once(context: Any, pieces: Sequence[Buffer]) -> bytes:
    data: bytes = context.compress(pieces[0] if len(pieces) == 1 else b"".join(pieces))
    return data


_kept = threading.local()
SMALL_BYTES: Final = 16 * 1024


def _zstd(level: int | None, pieces: Sequence[Buffer]) -> bytes:
    # A context costs more to make than a small batch to compress, and serves one thread at a time.
    contexts: dict[int | None, Any] = _kept.__dict__.setdefault("zstd", {})
    context = contexts.get(level)
    if context is None:
        context = contexts[level] = _new_zstd(level)
    # Told the size of a small batch, it takes small tables: those of a large one fill a core's
    # cache, and clearing them costs more than the compression. A large batch comes out smaller
    # untold. The stream object of a large one has 128 KiB of output room, made anew each time.
    if sum(map(len, pieces)) <= SMALL_BYTES:
        return _zstd_at_once(context, pieces)
    packer = context.compressobj()
    return b"".join((*map(packer.compress, pieces), packer.flush()))


def decompress(codec: str, data: Buffer, max_bytes: int) -> bytes:
    """Return the uncompressed bytes. Raises ProtocolError when damaged or beyond `max_bytes`.

    Memory is bounded by `max_bytes` and what a codec's window needs, whatever the data claims.
    """
    unpack = _UNPACK.get(codec)
    if unpack is None:
        raise ProtocolError(f"there is no codec {codec!r}")
    try:
        result = unpack(memoryview(data), max_bytes)
    except ProtocolError:
        raise
    except Exception as error:
        raise ProtocolError(f"damaged {codec} data: {error}") from error
    if len(result) > max_bytes:
        raise ProtocolError(f"{codec} data grows beyond {max_bytes} bytes")
    return result


def _gunzip(data: memoryview, max_bytes: int) -> bytes:
    out: list[bytes] = []
    left: Buffer = data
    room = max_bytes + 1
    while len(left) and room > 0:  # members one after another are one stream, as for Java
        unpacker = zlib.decompressobj(_GZIP_WINDOW)
        out.append(unpacker.decompress(left, room))
        room -= len(out[-1])
        if room > 0 and not unpacker.eof:
            raise ProtocolError("gzip data ends early")
        left = unpacker.unused_data
    if not out:
        raise ProtocolError("gzip data ends early")
    return b"".join(out)


def _unsnappy(data: memoryview, max_bytes: int) -> bytes:
    if bytes(data[:8]) != XERIAL_MAGIC:
        return _unsnappy_block(data, max_bytes)
    if len(data) < len(_XERIAL_HEADER):
        raise ProtocolError("snappy data ends early")
    out: list[bytes] = []
    at, room = len(_XERIAL_HEADER), max_bytes
    while at < len(data):
        if len(data) - at < 4:
            raise ProtocolError("snappy data ends early")
        size = int.from_bytes(data[at : at + 4], "big", signed=True)
        at += 4
        if not 0 <= size <= len(data) - at:
            raise ProtocolError(f"a snappy block claims {size} of {len(data) - at} bytes")
        out.append(_unsnappy_block(data[at : at + size], room))
        room -= len(out[-1])
        at += size
    return b"".join(out)


def _unsnappy_block(block: memoryview, room: int) -> bytes:
    """One raw block; the library would allocate whatever its head claims."""
    from cramjam import snappy

    claimed = Reader(block).uvarint()
    if claimed > room:
        raise ProtocolError(f"a snappy block claims {claimed} bytes where {room} are left")
    return bytes(snappy.decompress_raw(block))


def _unlz4(data: memoryview, max_bytes: int) -> bytes:
    import lz4.frame

    if lz4.frame.get_frame_info(data[:_LZ4_MAX_HEADER])["block_linked"]:
        raise ProtocolError("lz4 blocks depend on each other, which no Java client reads")
    unpacker = lz4.frame.LZ4FrameDecompressor()
    result = bytes(unpacker.decompress(data, max_length=max_bytes + 1))
    if not unpacker.eof and len(result) <= max_bytes:
        raise ProtocolError("lz4 data ends early")
    return result


def _unzstd(data: memoryview, max_bytes: int) -> bytes:
    """In slices: this is the one interface that tells where a frame ends, and it has no bound of
    its own. A slice grows to 32 MiB at most (a block of 4 bytes holds 128 KiB)."""
    import zstandard

    out: list[bytes] = []
    total = 0
    unpacker = None
    for start in range(0, len(data), _ZSTD_SLICE_BYTES):
        rest: Buffer = data[start : start + _ZSTD_SLICE_BYTES]
        while len(rest):
            if unpacker is None:
                unpacker = zstandard.ZstdDecompressor().decompressobj()
            out.append(unpacker.decompress(rest))
            total += len(out[-1])
            if total > max_bytes:
                return b"".join(out)
            rest = unpacker.unused_data
            if unpacker.eof:
                unpacker = None
    if unpacker is not None or not out:
        raise ProtocolError("zstd data ends early")
    return b"".join(out)


_UNPACK: Final[dict[str, Callable[[memoryview, int], bytes]]] = {
    "gzip": _gunzip,
    "snappy": _unsnappy,
    "lz4": _unlz4,
    "zstd": _unzstd,
}
