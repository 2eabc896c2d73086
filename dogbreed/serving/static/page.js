// Sends the photograph's own bytes, shows the answer, and paints where the network looked. Nothing is kept.
"use strict";

const $ = (id) => document.getElementById(id);
const TYPES = ["image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "image/tiff", "image/avif"];
let asking = null; // the request under way; a new photograph ends it
let answer = null;
let address = null;
let noun = "class"; // what the model tells apart; breeds where they are dogs
const plural = () => (noun === "class" ? "classes" : `${noun}s`);

// What the network is

const known = fetch("/model").then((response) => response.json()).then((content) => {
  noun = content.noun;
  if (noun === "breed") document.title = $("question").textContent = "Which breed is this dog?";
  const parts = [content.backbone, content.class_names.length === 1 ? `1 ${noun}` : `${content.class_names.length} ${plural()}`];
  const likely = (content.test_acc_ci95 || []).map((bound) => Math.round(100 * bound)).join(" to ");
  if (content.test_acc) parts.push(`${(100 * content.test_acc).toFixed(1)} % test accuracy${likely && ` (likely ${likely} %)`}`);
  $("model").textContent = parts.join(" · ");
  return content;
}).catch(() => ({}));

// Ways in

$("choose").addEventListener("click", () => $("file").click());
$("take").addEventListener("click", () => $("camera").click());
for (const input of [$("file"), $("camera")]) {
  input.addEventListener("change", () => {
    if (input.files.length) askAbout(input.files);
    input.value = ""; // the same file may be chosen again
  });
}

let depth = 0; // of elements that a dragged file has entered and not left
const over = (on) => document.body.classList.toggle("over", on);
const holdsFile = (event) => event.dataTransfer && [...event.dataTransfer.types].includes("Files");
document.addEventListener("dragenter", (event) => { if (holdsFile(event)) { depth += 1; over(true); } });
document.addEventListener("dragleave", (event) => { if (holdsFile(event) && (depth -= 1) <= 0) { depth = 0; over(false); } });
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  depth = 0;
  over(false);
  if (event.dataTransfer.files.length) askAbout(event.dataTransfer.files);
  else fail("That was no file; save the photograph first, then drop the file here.");
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) askAbout(event.clipboardData.files);
  else if (event.clipboardData.types.length) fail("There is no photograph in the clipboard; copy an image, then paste it here.");
});

// Asking

// Of several photographs the first is asked about, and each other one by its button, which then says the answer.
function askAbout(files) {
  const buttons = [...files].map((file) => {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: file.name });
    button.addEventListener("click", () => ask(file, button));
    return button;
  });
  $("files").replaceChildren(...(buttons.length > 1 ? buttons : []));
  ask(files[0], buttons[0]);
}

async function ask(file, button) {
  asking?.abort();
  for (const other of $("files").children) other.setAttribute("aria-current", other === button);
  const mine = asking = new AbortController();
  answer = null;
  for (const id of ["set", "error", "choices", "switch", "note", "similar"]) $(id).hidden = true;
  clear();
  show(file);
  say("Looking", true);
  const { max_body_bytes: most, similar } = await known;
  if (mine !== asking) return;
  if (file.size > most) return fail(`The file has ${megabytes(file.size)}; up to ${megabytes(most)} are taken.`);
  try {
    const response = await fetch(`/explain?top_k=5${similar ? "&similar=5" : ""}`, {
      method: "POST",
      body: file,
      headers: { "content-type": TYPES.includes(file.type) ? file.type : "application/octet-stream" },
      signal: mine.signal,
    });
    const content = await response.json();
    if (mine !== asking) return;
    if (content.predictions) {
      present(content);
      button.textContent = `${file.name}: ${shown(content.predictions[0].label)}`;
    } else fail(content.error);
  } catch (error) {
    if (error.name !== "AbortError") fail("The server does not answer; is it still running?");
  }
}

function show(file) {
  document.querySelector("main").classList.add("asked");
  if (address) URL.revokeObjectURL(address);
  address = URL.createObjectURL(file);
  $("shown").src = address;
  visible(true);
}

function visible(on) {
  $("frame").hidden = !on;
  $("empty").hidden = on;
  $("drop").classList.toggle("full", on);
  $("choose").textContent = on ? "Choose another" : "Choose a photograph";
}

// Some files that the network reads (TIFF) are not shown by browsers, and some files are no pictures at all.
$("shown").addEventListener("error", () => {
  visible(false);
  if (answer) present(answer);
});
$("shown").addEventListener("load", () => {
  const ratio = $("shown").naturalWidth / $("shown").naturalHeight;
  $("frame").style.aspectRatio = ratio;
  $("frame").style.width = `calc(var(--most) * ${ratio})`;
  paint();
});

function say(text, busy = false) {
  $("status").textContent = text;
  $("status").classList.toggle("busy", busy);
}

function fail(sentence) {
  say("");
  $("error").textContent = sentence;
  $("error").hidden = false;
}

const shown = (label) => label.replaceAll("_", " ");
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;
const percent = (p) => (p > 0.9994 ? "> 99.9 %" : p < 0.001 ? "< 0.1 %" : `${(100 * p).toFixed(1)} %`);

// Answering

