// Sizes of the result: what the machine can do with each, which one is chosen where nobody has, and
// the next smaller one.

const element = (id) => document.getElementById(id);
const name = ({ width, height }) => `${width}×${height}`;
const rate = ({ fps }) => (fps >= 10 ? fps.toFixed(0) : fps.toFixed(1));

export class Sizes {
  #speeds = [];
  #chosen = null;
  #measuring = null;

  /** What is to be asked for, [width, height] of a picture that is wider than high; [] for the server's own. */
  get wanted() {
    const { value } = element("size");
    if (value) return value.split("×").map(Number);
    return this.#chosen ? [this.#chosen.width, this.#chosen.height] : [];
  }

  /** Ask what the machine can do; ask(path) brings the server's answer. Again, this waits for the first answer. */
  measure(ask) {
    this.#measuring ??= this.#ask(ask);
    return this.#measuring;
  }

  async #ask(ask) {
    element("size-note").textContent = "Measuring what this machine keeps up with.";
    try {
      const { sizes = [], chosen = null } = (await ask("api/speed")) ?? {};
      this.#speeds = sizes;
      this.#chosen = sizes[chosen] ?? null;
    } catch {
      // then it is the server's own size
    }
    // somebody else is edited for, maybe: ask once more another time
    if (!this.#speeds.length) this.#measuring = null;
    this.#show();
  }

  #show() {
    const select = element("size");
    const { value } = select;
    const chosen = this.#chosen;
    if (chosen) {
      const options = this.#speeds.map((speed) => new Option(`${name(speed)}, ${rate(speed)} fps`, name(speed)));
      select.replaceChildren(new Option(`Automatic: ${name(chosen)}`, ""), ...options);
      select.value = [...select.options].some((option) => option.value === value) ? value : "";
    }
    element("size-note").textContent = chosen ? this.#sentence(chosen) : "";
  }

  #sentence(chosen) {
    const next = this.#speeds[this.#speeds.indexOf(chosen) + 1];
    const costs = next ? `; ${name(next)} would be ${rate(next)} fps` : "";
    return `This machine makes ${name(chosen)} at ${rate(chosen)} fps where everything moves, faster where little does${costs}.`;
  }

  /** The next smaller size than one, {width, height, fps or null}, or null if there is none. */
  smaller(width, height) {
    const upright = height > width;
    const known = this.#speeds.length ? this.#speeds
      : [...element("size").options].filter(({ value }) => value).map(({ value }) => {
        const [w, h] = value.split("×").map(Number);
        return { width: w, height: h, fps: null };
      });
    const found = known.filter((size) => size.width * size.height < width * height * 0.9).at(-1);
    if (!found) return null;
    return upright ? { width: found.height, height: found.width, fps: found.fps } : found;
  }

  /** Ask for a size from now on. */
  choose({ width, height }) {
    const [w, h] = width < height ? [height, width] : [width, height];
    element("size").value = `${w}×${h}`;
  }
}
