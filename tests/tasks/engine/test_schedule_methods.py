"""Schedules: each one's factor, and how another one is added."""

from typing import Literal

import pytest
import yaml
from pydantic import Field

from tasks import config as cfg
from tasks.engine import rate
from tasks.errors import ConfigError
from tasks.spec import resolve

RECIPE = "classification/cifar10/rescalenet20"


@pytest.mark.parametrize(
    ("schedule", "epochs", "expected"),
    [
        (cfg.Cosine(warmup_epochs=2, final=0.1), 10, {0: 0, 1: 0.5, 2: 1, 6: 0.55, 10: 0.1}),
        (cfg.Cosine(), 4, {0: 1, 2: 0.5, 4: 0}),
        (
            cfg.MultiStep(warmup_epochs=1, milestones=(3, 6), gamma=0.1),
            9,
            {0.5: 0.5, 1: 1, 2.99: 1, 3: 0.1, 6: 0.01, 8: 0.01},
        ),
        (cfg.OneCycle(up=0.25, start=0.1), 8, {0: 0.1, 1: 0.55, 2: 1, 5: 0.5, 8: 0}),
    ],
)
def test_factors(schedule, epochs, expected):
    found = [schedule.factor(epoch, epochs, 7) for epoch in expected]
    assert found == pytest.approx(list(expected.values()))


def test_inverse_sqrt_counts_steps():
    schedule = cfg.InverseSqrt(warmup_steps=40)
    assert schedule.factor(0, 12, 25) == pytest.approx(1 / 40)
    assert schedule.factor(39 / 25, 12, 25) == pytest.approx(1)
    assert schedule.factor(159 / 25, 12, 25) == pytest.approx(0.5)


def test_the_former_function_still_works():
    schedule = cfg.OneCycle(up=0.25, start=0.1)
    with pytest.deprecated_call():
        assert rate(schedule, 1, 8) == schedule.factor(1, 8)


@pytest.fixture
def constant(monkeypatch):
    """A schedule registered for one test."""
    monkeypatch.setattr(cfg, "SCHEDULES", list(cfg.SCHEDULES))

    @cfg.register_schedule
    class Constant(cfg.ScheduleSection):
        name: Literal["constant"] = "constant"
        value: float = Field(1.0, gt=0)

        def factor(self, epoch, epochs, steps=1):
            return self.value

    return Constant


def test_a_schedule_of_ones_own(constant):
    config = resolve(RECIPE, ["train.schedule={name: constant, value: 0.5}"])
    assert config.train.schedule == constant(value=0.5)
    assert config.train.schedule.factor(3, 10) == 0.5
    again = cfg.check(yaml.safe_load(cfg.dump(config)), type(config), "dump")
    assert again == config
    with pytest.raises(ConfigError, match=r"unknown key 'train.schedule.valeu' \(did you mean value\?\)"):
        resolve(RECIPE, ['train.schedule={name: constant, "valeu": 0.5}'])
    with pytest.raises(ConfigError, match=r"train.schedule.value=0: Input should be greater than 0"):
        resolve(RECIPE, ["train.schedule={name: constant, value: 0}"])


def test_names_of_schedules_are_unique(constant):
    with pytest.raises(ValueError, match="schedule 'constant' is registered already"):
        cfg.register_schedule(constant)


def test_a_schedule_must_have_a_factor():
    class Incomplete(cfg.ScheduleSection):
        name: Literal["incomplete"] = "incomplete"

    with pytest.raises(TypeError, match="abstract"):
        Incomplete()


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ConfigError, match=r"train.schedule.name='cosin': must be one of 'cosine', 'multistep'"):
        resolve(RECIPE, ["train.schedule={name: cosin}"])
