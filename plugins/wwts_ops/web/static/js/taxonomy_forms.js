// Editing one label or one category, and what an edit would change before it is in force.

import { html, useEffect, useRef, useState } from "../vendor/htm-preact.js";
import { send } from "./api.js";
import { examplePath, leaf, levels, number, synonyms } from "./format.js";
import { LabelPicker } from "./picker.js";
import { changesOf, fieldName, forceCategory, merge, moveCategory, shownValue } from "./taxonomy_changes.js";
import { Dialog } from "./ui.js";

const EMPTY = {
  label_zh: "",
  label_en: "",
  synonyms_zh: "",
  category_path: "",
  forced_review: false,
  enabled: true,
  maps_to: "",
};
const SHOWN = 200;

/** What changes: one line a field, before and after. */
export function Diff({ diff, count = diff.length, name }) {
  if (!diff.length) return html`<p class="soft">没有改动。</p>`;
  // A category as a whole comes before the labels that it concerns.
  const lines = [...diff].sort((one, other) => Boolean(one.label_id) - Boolean(other.label_id)).slice(0, SHOWN);
  return html`<table class="diff"><thead><tr><th scope="col">标签</th><th scope="col">哪一项</th><th scope="col">之前</th><th scope="col">之后</th></tr></thead><tbody>
      ${lines.map((line, place) => html`<tr key=${place}><th scope="row">${line.label_zh || (line.label_id ? name(line.label_id) : "类目")}</th><td>${fieldName(line.field)}</td><td class=${line.before ? "diff-before" : "faint"}>${shownValue(line.field, line.before, name)}</td><td class=${line.after ? "diff-after" : "faint"}>${shownValue(line.field, line.after, name)}</td></tr>`)}
    </tbody></table>${count > Math.min(SHOWN, diff.length) && html`<p class="soft">这里是前 ${number(Math.min(SHOWN, diff.length))} 处，一共 ${number(count)} 处。</p>`}`;
}

/** Shows what `changes` would do, then puts them in force on request. */
export function Review({ changes, version, name, onApplied, onClose, onReload }) {
  const [told, setTold] = useState(null);
  const [error, setError] = useState(null);
  const [busy, setBusy] = useState(false);
  useEffect(() => {
    setTold(null);
    setError(null);
    send("api/taxonomy/preview", { expected: version, changes }).then(setTold, setError);
  }, [version, changes]);
  const apply = async () => {
    if (busy || !told?.diff.length) return;
    setBusy(true);
    try {
      onApplied((await send("api/taxonomy/changes", { expected: version, changes })).count);
    } catch (failed) {
      setError(failed);
      setBusy(false);
    }
  };
  const changed = error && (error.status === 409 || error.code === "changed");
  return html`<${Dialog} title="核对改动" onClose=${onClose} wide testid="taxonomy-review">
    ${error && html`<p class="problem" role="alert">${changed ? "刚刚有别人改了标签体系，您的改动还没有生效。" : error.message}</p>`}
    ${!told && !error && html`<p class="soft" role="status">正在核对……</p>`}
    ${told && html`<${Diff} diff=${told.diff} count=${told.count} name=${name} />`}
    <p class="dialog-actions"><button type="button" class="link" onClick=${onClose}>再改改</button>
      ${
        changed
          ? html`<button type="button" class="main" data-testid="taxonomy-again" onClick=${onReload}>用最新版本再看一遍</button>`
          : html`<button type="button" class="main" data-testid="taxonomy-apply" disabled=${busy || !told?.diff.length} onClick=${apply}>生效（新版本）</button>`
      }</p>
  <//>`;
}

/** A category path, of those there are or a new one. */
function PathField({ value, tree, onInput, disabled }) {
  return html`<label>类目<input list="paths" required disabled=${disabled} value=${value} placeholder=${`例如：${examplePath(tree.map(({ path }) => path))}`} autocomplete="off" onInput=${(event) => onInput(event.target.value)} />
    <datalist id="paths">${tree.map(({ path }) => html`<option value=${path}></option>`)}</datalist><small>各级之间用 > 分开，最多三级；没有的会新建。</small></label>`;
}

function OtherLabel({ title, hint, value, name, onPick, onClear, testid }) {
  return html`<div class="field"><span class="field-title">${title}</span>${
    value
      ? html`<p class="field-chosen"><button type="button" class="token" aria-label=${`取消${title} ${name(value)}`} onClick=${onClear}>${name(value)}<span class="token-x" aria-hidden="true">×</span></button></p>`
      : html`<${LabelPicker} testid=${testid} placeholder="选一个标签" onPick=${(label) => onPick(label.label_id)} />`
  }<small>${hint}</small></div>`;
}

const trimmed = (path) =>
  levels(
    path
      .replaceAll("＞", ">")
      .replaceAll(/\s*>\s*/g, " > ")
      .trim(),
  )
    .filter(Boolean)
    .join(" > ");

