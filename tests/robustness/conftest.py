"""Count the tries of the matrix, and report them at the end."""

from collections import Counter

import pytest

from emdiffuse.runtime.disks import as_mistake

TRIED: Counter[str] = Counter()


@pytest.fixture
def attempt():
    """Return a function that runs a task and counts its outcome; failures fail the test at its end."""
    lost = []

    def run(what, work):
        TRIED["tried"] += 1
        try:
            work()
        except Exception as error:
            mistake = as_mistake(error)
            if mistake is not None and str(mistake).strip() and "\n" not in str(mistake):
                TRIED["refused in a sentence"] += 1
            else:
                TRIED["lost"] += 1
                lost.append(f"{what}: {error!r}"[:300])
        else:
            TRIED["handled"] += 1

    yield run
    assert not lost, f"{len(lost)} were neither handled nor refused in a sentence:\n" + "\n".join(lost[:20])


def pytest_terminal_summary(terminalreporter):
    if TRIED:
        counts = ", ".join(
            f"{name} {TRIED[name]}" for name in ("tried", "refused in a sentence", "handled", "lost")
        )
        terminalreporter.write_line(f"robustness: {counts}")
