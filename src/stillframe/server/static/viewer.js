// The picture alone, for a browser source: watches the newest session, or ?session=ID. Frames come a block
// at a time and are drawn at the pace of their times. Calls again, with a growing pause, for as long as it is open.

import { parseMessage } from "./protocol.js";

const LONGEST_PAUSE = 10_000;
const SPEED_UP = 0.97; // a delay that was needed once wears off
const MOST_WAITING = 120;

const token = new URLSearchParams(location.hash.slice(1)).get("token");
const session = new URLSearchParams(location.search).get("session");
// the address that is shown, copied and remembered holds no token
if (token) history.replaceState(null, "", location.pathname + location.search);

const canvas = document.getElementById("picture");
const context = canvas.getContext("2d");
const waiting = []; // {time, jpeg}
let due = 0;
let before = 0;
let drawing = false;

async function draw() {
  if (drawing) return;
  drawing = true;
  while (waiting.length) {
    const { time, jpeg } = waiting.shift();
    const bitmap = await createImageBitmap(jpeg).catch(() => null);
    if (!bitmap) continue; // one that is damaged
    const step = Math.min(Math.max(time - before, 0), 1);
    before = time;
    due = Math.max(performance.now(), due + 1000 * SPEED_UP * step);
    await new Promise((done) => setTimeout(done, due - performance.now()));
    if (canvas.width !== bitmap.width || canvas.height !== bitmap.height) {
      Object.assign(canvas, { width: bitmap.width, height: bitmap.height });
    }
    context.drawImage(bitmap, 0, 0);
    bitmap.close();
    canvas.dataset.frames = Number(canvas.dataset.frames ?? 0) + 1;
  }
  drawing = false;
}

function watch(pause) {
  const url = new URL("watch", document.baseURI);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  url.search = "";
  const socket = new WebSocket(url);
  socket.binaryType = "arraybuffer";
  socket.onopen = () => socket.send(JSON.stringify({ type: "watch", token, session }));
  socket.onmessage = ({ data }) => {
    pause = 500;
    const message = parseMessage(data);
    if (message.reason) console.warn(message.reason.text);
    if (!message.jpeg) return;
    waiting.push(message);
    if (waiting.length > MOST_WAITING) waiting.shift();
    draw();
  };
  socket.onclose = () => setTimeout(() => watch(Math.min(2 * pause, LONGEST_PAUSE)), pause);
}

watch(500);
