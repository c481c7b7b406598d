"""A stand-in for api.x.ai: a local server that speaks its real protocols, gRPC and REST.

It counts every generation that it starts, so that it can be proved what was paid for. It answers in
its own process, for demo, tests and benchmarks. What to import from where:

- `process.running_simulator`: start one, point a client at `sim.host`, end it again.
- `control.SimulatorControl`: ask a running one what was paid for, and turn its knobs.
- `knobs.Knobs`, `knobs.Fault`: how it answers, and how it fails.
- `server.serving`: the server inside this process.
- `command.simulate`: the command line.

Inside, a call comes over gRPC (`chat`) or REST (`rest`, which turns JSON into the same messages) to
`generations`, which writes it into `books`, asks `faults` what goes wrong and `buckets` whether a rate
limit has room, takes the answer from `answers` (prose) and `outputs` (all else), waits as long as
`knobs` say, and gives it back whole or cut by `chunks`. `state` is what they share.
"""
