"""revector: move a live pgvector search to a new embedding model without downtime, and prove that nothing was lost.

The promise: given a source log without gaps, after any sequence of crashes, retries and restarts the new generation
equals the embedding of the source at a known position; every change takes effect exactly once; and revector never
says "caught up" when that is false. A gap in the log is detected and said.

The map: `core` decides (pure), `flow` loops, `procedures` do things once, `service` makes it a service, `cli` talks.
`ports.py` says what is needed from outside; `connectors/` provides it; `__main__.py` joins the two.

Words: migration (one config), replica (our exact copy of the used columns), generation (one set of vectors under one
contract), work (a row that a generation must embed again), position (place of a change in the source's log), barrier
and pulse (tokens in the source's WAL), break (an event that ends continuity), proof and certificate.
"""
