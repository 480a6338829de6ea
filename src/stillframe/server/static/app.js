// Joins source, connection, playback and controls; `status.js` has the states.

import { Access } from "./access.js";
import { connectInput } from "./input.js";
import { FIRST_COMPARED, Meters } from "./meters.js";
import { snapshot } from "./picture.js";
import { painting } from "./painting.js";
import { Playback } from "./playback.js";
import { Presets } from "./presets.js";
import { Connection } from "./protocol.js";
import { Recorder } from "./record.js";
import { Retry } from "./retry.js";
import { RtcConnection, possible } from "./rtc.js";
import { Settings } from "./settings.js";
import { Source, cameras } from "./source.js";
import { Status } from "./status.js";
import { initTheme } from "./theme.js";
import { View } from "./view.js";

const element = (id) => document.getElementById(id);
const FIRST = "The first frames are on their way.";
const SLOW = 10; // frames a second below which a smaller size is recommended, if more are sent
const SLOWLY = 4; // seconds for which it must have been slower

const status = new Status();
const access = new Access(enter);
const source = new Source(element("source"));
const playback = new Playback();
const view = new View();
const meters = new Meters();
const recorder = new Recorder(element("result"), () => source.now);
const settings = new Settings(update);
const retry = new Retry();
let connection = null;
let attempt = 0;
let size = null; // {width, height} of the session
let slowSince = null;
let away = null; // {at, sent} when the page was hidden
let sent = 0; // frames that have gone to the server

function go(next, text, failed) {
  status.enter(next, text, failed);
  settings.lock(status.live || next === "connecting" || next === "waiting");
  // a recording goes on while the connection is missed
  element("record").disabled = !recorder.type || !(status.live || recorder.active);
  showSmaller();
}

/** The server lets the page in: ask what it has. */
async function enter() {
  if (status.state === "idle") go("idle");
  const [styles, { transports = [] }] = await Promise.all([
    access.ask("api/styles").catch(() => null),
    access.ask("api/status").catch(() => null).then((told) => told ?? {}),
  ]);
  settings.offer({ styles: Array.isArray(styles) ? styles : styles?.styles });
  settings.reach(transports.filter((name) => name !== "webrtc" || possible()));
  access.ask("api/styles/pictures", "blob").catch(() => null).then((blob) => settings.styles.picture(blob));
  await settings.sizes.measure((path) => access.ask(path));
}

async function start() {
  if (status.state === "waiting") {
    retry.expect();
    call("Calling the server.");
    return;
  }
  if (status.state === "connecting" || connection) return;
  attempt += 1;
  const mine = attempt;
  go("connecting", "Asking the server.");
  if (!await letIn(mine)) return;
  go("connecting", settings.kind === "file" ? "Opening the file." : "Waiting for the picture.");
  try {
    if (!await source.open(chosen())) return;
  } catch (error) {
    if (mine === attempt) go("idle", error.message, true);
    return;
  }
  listCameras();
  applySource();
  retry.reset();
  go("connecting", "Measuring what this machine keeps up with.");
  await settings.sizes.measure((path) => access.ask(path));
  if (mine === attempt) call("Calling the server.");
}

/** Whether the server lets the page in and nothing else has begun; if not, says what is to be done. */
async function letIn(mine) {
  const found = await access.check();
  if (mine !== attempt) return false;
  if (found === "token") go("idle", "Enter the server's token above, then start.", true);
  if (found === "away") go("ended", "The server cannot be reached.", true);
  return found === "open";
}

const chosen = () => ({ kind: settings.kind, device: element("device").value, file: element("file").files[0], sound: element("sound").checked });

/** Open a session for the source that is open. */
function call(text) {
  playback.clear();
  meters.clear();
  meters.forgetSpeeds();
  go("connecting", text);
  const Line = settings.transport === "webrtc" ? RtcConnection : Connection;
  document.documentElement.dataset.transport = settings.transport;
  connection = new Line({ ...access.fields, ...settings.hello(source.upright) }, {
    ready,
    telemetry: (figures) => meters.block(figures, playback.broken),
    frame: (time, bitmap) => playback.came(time, bitmap, performance.now() / 1000),
    map: (time, map) => playback.mapped(time, map),
    notice: ({ about, message }) => {
      if (about === "update") settings.refused();
      status.worry(`${message}.`.replace(/^./, (letter) => letter.toUpperCase()));
    },
    updated: ({ what, from_block: block, style }) => {
      meters.changed(block);
      if (style !== undefined) settings.styles.matched(style);
      status.relieved();
      status.say(`New ${[what].flat().join(", ").replaceAll("_", " ")} from block ${block}.`);
    },
    closed,
  });
}

function ready({ width, height, style, ...offers }) {
  settings.offer(offers);
  settings.styles.matched(style);
  meters.method(settings.method, FIRST_COMPARED);
  size = { width, height };
  slowSince = null;
  source.resize(width, height);
  view.resize(width, height);
  element("source-note").textContent = `${width}×${height}`;
  document.documentElement.removeAttribute("data-fresh");
  for (const name of ["frames", "matched"]) delete element("result").dataset[name];
  retry.reset();
  go("running", FIRST);
  send();
}

