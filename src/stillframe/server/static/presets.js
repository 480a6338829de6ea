// Settings under a name: some that come with the page, and one's own, which the browser remembers.

const element = (id) => document.getElementById(id);
const OWN = "stillframe.presets";
const FIELDS = ["prompt", "recovery", "tolerance", "motion", "strength", "seed", "size", "refresh", "cuts", "blend"];
const USUAL = { recovery: "", tolerance: "", motion: "", strength: "", refresh: "", cuts: false, blend: "0", method: "prune" };
const BUNDLED = {
  Usual: USUAL,
  Fast: { ...USUAL, tolerance: "8" },
  Faithful: { ...USUAL, tolerance: "1.5", refresh: "16", cuts: true },
  Gentle: { ...USUAL, blend: "4", cuts: true },
};
const checks = (control) => control.type === "checkbox";

function remembered() {
  try {
    return JSON.parse(localStorage.getItem(OWN)) ?? {};
  } catch {
    return {};
  }
}

export class Presets {
  #own = remembered();

  /** applied() is called when the controls show another preset. */
  constructor(applied) {
    this.applied = applied;
    element("preset").addEventListener("change", () => this.#apply());
    element("preset-save").addEventListener("click", () => this.#save());
    element("preset-name").addEventListener("keydown", (event) => {
      if (event.key !== "Enter") return;
      event.preventDefault();
      this.#save();
    });
    element("preset-delete").addEventListener("click", () => this.#delete());
    this.#show("");
  }

  #show(chosen) {
    const group = (label, names) => {
      const part = Object.assign(document.createElement("optgroup"), { label });
      part.append(...names.map((name) => new Option(name, name)));
      return part;
    };
    const own = Object.keys(this.#own);
    element("preset").replaceChildren(
      new Option("Choose", ""),
      group("Of this page", Object.keys(BUNDLED)),
      ...(own.length ? [group("Your own", own)] : []),
    );
    element("preset").value = chosen;
    element("preset-delete").disabled = !(chosen in this.#own);
  }

  #apply() {
    const name = element("preset").value;
    element("preset-delete").disabled = !(name in this.#own);
    const values = this.#own[name] ?? BUNDLED[name];
    if (!values) return;
    element("preset-name").value = name in this.#own ? name : "";
    for (const id of FIELDS.filter((field) => field in values && field !== "prompt")) {
      const control = element(id);
      const before = checks(control) ? control.checked : control.value;
      if (before === values[id] || control.matches("[data-at-start]:disabled")) continue;
      if (checks(control)) control.checked = values[id];
      else control.value = values[id];
      control.dispatchEvent(new Event("change", { bubbles: true }));
    }
    const method = document.querySelector(`[name=method][value=${values.method === "full" ? "full" : "prune"}]`);
    if (!method.checked && !method.disabled) method.click();
    this.applied(values.prompt);
  }

  #save() {
    const name = element("preset-name").value.trim();
    if (!name || name in BUNDLED) {
      element("preset-note").textContent = name ? `${name} comes with the page: choose another name.` : "Give it a name first.";
      element("preset-name").focus();
      return;
    }
    const values = FIELDS.map((id) => [id, checks(element(id)) ? element(id).checked : element(id).value]);
    this.#own[name] = { ...Object.fromEntries(values), method: document.querySelector("[name=method]:checked").value };
    this.#keep(`${name} is kept in this browser.`, name);
  }

  #delete() {
    const name = element("preset").value;
    delete this.#own[name];
    element("preset-name").value = "";
    this.#keep(`${name} is gone.`, "");
    element("preset").focus();
  }

  #keep(text, chosen) {
    try {
      localStorage.setItem(OWN, JSON.stringify(this.#own));
    } catch {
      text = "This browser keeps nothing: it holds until the page is closed.";
    }
    element("preset-note").textContent = text;
    this.#show(chosen);
  }
}
