"""The format of log.jsonl, and the sinks that records go to."""

import json
import math
import time
from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

from tasks import plots
from tasks.engine import BlocksRecord, EpochRecord, RunLog, StepRecord, read_log, read_records, register_sink
from tasks.engine import runlog as sinks
from tasks.engine.records import read_complete_records
from tasks.errors import ConfigError, DataError
from tests.helpers.curves import curves_in

ROOT = Path(__file__).resolve().parents[3]
SHIPPED = sorted([*(ROOT / "weights").glob("*.jsonl"), *(ROOT / "docs/records").glob("*.jsonl")])
STEP = StepRecord(step=3, epoch=0, loss=1.5, lr=0.1)


def line(record):
    return json.dumps(record.as_dict()) + "\n"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_logs_are_read_and_written_byte_for_byte(path):
    records = read_records(path)
    assert records
    assert "".join(map(line, records)) == path.read_text()
    assert read_log(path) == [json.loads(text) for text in path.read_text().splitlines()]


def test_there_are_shipped_logs():
    assert len(SHIPPED) >= 22


def test_lines():
    assert line(STEP) == '{"event": "step", "step": 3, "epoch": 0, "loss": 1.5, "lr": 0.1}\n'
    terms = StepRecord(step=3, epoch=0, loss=3.0, terms={"b": 2.0, "a": 1.0}, lr=0.1)
    assert line(terms) == '{"event": "step", "step": 3, "epoch": 0, "loss": 3.0, "b": 2.0, "a": 1.0, "lr": 0.1}\n'
    epoch = EpochRecord(step=9, epoch=1, train_loss=0.5, metrics={"top1": 10.0, "images": 15})
    assert line(epoch) == ('{"event": "epoch", "step": 9, "epoch": 1, "train_loss": 0.5, "top1": 10.0, "images": 15}\n')


def test_curves_of_a_record():
    epoch = EpochRecord(step=9, epoch=1, train_loss=0.5, metrics={"top1": 10.0})
    assert dict(epoch.scalars()) == {"epoch/train_loss": 0.5, "epoch/top1": 10.0}
    assert dict(STEP.scalars()) == {"step/loss": 1.5, "step/lr": 0.1}
    rows = [{"block": "a", "m": 2.0, "weight_norms": [3.0, 4.0]}, {"block": "b", "m": None, "weight_norms": [5.0]}]
    blocks = BlocksRecord(step=9, epoch=1, blocks=rows)
    assert dict(blocks.scalars()) == {
        "multiplier/a": 2.0,
        "weight_norm/a.1": 3.0,
        "weight_norm/a.2": 4.0,
        "weight_norm/b.1": 5.0,
    }


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not JSON"),
        ("\0\0\0", "not JSON"),
        ("3", "not an object"),
        ("", "not JSON"),
        ("[" * 10**5, "nested deeper"),
        ('{"step": 1, "step": 1}', "occurs twice"),
        ('{"event": "other", "step": 1, "epoch": 0}', "event='other': must be one of blocks, diverged, epoch"),
        ('{"event": ["step"], "step": 1, "epoch": 0}', "event="),
        ('{"step": 1, "epoch": 0}', "event=None"),
        ('{"event": "step", "step": 1, "epoch": 0, "loss": 1.0}', "missing .*'lr'"),
        ('{"event": "blocks", "step": 1, "epoch": 0, "blocks": [], "more": 1}', "unknown keys more"),
        ('{"event": "step", "step": -1, "epoch": 0, "loss": 1.0, "lr": 0.1}', "step: .*greater than or equal to 0"),
        ('{"event": "step", "step": 1.5, "epoch": 0, "loss": 1.0, "lr": 0.1}', "step: .*valid integer"),
        ('{"event": "step", "step": true, "epoch": 0, "loss": 1.0, "lr": 0.1}', "step: .*valid integer"),
        ('{"event": "step", "step": 1, "epoch": null, "loss": 1.0, "lr": 0.1}', "epoch: .*valid integer"),
        ('{"event": "step", "step": 1, "epoch": 0, "loss": "1", "lr": 0.1}', "loss: .*valid number"),
        ('{"event": "step", "step": 1, "epoch": 0, "loss": 1, "lr": 0.1, "a": "x"}', "terms: a='x': .*valid number"),
        ('{"event": "epoch", "step": 1, "epoch": 0, "train_loss": 1, "top1": [3]}', "metrics: top1=.*valid number"),
        ('{"event": "diverged", "step": 1, "epoch": 0, "reason": 3}', "reason: .*valid string"),
        ('{"event": "blocks", "step": 1, "epoch": 0, "blocks": {}}', "blocks: .*valid list"),
        ('{"event": "blocks", "step": 1, "epoch": 0, "blocks": [{"block": "a"}]}', "blocks: 0.m: is missing"),
        (
            '{"event": "blocks", "step": 1, "epoch": 0, "blocks": [{"block": 1, "m": null, "weight_norms": []}]}',
            "blocks: 0.block=1: .*valid string",
        ),
    ],
)
def test_what_is_no_record_is_reported_with_its_line(tmp_path, text, reason):
    path = tmp_path / "log.jsonl"
    path.write_text(f"{line(STEP)}{text}\n{line(STEP)}")
    with pytest.raises(DataError, match=rf"log.jsonl, line 2: not a record of a run's log \(.*{reason}") as caught:
        read_records(path)
    assert len(str(caught.value).splitlines()) == 1
    assert read_complete_records(path) == [STEP]


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(line(STEP).encode() + b"\xff\xfe\n")
    with pytest.raises(DataError, match=r"log.jsonl, line 2: not a record"):
        read_records(path)
    assert read_complete_records(path) == [STEP]


