// Taking a bad morning back: whose answers, from when to when, of which label; first what it would do, then for real.

import { html, useMemo, useState } from "../vendor/htm-preact.js";
import { send } from "./api.js";
import { asLocal, fromLocal, number } from "./format.js";
import * as outbox from "./outbox.js";
import { LabelPicker } from "./picker.js";
import { Thumbnail, useGot } from "./records_parts.js";

function Preview({ preview, person, onApply, busy }) {
  const [typed, setTyped] = useState("");
  const { count, labels, samples, already } = preview;
  if (!count)
    return html`<p class="blank">${person} 在这段时间没有可以撤回的答案${already ? `（${number(already)} 条已经撤回过）` : ""}。</p>`;
  const sure = Number(typed) === count;
  return html`<section class="bulk-preview" aria-labelledby="bulk-title">
    <h2 id="bulk-title">会撤回 ${person} 的 ${number(count)} 条答案</h2>
    <p class="soft">这些图片会重新排队，等人再看一遍；答案的记录仍然保留。${already > 0 && `另有 ${number(already)} 条以前已经撤回。`}</p>
    <ul class="bulk-labels">${labels.slice(0, 12).map((label) => html`<li key=${label.label_id}>${label.label_zh ?? label.label_id ?? "没有标签"} <b>${number(label.count)}</b></li>`)}${labels.length > 12 && html`<li>还有 ${number(labels.length - 12)} 种标签</li>`}</ul>
    <div class="bulk-samples">${samples.map((content) => html`<${Thumbnail} key=${content} content=${content} />`)}</div>
    ${samples.length < count && html`<p class="soft">上面是其中 ${number(samples.length)} 张。</p>`}
    <form class="bulk-sure" onSubmit=${(event) => {
      event.preventDefault();
      if (sure && !busy) onApply();
    }}>
      <label>为防误操作，请输入条数 <b>${count}</b> <input type="text" inputmode="numeric" autocomplete="off" size="6" value=${typed} data-testid="bulk-typed" onInput=${(event) => setTyped(event.target.value.trim())} /></label>
      <button type="submit" class="danger" data-testid="bulk-apply" disabled=${!sure || busy}>撤回这 ${number(count)} 条</button>
    </form>
  </section>`;
}

export function Bulk({ app }) {
  const { me } = app;
  const [person, setPerson] = useState("");
  const [since, setSince] = useState(`${me.today}T00:00`);
  const [until, setUntil] = useState(() => asLocal(new Date(Date.now() + 60_000), me.timezone));
  const [label, setLabel] = useState(null);
  const [preview, setPreview] = useState(null);
  const [problem, setProblem] = useState("");
  const [busy, setBusy] = useState(false);
  const { data } = useGot("api/history?count=500&everybody=true");
  const people = useMemo(() => [...new Set((data?.answers ?? []).map((answer) => answer.by))].sort(), [data]);
  const selection = () => ({
    person: person.trim(),
    since: fromLocal(since, me.timezone),
    until: fromLocal(until, me.timezone),
    label_id: label?.label_id ?? null,
  });
  const changed = (set) => (event) => {
    set(event.target.value);
    setPreview(null);
  };
  const ask = async (path, body, then) => {
    setBusy(true);
    setProblem("");
    try {
      then(await send(path, body));
    } catch (error) {
      setProblem(error.message);
    }
    setBusy(false);
  };
  const look = (event) => {
    event.preventDefault();
    const wanted = selection();
    if (!wanted.since || !wanted.until || wanted.since >= wanted.until) return setProblem("开始时间要早于结束时间。");
    return ask("api/bulk/preview", wanted, (told) => setPreview({ ...told, selection: wanted }));
  };
  const apply = () =>
    ask("api/bulk/take-back", { ...preview.selection, upto: preview.upto, at: preview.at, count: preview.count }, (told) => {
      setPreview(null);
      app.toast(`撤回了 ${preview.selection.person} 的 ${number(told.count)} 条答案，图片已重新排队。`);
      outbox.flush();
      app.recount();
    });
  return html`<div class="tab-head"><h2>批量撤回</h2><p class="soft">有人看错了一批？选出是谁、哪段时间，先预览，再撤回。</p></div>
    <form class="bulk-form" onSubmit=${look}>
      <label>谁的答案<input type="text" required list="bulk-people" autocomplete="off" data-testid="bulk-person" value=${person} onInput=${changed(setPerson)} /></label>
      <datalist id="bulk-people">${people.map((name) => html`<option value=${name}></option>`)}</datalist>
      <label>从<input type="datetime-local" required data-testid="bulk-since" value=${since} onInput=${changed(setSince)} /></label>
      <label>到<input type="datetime-local" required data-testid="bulk-until" value=${until} onInput=${changed(setUntil)} /></label>
      <div class="bulk-label"><span>只撤回这个标签（可不选）</span>${
        label
          ? html`<button type="button" class="token" aria-label=${`不限标签：${label.label_zh}`} onClick=${() => {
              setLabel(null);
              setPreview(null);
            }}>${label.label_zh}<span class="token-x" aria-hidden="true">×</span></button>`
          : html`<${LabelPicker} testid="bulk-label" placeholder="全部标签" onPick=${(picked) => {
              setLabel(picked);
              setPreview(null);
            }} />`
      }</div>
      <button type="submit" class="main" data-testid="bulk-preview" disabled=${busy || !person.trim()}>预览</button>
    </form>
    ${problem && html`<p class="problem" role="alert">${problem}</p>`}
    ${preview && html`<${Preview} preview=${preview} person=${preview.selection.person} busy=${busy} onApply=${apply} />`}`;
}
