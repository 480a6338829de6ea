// The study's page: who takes part, what is shown, and what is said of it.

import { Access } from "./access.js";
import { Player } from "./player.js";
import { fitFilms } from "./fitting.js";
import { initTheme } from "./theme.js";

const element = (id) => document.getElementById(id);
const KEY = "stillframe.study";
const SCREENS = ["welcome", "paused", "compare", "done"];
const VOTES = { 1: "left", 2: "same", 3: "right", ArrowLeft: "left", ArrowDown: "same", ArrowRight: "right" };

const videos = ["left", "right", "source"].map(element);
const answers = [...document.querySelectorAll("[data-vote]")];
const player = new Player(videos, showPlaying, (share) => {
  if (document.activeElement !== element("seek") || player.playing) element("seek").value = Math.round(1000 * share);
});
const access = new Access(begin);
let state = null; // as the server told it
let busy = false;
const files = new Map(); // of this pair, by address

// what is kept, for the next visit
const kept = {
  get() {
    try {
      return localStorage.getItem(KEY);
    } catch {
      return null;
    }
  },
  set(participant) {
    try {
      if (participant === null) localStorage.removeItem(KEY);
      else localStorage.setItem(KEY, participant);
    } catch {
      // then it holds for this visit
    }
  },
};

async function call(path, message) {
  const headers = { "Content-Type": "application/json" };
  if (access.fields.token) headers.Authorization = `Bearer ${access.fields.token}`;
  const asked = message === undefined ? { headers } : { method: "POST", headers, body: JSON.stringify(message) };
  let answer;
  try {
    answer = await fetch(path, asked);
  } catch {
    throw new Error("The server cannot be reached. Your answers so far are kept: load this page again in a moment.");
  }
  if (answer.ok) return answer;
  if (answer.status === 401) await access.check();
  const { detail } = await answer.json().catch(() => ({}));
  const error = new Error(`That did not work: ${detail ?? "the server refused it"}.`);
  error.status = answer.status;
  throw error;
}

/** Run something that asks the server; one at a time, and what goes wrong is said. */
async function ask(what) {
  if (busy) return;
  busy = true;
  enable(false);
  element("alert").textContent = "";
  try {
    await what();
  } catch (error) {
    if (error.status === 409) await refresh().catch(complain);
    else complain(error);
  } finally {
    busy = false;
    enable(true);
  }
}

function complain(error) {
  element("alert").textContent = error.message;
}

function enable(on) {
  const ready = on && document.documentElement.dataset.screen === "compare" && videos[0].readyState > 1;
  // disabled ones would lose the keyboard's focus
  for (const button of answers) button.setAttribute("aria-disabled", String(!ready));
}

function show(screen) {
  document.documentElement.dataset.screen = screen;
  for (const each of SCREENS) element(each).hidden = each !== screen;
  const inside = screen === "compare";
  element("leave").hidden = !inside;
  element("progress").hidden = !inside && screen !== "done";
  if (!inside) player.unload();
  const title = element(screen).querySelector("h2");
  title.focus({ preventScroll: true });
  if (!inside) scrollTo(0, 0);
}

function tellProgress() {
  const { done, total } = state;
  const at = Math.min(done + 1, total);
  element("bar").max = total;
  element("bar").value = done;
  element("count").textContent = done === total ? `${total} of ${total}` : `${at} of ${total}`;
  if (done < total) element("said").textContent = `Pair ${at} of ${total}`;
}

/** Show what the server says comes next. */
async function take(next) {
  state = next;
  kept.set(state.participant);
  for (const name of ["undo", "undo-last"]) element(name).hidden = !state.may_undo;
  tellProgress();
  if (state.trial === null) {
    element("done-note").textContent = `That was all: your ${state.total} answers are kept. You can close this page.`;
    show("done");
    return;
  }
  await showPair();
}

async function showPair() {
  if (document.documentElement.dataset.screen !== "compare") show("compare");
  const { id, source, fps } = state.trial;
  element("show-source").hidden = !source;
  const withSource = source && element("show-source").getAttribute("aria-pressed") === "true";
  element("source-film").hidden = !withSource;
  element("compare").setAttribute("aria-busy", "true");
  player.unload();
  const sides = ["left", "right", ...(withSource ? ["source"] : [])];
  const blobs = await Promise.all(sides.map((side) => file(id, side)));
  if (!(await player.load(blobs, fps))) return;
  element("compare").removeAttribute("aria-busy");
  fit();
  await player.play();
}

