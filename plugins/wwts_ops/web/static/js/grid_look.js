// The grid for those who may look and not answer: the same pictures, leased to nobody, nothing to mark.

import { html, useEffect, useMemo, useRef, useState } from "../vendor/htm-preact.js";
import { get, pictureUrl, query } from "./api.js";
import { Filters } from "./filters.js";
import { number, titleOf } from "./format.js";
import { Closer, columnsOf, moved, useFit } from "./grid_board.js";
import { useLabels } from "./grid_data.js";
import { COUNT } from "./grid_lease.js";
import { Labels } from "./grid_views.js";
import { useSummary } from "./summary.js";
import { ReadOnly } from "./ui.js";

function Cells({ items, at, onLook }) {
  const list = useRef(null);
  useFit(list, items.length);
  const keys = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const to = moved(event.key, at, items.length, columnsOf(list.current));
    if (to === null) return;
    event.preventDefault();
    list.current.children[to].firstElementChild.focus();
  };
  useEffect(() => list.current.firstElementChild?.firstElementChild.focus({ preventScroll: true }), [items]);
  return html`<ul class="board" ref=${list} onKeyDown=${keys} aria-label="缩略图">
    ${items.map((item, place) => html`<li key=${item.content}><button type="button" class="cell" data-testid="grid-item" data-content=${item.content} data-state="shown"
      aria-label=${`第 ${place + 1} 张，${titleOf(item)}`} tabindex=${place === at ? 0 : -1}
      onFocus=${() => onLook(place)} onMouseEnter=${() => onLook(place)}>
      ${item.has_picture ? html`<img src=${pictureUrl(item.content)} alt="" draggable=${false} decoding="async" />` : html`<span class="cell-none">没有图片</span>`}
      ${item.copies > 1 && html`<span class="cell-copies">×${number(item.copies)}</span>`}
    </button></li>`)}
  </ul>`;
}

function Pictures({ app, label, labels, items, problem, at, onLook }) {
  if (problem) return html`<div class="blank" role="alert"><h2>没有取到图片</h2><p>${problem}</p></div>`;
  if (!label) return html`<div class="blank"><h2>${labels ? "现在没有要看的图片" : "正在打开……"}</h2></div>`;
  return html`<div class="grid-scroll"><h2 class="grid-title">${label.name} <small>${items ? `排在最前面的 ${number(items.length)} 张；用方向键或鼠标看大图` : "正在取图片……"}</small></h2>
    <${ReadOnly} me=${app.me} />
    ${items?.length === 0 && html`<p class="soft">这个标签的图片要逐张审核，请到“逐张审核”里看。</p>`}
    ${items?.length > 0 && html`<${Cells} items=${items} at=${at} onLook=${onLook} />`}</div>`;
}

export function GridLook({ app }) {
  const { filters } = app;
  const [chosen, setChosen] = useState(null);
  const [told, setTold] = useState({ items: null, problem: "" });
  const [at, setAt] = useState(0);
  const summary = useSummary(useMemo(() => ({ ...filters, labels: [], states: ["open"] }), [filters]));
  const labels = useLabels(summary.data, filters);
  const label = labels?.find((one) => one.id === chosen?.id) ?? labels?.[0] ?? null;
  useEffect(() => {
    if (!label) return undefined;
    const left = new AbortController();
    setTold({ items: null, problem: "" });
    setAt(0);
    get(`api/grid${query({ ...filters, labels: [], label_id: label.id, count: COUNT })}`, { signal: left.signal }).then(
      ({ items }) => setTold({ items, problem: "" }),
      (error) => left.signal.aborted || setTold({ items: null, problem: error.message }),
    );
    return () => left.abort();
  }, [label?.id, filters]);
  return html`<div class="pg-grid">
    <${Filters} app=${app} without=${["labels"]} />
    <div class="grid-columns">
      <aside class="grid-side">
        <${Labels} labels=${labels} chosen=${label} error=${summary.error} onChoose=${setChosen} />
        <${Closer} item=${told.items?.[at]} />
      </aside>
      <div class="grid-main"><${Pictures} ...${{ app, label, labels, at, ...told, onLook: setAt }} /></div>
    </div>
  </div>`;
}