def test_losses_that_are_not_finite_are_records(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text(line(EpochRecord(step=9, epoch=1, train_loss=math.nan, metrics={"top1": math.inf})))
    (found,) = read_records(path)
    assert math.isnan(found.train_loss)
    assert found.metrics == {"top1": math.inf}


@pytest.mark.parametrize(
    ("keep", "expected"), [(0, ""), (len(line(STEP)), line(STEP)), (2 * len(line(STEP)), 2 * line(STEP))]
)
def test_a_resumed_log_is_cut_off_where_the_checkpoint_was(tmp_path, keep, expected):
    path = tmp_path / "log.jsonl"
    path.write_text(2 * line(STEP))
    log = sinks.open_log(tmp_path, [], keep_bytes=keep, step=1)
    last = EpochRecord(step=4, epoch=0, train_loss=1.0)
    log.write(last)
    assert log.flush() == path.stat().st_size
    log.close()
    assert path.read_text() == expected + line(last)


@pytest.mark.parametrize("text", [None, "", line(STEP)])
def test_a_log_shorter_than_the_checkpoint_tells_is_not_filled_up(tmp_path, text):
    path = tmp_path / "log.jsonl"
    if text is not None:
        path.write_text(text)
    log = sinks.open_log(tmp_path, [], keep_bytes=10_000, step=1)
    log.write(STEP)
    assert log.flush() == len((text or "") + line(STEP))
    log.close()
    assert path.read_text() == (text or "") + line(STEP)


def test_a_sink_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.setattr(sinks, "SINKS", dict(sinks.SINKS))

    @register_sink("csv")
    class CsvSink:
        def __init__(self, folder, step):
            self.file = (folder / "losses.csv").open("a")

        def write(self, record):
            if isinstance(record, StepRecord):
                self.file.write(f"{record.step},{record.loss}\n")

        def flush(self):
            self.file.flush()

        def close(self):
            self.file.close()

    log = sinks.open_log(tmp_path, ["csv"], keep_bytes=0, step=0)
    log.write(STEP)
    assert log.flush() == len(line(STEP))
    log.close()
    assert (tmp_path / "losses.csv").read_text() == "3,1.5\n"
    with pytest.raises(ValueError, match="sink 'csv' is registered already"):
        register_sink("csv")


def test_tensorboard_shows_the_curves_of_a_run_that_was_resumed(tmp_path):
    """As those of torch's ``SummaryWriter``; of steps that were done again, the second time."""
    epoch = EpochRecord(step=2, epoch=0, train_loss=0.5, metrics={"top1": 10.0, "auc": math.nan})
    sessions = [(0, [1.0, 2.0, 3.0, 4.0]), (2, [5.0, 6.0])]
    for begin, losses in sessions:
        records = [StepRecord(step=begin + i, epoch=0, loss=loss, lr=0.1) for i, loss in enumerate(losses, 1)]
        records[2:2] = [epoch] if begin == 0 else []
        sink = sinks.SINKS["tensorboard"](tmp_path, begin)
        writer = SummaryWriter(str(tmp_path / "expected"), purge_step=begin + 1)
        for record in records:
            sink.write(record)
            for tag, value in record.scalars():
                writer.add_scalar(tag, value, record.step)
        sink.flush()
        sink.close()
        writer.close()
        time.sleep(1.1)  # torch names its files by the second
    shown, expected = curves_in(tmp_path / "tensorboard"), curves_in(tmp_path / "expected")
    assert [(point.step, point.value) for point in shown["step/loss"]] == [(1, 1.0), (2, 2.0), (3, 5.0), (4, 6.0)]
    points = [{tag: [(p.step, str(p.value)) for p in each[tag]] for tag in each} for each in (shown, expected)]
    assert points[0] == points[1]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2


def test_unknown_sinks_are_refused():
    with pytest.raises(ConfigError, match=r"train.sinks: unknown sink 'tensorbord' \(did you mean tensorboard\?\)"):
        sinks.check_sinks(["tensorbord"])


def test_a_log_without_sinks_does_nothing():
    log = RunLog()
    log.write(STEP)
    assert log.flush() == 0
    log.close()


def test_curves_are_drawn_from_a_log(tmp_path):
    plots.curves({path.name: path for path in SHIPPED[:2]}, tmp_path / "curves.png", "bleu")
    assert (tmp_path / "curves.png").stat().st_size > 1000
