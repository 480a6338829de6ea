// Sound for a recording, as late as the picture is: of a file or a shared screen, or from a
// microphone. Nobody hears it. Knows no network.

const MOST = 20; // seconds that sound can be late
const STEP = 0.04; // seconds by which it may be out of step before it is moved
const MOVING = 0.1; // seconds in which it is

export class Sound {
  #context = null;
  #delay = null;
  #files = new WeakMap(); // video -> its node, of which there can be one
  #node = null;
  #microphone = null;

  /** A track of a source's sound, {kind, video, stream}; null if there is none, or it is not allowed. */
  async track(source) {
    this.#context ??= new AudioContext();
    await this.#context.resume();
    const target = this.#context.createMediaStreamDestination();
    this.#delay = this.#context.createDelay(MOST);
    this.#delay.connect(target);
    if (await this.follow(source)) return target.stream.getAudioTracks()[0];
    this.close();
    return null;
  }

  /** Take another source's sound for the same track; false if there is none. */
  async follow({ kind, video, stream }) {
    const delay = this.#delay;
    if (!delay) return false;
    this.#node?.disconnect();
    this.#node = null;
    const found = kind === "file" ? null : await this.#stream(kind, stream);
    if (delay !== this.#delay || (kind !== "file" && !found)) return false;
    this.#node = kind === "file" ? this.#ofFile(video) : this.#context.createMediaStreamSource(found);
    this.#node.connect(delay);
    return true;
  }

  /** Make it so late, in seconds. */
  late(seconds) {
    const time = this.#delay?.delayTime;
    if (!time || Math.abs(time.value - seconds) < STEP) return;
    time.cancelScheduledValues(0);
    time.setTargetAtTime(Math.min(seconds, MOST), this.#context.currentTime, MOVING / 3);
  }

  close() {
    this.#node?.disconnect();
    this.#microphone?.getTracks().forEach((track) => track.stop());
    this.#node = this.#delay = this.#microphone = null;
  }

  #ofFile(video) {
    if (!this.#files.has(video)) this.#files.set(video, this.#context.createMediaElementSource(video));
    video.muted = false; // it goes nowhere but here
    return this.#files.get(video);
  }

  async #stream(kind, stream) {
    const own = stream.getAudioTracks();
    if (own.length) return new MediaStream(own);
    if (kind !== "camera") return null;
    if (this.#microphone) return this.#microphone;
    try {
      // echoes are none of its business, and what is not speech is wanted, too
      const plain = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
      this.#microphone = await navigator.mediaDevices.getUserMedia({ audio: plain });
    } catch {
      return null;
    }
    return this.#microphone;
  }
}
