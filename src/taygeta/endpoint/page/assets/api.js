// The server: JSON, and answers as they stream. A key is asked for once and kept for this tab.

import { find } from "/page/dom.js";

const STORE = "taygeta.key";
let asking = null;

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

function askKey() {
  asking ??= new Promise((done) => {
    const dialog = find("keys");
    find("key-form").onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem(STORE, find("key").value.trim());
      find("key").value = "";
      dialog.close();
    };
    dialog.onclose = () => {
      asking = null;
      done();
    };
    dialog.showModal();
  });
  return asking;
}

async function request(path, { body, signal, headers = {} } = {}) {
  for (;;) {
    const key = sessionStorage.getItem(STORE);
    const response = await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      headers: {
        ...headers,
        ...(body === undefined ? {} : { "Content-Type": "application/json" }),
        ...(key ? { Authorization: `Bearer ${key}` } : {}),
      },
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
    });
    if (response.ok) return response;
    if (response.status === 401) {
      if (key === sessionStorage.getItem(STORE)) await askKey(); // else another request has asked already
      continue;
    }
    const said = await response.json().catch(() => null);
    throw new Refused(response.status, said?.error?.message ?? `The server answered ${response.status}.`);
  }
}

export async function call(path, body, signal) {
  return (await request(`/v1/taygeta/${path}`, { body, signal })).json();
}

// Yields {text, tokens, at, reason} for each event of an answer; `began` is told the fleet's time of its arrival.
export async function* answer(model, messages, seed, signal, began) {
  const body = {
    model, messages, seed, stream: true, stream_options: { include_usage: true, continuous_usage_stats: true },
  };
  const response = await request("/v1/chat/completions", { body, signal, headers: { "X-Taygeta-Times": "1" } });
  began(Number(response.headers.get("x-taygeta-arrived")));
  let rest = "";
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("The stream broke off.");
    rest += value;
    const events = rest.split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Refused(503, chunk.error.message);
      const choice = chunk.choices[0];
      if (!choice) continue;
      yield {
        text: choice.delta.content ?? "",
        tokens: chunk.usage.completion_tokens,
        at: chunk.taygeta.at,
        reason: choice.finish_reason,
      };
    }
  }
}
