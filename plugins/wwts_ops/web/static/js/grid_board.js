// Up to 50 thumbnails of one label: which are wrong, which were seen at all.

import { html, useEffect, useLayoutEffect, useRef, useState } from "../vendor/htm-preact.js";
import { number, picture, whole } from "./format.js";

const SEEN_SHARE = 0.6; // of a thumbnail must have been in view
const SHARED_SKUS = 20; // the server asks about pictures on more than so many

/** Contents whose picture is loaded and has been in view. Grows only; begins anew with other `items`. */
export function useSeen(items) {
  const [seen, setSeen] = useState(() => new Set());
  const state = useRef(null);
  if (state.current?.items !== items) state.current = { items, inView: new Set(), loaded: new Set(), seen: new Set() };
  const look = () => {
    const { inView, loaded, seen: before } = state.current;
    const now = [...inView].filter((content) => loaded.has(content));
    if (now.every((content) => before.has(content))) return;
    state.current.seen = new Set([...before, ...now]);
    setSeen(state.current.seen);
  };
  const observer = useRef(null);
  useLayoutEffect(() => {
    setSeen(state.current.seen);
    observer.current = new IntersectionObserver(
      (entries) => {
        for (const { isIntersecting, target } of entries)
          if (isIntersecting) state.current.inView.add(target.dataset.content);
        look();
      },
      { threshold: SEEN_SHARE },
    );
    return () => observer.current.disconnect();
  }, [items]);
  const watch = (node) => node && observer.current?.observe(node);
  const loaded = (content) => {
    state.current.loaded.add(content);
    look();
  };
  return { seen: state.current.seen.size >= seen.size ? state.current.seen : seen, watch, loaded };
}

function Cell({ item, place, isWrong, isSeen, isFirst, onToggle, onFocus, seen }) {
  const node = useRef(null);
  const [broken, setBroken] = useState(!item.has_picture);
  useEffect(() => seen.watch(node.current), [item.content]);
  const title = item.title || item.image_id;
  const said = isWrong ? "标错" : isSeen ? "正确" : broken ? "没有图片，不作答" : "还没看到，不作答";
  return html`<li><button type="button" ref=${node} class=${`cell${isWrong ? " is-wrong" : ""}${isSeen || isWrong ? "" : " is-unseen"}`} data-testid="grid-item" data-content=${item.content}
    data-state=${isWrong ? "wrong" : isSeen ? "right" : "unseen"} aria-pressed=${isWrong} aria-label=${`第 ${place + 1} 张，${title}，${said}`} tabindex=${isFirst ? 0 : -1}
    onClick=${(event) => onToggle(place, event.shiftKey)} onFocus=${() => onFocus(place)} onMouseEnter=${() => onFocus(place, true)}>
    ${
      broken
        ? html`<span class="cell-none">没有图片</span>`
        : html`<img src=${picture(item.content)} alt="" draggable=${false} decoding="async" onLoad=${() => seen.loaded(item.content)} onError=${() => setBroken(true)} />`
    }
    ${item.skus > SHARED_SKUS ? html`<span class="cell-copies is-shared">${number(item.skus)} 个商品</span>` : item.copies > 1 && html`<span class="cell-copies">×${number(item.copies)}</span>`}
    ${isWrong && html`<span class="cell-wrong" aria-hidden="true"><svg viewBox="0 0 20 20"><path d="M4 4l12 12M16 4L4 16" /></svg>标错</span>`}
  </button></li>`;
}

/** Cells in a row of `list`. */
export function columnsOf(list) {
  const cells = [...list.children];
  const next = cells.findIndex((cell) => cell.offsetTop > cells[0].offsetTop);
  return next > 0 ? next : cells.length || 1;
}

/** Where an arrow key leads from `at`, or null when the key is none of them. */
export function moved(key, at, count, columns) {
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
  if (key === "Home") return 0;
  if (key === "End") return count - 1;
  if (!(key in steps)) return null;
  const to = at + steps[key];
  return to >= 0 && to < count ? to : at;
}

/** The thumbnails. `onToggle(contents, wrong)`: these were marked, or no longer are. */
export function Board({ items, wrong, seen, onToggle, onLook, onDone, cursor }) {
  const list = useRef(null);
  const anchor = useRef(0);
  const toggle = (place, range) => {
    const becomes = !wrong.has(items[place].content);
    const [low, high] = range ? [Math.min(anchor.current, place), Math.max(anchor.current, place)] : [place, place];
    anchor.current = place;
    onToggle(
      items.slice(low, high + 1).map((item) => item.content),
      becomes,
    );
  };
  const focus = (place) => list.current?.children[place]?.firstElementChild?.focus();
  useEffect(() => {
    // A new grid takes the keys, unless somebody is writing just now.
    if (!/^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement?.tagName ?? ""))
      list.current?.children[0]?.firstElementChild?.focus({ preventScroll: true });
    anchor.current = 0;
  }, [items]);
  const keys = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Enter") {
      event.preventDefault();
      if (!event.repeat) onDone();
      return;
    }
    const to = moved(event.key, cursor, items.length, columnsOf(list.current));
    if (to == null) return;
    event.preventDefault();
    focus(to);
    if (event.shiftKey) onToggle([items[cursor].content, items[to].content], true);
  };
  return html`<ul class="board" ref=${list} onKeyDown=${keys} aria-label="缩略图：按空格标错">
    ${items.map(
      (
        item,
        place,
      ) => html`<${Cell} key=${item.content} item=${item} place=${place} seen=${seen} isWrong=${wrong.has(item.content)} isSeen=${seen.seen.has(item.content)}
      isFirst=${place === cursor} onToggle=${toggle} onFocus=${onLook} />`,
    )}
  </ul>`;
}

/** The picture under the pointer or the cursor, larger, with what the model said of it. */
export function Closer({ item }) {
  if (!item) return null;
  return html`<div class="closer" aria-hidden="true">
    <div class="closer-frame">${item.has_picture && html`<img src=${picture(item.content)} alt="" />`}</div>
    <p class="closer-title">${item.title || item.image_id}</p>
    <ul>${item.tags.slice(0, 3).map((tag) => html`<li key=${tag.label_id}><span>${tag.label_zh}</span><span>${whole(tag.score)}</span></li>`)}</ul>
    <p class="closer-more">${item.sku_id || "没有 SKU"}${item.copies > 1 && ` · 同图 ${number(item.copies)} 张`}</p>
  </div>`;
}
