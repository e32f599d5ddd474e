"""The real stack on one machine: PostgreSQL with pgvector, Kafka, Connect with Debezium, an embeddings server.

For tests, the demo and the benchmarks; the product imports nothing from here. Everything listens on 127.0.0.1 only,
runs without Docker, and is gone when the sandbox ends, however it ends.

    stack.py       Sandbox: the whole, started in parallel; start here
    postgres.py kafka.py connect.py embeddings.py    one part each
    parts.py       what every part can do: start, stop, crash, freeze, wait until ready
    processes.py guardian.py    who starts the processes, and who ends them when we cannot
    programs.py    where PostgreSQL, Java and the jars come from
    corpus.py writer.py    what is in the source, and who writes to it
"""
