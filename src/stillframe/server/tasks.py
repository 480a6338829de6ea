"""Several things that are awaited at once, of which the first that ends, ends all.

Nothing of it outlives the call. It does not know what is awaited.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

__all__ = ["first_of"]


async def first_of(*work: Coroutine[Any, Any, None]) -> None:
    """Wait until one ends, stop the others, and wait for them; raises what the first one raised."""
    failures: list[Exception] = []
    over = asyncio.Event()

    async def watched(each: Coroutine[Any, Any, None]) -> None:
        try:
            await each
        except Exception as error:
            if not over.is_set():
                failures.append(error)
        finally:
            over.set()

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(watched(each)) for each in work]
        await over.wait()
        for task in tasks:
            task.cancel()
    if failures:
        raise failures[0]
