"""Random weights in the place of those that torchvision publishes, so that its own code finds and checks them."""

import hashlib
import os

import torch


def publish(net, entry, folder, monkeypatch):
    """Put a net's weights into torch.hub's folder, under the name that torchvision expects: with its hash.

    Args:
        net: net of torchvision.
        entry: member of the enum of its weights.
        folder: folder whose ``torch`` is ``TORCH_HOME``.
        monkeypatch: fixture of pytest.
    """
    folder = folder / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(net.state_dict(), folder / "new.pth")
    digest = hashlib.sha256((folder / "new.pth").read_bytes()).hexdigest()
    path = folder / f"net-{digest[:8]}.pth"
    os.rename(folder / "new.pth", path)
    monkeypatch.setattr(entry.value, "url", f"https://download.pytorch.org/models/{path.name}")
    return path
