// The right-hand side: what it is, why it is shown, the labels to choose from, everything else one can say.
import { html } from "../vendor/htm-preact.js";
import { pictureUrl } from "./api.js";
import { DECISIONS, titleOf } from "./format.js";
import { LabelPicker } from "./picker.js";
import { number, percent, ReadOnly } from "./ui.js";


export function Panel({ look, app }) {
  const { item } = look;
  return html`<aside class="panel" aria-label="回答">
    <${Facts} item=${item} />
    <${Opinions} look=${look} />
    ${app.may
      ? html`<${LabelPicker} focus=${look.searching.count || false} initial=${look.searching.text}
          onPick=${(label) => look.choose(label)} onCancel=${look.shut} onPropose=${(text) => look.open("none", { text })}
          extra=${html`<kbd aria-hidden="true" class="inbox">/</kbd>`} />`
      : html`<${ReadOnly} me=${app.me} />`}
    <${Choices} look=${look} may=${app.may} />
    ${app.may
      ? html`<${Others} look=${look} /><${Extras} look=${look} /><${Last} look=${look} />`
      : html`<${Steps} queue=${look.queue} />`}
  </aside>`;
}

/** Back and forth, for those who only look. */
function Steps({ queue }) {
  const Step = ({ by, name, key_, arrow }) => html`<button type="button" class="other" aria-keyshortcuts=${key_} disabled=${!queue.leads(by)}
    data-testid=${by > 0 ? "next" : "previous"} onClick=${() => queue.step(by)}><kbd aria-hidden="true">${arrow}</kbd>${name}</button>`;
  return html`<div class="steps" role="group" aria-label="翻看">
    <${Step} by=${-1} name="上一张" key_="ArrowLeft" arrow="←" /><${Step} by=${1} name="下一张" key_="ArrowRight" arrow="→" />
    <p class="soft" role="status">第 ${number(queue.at + 1)} 张，共 ${number(Math.max(queue.left ?? 0, queue.items.length))} 张待审</p>
  </div>`;
}

function Facts({ item }) {
  const kind = item.shown_because in DECISIONS ? item.shown_because : item.decision;
  return html`<div class="facts">
    <p class="why"><b class=${kind}>${DECISIONS[kind] ?? DECISIONS.review}</b>
      ${item.state === "later" && html`<b class="later">待补标签</b>`}
      ${item.needed > 1 && html`<b class="later">需两人审核</b>`}
      <span title=${item.reason_zh}>${item.reason_zh}</span></p>
    <h2 title=${titleOf(item)}>${titleOf(item)}</h2>
    <p class="ids">${item.sku_id && html`<span class="sku" title=${item.sku_id}>SKU ${item.sku_id}</span>`}<span title=${item.image_id}>${titleOf(item) !== item.image_id && item.image_id}</span><span>${item.date}</span></p>
  </div>`;
}

function Opinions({ look }) {
  const { item, queue } = look;
  if (item.state !== "disputed") return null;
  const opinions = queue.detail(item)?.opinions;
  return html`<div class="opinions" role="note"><b>两个人的答案不一样，由您来定：</b>
    ${opinions ? html`<ul>${opinions.map((one) => html`<li key=${one.by}>${one.by}：${said(one)}</li>`)}</ul>` : html`<ul><li>正在读取……</li></ul>`}</div>`;
}

const SAID = { reject_image: "图片有问题", wrong_unknown: "都不对" };
const said = ({ kind, labels_zh }) => (labels_zh?.length ? labels_zh.join("、") : (SAID[kind] ?? kind));

function Choices({ look, may }) {
  const { item } = look;
  const tags = item.tags.slice(0, 5);
  return html`<ol class="choices5" aria-label="模型给出的标签">
    ${tags.map((tag, index) => html`<li key=${index}><button type="button" class=${`choice ${tag.label_id === item.label_id ? "first" : ""}`}
      data-testid=${`choice-${index + 1}`} data-label=${tag.label_id} aria-keyshortcuts=${index ? `${index + 1}` : "1 Enter"} disabled=${!may}
      aria-label=${`${index + 1}，${tag.label_zh}，${percent(tag.score)}${tag.category_path ? `，${tag.category_path}` : ""}`}
      onClick=${(event) => event.detail < 2 && look.choose(tag)}>
      <kbd>${index + 1}</kbd>
      <span class="name">${tag.label_zh}</span>
      ${tag.label_id === item.label_id && may && html`<span class="enter">回车确认</span>`}
      <span class="score">${percent(tag.score)}</span>
      <span class="path">${tag.category_path || "未归类"}</span>
      <svg class="meter" preserveAspectRatio="none" viewBox="0 0 1 1" aria-hidden="true"><rect width=${tag.score} height="1" /></svg>
    </button></li>`)}
    ${!tags.length && html`<li class="nothing">模型没有给出标签。请在上面搜索一个。</li>`}
  </ol>`;
}

const Other = ({ name, key_, testid, onClick }) => html`<button type="button" class="other" data-testid=${testid}
  aria-keyshortcuts=${key_} onClick=${(event) => event.detail < 2 && onClick()}><kbd aria-hidden="true">${key_}</kbd>${name}</button>`;

function Others({ look }) {
  return html`<div class="others" role="group" aria-label="其他回答">
    <${Other} name="都不对" key_="0" testid="none" onClick=${() => look.open("none")} />
    <${Other} name="图片有问题" key_="x" testid="reject" onClick=${() => look.open("reject")} />
    <${Other} name="跳过" key_="s" testid="skip" onClick=${look.skip} />
    <${Other} name="撤销" key_="u" testid="undo" onClick=${look.undo} />
  </div>`;
}

function Extras({ look }) {
  const { draft, set } = look;
  const leave = (event) => {
    if ((event.key === "Escape" || event.key === "Enter") && !event.isComposing && event.keyCode !== 229) {
      event.preventDefault();
      look.shut();
    }
  };
  return html`<div class="extras">
    <label class="comment"><span class="hidden">备注</span>
      <input type="text" maxlength="500" placeholder="备注（可不填）" data-testid="comment" value=${draft.comment}
        onInput=${(event) => set({ comment: event.target.value })} onKeyDown=${leave} /><kbd aria-hidden="true" class="inbox">c</kbd></label>
    <label class="tick" title="模型在这张图上错得典型，收进坏例，每个新模型都要考它"><input type="checkbox" data-testid="badcase"
      checked=${draft.badcase || draft.never} disabled=${draft.never} onChange=${(event) => set({ badcase: event.target.checked })} />收为坏例<kbd aria-hidden="true">b</kbd></label>
    <label class="tick" title="新模型只要在这张图上再错，就不能上线"><input type="checkbox" data-testid="never"
      checked=${draft.never} onChange=${(event) => set({ never: event.target.checked })} />以后不许再错<kbd aria-hidden="true">n</kbd></label>
  </div>`;
}

/** The last step, always at the same place: what was said, and the way back. */
function Last({ look }) {
  const { last } = look;
  return html`<div class="last" role="status" data-testid="last">
    ${last
      ? html`<img src=${pictureUrl(last.item.content)} alt="" hidden=${!last.item.has_picture} /><span class="what">上一张：${last.text}</span>
          <button type="button" class="link" onClick=${look.undo}>撤销</button>`
      : html`<span class="what soft">看图，按数字键选标签；按 ? 看全部快捷键。</span>`}
  </div>`;
}
