// Whether somebody is there: leases are kept for those who look, not for a tab that was left open.

const SIGNS = ["keydown", "pointerdown", "pointermove", "wheel", "scroll", "touchstart"];

const waiting = new Map(); // callback -> milliseconds after which somebody counts as having been away
let last = Date.now();

/** Whether there was a sign of somebody within the last so many milliseconds. */
export const within = (milliseconds) => Date.now() - last <= milliseconds;

/** `callback()` at the first sign of somebody after none for so many milliseconds. */
export function onReturn(milliseconds, callback) {
  waiting.set(callback, milliseconds);
  return () => waiting.delete(callback);
}

function seen() {
  const away = Date.now() - last;
  last = Date.now();
  for (const [callback, milliseconds] of waiting) if (away > milliseconds) callback();
}

for (const sign of SIGNS) addEventListener(sign, seen, { capture: true, passive: true });
document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && seen());
