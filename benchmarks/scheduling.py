"""A thousand workers with failures and stragglers: what the shares of blocks, and resuming them, cost.

    python benchmarks/scheduling.py
    python benchmarks/scheduling.py --seconds 40 --spread 0.1 --blocks 280000

A simulation, no run. The blocks are shared out among jobs (`set-scatter` of the profile); a machine takes the
next job when it is free. Job w of N owns the blocks w - 1, w - 1 + N, ... and does them one after another. A
block takes `--seconds` (the log of a worker says it), times a factor that is drawn for the block, and some
machines are slow. A job whose machine is lost waits and resumes: the block that it was in is
recomputed. The efficiency is the sum of all block times on usual machines, over the machines times the time
until the last job is done.
"""

import argparse
import heapq

import numpy as np

MACHINES = 1000


def simulate(
    options: argparse.Namespace, jobs: int, failures: float, stragglers: float, seed: int
) -> tuple[float, float]:
    """Return the efficiency, and the hours until the end."""
    generator = np.random.default_rng(seed)
    times = options.seconds * generator.lognormal(-(options.spread**2) / 2, options.spread, options.blocks)
    slow = np.where(generator.random(MACHINES) < stragglers, options.slow, 1.0)
    free = [(options.ramp * float(generator.random()), machine) for machine in range(MACHINES)]
    heapq.heapify(free)
    end = 0.0
    for job in range(jobs):
        clock, machine = heapq.heappop(free)
        clock += options.start
        until = generator.exponential(1 / failures) if failures else np.inf
        for time in times[job::jobs] * slow[machine]:
            while time > until:
                clock += until + options.wait
                until = generator.exponential(1 / failures)
            clock += time
            until -= time
        heapq.heappush(free, (clock, machine))
        end = max(end, clock)
    return times.sum() / (MACHINES * end), end / 3600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=280_000, help="Blocks; 1 TB has so many by default.")
    parser.add_argument("--seconds", type=float, default=20.0, help="Seconds that a block takes.")
    parser.add_argument("--spread", type=float, default=0.1, help="Standard deviation of its logarithm.")
    parser.add_argument("--slow", type=float, default=1.5, help="How many times longer a slow machine takes.")
    parser.add_argument("--ramp", type=float, default=300.0, help="Seconds until the last machine is there.")
    parser.add_argument("--start", type=float, default=30.0, help="Seconds until a job has begun to work.")
    parser.add_argument("--wait", type=float, default=600.0, help="Seconds until a lost job is there again.")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    shares = (1, 4, 16)
    print(f"| a machine is lost once in | slow machines | {' | '.join(f'{n} jobs each' for n in shares)} |")
    print("| --- " * (2 + len(shares)) + "|")
    for days, stragglers in ((None, 0.0), (7, 0.0), (1, 0.0), (7, 0.02), (1, 0.05)):
        cells = []
        for each in shares:
            failures = 1 / (days * 86400) if days else 0.0
            runs = [
                simulate(options, each * MACHINES, failures, stragglers, seed)
                for seed in range(options.repeats)
            ]
            efficiency, hours = np.mean(runs, axis=0)
            cells.append(f"{efficiency:.1%} ({hours:.2f} h)")
        often = f"{days} days" if days else "never"
        print(f"| {often} | {stragglers:.0%} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
