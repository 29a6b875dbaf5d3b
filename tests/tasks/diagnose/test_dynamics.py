"""Multipliers and weights over a training, from logs that this file writes, by hand-computed numbers."""

import json
import math

import pytest
from torch import nn

import zoo
from tasks.diagnose.dynamics import BlockPoint, Cancellation, describe_cancellation, read_dynamics
from tasks.diagnose.figures import course_figure, dynamics_figure
from tasks.diagnose.run import run_diagnosis
from tasks.diagnose.subjects import Settings
from tasks.engine.records import BlocksRecord, EpochRecord, SignalsRecord, StepRecord
from tasks.errors import DataError
from tests.helpers.paths import ROOT

# m, and the norms of the two weights, of two blocks at the ends of two epochs
FIRST = [("layer1.0", 1.0, [2.0, 3.0]), ("layer1.1", 1.0, [4.0, 1.0])]
LAST = [("layer1.0", 2.0, [1.0, 1.5]), ("layer1.1", -3.0, [2.0, 0.5])]


def blocks(step, epoch, rows):
    content = [{"block": name, "m": m, "weight_norms": norms} for name, m, norms in rows]
    return BlocksRecord(step=step, epoch=epoch, blocks=content)


def layer(name, **numbers):
    return {"name": name, "kind": "product", "gradient_norm": 0.5, "update_ratio": 0.01, **numbers}


def records():
    signals = [
        SignalsRecord(
            step=step,
            epoch=0,
            layers=[layer("stem", bias_norm=None, bias_offset=0.25), layer("fc", gradient_norm=None)],
            sums=[{"name": "layer1.0", "power": 1.5, "ratio": 0.5, "correlation": -0.1}],
            activations=[{"name": "layer1.0.act", "channels": 8, "positive": 2, "negative": 4}],
        )
        for step in (0, 5)
    ]
    return [
        signals[0],
        StepRecord(step=4, epoch=0, loss=1.0, lr=0.1),
        EpochRecord(step=5, epoch=0, train_loss=1.0, metrics={"top1": 40.0}),
        blocks(5, 0, FIRST),
        signals[1],
        EpochRecord(step=10, epoch=1, train_loss=0.5, metrics={"top1": 60.0}),
        blocks(10, 1, LAST),
    ]


def write(path, content, end=""):
    path.write_text("".join(json.dumps(record.as_dict()) + "\n" for record in content) + end)
    return path


def test_the_numbers_of_a_log(tmp_path):
    found = read_dynamics("run", write(tmp_path / "log.jsonl", records()))
    assert found.blocks == ("layer1.0", "layer1.1")
    assert not found.begins_fresh
    first, last = found.points[0]
    assert (first.step, first.epoch, first.multiplier, first.norms) == (5, 1.0, 1.0, (2.0, 3.0))
    assert (last.step, last.epoch, last.multiplier, last.norms) == (10, 2.0, 2.0, (1.0, 1.5))
    assert [point.weight for point in found.points[0]] == [6.0, 1.5]
    assert [point.effective for point in found.points[0]] == [6.0, 3.0]
    assert [point.effective for point in found.points[1]] == [4.0, 3.0]  # |-3| * 2 * 0.5
    assert found.metrics == {"top1": 60.0}
    # of ``train.diagnose``
    assert [(each.layer, each.step) for each in found.layers] == [("stem", 0), ("fc", 0), ("stem", 5), ("fc", 5)]
    assert found.layers[0].bias_offset == 0.25
    assert math.isnan(found.layers[0].bias_norm)  # None in the log
    assert math.isnan(found.layers[1].gradient_norm)
    assert found.layers[1].update_ratio == 0.01
    assert [(each.power, each.ratio, each.correlation) for each in found.sums] == [(1.5, 0.5, -0.1)] * 2
    assert [(each.positive, each.negative) for each in found.dead] == [(0.25, 0.5)] * 2


