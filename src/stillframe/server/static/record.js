// Records a canvas, and a source's sound if that is wanted, to a WebM (or, on Safari, MP4) file with a
// running time. Knows no network.

import { named } from "./picture.js";
import { Sound } from "./sound.js";

const TYPES = ["video/webm;codecs=vp9", "video/webm;codecs=vp8", "video/webm", "video/mp4"];
const BITS = 6_000_000; // a second

const element = (id) => document.getElementById(id);

export class Recorder {
  #recorder = null;
  #timer = 0;
  #url = null;
  #sound = new Sound();
  #starting = false;

  /** source() is what is open, {kind, video, stream}. */
  constructor(canvas, source) {
    this.canvas = canvas;
    this.source = source;
    this.type = globalThis.MediaRecorder && TYPES.find((type) => MediaRecorder.isTypeSupported(type));
  }

  get active() {
    return this.#recorder !== null;
  }

  toggle() {
    if (this.active) this.stop();
    else this.#start();
  }

  stop() {
    this.#recorder?.stop();
  }

  /** The picture shown is so many seconds old, and the sound is to be as well. */
  late(seconds) {
    if (this.active) this.#sound.late(seconds);
  }

  /** There is another source. */
  switched() {
    if (this.active) this.#sound.follow(this.source());
  }

  async #start() {
    if (this.#starting) return;
    this.#starting = true;
    const parts = [];
    const stream = this.canvas.captureStream(30);
    const wanted = element("sound").checked ? this.source() : null;
    const heard = wanted && await this.#sound.track(wanted);
    if (heard) stream.addTrack(heard);
    this.#starting = false;
    const recorder = new MediaRecorder(stream, { mimeType: this.type, videoBitsPerSecond: BITS });
    recorder.ondataavailable = ({ data }) => data.size && parts.push(data);
    recorder.onstop = () => {
      stream.getTracks().forEach((track) => track.stop());
      this.#sound.close();
      this.#recorder = null;
      this.#show();
      this.#save(new Blob(parts, { type: this.type.split(";")[0] }));
    };
    recorder.start(1000);
    this.#recorder = recorder;
    const began = performance.now();
    this.#show(0);
    this.#timer = setInterval(() => this.#show((performance.now() - began) / 1000), 250);
  }

  #show(seconds = null) {
    const time = element("record-time");
    if (seconds === null) clearInterval(this.#timer);
    else time.textContent = `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
    time.hidden = seconds === null;
    element("record").setAttribute("aria-pressed", String(seconds !== null));
    element("record-label").textContent = seconds === null ? "Record" : "Stop recording";
  }

  /** Hand the file over at once, and leave a link for browsers that do not take it. */
  #save(blob) {
    if (this.#url) URL.revokeObjectURL(this.#url);
    this.#url = URL.createObjectURL(blob);
    const link = element("download");
    link.href = this.#url;
    link.download = named(blob.type.includes("mp4") ? "mp4" : "webm");
    link.hidden = false;
    link.click();
  }
}
