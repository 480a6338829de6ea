// The model's styles as buttons with pictures, and what a prompt was matched to.

const element = (id) => document.getElementById(id);
const spoken = (name) => name.replaceAll("-", " ");

export class Styles {
  #styles = [];
  #pictures = undefined; // one bitmap, a style a row; null if there is none
  #later = 0;

  /** chosen(prompt) is called when a style is picked; what is only passed over by keys is not. */
  constructor(chosen) {
    this.chosen = chosen;
    element("styles").addEventListener("keydown", (event) => this.#key(event));
  }

  /** Whether there are other styles than before. */
  offer(styles) {
    if (JSON.stringify(styles) === JSON.stringify(this.#styles) && styles.length) return false;
    this.#styles = styles;
    element("styles").replaceChildren(...styles.map((style) => this.#chip(style)));
    element("styles").hidden = !styles.length;
    this.#draw();
    return true;
  }

  /** Take the pictures of the styles, a Blob, or null if there are none. */
  async picture(blob) {
    this.#pictures = blob && await createImageBitmap(blob).catch(() => null);
    this.#draw();
  }

  /** The prompt that a page begins with. */
  get first() {
    return (this.#styles[1] ?? this.#styles[0])?.prompt ?? "";
  }

  /** Mark the style whose prompt this is; what it looks like, in words, or "". */
  mark(prompt) {
    const now = this.#styles.findIndex((style) => style.prompt === prompt);
    [...element("styles").children].forEach((chip, i) => {
      chip.setAttribute("aria-checked", String(i === now));
      chip.tabIndex = i === Math.max(now, 0) ? 0 : -1;
    });
    return this.#styles[now]?.summary ?? "";
  }

  /** Say which style a prompt was matched to, {name, score}, or none of those there are. */
  matched(style) {
    if (!this.#styles.length) element("match").textContent = "";
    else if (!style) element("match").textContent = "Matched to no style that this model knows: it may not follow.";
    else element("match").textContent = `Matched to the style ${spoken(style.name)}, ${style.score.toFixed(1)} of 1.`;
    element("match").classList.toggle("warn", this.#styles.length > 0 && !style);
  }

  #chip(style) {
    const chip = document.createElement("button");
    Object.assign(chip, { type: "button", title: style.summary ?? "" });
    chip.setAttribute("role", "radio");
    chip.dataset.testid = `style-${style.name}`;
    chip.dataset.prompt = style.prompt;
    // there from the start, so that nothing moves when the pictures come
    const picture = Object.assign(document.createElement("canvas"), { width: 112, height: 64 });
    chip.append(picture, Object.assign(document.createElement("span"), { textContent: spoken(style.name) }));
    chip.addEventListener("click", () => this.#choose(chip, 0));
    return chip;
  }

  #draw() {
    const bitmap = this.#pictures;
    const chips = [...element("styles").children];
    const none = bitmap === null || (bitmap && bitmap.height % chips.length > 0);
    chips.forEach((chip, i) => {
      const canvas = chip.querySelector("canvas");
      canvas.hidden = none;
      if (!bitmap || none) return;
      const height = bitmap.height / chips.length;
      Object.assign(canvas, { width: bitmap.width, height });
      canvas.getContext("2d").drawImage(bitmap, 0, -i * height);
      canvas.dataset.drawn = "";
    });
  }

  #choose(chip, wait) {
    element("prompt").value = chip.dataset.prompt;
    this.mark(chip.dataset.prompt);
    clearTimeout(this.#later);
    this.#later = setTimeout(() => this.chosen(chip.dataset.prompt), wait);
  }

  #key(event) {
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
}
