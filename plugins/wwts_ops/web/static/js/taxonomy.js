// The labels and their category tree: looked up by all, changed by admins; every change is a new version.

import { html, useEffect, useMemo, useRef, useState } from "../vendor/htm-preact.js";
import { url } from "./api.js";
import { byPath, leaf, levels, number, zh } from "./format.js";
import { useKeys } from "./keys.js";
import * as labels from "./labels.js";
import { Waiting, useGot } from "./records_parts.js";
import { History, Import } from "./taxonomy_files.js";
import { CategoryForm, LabelForm, Review } from "./taxonomy_forms.js";

const SHOWN = 150; // rows drawn at once; more by a button
const FOUND = 400;

/** The category paths as a tree, in reading order: [{path, depth, labels, forced, inner}]. */
function treeOf(categories) {
  const known = new Map(categories.map((category) => [category.path, category]));
  for (const { path } of categories) {
    const parts = levels(path);
    for (let depth = 1; depth < parts.length; depth += 1) {
      const above = parts.slice(0, depth).join(" > ");
      if (!known.has(above)) known.set(above, { path: above, labels: null, forced: false });
    }
  }
  const paths = [...known.keys()].filter(Boolean).sort(byPath);
  const above = new Set(
    paths.flatMap((path) => levels(path).map((_, depth, parts) => parts.slice(0, depth).join(" > "))),
  );
  return paths.map((path) => ({
    ...known.get(path),
    depth: levels(path).length,
    inner: above.has(path),
  }));
}

const within = (path, chosen) => !chosen || path === chosen || path.startsWith(`${chosen} > `);

/** Category by category, and by name. */
function inOrder(all) {
  const paths = [...new Set(all.map((label) => label.category_path))].sort(byPath);
  const place = new Map(paths.map((path, at) => [path, at]));
  return [...all].sort(
    (one, other) =>
      place.get(one.category_path) - place.get(other.category_path) || zh.compare(one.label_zh, other.label_zh),
  );
}

/** Labels that fit what is typed, best first: those found by name, pinyin and English, then those switched off. */
function fitting(all, typed) {
  const asked = typed.trim().toLowerCase();
  if (!asked) return all;
  const byId = new Map(all.map((label) => [label.label_id, label]));
  const best = labels
    .search(typed, FOUND)
    .map(([label]) => byId.get(label.label_id))
    .filter(Boolean);
  const had = new Set(best);
  const texts = (label) =>
    [label.label_zh, label.label_en, label.synonyms_zh, label.label_id].some((text) =>
      (text ?? "").toLowerCase().includes(asked),
    );
  return [...best, ...all.filter((label) => !had.has(label) && texts(label))];
}

function Tree({ tree, chosen, whole, onChoose }) {
  const [open, setOpen] = useState(() => new Set());
  const shown = tree.filter(({ path }) =>
    levels(path)
      .slice(0, -1)
      .every((_, place, above) => open.has(above.slice(0, place + 1).join(" > "))),
  );
  const turn = (path) => {
    const next = new Set(open);
    if (!next.delete(path)) next.add(path);
    setOpen(next);
  };
  return html`<nav class="tree" aria-label="类目">
    <ul><li><button type="button" class="tree-name" aria-current=${chosen ? undefined : "true"} onClick=${() => onChoose("")}><span>全部类目</span><span class="side-count">${number(whole)}</span></button></li>
    ${shown.map(
      (node) => html`<li key=${node.path} class=${`depth-${Math.min(3, node.depth)}`}>
      ${node.inner ? html`<button type="button" class="tree-turn" aria-expanded=${open.has(node.path) ? "true" : "false"} aria-label=${`展开 ${leaf(node.path)}`} onClick=${() => turn(node.path)}></button>` : html`<span class="tree-turn" aria-hidden="true"></span>`}
      <button type="button" class="tree-name" data-testid="taxonomy-category" aria-current=${node.path === chosen ? "true" : undefined} title=${node.path}
        onClick=${() => {
          onChoose(node.path);
          if (node.inner && !open.has(node.path)) turn(node.path);
        }}>
        <span>${leaf(node.path)}${node.forced && html` <span class="badge is-forced">强制</span>`}</span>${node.labels != null && html`<span class="side-count">${number(node.labels)}</span>`}</button></li>`,
    )}
    </ul></nav>`;
}

