"""Messages of a training: its duration, why it ended, the kept state, and whether more steps would help."""

import json

import numpy as np
import pytest
from learning import model_settings

from emdiffuse.config import Training
from emdiffuse.training import outlook as told
from emdiffuse.training.outlook import CLEAR, expected, outlook, slope
from emdiffuse.training.train import train


def curve(values, begun=False, every=100):
    first = 0 if begun else every
    return [{"step": first + every * i, "validation_psnr": float(v)} for i, v in enumerate(values)]


def test_the_slope_is_that_of_a_line_through_the_last_third():
    early, late = np.linspace(20, 24, 20), 24 + np.arange(1, 11) * 0.05
    rise, error = slope(curve([*early, *late]))
    assert rise == pytest.approx(0.5, abs=1e-6) and error == pytest.approx(0, abs=1e-6)


def test_the_error_of_the_slope_is_that_of_repeated_curves():
    """Over many curves with the same slope and new noise, the rises scatter by the stated error."""
    rng = np.random.default_rng(0)
    found = np.array([slope(curve(20 + 0.01 * np.arange(60) + rng.normal(0, 0.1, 60))) for _ in range(400)])
    rises, errors = found.T
    assert rises.mean() == pytest.approx(0.19, abs=0.02)
    assert rises.std() == pytest.approx(np.sqrt(np.mean(errors**2)), rel=0.15)


@pytest.mark.parametrize(
    ("values", "verdict", "sentence"),
    [
        (np.arange(30) + 0.01 * (np.arange(30) % 2), "more", "more steps would help"),
        (10 - np.arange(30) + 0.01 * (np.arange(30) % 2), "enough", "more steps would not help"),
        (20 + 1e-3 * np.arange(30), "little", "rose by only 0.01 ± 0.00 dB: more steps would hardly help"),
        ([30, *(20 + np.arange(29))[:9], *(20 + 0.1 * np.arange(20))], "past", "stayed below step 100: more"),
        (20 + 0.1 * np.cos(np.arange(30) * 2.4), "unclear", "is flat within its error"),
        ([20, 21, 22], "unclear", "too few validations to tell"),
    ],
)
def test_it_says_whether_more_steps_would_help(values, verdict, sentence):
    found = outlook(curve(values), "all steps were completed")
    assert found.verdict == verdict and sentence in found.sentence
    if found.rise is not None:
        assert (abs(found.rise) > CLEAR * found.error) == (verdict != "unclear")


def test_the_first_of_equals_is_kept_and_the_gain_is_over_what_it_began_from():
    better = outlook(curve([20, 20.5, 20.2], begun=True), "")
    assert (better.kept_step, better.gain) == (100, pytest.approx(0.5)) and "0.50 dB better" in better.kept
    same = outlook(curve([20, 20, 19], begun=True), "")
    assert (same.kept_step, same.gain) == (0, 0) and "unchanged" in same.kept
    assert outlook(curve([20, 21]), "").gain is None


def test_a_training_without_progress_ends_by_itself_and_says_why(store, tmp_path, monkeypatch, caplog):
    assert Training().patience == 10
    monkeypatch.setattr(told, "TIMED_SECONDS", 0.0)
    monkeypatch.setattr("emdiffuse.runtime.progress.logger.propagate", True)
    caplog.set_level("INFO", "emdiffuse")
    train(store, model_settings(steps=1000, validate_every=1, learning_rate=10.0), "m", tmp_path, "cpu")
    facts = json.loads((tmp_path / "best/metrics.json").read_text())
    kept = facts["outlook"]["kept_step"]
    assert facts["steps"] == kept + 10
    ended = facts["outlook"]["ended"]
    assert ended.startswith("10 validations in a row were no better than") and "(`patience`)" in ended
    assert json.loads((tmp_path / "best/model.json").read_text())["training"]["ended"] == ended
    assert f"m: {ended}" in caplog.text and "steps per second here" in caplog.text


def test_the_time_of_a_training_is_that_of_the_nearer_limit():
    by_steps = expected(Training(steps=1000, patience=None), 1000, 0, 0.0, 2.0)
    assert by_steps == "2 steps per second here: 8:20 for the steps up to 1000"
    by_time = expected(Training(steps=1000, minutes=1), 1000, 10, 30.0, 2.0)
    assert "0:30 for the steps up to 70, less if 10 validations in a row are no better" in by_time
