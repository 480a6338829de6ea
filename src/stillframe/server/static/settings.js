// The panel: prompt and styles, method, thresholds. Knows what the controls mean in the protocol's
// words; tells of changes, and sends nothing itself.

import { Controls } from "./controls.js";

const element = (id) => document.getElementById(id);
const CHOSEN = "stillframe.settings";
const KEPT = ["rate", "mirror", "smooth", "size", "policy", "transport", "prompt"];

const NAMES = { none: "none", noisy: "noisy", clean: "clean", aligned: "aligned" };

function remembered() {
  try {
    return JSON.parse(localStorage.getItem(CHOSEN)) ?? {};
  } catch {
    return {};
  }
}

export class Settings {
  #styles = [];
  #applied = null;
  #later = 0;
  #controls;

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
    element("styles").addEventListener("keydown", (event) => this.#chipKey(event));
    element("method").addEventListener("change", () => this.#methodChanged());
    element("transport").addEventListener("change", () => this.#transportChanged());
    for (const id of ["recovery", "tolerance", "motion", "strength"]) {
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
    const size = element("size").value.split("×").map(Number);
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
    };
  }

  /** Show what a server offers, as in `ready`. */
  offer({ styles, methods, recoveries, holding }) {
    if (styles) this.#showStyles(styles);
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
    if (control.disabled || control.value === "" || !control.checkValidity()) return {};
    return { [id]: control.type === "number" ? control.valueAsNumber : control.value };
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

  #showStyles(styles) {
    if (JSON.stringify(styles) === JSON.stringify(this.#styles)) return;
    this.#styles = styles;
    const chips = styles.map((style) => {
      const chip = document.createElement("button");
      Object.assign(chip, { type: "button", textContent: style.name.replaceAll("-", " "), title: style.summary ?? "" });
      chip.setAttribute("role", "radio");
      chip.dataset.testid = `style-${style.name}`;
      chip.dataset.prompt = style.prompt;
      chip.addEventListener("click", () => this.#choose(chip));
      return chip;
    });
    element("styles").replaceChildren(...chips);
    if (!this.prompt && styles.length) element("prompt").value = (styles[1] ?? styles[0]).prompt;
    this.#promptEdited();
  }

  #choose(chip, wait = 0) {
    element("prompt").value = chip.dataset.prompt;
    this.#promptEdited();
    clearTimeout(this.#later);
    this.#later = setTimeout(() => this.#applyPrompt(), wait);
  }

  #chipKey(event) {
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
    const chips = [...element("styles").children];
    const at = chips.indexOf(document.activeElement);
    if (at < 0) return;
    let to = at + (steps[event.key] ?? 0);
    if (event.key === "Home") to = 0;
    if (event.key === "End") to = chips.length - 1;
    if (to === at && !(event.key in steps)) return;
    event.preventDefault();
    const chip = chips[(to + chips.length) % chips.length];
    this.#choose(chip, 250); // passing over a chip is not choosing it
    chip.focus();
  }

  #promptKey(event) {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    this.#applyPrompt();
  }

  #promptEdited() {
    const chips = [...element("styles").children];
    const now = this.#styles.findIndex(({ prompt }) => prompt === this.prompt);
    chips.forEach((chip, i) => {
      chip.setAttribute("aria-checked", String(i === now));
      chip.tabIndex = i === Math.max(now, 0) ? 0 : -1;
    });
    element("apply").disabled = !this.prompt || this.prompt === this.#applied;
    if (now >= 0 && this.#styles[now].summary) this.note(`${this.#styles[now].summary}.`.replace(/^./, (c) => c.toUpperCase()));
    else this.note("Enter applies it, also while running.");
  }

  #applyPrompt() {
    if (!this.prompt || this.prompt === this.#applied) return;
    this.#applied = this.prompt;
    this.#promptEdited();
    this.#remember();
    this.change({ prompt: this.prompt });
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
