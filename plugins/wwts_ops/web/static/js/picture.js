// Pictures: fetched and decoded before they are needed, then put on the page as they are; zoom and drag.
import { html, useLayoutEffect, useRef, useState } from "../vendor/htm-preact.js";
import { originalUrl, pictureUrl } from "./api.js";

const KEPT = 120;
const CLOSE = 2.5; // what z zooms to
const MOST = 8;
const cache = new Map();

/** {image, state: "loading" | "ready" | "failed", done: promise} of a thumbnail; asked twice, fetched once. */
export function prefetch(content) {
  const kept = cache.get(content);
  if (kept && kept.state !== "failed") return kept;
  const entry = loaded(pictureUrl(content));
  cache.delete(content);
  cache.set(content, entry);
  for (const old of [...cache.keys()].slice(0, Math.max(0, cache.size - KEPT))) cache.delete(old);
  return entry;
}

function loaded(address) {
  const image = new Image();
  const entry = { image, state: "loading" };
  image.decoding = "sync"; // it is decoded by then: never a frame without it
  image.draggable = false;
  image.src = address;
  entry.done = image.decode().then(
    () => { entry.state = "ready"; },
    () => { entry.state = "failed"; },
  );
  return entry;
}

/**
 * The photo of `item`. original: show the original bytes instead (fetched only then). onState("loading" | "ready" |
 * "failed" | "none"). zoomer: a ref that gets {toggle(), zoomed(), by(factor), pan(x, y)} for the
 * keys.
 */
export function Photo({ item, original, onState, zoomer }) {
  const well = useRef(null);
  const view = useRef({ scale: 1, x: 0, y: 0 });
  const shown = useRef(null);
  const [state, setState] = useState("loading");
  const tell = (told) => {
    setState(told);
    onState(told);
  };

  const place = () => {
    const { scale, x, y } = view.current;
    if (shown.current) shown.current.style.transform = scale === 1 ? "" : `translate(${x}px, ${y}px) scale(${scale})`;
    well.current?.classList.toggle("zoomed", scale !== 1);
  };
  const zoom = (scale, at = null) => {
    const box = well.current.getBoundingClientRect();
    const { scale: before, x, y } = view.current;
    const to = Math.min(MOST, Math.max(1, scale));
    // The point under the pointer stays where it is.
    const px = (at ? at.clientX - box.left : box.width / 2) - box.width / 2;
    const py = (at ? at.clientY - box.top : box.height / 2) - box.height / 2;
    view.current = within(box, { ...view.current, scale: to, x: px - ((px - x) * to) / before, y: py - ((py - y) * to) / before });
    place();
  };
  const pan = (x, y) => {
    const now = view.current;
    view.current = within(well.current.getBoundingClientRect(), { ...now, x: now.x + x, y: now.y + y });
    place();
  };
  zoomer.current = {
    toggle: () => zoom(view.current.scale === 1 ? CLOSE : 1),
    zoomed: () => view.current.scale > 1,
    by: (factor) => zoom(view.current.scale * factor),
    pan: (x, y) => view.current.scale > 1 && pan(x, y),
  };

  useLayoutEffect(() => {
    // From the thumbnail to its original the same part stays in sight.
    if (view.current.content !== item.content) view.current = { scale: 1, x: 0, y: 0, content: item.content };
    if (!item.has_picture && !original) {
      show(well.current, shown, null);
      tell("none");
      return undefined;
    }
    let gone = false;
    const entry = original ? loaded(originalUrl(item.content)) : prefetch(item.content);
    const settle = () => {
      if (gone) return;
      if (entry.state === "ready") show(well.current, shown, entry.image, item, original);
      place();
      tell(entry.state);
    };
    if (entry.state === "ready") settle();
    else {
      // The thumbnail stays while its original comes; another item's picture never does.
      if (!original) show(well.current, shown, null);
      tell("loading");
      entry.done.then(settle);
    }
    return () => { gone = true; };
  }, [item.content, original]);

  useLayoutEffect(() => {
    const wheel = (event) => {
      event.preventDefault();
      zoom(view.current.scale * Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0018)), event);
    };
    well.current.addEventListener("wheel", wheel, { passive: false });
    const box = well.current;
    return () => box.removeEventListener("wheel", wheel);
  }, []);

  const grab = (event) => {
    if (event.button !== 0 || view.current.scale === 1) return;
    event.preventDefault();
    event.currentTarget.setPointerCapture(event.pointerId);
  };
  const drag = (event) => event.currentTarget.hasPointerCapture(event.pointerId) && pan(event.movementX, event.movementY);
  return html`<div class=${`well ${state}`} onPointerDown=${grab} onPointerMove=${drag}
    onDblClick=${(event) => zoom(view.current.scale === 1 ? CLOSE : 1, event)}>
    <div class="canvas" ref=${well}></div>
    ${state === "loading" && html`<div class="shimmer" aria-hidden="true"></div>`}
    ${state === "none" && html`<${Missing} title="没有缩略图" text="按 o 看原图；看不清楚就跳过。" />`}
    ${state === "failed" && html`<${Missing} title=${original ? "原图打不开" : "图片没有载入"} text=${original ? "文件可能已被删除，或格式不能直接显示。按 o 回到缩略图。" : "请检查网络，或按 o 看原图。"} />`}
  </div>`;
}

const Missing = ({ title, text }) => html`<div class="missing"><svg width="56" height="56" viewBox="0 0 30 30" aria-hidden="true">
  <rect x="3" y="5" width="24" height="20" rx="2" /><circle cx="10" cy="12" r="2.5" /><path d="M4 23l8-7 5 4 4-3 6 5" /></svg>
  <b>${title}</b><span>${text}</span></div>`;

/** At most so far that the picture's frame still fills the box. */
function within(box, { scale, x, y, content }) {
  const most = { x: (box.width * (scale - 1)) / 2, y: (box.height * (scale - 1)) / 2 };
  const clamp = (value, limit) => Math.min(limit, Math.max(-limit, value));
  return { scale, x: clamp(x, most.x), y: clamp(y, most.y), content };
}

function show(well, shown, image, item, original) {
  if (shown.current) delete shown.current.dataset.testid;
  shown.current = image;
  if (!image) return well.replaceChildren();
  image.alt = item.title ? `商品图片：${item.title}` : "商品图片";
  image.dataset.testid = "photo";
  image.dataset.content = item.content;
  image.dataset.original = original ? "yes" : "no";
  image.style.transform = "";
  well.replaceChildren(image);
}
