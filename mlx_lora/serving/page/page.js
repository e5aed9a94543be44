"use strict";

const by = (id) => document.getElementById(id);
let running = null; // the AbortController of the question under way

function headers() {
  const key = by("key").value.trim();
  return key ? { "Content-Type": "application/json", Authorization: `Bearer ${key}` } : { "Content-Type": "application/json" };
}

async function call(path, options = {}) {
  const answer = await fetch(path, { ...options, headers: headers() });
  const body = await answer.json();
  if (!answer.ok) {
    throw Object.assign(new Error(body.error.message), { status: answer.status });
  }
  return body;
}

function say(text, failed = false) {
  by("status").textContent = text;
  by("status").classList.toggle("failed", failed);
}

async function showModels() {
  const chosen = new Set([...document.querySelectorAll("#models :checked")].map((box) => box.value));
  try {
    const models = (await call("/v1/models")).data;
    const adapters = (await call("/v1/adapters")).data;
    by("key-row").hidden = true;
    const first = chosen.size === 0;
    by("models").replaceChildren(
      ...models.map((model, place) => {
        const label = document.createElement("label");
        const box = document.createElement("input");
        box.type = "checkbox";
        box.value = model.id;
        box.checked = first ? place < 4 : chosen.has(model.id);
        label.append(box, model.parent ? model.id : `${model.id} (base)`);
        return label;
      }),
    );
    const others = adapters.filter((adapter) => !adapter.loaded);
    by("more").hidden = others.length === 0;
    by("loadable").replaceChildren(
      ...others.map((adapter) => {
        const button = document.createElement("button");
        button.type = "button";
        button.textContent = adapter.name;
        button.addEventListener("click", () => load(adapter.name));
        return button;
      }),
    );
    say("");
  } catch (error) {
    by("key-row").hidden = error.status !== 401;
    say(error.message, true);
  }
}

async function load(name) {
  say(`loading ${name}…`);
  try {
    await call("/v1/adapters", { method: "POST", body: JSON.stringify({ name }) });
    await showModels();
    const box = [...document.querySelectorAll("#models input")].find((each) => each.value === name);
    if (box) box.checked = true;
  } catch (error) {
    say(error.message, true);
  }
}

// Yield the objects of a stream of server-sent events.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const lines = rest.split("\n\n");
    rest = lines.pop();
    for (const line of lines) {
      const data = line.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

async function answer(model, body, signal) {
  const card = by("answer").content.firstElementChild.cloneNode(true);
  const [title, text, facts] = card.children;
  title.textContent = model;
  facts.textContent = "waiting…";
  by("answers").append(card);
  const begun = performance.now();
  const seconds = () => ((performance.now() - begun) / 1000).toFixed(2);
  let first = null;
  try {
    const reply = await fetch("/v1/chat/completions", {
      method: "POST",
      headers: headers(),
      signal,
      body: JSON.stringify({ ...body, model, stream: true, stream_options: { include_usage: true } }),
    });
    if (!reply.ok) throw new Error((await reply.json()).error.message);
    let ending = "";
    for await (const event of events(reply.body)) {
      if (event.error) throw new Error(event.error.message);
      const choice = event.choices[0];
      if (choice && choice.delta.content) {
        first ??= seconds();
        text.append(choice.delta.content);
        facts.textContent = `${seconds()} s`;
      }
      if (choice && choice.finish_reason === "length") ending = ", cut at the longest answer";
      if (event.usage) {
        const count = event.usage.completion_tokens;
        facts.textContent = `${count} tokens in ${seconds()} s, the first after ${first ?? seconds()} s${ending}`;
      }
    }
  } catch (error) {
    if (error.name === "AbortError") {
      facts.textContent = `stopped after ${seconds()} s`;
    } else {
      card.classList.add("failed");
      text.append(`${text.textContent ? "\n" : ""}${error.message}`);
      facts.textContent = "";
    }
  }
}

async function ask(event) {
  event.preventDefault();
  const models = [...document.querySelectorAll("#models :checked")].map((box) => box.value);
  const question = by("question").value.trim();
  if (running || !question) return;
  if (models.length === 0) {
    say("Choose who answers.", true);
    return;
  }
  const system = by("system").value.trim();
  const messages = [...(system ? [{ role: "system", content: system }] : []), { role: "user", content: question }];
  const body = { messages, temperature: Number(by("temperature").value), max_tokens: Number(by("tokens").value) };
  running = new AbortController();
  by("send").disabled = true;
  by("stop").disabled = false;
  by("answers").replaceChildren();
  say("answering…");
  await Promise.all(models.map((model) => answer(model, body, running.signal)));
  running = null;
  by("send").disabled = false;
  by("stop").disabled = true;
  say("");
}

by("ask").addEventListener("submit", ask);
// A browser cannot point at a wrong value that is folded away, and would refuse in silence.
by("ask").addEventListener("invalid", () => (document.querySelector("details").open = true), true);
by("stop").addEventListener("click", () => running && running.abort());
by("unlock").addEventListener("click", showModels);
by("key").addEventListener("keydown", (event) => {
  if (event.key === "Enter") {
    event.preventDefault();
    showModels();
  }
});
by("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.metaKey || event.ctrlKey)) by("ask").requestSubmit();
});
showModels();
