"""The table of `gpu.py`, and the tools shared by its checks: device, sizes, a clock."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch


@dataclass
class Row:
    """A row of the table: the measured value, and its bound."""

    name: str
    value: float | str
    unit: str = ""
    bound: str = ""
    holds: bool | None = None


class Table:
    """The rows, written to a file as they come."""

    def __init__(self, path: Path, device: torch.device, seconds: float) -> None:
        self.path = path
        self.rows: list[Row] = []
        self.end = time.monotonic() + seconds
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU"
        self.facts = {"device": name, "torch": torch.__version__, "python": platform.python_version()}

    def add(
        self, name: str, value: float | str, unit: str = "", bound: str = "", holds: object = None
    ) -> None:
        """Add a row, and write all."""
        row = Row(name, value, unit, bound, None if holds is None else bool(holds))
        self.rows.append(row)
        self.path.write_text(json.dumps({**self.facts, "rows": [asdict(r) for r in self.rows]}, indent=1))
        print(_line(row), flush=True)

    def at_most(self, name: str, value: float, limit: float, unit: str = "") -> None:
        """Add a value that must not exceed a limit; NaN fails."""
        self.add(name, value, unit, f"<= {limit:g}", value <= limit)

    def at_least(self, name: str, value: float, limit: float, unit: str = "") -> None:
        """Add a value that must reach a limit."""
        self.add(name, value, unit, f">= {limit:g}", value >= limit)

    def print(self) -> None:
        """Print the table, and the failed rows."""
        print(f"\n{self.facts['device']}, torch {self.facts['torch']}\n\n| what | value | bound | holds |")
        print("| --- | --- | --- | --- |")
        for row in self.rows:
            print(_line(row))
        failed = [row.name for row in self.rows if row.holds is False]
        print(f"\n{len(self.rows)} rows, {len(failed)} of which fail", *failed, sep="\n- ")


def _line(row: Row) -> str:
    value = row.value if isinstance(row.value, str) else f"{row.value:.4g}"
    holds = {None: "", True: "yes", False: "NO"}[row.holds]
    return f"| {row.name} | {value} {row.unit} | {row.bound} | {holds} |"


@dataclass(frozen=True)
class Bench:
    """The device, sizes and table shared by the checks."""

    device: torch.device
    toy: bool
    table: Table
    folder: Path

    @property
    def cuda(self) -> bool:
        """Whether there is a GPU."""
        return self.device.type == "cuda"

    def goal(self, holds: bool) -> bool | None:
        """Return whether a speed goal is reached; None at toy size."""
        return None if self.toy else holds

    def size(self, toy: int, real: int) -> int:
        """Return one of two sizes."""
        return toy if self.toy else real

    def seconds(self, work: Callable[[], object], repeats: int = 7) -> float:
        """Return the median time of a task, warmed up, by the device's clock."""
        for _ in range(2):
            work()
        times = []
        for _ in range(2 if self.toy else repeats):
            if self.cuda:
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                work()
                end.record()
                torch.cuda.synchronize()
                times.append(begin.elapsed_time(end) / 1000)
            else:
                start = time.perf_counter()
                work()
                times.append(time.perf_counter() - start)
        return statistics.median(times)
