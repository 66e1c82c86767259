"""
How processes meet, share work, stop and fail.

`launch` makes each process of a launch look alone to Trainer and Accelerate and lets them meet; `store` is what they say to
each other and how they take candidates; `groups` and `sharding` are for candidates that several train together; `stopping`
turns signals into an orderly end; `failures` says whose fault an error is; `say` prints.

The way of a failure, from a dead process to a resumed run:

1. A process dies (killed, out of memory, its machine gone), or hangs. Nothing that it was writing has its name yet, and
   records are written last, so all that lies on the disk is whole.
2. The others wait for it in `Processes.receive`. If it could still call `fail`, they read why. If it is silent, they read
   its last sign of life: after `ddp_timeout` seconds without a new one they end with its name and what it was doing.
3. A launcher with restarts starts it again, and with it all of its machine. The newcomer counts up `JOINS`; a process
   elsewhere that goes on as if nothing had happened sees that at its next `beat`, and ends to be started again as well.
4. All `meet` anew, in a session of their own: what dead processes left in the store is not heard any more.
5. `RunDirectory.open` sees that this launch was here before (or `resume`), and goes on: finished phases and candidates are
   read, a candidate in training starts from its last sealed checkpoint, everything else is made again. The result is the
   same, bit for bit.

What is a candidate's own fault (it diverged, it ran out of memory, its code raised) ends that candidate, not the run.
"""
