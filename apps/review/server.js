/** Requests to the server. What goes wrong is a ServerError with a sentence. */

import { askIdentity, identity } from "./settings.js";
import { sentence } from "./words.js";

export class ServerError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Of the page `/ibis/`; a reverse proxy may have put it elsewhere. */
const ROOT = new URL("../", new URL(".", location.href));

function address(path) {
  const url = new URL(path.replace(/^\//, ""), ROOT);
  if (identity.user) url.searchParams.set("client_id", identity.user);
  return url;
}

async function ask(path, options = {}) {
  const headers = new Headers(options.headers);
  if (identity.token) headers.set("Authorization", `Bearer ${identity.token}`);
  let answer;
  try {
    answer = await fetch(address(path), { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(0, "The server cannot be reached. It may have stopped, or the network is down.");
  }
  if (answer.ok) return answer;
  if (answer.status === 401) askIdentity();
  throw new ServerError(answer.status, await reason(answer));
}

/** What the server says went wrong. */
async function reason(answer) {
  let detail;
  try {
    detail = (await answer.json()).detail;
  } catch {
    detail = "";
  }
  if (Array.isArray(detail)) detail = detail.map(one => `${one.loc?.at(-1) ?? "request"}: ${one.msg}`).join("; ");
  return sentence(String(detail || `the server answered ${answer.status} ${answer.statusText}`).trim());
}

/** JSON in, JSON out; null for an answer without content. */
export async function call(method, path, body) {
  const options = { method };
  if (body !== undefined) {
    options.body = JSON.stringify(body);
    options.headers = { "Content-Type": "application/json" };
  }
  const text = await (await ask(path, options)).text();
  return text ? JSON.parse(text) : null;
}

export async function bytes(path, signal) {
  return (await ask(path, { signal })).arrayBuffer();
}

export async function blob(path) {
  return (await ask(path)).blob();
}

/** A run's events with numbers above `after`, as they come, until the server ends the stream. */
export async function* events(key, after, signal) {
  const answer = await ask(`ibis/runs/${key}/events?after=${after}`, { signal, headers: { Accept: "text/event-stream" } });
  if (answer.status === 204) return;
  let rest = "";
  try {
    for await (const text of answer.body.pipeThrough(new TextDecoderStream())) {
      const blocks = (rest + text).split("\n\n");
      rest = blocks.pop();
      const found = [];
      for (const block of blocks) {
        const data = block.split("\n").filter(line => line.startsWith("data:")).map(line => line.slice(5)).join("\n");
        if (data) found.push(JSON.parse(data));
      }
      if (found.length) yield found;
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(0, "The connection to the server was lost.");
  }
}
