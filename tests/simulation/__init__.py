"""The whole product in one deterministic simulation: its own supervisor, loops and procedures over in-memory twins.

A history comes from one seed. Processes with roles, a standby among them, come and go; operators prove, compare, mend,
add and drop all the time; writers, connector, broker and provider do what they do in production. Every call of every
port is a place where a process may be held, killed, frozen or told that the part is away, and where everybody else
goes on; transactions of the target interleave statement by statement under the locks that the SQL takes. Time is
virtual. `play` is one history, `checks` what must hold after every commit and at the end, `swarm` what a history is
made of, `defects` what the simulation has to find to be worth something.

    ./dev simulate --minutes 30 --processes 2
    ./dev simulate --seed 17
"""
