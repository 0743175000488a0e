// Labels that people missed: an admin takes them up, points them to one that is there, or refuses.

import { html, useState } from "../vendor/htm-preact.js";
import { get, send } from "./api.js";
import { examplePath, moment } from "./format.js";
import * as labels from "./labels.js";
import { LabelPicker } from "./picker.js";
import { Thumbnail, Waiting, useGot } from "./records_parts.js";

const STATES = { accepted: "已采纳", merged: "已合并", refused: "未采纳" };

function Accept({ proposal, paths, onDecide, onCancel, busy }) {
  const [name, setName] = useState(proposal.label_zh);
  const [path, setPath] = useState(proposal.category_path);
  return html`<form class="proposal-form" onSubmit=${(event) => {
    event.preventDefault();
    onDecide({ decision: "accept", label_zh: name.trim(), category_path: path.trim() });
  }}>
    <label>名称<input required value=${name} onInput=${(event) => setName(event.target.value)} /></label>
    <label>类目<input required value=${path} list="proposal-categories" autocomplete="off" placeholder=${`例如：${examplePath(paths)}`} onInput=${(event) => setPath(event.target.value)} /></label>
    <datalist id="proposal-categories">${paths.map((one) => html`<option key=${one} value=${one} />`)}</datalist>
    <button type="submit" class="main" disabled=${busy} data-testid="proposal-accept-sure">采纳</button><button type="button" class="link" onClick=${onCancel}>取消</button>
  </form>`;
}

function Proposal({ proposal, me, onDecide, busy }) {
  const [step, setStep] = useState("");
  const id = proposal.proposal_id ?? proposal.id;
  const decide = (decision) => onDecide(id, decision);
  const open = !proposal.state || proposal.state === "open";
  return html`<li class="proposal" data-testid="proposal" data-proposal=${id}>
    <${Thumbnail} content=${proposal.content ?? proposal.content_sha256} />
    <div class="proposal-text">
      <h3>${proposal.label_zh}${proposal.label_en && html` <small>${proposal.label_en}</small>`}</h3>
      <p class="soft">${proposal.category_path || "没有写类目"}${proposal.synonyms_zh && ` · 也叫 ${proposal.synonyms_zh.replaceAll("|", "、")}`}</p>
      <p class="faint">${proposal.person} · ${moment(proposal.proposed_at, me.timezone)}</p>
      ${step === "accept" && html`<${Accept} proposal=${proposal} paths=${me.kept_categories ?? []} busy=${busy} onDecide=${decide} onCancel=${() => setStep("")} />`}
      ${step === "merge" && html`<div class="proposal-form"><${LabelPicker} focus testid="proposal-search" placeholder="合并到哪个标签？" initial=${proposal.label_zh} onPick=${(label) => decide({ decision: "merge", label_id: label.label_id })} onCancel=${() => setStep("")} /></div>`}
      ${step === "refuse" && html`<p class="proposal-form">图片会排到队列最前面，等人选一个已有的标签。<button type="button" class="danger" disabled=${busy} data-testid="proposal-refuse-sure" onClick=${() => decide({ decision: "refuse" })}>不采纳</button><button type="button" class="link" onClick=${() => setStep("")}>取消</button></p>`}
    </div>
    ${!open && html`<p class="faint">${STATES[proposal.state]} · ${proposal.decided_by}</p>`}
    ${open && me.role === "admin" && !step && html`<p class="proposal-actions"><button type="button" class="other" data-testid="proposal-accept" onClick=${() => setStep("accept")}>采纳</button><button type="button" class="other" data-testid="proposal-merge" onClick=${() => setStep("merge")}>合并到已有的</button><button type="button" class="link" data-testid="proposal-refuse" onClick=${() => setStep("refuse")}>不采纳</button></p>`}
  </li>`;
}

export function Proposals({ app }) {
  const { data, problem, reload } = useGot("api/proposals");
  const [busy, setBusy] = useState(false);
  const [refused, setRefused] = useState("");
  const decide = async (id, decision) => {
    setBusy(true);
    setRefused("");
    try {
      await send(`api/proposals/${encodeURIComponent(id)}`, decision);
      app.toast(
        { accept: "已采纳，标签体系有了新版本。", merge: "已合并。", refuse: "已记下：不采纳。" }[decision.decision],
      );
      reload();
      app.recount();
      if (decision.decision === "accept") await labels.load((await get("api/me")).taxonomy_version);
    } catch (error) {
      setRefused(error.message);
    }
    setBusy(false);
  };
  const proposals = data?.proposals ?? [];
  return html`<div class="tab-head"><h2>新标签提议</h2><p class="soft">审核时没有合适的标签，可以提议一个新的。${app.me.role === "admin" ? "采纳以后，提议人看的那张图就用上它。" : "由管理员决定是否采纳。"}</p></div>
    ${refused && html`<p class="problem" role="alert">${refused}</p>`}
    ${!data ? html`<${Waiting} problem=${problem} onAgain=${reload} />` : !proposals.length && html`<p class="blank">没有等待决定的提议。</p>`}
    <ul class="proposals">${proposals.map((proposal) => html`<${Proposal} key=${proposal.proposal_id ?? proposal.id} proposal=${proposal} me=${app.me} onDecide=${decide} busy=${busy} />`)}</ul>`;
}
