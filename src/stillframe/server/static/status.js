// The page's state, and what is said about it:
//   idle -> connecting -> running <-> paused -> ended | refused | idle
//                   ^------- waiting <-------' where the connection was lost

const element = (id) => document.getElementById(id);
const WORDS = {
  idle: "Idle", connecting: "Connecting", waiting: "Reconnecting", running: "Running", paused: "Paused",
  refused: "Refused", ended: "Ended",
};
const STARTS = { waiting: "Try now", ended: "Reconnect", refused: "Reconnect" };
const TROUBLE = 6; // seconds for which what went wrong is said at least

export class Status {
  #trouble = null; // {text, until} while something has gone wrong that does not end the stream
  state = "idle";

  get live() {
    return this.state === "running" || this.state === "paused";
  }

  /** Go to a state; text says why or what next, failed that it was not wished. */
  enter(next, text = "", failed = false) {
    this.state = next;
    this.#trouble = null;
    const { dataset } = document.documentElement;
    dataset.state = next;
    document.documentElement.toggleAttribute("data-failed", failed);
    element("state").textContent = WORDS[next];
    element("message").textContent = text;
    element("hint").textContent = text || "Pick a source and press Start.";
    for (const id of ["start", "start-big"]) {
      element(id).textContent = STARTS[next] ?? "Start";
      element(id).disabled = next === "connecting";
    }
    element("start").hidden = this.live;
    element("start-big").hidden = next === "connecting";
    for (const id of ["pause", "reset", "snapshot"]) element(id).disabled = !this.live;
    element("stop").disabled = !this.live && next !== "connecting" && next !== "waiting";
    element("pause").firstChild.textContent = next === "paused" ? "Resume " : "Pause ";
  }

  get text() {
    return element("message").textContent;
  }

  /** A passing remark, without a change of state. */
  say(text) {
    if (this.live) element("message").textContent = text;
  }

  /** Say what has gone wrong while the stream goes on; it goes as things work again. */
  worry(text) {
    this.#trouble = { text, until: performance.now() / 1000 + TROUBLE };
    this.say(text);
  }

  /** What went wrong works again, or was said for long enough by a time in seconds. */
  relieved(now = Infinity) {
    if (!this.#trouble || now < this.#trouble.until) return;
    if (this.text === this.#trouble.text) this.say("");
    this.#trouble = null;
  }
}