def test_the_change_of_each_block_and_the_share_that_cancels(tmp_path):
    """layer1.0: m doubles while the weights shrink to a quarter, half of it in logarithms; layer1.1: m three times."""
    found = read_dynamics("run", write(tmp_path / "log.jsonl", records()))
    first, second = found.cancellation
    assert (first.multiplier, first.weight, first.effective) == (2.0, 0.25, 0.5)
    assert first.share == pytest.approx(0.5)
    assert (second.multiplier, second.weight, second.effective) == (3.0, 0.25, 0.75)
    assert second.share == pytest.approx(math.log(3) / math.log(4))
    text = describe_cancellation(found)
    assert text.startswith("since step 5 the multipliers are 2.5 times as large")
    assert "the products of the weights' norms 0.25 times, the effective branch weights 0.625 times" in text
    assert f"undoes {(0.5 + math.log(3) / math.log(4)) / 2:.0%} of the weights' change, in logarithms" in text
    same_way = [blocks(5, 0, FIRST), blocks(10, 1, [("layer1.0", 2.0, [4.0, 3.0]), ("layer1.1", 2.0, [8.0, 1.0])])]
    text = describe_cancellation(read_dynamics("run", write(tmp_path / "log.jsonl", same_way)))
    assert text.endswith("; multiplier and weights change in the same direction")


@pytest.mark.parametrize(
    ("m", "weight", "share"),
    [
        ((1, 4), (1, 1 / 4), 1.0),  # they cancel
        ((1, 1), (1, 1 / 4), 0.0),
        ((1, 2), (1, 2), -1.0),  # the same way
        ((1, 3), (1, 1.01), math.nan),  # the weights have hardly changed
        ((1, 0), (1, 0.5), math.nan),
        ((0, 1), (1, 0.5), math.nan),  # a multiplier that began at 0 has no ratio
        ((math.nan, math.nan), (1, 0.5), math.nan),
    ],
)
def test_shares(m, weight, share):
    points = [BlockPoint("b", k, float(k), m[k], (float(weight[k]),)) for k in (0, 1)]
    found = Cancellation.of(*points)
    assert found.share == pytest.approx(share, nan_ok=True)
    if math.isnan(m[0]):
        assert found.effective == weight[1]


def test_schemes_without_multipliers(tmp_path):
    rows = [[(name, None, norms) for name, _, norms in part] for part in (FIRST, LAST)]
    log = write(tmp_path / "log.jsonl", [blocks(5, 0, rows[0]), blocks(10, 1, rows[1])])
    found = read_dynamics("bn", log)
    assert found.points[0][0].effective == found.points[0][0].weight == 6.0
    text = describe_cancellation(found)
    assert text == "the product of a branch's weight norms is 0.25 times as large since step 5 (median of 2)"


def test_a_log_without_blocks(tmp_path):
    """Of a run in its first epoch, and of a net without blocks: their signals are shown all the same."""
    log = write(tmp_path / "log.jsonl", [StepRecord(step=1, epoch=0, loss=1.0, lr=0.1)])
    vgg = write(tmp_path / "vgg.jsonl", [blocks(5, 0, [])])
    for path in (log, vgg):
        assert read_dynamics("run", path).empty
        with pytest.raises(DataError) as error:
            run_diagnosis(str(path), [], [], Settings())
        assert str(error.value).startswith(
            f"{path}: no record of residual blocks, which a run of a net with them writes"
        )
    signals = next(record for record in records() if isinstance(record, SignalsRecord))
    found = read_dynamics("vgg", write(tmp_path / "vgg.jsonl", [signals, blocks(5, 0, [])]), lambda: nn.Linear(2, 2))
    assert not found.empty
    assert found.layers
    assert found.cancellation == []
    assert describe_cancellation(found) == "there are no records of residual blocks"
    assert found.as_dict()["blocks"] == []
    assert dynamics_figure([found]) is None
    assert course_figure([found]) is not None


