// Joins source, connection, playback and controls, and holds the page's state:
//   idle -> connecting -> running <-> paused -> ended | refused | idle

import { FIRST_COMPARED, Meters } from "./meters.js";
import { Playback } from "./playback.js";
import { Connection } from "./protocol.js";
import { Recorder } from "./record.js";
import { RtcConnection, possible } from "./rtc.js";
import { Settings } from "./settings.js";
import { Source, cameras } from "./source.js";
import { initTheme } from "./theme.js";
import { Timer } from "./timer.js";
import { View } from "./view.js";

const element = (id) => document.getElementById(id);
const WORDS = { idle: "Idle", connecting: "Connecting", running: "Running", paused: "Paused", refused: "Refused", ended: "Ended" };
const FIRST = "The first frames are on their way.";
const TYPING = "textarea, select, input:not([type=range], [type=radio], [type=checkbox])";
const TROUBLE = 6; // seconds for which what went wrong is said at least
const HIDDEN = 1000 / 30; // ms between pictures while nobody sees them: they may be recorded
const token = new URLSearchParams(location.hash.slice(1)).get("token");
// neither the address bar nor the history keeps it; a cookie does, which no page can read
if (token) history.replaceState(null, "", location.pathname);
addEventListener("hashchange", () => location.reload()); // another token was pasted

const source = new Source(element("source"));
const playback = new Playback();
const view = new View();
const meters = new Meters();
const recorder = new Recorder(element("result"));
const settings = new Settings(update);
let connection = null;
let state = "idle";
let attempt = 0;
let trouble = null; // {text, until} while something has gone wrong that does not end the stream
let away = null; // {at, sent} when the page was hidden
let sent = 0; // frames that have gone to the server
const hiddenTimer = new Timer();

/** Go to a state; text says why or what next, failed that it was not wished. */
function enter(next, text = "", failed = false) {
  state = next;
  const live = next === "running" || next === "paused";
  document.documentElement.dataset.state = next;
  document.documentElement.toggleAttribute("data-failed", failed);
  element("state").textContent = WORDS[next];
  element("message").textContent = text;
  element("hint").textContent = text || "Pick a source and press Start.";
  const again = next === "ended" || next === "refused";
  for (const id of ["start", "start-big"]) {
    element(id).textContent = again ? "Reconnect" : "Start";
    element(id).disabled = next === "connecting";
  }
  element("start").hidden = live;
  element("start-big").hidden = next === "connecting";
  element("pause").disabled = element("reset").disabled = !live;
  element("stop").disabled = !live && next !== "connecting";
  element("record").disabled = !live || !recorder.type;
  element("pause").firstChild.textContent = next === "paused" ? "Resume " : "Pause ";
  settings.lock(live || next === "connecting");
}

async function start() {
  if (state === "connecting" || connection) return;
  attempt += 1;
  const mine = attempt;
  enter("connecting", settings.kind === "file" ? "Opening the file." : "Waiting for the picture.");
  try {
    if (!await source.open({ kind: settings.kind, device: element("device").value, file: element("file").files[0] })) return;
  } catch (error) {
    if (mine === attempt) enter("idle", error.message, true);
    return;
  }
  trouble = null;
  listCameras();
  applySource();
  playback.clear();
  meters.clear();
  meters.forgetSpeeds();
  enter("connecting", "Calling the server.");
  const Line = settings.transport === "webrtc" ? RtcConnection : Connection;
  document.documentElement.dataset.transport = settings.transport;
  connection = new Line({ ...(token ? { token } : {}), ...settings.hello(source.upright) }, {
    ready,
    telemetry: (figures) => meters.block(figures),
    frame: (time, bitmap) => playback.came(time, bitmap, performance.now() / 1000),
    map: (time, map) => playback.mapped(time, map),
    notice: ({ about, message }) => {
      if (about === "update") settings.refused();
      worry(`${message}.`.replace(/^./, (letter) => letter.toUpperCase()));
    },
    updated: ({ what, from_block: block }) => {
      meters.changed(block);
      trouble = null;
      say(`New ${[what].flat().join(", ").replaceAll("_", " ")} from block ${block}.`);
    },
    closed: ({ state: next, text }) => {
      release();
      enter(next, text, true);
    },
  });
}

function ready({ width, height, ...offers }) {
  settings.offer(offers);
  meters.method(settings.method, FIRST_COMPARED);
  source.resize(width, height);
  view.resize(width, height);
  element("source-note").textContent = `${width}×${height}`;
  document.documentElement.removeAttribute("data-fresh");
  for (const name of ["frames", "matched"]) delete element("result").dataset[name];
  enter("running", FIRST);
  send();
}

function send() {
  source.run(() => connection?.clear, async (time, canvas) => {
    const mine = connection;
    const copy = createImageBitmap(canvas);
    const gone = await mine.frame(time, canvas);
    if (gone) sent += 1;
    if (gone && mine === connection) playback.sent(time, await copy);
    else (await copy).close();
  });
}

/** Let go of everything a stream holds. */
function release() {
  connection = null;
  source.close();
  recorder.stop();
  playback.clear();
}

function stop() {
  if (!connection && state !== "connecting") return;
  attempt += 1;
  connection?.bye();
  release();
  enter("idle", "Stopped.");
}

function pause() {
  if (state === "running") {
    source.halt();
    connection.tell({ type: "pause" });
    enter("paused", "The server keeps the stream.");
  } else if (state === "paused") {
    connection.tell({ type: "resume" });
    enter("running");
    send();
  }
}

function reset() {
  connection?.tell({ type: "reset" });
  playback.clear();
  view.clear();
  meters.clear();
  say("Begun anew.");
}

