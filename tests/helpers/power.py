"""A disk that loses its power: what may be left of a folder of files at any moment of a run.

``record`` writes a journal of everything that a process does in a folder. ``Disk`` replays it to a moment, and forgets
what no fsync has written until then, as POSIX allows:

- Of a file, what its last fsync wrote remains. What was written later may be there, or a part of it, or zeros.
- Of a folder's list of names, what its last fsync wrote remains. Of the names that were made, renamed or removed later,
  any may be there. A rename is done completely or not at all.

Files are told apart by their inodes, so that it does not matter who writes them: safetensors is Rust, and no function
of Python's.
"""

from __future__ import annotations

import os
import pickle
import random
import threading
from dataclasses import dataclass, field
from pathlib import Path

from tests.helpers.faults import at_end, each_operation

Tree = dict[str, tuple[int, bytes | None]]  # inode and content by path; the content of a folder is None


@dataclass(frozen=True)
class Moment:
    """The files before an operation.

    Attributes:
        tree: files and folders.
        synchronised: inode that the operation writes to the disk, if it is an fsync.
    """

    tree: Tree
    synchronised: int | None


def record(folder: Path, journal: Path) -> None:
    """Record all that this process does in a folder, which exists, until the command line ends."""
    moments: list[Moment] = []
    lock = threading.Lock()

    def before(event: str, path: str) -> None:
        with lock:
            moments.append(Moment(read_tree(folder), os.stat(path).st_ino if event == "fsync" else None))

    def write() -> None:
        moments.append(Moment(read_tree(folder), None))
        journal.write_bytes(pickle.dumps(moments))

    each_operation(folder, before)
    at_end(write)


def read_tree(folder: Path) -> Tree:
    """Read all files in a folder."""
    tree: Tree = {}
    for path in sorted(folder.rglob("*")):
        content = None if path.is_dir() else path.read_bytes()
        tree[path.relative_to(folder).as_posix()] = (path.stat().st_ino, content)
    return tree


def read_journal(path: Path) -> list[Moment]:
    """Read what ``record`` wrote."""
    return pickle.loads(path.read_bytes())


@dataclass(eq=False)
class Node:
    """A file or folder.

    Attributes:
        now: content of a file as the process sees it, None of a folder.
        kept: content that is on the disk.
        names: names of a folder that are on the disk.
    """

    now: bytes | None
    kept: bytes = b""
    names: dict[str, Node] = field(default_factory=dict)


Change = list[tuple[Node, str, Node | None]]  # folder, name, and what it names or None: done as one


class Disk:
    """The folder of a journal at a moment, and what is on the disk of it.

    Args:
        moments: the journal up to the moment.
    """

    def __init__(self, moments: list[Moment]) -> None:
        self.top = Node(None)
        self.nodes: dict[str, Node] = {}  # as the process sees them
        self.changes: list[Change] = []  # of names, which are not on the disk
        inodes: dict[int, Node] = {}
        for moment in moments:
            inodes = self._follow(moment.tree, inodes)
            if moment.synchronised is not None:
                self._synchronise(inodes.get(moment.synchronised, self.top))

    def _follow(self, tree: Tree, inodes: dict[int, Node]) -> dict[int, Node]:
        """Follow the files to the next moment, and return the nodes by their inodes."""
        found = {inode: inodes.get(inode, Node(content)) for inode, content in tree.values()}
        for inode, content in tree.values():
            found[inode].now = content
        nodes = {path: found[inode] for path, (inode, _) in tree.items()}
        gone = [path for path in self.nodes if path not in nodes]
        old, self.nodes = self.nodes, {**self.nodes, **nodes}
        for path, node in nodes.items():
            if old.get(path) is node:
                continue
            # A new name of a file that has lost another is a rename.
            change: Change = [(*self._place(path), node)]
            if source := next((other for other in gone if old[other] is node), None):
                gone.remove(source)
                change.append((*self._place(source), None))
            self.changes.append(change)
        self.changes += [[(*self._place(path), None)] for path in gone]
        self.nodes = nodes
        return found

    def _place(self, path: str) -> tuple[Node, str]:
        """Return the folder and the name of a path."""
        folder, _, name = path.rpartition("/")
        return (self.nodes[folder] if folder else self.top), name

    def _synchronise(self, node: Node) -> None:
        if node.now is not None:
            node.kept = node.now
            return
        ready = [change for change in self.changes if any(folder is node for folder, _, _ in change)]
        self.changes = [change for change in self.changes if change not in ready]
        _apply(ready)

    def cut(self, numbers: random.Random, folder: Path) -> None:
        """Write what may be left into a new folder, and forget the rest."""
        share = numbers.choice((0.0, 0.5, 1.0))
        _apply([change for change in self.changes if numbers.random() < share])
        self._write(self.top, folder, numbers)

    def _write(self, node: Node, path: Path, numbers: random.Random) -> None:
        path.mkdir()
        for name, inner in node.names.items():
            if inner.now is None:
                self._write(inner, path / name, numbers)
            else:
                (path / name).write_bytes(_left(inner.now, inner.kept, numbers))

    def kept(self, path: str) -> bytes | None:
        """Return the content of a file that is on the disk under this path whatever happens, or None."""
        node: Node | None = self.top
        for part in path.split("/"):
            node = node.names.get(part) if node is not None else None
        if node is None or node.now is None:
            return None
        return node.kept if node.kept == node.now else None


def _apply(changes: list[Change]) -> None:
    for change in changes:
        for folder, name, node in reversed(change):
            if node is None:
                folder.names.pop(name, None)
            else:
                folder.names[name] = node


def _left(now: bytes, kept: bytes, numbers: random.Random) -> bytes:
    """Return what may be left of a file: that of the last fsync, what was written since, a part of it, or zeros."""
    if now == kept:
        return now
    length = numbers.randint(len(kept) if now.startswith(kept) else 0, len(now))
    return numbers.choice((kept, now, now[:length], now[:length] + bytes(len(now) - length)))
