// node main.js produce MESSAGE TOKENS [broken] | follow MESSAGE; the server is that of PGHOST and so on.

import { setTimeout as sleep } from "node:timers/promises";
import { follow, produce } from "./stream.js";

/** Stands for the answer of a model. */
async function* model(count: number, broken: boolean) {
  for (let i = 0; i < count; i++) {
    await sleep(10);
    yield `token ${i}\n`;
  }
  if (broken) throw new Error("the model broke off");
}

const [command, messageId, count, broken] = process.argv.slice(2);
if (command === "produce") {
  await produce(messageId, model(Number(count), broken !== undefined));
} else if (command === "follow") {
  let text = "";
  await follow(messageId, (content, whole) => (text = whole ? content : text + content));
  process.stdout.write(text);
}
