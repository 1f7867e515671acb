// What the page says to its server, and how it explains what comes back.
const PLAIN = {
  busy: "The server has too much to do. Try again in a moment.",
  deadline: "The answer took too long, so the server gave up.",
  not_loaded: "The model is still being loaded. Try again in a moment.",
  out_of_memory: "There is not enough memory for this. Try fewer or smaller pictures.",
  shutting_down: "The server is being stopped.",
};

function headers(more = {}) {
  return $("key").value ? { ...more, Authorization: `Bearer ${$("key").value}` } : more;
}

function wantKey() {
  const first = $("key-row").hidden;
  $("key-row").hidden = false;
  $("key").focus();
  return first ? "This server wants an API key." : "The API key is wrong.";
}

async function explain(response) {
  if (response.status === 401) return wantKey();
  try {
    return plain((await response.json()).error);
  } catch {
    return `The server answered with an error (${response.status}).`;
  }
}

function plain({ code, message }) {
  if (PLAIN[code]) return PLAIN[code];
  return `${message[0].toUpperCase()}${message.slice(1)}${/[.?!]$/.test(message) ? "" : "."}`;
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const whole = text.split("\n\n");
    text = whole.pop();
    for (const event of whole) {
      const data = event.replace(/^data: /, "");
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

// The events of an answer. Throws an Error with words for people.
async function* answerEvents(prompt, pictures, signal) {
  const images = await Promise.all(pictures.map(({ file }) => dataURI(file)));
  const content = [
    { type: "text", text: prompt }, ...images.map((url) => ({ type: "image_url", image_url: { url } })),
  ];
  const response = await fetch("v1/chat/completions", {
    method: "POST",
    headers: headers({ "Content-Type": "application/json" }),
    body: JSON.stringify({
      messages: [{ role: "user", content }], stream: true, stream_options: { include_usage: true }, regions: true,
    }),
    signal,
  });
  if (!response.ok) throw new Error(await explain(response));
  for await (const event of events(response)) {
    if (event.error) throw new Error(plain(event.error));
    yield event;
  }
}

// A browser's own words for this, such as "Failed to fetch", do not say what to do.
function explained(error) {
  return error instanceof TypeError ? "The server does not answer. Is it still running?" : error.message;
}

async function showModel() {
  const response = await fetch("v1/models", { headers: headers() });
  if (response.status === 401) return void wantKey();
  const model = (await response.json()).data[0];
  $("model").textContent = model.image_size ? `${model.id}, ${model.image_size} px` : `${model.id} is being loaded …`;
  $("model").hidden = false;
  if (!model.image_size) setTimeout(() => showModel().catch(() => {}), 1500);
}
