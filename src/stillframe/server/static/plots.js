// Small plots of the last minute or so: a line, an area or stacked bars. Knows no units.

const LENGTH = 90;

/** Numbers to draw; each entry of `values` is a number, or an array for stacked bars. */
export class Plot {
  #values = [];
  #pending = false;

  /** colours: names of CSS variables; most: a fixed top of the scale, else the largest value. */
  constructor(canvas, { colours = ["--accent"], bars = false, most = null } = {}) {
    Object.assign(this, { canvas, colours, bars, most });
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  add(value) {
    this.#values.push(value);
    if (this.#values.length > LENGTH) this.#values.shift();
    this.draw();
  }

  clear() {
    this.#values = [];
    this.draw();
  }

  /** Draw with the next picture of the screen. */
  draw() {
    if (this.#pending) return;
    this.#pending = true;
    requestAnimationFrame(() => {
      this.#pending = false;
      this.#paint();
    });
  }

  #paint() {
    const { canvas } = this;
    const ratio = devicePixelRatio || 1;
    const [w, h] = [canvas.clientWidth, canvas.clientHeight];
    Object.assign(canvas, { width: Math.round(w * ratio), height: Math.round(h * ratio) });
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    const style = getComputedStyle(canvas);
    const colour = (name) => style.getPropertyValue(name).trim();
    context.fillStyle = colour("--line");
    context.fillRect(0, h - 1, w, 1);
    if (!this.#values.length) return;
    const sums = this.#values.map((value) => (Array.isArray(value) ? value.reduce((a, b) => a + b, 0) : value));
    const top = this.most ?? (Math.max(...sums) * 1.12 || 1);
    const y = (value) => (h - 1) * (1 - Math.min(value, top) / top);
    const step = w / (LENGTH - 1);
    const x = (i) => w - (this.#values.length - 1 - i) * step;
    if (this.bars) this.#paintBars(context, x, y, step, this.colours.map(colour));
    else this.#paintLine(context, x, y, h, colour(this.colours[0]));
  }

  #paintBars(context, x, y, step, colours) {
    this.#values.forEach((parts, i) => {
      let sum = 0;
      parts.forEach((part, k) => {
        context.fillStyle = colours[k];
        context.fillRect(x(i) - step, y(sum + part), step * 0.82, y(sum) - y(sum + part));
        sum += part;
      });
    });
  }

  #paintLine(context, x, y, h, colour) {
    context.beginPath();
    this.#values.forEach((value, i) => context.lineTo(x(i), y(value)));
    Object.assign(context, { strokeStyle: colour, lineWidth: 1.75, lineJoin: "round" });
    context.stroke();
    context.lineTo(x(this.#values.length - 1), h);
    context.lineTo(x(0), h);
    Object.assign(context, { globalAlpha: 0.14, fillStyle: colour });
    context.fill();
  }
}
