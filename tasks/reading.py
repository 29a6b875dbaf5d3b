"""Inputs that are read one by one, in this process or in several others; what cannot be read is collected."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from torch.utils.data import DataLoader, Dataset

from tasks.errors import DataError
from tasks.progress import Progress, print_line

SHOWN = 10  # samples of which ``report_new`` prints the reasons
Item = TypeVar("Item")
Content = TypeVar("Content")


class Opened(NamedTuple, Generic[Content]):
    """A file that could be read.

    Attributes:
        number: position among the files.
        path: path of the file.
        content: content of the file, as ``read`` returned it.
    """

    number: int
    path: Path
    content: Content


class Unreadable(NamedTuple):
    """An item or sample that cannot be read: its number, and the reason."""

    number: int
    reason: str


class Readable(Dataset[Any]):
    """The samples of a set by index, or ``Unreadable``: an error would end a data loading process."""

    def __init__(self, data: Dataset[Any]) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]  # a map-style set has a length

    def __getitem__(self, index: int) -> Any:
        try:
            return self.data[index]
        except DataError as error:
            return Unreadable(index, str(error))


class _Items(Dataset[Any]):
    """The content of each item."""

    def __init__(self, items: Sequence[Item], read: Callable[[Item], Any]) -> None:
        self.items, self.read = items, read

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.read(self.items[index])


def _as_it_is(content: Any) -> Any:
    return content


def read_in_order(items: Sequence[Item], read: Callable[[Item], Any], *, workers: int = 0) -> Iterator[Any]:
    """Yield the content of each item in order, or ``Unreadable``.

    Args:
        items: names or other descriptions of what is read.
        read: function from an item to its content; raises ``DataError`` where it cannot be read. With workers, function
            and content must be picklable.
        workers: number of processes that read; 0: this process reads.
    """
    processes = min(workers, len(items))
    yield from DataLoader(Readable(_Items(items, read)), batch_size=None, num_workers=processes, collate_fn=_as_it_is)


def read_each(
    files: Sequence[Path],
    read: Callable[[Path], Content],
    failed: dict[str, str],
    *,
    workers: int = 0,
    unit: str = "images",
    quiet_up_to: int = 4,
) -> Iterator[Opened[Content]]:
    """Yield the files that can be read, in order.

    Args:
        files: paths to read.
        read: function from a path to its content, see ``read_in_order``.
        failed: mapping from file to reason, to which the files that cannot be read are added.
        workers: number of processes that read.
        unit: plural noun of the progress display.
        quiet_up_to: number of files without a progress display.
    """
    with Progress(len(files), 0, 1, unit=unit, enabled=len(files) > quiet_up_to) as progress:
        for number, content in enumerate(read_in_order(files, read, workers=workers)):
            if isinstance(content, Unreadable):
                failed[str(files[number])] = content.reason
            else:
                yield Opened(number, files[number], content)  # the rate includes the caller's work on the file
            progress.step(number + 1)


def report_unread(failed: Mapping[str, str], total: int, what: str = "files", *, limit: int | None = None) -> None:
    """Print the reason for each file that could not be read, and their number.

    Args:
        failed: mapping from file to reason.
        total: number of files that were to be read.
        what: plural noun of the files.
        limit: number of files whose reasons are printed; None: all.
    """
    for reason in list(failed.values())[:limit]:
        print_line(f"skipped: {reason}")
    more = f"; {len(failed) - limit} more are not shown" if limit is not None and len(failed) > limit else ""
    if failed:
        print_line(f"{len(failed)} of {total} {what} could not be read{more}")


def require_readable(reasons: Sequence[str], total: int, what: str) -> None:
    """Refuse a set of which no sample can be read.

    Args:
        reasons: reason for each sample that could not be read, in order.
        total: number of samples.
        what: plural noun of the samples.

    Raises:
        DataError: all samples are unreadable.
    """
    if len(reasons) == total:
        raise DataError(f"none of the {total} {what} can be read; the first: {reasons[0]}")


def report_new(failed: Mapping[str, str], known: dict[str, str], total: int, what: str) -> None:
    """Report the samples that an evaluation in training cannot read, and none of them again in later epochs.

    Args:
        failed: mapping from sample to reason.
        known: mapping of those that have been reported, to which the new ones are added.
        total: number of samples that were to be read.
        what: plural noun of the samples.
    """
    report_unread({name: reason for name, reason in failed.items() if name not in known}, total, what, limit=SHOWN)
    known |= failed
