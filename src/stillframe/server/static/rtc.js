// The live protocol over WebRTC: pictures as video tracks, all else over a data channel. Of the shape
// of `Connection` in protocol.js. Knows no controls; whose picture is whose it asks the clock.

import { Clock } from "./clock.js";
import { parseMessage } from "./protocol.js";

const GATHERING = 3000; // ms after which the addresses found so far must do
const SILENCE = 5000; // ms without an answer from the other side after which it counts as lost
const MOST_WAITING = 192 * 1024;
const LOST = "The connection to the server was lost.";

/** Whether this browser can do it: frames, and whose they are. */
export const possible = () =>
  ["RTCPeerConnection", "RTCRtpScriptTransform"].every((name) => name in window)
  && "requestVideoFrameCallback" in HTMLVideoElement.prototype
  && "captureStream" in HTMLCanvasElement.prototype;

/** One connection. `on` holds: ready, frame(time or null, bitmap), map, telemetry, updated, notice, closed. */
export class RtcConnection {
  #on;
  #peer = new RTCPeerConnection({ iceServers: [] }); // nobody outside is asked
  #channel;
  #sender;
  #track = null;
  #video = Object.assign(document.createElement("video"), { muted: true, playsInline: true });
  #worker = new Worker(new URL("stamps.js", import.meta.url));
  #clock = new Clock();
  #token;
  #name = null; // by which the server knows it
  #over = false;
  #reason = null; // {state, text} once the server has told why it will close
  #silence = 0;

  constructor(hello, on) {
    this.#on = on;
    this.#token = hello.token;
    this.#channel = this.#peer.createDataChannel("stillframe");
    this.#channel.binaryType = "arraybuffer";
    this.#channel.onmessage = ({ data }) => this.#heard(data);
    this.#channel.onclose = () => this.#closed("ended", "The server ended the stream.");
    const way = this.#peer.addTransceiver("video", { direction: "sendrecv" });
    this.#sender = way.sender;
    way.sender.transform = new RTCRtpScriptTransform(this.#worker, { side: "sent" });
    way.receiver.transform = new RTCRtpScriptTransform(this.#worker, { side: "came" });
    this.#worker.onmessage = ({ data: { side, tick } }) => this.#clock[side](tick, performance.now() / 1000);
    this.#peer.ontrack = ({ track }) => this.#show(track);
    this.#peer.onconnectionstatechange = () => this.#changed();
    this.#call(hello);
  }

  /** Whether a frame may go now; the browser leaves out what the line cannot take. */
  get clear() {
    return !this.#over && this.#channel.readyState === "open" && this.#peer.connectionState === "connected";
  }

  /** Send {type, ...}; nothing happens on a closed line. */
  tell(message) {
    const { readyState, bufferedAmount } = this.#channel;
    if (readyState === "open" && bufferedAmount < MOST_WAITING) this.#channel.send(JSON.stringify(message));
  }

  /** Send what the canvas holds, drawn at a time in seconds. */
  async frame(time, canvas) {
    if (!this.clear) return false;
    this.#clock.requested(time);
    if (!this.#track) {
      // it takes a first picture on its own
      [this.#track] = canvas.captureStream(0).getVideoTracks();
      await this.#sender.replaceTrack(this.#track);
    } else this.#track.requestFrame();
    return true;
  }

  /** Say goodbye and close; `closed` is not called. */
  bye() {
    this.#over = true;
    this.#leave();
    this.#free();
  }

  async #call(hello) {
    try {
      await this.#peer.setLocalDescription();
      await this.#gathered();
      const { sdp, type } = this.#peer.localDescription;
      const answer = await fetch("webrtc/offer", { method: "POST", body: JSON.stringify({ ...hello, sdp, type }) });
      const told = await answer.json().catch(() => ({}));
      if (!answer.ok) {
        const words = { 401: "The token is missing or wrong.", 403: "The server did not accept this page." };
        const text = told.detail ?? words[answer.status] ?? "The server had a fault.";
        this.#closed(answer.status === 503 ? "refused" : "ended", String(text));
        return;
      }
      this.#name = told.name;
      if (this.#over) this.#leave(); // goodbye was said meanwhile
      else await this.#peer.setRemoteDescription(told);
    } catch {
      this.#closed("ended", LOST, true);
    }
  }

  /** Wait until the browser has found its own addresses. */
  async #gathered() {
    const { promise, resolve } = Promise.withResolvers();
    const look = () => this.#peer.iceGatheringState === "complete" && resolve();
    this.#peer.onicegatheringstatechange = look;
    look();
    const late = setTimeout(resolve, GATHERING);
    await promise;
    clearTimeout(late);
  }

  #heard(data) {
    if (this.#over) return;
    const message = parseMessage(data);
    if (message.reason) this.#reason = message.reason;
    else if (message.map) {
      const time = this.#clock.ofMap(message.time);
      if (time !== null) this.#on.map(time, message.map);
    } else if (message.type) this.#on[message.type](message);
  }

  /** Hand on the frames of the server's track as they appear. */
  #show(track) {
    this.#video.srcObject = new MediaStream([track]);
    this.#video.play().catch(() => {}); // closed before it began
    const next = (_, { rtpTimestamp }) => {
      if (this.#over) return;
      this.#video.requestVideoFrameCallback(next);
      const time = rtpTimestamp === undefined ? null : this.#clock.ofResult(rtpTimestamp);
      this.#on.frame(time, createImageBitmap(this.#video));
    };
    this.#video.requestVideoFrameCallback(next);
  }

  #changed() {
    const state = this.#peer.connectionState;
    clearTimeout(this.#silence);
    if (state === "failed" || state === "closed") this.#closed("ended", LOST, true);
    else if (state === "disconnected") this.#silence = setTimeout(() => this.#closed("ended", LOST, true), SILENCE);
  }

  #closed(state, text, lost = false) {
    if (this.#over) return;
    this.#over = true;
    this.#leave(); // it may not know yet
    this.#free();
    this.#on.closed(this.#reason ?? { state, text, lost });
  }

  /** Tell the server by name: what is still in the line may never leave it. */
  #leave() {
    if (!this.#name) return;
    const headers = this.#token ? { Authorization: `Bearer ${this.#token}` } : {};
    fetch(`webrtc/${this.#name}`, { method: "DELETE", keepalive: true, headers }).catch(() => {}); // gone
    this.#name = null;
  }

  #free() {
    clearTimeout(this.#silence);
    this.#track?.stop();
    this.#video.srcObject = null;
    this.#peer.close();
    this.#worker.terminate();
  }
}
