"""For the tests of applications: `MemoryQueue`, a queue in memory whose jobs are answered as the test says.

Needs fakeredis: `pip install 'promptq[testing]'`. `promptq.producer` does not load it.
"""

from promptq.producer.testing.answers import NO_ANSWER, Answer, Answers, OneAnswer, echo
from promptq.producer.testing.queue import MemoryQueue

__all__ = ["NO_ANSWER", "Answer", "Answers", "MemoryQueue", "OneAnswer", "echo"]