@pytest.mark.parametrize(
    "end", ['{"event": "blocks", "step": 15, "epo', "nonsense\n", '{"event": "unknown"}\n', "\0\0"]
)
def test_a_log_that_ends_in_the_middle_of_a_line(tmp_path, end):
    whole = read_dynamics("run", write(tmp_path / "whole.jsonl", records()))
    found = read_dynamics("run", write(tmp_path / "log.jsonl", records(), end))
    assert found.as_dict() == whole.as_dict()


def test_a_log_of_two_nets(tmp_path):
    log = write(tmp_path / "log.jsonl", [blocks(5, 0, FIRST), blocks(7, 0, [("layer9.0", 1.0, [1.0])])])
    with pytest.raises(DataError, match=r"log.jsonl: the blocks change at step 7 \(layer9.0\); it has several runs"):
        read_dynamics("run", log)


def test_the_fresh_net_is_the_first_point(tmp_path):
    model = zoo.create_model("rescalenet20_cifar", width=0.25)
    now = zoo.branch_statistics(model)
    log = write(tmp_path / "log.jsonl", [BlocksRecord(step=5, epoch=0, blocks=now)])
    found = read_dynamics("run", log, lambda: zoo.create_model("rescalenet20_cifar", width=0.25))
    assert found.begins_fresh
    assert [(point.step, point.epoch) for point in found.points[0]] == [(0, 0.0), (5, 1.0)]
    assert found.points[0][0].multiplier == 1.0
    # He's init of another seed: norms of 144 weights differ by 1 / sqrt(2 * 144) = 6 % (standard deviation)
    assert found.points[0][0].norms == pytest.approx(found.points[0][1].norms, rel=0.25)
    assert describe_cancellation(found).startswith("since init the multipliers are 1 times as large")
    # a net with other blocks is no such net
    other = read_dynamics("run", log, lambda: zoo.create_model("rescalenet32_cifar", width=0.25))
    assert not other.begins_fresh
    assert len(other.points[0]) == 1


def test_the_numbers_are_json(tmp_path):
    content = read_dynamics("run", write(tmp_path / "log.jsonl", records())).as_dict()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["blocks"][1] == {
        "block": "layer1.0",
        "step": 10,
        "epoch": 2.0,
        "multiplier": 2.0,
        "norms": [1.0, 1.5],
        "weight": 1.5,
        "effective": 3.0,
    }
    assert content["layers"][0]["bias_norm"] is None


@pytest.mark.parametrize("log", sorted((ROOT / "weights").glob("*.log.jsonl")), ids=lambda path: path.name)
def test_logs_that_ship(log):
    found = read_dynamics(log.name, log)
    assert found.blocks
    assert all(len(points) == len(found.points[0]) for points in found.points)
    assert all(norm > 0 for points in found.points for point in points for norm in point.norms)
    assert describe_cancellation(found)


def test_curves_of_the_signals(tmp_path):
    """What a sink such as TensorBoard draws of a record."""
    tags = dict(records()[0].scalars())
    assert tags["gradient_norm/stem"] == 0.5
    assert tags["update_ratio/fc"] == 0.01
    assert tags["correlation/layer1.0"] == -0.1
    assert "gradient_norm/fc" not in tags  # None


@pytest.mark.parametrize(
    "rows", [[{"power": 1.0}], [{"name": 3}], [{"name": "a", "power": [1.0]}], "text", [["name", "a"]]]
)
def test_records_that_are_no_signals(tmp_path, rows):
    line = {"event": "signals", "step": 1, "epoch": 0, "layers": rows, "sums": [], "activations": []}
    (tmp_path / "log.jsonl").write_text(json.dumps(line) + "\n")
    assert read_dynamics("run", tmp_path / "log.jsonl").empty
    good = {**line, "layers": [{"name": "a", "power": None, "kind": "product", "post_bias": True}]}
    (tmp_path / "log.jsonl").write_text(json.dumps(good) + "\n" + json.dumps(blocks(5, 0, FIRST).as_dict()) + "\n")
    assert len(read_dynamics("run", tmp_path / "log.jsonl").layers) == 1
