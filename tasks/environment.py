"""Versions, device and optional packages, for bug reports."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, requires, version

import torch

from tasks.devices import best_device

DISTRIBUTION = "rescalenet-zoo"


def describe_environment() -> list[str]:
    """Return lines of the form ``name: value``."""
    device = best_device()
    cuda = torch.version.cuda or "not in this build"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    lines = [
        f"{DISTRIBUTION}: {_version(DISTRIBUTION)}",
        f"python: {platform.python_version()} on {platform.platform()}",
        f"torch: {torch.__version__}",
        f"torchvision: {_version('torchvision')}",
        f"CUDA: {cuda}",
        f"device: {device.type} ({name}), {torch.accelerator.device_count()} accelerators",
        f"cores: {os.cpu_count()}, torch threads: {torch.get_num_threads()}",
    ]
    return lines + [f"{package}: {_version(package)} (optional)" for package in _optional_packages()]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _optional_packages() -> list[str]:
    """Return the packages of this distribution's extras, without those for developers."""
    try:
        listed = requires(DISTRIBUTION) or []
    except PackageNotFoundError:  # run from a folder, not installed
        return []
    names = set()
    for requirement in listed:
        name, _, marker = requirement.partition(";")
        if "extra ==" in marker and "dev" not in marker:
            names.add(name.strip().split(">")[0].split("=")[0].split("[")[0].strip())
    return sorted(names)
