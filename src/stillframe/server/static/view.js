// Pictures and maps on canvases. Knows neither where they come from nor when they are due.

const element = (id) => document.getElementById(id);

/** Share of a map's patches that were recomputed, 0 to 1. */
export function share({ bits }) {
  let sum = 0;
  for (const bit of bits) sum += bit;
  return bits.length ? sum / bits.length : 0;
}

export class View {
  #result = element("result").getContext("2d", { alpha: false });
  #matched = element("matched").getContext("2d", { alpha: false });
  #split = element("split-source").getContext("2d", { alpha: false });
  #overlay = element("overlay");
  #tint = element("result-map");
  #map = null;
  #drawn = "";

  constructor() {
    element("split").addEventListener("input", (event) => this.#divide(event.target.value));
    this.#divide(50);
  }

  /** Set the working size. */
  resize(width, height) {
    for (const { canvas } of [this.#result, this.#matched, this.#split]) Object.assign(canvas, { width, height });
    element("stage").style.setProperty("--aspect", width / height);
    this.clear();
  }

  /** Show one edited frame with its source and the patches that were recomputed for it. */
  show({ bitmap, source, map, slot, block }) {
    try {
      this.#result.drawImage(bitmap, 0, 0, this.#result.canvas.width, this.#result.canvas.height);
    } finally {
      bitmap.close();
    }
    if (source) {
      for (const context of [this.#matched, this.#split]) context.drawImage(source, 0, 0);
    }
    const key = `${block}/${slot}`;
    if (key !== this.#drawn) {
      this.#drawn = key;
      this.#map = map && { map, slot, block };
      this.#drawMap(this.#overlay);
      if (!this.#tint.hidden) this.#drawMap(this.#tint);
    }
  }

  /** Lay the patches over the result too, or not. */
  tint(on) {
    this.#tint.hidden = !on;
    if (on) this.#drawMap(this.#tint);
  }

  /** Forget the map. */
  clear() {
    this.#map = null;
    this.#drawn = "";
    for (const canvas of [this.#overlay, this.#tint]) canvas.width = canvas.width; // empties it
    delete this.#overlay.dataset.block;
    element("map-note").textContent = "";
    element("map-moved").hidden = true;
  }

  #divide(percent) {
    element("divider").style.left = `${percent}%`;
    element("split-source").style.clipPath = `inset(0 ${100 - percent}% 0 0)`;
  }

  #drawMap(canvas) {
    if (!this.#map) return;
    const { map: { S, h, w, bits, moved }, slot, block } = this.#map;
    const cell = Math.max(4, Math.min(32, Math.round(960 / w)));
    Object.assign(canvas, { width: w * cell, height: h * cell });
    const context = canvas.getContext("2d");
    const style = getComputedStyle(canvas);
    const [patch, shift] = ["--patch", "--moved"].map((name) => style.getPropertyValue(name).trim());
    context.strokeStyle = "rgb(255 255 255 / .12)";
    const first = slot * h * w;
    let [count, shifted] = [0, 0];
    for (let y = 0; y < h; y += 1) {
      for (let x = 0; x < w; x += 1) {
        const at = first + y * w + x;
        const off = !bits[at] && Boolean(moved?.[at]);
        count += bits[at];
        shifted += off;
        context.globalAlpha = bits[at] ? 0.46 : 0.28;
        context.fillStyle = bits[at] ? patch : shift;
        if (bits[at] || off) context.fillRect(x * cell, y * cell, cell, cell);
        context.globalAlpha = 1;
        context.strokeRect(x * cell + 0.5, y * cell + 0.5, cell, cell);
      }
    }
    Object.assign(canvas.dataset, { block, slot, frames: S, rows: h, columns: w, recomputed: count, moved: shifted });
    element("map-note").textContent = `${Math.round((100 * count) / (h * w))} %`;
    element("map-moved").hidden = !shifted;
    element("map-moved-share").textContent = `${Math.round((100 * shifted) / (h * w))} %`;
  }
}
