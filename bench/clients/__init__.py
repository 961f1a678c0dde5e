"""The clients under test. Python ones run in worker processes; compiled ones bring their own."""

from __future__ import annotations

from typing import Final

from bench.clients.base import Client
from bench.clients.confluent import Confluent, ConfluentBatch, ConfluentSilent, Queue
from bench.clients.mpproducer_client import (
    MpProducer,
    MpProducerColumns,
    MpProducerKept,
    MpProducerMany,
)
from bench.clients.pure import AioKafka, AioKafkaBatch, KafkaPython, Nothing

PYTHON: Final[dict[str, type[Client]]] = {
    client.name: client
    for client in (
        MpProducer, MpProducerKept, MpProducerMany, MpProducerColumns, Confluent, ConfluentSilent,
        ConfluentBatch, KafkaPython, AioKafka, AioKafkaBatch, Queue, Nothing,
    )
}  # fmt: skip
COMPILED: Final[dict[str, str]] = {
    "franz-go": "Go, promise per record",
    "librdkafka": "C, delivery report per record",
    "java": "ProducerPerformance, callback per record; slope of a short and a long run",
}
REFERENCE: Final = "mpproducer"
"""Ratios are this one's median over another's."""


def notes() -> dict[str, str]:
    """How each client is used."""
    return {name: client.note for name, client in PYTHON.items()} | COMPILED
