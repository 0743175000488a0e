// What stands around the thumbnails: the labels that wait, the bar, and what is said when there are none.

import { html, useEffect, useRef, useState } from "../vendor/htm-preact.js";
import { number } from "./format.js";
import { Board, writing } from "./grid_board.js";
import { COUNT, NONE } from "./grid_lease.js";
import { Dialog } from "./ui.js";

const LISTED = 300;

export function Labels({ labels, chosen, error, onChoose }) {
  const [wanted, setWanted] = useState("");
  const found = (labels ?? NONE).filter((label) => label.name.toLowerCase().includes(wanted.trim().toLowerCase()));
  const enter = (event) => {
    if (event.key !== "Enter" || event.isComposing || !found.length) return;
    event.preventDefault();
    onChoose(found[0]);
    event.target.blur();
  };
  return html`<nav class="side-labels" aria-label="按预测的标签">
    <input type="search" placeholder="找标签" aria-label="找标签" value=${wanted} onInput=${(event) => setWanted(event.target.value)} onKeyDown=${enter} />
    ${
      labels
        ? html`<ul>
          ${found.slice(0, LISTED).map((label) => html`<li key=${label.id}><button type="button" data-testid="grid-label" data-label=${label.id} aria-current=${label.id === chosen?.id ? "true" : undefined} title=${label.name} onClick=${() => onChoose(label)}>
            <span class="side-name">${label.name}</span><span class="side-count">${number(label.count)}</span></button></li>`)}
        </ul>`
        : html`<p class="soft">${error ? error.message : "正在数……"}</p>`
    }
    ${found.length > LISTED && html`<p class="soft side-none">还有 ${number(found.length - LISTED)} 个，请输入名字来找。</p>`}
    ${labels && !found.length && html`<p class="soft side-none">${wanted ? "没有这个标签在等。" : "没有图片在等。"}</p>`}
  </nav>`;
}

export function Marking({
  label,
  labels,
  board: { items, turn },
  wrong,
  seen,
  cursor,
  problem,
  onToggle,
  onLook,
  onDone,
  onChoose,
  onBack,
  onAgain,
}) {
  if (problem)
    return html`<div class="blank" role="alert"><h2>没有取到图片</h2><p>${problem}</p><button type="button" class="other" onClick=${onAgain}>再试一次</button></div>`;
  if (!label)
    return html`<div class="blank"><h2>${labels ? "现在没有要看的图片" : "正在打开……"}</h2>${labels && html`<p>昨夜的图片看完了，或者被上面的筛选挡住了。</p>`}</div>`;
  if (!items)
    return html`<div class="grid-scroll"><h2 class="grid-title">这些都是“${label.name}”吗？</h2><ul class="board is-loading" aria-hidden="true">${Array.from({ length: COUNT }, (_, place) => html`<li key=${place}><span class="cell"></span></li>`)}</ul></div>`;
  if (!items.some((item) => item.has_picture))
    return html`<${Finished} label=${label} labels=${labels} onChoose=${onChoose} onBack=${onBack} />`;
  const right = items.filter((item) => seen.seen.has(item.content) && !wrong.has(item.content)).length;
  const blind = items.filter(
    ({ has_picture: there, content }) => (!there || seen.failed.has(content)) && !wrong.has(content),
  ).length;
  const unseen = items.length - right - wrong.size - blind;
  return html`<div class="grid-scroll"><h2 class="grid-title">这些都是“${label.name}”吗？ <small>点出不是的；空格标错，方向键移动，按住 Shift 选一段</small></h2>
    <${Board} key=${turn} items=${items} wrong=${wrong} seen=${seen} cursor=${cursor} onToggle=${onToggle} onLook=${onLook} onDone=${onDone} /></div>
    <div class="gridbar" role="group" aria-label="这一屏">
      <p class="gridbar-says" aria-live="polite"><b class="is-right">${number(right)} 张将记为正确</b>，<b class=${wrong.size ? "is-wrong" : ""}>${number(wrong.size)} 张标错</b>
        ${unseen > 0 && html`<span class="gridbar-unseen"> · ${number(unseen)} 张还没看到，不作答（往下滚动）</span>`}
        ${blind > 0 && html`<span class="gridbar-unseen"> · ${number(blind)} 张看不到图片，不作答</span>`}
        ${seen.failed.size > 0 && html` <button type="button" class="link" onClick=${onAgain}>重新载入</button>`}</p>
      ${wrong.size > 0 && html`<button type="button" class="link" onClick=${() => onToggle([...wrong], false)}>清除标记</button>`}
      ${onBack && html`<button type="button" class="link" data-testid="grid-undo" onClick=${onBack}>撤销上一屏 <kbd>U</kbd></button>`}
      <button type="button" class="main" data-testid="grid-done" disabled=${!(right || wrong.size)} onClick=${onDone}>完成 <kbd>Enter</kbd></button>
    </div>`;
}

function Finished({ label, labels, onChoose, onBack }) {
  const place = (labels ?? NONE).findIndex((other) => other.id === label.id);
  const next =
    (labels ?? NONE).filter((other) => other.id !== label.id)[Math.max(0, place)] ??
    (labels ?? NONE).find((other) => other.id !== label.id);
  const more = place >= 0;
  const button = useRef(null);
  useEffect(() => {
    if (!writing()) button.current?.focus();
  }, [next?.id]);
  return html`<div class="blank" data-testid="grid-finished">
    <h2>“${label.name}”${more ? "剩下的要逐张看" : "看完了"}</h2>
    <p>${more ? "它们没有图片、别人正在看，或者要两个人看。请到“逐张审核”里处理。" : "这个标签没有图片在等了。"}</p>
    <p class="blank-actions">${next && html`<button type="button" class="main" ref=${button} onClick=${() => onChoose(next)}>下一个标签：${next.name}（${number(next.count)}）</button>`}
      ${onBack && html`<button type="button" class="other" data-testid="grid-undo" onClick=${onBack}>撤销上一屏</button>`}</p>
  </div>`;
}

/** What becomes of the marks on a board that is left: `onLeave(onSave or onForget)`. */
export function Leaving({ count, onStay, onLeave, onSave, onForget }) {
  const [save, forget] = [() => onLeave(onSave), () => onLeave(onForget)];
  return html`<${Dialog} title=${`标错的 ${number(count)} 张还没有保存`} onClose=${onStay} keys=${{ 1: save, 2: forget }} testid="grid-leaving">
    <div class="options">
      <button type="button" class="option" data-testid="grid-leaving-save" onClick=${save}><kbd aria-hidden="true">1</kbd><span>保存为“标错”<small>排到队列最前面，稍后逐张处理</small></span></button>
      <button type="button" class="option" data-testid="grid-leaving-forget" onClick=${forget}><kbd aria-hidden="true">2</kbd><span>不要这些标记<small>图片不作答，留在队列里</small></span></button>
    </div>
    <p class="soft">按 Esc 留在这一屏。</p>
  <//>`;
}
