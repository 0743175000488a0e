// Shortcuts. Pages and dialogs register layers; the newest one that knows a key gets it. Nothing fires while somebody
// writes (least of all in an IME), and a key held down counts once.
import { useLayoutEffect, useRef } from "../vendor/htm-preact.js";

const layers = [];
const WRITING = 'input:not([type="checkbox"]):not([type="radio"]), textarea, select, [contenteditable="true"]';
const PRESSABLE = 'button, a[href], summary, input, select, [role="button"], [role="checkbox"]';

/** "1", "x", "/", "?", "Enter", "Space", "Escape", "mod+z" ... as handlers are named. */
export function nameOf(event) {
  let key = event.key === " " ? "Space" : event.key;
  // A Chinese IME makes "、" of "/" and full-width signs of others, also where nobody writes.
  if (event.code === "Slash" && !event.shiftKey && key !== "?") key = "/";
  if (key.length === 1) key = key.normalize("NFKC").toLowerCase();
  return event.ctrlKey || event.metaKey ? `mod+${key}` : key;
}

/** True while an IME composes: such keys belong to it alone. */
export const composing = (event) => event.isComposing || event.keyCode === 229 || event.key === "Process";

/**
 * Listens while mounted. `handlers[name](event)`; `handlers.letter` gets letters without a handler of their own.
 * modal: layers below hear nothing. writing: names that work in text fields too.
 */
export function useKeys(handlers, { modal = false, writing = [] } = {}) {
  const layer = useRef({}).current;
  Object.assign(layer, { handlers, modal, writing });
  useLayoutEffect(() => {
    layers.push(layer);
    return () => layers.splice(layers.indexOf(layer), 1);
  }, []);
}

function dispatch(event) {
  if (event.defaultPrevented || event.altKey || composing(event)) return;
  const name = nameOf(event);
  const target = event.target instanceof Element ? event.target : document.body;
  const writing = target.closest(WRITING) !== null;
  const native = (name === "Enter" || name === "Space") && target.closest(PRESSABLE) !== null;
  // A sheet of filters that hangs open has keys of its own.
  if (native || target.closest('[role="dialog"]')) return;
  for (const layer of [...layers].reverse()) {
    const handler = layer.handlers[name] ?? (/^[a-z]$/.test(name) ? layer.handlers.letter : undefined);
    if (handler && (!writing || layer.writing.includes(name))) {
      event.preventDefault();
      if (!event.repeat) handler(event);
      return;
    }
    if (layer.modal) return;
  }
}

addEventListener("keydown", dispatch);
