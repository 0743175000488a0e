// Which of the waiting pictures are shown: the person's own categories, and what else was narrowed down.

import { html, useEffect, useMemo, useRef, useState } from "../vendor/htm-preact.js";
import { send } from "./api.js";
import { DECISIONS, byPath, day, leaf, levels, number } from "./format.js";
import { useSummary } from "./summary.js";

const SEARCH_FROM = 12; // so many choices need a search box
const SHOWN = 200;

const DIMENSIONS = [
  { key: "dates", facet: "date", title: "日期", name: (entry, me) => day(entry.value, me.today) },
  { key: "categories", facet: "category", title: "类目", name: (entry) => leaf(entry.value), full: (value) => value },
  { key: "labels", facet: "label", title: "标签", name: (entry) => entry.name || entry.value },
  {
    key: "decisions",
    facet: "decision",
    title: "审核类型",
    name: (entry) => DECISIONS[entry.value] ?? entry.value,
  },
  { key: "reasons", facet: "reason", title: "判定依据", name: (entry) => entry.name || entry.value },
];

const toggled = (values, value) =>
  values.includes(value) ? values.filter((other) => other !== value) : [...values, value];

/** A button with a sheet below it, closed by Escape or a click elsewhere. */
export function Popover({ label, title, active = false, wide = false, onClose, children }) {
  const [open, setOpen] = useState(false);
  const box = useRef(null);
  const close = () => {
    setOpen(false);
    onClose?.();
  };
  useEffect(() => {
    if (!open) return undefined;
    const outside = (event) => !box.current?.contains(event.target) && close();
    document.addEventListener("pointerdown", outside, true);
    box.current.querySelector(".pop-sheet input, .pop-sheet button")?.focus();
    return () => document.removeEventListener("pointerdown", outside, true);
  }, [open]);
  const keys = (event) => {
    if (open && event.key === "Escape") {
      event.stopPropagation();
      close();
      box.current.querySelector(".pop-button").focus();
    }
  };
  // The sheet takes the focus (tabindex): a press on its text would else move it to the page, and that closes the sheet.
  const leaves = (event) => open && event.relatedTarget && !box.current.contains(event.relatedTarget) && close();
  return html`<div class="pop" ref=${box} onKeyDown=${keys} onfocusout=${leaves}>
    <button type="button" class=${`pop-button${active ? " is-active" : ""}`} aria-expanded=${open} aria-haspopup="dialog" title=${title}
      onClick=${() => (open ? close() : setOpen(true))}>${label}<span class="pop-arrow" aria-hidden="true"></span></button>
    ${open && html`<div class=${`pop-sheet${wide ? " is-wide" : ""}`} role="dialog" tabindex="-1" aria-label=${title || label}>${typeof children === "function" ? children(close) : children}</div>`}
  </div>`;
}

function Choices({ title, entries, chosen, onToggle }) {
  const [wanted, setWanted] = useState("");
  const found = entries.filter((entry) => !wanted || entry.text.toLowerCase().includes(wanted.toLowerCase()));
  return html`<div class="choices">
    ${entries.length > SEARCH_FROM && html`<input type="search" class="choices-search" placeholder=${`在${title}里找`} aria-label=${`在${title}里找`} value=${wanted} onInput=${(event) => setWanted(event.target.value)} />`}
    <ul>
      ${found.slice(0, SHOWN).map(
        (entry) => html`<li key=${entry.value} class=${entry.inner ? "is-inner" : ""}>
        <label><input type="checkbox" checked=${chosen.includes(entry.value)} onChange=${() => onToggle(entry.value)} />
        <span class="choices-name">${entry.text}</span>${entry.count != null && html`<span class="choices-count">${number(entry.count)}</span>`}</label></li>`,
      )}
    </ul>
    ${!found.length && html`<p class="choices-none">${wanted ? "没有叫这个名字的。" : "现在没有在等的图片。"}</p>`}
    ${found.length > SHOWN && html`<p class="choices-none">还有 ${number(found.length - SHOWN)} 个，请输入名字来找。</p>`}
  </div>`;
}

/** Choosing the categories that one looks after; saved on the server, and the filter from now on. */
function MyCategories({ app, mine, onSaved }) {
  const label =
    mine.length === 0
      ? "我负责：全部类目"
      : mine.length === 1
        ? `我负责：${leaf(mine[0])}`
        : `我负责：${leaf(mine[0])}等 ${mine.length} 类`;
  return html`<${Popover} label=${label} title="我负责的类目" active=${mine.length > 0} wide>
    ${(close) =>
      html`<${MyCategoriesSheet} app=${app} mine=${mine} onDone=${(saved) => {
        onSaved(saved);
        close();
      }} />`}
  <//>`;
}

