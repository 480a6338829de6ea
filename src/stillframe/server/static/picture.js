// The result as a whole screen, and as a file.

const element = (id) => document.getElementById(id);

/** A file's name with the time in it. */
export function named(kind) {
  return `stillframe-${new Date().toISOString().slice(0, 19).replace(/[:T]/g, "-")}.${kind}`;
}

/** Save what the result shows as PNG; say(text) is called with what became of it. */
export async function snapshot(say) {
  const blob = await new Promise((done) => element("result").toBlob(done, "image/png"));
  if (!blob) return;
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: named("png") });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // the browser reads it meanwhile
  say("The picture was saved.");
}

/** Let the result fill the screen, or no more. */
export async function fullscreen() {
  const pane = element("result").closest(".frame");
  if (document.fullscreenElement) await document.exitFullscreen();
  else await pane.requestFullscreen?.();
}
