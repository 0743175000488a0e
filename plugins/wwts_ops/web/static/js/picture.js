// Pictures: fetched and decoded before they are needed, then put on the page as they are; zoom and drag.
import { html, useLayoutEffect, useRef, useState } from "../vendor/htm-preact.js";
import { originalUrl, pictureUrl } from "./api.js";
import { titleOf } from "./format.js";

const KEPT = 120;
const CLOSE = 2.5; // what z zooms to
const MOST = 8;
const BLOWN_UP = 2; // times its own size a thumbnail is shown at most, until somebody zooms
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

const REST = { scale: null, x: 0, y: 0 }; // scale: of what fills the box; none: as the picture lies there

/**
 * The photo of `item`. original: fetch the original (only then) and show it, the thumbnail until it is there.
 * onState("loading" | "ready" | "failed" | "none"). onZoom(): somebody zooms in, and wants the original. zoomer: a ref
 * that gets {toggle(), zoomed(), by(factor), pan(x, y)} for the keys.
 */
export function Photo({ item, original, onState, onZoom, zoomer }) {
  const well = useRef(null);
  const view = useRef(REST);
  const shown = useRef(null);
  const latest = useRef(null); // zoom, for who listens from the first drawing on
  const [state, setState] = useState("loading");
  const [finer, setFiner] = useState(null); // how far the original is, while a thumbnail is shown
  const tell = (told) => {
    setState(told);
    onState(told);
  };

  /** At which scale the picture lies there: an original fills the box, a thumbnail only if it stays legible. */
  const rest = () => {
    const image = shown.current;
    if (!image || image.dataset.original === "yes") return 1;
    const fills = Math.min(well.current.clientWidth / image.naturalWidth, well.current.clientHeight / image.naturalHeight);
    return Math.min(1, BLOWN_UP / fills);
  };
  const place = () => {
    const { scale, x, y } = view.current;
    const at = scale ?? rest();
    if (shown.current) shown.current.style.transform = at === 1 && !x && !y ? "" : `translate(${x}px, ${y}px) scale(${at})`;
    well.current?.classList.toggle("zoomed", scale !== null);
  };
  const zoom = (scale, at = null) => {
    const box = well.current.getBoundingClientRect();
    const { x, y } = view.current;
    const before = view.current.scale ?? rest();
    const to = Math.min(MOST, scale);
    if (to <= rest()) {
      view.current = { ...view.current, ...REST };
      return place();
    }
    onZoom();
    // The point under the pointer stays where it is.
    const px = (at ? at.clientX - box.left : box.width / 2) - box.width / 2;
    const py = (at ? at.clientY - box.top : box.height / 2) - box.height / 2;
    view.current = within(box, { ...view.current, scale: to, x: px - ((px - x) * to) / before, y: py - ((py - y) * to) / before });
    return place();
  };
  const turn = (at) => zoom(view.current.scale === null ? CLOSE : 0, at);
  latest.current = zoom;
  const pan = (x, y) => {
    const now = view.current;
    view.current = within(well.current.getBoundingClientRect(), { ...now, x: now.x + x, y: now.y + y });
    place();
  };
  zoomer.current = {
    toggle: () => turn(),
    zoomed: () => view.current.scale !== null,
    by: (factor) => zoom((view.current.scale ?? rest()) * factor),
    pan: (x, y) => view.current.scale !== null && pan(x, y),
  };

  useLayoutEffect(() => {
    // From the thumbnail to its original the same part stays in sight.
    if (view.current.content !== item.content) view.current = { ...REST, content: item.content };
    const small = item.has_picture ? prefetch(item.content) : null;
    const large = original ? loaded(originalUrl(item.content)) : null;
    const both = [large, small].filter(Boolean);
    let gone = false;
    const settle = () => {
      if (gone) return;
      // The thumbnail stays while its original comes; another item's picture never does.
      const best = both.find((one) => one.state === "ready");
      show(well.current, shown, best?.image ?? null, item, best === large);
      if (view.current.scale !== null && view.current.scale < rest()) Object.assign(view.current, REST);
      place();
      if (best) setFiner(best === large ? null : large ? large.state : rest() < 1 ? "small" : null);
      else setFiner(null);
      if (best) tell("ready");
      else if (both.some((one) => one.state === "loading")) tell("loading");
      else tell(both.length ? "failed" : "none");
    };
    settle();
    for (const one of both) if (one.state === "loading") one.done.then(settle);
    return () => { gone = true; };
  }, [item.content, original]);

  useLayoutEffect(() => {
    const wheel = (event) => {
      event.preventDefault();
      latest.current((view.current.scale ?? rest()) * Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0018)), event);
    };
    const box = well.current;
    box.addEventListener("wheel", wheel, { passive: false });
    const resized = new ResizeObserver(place);
    resized.observe(box);
    return () => {
      box.removeEventListener("wheel", wheel);
      resized.disconnect();
    };
  }, []);

  const grab = (event) => {
    if (event.button !== 0 || view.current.scale === null) return;
    event.preventDefault();
    event.currentTarget.setPointerCapture(event.pointerId);
  };
  const drag = (event) => event.currentTarget.hasPointerCapture(event.pointerId) && pan(event.movementX, event.movementY);
  return html`<div class=${`well ${state}`} onPointerDown=${grab} onPointerMove=${drag}
    onDblClick=${turn}>
    <div class="canvas" ref=${well}></div>
    ${state === "loading" && html`<div class="shimmer" aria-hidden="true"></div>`}
    ${state === "none" && html`<${Missing} title="没有缩略图" text="按 o 看原图；看不清楚就跳过。" />`}
    ${state === "failed" && html`<${Missing} title=${original ? "原图打不开" : "图片没有载入"} text=${original ? "文件可能已被删除，或格式不能直接显示。" : "请检查网络，或按 o 看原图。"} />`}
    ${state === "ready" && FINER[finer] && html`<p class=${`finer ${finer}`} role="status" data-testid="finer">${FINER[finer]}</p>`}
  </div>`;
}

const FINER = { small: "按 z 放大看原图", loading: "正在取原图……", failed: "原图打不开，这是缩略图" };

const Missing = ({ title, text }) => html`<div class="missing"><svg width="56" height="56" viewBox="0 0 30 30" aria-hidden="true">
  <rect x="3" y="5" width="24" height="20" rx="2" /><circle cx="10" cy="12" r="2.5" /><path d="M4 23l8-7 5 4 4-3 6 5" /></svg>
  <b>${title}</b><span>${text}</span></div>`;

/** At most so far that the picture's frame still fills the box. */
function within(box, { scale, x, y, content }) {
  const most = { x: Math.max(0, (box.width * (scale - 1)) / 2), y: Math.max(0, (box.height * (scale - 1)) / 2) };
  const clamp = (value, limit) => Math.min(limit, Math.max(-limit, value));
  return { scale, x: clamp(x, most.x), y: clamp(y, most.y), content };
}

function show(well, shown, image, item, original) {
  if (image && shown.current === image && image.dataset.content === item.content) return;
  if (shown.current) delete shown.current.dataset.testid;
  shown.current = image;
  if (!image) {
    well.replaceChildren();
    return;
  }
  image.alt = `商品图片：${titleOf(item)}`;
  image.dataset.testid = "photo";
  image.dataset.content = item.content;
  image.dataset.original = original ? "yes" : "no";
  image.style.transform = "";
  well.replaceChildren(image);
}
