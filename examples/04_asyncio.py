"""Many containers at once from one event loop: no thread for each."""

import asyncio
import sys

from knarr import aio

image = sys.argv[1] if len(sys.argv) > 1 else "host:"


async def square(number: int) -> int:
    """Let a shell in a container do the sum."""
    result = await aio.run(image, ["sh", "-c", f"echo $(({number} * {number}))"], timeout=60)
    return int(result.stdout)


async def main() -> None:
    """Ten at once, and one that is cancelled."""
    print(await asyncio.gather(*(square(number) for number in range(10))))

    sleeper = asyncio.create_task(aio.run(image, ["sleep", "1000"]))
    await asyncio.sleep(0.2)
    sleeper.cancel()  # kills and removes its container
    try:
        await sleeper
    except asyncio.CancelledError:
        print("cancelled")

    async with aio.Container(image, ["sleep", "1000"]) as box:
        print((await box.exec(["echo", "inside"])).stdout.decode().strip())


asyncio.run(main())
