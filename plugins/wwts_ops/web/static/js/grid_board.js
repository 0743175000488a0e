// Up to 50 thumbnails of one label: which are wrong, which were seen at all.

import { html, useEffect, useLayoutEffect, useRef, useState } from "../vendor/htm-preact.js";
import { SHARED_SKUS } from "./answer.js";
import { pictureUrl } from "./api.js";
import { number, titleOf, whole } from "./format.js";

const SEEN_SHARE = 0.6; // of a thumbnail must have been in view
const SEEN_MS = 300; // for so long: what flies by has not been seen, nor the next board at the second click of two

const fresh = (turn) => ({ turn, inView: new Set(), loaded: new Set(), seen: new Set(), failed: new Set() });

/** Whether the keys go into a text just now. */
export const writing = () => /^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement?.tagName ?? "");

/** `seen`: contents whose picture is loaded and has been in view; `failed`: that did not load. Anew with every turn. */
export function useSeen(turn) {
  const [, count] = useState(0);
  const draw = () => count((drawn) => drawn + 1);
  const state = useRef(null);
  if (state.current?.turn !== turn) state.current = fresh(turn);
  const ready = ({ inView, loaded, seen }) => [...inView].filter((one) => loaded.has(one) && !seen.has(one));
  const look = () => {
    const now = state.current;
    const before = ready(now);
    if (before.length) setTimeout(note, SEEN_MS, now, before);
  };
  const note = (now, before) => {
    const still = ready(now).filter((content) => before.includes(content));
    if (now !== state.current || !still.length) return;
    now.seen = new Set([...now.seen, ...still]);
    draw();
  };
  const observer = useRef(null);
  useLayoutEffect(() => {
    observer.current = new IntersectionObserver(
      (entries) => {
        const { inView } = state.current;
        for (const { isIntersecting, target } of entries)
          if (isIntersecting) inView.add(target.dataset.content);
          else inView.delete(target.dataset.content);
        look();
      },
      { threshold: SEEN_SHARE },
    );
    return () => observer.current.disconnect();
  }, [turn]);
  const watch = (node) => node && observer.current?.observe(node);
  const loaded = (content) => {
    state.current.loaded.add(content);
    look();
  };
  const failed = (content) => {
    state.current.failed.add(content);
    draw();
  };
  return { seen: state.current.seen, failed: state.current.failed, watch, onLoad: loaded, onError: failed };
}

function Cell({ item, place, isWrong, isSeen, isFirst, onToggle, onFocus, seen }) {
  const node = useRef(null);
  const broken = !item.has_picture || seen.failed.has(item.content);
  useEffect(() => seen.watch(node.current), [item.content]);
  const title = titleOf(item);
  const said = isWrong ? "标错" : isSeen ? "正确" : broken ? "看不到图片，不作答" : "还没看到，不作答";
  return html`<li><button type="button" ref=${node} class=${`cell${isWrong ? " is-wrong" : ""}${isSeen || isWrong ? "" : " is-unseen"}`} data-testid="grid-item" data-content=${item.content}
    data-state=${isWrong ? "wrong" : isSeen ? "right" : "unseen"} aria-pressed=${isWrong} aria-label=${`第 ${place + 1} 张，${title}，${said}`} tabindex=${isFirst ? 0 : -1}
    onClick=${(event) => onToggle(place, event.shiftKey)} onFocus=${() => onFocus(place)} onMouseEnter=${() => onFocus(place, true)}>
    ${
      broken
        ? html`<span class="cell-none">${item.has_picture ? "图片没有载入" : "没有图片"}</span>`
        : html`<img src=${pictureUrl(item.content)} alt="" draggable=${false} decoding="async" onLoad=${() => seen.onLoad(item.content)} onError=${() => seen.onError(item.content)} />`
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

const GAP = 6;
const [LEAST, MOST] = [104, 240]; // pixels; of thumbnails that are 320 px wide

/** Columns that show `count` square cells as large as they can be without scrolling, and how large those may be. */
export function fitting(count, width, height) {
  const most = Math.max(1, Math.floor((width + GAP) / (LEAST + GAP)));
  const largest = Math.max(1, Math.min(count, Math.floor((width + GAP) / (MOST + GAP))));
  for (let columns = largest; columns < most; columns += 1) {
    const size = Math.min(MOST, (width + GAP) / columns - GAP);
    if (Math.ceil(count / columns) * (size + GAP) <= height) return { columns, size };
  }
  return { columns: most, size: MOST };
}

/** Few thumbnails are shown larger: `list` gets the columns that fill the box in which it scrolls. */
export function useFit(list, count) {
  useLayoutEffect(() => {
    const box = list.current.parentElement;
    const fit = () => {
      const below = box.getBoundingClientRect().bottom - list.current.getBoundingClientRect().top - box.scrollTop;
      const { columns, size } = fitting(count, list.current.clientWidth, below);
      list.current.style.gridTemplateColumns = `repeat(${columns}, minmax(0, ${size}px))`;
    };
    const resized = new ResizeObserver(fit);
    resized.observe(box);
    fit();
    return () => resized.disconnect();
  }, [count]);
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
  useFit(list, items.length);
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
    if (!writing()) list.current?.children[0]?.firstElementChild?.focus({ preventScroll: true });
  }, []);
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
    <div class="closer-frame">${item.has_picture && html`<img src=${pictureUrl(item.content)} alt="" />`}</div>
    <p class="closer-title">${titleOf(item)}</p>
    <ul>${item.tags.slice(0, 3).map((tag) => html`<li key=${tag.label_id}><span>${tag.label_zh}</span><span>${whole(tag.score)}</span></li>`)}</ul>
    ${(item.sku_id || item.copies > 1) && html`<p class="closer-more">${[item.sku_id, item.copies > 1 && `同图 ${number(item.copies)} 张`].filter(Boolean).join(" · ")}</p>`}
    ${titleOf(item) !== item.image_id && html`<p class="closer-more path">${item.image_id}</p>`}
  </div>`;
}
