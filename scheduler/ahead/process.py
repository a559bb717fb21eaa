"""A forecast in a process of its own: `python -m scheduler.ahead.process PARENT`, a pickled question in, an answer out.

Only the program that starts it, whose pid PARENT is, speaks to it. It gives way to everything else on its machine and
ends when its parent is gone.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
from time import sleep

from scheduler.ahead.forecast import Question, forecast

NICENESS = 15
LOOK_AT_PARENT_S = 1.0


def main() -> None:
    """Answer the question on standard input."""
    os.nice(NICENESS)
    threading.Thread(target=_end_with, args=(int(sys.argv[1]),), daemon=True).start()
    question = pickle.load(sys.stdin.buffer)
    assert isinstance(question, Question), f"no question: {type(question)}"
    answer = forecast(question.objects, question.now_ms, question.past, question.method)
    pickle.dump(answer, sys.stdout.buffer, pickle.HIGHEST_PROTOCOL)


def _end_with(parent: int) -> None:
    """Nobody would hear the answer any more."""
    while os.getppid() == parent:
        sleep(LOOK_AT_PARENT_S)
    os._exit(1)


if __name__ == "__main__":
    main()
