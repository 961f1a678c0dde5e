"""Workers, faults and the checker for as long as wanted.

scripts/soak --minutes 10 --kafka                      rounds of random configuration and faults
scripts/soak --minutes 0.3 --broker --seed 7           the same against the strict broker
scripts/soak --records 10000000 --workers 8 --no-faults --kafka
scripts/soak --kafka --seed 7 --round 3                one round again
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.checker.check import Report
from tests.checker.log import Extent
from tests.checker.scenario import Scenario
from tests.soak.draw import Round, share
from tests.soak.nemesis import Fleet, Nemesis
from tests.soak.targets import KafkaTarget, StrictTarget, Target

ROUND_S: Final = 25.0
SHORT_ROUND_S: Final = 6.0
LATE_S: Final = 30.0
SLACK_MS: Final = 15_000  # of K10: workers and sender share the machine with brokers and others
HEAL_S: Final = 60.0
UNLIMITED: Final = 1 << 40
BRIEF_PARTITIONS: Final = 2
# What one reads first: which rules tell it.
TOLD_BY: Final = {
    "lost": ("K3",),
    "doubled": ("K4",),
    "reordered": ("K7", "K8"),
    "phantom or corrupt": ("K1", "K2"),
    "wrong fate": ("K5", "K6"),
    "stuck": ("K9", "K10"),
    "out of balance": ("K11", "K12"),
}


@dataclass
class Total:
    """What all rounds came to."""

    rounds: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    broken: Counter[str] = field(default_factory=Counter)
    hits: Counter[str] = field(default_factory=Counter)
    longest_s: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def add(self, what: str, report: Report) -> None:
        """Count a round."""
        self.rounds += 1
        for name, value in report.counts.items():
            if isinstance(value, int):
                self.counts[name] += value
            elif isinstance(value, float):
                self.longest_s[name] = max(self.longest_s[name], value)  # type: ignore[assignment]
        self.hits.update(report.counts.get("faults", {}))
        self.broken += report.broken
        if not report.ok:
            self.failures.append(f"{what}: {report.line()}")

    def fail(self, what: str) -> None:
        """Something else went wrong."""
        self.failures.append(what)

    def summary(self) -> dict[str, Any]:
        """The figures."""
        return {
            "rounds": self.rounds,
            "records": dict(self.counts),
            **{name: sum(self.broken[r] for r in rules) for name, rules in TOLD_BY.items()},
            **dict(self.longest_s),
            "faults": dict(sorted(self.hits.items())),
        }


class Soak:
    """One run of the command."""

    def __init__(self, target: Target, folder: Path, seed: int, brokers: int) -> None:
        self.target = target
        self.folder = folder
        self.seed = seed
        self.replication = min(3, brokers)
        self.total = Total()
        self._turn: list[str] = []
        self._kinds: set[str] = set()
        self._resting: tuple[str, Scenario, Round, list[Extent], float] | None = None

    def rounds(self, seconds: float, only: int | None) -> None:
        """Rounds until the time is over, or one."""
        until = time.monotonic() + seconds
        number = only or 0
        while True:
            length_s = min(ROUND_S, max(SHORT_ROUND_S, until - time.monotonic()))
            self._round(number, length_s)
            number += 1
            if only is not None or self.total.failures or time.monotonic() > until - 1:
                break
        self._judge_last()

    def _round(self, number: int, seconds: float) -> None:
        what = f"seed {self.seed} round {number}"
        rng = random.Random(f"{self.seed}/{number}")
        drawn = Round.of(rng)
        folder = self.folder / str(number)
        folder.mkdir()
        run = Scenario(
            self.target.broker, folder, rng.getrandbits(32), partitions=drawn.partitions,
            replication=self.replication, **drawn.config,
        )  # fmt: skip
        brief = f"brief-{run.id:x}"
        nemesis = Nemesis(self.target, brief, BRIEF_PARTITIONS)
        self._kinds |= set(nemesis.kinds())
        run.finish_s = drawn.config["delivery_timeout_ms"] / 1000 + HEAL_S
        try:
            with run:
                run.create_topic(brief, BRIEF_PARTITIONS)
                fleet = Fleet(run, rng, drawn.workers, brief)
                nemesis.haunt(run, fleet, rng, time.monotonic() + seconds, self._turn)
                run.rest()
        except AssertionError as error:
            self.total.fail(f"{what}: {error} ({drawn})")
            return
        self._judge_last()
        extents = run.log().extents() if isinstance(run.broker, str) else []
        self._resting = (what, run, drawn, extents, time.monotonic())

    def _judge_last(self) -> None:
        """Judge the round before: what comes late to a real log has come by then."""
        if self._resting is None:
            return
        what, run, drawn, extents, since = self._resting
        self._resting = None
        if extents:
            time.sleep(max(0.0, since + LATE_S - time.monotonic()))
        terms: dict[str, Any] = {"lost_topics": frozenset({run.topics[1]})}
        if run.sender_died or drawn.expires:
            terms |= {"orphans_delivered": False, "max_unknown": UNLIMITED}
        terms["delivery_timeout_ms"] = drawn.config["delivery_timeout_ms"] + SLACK_MS
        report = run.verdict(earlier=extents, **terms)
        self.total.add(what, report)
        given_up = report.counts.get("not_written", 0)
        if given_up and "max_unknown" not in terms:
            self.total.fail(f"{what}: {given_up} records were given up before their time")
        _say({"round": what, **json.loads(report.line())})
        if report.ok:
            shutil.rmtree(run.folder)
        else:
            self.total.fail(f"{what} was {drawn}")
        for topic in run.topics:
            self.target.drop(topic)

    def never(self) -> list[str]:
        """Kinds of fault that did not happen."""
        return sorted(kind for kind in self._kinds if not self.total.hits[kind])

    def without_faults(self, records: int, workers: int, partitions: int) -> dict[str, float]:
        """Send so many records, have all acknowledged, and read them back."""
        run = Scenario(
            self.target.broker, self.folder, self.seed, partitions=partitions,
            replication=self.replication, linger_ms=5, max_block_ms=60_000,
        )  # fmt: skip
        run.finish_s = HEAL_S * 10
        shares = [records // workers + (n < records % workers) for n in range(workers)]
        with run:
            began = time.monotonic()
            for number, count in enumerate(shares):
                # Half of them one by one.
                run.worker(share(count, many=1 + number % 2), capacity=count)
            run.rest()
            sent = time.monotonic()
        report = run.verdict()
        self.total.add("without faults", report)
        if report.counts.get("acked") != records:
            self.total.fail(f"{report.counts.get('acked')} of {records} records are acknowledged")
        read_s = time.monotonic() - sent
        return {
            "seconds_sending": round(sent - began, 1),
            "records_per_s": round(records / (sent - began)),
            "seconds_reading_and_checking": round(read_s, 1),
        }


def _say(what: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/soak", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=None, help="default: a new one, printed")
    parser.add_argument("--brokers", type=int, default=3)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--kafka", action="store_true", help="a real Kafka, started for the run")
    where.add_argument("--broker", action="store_true", help="the strict broker (default)")
    parser.add_argument("--round", type=int, help="only this round of the seed")
    parser.add_argument("--no-faults", action="store_true")
    parser.add_argument("--records", type=int, default=1_000_000, help="with --no-faults")
    parser.add_argument("--workers", type=int, default=8, help="with --no-faults")
    parser.add_argument("--partitions", type=int, default=12, help="with --no-faults")
    parser.add_argument("--every-kind", action="store_true",
                        help="fail when a kind of fault did not happen")  # fmt: skip
    return parser


@contextlib.contextmanager
def _own_runtime_dir() -> Iterator[None]:
    """No sender of anybody else, and short paths for its socket."""
    folder = tempfile.mkdtemp(prefix="mpp-")
    os.environ["MPPRODUCER_RUNTIME_DIR"] = folder
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main(argv: list[str] | None = None) -> int:
    """Run the command; exit status 1 for anything lost, doubled, reordered, stuck or amiss."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if min(arguments.brokers, arguments.records, arguments.workers, arguments.partitions) < 1:
        parser.error("--brokers, --records, --workers and --partitions are 1 or more")
    seed = arguments.seed
    if seed is None:
        seed = random.SystemRandom().getrandbits(32)
    _say({"seed": seed})
    folder = Path(tempfile.mkdtemp(prefix="mpp-soak-"))
    began = time.monotonic()
    more: dict[str, Any] = {}
    with _own_runtime_dir(), _target(arguments) as target:
        soak = Soak(target, folder, seed, arguments.brokers)
        try:
            if arguments.no_faults:
                more |= soak.without_faults(
                    arguments.records, arguments.workers, arguments.partitions
                )
            else:
                soak.rounds(arguments.minutes * 60, arguments.round)
                more["never"] = soak.never()
        except Exception:  # noqa: BLE001 - what was found so far is told, and this with it
            soak.total.fail(traceback.format_exc())
    if arguments.every_kind and more.get("never"):
        soak.total.fail(f"these faults never happened: {', '.join(more['never'])}")
    _say({
        "ok": not soak.total.failures, "seed": seed,
        "seconds": round(time.monotonic() - began, 1), **soak.total.summary(), **more,
    })  # fmt: skip
    for failure in soak.total.failures:
        sys.stdout.write(f"{failure}\n")
    if soak.total.failures:
        sys.stdout.write(f"journals: {folder}\n")
        return 1
    shutil.rmtree(folder)
    return 0


def _target(arguments: argparse.Namespace) -> StrictTarget | KafkaTarget:
    return (KafkaTarget if arguments.kafka else StrictTarget)(arguments.brokers)


if __name__ == "__main__":
    raise SystemExit(main())