function present(content) {
  answer = content;
  const best = content.predictions[0];
  say("");
  const name = document.createElement("strong");
  name.textContent = shown(best.label);
  $("status").append(name, `${percent(best.probability)} sure`);
  const set = content.set ?? [];
  const unlike = content.in_domain === false;
  $("set").hidden = !unlike && set.length < 2;
  $("set").textContent = unlike ? "This is unlike the photographs that the model was trained on."
    : content.abstain ? `Not sure: ${set.length} ${plural()} are possible.` : `One of: ${set.map(shown).join(", ")}`;
  $("rows").replaceChildren(...content.predictions.map(row));
  $("choices").hidden = false;
  $("alike").replaceChildren(...(content.similar ?? []).map(alike));
  $("similar").hidden = !content.similar;
  const pictured = !$("frame").hidden;
  const mapped = pictured && Boolean(best.heat_map);
  $("legend").textContent = mapped ? `Choose a ${noun} to see what argued for it` : `The likeliest ${plural()}`;
  $("switch").hidden = !mapped;
  $("note").hidden = mapped && content.seen === 1;
  $("note").textContent = mapped
    ? "The network looks at the middle of the photograph."
    : pictured ? "This network has no map of where it looked."
      : "This browser does not show this kind of picture, and so not where the network looked.";
  paint();
}

function row(guess, place) {
  const label = document.createElement("label");
  label.className = "choice";
  const radio = Object.assign(document.createElement("input"), { type: "radio", name: "choice", value: place, checked: place === 0 });
  radio.addEventListener("change", () => { light(true); paint(); });
  const part = (kind, text) => Object.assign(document.createElement("span"), { className: kind, textContent: text });
  const bar = Object.assign(document.createElement("span"), { className: "bar" });
  bar.setAttribute("aria-hidden", "true");
  const fill = document.createElement("i");
  fill.style.width = `${100 * guess.probability}%`;
  bar.append(fill);
  label.append(radio, part("name", shown(guess.label)), part("share", percent(guess.probability)), bar);
  return label;
}

function alike(one) {
  const item = document.createElement("li");
  const name = Object.assign(document.createElement("strong"), { textContent: shown(one.label) });
  const path = Object.assign(document.createElement("span"), { className: "muted", textContent: one.path });
  item.append(name, ` ${one.cosine.toFixed(2)} `, path);
  return item;
}

// Where it looked

function light(on) {
  $("lit").checked = on;
  $("heat").classList.toggle("off", !on);
}

$("lit").addEventListener("change", () => light($("lit").checked));

function clear() {
  const canvas = $("heat");
  canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
}

function paint() {
  clear();
  const image = $("shown");
  const chosen = document.querySelector("input[name=choice]:checked");
  const map = answer && chosen && answer.predictions[chosen.value].heat_map;
  if (!map || !image.naturalWidth) return;
  const canvas = $("heat");
  const scale = 320 / Math.max(image.naturalWidth, image.naturalHeight);
  canvas.width = Math.max(1, Math.round(image.naturalWidth * scale));
  canvas.height = Math.max(1, Math.round(image.naturalHeight * scale));
  // The whole photograph, or the square in its middle.
  let width = canvas.width;
  let height = canvas.height;
  if (answer.resize === "crop") width = height = Math.max(1, Math.round(answer.seen * Math.min(width, height)));
  const left = Math.round((canvas.width - width) / 2);
  const top = Math.round((canvas.height - height) / 2);
  const pixels = new ImageData(width, height);
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1) {
      pixels.data.set(colour(value(map, (x + 0.5) / width, (y + 0.5) / height)), 4 * (y * width + x));
    }
  }
  const context = canvas.getContext("2d");
  if (answer.resize === "crop") {
    context.fillStyle = "rgb(0 0 0 / 55%)";
    context.fillRect(0, 0, canvas.width, canvas.height);
  }
  context.putImageData(pixels, left, top);
}

// Between the map's cells a cubic B-spline, which is smooth and never above the largest cell.
function value(map, u, v) {
  const rows = map.length;
  const columns = map[0].length;
  const x = u * columns - 0.5;
  const y = v * rows - 0.5;
  const within = (i, n) => Math.min(Math.max(i, 0), n - 1);
  let sum = 0;
  for (let j = -1; j <= 2; j += 1) {
    for (let i = -1; i <= 2; i += 1) {
      const cell = map[within(Math.floor(y) + j, rows)][within(Math.floor(x) + i, columns)];
      sum += cell * spline(Math.floor(x) + i - x) * spline(Math.floor(y) + j - y);
    }
  }
  return sum;
}

function spline(t) {
  const a = Math.abs(t);
  if (a < 1) return (4 - 6 * a * a + 3 * a * a * a) / 6;
  return a < 2 ? (2 - a) ** 3 / 6 : 0;
}

// From a veil of dark blue over what was passed by, through clear, to a warm light on what was looked at.
const STOPS = [[0, 12, 16, 60, 150], [0.35, 40, 20, 90, 90], [0.6, 200, 60, 40, 70], [0.85, 255, 150, 20, 110], [1, 255, 225, 60, 130]];

function colour(v) {
  let k = 1;
  while (k < STOPS.length - 1 && STOPS[k][0] < v) k += 1;
  const [from, to] = [STOPS[k - 1], STOPS[k]];
  const share = Math.min(Math.max((v - from[0]) / (to[0] - from[0]), 0), 1);
  return [1, 2, 3, 4].map((i) => from[i] + share * (to[i] - from[i]));
}