export function LabelForm({ label, category, tree, name, admin, onReview }) {
  const before = label && { ...EMPTY, ...label, maps_to: label.maps_to ?? "" };
  const [form, setForm] = useState(() => {
    const start = before ?? { ...EMPTY, category_path: category };
    return { ...start, synonyms_zh: (start.synonyms_zh ?? "").replaceAll("|", "、") };
  });
  const [into, setInto] = useState("");
  const first = useRef(null);
  useEffect(() => first.current?.focus(), []);
  const set = (key) => (event) =>
    setForm({ ...form, [key]: event.target.type === "checkbox" ? event.target.checked : event.target.value });
  const after = {
    ...form,
    label_zh: form.label_zh.trim(),
    label_en: form.label_en.trim(),
    synonyms_zh: synonyms(form.synonyms_zh),
    category_path: trimmed(form.category_path),
  };
  const changes = into ? merge(label.label_id, into) : changesOf(before, after);
  const missing = [["名称", after.label_zh], ["类目", after.category_path]].filter(([, value]) => !value);
  const ready = changes.length > 0 && !missing.length;
  const save = (event) => {
    event.preventDefault();
    if (ready) onReview(changes);
  };
  return html`<form class="edit" onSubmit=${save}>
    <h2>${label ? label.label_zh : "新标签"}</h2>${label && html`<p class="faint edit-id">${label.label_id}</p>`}
    <fieldset disabled=${!admin}>
      <label>名称<input ref=${first} required maxlength="200" data-testid="taxonomy-name" value=${form.label_zh} onInput=${set("label_zh")} /></label>
      <label>英文<input maxlength="200" value=${form.label_en} onInput=${set("label_en")} /></label>
      <label>同义词<textarea rows="2" value=${form.synonyms_zh} placeholder="用顿号分开" data-testid="taxonomy-synonyms" onInput=${set("synonyms_zh")}></textarea></label>
      <${PathField} value=${form.category_path} tree=${tree} disabled=${!admin} onInput=${(value) => setForm({ ...form, category_path: value })} />
      <label class="switch"><input type="checkbox" checked=${form.forced_review} data-testid="taxonomy-forced" onChange=${set("forced_review")} /> 强制审核<small>模型再有把握也给人看。</small></label>
      ${label && html`<label class="switch"><input type="checkbox" checked=${!form.enabled} data-testid="taxonomy-off" onChange=${(event) => setForm({ ...form, enabled: !event.target.checked })} /> 停用<small>不再给图片打这个标签，也搜不到。</small></label>`}
      ${label && admin && html`<${OtherLabel} title="映射到" testid="taxonomy-map" hint="模型认出这个标签时，给图片打上另一个。" value=${form.maps_to} name=${name} onPick=${(id) => setForm({ ...form, maps_to: id })} onClear=${() => setForm({ ...form, maps_to: "" })} />`}
      ${label && admin && html`<${OtherLabel} title="合并到" testid="taxonomy-merge" hint="停用这个标签，它的名字成为另一个的同义词。" value=${into} name=${name} onPick=${setInto} onClear=${() => setInto("")} />`}
    </fieldset>
    ${admin && html`<p class="edit-actions"><button type="submit" class="main" data-testid="taxonomy-save" disabled=${!ready}>${into ? `预览：合并到“${name(into)}”` : "预览改动"}</button>${missing.length > 0 && html` <span class="soft">请填写${missing.map(([field]) => field).join("和")}。</span>`}</p>`}
  </form>`;
}

export function CategoryForm({ node, tree, onReview }) {
  const [path, setPath] = useState(node.path);
  const to = trimmed(path);
  const move = (event) => {
    event.preventDefault();
    if (to && to !== node.path) onReview(moveCategory(node.path, to));
  };
  return html`<form class="edit" onSubmit=${move}>
    <h2>类目：${leaf(node.path)}</h2><p class="soft">${node.labels == null ? "" : `${number(node.labels)} 个标签，连同下级一起改。`}</p>
    <${PathField} value=${path} tree=${tree} onInput=${setPath} />
    <p class="edit-actions"><button type="submit" class="main" data-testid="taxonomy-category-save" disabled=${!to || to === node.path}>预览改名或移动</button></p>
    <div class="field"><span class="field-title">强制审核</span><small>${node.forced ? "这一类的图片现在都给人看。" : "打开后，这一类的图片都给人看，模型再有把握也一样。"}</small>
      <p class="edit-actions"><button type="button" class="other" data-testid="taxonomy-category-force" onClick=${() => onReview(forceCategory(node.path, !node.forced))}>${node.forced ? "预览：不再强制" : "预览：整类强制审核"}</button></p></div>
  </form>`;
}
