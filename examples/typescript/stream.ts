import { setTimeout as sleep } from "node:timers/promises";
import pg from "pg";

type Ask = (sql: string, ...values: unknown[]) => Promise<any[][]>;
const state = (error: unknown) => (error instanceof pg.DatabaseError ? error.code : undefined);

/** Writes the tokens of a model in windows of 50 ms or 16 tokens, until it ends or a reader stops it. */
export async function produce(messageId: string, model: AsyncIterable<string>) {
  const tokens: string[] = []; // all are kept: after a crash the server asks for the last ones again
  let sent = 0, stopped = false, ended = false, failure: unknown, wake = () => {};

  const pause = (ms: number) =>
    new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, ms);
      wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });

  async function listen() {
    for await (const token of model) {
      if (stopped) break;
      tokens.push(token);
      if ([1, 16].includes(tokens.length - sent)) wake();
    }
  }

  async function send(ask: Ask) {
    try {
      [[sent]] = await ask("select resume_message($1)", messageId);
    } catch (error) {
      // Finished: only the answer was lost, or a reader stopped it meanwhile.
      if (state(error) === "24000") return;
      throw error;
    }
    while (!(ended && sent === tokens.length)) {
      if (sent === tokens.length) await pause(1000);
      if (tokens.length - sent < 16 && !ended) await pause(50);
      [[sent, stopped]] = await ask("select * from append_chunks($1, $2, $3)", messageId, tokens.slice(sent), sent);
      if (stopped) return;
    }
    if (failure) await ask("select fail_message($1, $2)", messageId, String(failure));
    else await ask("select finish_message($1)", messageId);
  }

  listen()
    .catch((error) => (failure = error))
    .finally(() => {
      ended = true;
      wake();
    });
  await connected(send).finally(() => (stopped = true));
}

/** Calls show(content, whole) for each piece; a whole one takes the place of all that came before. */
export async function follow(messageId: string, show: (content: string, whole: boolean) => void) {
  let after = -1;
  await connected(async (ask) => {
    for (let final = false; !final; ) {
      const rows = await ask(
        "select chunk_index, content, is_final, whole from wait_for_chunks($1, $2)", messageId, after);
      for (const [index, content, isFinal, whole] of rows) {
        show(content, whole);
        [after, final] = [index, isFinal];
      }
    }
  });
}

/** Runs work(ask), and again on a new connection each time that one is lost. */
async function connected(work: (ask: Ask) => Promise<void>) {
  for (let attempt = 1; ; attempt++) {
    const db = new pg.Client();
    db.on("error", () => {}); // the query in flight, or the next one, fails
    try {
      await db.connect();
      return await work(async (text, ...values) => (await db.query({ text, values, rowMode: "array" })).rows);
    } catch (error) {
      const code = state(error);
      const lost = code === undefined || /^(08|40|53|55|57)|^24000/.test(code); // 24000: interrupted, to be resumed
      if (!lost || attempt === 100) throw error;
      await sleep(300);
    } finally {
      db.end().catch(() => {});
    }
  }
}
