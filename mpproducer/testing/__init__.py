"""A strict Kafka in memory: for the tests of this package, and for yours."""

from __future__ import annotations

from mpproducer.testing.broker import Broker
from mpproducer.testing.faults import Fault
from mpproducer.testing.log import StoredRecord
from mpproducer.testing.process import BrokerProcess

__all__ = ["Broker", "BrokerProcess", "Fault", "StoredRecord"]
