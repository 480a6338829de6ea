// When to show a picture: with every picture of the screen, or by a timer while the page is hidden.

import { Timer } from "./timer.js";

const HIDDEN = 1000 / 30; // ms between pictures while nobody sees them: they may be recorded

/** Call show() whenever a picture may be due. */
export function painting(show) {
  const timer = new Timer();
  const paint = () => {
    requestAnimationFrame(paint);
    show();
  };
  const paintHidden = () => {
    if (!document.hidden) return;
    timer.after(HIDDEN, paintHidden);
    show();
  };
  document.addEventListener("visibilitychange", paintHidden);
  paint();
}
