"""Every decoder of bytes that another host or process sent, as one function of bytes.

Tests replay the corpus through it. As a program it is a coverage-guided fuzzer (atheris):
`python tests/wire/fuzz_decoders.py -max_total_time=60 FOUND tests/wire/corpus`.

Input: one byte chooses the decoder, one its version; the rest is what came.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    import atheris

    with atheris.instrument_imports(
        include=["mpproducer.wire", "mpproducer.net", "mpproducer.shm"]
    ):
        from mpproducer.net import errors
        from mpproducer.shm import control
        from mpproducer.wire import framing, messages, record_batch
        from tests.wire import produce_reference
else:
    from mpproducer.net import errors
    from mpproducer.shm import control
    from mpproducer.wire import framing, messages, record_batch
    from tests.wire import produce_reference

from mpproducer._core import native
from mpproducer.wire.codec import ProtocolError

CORPUS = Path(__file__).with_name("corpus")
MAX_RECORDS_BYTES = 1 << 20
MAX_FRAME_BYTES = 1 << 16
APIS = [api for _, api in sorted(messages.APIS.items())]
_REFUSED = (ProtocolError, errors.FrameTooLarge, control.ControlError)


def _request(data: bytes, _version: int) -> None:
    header, reader = framing.read_request_header(data)
    framing.api_of(header.api_key).request.read(header.version, reader)


def _produce(data: bytes, version: int) -> None:
    produce_reference.decode_produce_response(data, version, 0)


def _batches(data: bytes, _version: int) -> None:
    for batch in record_batch.parse_batches(data):
        record_batch.batch_records(batch, MAX_RECORDS_BYTES)


def _records(data: bytes, version: int) -> None:
    record_batch.read_records(data, version)


def _pieces(data: bytes, step: int, feed: Callable[[bytes], object]) -> None:
    for at in range(0, len(data), step or 1):
        feed(data[at : at + (step or 1)])


def _frames(data: bytes, step: int) -> None:
    reader = native.FrameReader(MAX_FRAME_BYTES, errors.FrameTooLarge)

    def feed(piece: bytes) -> None:
        def read_into(view: memoryview) -> int:
            view[: len(piece)] = piece
            return len(piece)

        reader.read(read_into)

    _pieces(data, step, feed)


def _control(data: bytes, step: int) -> None:
    decoder = control.Decoder()
    _pieces(data, step, decoder.feed)


def _response(api: messages.Api) -> Callable[[bytes, int], Any]:
    return lambda data, version: framing.decode_response(data, api, version, 0)


DECODERS: list[Callable[[bytes, int], Any]] = [
    _request, _produce, _batches, _records, _frames, _control, *map(_response, APIS)
]  # fmt: skip


def one_input(data: bytes) -> bool:
    """Whether the decoder took it; whatever is no documented refusal comes out."""
    if len(data) < 2:
        return False
    with contextlib.suppress(*_REFUSED):
        DECODERS[data[0] % len(DECODERS)](data[2:], data[1])
        return True
    return False


def seeds(rng: random.Random) -> dict[str, bytes]:
    """Sound inputs of every decoder, for a corpus: name and bytes."""
    from tests.wire import peers

    found: dict[str, bytes] = {}
    for number, api in enumerate(APIS):
        for case in peers.cases(rng, 1, [api.request, api.response]):
            body = case.schema.encode(case.version, case.message)
            if case.version != api.versions[1]:
                continue
            if case.schema is api.request:
                data = b"\0\0" + framing.request_header(api, case.version, 0, "c") + body
                found[f"request_{api.name}"] = data
                continue
            data = framing.encode_response(api, case.version, 0, case.message)[4:]
            found[f"response_{api.name}"] = bytes([6 + number, case.version]) + data
            if api is messages.PRODUCE:
                found["produce"] = bytes([1, case.version]) + data
    records = [record_batch.Record(n, n, b"k", b"value", (("h", None),)) for n in range(3)]
    for name in ("none", "gzip", "snappy", "lz4", "zstd"):
        batch = record_batch.encode_batch(records, base_timestamp_ms=1, codec_name=name)
        found[f"batch_{name}"] = b"\2\0" + batch
    found["records"] = b"\3\3" + b"".join(map(record_batch.encode_record, records))
    found["frames"] = b"\4\3" + b"\0\0\0\2ab" + b"\0\0\0\0" + b"\0\0\0\5abcde"
    found["control"] = b"\5\7" + control.encode({"type": "hello", "n": 1}) * 2
    return found


def main() -> None:
    """Fuzz until the time given is over, or something but a refusal comes out."""
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
