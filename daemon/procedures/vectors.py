"""The last look of a comparison: chunks that share a vector, and a random sample, embedded again.

What a vector shows by itself was judged before. Two texts may have one vector because a model sees no difference in
them, and a model that changed silently leaves vectors that look sound: both are told by what the provider says today.
"""

from __future__ import annotations

from daemon.procedures.comparing import Run


async def judge(run: Run) -> None:
    """Embed again what is suspicious and `Order.sample` chunks of each generation. Raises OutOfTime."""
    run.check_time()
