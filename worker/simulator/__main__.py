"""`python -m promptq.worker.simulator`."""

from promptq.worker.simulator.command import main

main()
