// The controls on the page: a rate, refreshes, whole blocks after cuts, and the fields of `update` and
// `telemetry` that they stand for. Tells of changes; sends nothing.

const element = (id) => document.getElementById(id);
const radio = (value) => document.querySelector(`[name=hold][value=${value}]`);

const UNITS = {
  target_fps: (value) => `${Number(value.toPrecision(3))} fps`,
  target_latency: (value) => `${value.toPrecision(3)} s a block`,
  target_kept: (value) => `${(100 * value).toFixed(0)} % of the patches`,
};

function kind() {
  return document.querySelector("[name=hold]:checked")?.value ?? "off";
}

function frames() {
  const input = element("hold-fps");
  const most = Number(element("rate").value);
  if (kind() === "source") return most;
  // more frames than come in cannot be held: what they leave time for is computed
  return input.value !== "" && input.checkValidity() ? Math.min(input.valueAsNumber, most) : null;
}

function hint() {
  const fps = frames();
  if (kind() === "off" || fps === null) return "The speed follows the motion.";
  if (kind() === "source") return `Reuses more only where ${fps} fps cannot be kept up with.`;
  return `Recomputes as much as ${fps} fps leaves time for.`;
}

function write(id, text) {
  if (element(id).textContent !== text) element(id).textContent = text;
}

/** Show how a rate does, as a block's telemetry has it; nothing if it has none. */
export function showRate({ rate } = {}) {
  const reach = element("hold-reach");
  const name = rate && Object.keys(UNITS).find((each) => rate[each] != null);
  element("hold").dataset.target = name ? rate[name] : "";
  const behind = Boolean(name && rate.behind);
  reach.hidden = !name || !(rate.out_of_reach || behind);
  if (!name) {
    write("hold-note", hint());
    write("hold-reach", "");
    return;
  }
  const unit = UNITS[name];
  const most = `up to ${(100 * rate.share).toFixed(0)} % of the patches`;
  write("hold-note", rate.achieved == null ? `Next block: ${most}.` : `Working at ${unit(rate.achieved)}; ${most}.`);
  if (!rate.out_of_reach) {
    if (behind) write("hold-reach", "The picture is falling behind: some patches show what their source no longer looks like.");
    return;
  }
  const fps = name === "target_fps";
  const short = rate.limit != null && (fps ? rate.limit < rate[name] : rate.limit > rate[name]);
  const limit = short ? `: ${unit(rate.limit)} at ${fps ? "most" : "least"}` : "";
  write("hold-reach", `${unit(rate[name])} is out of reach${limit}.`);
}

export class Controls {
  #touched = false;

  /** change(fields) is called with fields of `update`. */
  constructor(change) {
    this.change = change;
    element("hold").addEventListener("change", () => this.#targetChanged());
    element("hold-fps").addEventListener("change", () => this.#targetChanged());
    element("rate").addEventListener("change", () => kind() !== "off" && this.#targetChanged());
    for (const id of ["refresh", "cuts"]) {
      element(id).addEventListener("change", () => this.#changed(this.#others()));
    }
    this.#show();
  }

  /** What `hello` says, and `update` with another method; nothing where nobody has chosen. */
  fields() {
    return this.#touched ? { ...this.#target(), ...this.#others() } : {};
  }

  /** Show what the server holds by itself, as long as nobody has chosen. */
  offer({ target_fps: fps, refresh, cuts }) {
    if (this.#touched) return;
    radio(fps ? "fps" : "off").checked = true;
    if (fps) element("hold-fps").value = fps;
    const select = element("refresh");
    if (refresh && ![...select.options].some(({ value }) => value === String(refresh))) {
      select.append(new Option(`every ${refresh} blocks`, refresh));
    }
    select.value = refresh ?? "";
    element("cuts").checked = Boolean(cuts);
    this.#show();
  }

  #target() {
    if (radio("off").disabled) return {};
    if (kind() === "off") return { target_fps: null, target_latency: null, target_kept: null };
    const fps = frames();
    return fps === null ? {} : { target_fps: fps, rate_mode: kind() === "source" ? "capped" : "constant" };
  }

  #others() {
    return { refresh: Number(element("refresh").value) || null, cuts: element("cuts").checked };
  }

  #targetChanged() {
    this.#show();
    this.#changed(this.#target());
  }

  #changed(fields) {
    // once somebody has chosen, all that the page shows is said
    const all = this.#touched ? fields : { ...this.#target(), ...this.#others() };
    this.#touched = true;
    if (Object.keys(all).length) this.change(all);
  }

  #show() {
    element("hold-row").hidden = kind() !== "fps";
    showRate();
  }
}
