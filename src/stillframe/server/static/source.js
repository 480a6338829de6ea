// Where pictures come from: a camera, the screen or a video file, drawn at the working size and
// handed on at a steady rate. Knows no network.

/** What a failed request for pictures means, in one sentence. */
function inWords(error, kind) {
  const thing = kind === "screen" ? "The screen" : "The camera";
  if (error.name === "NotAllowedError") return `${thing} was not allowed; allow it in the browser and start again.`;
  if (error.name === "NotFoundError" || error.name === "OverconstrainedError") return "No such camera was found.";
  if (error.name === "NotReadableError") return `${thing} is in use by another program.`;
  return `${thing} did not start: ${error.message}`;
}

/** Cameras as [{id, label}]; labels are empty until one was allowed. */
export async function cameras() {
  const devices = (await navigator.mediaDevices?.enumerateDevices?.()) ?? [];
  return devices
    .filter((device) => device.kind === "videoinput" && device.deviceId)
    .map((device, i) => ({ id: device.deviceId, label: device.label || `Camera ${i + 1}` }));
}

export class Source {
  #video = document.createElement("video");
  #stream = null;
  #url = null;
  #timer = 0;
  #busy = false;

  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { alpha: false });
    this.mirror = false;
    this.rate = 15;
    this.skipped = 0;
    this.onended = () => {};
    Object.assign(this.#video, { muted: true, playsInline: true, loop: true });
  }

  /** Open a camera, the screen or a file; {kind, device, file}. Throws an Error with a sentence. */
  async open({ kind, device, file }) {
    this.close();
    if (kind === "file") {
      if (!file) throw new Error("Choose a video file first.");
      this.#url = URL.createObjectURL(file);
      this.#video.src = this.#url;
    } else {
      if (!navigator.mediaDevices) throw new Error("Browsers give camera and screen only to https or localhost pages.");
      try {
        this.#stream = kind === "screen"
          ? await navigator.mediaDevices.getDisplayMedia({ video: { frameRate: 30 }, audio: false })
          : await navigator.mediaDevices.getUserMedia({
            video: { deviceId: device ? { exact: device } : undefined, width: { ideal: 1280 }, height: { ideal: 720 }, frameRate: { ideal: 30 } },
            audio: false,
          });
      } catch (error) {
        throw new Error(inWords(error, kind), { cause: error });
      }
      this.#stream.getVideoTracks()[0].onended = () => this.onended();
      this.#video.srcObject = this.#stream;
    }
    try {
      await this.#video.play();
    } catch (error) {
      this.close();
      throw new Error(kind === "file" ? "The browser cannot play this file." : inWords(error, kind), { cause: error });
    }
  }

  /** Whether the picture is higher than wide. */
  get upright() {
    return this.#video.videoHeight > this.#video.videoWidth;
  }

  /** Set the working size. */
  resize(width, height) {
    Object.assign(this.canvas, { width, height });
    this.draw();
  }

  /** Draw the present picture, cut to the canvas's shape. */
  draw() {
    const { videoWidth: w, videoHeight: h } = this.#video;
    const { width, height } = this.canvas;
    if (!w || !h) return;
    const scale = Math.max(width / w, height / h);
    const [cutW, cutH] = [width / scale, height / scale];
    this.context.setTransform(this.mirror ? -1 : 1, 0, 0, 1, this.mirror ? width : 0, 0);
    this.context.drawImage(this.#video, (w - cutW) / 2, (h - cutH) / 2, cutW, cutH, 0, 0, width, height);
  }

  /** Call send(time, canvas) at the rate, whenever may() says so and the last call is done. */
  run(may, send) {
    clearTimeout(this.#timer);
    let due = performance.now();
    const tick = () => {
      const now = performance.now();
      due = Math.max(due + 1000 / this.rate, now); // a late tick is not made up for
      this.#timer = setTimeout(tick, due - now);
      this.draw();
      if (this.#busy || !may()) this.skipped += 1;
      else this.#hand(now / 1000, send);
    };
    tick();
  }

  /** Stop handing on; the source stays open. */
  halt() {
    clearTimeout(this.#timer);
  }

  close() {
    this.halt();
    this.#stream?.getTracks().forEach((track) => track.stop());
    this.#stream = null;
    this.#video.pause();
    this.#video.srcObject = null;
    this.#video.removeAttribute("src");
    if (this.#url) URL.revokeObjectURL(this.#url);
    this.#url = null;
  }

  async #hand(time, send) {
    this.#busy = true;
    try {
      await send(time, this.canvas);
    } finally {
      this.#busy = false;
    }
  }
}
