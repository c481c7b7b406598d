"""A stand-in for api.x.ai: a local gRPC server that speaks its real protocol.

It counts every generation that it starts, so that it can be proved what was paid for. It answers in
its own process, for demo, tests and benchmarks. What to import from where:

- `process.running_simulator`: start one, point a client at `sim.host`, end it again.
- `control.SimulatorControl`: ask a running one what was paid for, and turn its knobs.
- `knobs.Knobs`, `knobs.Fault`: how it answers, and how it fails.
- `server.serving`: the server inside this process.
- `command.simulate`: the command line.

Inside, a call passes through `chat`, which writes it into `books`, asks `faults` what goes wrong and
`buckets` whether a rate limit has room, takes the answer from `answers`, and waits as long as `knobs`
say. `state` is what they share.
"""
