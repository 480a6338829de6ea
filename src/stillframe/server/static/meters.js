// The four measurements: frames a second, latency, recomputed share and time a block. Knows the
// telemetry's fields and where they are shown.

import { showRate } from "./controls.js";
import { Plot } from "./plots.js";

const STAGES = ["encode", "mask", "denoise", "context", "decode"];
const WINDOW = 3; // seconds over which shown frames are counted
const FIRST_COMPARED = 2; // a stream's first block is computed whole whatever the method

const element = (id) => document.getElementById(id);
const rounded = (value) => (value >= 100 ? value.toFixed(0) : value.toFixed(1));

export { FIRST_COMPARED };

export class Meters {
  #fps = new Plot(element("plot-fps"));
  #latency = new Plot(element("plot-latency"));
  #kept = new Plot(element("plot-kept"), { colours: ["--patch"], most: 1 });
  #ms = new Plot(element("plot-ms"), { colours: STAGES.map((name) => `--s-${name}`), bars: true });
  #shown = []; // {at, latency} of shown frames
  #painted = 0;
  #speeds = new Map(); // method -> milliseconds a block, smoothed
  #method = "prune";
  fps = null; // of late, null if not known
  #from = FIRST_COMPARED; // block from which the method's cost counts

  constructor() {
    for (const name of STAGES) {
      const item = document.createElement("li");
      const key = Object.assign(document.createElement("i"), { className: `s-${name}` });
      item.append(key, `${name} `, Object.assign(document.createElement("span"), { id: `ms-${name}` }));
      element("legend").append(item);
    }
  }

  /** Count a shown frame of the given age in seconds, null if that is not known. */
  frame(at, latency) {
    this.#shown.push({ at, latency });
  }

  /** Bring what is measured here up to date, twice a second. */
  tick(now) {
    if (now < this.#painted + 0.5) return;
    this.#painted = now;
    this.#shown = this.#shown.filter(({ at }) => at > now - WINDOW);
    if (this.#shown.length < 2) return;
    const span = this.#shown.at(-1).at - this.#shown[0].at;
    const fps = span > 0 ? (this.#shown.length - 1) / Math.max(span, now - this.#shown[0].at) : 0;
    const { latency } = this.#shown.at(-1);
    this.fps = fps;
    this.#fps.add(fps);
    this.#write("value-fps", fps, fps.toFixed(1));
    if (latency === null) this.#write("value-latency", "", "–");
    else {
      this.#latency.add(latency);
      this.#write("value-latency", latency, latency.toFixed(2));
    }
  }

  /** Take the figures of a block; broken: edited frames that could not be read. */
  block(figures, broken = 0) {
    const { ms, kept_share: kept, moved_share: moved = 0 } = figures;
    const stages = STAGES.map((name) => ms?.[name] ?? 0);
    const total = stages.reduce((a, b) => a + b, 0);
    this.#kept.add(kept);
    this.#ms.add(stages);
    this.#write("value-kept", kept, (100 * kept).toFixed(0));
    this.#write("value-moved", moved, moved ? `${(100 * moved).toFixed(0)} % moved, ` : "");
    this.#write("value-ms", total, total.toFixed(0));
    element("value-kept").dataset.block = figures.block;
    STAGES.forEach((name, i) => { element(`ms-${name}`).textContent = rounded(stages[i]); });
    showRate(figures);
    const damaged = (figures.unusable ?? 0) + broken;
    const skipped = (figures.dropped ?? 0) - (figures.unusable ?? 0);
    element("sub-fps").textContent = `${skipped} frames skipped, ${figures.queue ?? 0} waiting${damaged ? `, ${damaged} damaged` : ""}`;
    if (figures.p50_ms != null && figures.p95_ms != null) {
      element("sub-latency").textContent = `on the server ${(figures.p50_ms / 1000).toFixed(2)} s, at times ${(figures.p95_ms / 1000).toFixed(2)} s`;
    }
    const { tokens } = figures;
    element("sub-kept").textContent = tokens ? `${Math.round(kept * tokens)} of ${tokens} patches computed anew` : "";
    if (figures.block >= this.#from) this.#compare(total);
  }

  /** Tell which method the blocks to come are made with; from which on, `changed` tells. */
  method(name, from = Infinity) {
    this.#method = name;
    this.#from = from;
  }

  /** Tell from which block a change holds; that one is computed whole. */
  changed(block) {
    this.#from = block + 1;
  }

  clear() {
    for (const plot of [this.#fps, this.#latency, this.#kept, this.#ms]) plot.clear();
    this.#shown = [];
    this.fps = null;
    showRate();
  }

  /** Forget what the methods cost; with another size it is not the same. */
  forgetSpeeds() {
    this.#speeds.clear();
  }

  redraw() {
    for (const plot of [this.#fps, this.#latency, this.#kept, this.#ms]) plot.draw();
  }

  #write(id, value, text) {
    element(id).textContent = text;
    element(id).dataset.value = value;
  }

  #compare(total) {
    const before = this.#speeds.get(this.#method) ?? total;
    this.#speeds.set(this.#method, 0.75 * before + 0.25 * total);
    const [reuse, full] = [this.#speeds.get("prune"), this.#speeds.get("full")];
    if (!reuse || !full) return;
    const ratio = full / reuse;
    element("compare").textContent = `Reuse ${reuse.toFixed(0)} ms a block, recompute all ${full.toFixed(0)} ms: ${ratio.toFixed(1)} times as fast.`;
  }
}
