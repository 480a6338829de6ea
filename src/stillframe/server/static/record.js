// Records a canvas to a WebM (or, on Safari, MP4) file with a running time. Knows no network.

const TYPES = ["video/webm;codecs=vp9", "video/webm;codecs=vp8", "video/webm", "video/mp4"];
const BITS = 6_000_000; // a second

const element = (id) => document.getElementById(id);

export class Recorder {
  #recorder = null;
  #timer = 0;
  #url = null;

  constructor(canvas) {
    this.canvas = canvas;
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

  #start() {
    const parts = [];
    const stream = this.canvas.captureStream(30);
    const recorder = new MediaRecorder(stream, { mimeType: this.type, videoBitsPerSecond: BITS });
    recorder.ondataavailable = ({ data }) => data.size && parts.push(data);
    recorder.onstop = () => {
      stream.getTracks().forEach((track) => track.stop());
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
    const stamp = new Date().toISOString().slice(0, 19).replace(/[:T]/g, "-");
    const link = element("download");
    link.href = this.#url;
    link.download = `stillframe-${stamp}.${blob.type.includes("mp4") ? "mp4" : "webm"}`;
    link.hidden = false;
    link.click();
  }
}
