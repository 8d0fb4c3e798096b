"""python3 examples/python produce MESSAGE TOKENS [broken] | follow MESSAGE; the server is that of PGHOST and so on."""

import asyncio
import sys

from stream import follow, produce


async def model(count, broken):
    """Stands for the answer of a model."""
    for i in range(count):
        await asyncio.sleep(0.01)
        yield f"token {i}\n"
    if broken:
        raise RuntimeError("the model broke off")


async def main(command, message_id, count=0, broken=""):
    text = ""

    def show(content, whole):
        nonlocal text
        text = content if whole else text + content

    if command == "produce":
        await produce(message_id, model(int(count), broken))
    elif command == "follow":
        await follow(message_id, show)
        print(text, end="")


asyncio.run(main(*sys.argv[1:]))