function Badges({ label, name }) {
  return html`${!label.enabled && html`<span class="badge">停用</span> `}${(label.forced_review || label.forced_by) && html`<span class="badge is-forced">强制审核</span> `}${label.maps_to && html`<span class="badge is-map">→ ${name(label.maps_to)}</span>`}`;
}

function Table({ found, chosen, name, onOpen }) {
  const [most, setMost] = useState(SHOWN);
  useEffect(() => setMost(SHOWN), [found]);
  if (!found.length) return html`<p class="blank">没有这样的标签。换个名字、拼音或英文试试。</p>`;
  return html`<table class="labels"><thead><tr><th scope="col">名称</th><th scope="col">类目</th><th scope="col">同义词</th><th scope="col">状态</th></tr></thead><tbody>
      ${found.slice(0, most).map(
        (
          label,
        ) => html`<tr key=${label.label_id} data-testid="taxonomy-row" data-label=${label.label_id} class=${`${label.enabled ? "" : "is-off"}${label.label_id === chosen ? " is-chosen" : ""}`} onClick=${() => onOpen(label)}>
        <td><button type="button" class="label-name" aria-haspopup="true" onClick=${(event) => {
          event.stopPropagation();
          onOpen(label);
        }}>${label.label_zh}</button>${label.label_en && html`<small>${label.label_en}</small>`}</td>
        <td class="soft">${label.category_path}</td><td class="soft">${(label.synonyms_zh || "").replaceAll("|", "、")}</td><td><${Badges} label=${label} name=${name} /></td></tr>`,
      )}
    </tbody></table>
    ${found.length > most && html`<p class="more"><button type="button" class="other" onClick=${() => setMost(most + 500)}>还有 ${number(found.length - most)} 个，再显示一些</button></p>`}`;
}

function Tools({ admin, version, author, onNew, onImport, onHistory }) {
  return html`<div class="toolrow">
    ${admin && html`<button type="button" class="main" data-testid="taxonomy-new" onClick=${onNew}>新标签</button>`}
    ${admin && html`<button type="button" class="other" data-testid="taxonomy-import" onClick=${onImport}>导入…</button>`}
    <a class="other" href=${url("api/taxonomy/export.csv")} download data-testid="taxonomy-csv">导出 CSV</a>
    <a class="other" href=${url("api/taxonomy/export.xlsx")} download data-testid="taxonomy-xlsx">导出 Excel</a>
    <button type="button" class="other" data-testid="taxonomy-history" title=${`现在的版本：${version}${author && `，${author}`}`} onClick=${onHistory}>历史</button>
  </div>`;
}

/** What is edited or read beside the table; it has the focus, and Escape closes it wherever the focus is by then. */
function Drawer({ what, onClose, children }) {
  const box = useRef(null);
  useKeys({ Escape: onClose }, { writing: ["Escape"] });
  useEffect(() => {
    if (!box.current.contains(document.activeElement)) box.current.focus();
  }, [what]);
  return html`<aside class="drawer" ref=${box} tabindex="-1" aria-label="编辑">
    <button type="button" class="drawer-close" aria-label="关闭" title="关闭（Esc）" onClick=${onClose}>×</button>${children}</aside>`;
}

