// After a grid is done: the right label for those that were wrong, and the pictures that many products share.

import { html, useEffect, useMemo, useState } from "../vendor/htm-preact.js";
import { pictureUrl } from "./api.js";
import { number } from "./format.js";
import { byId } from "./labels.js";
import { LabelPicker } from "./picker.js";

/** A row of thumbnails of which some are chosen; all are at first. */
function Chosen({ items, chosen, onToggle, named }) {
  return html`<ul class="fix-items">
    ${items.map(
      (
        item,
      ) => html`<li key=${item.content}><button type="button" class=${`fix-item${chosen.has(item.content) ? " is-chosen" : ""}`} aria-pressed=${chosen.has(item.content)}
      aria-label=${item.title || item.image_id} title=${item.title} onClick=${() => onToggle(item.content)}>
      ${item.has_picture ? html`<img src=${pictureUrl(item.content)} alt="" />` : html`<span class="cell-none">没有图片</span>`}
      <span class="fix-tick" aria-hidden="true">✓</span>${named?.(item)}</button></li>`,
    )}
  </ul>`;
}

function useChosen(items) {
  const [left, setLeft] = useState(() => new Set());
  useEffect(() => setLeft(new Set()), [items]);
  const toggle = (content) => {
    const next = new Set(left);
    if (!next.delete(content)) next.add(content);
    setLeft(next);
  };
  return [items.filter((item) => !left.has(item.content)), toggle];
}

/**
 * Gives wrong pictures a right label, some at a time: `onLabel(items, label)`; `onLater(items)` for the rest.
 */
export function Fix({ items, label, onLabel, onLater }) {
  const [chosen, toggle] = useChosen(items);
  const contents = new Set(chosen.map((item) => item.content));
  return html`<section class="fix" aria-labelledby="fix-title" data-testid="grid-fix">
    <div class="fix-head">
      <div><h2 id="fix-title">给这 ${number(chosen.length)} 张选一个正确的标签</h2>
        <p class="soft">它们不是“${label.name}”。${items.length > 1 && "标签不一样的，点一下图片先放一边，这一批选好后再选下一批。"}</p></div>
      <p><button type="button" class="other" data-testid="grid-later" aria-describedby="fix-later" onClick=${() => onLater(items)}>稍后逐张处理</button>
        <small id="fix-later" class="soft">先记为“标错”，排到队列最前面。</small></p>
    </div>
    <div class="fix-columns">
      <${Chosen} items=${items} chosen=${contents} onToggle=${toggle} />
      <div class="fix-pick" data-testid="grid-pick">
        ${
          chosen.length
            ? html`<${LabelPicker} focus=${items} placeholder="它们其实是什么？中文、拼音、首字母或英文" testid="grid-search" onPick=${(picked) => onLabel(chosen, picked)} onCancel=${() => onLater(items)} />`
            : html`<p class="soft">先点选图片。</p>`
        }
      </div>
    </div>
  </section>`;
}

/** Pictures on many products, of which the server wants to hear once more: [{item, action}]. */
export function Shared({ asked, onConfirm, onLeave }) {
  const items = useMemo(() => asked.map(({ item }) => item), [asked]);
  const [chosen, toggle] = useChosen(items);
  const actions = new Map(asked.map(({ item, action }) => [item.content, action]));
  const said = ({ content, label_zh }) => {
    const { kind, labels } = actions.get(content);
    return kind === "confirm" ? label_zh : (byId(labels[0])?.label_zh ?? "标错");
  };
  return html`<section class="fix is-notice" aria-labelledby="shared-title" data-testid="grid-shared" role="alert">
    <h2 id="shared-title">这 ${number(items.length)} 张图是很多商品共用的</h2>
    <p class="soft">也许是占位图。一个答案会用到所有这些商品上，所以还没有保存。真的都是吗？</p>
    <${Chosen} items=${items} chosen=${new Set(chosen.map((item) => item.content))} onToggle=${toggle} named=${(item) => html`<span class="fix-note">${said(item)}<br />${number(item.skus)} 个商品</span>`} />
    <p class="fix-actions"><button type="button" class="main" data-testid="grid-shared-confirm" disabled=${!chosen.length} onClick=${() => onConfirm(asked.filter(({ item }) => chosen.includes(item)))}>是，保存这 ${number(chosen.length)} 张</button>
      <button type="button" class="other" data-testid="grid-shared-leave" onClick=${onLeave}>先不保存，留给逐张审核</button></p>
  </section>`;
}