/** A video, whole, so that it is there at once wherever it is sought. */
async function file(trial, side) {
  const address = `media/${encodeURIComponent(state.participant)}/${trial}/${side}`;
  if (!files.has(address)) {
    for (const old of files.keys()) if (!old.includes(`/${trial}/`)) files.delete(old);
    files.set(address, await (await call(address)).blob());
  }
  return files.get(address);
}

async function refresh() {
  await take(await (await call(`api/state?participant=${encodeURIComponent(state.participant)}`)).json());
}

const vote = (side) => answers[0].getAttribute("aria-disabled") === "false" && ask(async () => {
  const said = { participant: state.participant, trial: state.trial.id, vote: side, seconds: player.seconds, loops: player.loops };
  await take(await (await call("api/vote", said)).json());
});

const undo = () => ask(async () => {
  await take(await (await call("api/undo", { participant: state.participant })).json());
});

const join = (name) => ask(async () => {
  await take(await (await call("api/join", { name })).json());
});

function pauseStudy() {
  const { participant, done, total } = state;
  element("paused-title").textContent = `${done} of ${total} done`;
  const anonymous = participant.startsWith("visitor ");
  element("paused-note").textContent = anonymous
    ? "Your answers are kept. Go on in this browser whenever you like."
    : `Your answers are kept. Go on whenever you like: in this browser, or elsewhere under the same name.`;
  show("paused");
}

async function begin() {
  element("token-form").hidden = true;
  const participant = kept.get();
  if (participant === null) {
    show("welcome");
    return;
  }
  await ask(async () => {
    state = await (await call(`api/state?participant=${encodeURIComponent(participant)}`)).json();
    tellProgress();
    if (state.trial === null) await take(state);
    else pauseStudy();
  });
}

function forget() {
  kept.set(null);
  state = null;
  element("name").value = "";
  show("welcome");
}

function fit() {
  const shown = !element("source-film").hidden;
  const note = fitFilms(element("films"), videos, shown);
  element("size-note").textContent = note;
  element("size-note").classList.toggle("warn", note !== "");
}

function showPlaying() {
  element("play").firstChild.textContent = player.playing ? "Pause " : "Play ";
}

function toggleSource() {
  const button = element("show-source");
  if (button.hidden) return;
  ask(async () => {
    button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
    await showPair();
  });
}

function key(event) {
  if (document.documentElement.dataset.screen !== "compare") return;
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const sliding = event.target === element("seek") && event.key.startsWith("Arrow");
  const does = {
    " ": () => (player.playing ? player.pause() : player.play()),
    s: toggleSource,
    u: () => !element("undo").hidden && undo(),
  }[event.key.toLowerCase()];
  if (event.key in VOTES && !sliding) vote(VOTES[event.key]);
  else if (does && !(event.key === " " && event.target.matches("button"))) does();
  else return;
  event.preventDefault();
}

element("join").addEventListener("submit", (event) => {
  event.preventDefault();
  join(element("name").value);
});
// it may be sought when all else is ready
videos[0].addEventListener("canplay", () => enable(!busy));
for (const button of answers) button.addEventListener("click", () => vote(button.dataset.vote));
element("play").addEventListener("click", () => (player.playing ? player.pause() : player.play()));
element("seek").addEventListener("input", (event) => player.seek(event.target.value / 1000));
element("show-source").addEventListener("click", toggleSource);
element("undo").addEventListener("click", undo);
element("undo-last").addEventListener("click", undo);
element("leave").addEventListener("click", () => !busy && pauseStudy());
element("resume").addEventListener("click", () => ask(refresh));
for (const name of ["other", "next-person"]) element(name).addEventListener("click", forget);
addEventListener("keydown", key);
addEventListener("resize", fit);
initTheme(element("theme"), () => {});

switch (await access.check()) {
  case "open":
    await begin();
    break;
  case "away":
    complain(new Error("The server cannot be reached."));
    break;
  default: // a token is asked for
}
