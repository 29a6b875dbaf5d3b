"""Evaluation of Core ML's programs (MIL) with PyTorch, for machines without Core ML.

A program that ``coremltools`` reads from a saved package is a list of operators with named inputs. The functions here
compute those that convolutional nets consist of, as the definitions in ``coremltools.converters.mil.mil.ops.defs``
describe them. An operator without a function here raises, so that no program is taken as compared that was not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.errors import ExportError

Values = Mapping[str, Any]  # inputs of an operator by name: tensors, and numbers, strings and arrays of constants
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "int32": torch.int32, "bool": torch.bool}


def _pads(values: Values, spatial: int) -> list[int]:
    """Return how much a convolution or pooling is padded, as ``F.pad`` takes it.

    Raises:
        ExportError: a rule other than explicit numbers.
    """
    if values["pad_type"] == "valid":
        return [0] * 2 * spatial
    if values["pad_type"] != "custom":
        raise ExportError(f"Core ML program: pad_type={values['pad_type']} is not evaluated here")
    pairs = np.asarray(values["pad"]).reshape(-1, 2).tolist()
    return [int(length) for pair in reversed(pairs) for length in pair]


def _sizes(value: Any) -> list[int]:
    return [int(size) for size in np.asarray(value).reshape(-1)]


def _conv(v: Values) -> Tensor:
    x, weight = v["x"], torch.as_tensor(v["weight"])
    spatial = x.ndim - 2
    run: Any = (F.conv1d, F.conv2d, F.conv3d)[spatial - 1]
    bias = None if v.get("bias") is None else torch.as_tensor(v["bias"])
    x = F.pad(x, _pads(v, spatial))
    return run(x, weight, bias, _sizes(v["strides"]), 0, _sizes(v["dilations"]), int(v["groups"]))


def _avg_pool(v: Values) -> Tensor:
    x, pads = v["x"].float(), _pads(v, v["x"].ndim - 2)  # PyTorch has no half-precision pooling of clips
    pool: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[x.ndim - 3]

    def mean(y: Tensor) -> Tensor:
        return pool(F.pad(y, pads), _sizes(v["kernel_sizes"]), _sizes(v["strides"]), 0, bool(v["ceil_mode"]))

    # without the padding: the mean over the part of each window that is inside
    pooled = mean(x) / mean(torch.ones_like(x)) if v["exclude_padding_from_average"] else mean(x)
    return pooled.to(v["x"].dtype)


def _batch_norm(v: Values) -> Tensor:
    mean, variance, gamma, beta = (
        None if v.get(name) is None else torch.as_tensor(v[name]) for name in ("mean", "variance", "gamma", "beta")
    )
    return F.batch_norm(v["x"], mean, variance, gamma, beta, eps=float(v["epsilon"]))


def _max_pool(v: Values) -> Tensor:
    x = F.pad(v["x"], _pads(v, v["x"].ndim - 2), value=-math.inf)
    pool: Any = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[x.ndim - 3]
    return pool(x, _sizes(v["kernel_sizes"]), _sizes(v["strides"]), 0, 1, bool(v["ceil_mode"]))


def _slice_by_index(v: Values) -> Tensor:
    x = v["x"]
    for axis, (begin, end) in enumerate(zip(_sizes(v["begin"]), _sizes(v["end"]), strict=True)):
        masks = {key: v.get(f"{key}_mask") is not None and bool(v[f"{key}_mask"][axis]) for key in ("begin", "end")}
        step = 1 if v.get("stride") is None else int(v["stride"][axis])
        if step < 1 or (v.get("squeeze_mask") is not None and v["squeeze_mask"][axis]):
            raise ExportError("Core ML program: a slice of one position or with a negative step is not evaluated here")
        cut = slice(None if masks["begin"] else begin, None if masks["end"] else end, step)
        x = x[(slice(None),) * axis + (cut,)]
    return x


def _pad(v: Values) -> Tensor:
    x, pairs = v["x"], np.asarray(v["pad"]).reshape(-1, 2).tolist()
    if v["mode"] == "constant":
        return F.pad(x, [int(length) for pair in reversed(pairs) for length in pair], value=float(v["constant_val"]))
    if v["mode"] != "replicate":
        raise ExportError(f"Core ML program: padding by {v['mode']} is not evaluated here")
    for axis, (before, after) in enumerate(pairs, x.ndim - len(pairs)):
        if before or after:
            x = x.index_select(axis, torch.arange(-before, x.shape[axis] + after).clamp(0, x.shape[axis] - 1))
    return x


def _upsample(v: Values) -> Tensor:
    factors = [float(v[f"scale_factor_{side}"]) for side in ("height", "width")]
    return F.interpolate(v["x"], scale_factor=factors, mode="nearest")


def _along(reduce: Callable[..., Tensor]) -> Callable[[Values], Tensor]:
    """Return an operator that reduces some axes."""
    return lambda v: reduce(v["x"], _sizes(v["axes"]), bool(v["keep_dims"]))


def _of_two(combine: Callable[[Any, Any], Tensor]) -> Callable[[Values], Tensor]:
    """Return an operator of x and y, either of which may be constant."""
    return lambda v: combine(torch.as_tensor(v["x"]), torch.as_tensor(v["y"]))


OPERATORS: dict[str, Callable[[Values], Tensor]] = {
    "add": _of_two(torch.add),
    "avg_pool": _avg_pool,
    "batch_norm": _batch_norm,
    "cast": lambda v: v["x"].to(DTYPES[v["dtype"]]),
    "concat": lambda v: torch.cat(list(v["values"]), int(v["axis"])),
    "conv": _conv,
    "expand_dims": lambda v: v["x"].reshape(np.expand_dims(np.empty(v["x"].shape), _sizes(v["axes"])).shape),
    "identity": lambda v: v["x"],
    "linear": lambda v: F.linear(v["x"], torch.as_tensor(v["weight"]), torch.as_tensor(v["bias"])),
    "max_pool": _max_pool,
    "maximum": _of_two(torch.maximum),
    "mul": _of_two(torch.mul),
    "pad": _pad,
    "real_div": _of_two(torch.div),
    "reduce_max": _along(torch.amax),
    "reduce_mean": _along(torch.mean),
    "relu": lambda v: v["x"].relu(),
    "reshape": lambda v: v["x"].reshape(_sizes(v["shape"])),
    "reverse": lambda v: v["x"].flip(_sizes(v["axes"])),
    "slice_by_index": _slice_by_index,
    "rsqrt": lambda v: (v["x"] + float(v["epsilon"])).rsqrt(),
    "softmax": lambda v: v["x"].softmax(int(v["axis"])),
    "sqrt": lambda v: v["x"].sqrt(),
    "square": lambda v: v["x"].square(),
    "squeeze": lambda v: v["x"].squeeze(_sizes(v["axes"])),
    "sub": _of_two(torch.sub),
    "transpose": lambda v: v["x"].permute(_sizes(v["perm"])),
    "upsample_nearest_neighbor": _upsample,
}


def evaluate(function: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the outputs of a function of a program, by name.

    Args:
        function: function of ``coremltools``' program, such as ``program.functions["main"]``.
        inputs: inputs by name.

    Raises:
        ExportError: an operator that is not evaluated here.
    """
    computed: dict[str, Any] = dict(inputs)

    def value(variable: Any) -> Any:
        if isinstance(variable, (list, tuple)):
            return [value(each) for each in variable]
        return computed.get(variable.name, variable.val)

    with torch.no_grad():
        for operation in function.operations:
            if operation.op_type == "const":
                continue
            if operation.op_type not in OPERATORS:
                raise ExportError(f"Core ML program: the operator {operation.op_type} is not evaluated here")
            values = {name: value(variable) for name, variable in operation.inputs.items() if variable is not None}
            computed[operation.outputs[0].name] = OPERATORS[operation.op_type](values)
    return {variable.name: computed[variable.name] for variable in function.outputs}
