// The panel: prompt and styles, method, thresholds. Knows what the controls mean in the protocol's
// words; tells of changes, and sends nothing itself.

import { Controls } from "./controls.js";
import { Sizes } from "./sizes.js";
import { Styles } from "./styles.js";

const element = (id) => document.getElementById(id);
const CHOSEN = "stillframe.settings";
const KEPT = ["rate", "mirror", "smooth", "sound", "size", "policy", "transport", "prompt", "seed", "blend"];

const NAMES = { none: "none", noisy: "noisy", clean: "clean", aligned: "aligned" };

function remembered() {
  try {
    return JSON.parse(localStorage.getItem(CHOSEN)) ?? {};
  } catch {
    return {};
  }
}

export class Settings {
  #applied = null;
  #controls;
  sizes = new Sizes();
  styles = new Styles((prompt) => this.apply(prompt));

  /** change(update) is called with the protocol's `update` fields. */
  constructor(change) {
    this.change = change;
    this.#restore();
    this.#controls = new Controls((fields) => this.change(fields));
    element("panel").addEventListener("submit", (event) => event.preventDefault());
    element("panel").addEventListener("change", () => this.#remember());
    element("prompt").addEventListener("input", () => this.#promptEdited());
    element("prompt").addEventListener("keydown", (event) => this.#promptKey(event));
    element("apply").addEventListener("click", () => this.#applyPrompt());
    element("method").addEventListener("change", () => this.#methodChanged());
    element("transport").addEventListener("change", () => this.#transportChanged());
    for (const id of ["recovery", "tolerance", "motion", "strength", "blend"]) {
      element(id).addEventListener("change", () => this.#numberChanged(id));
    }
    document.querySelectorAll("[name=kind]").forEach((radio) => radio.addEventListener("change", () => this.#kindChanged()));
    this.#kindChanged();
    this.#methodChanged(true);
  }

  get kind() {
    return document.querySelector("[name=kind]:checked").value;
  }

  set kind(value) {
    document.querySelector(`[name=kind][value=${value}]`).checked = true;
    this.#kindChanged();
  }

  get method() {
    return document.querySelector("[name=method]:checked")?.value ?? "prune";
  }

  /** What pictures and messages go over, of what there is. */
  get transport() {
    const select = element("transport");
    return select.closest(".row").hidden ? "websocket" : select.value;
  }

  get prompt() {
    return element("prompt").value.trim();
  }

  /** What `hello` says; upright: the source is higher than wide. */
  hello(upright) {
    const size = this.sizes.wanted;
    if (upright) size.reverse();
    this.#applied = this.prompt;
    this.#promptEdited();
    return {
      prompt: this.prompt,
      // WebRTC cannot hold a sender back
      ...(this.transport === "webrtc" ? {} : { policy: element("policy").value }),
      ...(size.length === 2 ? { width: size[0], height: size[1] } : {}),
      ...this.#methodFields(),
      ...this.#field("strength"),
      ...this.#field("seed"),
      ...this.#field("blend"),
    };
  }

  /** Show what a server offers, as in `ready`. */
  offer({ styles, methods, recoveries, holding }) {
    if (styles && this.styles.offer(styles)) {
      if (!this.prompt) element("prompt").value = this.styles.first;
      this.#promptEdited();
    }
    if (holding) this.#controls.offer(holding);
    if (methods) {
      document.querySelectorAll("[name=method]").forEach((radio) => { radio.disabled = !methods.includes(radio.value); });
    }
    if (recoveries) {
      const select = element("recovery");
      const { value } = select;
      const options = recoveries.map((name) => new Option(NAMES[name] ?? name, name));
      select.replaceChildren(new Option("Model’s choice", ""), ...options);
      select.value = recoveries.includes(value) ? value : "";
    }
  }

  /** Show which transports can be used. */
  reach(transports) {
    element("transport").closest(".row").hidden = !transports.includes("webrtc");
    this.#transportChanged();
  }

  /** Lock what is fixed while a stream runs. */
  lock(running) {
    document.querySelectorAll("[data-at-start]").forEach((control) => { control.disabled = running; });
  }

  /** The server has not taken what was chosen last: it can be applied again. */
  refused() {
    this.#applied = null;
    this.#promptEdited();
  }

  note(text) {
    element("prompt-note").textContent = text;
  }

  #field(id) {
    const control = element(id);
    const unused = control.disabled && !control.matches("[data-at-start]"); // those are only locked
    if (unused || control.value === "" || !control.checkValidity()) return {};
    return { [id]: control.type === "number" || id === "blend" ? Number(control.value) : control.value };
  }

  #methodFields() {
    const own = ["recovery", "tolerance", "motion"].map((id) => this.#field(id));
    return Object.assign({ method: this.method }, ...own, this.#controls.fields());
  }

  #methodChanged(silent = false) {
    document.querySelectorAll("[data-method]").forEach((control) => {
      control.disabled = control.dataset.method !== this.method;
    });
    if (!silent) this.change(this.#methodFields());
  }

  #transportChanged() {
    element("policy").closest(".row").hidden = this.transport === "webrtc";
  }

  #numberChanged(id) {
    const field = this.#field(id);
    if (Object.keys(field).length) this.change(field);
  }

  #kindChanged() {
    document.querySelectorAll("[data-for]").forEach((row) => { row.hidden = row.dataset.for !== this.kind; });
  }

  #promptKey(event) {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    this.#applyPrompt();
  }

  #promptEdited() {
    const summary = this.styles.mark(this.prompt);
    element("apply").disabled = !this.prompt || this.prompt === this.#applied;
    this.note(summary ? `${summary}.`.replace(/^./, (c) => c.toUpperCase()) : "Enter applies it, also while running.");
  }

  #applyPrompt() {
    if (!this.prompt || this.prompt === this.#applied) return;
    this.#applied = this.prompt;
    this.#promptEdited();
    this.#remember();
    this.change({ prompt: this.prompt });
  }

  /** Take a prompt, as if it had been typed. */
  apply(prompt) {
    element("prompt").value = prompt;
    this.#promptEdited();
    this.#applyPrompt();
  }

  #remember() {
    const values = KEPT.map((id) => [id, element(id).type === "checkbox" ? element(id).checked : element(id).value]);
    try {
      localStorage.setItem(CHOSEN, JSON.stringify(Object.fromEntries(values)));
    } catch {
      // a browser that keeps nothing works as well
    }
  }

  #restore() {
    element("mirror").checked = true;
    for (const [id, value] of Object.entries(remembered())) {
      if (!KEPT.includes(id)) continue;
      const control = element(id);
      if (control.type === "checkbox") control.checked = Boolean(value);
      else if (control.tagName !== "SELECT" || [...control.options].some((option) => option.value === value)) control.value = value;
    }
  }
}
