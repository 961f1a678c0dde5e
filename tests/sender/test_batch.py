"""The two tables of a batch: nothing but the listed steps."""

from __future__ import annotations

import itertools

import pytest

from mpproducer.sender import batch as b
from mpproducer.sender.bugs import IllegalTransition
from mpproducer.sender.partition import Partition


def _batch() -> b.ProducerBatch:
    return b.ProducerBatch(Partition("t", 0, 3, 7), 5, 1, 0, 10)


def test_outcome_steps_are_exactly_the_listed_ones() -> None:
    for start, to in itertools.product(b.State, b.State):
        batch = _batch()
        batch.state = start
        if to in b.STATE_NEXT[start]:
            batch.to(to)
            assert batch.state is to
        else:
            with pytest.raises(IllegalTransition, match=f"{start.name} -> {to.name}"):
                batch.to(to)


def test_memory_steps_are_exactly_the_listed_ones() -> None:
    for start, to in itertools.product(b.Memory, b.Memory):
        batch = _batch()
        batch.memory = start
        if to in b.MEMORY_NEXT[start]:
            batch.memory_to(to)
            assert batch.memory is to
        else:
            with pytest.raises(IllegalTransition, match=f"{start.name} -> {to.name}"):
                batch.memory_to(to)


def test_told_states_are_final_and_only_they_are_done() -> None:
    for state in b.State:
        batch = _batch()
        batch.state = state
        assert batch.done == (not b.STATE_NEXT[state])


def test_lent_memory_never_becomes_free_in_one_step() -> None:
    assert b.FREE not in b.MEMORY_NEXT[b.LENT]


def test_batch_id_holds_partition_index_and_sequence() -> None:
    assert _batch().batch_id == 7 << 44 | 5
