// A client for `pg-mlx worker` (docs/protocol.md) in plain Node 18 or newer, without packages; Electron's main process
// runs it as it is. As a program it asks about one picture:
//
//     node examples/client.mjs scene.png "segment red circle" [model]
//
// PG_MLX_WORKER may name the command that starts a worker, in place of "pg-mlx worker".

import { spawn } from "node:child_process";
import { readFile } from "node:fs/promises";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const LAST = new Set(["hello", "loaded", "done", "cancelled", "stats", "unloaded", "bye", "error"]);

export class WorkerError extends Error {
  constructor({ code, message }) {
    super(message);
    this.code = code; // one of the codes in docs/protocol.md
  }
}

// One worker at a time: started, and its model loaded, by the first request. If it dies, the requests in flight fail
// with "worker_died", and the next one starts another.
export class Client {
  #load;
  #command;
  #running = null; // promise of a process that has loaded the model

  constructor({ command = ["pg-mlx", "worker"], onProgress = () => {}, ...load } = {}) {
    this.#command = command;
    this.#load = load; // model, dtype, ... as in the load message
    this.onProgress = onProgress;
  }

  // Text as it comes, regions as they become complete, and at last the answer: messages of the protocol. image: a path or
  // a Buffer, or a list of them. Leaving the loop early cancels the request.
  async *stream(prompt, image, options = {}) {
    const process = await this.#process();
    const images = Array.isArray(image) ? image : [image];
    const frames = images.filter((one) => typeof one !== "string");
    const described = images.map((one) => (typeof one === "string" ? { path: one } : { bytes: one.length }));
    const request = process.send({ type: "generate", prompt, images: described, ...options }, frames);
    try {
      for await (const message of request) yield message;
    } finally {
      if (!request.ended) process.send({ type: "cancel", request: request.id });
    }
  }

  // The answer alone: text, regions, stats, ...
  async generate(prompt, image, options = {}) {
    let last;
    for await (const message of this.stream(prompt, image, { ...options, stream: false })) last = message;
    return last;
  }

  // Ends the worker, once what was accepted is answered.
  async close() {
    const process = await this.#running?.catch(() => null);
    this.#running = null;
    if (process && !process.ended) {
      process.send({ type: "shutdown" });
      await process.exited;
    }
  }

  get pid() {
    return this.#running?.then((process) => process.pid);
  }

  #process() {
    this.#running ??= this.#start();
    return this.#running;
  }

  async #start() {
    const process = new Process(this.#command, () => (this.#running = null));
    try {
      await process.send({ type: "hello", protocols: [1] }).answer();
      await process.send({ type: "load", ...this.#load }).answer(this.onProgress);
    } catch (error) {
      process.kill();
      throw error;
    }
    return process;
  }
}

class Process {
  #child;
  #requests = new Map();
  #ids = 0;
  ended = false;

  constructor([program, ...args], onEnd) {
    this.#child = spawn(program, args, { stdio: ["pipe", "pipe", "inherit"] });
    this.#child.stdin.on("error", () => {}); // it has died, which "close" tells
    createInterface({ input: this.#child.stdout }).on("line", (line) => {
      const message = JSON.parse(line);
      const request = this.#requests.get(message.id);
      if (LAST.has(message.type)) this.#requests.delete(message.id);
      request?.push(message);
    });
    this.exited = new Promise((resolve) => {
      const end = (reason) => {
        this.ended = true;
        onEnd();
        const died = { type: "error", code: "worker_died", message: `the worker ended: ${reason}` };
        for (const request of this.#requests.values()) request.push(died);
        this.#requests.clear();
        resolve();
      };
      this.#child.on("error", (error) => end(error.message));
      this.#child.on("close", (code, signal) => end(signal ?? `code ${code}`));
    });
  }

  get pid() {
    return this.#child.pid;
  }

  kill() {
    this.#child.kill("SIGKILL");
  }

  send(message, frames = []) {
    const request = new Request((this.#ids += 1));
    if (this.ended) {
      request.push({ type: "error", code: "worker_died", message: "the worker has ended" });
      return request;
    }
    this.#requests.set(request.id, request);
    this.#child.stdin.write(JSON.stringify({ ...message, id: request.id }) + "\n");
    for (const frame of frames) this.#child.stdin.write(frame);
    return request;
  }
}

// The messages of one request, to be read with `for await`.
class Request {
  #messages = [];
  #wake = () => {};
  ended = false;

  constructor(id) {
    this.id = id;
  }

  push(message) {
    this.#messages.push(message);
    this.ended = LAST.has(message.type);
    this.#wake();
  }

  async *[Symbol.asyncIterator]() {
    for (;;) {
      while (!this.#messages.length) await new Promise((resolve) => (this.#wake = resolve));
      const message = this.#messages.shift();
      if (message.type === "error") throw new WorkerError(message);
      yield message;
      if (LAST.has(message.type)) return;
    }
  }

  async answer(onOther = () => {}) {
    let last;
    for await (const message of this) {
      if (LAST.has(message.type)) last = message;
      else onOther(message);
    }
    return last;
  }
}

async function main([picture, prompt, model]) {
  if (!picture || prompt === undefined) {
    console.error('usage: node client.mjs PICTURE PROMPT [MODEL]');
    return 2;
  }
  const command = process.env.PG_MLX_WORKER?.split(" ");
  const client = new Client({ ...(command && { command }), ...(model && { model }) });
  try {
    for await (const message of client.stream(prompt, await readFile(picture))) {
      if (message.type === "text") process.stdout.write(message.text);
      if (message.type === "done") {
        process.stdout.write("\n");
        for (const { label, box } of message.regions) console.log(label, box.map(Math.round).join(" "));
      }
    }
    return 0;
  } catch (error) {
    console.error(`${error.code}: ${error.message}`);
    return 1;
  } finally {
    await client.close();
  }
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  process.exitCode = await main(process.argv.slice(2));
}
