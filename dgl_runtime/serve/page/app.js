// The page: asks the service, draws what it answers. No library, no build step.
const $ = (selector, within = document) => within.querySelector(selector);
const query = $("#query"), hits = $("#hits"), status_ = $("#status"), message = $("#message");
const player = $("#player"), video = $("video", player), door = $("#door");
let galleries = [], moments = [], playing = -1, asked = 0, again = null, example = null, entering = null;

// ---- asking ------------------------------------------------------------------------------------

async function ask(path, options = {}) {
  const answer = await fetch(path, options).catch(() => {
    throw new Error("The service does not answer. Is dgl-serve still running?");
  });
  if (answer.status === 401 && path !== "/api/session") {
    await (entering ??= enter().finally(() => { entering = null; }));
    return ask(path, options);
  }
  if (answer.ok) return answer.status === 204 ? null : answer.json();
  const { detail } = await answer.json().catch(() => ({}));
  const text = Array.isArray(detail) ? detail.map((one) => one.msg).join("; ") : detail;
  const wait = answer.headers.get("retry-after");
  throw new Error((text || `The service answered ${answer.status}.`) + (wait ? ` (in ${wait} s)` : ""));
}

function enter() {
  return new Promise((resolve) => {
    const form = $("form", door), error = $(".error", door);
    error.textContent = "";
    door.showModal();
    form.onsubmit = async (event) => {
      event.preventDefault();
      const body = JSON.stringify({ token: $("#token").value });
      try {
        await ask("/api/session", { method: "POST", body, headers: { "content-type": "application/json" } });
      } catch (fault) {
        error.textContent = fault.message;
        return;
      }
      $("#token").value = "";
      door.close();
      resolve();
    };
  });
}

const gallery = () => `/api/galleries/${encodeURIComponent($("#gallery").value)}`;

function filters() {
  const where = $("#where").value.trim();
  return { top: Number($("#top").value), group: $("#group").value, ...(where && { where }) };
}

function searchByText() {
  const text = query.value.trim();
  if (!text && example) return searchByFile(example);
  if (!text) return welcome();
  example = null;
  remember();
  const body = JSON.stringify({ query: text, ...filters() });
  const headers = { "content-type": "application/json" };
  return show(`“${text}”`, () => ask(`${gallery()}/search`, { method: "POST", body, headers }));
}

function searchByFile(file) {
  if (!file) return;
  query.value = "";
  example = file;
  const body = () => {
    const form = new FormData();
    form.set("file", file);
    for (const [name, value] of Object.entries(filters())) form.set(name, value);
    return form;
  };
  return show(file.name, () => ask(`${gallery()}/like`, { method: "POST", body: body() }));
}

// ---- drawing -----------------------------------------------------------------------------------

async function show(what, request) {
  const mine = ++asked;
  again = () => show(what, request);
  message.hidden = true;
  status_.textContent = "Searching …";
  hits.setAttribute("aria-busy", "true");
  const ghosts = setTimeout(() => hits.replaceChildren(...Array.from({ length: 8 }, ghost)), 150);
  try {
    const answer = await request();
    if (mine !== asked) return; // a later search has been asked for
    moments = answer.moments;
    hits.replaceChildren(...moments.map(card));
    status_.textContent = moments.length
      ? `${moments.length} ${moments.length === 1 ? "moment" : "moments"} for ${what}, ${Math.round(answer.milliseconds)} ms`
      : "";
    if (!moments.length) tell("Nothing found", "No moment fits these filters. Take one away, or search another gallery.");
    if (answer.cut) status_.textContent += `${moments.length ? ". " : ""}The query ${answer.cut}`;
  } catch (fault) {
    if (mine === asked) tell("That did not work", fault.message, true);
  } finally {
    clearTimeout(ghosts);
    if (mine === asked) hits.removeAttribute("aria-busy");
  }
}

function tell(title, text, canRepeat = false) {
  moments = [];
  hits.replaceChildren();
  status_.textContent = "";
  $("h2", message).textContent = title;
  $("p", message).textContent = text;
  $("button", message).hidden = !canRepeat;
  message.hidden = false;
}