export default function Taxonomy({ app }) {
  const admin = app.me.role === "admin";
  const { data, problem, reload } = useGot("api/taxonomy");
  const [category, setCategory] = useState("");
  const [typed, setTyped] = useState("");
  const [drawer, setDrawer] = useState(null);
  const [review, setReview] = useState(null);
  const [indexed, setIndexed] = useState(0);
  const opener = useRef(null);
  useEffect(() => {
    if (data)
      labels
        .load(data.version)
        .then(() => setIndexed(indexed + 1))
        .catch(() => null); // then it is searched without pinyin
  }, [data?.version]);
  const byId = useMemo(() => new Map((data?.labels ?? []).map((label) => [label.label_id, label])), [data]);
  const tree = useMemo(() => treeOf(data?.categories ?? []), [data]);
  const ordered = useMemo(() => inOrder(data?.labels ?? []), [data]);
  const found = useMemo(
    () => fitting(ordered, typed).filter((label) => within(label.category_path, category)),
    [ordered, typed, category, indexed],
  );
  if (!data)
    return html`<div class="pg-taxonomy"><div class="pad"><${Waiting} problem=${problem} onAgain=${reload} /></div></div>`;
  const name = (id) => byId.get(id)?.label_zh ?? id;
  const close = () => {
    setDrawer(null);
    opener.current?.focus?.();
  };
  const open = (what) => {
    opener.current = document.activeElement;
    setDrawer(what);
  };
  const applied = (count) => {
    setReview(null);
    setDrawer(null);
    app.toast(`已生效：${number(count)} 处改动，今后按新版本打标；已经打过的，下次“全库重新打标”时更新。`);
    reload();
  };
  const node = tree.find(({ path }) => path === category);
  const propose = (changes) => setReview({ changes });
  return html`<div class=${`pg-taxonomy${drawer ? " has-drawer" : ""}`}>
    <${Tree} tree=${tree} chosen=${category} whole=${data.labels.length} onChoose=${setCategory} />
    <div class="taxonomy-main">
      <div class="taxonomy-head">
        <input type="search" class="taxonomy-search" data-testid="taxonomy-search" placeholder="找标签：中文、拼音、同义词或英文" aria-label="找标签" value=${typed} onInput=${(event) => setTyped(event.target.value)} />
        <span class="soft" role="status">${number(found.length)} 个标签</span>
        <${Tools} admin=${admin} version=${data.version} author=${data.author} onNew=${() => open({ label: null })} onImport=${() => open({ files: "import" })} onHistory=${() => open({ files: "history" })} />
      </div>
      ${
        node &&
        html`<div class="category-head"><h2>${levels(node.path).join(" › ")}</h2>${node.forced && html`<span class="badge is-forced">整类强制审核</span>`}
        ${admin && html`<button type="button" class="link" data-testid="taxonomy-category-edit" onClick=${() => open({ node })}>改名、移动或强制审核</button>`}</div>`
      }
      ${!admin && html`<p class="soft pad-x">您可以查看；标签由管理员修改。</p>`}
      <${Table} found=${found} chosen=${drawer?.label?.label_id} name=${name} onOpen=${(label) => open({ label })} />
    </div>
    ${
      drawer &&
      html`<${Drawer} what=${drawer} onClose=${close}>
      ${"label" in drawer && html`<${LabelForm} key=${drawer.label?.label_id ?? "new"} label=${drawer.label} category=${category} tree=${tree} name=${name} byId=${byId} admin=${admin} onReview=${propose} />`}
      ${drawer.node && html`<${CategoryForm} key=${drawer.node.path} node=${drawer.node} tree=${tree} onReview=${propose} />`}
      ${drawer.files === "import" && html`<${Import} version=${data.version} name=${name} onApplied=${applied} onReload=${reload} />`}
      ${drawer.files === "history" && html`<${History} me=${app.me} name=${name} />`}
    <//>`
    }
    ${review && html`<${Review} changes=${review.changes} version=${data.version} name=${name} onApplied=${applied} onClose=${() => setReview(null)} onReload=${reload} />`}
  </div>`;
}
