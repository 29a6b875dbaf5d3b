"""``rescalenet`` that lists the files which reading a detection set opens: ``python -m tests.helpers.counted_reads``.

Environment: ``COUNTS``, the folder for a JSON list of the opened files of each process; ``SECONDS``, by which reading
takes longer; ``EACH``, with which each process reads the data by itself.
"""

import json
import os
import sys
import time
from pathlib import Path

from tasks import cli
from tasks.detection import model
from tasks.launch import is_first_process


def main():
    opened, shared = [], model.from_main

    def note(event, arguments):
        if event == "open" and isinstance(arguments[0], str | os.PathLike):
            opened.append(os.fspath(arguments[0]))

    def counted(ranks, function):
        def slow():
            time.sleep(float(os.environ.get("SECONDS", 0)))
            return function()

        opened.clear()
        found = slow() if "EACH" in os.environ else shared(ranks, slow)
        path = Path(os.environ["COUNTS"]) / f"{'main' if is_first_process() else 'other'}.json"
        path.write_text(json.dumps(opened))
        return found

    sys.addaudithook(note)
    model.from_main = counted
    cli.main()


if __name__ == "__main__":
    main()
