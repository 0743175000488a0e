// Dialogs that ask for one thing more: why a picture is bad, what is wrong, whether a shared picture is meant.
import { html, useEffect, useRef, useState } from "../vendor/htm-preact.js";
import { examplePath, synonyms } from "./format.js";
import { Dialog } from "./ui.js";

const Option = ({ key_, name, note, onClick, testid }) => html`<button type="button" class="option" data-testid=${testid}
  aria-keyshortcuts=${key_} onClick=${(event) => event.detail < 2 && onClick()}><kbd aria-hidden="true">${key_}</kbd><span>${name}${note && html`<small>${note}</small>`}</span></button>`;

// What a person can see of a picture; the other reasons are about files, for pictures that do not open.
const BY_EYE = {
  not_an_image: ["不是商品图", "占位图、广告图，或只有文字"],
  corrupt: ["画面坏了", "花屏、色块，或打不开"],
  truncated: ["画面不完整", "只显示出一部分"],
  too_small: ["看不清", "图太小或太糊"],
};

const PASSING = "unreadable_uri"; // tried again every night: nothing to reject a picture for

/** x: the picture itself is bad. */
export function RejectDialog({ reasons, look }) {
  const [all, setAll] = useState(false);
  const seen = Object.keys(BY_EYE).filter((code) => code in reasons);
  const codes = [...seen, ...(all ? Object.keys(reasons).filter((code) => !(code in BY_EYE) && code !== PASSING) : [])].slice(0, 9);
  const reject = (reason) => look.answer({ kind: "reject_image", reason });
  const keys = Object.fromEntries(codes.map((code, index) => [String(index + 1), () => reject(code)]));
  return html`<${Dialog} title="图片有什么问题？" onClose=${look.shut} keys=${{ ...keys, x: look.shut }} testid="reject-sheet">
    <div class="options">${codes.map((code, index) => html`<${Option} key=${code} key_=${index + 1} name=${BY_EYE[code]?.[0] ?? reasons[code]} note=${BY_EYE[code]?.[1]} testid=${`reason-${code}`} onClick=${() => reject(code)} />`)}</div>
    ${!all && html`<p><button type="button" class="link" onClick=${() => setAll(true)}>显示文件方面的原因</button></p>`}
    <p class="soft">图片会作废，不再打标签。按 Esc 返回。</p>
  <//>`;
}

/** 0: none of these. Said alone, left for later, or with a new label proposed. */
export function NoneDialog({ me, look, text }) {
  const [proposing, setProposing] = useState(text !== undefined);
  if (proposing) return html`<${Propose} me=${me} look=${look} text=${text ?? ""} />`;
  const wrong = (more = {}) => look.answer({ kind: "wrong_unknown", ...more });
  const keys = { 0: () => wrong(), Enter: () => wrong(), l: () => wrong({ later: true }), n: () => setProposing(true), "/": () => { look.shut(); look.search(""); } };
  return html`<${Dialog} title="这些标签都不对" onClose=${look.shut} keys=${keys} testid="none-sheet">
    <div class="options">
      <${Option} key_="0" name="只记为“都不对”" note="不知道正确的标签，先撤下错的" testid="none-plain" onClick=${() => wrong()} />
      <${Option} key_="l" name="稍后再标" note="撤下错的，排到队列最前面，等人补上正确的标签" testid="none-later" onClick=${() => wrong({ later: true })} />
      <${Option} key_="/" name="搜索其他标签" note="正确的标签多半已经有了" onClick=${() => { look.shut(); look.search(""); }} />
      <${Option} key_="n" name="提议新标签…" note="标签体系里还没有这种商品" testid="none-propose" onClick=${() => setProposing(true)} />
    </div>
  <//>`;
}