function MyCategoriesSheet({ app, mine, onDone }) {
  const [chosen, setChosen] = useState(mine);
  const [problem, setProblem] = useState("");
  const [busy, setBusy] = useState(false);
  const entries = useMemo(() => categoryEntries(app.me.kept_categories ?? []), [app.me]);
  const save = async () => {
    setBusy(true);
    try {
      onDone((await send("api/me/categories", { categories: chosen }, "PUT")).categories);
    } catch (error) {
      setProblem(error.message);
      setBusy(false);
    }
  };
  return html`<p class="pop-hint">选好以后，每次打开都先给您看这些类目。一个都不选，就是全部。</p>
    <${Choices} title="类目" entries=${entries} chosen=${chosen} onToggle=${(value) => setChosen(toggled(chosen, value))} />
    ${problem && html`<p class="problem" role="alert">${problem}</p>`}
    <div class="pop-actions"><button type="button" class="link" onClick=${() => setChosen([])} disabled=${!chosen.length}>全不选</button>
    <button type="button" class="main" disabled=${busy} onClick=${save}>保存</button></div>`;
}

/** Two levels as a list: each first level, then what lies in it. */
function categoryEntries(paths) {
  const all = new Set();
  for (const path of paths) {
    all.add(levels(path)[0]);
    all.add(path);
  }
  return [...all].sort(byPath).map((path) => ({ value: path, text: leaf(path), inner: levels(path).length > 1 }));
}

function choicesOf(dimension, data, me) {
  const entries = (data?.facets?.[dimension.facet] ?? []).map((entry) => ({
    ...entry,
    text: dimension.name(entry, me),
  }));
  if (dimension.key !== "categories") return entries;
  // The tree's order, so that an inner category stands below its own.
  return entries
    .map((entry) => ({ ...entry, inner: levels(entry.value).length > 1 }))
    .sort((one, other) => byPath(one.value, other.value));
}

/**
 * The row of filters. `without`: keys of dimensions that the page chooses itself (the grid: `labels`).
 */
export function Filters({ app, without = [] }) {
  const { filters, setFilters, me } = app;
  const [mine, setMine] = useState(me.categories ?? []);
  const { data, error } = useSummary(filters);
  const names = useRef(new Map());
  const dimensions = DIMENSIONS.filter((dimension) => !without.includes(dimension.key));
  const set = (key, values) => setFilters({ ...filters, [key]: values });
  const chips = dimensions.flatMap((dimension) =>
    (filters[dimension.key] ?? []).map((value) => ({ dimension, value })),
  );
  const name = ({ dimension, value }) => {
    const found = data?.facets?.[dimension.facet]?.find((entry) => entry.value === value);
    if (found) names.current.set(value, dimension.name(found, me));
    return names.current.get(value) ?? dimension.name({ value }, me);
  };
  const saved = (categories) => {
    me.categories = categories;
    setMine(categories);
    set("categories", categories);
  };
  return html`<section class="filters" aria-label="筛选" data-testid="filters">
    <div class="filters-row">
      ${me.role !== "viewer" && html`<${MyCategories} app=${app} mine=${mine} onSaved=${saved} />`}
      ${dimensions.map((dimension) => {
        const chosen = filters[dimension.key] ?? [];
        return html`<${Popover} key=${dimension.key} title=${dimension.title} active=${chosen.length > 0} label=${chosen.length ? `${dimension.title} · ${chosen.length}` : dimension.title}>
          <${Choices} title=${dimension.title} entries=${choicesOf(dimension, data, me)} chosen=${chosen} onToggle=${(value) => set(dimension.key, toggled(chosen, value))} />
        <//>`;
      })}
      <ul class="chips" aria-label="正在筛选">
        ${chips.map(
          (
            chip,
          ) => html`<li key=${`${chip.dimension.key} ${chip.value}`}><button type="button" class="token" title=${`不再筛选：${chip.value}`} aria-label=${`不再筛选：${name(chip)}`}
          onClick=${() => set(chip.dimension.key, toggled(filters[chip.dimension.key], chip.value))}>${name(chip)}<span aria-hidden="true" class="token-x">×</span></button></li>`,
        )}
        ${chips.length > 1 && html`<li><button type="button" class="link" onClick=${() => setFilters(Object.fromEntries(Object.keys(filters).map((key) => [key, []])))}>全部清除</button></li>`}
      </ul>
      <p class="filters-left" aria-live="polite">${error ? html`<span class="problem">待审数量取不到：${error.message}</span>` : html`<b data-testid="filters-left">${data ? number(app.counts.left) : "…"}</b> 张待审`}</p>
    </div>
  </section>`;
}

export default Filters;
