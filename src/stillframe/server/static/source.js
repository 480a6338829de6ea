// Where pictures come from: a camera, the screen or a video file, drawn at the working size and
// handed on at a steady rate, also while the page is hidden. Knows no network.

import { Timer } from "./timer.js";

/** What a failed request for pictures means, in one sentence. */
function inWords(error, kind) {
  const thing = kind === "screen" ? "The screen" : "The camera";
  if (error.name === "NotAllowedError" && kind === "screen") return "No screen was shared.";
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

/** A camera's pictures, or the screen's. */
function capture(kind, device, sound = false) {
  const { mediaDevices } = navigator;
  if (kind === "screen") return mediaDevices.getDisplayMedia({ video: { frameRate: 30 }, audio: sound });
  const wanted = { width: { ideal: 1280 }, height: { ideal: 720 }, frameRate: { ideal: 30 } };
  return mediaDevices.getUserMedia({ video: { deviceId: device ? { exact: device } : undefined, ...wanted }, audio: false });
}

/** What a source holds: {kind, device, video, stream, url}. */
function release({ video, stream, url }) {
  stream?.getTracks().forEach((track) => track.stop());
  video.pause();
  video.srcObject = null;
  video.removeAttribute("src");
  if (url) URL.revokeObjectURL(url);
}

export class Source {
  #now = null; // what is open
  #turn = 0; // counts what was opened and closed
  #timer = new Timer();
  #newest = 0; // time of the latest picture, in ms
  #busy = false;

  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { alpha: false });
    this.mirror = false;
    this.rate = 15;
    this.skipped = 0;
    this.onended = () => {};
  }

  /** What is open: "camera", "screen", "file" or null; and the camera that was asked for. */
  get kind() {
    return this.#now?.kind ?? null;
  }

  /** {kind, video, stream} of what is open, or null. */
  get now() {
    return this.#now;
  }

  get device() {
    return this.#now?.device ?? "";
  }

  /** Open a camera, the screen or a file; {kind, device, file, sound}, the last for a screen. What was open before is closed once
      that has worked, and goes on if it has not. Throws an Error with a sentence; false if another
      call, or `close`, came meanwhile. */
  async open({ kind, device, file, sound }) {
    this.#turn += 1;
    const turn = this.#turn;
    const video = Object.assign(document.createElement("video"), { muted: true, playsInline: true, loop: true });
    const fresh = { kind, device, video, stream: null, url: null };
    if (kind === "file") {
      if (!file) throw new Error("Choose a video file first.");
      fresh.url = URL.createObjectURL(file);
      video.src = fresh.url;
    } else {
      if (!navigator.mediaDevices) throw new Error("Browsers give camera and screen only to https or localhost pages.");
      fresh.stream = await this.#captured(kind, device, sound);
      video.srcObject = fresh.stream;
    }
    try {
      await video.play();
    } catch (error) {
      release(fresh);
      throw new Error(kind === "file" ? "The browser cannot play this file." : inWords(error, kind), { cause: error });
    }
    if (turn !== this.#turn) {
      release(fresh);
      return false;
    }
    this.#replace(fresh);
    return true;
  }

  /** A camera's pictures, or the screen's; where only one camera works at a time, ours makes room. */
  async #captured(kind, device, sound) {
    const mine = this.#now;
    try {
      return await capture(kind, device, sound);
    } catch (error) {
      if (kind !== "camera" || error.name !== "NotReadableError" || mine?.kind !== "camera") throw new Error(inWords(error, kind), { cause: error });
    }
    mine.stream.getTracks().forEach((track) => track.stop());
    try {
      return await capture(kind, device);
    } catch (error) {
      await this.#again(mine);
      throw new Error(inWords(error, kind), { cause: error });
    }
  }

  /** Start a camera anew that had to make room in vain; if it does not come back, that is the end. */
  async #again(mine) {
    try {
      mine.stream = await capture(mine.kind, mine.device);
      this.#listen(mine);
      mine.video.srcObject = mine.stream;
      await mine.video.play();
    } catch {
      if (mine === this.#now) this.onended();
    }
    if (mine !== this.#now) release(mine);
  }

  #replace(fresh) {
    if (this.#now) release(this.#now);
    this.#now = fresh;
    if (fresh.stream) this.#listen(fresh);
  }

  #listen(mine) {
    mine.stream.getVideoTracks()[0].onended = () => mine === this.#now && this.onended();
  }

  /** Whether the picture is higher than wide. */
  get upright() {
    return Boolean(this.#now) && this.#now.video.videoHeight > this.#now.video.videoWidth;
  }

  /** Set the working size. */
  resize(width, height) {
    Object.assign(this.canvas, { width, height });
    this.draw();
  }

  /** Draw the present picture, cut to the canvas's shape. */
  draw() {
    const { width, height } = this.canvas;
    const { videoWidth: w, videoHeight: h } = this.#now?.video ?? {};
    if (!w || !h) return;
    const scale = Math.max(width / w, height / h);
    const [cutW, cutH] = [width / scale, height / scale];
    this.context.setTransform(this.mirror ? -1 : 1, 0, 0, 1, this.mirror ? width : 0, 0);
    this.context.drawImage(this.#now.video, (w - cutW) / 2, (h - cutH) / 2, cutW, cutH, 0, 0, width, height);
  }

  /** Call send(time, canvas) at the rate, whenever may() says so and the last call is done. */
  run(may, send) {
    let due = performance.now();
    const tick = () => {
      const now = performance.now();
      due = Math.max(due + 1000 / this.rate, now); // a late tick is not made up for
      this.#timer.after(due - now, tick);
      this.draw();
      if (this.#busy || !may()) this.skipped += 1;
      else {
        this.#newest = Math.max(now, this.#newest + 1); // some browsers' clocks stand still for long
        this.#hand(this.#newest / 1000, send);
      }
    };
    tick();
  }

  /** Stop handing on; the source stays open. */
  halt() {
    this.#timer.cancel();
  }

  close() {
    this.halt();
    this.#turn += 1;
    if (this.#now) release(this.#now);
    this.#now = null;
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
