"""Requests and responses as frames: headers around the messages of `messages.py`."""

from __future__ import annotations

import struct
from typing import Any, Final, NamedTuple

from mpproducer.wire import codec
from mpproducer.wire.codec import ProtocolError, Reader
from mpproducer.wire.messages import API_VERSIONS, APIS, Api

_HEAD: Final = struct.Struct(">hhi")


class RequestHeader(NamedTuple):
    """What a server reads before a request's message."""

    api_key: int
    version: int
    correlation_id: int
    client_id: str | None


def api_of(key: int) -> Api:
    """Return the API with this key. Raises ProtocolError."""
    api = APIS.get(key)
    if api is None:
        raise ProtocolError(f"API {key} is not spoken here")
    return api


def request_header(api: Api, version: int, correlation_id: int, client_id: str | None) -> bytes:
    """Return request header v1, or v2 for flexible versions (the client id stays old-style)."""
    head = _HEAD.pack(api.key, version, correlation_id) + codec.string(client_id)
    return head + b"\0" if version >= api.flexible else head


def encode_request(
    api: Api, version: int, correlation_id: int, client_id: str | None, message: dict[str, Any]
) -> bytes:
    """Return a whole request frame, its length included."""
    body = request_header(api, version, correlation_id, client_id)
    body += api.request.encode(version, message)
    return codec.int32(len(body)) + body


def response_tagged(api: Api, version: int) -> bool:
    """Whether the response has header v1: flexible, but never for ApiVersions (KIP-511)."""
    return version >= api.flexible and api is not API_VERSIONS


def read_response_header(frame: codec.Buffer, api: Api, version: int) -> tuple[int, Reader]:
    """Return (correlation id, reader at the message) of a response frame without its length."""
    reader = Reader(frame)
    correlation_id = reader.int32()
    if response_tagged(api, version):
        reader.tags()
    return correlation_id, reader


def decode_response(
    frame: codec.Buffer, api: Api, version: int, correlation_id: int
) -> dict[str, Any]:
    """Return the message of a response frame (without its length).

    Raises ProtocolError when it is malformed or answers another request. An ApiVersions response
    with UNSUPPORTED_VERSION has a v0 body, whatever was asked.
    """
    found, reader = read_response_header(frame, api, version)
    if found != correlation_id:
        raise ProtocolError(f"response to request {found} where {correlation_id} was expected")
    if api is API_VERSIONS and version > 0 and reader.left() >= 2:
        start = reader.at
        if reader.int16() == 35:
            version = 0
        reader.at = start
    message = api.response.read(version, reader)
    if reader.left():
        raise ProtocolError(f"{api.name} v{version} response has {reader.left()} bytes too many")
    return message


def read_request_header(frame: codec.Buffer) -> tuple[RequestHeader, Reader]:
    """Server side: return the header of a request frame and a reader at its message."""
    reader = Reader(frame)
    api_key, version, correlation_id = reader.int16(), reader.int16(), reader.int32()
    client_id = reader.string()
    api = APIS.get(api_key)
    if api is not None and version >= api.flexible and version <= api.versions[1]:
        reader.tags()
    return RequestHeader(api_key, version, correlation_id, client_id), reader


def encode_response(api: Api, version: int, correlation_id: int, message: dict[str, Any]) -> bytes:
    """Server side: return a whole response frame, its length included."""
    body = codec.int32(correlation_id)
    if response_tagged(api, version):
        body += b"\0"
    body += api.response.encode(version, message)
    return codec.int32(len(body)) + body
