"""One way each to spoil a right history, by the rule that must find it.

A mutation returns False when the history has nothing to which it applies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tests.checker.history import PARTITIONS, TOPICS, History, Row, Sent
from tests.checker.journal import Kind
from tests.checker.records import HEAD_BYTES, Identity, encode

Mutation = Callable[[History], bool]
MUTATIONS: Final[dict[str, tuple[str, Mutation]]] = {}


def found_by(rule: str) -> Callable[[Mutation], Mutation]:
    """Register a mutation."""

    def register(mutation: Mutation) -> Mutation:
        MUTATIONS[mutation.__name__] = (rule, mutation)
        return mutation

    return register


def _logged(history: History) -> list[Sent]:
    return [sent for sent in history.sent if history.offset(sent) >= 0]


def _replace(history: History, sent: Sent, row: Row) -> bool:
    history.rows[sent.place][history.offset(sent)] = row
    return True


def _any_logged(history: History) -> Sent | None:
    found = _logged(history)
    return history.rng.choice(found) if found else None


# --- K1


@found_by("K1")
def a_byte_is_altered(history: History) -> bool:
    sent = _any_logged(history)
    if sent is None or sent.row.value is None:
        return False
    value = bytearray(sent.row.value)
    value[history.rng.randrange(len(value))] ^= 1 << history.rng.randrange(8)
    return _replace(history, sent, sent.row._replace(value=bytes(value)))


@found_by("K1")
def the_end_is_torn_off(history: History) -> bool:
    sent = _any_logged(history)
    if sent is None or sent.row.value is None:
        return False
    cut = history.rng.randrange(len(sent.row.value))
    return _replace(history, sent, sent.row._replace(value=sent.row.value[:cut]))


@found_by("K1")
def two_records_are_mixed(history: History) -> bool:
    """The head of one, the rest of another of the same length."""
    sent = _any_logged(history)
    if sent is None or sent.row.value is None or len(sent.row.value) < HEAD_BYTES + 4:
        return False
    other = encode(Identity(history.run, 0, 1 << 30, TOPICS[0]), len(sent.row.value))
    mixed = sent.row.value[:HEAD_BYTES] + other[HEAD_BYTES:]
    return _replace(history, sent, sent.row._replace(value=mixed))


@found_by("K1")
def a_value_is_gone(history: History) -> bool:
    sent = _any_logged(history)
    return sent is not None and _replace(history, sent, sent.row._replace(value=None))


@found_by("K1")
def a_key_is_another_one(history: History) -> bool:
    sent = _any_logged(history)
    return sent is not None and _replace(history, sent, sent.row._replace(key=b"key-77"))


@found_by("K1")
def a_timestamp_is_another_one(history: History) -> bool:
    for sent in _logged(history):
        if sent.row.timestamp_ms > 0:
            row = sent.row._replace(timestamp_ms=sent.row.timestamp_ms + 1)
            return _replace(history, sent, row)
    return False


@found_by("K1")
def a_record_is_in_another_topic(history: History) -> bool:
    sent = _any_logged(history)
    if sent is None:
        return False
    other = TOPICS[1 - TOPICS.index(sent.place[0])]
    history.rows[other, sent.place[1]].append(sent.row)
    return True


@found_by("K1")
def a_record_is_in_another_partition(history: History) -> bool:
    for sent in _logged(history):
        assert sent.row.value is not None
        if int.from_bytes(sent.row.value[12:16], "little", signed=True) >= 0:
            number = (sent.place[1] + 1) % PARTITIONS
            history.rows[sent.place[0], number].append(sent.row)
            return True
    return False


@found_by("K1")
def a_record_is_of_another_run(history: History) -> bool:
    who = Identity(history.run ^ 1, 0, 0, TOPICS[0])
    history.rows[TOPICS[0], 0].append(Row(encode(who, 100), None, 0))
    return True


# --- K2


@found_by("K2")
def a_record_is_of_a_stream_that_never_was(history: History) -> bool:
    who = Identity(history.run, 99, 0, TOPICS[0])
    history.rows[TOPICS[0], 0].append(Row(encode(who, 100), None, 0))
    return True


@found_by("K2")
def a_record_was_never_attempted(history: History) -> bool:
    who = Identity(history.run, 0, history.journals[0].attempted, TOPICS[0])
    history.rows[TOPICS[0], 0].append(Row(encode(who, 100), None, 0))
    return True


# --- K3


@found_by("K3")
def an_acknowledged_record_is_lost(history: History) -> bool:
    acked = history.of(Kind.ACKED)
    if acked:
        history.drop(history.rng.choice(acked))
    return bool(acked)


@found_by("K3")
def an_offset_told_is_one_off(history: History) -> bool:
    acked = history.of(Kind.ACKED)
    if acked:
        sent = history.rng.choice(acked)
        history.entries(sent.stream)["offset"][sent.seq] += 1
    return bool(acked)


@found_by("K3")
def a_partition_told_is_another_one(history: History) -> bool:
    acked = history.of(Kind.ACKED)
    if acked:
        sent = history.rng.choice(acked)
        history.entries(sent.stream)["partition"][sent.seq] = (sent.place[1] + 1) % PARTITIONS
    return bool(acked)


@found_by("K3")
def an_acknowledgement_is_invented(history: History) -> bool:
    failed = history.of(Kind.NOT_WRITTEN) + history.of(Kind.REFUSED)
    if failed:
        sent = history.rng.choice(failed)
        entry = history.entries(sent.stream)[sent.seq : sent.seq + 1]
        entry["kind"], entry["offset"], entry["partition"] = Kind.ACKED, 0, sent.place[1]
    return bool(failed)


@found_by("K3")
def a_duplicate_without_an_offset_is_lost(history: History) -> bool:
    acked = history.of(Kind.ACKED)
    if acked:
        sent = history.rng.choice(acked)
        history.drop(sent)
        history.entries(sent.stream)["offset"][sent.seq] = -1
    return bool(acked)


# --- K4, K5, K6


@found_by("K4")
def a_record_is_doubled_at_the_end(history: History) -> bool:
    sent = _any_logged(history)
    if sent is not None:
        history.rows[sent.place].append(sent.row)
    return sent is not None


@found_by("K4")
def a_record_is_doubled_beside_itself(history: History) -> bool:
    sent = _any_logged(history)
    if sent is not None:
        history.rows[sent.place].insert(history.offset(sent), sent.row)
    return sent is not None


@found_by("K4")
def a_record_is_doubled_in_another_partition(history: History) -> bool:
    for sent in _logged(history):
        assert sent.row.value is not None
        if int.from_bytes(sent.row.value[12:16], "little", signed=True) < 0:
            history.rows[sent.place[0], (sent.place[1] + 1) % PARTITIONS].append(sent.row)
            return True
    return False


@found_by("K5")
def a_record_told_not_written_is_there(history: History) -> bool:
    failed = history.of(Kind.NOT_WRITTEN)
    if failed:
        sent = history.rng.choice(failed)
        history.rows[sent.place].append(sent.row)
    return bool(failed)


@found_by("K5")
def a_refused_record_is_there(history: History) -> bool:
    refused = history.of(Kind.REFUSED)
    if refused:
        sent = history.rng.choice(refused)
        history.rows[sent.place].append(sent.row)
    return bool(refused)


@found_by("K6")
def more_is_unknown_than_allowed(history: History) -> bool:
    """The bar of the test is what the right history has."""
    acked = history.of(Kind.ACKED)
    if acked:
        sent = history.rng.choice(acked)
        history.entries(sent.stream)["kind"][sent.seq] = Kind.UNKNOWN
    return bool(acked)


# --- K7, K8


@found_by("K7")
def two_records_of_a_stream_change_places(history: History) -> bool:
    last: dict[object, Sent] = {}
    for sent in _logged(history):
        before = last.get((sent.stream, sent.place))
        if before is not None:
            history.swap(before, sent)
            return True
        last[sent.stream, sent.place] = sent
    return False


@found_by("K8")
def a_record_passes_one_that_had_been_acknowledged(history: History) -> bool:
    """Of two streams, so that no order of a stream is broken."""
    for sent in history.of(Kind.ACKED):
        told = history.entries(sent.stream)["told_ns"][sent.seq]
        at = history.offset(sent)
        for later in _logged(history):
            begun = history.entries(later.stream)["begin_ns"][later.seq]
            if later.place != sent.place or later.stream == sent.stream or begun <= told:
                continue
            if history.offset(later) == at + 1:
                history.swap(sent, later)
                return True
    return False


# --- K9, K10


@found_by("K9")
def a_record_is_told_twice(history: History) -> bool:
    acked = history.of(Kind.ACKED)
    if acked:
        sent = history.rng.choice(acked)
        history.journals[sent.stream].tell(sent.seq, Kind.UNKNOWN)
    return bool(acked)


@found_by("K9")
def records_of_one_call_are_told_twice(history: History) -> bool:
    acked = [sent for sent in history.of(Kind.ACKED) if sent.seq]
    if acked:
        sent = acked[0]
        entry = history.entries(sent.stream)[sent.seq]
        history.journals[sent.stream].tell_many(
            sent.seq, Kind.ACKED, [entry["partition"]], [entry["offset"]]
        )
    return bool(acked)


@found_by("K9")
def an_outcome_is_forgotten(history: History) -> bool:
    acked = [sent for sent in history.of(Kind.ACKED) if sent.stream != history.dead]
    if acked:
        sent = history.rng.choice(acked)
        history.entries(sent.stream)["kind"][sent.seq] = Kind.PENDING
    return bool(acked)


@found_by("K9")
def an_outcome_tells_no_fate(history: History) -> bool:
    unknown = history.of(Kind.UNKNOWN)
    if unknown:
        sent = history.rng.choice(unknown)
        history.entries(sent.stream)["kind"][sent.seq] = Kind.OTHER
    return bool(unknown)


@found_by("K9")
def a_record_of_a_dead_worker_is_lost(history: History) -> bool:
    orphans = history.of(Kind.PENDING, history.dead)
    if orphans:
        history.drop(history.rng.choice(orphans))
    return bool(orphans)


@found_by("K10")
def an_outcome_is_late(history: History) -> bool:
    told = history.of(Kind.NOT_WRITTEN)
    if told:
        sent = history.rng.choice(told)
        history.entries(sent.stream)["told_ns"][sent.seq] += 122 * 10**9
    return bool(told)


@found_by("K10")
def nothing_is_acknowledged_for_long(history: History) -> bool:
    """The terms of the test allow half a minute."""
    acked = history.of(Kind.ACKED)
    if not acked:
        return False
    last = max(acked, key=lambda sent: int(history.entries(sent.stream)["told_ns"][sent.seq]))
    history.entries(last.stream)["told_ns"][last.seq] += 31 * 10**9
    return True