function Propose({ me, look, text }) {
  const [wanted, setWanted] = useState({ label_zh: text, category_path: "", synonyms_zh: "", label_en: "" });
  const first = useRef(null);
  useEffect(() => first.current?.focus(), []);
  const field = (name) => ({ name, value: wanted[name], onInput: (event) => setWanted({ ...wanted, [name]: event.target.value }) });
  const [missing, setMissing] = useState(null);
  const form = useRef(null);
  const trimmed = () => ({
    ...Object.fromEntries(Object.entries(wanted).map(([name, value]) => [name, value.trim()])),
    synonyms_zh: synonyms(wanted.synonyms_zh),
  });
  const submit = (event) => {
    event.preventDefault();
    const empty = ["label_zh", "category_path"].find((name) => wanted[name].trim() === "");
    setMissing(empty ?? null);
    if (empty) form.current.elements[empty].focus();
    else look.answer({ kind: "wrong_unknown", proposal: trimmed() });
  };
  return html`<${Dialog} title="提议新标签" onClose=${look.shut} testid="propose-sheet">
    <form class="form" ref=${form} novalidate onSubmit=${submit}>
      <label>中文名称（必填）<input ref=${first} type="text" required maxlength="60" data-testid="propose-name" ...${field("label_zh")} />
        ${missing === "label_zh" && !wanted.label_zh.trim() && html`<span class="problem" role="alert">请填写中文名称。</span>`}</label>
      <label>类目（必填）<input type="text" required maxlength="200" list="propose-categories" data-testid="propose-category" placeholder=${`例如：${examplePath(me.kept_categories)}`} ...${field("category_path")} />
        ${missing === "category_path" && !wanted.category_path.trim() && html`<span class="problem" role="alert">请填写类目：可以选已有的，也可以写新的，各级之间用 > 分开。</span>`}</label>
      <datalist id="propose-categories">${me.kept_categories.map((path) => html`<option key=${path} value=${path} />`)}</datalist>
      <label>同义词<input type="text" maxlength="200" placeholder="可不填，用顿号分开" ...${field("synonyms_zh")} /></label>
      <label>英文名<input type="text" maxlength="120" placeholder="可不填" ...${field("label_en")} /></label>
      <p class="soft">由审核管理员决定：采纳后，这张图片自动改成新标签；没有采纳，就排到队列最前面，等人补上。在那之前记为“都不对”，不再排队。</p>
      <div class="row end"><button type="button" class="other" onClick=${look.shut}>返回</button><button type="submit" class="main" data-testid="propose-submit">提交提议</button></div>
    </form>
  <//>`;
}

/** One picture behind many products: a placeholder more often than not. */
export function SharedDialog({ dialog, look, me }) {
  const { item, change, message, wait = 0 } = dialog;
  const give = (more) => {
    look.setLast(null);
    if (look.queue.current?.content !== item.content) look.queue.putBack(item);
    look.give(item, more);
  };
  const back = () => {
    look.shut();
    if (look.queue.current?.content !== item.content) look.queue.putBack(item);
  };
  const all = () => give({ ...change, shared_ok: true });
  const reason = ["placeholder", "not_an_image", ...Object.keys(me.reasons)].find((code) => code in me.reasons);
  const placeholder = () => give({ kind: "reject_image", reason, shared_ok: true });
  return html`<${Dialog} title=${`这张图片被 ${item.skus} 个商品共用，可能是占位图`} onClose=${back} wait=${wait} testid="shared-sheet"
    keys=${{ 1: placeholder, 2: all }}>
    <p>${message || "答案会用在所有这些商品上，请再看一眼。"}</p>
    <div class="options">
      <${Option} key_="1" name="是占位图或通用图" note="标为图片有问题，这些商品都不用它打标签" testid="shared-reject" onClick=${placeholder} />
      <${Option} key_="2" name=${`不是，用于全部 ${item.skus} 个商品`} note="它们确实是同一种商品" testid="shared-all" onClick=${all} />
      <${Option} key_="Esc" name="先不回答" note="回到这张图片" testid="shared-back" onClick=${back} />
    </div>
  <//>`;
}
