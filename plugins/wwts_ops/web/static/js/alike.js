// What may be the same thing: the SKU's other images and look-alikes. Nothing is answered without a click on it.
import { html } from "../vendor/htm-preact.js";
import { pictureUrl } from "./api.js";
import { Dialog } from "./ui.js";

/** [{title, testid, pictures}] of an item's detail; what is in both is a sibling. */
function groups(detail, item) {
  const siblings = detail.siblings.filter((one) => one.content && one.content !== item.content);
  const seen = new Set(siblings.map((one) => one.content));
  const alike = detail.alike.filter((one) => one.content !== item.content && !seen.has(one.content));
  return [
    { title: "同款图片", testid: "siblings", pictures: siblings },
    { title: "相似图片", testid: "alike", pictures: alike },
  ].filter((group) => group.pictures.length);
}

function toggler({ draft, set }) {
  return (content) => {
    const also = new Set(draft.also);
    if (!also.delete(content)) also.add(content);
    set({ also });
  };
}

/** A thumbnail that was clicked keeps no focus: Enter then confirms, instead of taking the choice back. */
function clicked(event, toggle) {
  toggle();
  if (event.detail && !event.currentTarget.closest("dialog")) document.getElementById("stage")?.focus({ preventScroll: true }); // 0: by the keyboard
}

function Thumb({ one, chosen, onToggle, may }) {
  const name = one.label_zh || one.title || one.image_id;
  return html`<button type="button" class="thumb" role="checkbox" aria-checked=${chosen ? "true" : "false"} disabled=${!may}
    data-content=${one.content} aria-label=${`${chosen ? "已选" : "选上"}：${name}`} title=${name} onClick=${(event) => clicked(event, () => onToggle(one.content))}>
    <img src=${pictureUrl(one.content)} alt="" loading="lazy" decoding="async" />
    <svg viewBox="0 0 16 16" aria-hidden="true"><path d="M3 8.5l3.2 3.2L13 5" /></svg></button>`;
}

/** The row below the photo. It keeps its height, so that the photo does not jump from item to item. */
export function Strip({ look, may }) {
  const { item, queue, draft } = look;
  const detail = queue.detail(item);
  if (!detail) return html`<div class="strip" aria-busy="true"><div key="waiting" class="group"><h2>正在找同款……</h2><div class="thumbs">${[1, 2, 3].map((one) => html`<span key=${one} class="thumb shimmer"></span>`)}</div></div></div>`;
  const shown = groups(detail, item);
  if (!shown.length) return html`<div class="strip"><p class="soft">${detail.error ? "同款图片暂时读不到，可以先回答这一张。" : "没有同款或相似的图片。"}</p></div>`;
  const toggle = toggler(look);
  return html`<div class="strip">
    ${shown.map((group) => html`<section key=${group.testid} class="group" data-testid=${group.testid} aria-label=${group.title}>
      <h2>${group.title} <b>${group.pictures.length}</b></h2>
      <div class="thumbs">${group.pictures.slice(0, 12).map((one) => html`<${Thumb} key=${one.content} one=${one} may=${may}
        chosen=${draft.also.has(one.content)} onToggle=${toggle} />`)}</div>
    </section>`)}
    <div key="together" class="together">
      <button type="button" class="other" aria-keyshortcuts="a" data-testid="open-alike" onClick=${() => look.open("alike")}><kbd aria-hidden="true">a</kbd>${may ? "挑选…" : "放大看…"}</button>
      ${may && html`<${Together} look=${look} />`}
    </div>
  </div>`;
}

function Together({ look }) {
  const { draft, item } = look;
  const count = draft.also.size;
  return html`<button type="button" class="main" data-testid="together" disabled=${!count || !item.label_id} onClick=${look.confirm}
    title=${item.label_id ? `连同选中的图片一起确认为“${item.label_zh}”` : ""}>一起确认${count ? `（${count + 1}）` : ""}</button>`;
}

/** All of them, large enough to judge. */
export function Alike({ look }) {
  const { item, queue, draft, set, shut } = look;
  const detail = queue.detail(item);
  const shown = detail ? groups(detail, item) : [];
  const may = look.app.may;
  const toggle = toggler(look);
  const all = shown.flatMap((group) => group.pictures.map((one) => one.content));
  const choose = () => may && set({ also: new Set(draft.also.size === all.length ? [] : all) });
  return html`<${Dialog} title="同款和相似图片" onClose=${shut} wide testid="alike-sheet"
    keys=${{ a: choose, Enter: shut, ArrowRight: () => step(1), ArrowLeft: () => step(-1) }}>
    <p class="soft">${!detail ? "正在读取……" : shown.length ? may ? "点选和这张同样的图片；随后选的标签会一起用在它们上面，没点的不受影响。" : "和这张同款或相似的图片。" : "没有同款或相似的图片。"}</p>
    <div class="sheet">
      <figure><img src=${pictureUrl(item.content)} alt="正在审核的图片" /><figcaption>正在审核的图片${item.label_zh && html`<small>模型认为：${item.label_zh}</small>`}</figcaption></figure>
      <div class="groups">${shown.map((group) => html`<section key=${group.testid}><h3>${group.title} <b>${group.pictures.length}</b></h3>
        <div class="thumbs">${group.pictures.map((one) => html`<${Thumb} key=${one.content} one=${one} may=${may} chosen=${draft.also.has(one.content)} onToggle=${toggle} />`)}</div></section>`)}</div>
    </div>
    <div class="row end">
      ${may && all.length > 0 && html`<button type="button" class="other" aria-keyshortcuts="a" onClick=${choose}><kbd aria-hidden="true">a</kbd>${draft.also.size === all.length ? "全不选" : "全选"}</button>`}
      <button type="button" class="main" onClick=${shut}>${draft.also.size ? `选好了（${draft.also.size}）` : "返回"}</button>
    </div>
  <//>`;
}

/** Arrow keys walk over the thumbnails; space ticks, as in any list of tick boxes. */
function step(by) {
  const thumbs = [...document.querySelectorAll("dialog .thumb")];
  const at = thumbs.indexOf(document.activeElement);
  thumbs[(at + by + thumbs.length) % thumbs.length]?.focus();
}
