import asyncio
import contextlib

import psycopg
from psycopg.errors import InvalidCursorState  # 24000: the message is finished or interrupted


async def produce(message_id, model):
    """Writes the tokens of a model in windows of 50 ms or 16 tokens, until it ends or a reader stops it."""
    tokens, sent, wake = [], 0, asyncio.Event()  # all are kept: after a crash the server asks for the last ones again

    async def listen():
        async for token in model:
            tokens.append(token)
            if len(tokens) - sent in (1, 16):
                wake.set()

    async def pause(seconds):
        wake.clear()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(wake.wait(), seconds)

    async def send(ask):
        nonlocal sent
        try:
            [[sent]] = await ask("select resume_message(%s)", message_id)
        except InvalidCursorState:
            return  # finished: only the answer was lost, or a reader stopped it meanwhile
        while not (source.done() and sent == len(tokens)):
            if sent == len(tokens):
                await pause(1)
            if len(tokens) - sent < 16 and not source.done():
                await pause(0.05)
            [[sent, stopped]] = await ask("select * from append_chunks(%s, %s, %s)", message_id, tokens[sent:], sent)
            if stopped:
                return
        if source.exception():
            await ask("select fail_message(%s, %s)", message_id, str(source.exception()))
        else:
            await ask("select finish_message(%s)", message_id)

    source = asyncio.create_task(listen())
    source.add_done_callback(lambda _: wake.set())
    try:
        await connected(send)
    finally:
        source.cancel()


async def follow(message_id, show):
    """Calls show(content, whole) for each piece; a whole one takes the place of all that came before."""
    after = -1

    async def read(ask):
        nonlocal after
        final = False
        while not final:
            rows = await ask(
                "select chunk_index, content, is_final, whole from wait_for_chunks(%s, %s)", message_id, after
            )
            for after, content, final, whole in rows:
                show(content, whole)

    await connected(read)


async def connected(work):
    """Runs work(ask), and again on a new connection each time that one is lost."""
    for attempt in range(100):
        try:
            async with await psycopg.AsyncConnection.connect(autocommit=True) as db:

                async def ask(sql, *values):
                    return await (await db.execute(sql, values)).fetchall()

                return await work(ask)
        except (psycopg.OperationalError, InvalidCursorState):  # what may pass; 24000: interrupted, to be resumed
            if attempt == 99:
                raise
            await asyncio.sleep(0.3)
