// Whether somebody is there: leases are kept for those who look, not for a tab that was left open.

const SIGNS = ["keydown", "pointerdown", "pointermove", "wheel", "scroll", "touchstart"];

const waiting = new Map(); // callback -> milliseconds after which somebody counts as having been away
let last = Date.now();

/** Whether there was a sign of somebody within the last so many milliseconds. */
const within = (milliseconds) => Date.now() - last <= milliseconds;

/** `callback()` at the first sign of somebody after none for so many milliseconds. */
function onReturn(milliseconds, callback) {
  waiting.set(callback, milliseconds);
  return () => waiting.delete(callback);
}

/**
 * Keeps leases while somebody looks: `renew()` a few times in a lease of so many milliseconds, when they come back, and
 * when the browser shows the page again; `leave()` when it is left. Nobody looks at what stands in a tab that was left:
 * others may have it. The value ends that.
 */
export function keep(lease, { renew, leave }) {
  const renewing = setInterval(() => within(lease) && renew(), Math.max(20_000, lease / 3));
  const unreturn = onReturn(lease, renew);
  const shownAgain = (event) => event.persisted && renew();
  addEventListener("pagehide", leave);
  addEventListener("pageshow", shownAgain);
  return () => {
    clearInterval(renewing);
    unreturn();
    removeEventListener("pagehide", leave);
    removeEventListener("pageshow", shownAgain);
  };
}

function seen() {
  const away = Date.now() - last;
  last = Date.now();
  for (const [callback, milliseconds] of waiting) if (away > milliseconds) callback();
}

for (const sign of SIGNS) addEventListener(sign, seen, { capture: true, passive: true });
document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && seen());
