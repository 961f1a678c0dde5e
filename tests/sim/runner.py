"""Runs of many seeds, what came of them, and failing seeds made small.

scripts/simulate --seeds 100000            many seeds, with the hits of every fault kind
scripts/simulate --from 17 --trace         one seed, every event and action of it
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.sim.plan import Fault, Plan
from tests.sim.simulation import Simulation

KEPT: Final = Path(__file__).with_name("seeds.txt")
_CHUNK: Final = 25
_SHOWN: Final = 10


@dataclass(frozen=True)
class Case:
    """A seed, perhaps with less in it than the seed says."""

    seed: int
    without: frozenset[Fault] = frozenset()
    records: int | None = None
    brokers: int | None = None

    def plan(self) -> Plan:
        """What is run."""
        plan = Plan.of(self.seed)
        return plan.shrunk(without=self.without, records=self.records, brokers=self.brokers)

    def words(self) -> str:
        """As arguments of `scripts/simulate`; `parse` reads them back."""
        words = [f"--from {self.seed}"]
        if self.without:
            words.append("--without " + ",".join(sorted(kind.name for kind in self.without)))
        if self.records is not None:
            words.append(f"--records {self.records}")
        if self.brokers is not None:
            words.append(f"--brokers {self.brokers}")
        return " ".join(words)

    def command(self) -> str:
        """The one command that repeats it with a trace."""
        return f"scripts/simulate {self.words()} --trace"


@dataclass
class Result:
    """What came of one or many runs; `failures` are (case, why)."""

    runs: int = 0
    events: int = 0
    hits: Counter[Fault] = field(default_factory=Counter)
    failures: list[tuple[Case, str]] = field(default_factory=list)

    def add(self, other: Result) -> None:
        """Sum up."""
        self.runs += other.runs
        self.events += other.events
        self.hits += other.hits
        self.failures += other.failures

    def missing(self) -> list[str]:
        """Fault kinds that never happened."""
        return [kind.name for kind in Fault if not self.hits[kind]]


def run(case: Case, trace: list[str] | None = None) -> Result:
    """Run one case. Whatever is raised is a failure of the case, never of the caller."""
    simulation = Simulation(case.plan(), trace=trace is not None)
    result = Result(runs=1)
    try:
        simulation.run()
    except Exception as error:  # noqa: BLE001 - also what only a bug can raise
        frame = traceback.extract_tb(error.__traceback__)[-1]
        why = f"{type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno})"
        result.failures.append((case, why))
    result.events = simulation.events
    result.hits = simulation.world.hits
    if trace is not None and simulation.world.trace is not None:
        trace += simulation.world.trace
    return result


def run_seeds(seeds: Iterable[int]) -> Result:
    """Run seeds one after the other."""
    total = Result()
    for seed in seeds:
        total.add(run(Case(seed)))
    return total


def shrink(case: Case) -> Case:
    """The smallest case found that fails too: fewer kinds, then fewer records and brokers."""

    def fails(smaller: Case) -> bool:
        return bool(run(smaller).failures)

    plan = case.plan()
    for kind in plan.rates:
        smaller = Case(case.seed, case.without | {kind}, case.records, case.brokers)
        if fails(smaller):
            case = smaller
    for records in (2, 4, 8, 15, 30):
        smaller = Case(case.seed, case.without, records, case.brokers)
        if records < plan.records and fails(smaller):
            case = smaller
            break
    for brokers in (1, 2):
        smaller = Case(case.seed, case.without, case.records, brokers)
        if brokers < plan.brokers and fails(smaller):
            case = smaller
            break
    return case


def describe(failures: list[tuple[Case, str]]) -> str:
    """Every failure with the command that repeats it, the first one made small."""
    lines = []
    for case, why in failures[:_SHOWN]:
        lines += [f"seed {case.seed}: {why[:600]}", f"    {case.command()}"]
    if failures:
        lines.append(f"the first one, smaller:\n    {shrink(failures[0][0]).command()}")
    if len(failures) > _SHOWN:
        lines.append(f"and {len(failures) - _SHOWN} more")
    return "\n".join(lines)


def kept() -> list[tuple[Case, str]]:
    """The cases of `seeds.txt`, each with what it had found."""
    found = []
    for line in KEPT.read_text().splitlines():
        words, _, why = line.partition("#")
        if words.strip():
            found.append((parse(words.split()), why.strip()))
    return found


def parse(words: list[str]) -> Case:
    """The case that arguments describe."""
    return _case(_parser().parse_args(words))


def _case(arguments: argparse.Namespace) -> Case:
    names = [name for name in arguments.without.split(",") if name]
    without = frozenset(Fault[name] for name in names)
    return Case(arguments.first, without, arguments.records, arguments.brokers)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/simulate",
        description="The sender's state machine between simulated workers and brokers.",
    )
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds (default: 1)")
    parser.add_argument("--from", dest="first", type=int, default=0, help="the first seed")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--trace", action="store_true", help="print every event of the first seed")
    parser.add_argument("--without", default="", metavar="KINDS", help="fault kinds to leave out")
    parser.add_argument("--records", type=int, help="at most so many records")
    parser.add_argument("--brokers", type=int, help="at most so many brokers")
    return parser


def _run_chunk(chunk: range) -> Result:
    return run_seeds(chunk)


def _run_many(first: int, count: int, processes: int) -> Result:
    chunks = [
        range(start, min(start + _CHUNK, first + count))
        for start in range(first, first + count, _CHUNK)
    ]
    total = Result()
    began = shown = time.monotonic()
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        for result in pool.imap_unordered(_run_chunk, chunks):
            total.add(result)
            if time.monotonic() - shown > 5:
                shown = time.monotonic()
                rate = total.runs / (shown - began)
                sys.stderr.write(f"{total.runs} seeds, {rate:.0f}/s, ")
                sys.stderr.write(f"{len(total.failures)} failed\n")
    return total


def main() -> int:
    """Run what the arguments say; exit status 1 on any failure, or a fault kind without a hit."""
    parser = _parser()
    arguments = parser.parse_args()
    if arguments.seeds < 1 or arguments.processes < 1:
        parser.error("--seeds and --processes are 1 or more")
    if unknown := [n for n in arguments.without.split(",") if n and n not in Fault.__members__]:
        parser.error(f"no such fault kind: {', '.join(unknown)}")
    if arguments.seeds == 1 or arguments.trace:
        return _one(_case(arguments), trace=arguments.trace)
    began = time.monotonic()
    total = _run_many(arguments.first, arguments.seeds, arguments.processes)
    seconds = time.monotonic() - began
    for kind in Fault:
        sys.stdout.write(f"{total.hits[kind]:10}  {kind.name:22} {kind.what}\n")
    sys.stdout.write(
        f"{total.runs} seeds in {seconds:.1f} s ({total.runs / seconds:.1f} seeds/s, "
        f"{total.events / total.runs:.0f} events per seed), {len(total.failures)} failed\n"
    )
    if missing := total.missing():
        sys.stdout.write(f"these faults never happened: {', '.join(missing)}\n")
    if total.failures:
        sys.stdout.write(describe(sorted(total.failures, key=lambda f: f[0].seed)) + "\n")
    return 1 if total.failures or missing else 0


def _one(case: Case, *, trace: bool) -> int:
    lines: list[str] | None = [] if trace else None
    result = run(case, lines)
    plan = case.plan()
    kinds = ", ".join(f"{kind.name} {rate:.2f}" for kind, rate in plan.rates.items())
    sys.stdout.write(f"{plan.config}\nfaults: {kinds or 'none'}\n")
    sys.stdout.write("".join(f"{line}\n" for line in lines or ()))
    for _, why in result.failures:
        sys.stdout.write(f"seed {case.seed} failed: {why}\n")
    if not result.failures:
        sys.stdout.write(f"seed {case.seed} is fine: {result.events} events\n")
    return 1 if result.failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