function update(fields) {
  if (!connection) return;
  if (fields.method) meters.method(fields.method);
  connection.tell({ type: "update", ...fields });
}

/** A passing remark, without a change of state. */
function say(text) {
  if (state === "running" || state === "paused") element("message").textContent = text;
}

/** Say what has gone wrong while the stream goes on; it goes as things work again. */
function worry(text) {
  trouble = { text, until: performance.now() / 1000 + TROUBLE };
  say(text);
}

function relieved() {
  if (trouble && element("message").textContent === trouble.text) say("");
  trouble = null;
}

function applySource() {
  source.mirror = source.kind === "camera" && element("mirror").checked;
  source.rate = Number(element("rate").value);
  playback.smooth = element("smooth").checked;
}

async function listCameras() {
  const select = element("device");
  const { value } = select;
  const found = await cameras();
  select.replaceChildren(new Option("Default camera", ""), ...found.map(({ id, label }) => new Option(label, id)));
  select.value = found.some(({ id }) => id === value) ? value : "";
}

/** Show what is due with every picture of the screen, or by a timer while there is none. */
function paint() {
  requestAnimationFrame(paint);
  show();
}

function paintHidden() {
  if (!document.hidden) return;
  hiddenTimer.after(HIDDEN, paintHidden);
  show();
}

function visibility() {
  const now = performance.now() / 1000;
  if (document.hidden) {
    away = { at: now, sent };
    paintHidden();
  } else if (away && state === "running") {
    say(`While the tab was hidden, ${((sent - away.sent) / (now - away.at)).toFixed(1)} frames a second went to the server.`);
  }
}

function show() {
  if (!connection) return;
  const now = performance.now() / 1000;
  const frame = playback.next(now);
  if (frame) {
    view.show(frame);
    if (element("message").textContent === FIRST) say("");
    if (trouble && now > trouble.until) relieved();
    meters.frame(now, frame.sure ? now - frame.time : null);
    const { dataset } = element("result");
    dataset.frames = Number(dataset.frames ?? 0) + 1;
    dataset.matched = Number(dataset.matched ?? 0) + Boolean(frame.source);
  }
  if (state === "running") meters.tick(now);
}

function keys(event) {
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
  const { target } = event;
  if (event.key === "Escape") {
    if (target.matches(TYPING)) target.blur();
    else stop();
  } else if (event.key === " " && !target.matches(`${TYPING}, [type=checkbox], button, summary, a`) && (state === "running" || state === "paused")) {
    event.preventDefault();
    pause();
  }
}

function drops() {
  const stage = element("stage");
  const dragged = (event) => event.dataTransfer?.types.includes("Files");
  stage.addEventListener("dragover", (event) => {
    if (!dragged(event)) return;
    event.preventDefault();
    stage.classList.add("drop");
  });
  stage.addEventListener("dragleave", () => stage.classList.remove("drop"));
  stage.addEventListener("drop", (event) => {
    event.preventDefault();
    stage.classList.remove("drop");
    if (!event.dataTransfer.files.length) return;
    element("file").files = event.dataTransfer.files;
    document.querySelector("[name=kind][value=file]").click();
  });
}

/** While a stream runs, another source takes its place without a new session. */
async function switchSource() {
  // what could not be opened is not what is chosen now
  if (state === "idle" && document.documentElement.hasAttribute("data-failed")) enter("idle");
  if (state !== "running" && state !== "paused") return;
  if (settings.kind === "file" && !element("file").files.length) return;
  const mine = attempt;
  try {
    if (!await source.open({ kind: settings.kind, device: element("device").value, file: element("file").files[0] })) return;
  } catch (error) {
    if (mine !== attempt || !source.kind) return;
    if (settings.kind === "file") element("file").value = "";
    settings.kind = source.kind;
    element("device").value = source.device;
    worry(`${error.message} The ${source.kind} goes on.`);
    return;
  }
  relieved();
  applySource();
  if (state === "running") send();
}

function connectControls() {
  for (const id of ["start", "start-big"]) element(id).addEventListener("click", start);
  const buttons = { pause, stop, reset, record: () => recorder.toggle() };
  for (const [id, action] of Object.entries(buttons)) element(id).addEventListener("click", action);
  for (const id of ["mirror", "rate", "smooth"]) element(id).addEventListener("change", applySource);
  for (const id of ["source-kind", "device", "file"]) element(id).addEventListener("change", switchSource);
  element("view").addEventListener("change", ({ target }) => { document.documentElement.dataset.view = target.value; });
  element("tint").addEventListener("change", ({ target }) => view.tint(target.checked));
  document.addEventListener("keydown", keys);
  source.onended = () => {
    if (!connection) return;
    connection.bye();
    release();
    enter("ended", "The source ended.");
  };
  addEventListener("pagehide", stop);
  document.addEventListener("visibilitychange", visibility);
  if (!navigator.mediaDevices?.getDisplayMedia) document.querySelector("[name=kind][value=screen]").disabled = true;
  drops();
}

async function ask(path) {
  const answer = await fetch(path, token ? { headers: { Authorization: `Bearer ${token}` } } : {});
  return answer.ok ? answer.json() : null;
}

async function loadStyles() {
  try {
    const body = (await ask("api/styles")) ?? [];
    settings.offer({ styles: Array.isArray(body) ? body : body.styles });
  } catch {
    // `ready` brings them too
  }
}

async function loadTransports() {
  try {
    const { transports = [] } = (await ask("api/status")) ?? {};
    settings.reach(transports.filter((name) => name !== "webrtc" || possible()));
  } catch {
    // the socket it is
  }
}

initTheme(element("theme"), () => meters.redraw());
connectControls();
view.tint(element("tint").checked);
enter("idle");
paint();
loadStyles();
loadTransports();
listCameras();
