// What was said and changed: one's last answers, proposed labels, taking back in bulk, and who changed what.

import { html, useEffect, useState } from "../vendor/htm-preact.js";
import { KINDS, moment, number } from "./format.js";
import * as outbox from "./outbox.js";
import { Proposals } from "./proposals.js";
import { Bulk } from "./records_bulk.js";
import { Thumbnail, useGot, Waiting } from "./records_parts.js";
import { countsText } from "./taxonomy_changes.js";

const STEP = 60;
const MOST = 500;

function Answer({ answer, me, onUndo }) {
  const says = answer.labels_zh?.length ? answer.labels_zh.join("、") : (KINDS[answer.kind] ?? answer.kind);
  const mine = answer.by === me.user;
  return html`<li class=${`answer kind-${answer.kind}${answer.retracted ? " is-gone" : ""}`} data-testid="answer" data-answer=${answer.answer_id}>
    <${Thumbnail} content=${answer.content} />
    <p class="answer-says"><b>${says}</b>${answer.labels_zh?.length > 0 && html`<small>${KINDS[answer.kind] ?? answer.kind}</small>`}</p>
    ${answer.no_badcase && !answer.retracted && html`<p class="answer-note" data-testid="answer-no-badcase">没有收为坏例：${answer.no_badcase}</p>`}
    <p class="answer-who">${mine ? "我" : answer.by} · ${moment(answer.answered_at, me.timezone)}</p>
    ${
      answer.retracted
        ? html`<p class="answer-gone">已撤销</p>`
        : mine &&
          me.role !== "viewer" &&
          html`<button type="button" class="link" data-testid="answer-undo" aria-label=${`撤销：${says}`} onClick=${() => onUndo(answer)}>撤销</button>`
    }
  </li>`;
}

function Answers({ app }) {
  const { me } = app;
  const [everybody, setEverybody] = useState(false);
  const [count, setCount] = useState(STEP);
  const { data, problem, reload } = useGot(`api/history?count=${count}${everybody ? "&everybody=true" : ""}`);
  const [leaving, setLeaving] = useState(() => new Set());
  useEffect(() => outbox.onUndone(reload), []);
  useEffect(() => outbox.onResult(reload), []);
  const undo = (answer) => {
    setLeaving(new Set([...leaving, answer.answer_id]));
    outbox.undo([answer.answer_id]);
  };
  const shown = (data?.answers ?? []).map((answer) =>
    leaving.has(answer.answer_id) ? { ...answer, retracted: true } : answer,
  );
  return html`<div class="tab-head"><h2>最近的答案</h2>
      ${me.role === "admin" && html`<label class="switch"><input type="checkbox" checked=${everybody} onChange=${(event) => setEverybody(event.target.checked)} /> 看所有人的</label>`}</div>
    ${!data || problem ? html`<${Waiting} problem=${problem} onAgain=${reload} />` : null}
    ${data && !shown.length && html`<p class="blank">还没有答案。</p>`}
    <ul class="answers">${shown.map((answer) => html`<${Answer} key=${answer.answer_id} answer=${answer} me=${me} onUndo=${undo} />`)}</ul>
    ${shown.length >= count && count < MOST && html`<p class="more"><button type="button" class="other" onClick=${() => setCount(Math.min(MOST, count * 2))}>再早一些</button></p>`}`;
}

const DECIDED = { accepted: "采纳为新标签", merged: "合并到已有的标签", refused: "没有采纳" };

function eventText({ action, subject, detail = {} }, timezone) {
  const count = detail.count ?? detail.taken_back ?? detail.answers;
  if (action === "took_back") {
    const when = detail.since ? `（${moment(detail.since, timezone)} 到 ${moment(detail.until, timezone)}）` : "";
    return `撤回了 ${detail.person ?? subject} ${count == null ? "一批" : `的 ${number(count)} 条`}答案${when}`;
  }
  if (action === "changed_taxonomy") {
    const what = countsText(detail.counts);
    return `改了标签体系${what && `（${what}）`}，新版本 ${subject}`;
  }
  if (action === "decided_proposal")
    return `新标签提议“${detail.label_zh ?? subject}”：${DECIDED[detail.decision] ?? detail.decision}`;
  return `${action} ${subject}`;
}

function Events({ app }) {
  const { data, problem, reload } = useGot("api/events?count=200");
  if (!data) return html`<${Waiting} problem=${problem} onAgain=${reload} />`;
  return html`<div class="tab-head"><h2>改动记录</h2></div>
    ${
      data.events.length
        ? html`<table class="events"><thead><tr><th scope="col">时间</th><th scope="col">谁</th><th scope="col">改动</th></tr></thead><tbody>
          ${data.events.map((event) => html`<tr key=${event.number || event.subject}><td class="nowrap">${moment(event.happened_at, app.me.timezone)}</td><td class="nowrap">${event.person}</td><td>${eventText(event, app.me.timezone)}</td></tr>`)}</tbody></table>`
        : html`<p class="blank">还没有改动。</p>`
    }`;
}

const TABS = [
  { id: "answers", name: "最近的答案", Page: Answers },
  { id: "proposals", name: "新标签提议", Page: Proposals },
  { id: "bulk", name: "批量撤回", Page: Bulk, admin: true },
  { id: "events", name: "改动记录", Page: Events },
];

export default function Records({ app }) {
  const tabs = TABS.filter((tab) => !tab.admin || app.me.role === "admin");
  const [chosen, setChosen] = useState("answers");
  const { Page } = tabs.find((tab) => tab.id === chosen) ?? tabs[0];
  const keys = (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    const to = tabs[(tabs.findIndex((tab) => tab.id === chosen) + step + tabs.length) % tabs.length];
    setChosen(to.id);
    event.currentTarget.querySelector(`#tab-${to.id}`).focus();
  };
  return html`<div class="pg-records">
    <div class="tabs" role="tablist" aria-label="记录" onKeyDown=${keys}>
      ${tabs.map((tab) => html`<button key=${tab.id} type="button" role="tab" id=${`tab-${tab.id}`} aria-selected=${tab.id === chosen ? "true" : "false"} aria-controls="tab-panel" tabindex=${tab.id === chosen ? 0 : -1} onClick=${() => setChosen(tab.id)}>${tab.name}</button>`)}
    </div>
    <div id="tab-panel" role="tabpanel" aria-labelledby=${`tab-${chosen}`}><${Page} app=${app} /></div>
  </div>`;
}
