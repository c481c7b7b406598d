"""`python -m promptq.worker ...` is `promptq worker ...`."""

import sys

from promptq.worker.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "worker")
    main()