/** The connection has ended; where it was lost, call again, and the source stays open. */
function closed({ state, text, lost }) {
  connection = null;
  source.halt();
  if ((lost && (status.live || retry.active)) || (state === "refused" && retry.active)) again(text);
  else {
    release();
    go(state, text, true);
  }
}

function again(text) {
  const mine = attempt;
  const pause = retry.again(async () => {
    if (mine !== attempt || status.state !== "waiting") return;
    const found = await access.check();
    if (mine !== attempt || status.state !== "waiting") return;
    if (found === "open") call("Calling the server again.");
    else if (found === "away") again("The server cannot be reached.");
    else {
      release();
      go("idle", "Enter the server's token above, then start.", true);
    }
  });
  if (pause === null) {
    release();
    go("ended", `${text} It did not come back.`, true);
  } else go("waiting", `${text} Trying again in ${pause} s.`, true);
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
  retry.reset();
  source.close();
  recorder.stop();
  playback.clear();
}

function stop() {
  if (!connection && status.state !== "connecting" && status.state !== "waiting") return;
  attempt += 1;
  connection?.bye();
  release();
  go("idle", "Stopped.");
}

function pause() {
  if (status.state === "running") {
    source.halt();
    connection.tell({ type: "pause" });
    go("paused", "The server keeps the stream.");
  } else if (status.state === "paused") {
    connection.tell({ type: "resume" });
    go("running");
    send();
  }
}

function reset() {
  connection?.tell({ type: "reset" });
  playback.clear();
  view.clear();
  meters.clear();
  status.say("Begun anew.");
}

/** Go on with a smaller picture: a session of its own, with the same source. */
function smaller() {
  const next = size && settings.sizes.smaller(size.width, size.height);
  if (!next || !connection) return;
  settings.sizes.choose(next);
  connection.bye();
  connection = null;
  source.halt();
  retry.expect(); // the session that ends may still be counted for a moment
  call("Making it smaller.");
}

function showSmaller() {
  const next = status.live && size && settings.sizes.smaller(size.width, size.height);
  element("smaller").hidden = !next;
  if (next) element("smaller-size").textContent = `${next.width}×${next.height}`;
}

/** Recommend a smaller size where it has been slow for a while. */
function watchSpeed(now) {
  const slow = meters.fps !== null && meters.fps < Math.min(SLOW, 0.8 * source.rate) && !element("smaller").hidden;
  slowSince = slow ? slowSince ?? now : null;
  const said = slow && now > slowSince + SLOWLY;
  element("smaller").classList.toggle("advised", said);
  element("result-note").textContent = said ? `${meters.fps.toFixed(1)} fps: “Smaller” makes it faster.` : "";
}

function update(fields) {
  if (!connection) return;
  if (fields.method) meters.method(fields.method);
  connection.tell({ type: "update", ...fields });
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

function visibility() {
  const now = performance.now() / 1000;
  if (document.hidden) away = { at: now, sent };
  else if (away && status.state === "running") {
    status.say(`While the tab was hidden, ${((sent - away.sent) / (now - away.at)).toFixed(1)} frames a second went to the server.`);
  }
}

function show() {
  if (!connection) return;
  const now = performance.now() / 1000;
  const frame = playback.next(now);
  if (frame) {
    view.show(frame);
    if (status.text === FIRST) status.say("");
    status.relieved(now);
    meters.frame(now, frame.sure ? now - frame.time : null);
    if (frame.sure) recorder.late(now - frame.time);
    const { dataset } = element("result");
    dataset.frames = Number(dataset.frames ?? 0) + 1;
    dataset.matched = Number(dataset.matched ?? 0) + Boolean(frame.source);
  }
  if (status.state !== "running") return;
  meters.tick(now);
  watchSpeed(now);
}

/** While a stream runs, another source takes its place without a new session. */
async function switchSource() {
  // what could not be opened is not what is chosen now
  if (status.state === "idle" && document.documentElement.hasAttribute("data-failed")) go("idle");
  if (!status.live) return;
  if (settings.kind === "file" && !element("file").files.length) return;
  const mine = attempt;
  try {
    if (!await source.open(chosen())) return;
  } catch (error) {
    if (mine !== attempt || !source.kind) return;
    if (settings.kind === "file") element("file").value = "";
    settings.kind = source.kind;
    element("device").value = source.device;
    status.worry(`${error.message} The ${source.kind} goes on.`);
    return;
  }
  status.relieved();
  recorder.switched();
  applySource();
  if (status.state === "running") send();
}

source.onended = () => {
  if (!connection && status.state !== "waiting") return;
  attempt += 1;
  connection?.bye();
  release();
  go("ended", "The source ended.");
};
initTheme(element("theme"), () => meters.redraw());
new Presets((prompt) => prompt && settings.apply(prompt));
connectInput({ start, pause, stop, reset, smaller, switchSource, applySource, record: () => recorder.toggle(), snapshot: () => snapshot((text) => status.say(text)), live: () => status.live });
element("tint").addEventListener("change", ({ target }) => view.tint(target.checked));
addEventListener("pagehide", stop);
document.addEventListener("visibilitychange", visibility);
view.tint(element("tint").checked);
go("idle");
painting(show);
listCameras();
access.check().then((found) => found === "open" && enter());
