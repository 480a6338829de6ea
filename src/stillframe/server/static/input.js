// Buttons, keys and files that are dropped. Knows what they are called, and not what is done.

import { fullscreen } from "./picture.js";

const element = (id) => document.getElementById(id);
const TYPING = "textarea, select, input:not([type=range], [type=radio], [type=checkbox])";

function drops() {
  const stage = element("stage");
  const dragged = (event) => event.dataTransfer?.types.includes("Files");
  stage.addEventListener("dragover", (event) => {
    if (!dragged(event)) return;
    event.preventDefault();
    stage.classList.add("drop");
  });
  stage.addEventListener("dragleave", () => stage.classList.remove("drop"));
  stage.addEventListener("drop", (event) => {
    event.preventDefault();
    stage.classList.remove("drop");
    if (!event.dataTransfer.files.length) return;
    element("file").files = event.dataTransfer.files;
    document.querySelector("[name=kind][value=file]").click();
  });
}

/** Call what is to be done: {start, pause, stop, ...}; live() says whether there is a stream. */
export function connectInput(actions) {
  const keys = { " ": actions.pause, s: actions.snapshot, f: fullscreen };
  for (const id of ["start", "start-big"]) element(id).addEventListener("click", actions.start);
  for (const id of ["pause", "stop", "reset", "record", "smaller", "snapshot"]) element(id).addEventListener("click", actions[id]);
  element("fullscreen").addEventListener("click", fullscreen);
  for (const id of ["mirror", "rate", "smooth"]) element(id).addEventListener("change", actions.applySource);
  for (const id of ["source-kind", "device", "file"]) element(id).addEventListener("change", actions.switchSource);
  element("view").addEventListener("change", ({ target }) => { document.documentElement.dataset.view = target.value; });
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    const { target } = event;
    const key = event.key.toLowerCase();
    if (event.key === "Escape") {
      // the browser leaves the full screen with it
      if (document.fullscreenElement) return;
      if (target.matches(TYPING)) target.blur();
      else actions.stop();
    } else if (keys[key] && !target.matches(`${TYPING}, [type=checkbox], button, summary, a`) && actions.live()) {
      event.preventDefault();
      keys[key]();
    }
  });
  if (!navigator.mediaDevices?.getDisplayMedia) document.querySelector("[name=kind][value=screen]").disabled = true;
  drops();
}
