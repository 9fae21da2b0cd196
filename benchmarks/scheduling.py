"""Cost of dividing blocks among a thousand workers, with failures, stragglers and resuming.

    python benchmarks/scheduling.py
    python benchmarks/scheduling.py --seconds 40 --spread 0.1 --blocks 280000

A simulation. The blocks are divided among jobs (`set-scatter` of the profile); an idle machine takes the next
job. Job w of N computes the blocks w - 1, w - 1 + N, ... in sequence. A block takes `--seconds` (stated in a
worker's log), times a random factor, and some machines are slow. A job whose machine is lost waits and
resumes: the interrupted block is recomputed. The efficiency is the sum of all block times on normal machines,
over the number of machines times the time until the last job is done.
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
    parser.add_argument("--blocks", type=int, default=280_000, help="Blocks; by default those of 1 TB.")
    parser.add_argument("--seconds", type=float, default=20.0, help="Seconds per block.")
    parser.add_argument("--spread", type=float, default=0.1, help="Standard deviation of its logarithm.")
    parser.add_argument("--slow", type=float, default=1.5, help="Time factor of a slow machine.")
    parser.add_argument(
        "--ramp", type=float, default=300.0, help="Seconds until the last machine is available."
    )
    parser.add_argument("--start", type=float, default=30.0, help="Seconds until a job starts working.")
    parser.add_argument("--wait", type=float, default=600.0, help="Seconds until a lost job is back.")
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