async function welcome() {
  const mine = ++asked;
  galleries = await ask("/api/galleries").catch(() => galleries); // one may have been filled meanwhile
  if (mine !== asked) return;
  const here = galleries.find((one) => one.name === $("#gallery").value);
  if (!here) return;
  if (!here.clips) return tell("This gallery is empty", "Fill it with dgl-index, then search.");
  const count = (number, word) => `${number.toLocaleString("en")} ${word}${number === 1 ? "" : "s"}`;
  tell("Describe a moment", `Searches ${count(here.clips, "clip")} of ${count(here.videos, "video")}. You can also drop a picture or a clip anywhere on this page.`);
}

function make(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

const ghost = () => make("li", { "aria-hidden": "true" }, make("div", { class: "ghost" }));

function card(moment, number) {
  const picture = make("img", { alt: "", loading: "lazy", decoding: "async", src: `${gallery()}/clips/${moment.clip}/thumbnail` });
  const thumb = make("span", { class: "thumb" }, picture, make("span", { class: "when" }, span(moment)));
  picture.onerror = () => picture.replaceWith(make("span", { class: "lost" }, "No picture: the video is gone or damaged"));
  const facts = make(
    "span", { class: "facts" },
    make("span", { class: "title", title: moment.title }, moment.title),
    make("span", { class: "more" }, make("span", {}, known(moment)), make("span", { title: "Similarity, cosine" }, moment.similarity.toFixed(3))),
  );
  const button = make("button", { type: "button", class: "card", "aria-label": `${moment.title}, ${span(moment)}, similarity ${moment.similarity.toFixed(3)}` }, thumb, facts);
  button.onclick = () => play(number);
  return make("li", {}, button);
}

const known = (moment) => Object.values(moment.metadata).filter((value) => value !== null).join(" · ");
const span = (moment) => `${clock(moment.start_s)} – ${clock(moment.end_s)}`;

function clock(seconds) {
  const whole = Math.floor(seconds + 1e-6), hours = Math.floor(whole / 3600);
  const rest = `${String(Math.floor(whole / 60) % 60).padStart(hours ? 2 : 1, "0")}:${String(whole % 60).padStart(2, "0")}`;
  return hours ? `${hours}:${rest}` : rest;
}

// ---- playing -----------------------------------------------------------------------------------

function play(number) {
  const moment = moments[number];
  if (!moment) return;
  playing = number;
  $("#player-title").textContent = moment.title;
  $("#player-facts").textContent = `${number + 1} of ${moments.length} · ${span(moment)} · similarity ${moment.similarity.toFixed(3)}`;
  $("#previous").disabled = number === 0;
  $("#next").disabled = number === moments.length - 1;
  $("#video-note").textContent = "";
  drawWeights(moment);
  source(`${gallery()}/videos/${moment.video}`, 0, moment, () => {
    $("#video-note").textContent = "Your browser cannot play this file; making a preview …";
    const { start_s, end_s } = moment;
    const preview = `${gallery()}/clips/${moment.clip}/preview?start_s=${start_s}&end_s=${end_s}`;
    source(preview, start_s, moment, () => {
      $("#video-note").textContent = "This video cannot be played: it is gone, was changed, or is damaged.";
    });
  });
  if (!player.open) player.showModal();
}

// Play a file whose first frame is second `offset` of the video, from the moment's start to its end.
function source(address, offset, moment, failed) {
  let stopped = false;
  video.dataset.offset = offset;
  video.onerror = failed;
  video.onloadedmetadata = () => {
    if (!video.videoWidth) return failed(); // sound alone: the browser does not know the pictures' codec
    if (offset) $("#video-note").textContent = "A preview of this moment.";
    video.currentTime = moment.start_s - offset;
    video.play().catch(() => {}); // some browsers wait for a click
  };
  video.ontimeupdate = () => {
    const now = video.currentTime + offset;
    markFrame(moment, now);
    if (!stopped && now >= moment.end_s && !video.paused) {
      stopped = true; // once: who plays on wants to see on
      video.pause();
    }
  };
  video.src = address;
}

function frameSecond(moment, frame) {
  const length = (moment.clip_end_s - moment.clip_start_s) / moment.frame_weights.length;
  return moment.clip_start_s + (frame + 0.5) * length;
}

function drawWeights(moment) {
  const most = Math.max(...moment.frame_weights);
  $(".weights", player).replaceChildren(...moment.frame_weights.map((weight, frame) => {
    const text = `${clock(frameSecond(moment, frame))}: ${Math.round(100 * weight)} %`;
    const bar = make("button", { type: "button", title: text, "aria-label": `Frame at ${text}` });
    bar.style.setProperty("--height", `${(100 * weight) / most}%`);
    bar.onclick = () => { video.currentTime = frameSecond(moment, frame) - Number(video.dataset.offset); };
    return bar;
  }));
}

function markFrame(moment, second) {
  const part = (second - moment.clip_start_s) / (moment.clip_end_s - moment.clip_start_s);
  const now = Math.floor(part * moment.frame_weights.length);
  [...$(".weights", player).children].forEach((bar, frame) => bar.classList.toggle("now", frame === now));
}

door.oncancel = (event) => event.preventDefault(); // without the token there is nothing behind it

player.onclose = () => {
  video.onerror = null;
  video.removeAttribute("src");
  video.load();
  hits.children[playing]?.querySelector("button").focus();
};

// ---- what a person does ------------------------------------------------------------------------

$("#search").onsubmit = (event) => { event.preventDefault(); searchByText(); };
for (const id of ["#group", "#top", "#gallery"]) $(id).onchange = () => { describe(); searchByText(); };
$("#where").onfocus = () => { $("#columns").hidden = false; };
$("#where").onblur = () => { $("#columns").hidden = true; };
$("#pick").onclick = () => $("#file").click();
$("#file").onchange = (event) => { searchByFile(event.target.files[0]); event.target.value = ""; };
$("button", message).onclick = () => again?.();
$("#close").onclick = () => player.close();
$("#previous").onclick = () => play(playing - 1);
$("#next").onclick = () => play(playing + 1);
player.onclick = (event) => { if (event.target === player) player.close(); };

document.onkeydown = (event) => {
  if (player.open && (event.key === "PageDown" || event.key === "n")) play(playing + 1);
  else if (player.open && (event.key === "PageUp" || event.key === "p")) play(playing - 1);
  else if (event.key === "/" && !/^(INPUT|SELECT)$/.test(document.activeElement.tagName) && !player.open) {
    event.preventDefault();
    query.focus();
  } else if (event.key.startsWith("Arrow") && document.activeElement.matches?.(".card")) moveFocus(event);
};

function moveFocus(event) {
  const cards = [...hits.querySelectorAll(".card")], here = cards.indexOf(document.activeElement);
  const columns = getComputedStyle(hits).gridTemplateColumns.split(" ").length;
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
  if (!cards[here + step]) return;
  event.preventDefault();
  cards[here + step].focus();
}

let depth = 0; // dragenter and dragleave come for every element that is crossed
document.ondragenter = (event) => { event.preventDefault(); depth += 1; $("#drop").hidden = false; };
document.ondragleave = () => { depth -= 1; if (depth <= 0) $("#drop").hidden = true; };
document.ondragover = (event) => event.preventDefault();
document.ondrop = (event) => {
  event.preventDefault();
  depth = 0;
  $("#drop").hidden = true;
  searchByFile(event.dataTransfer.files[0]);
};

// ---- the address: a search can be linked to, and the back button goes back to it -------------------

const FIELDS = { q: query, in: $("#gallery"), show: $("#group"), hits: $("#top"), where: $("#where") };

function remember() {
  const address = new URLSearchParams();
  for (const [name, field] of Object.entries(FIELDS)) if (field.value) address.set(name, field.value);
  if (`?${address}` !== location.search) history.pushState(null, "", `?${address}`);
}

function recall() {
  const address = new URLSearchParams(location.search);
  for (const [name, field] of Object.entries(FIELDS)) {
    const value = address.get(name);
    if (field.tagName !== "SELECT") field.value = value ?? "";
    else if ([...field.options].some((option) => option.value === value)) field.value = value;
  }
  example = null;
  describe();
  searchByText();
}

function describe() {
  const here = galleries.find((one) => one.name === $("#gallery").value);
  if (here) $("#columns").textContent = `A condition in SQL on: ${here.columns.join(", ")}`;
}

async function begin() {
  try {
    galleries = await ask("/api/galleries");
  } catch (fault) {
    again = begin;
    return tell("The galleries cannot be listed", fault.message, true);
  }
  $("#gallery").replaceChildren(...galleries.map((one) => make("option", {}, one.name)));
  $("#gallery-label").hidden = galleries.length < 2;
  recall();
}

window.onpopstate = recall;
begin();
