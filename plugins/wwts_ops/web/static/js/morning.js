// How the morning goes: what waits, when it will be done, how good the night was, and the night's reports.

import { html, useEffect, useState } from "../vendor/htm-preact.js";
import { get, url } from "./api.js";
import { asLocal, day, moment, number, percent } from "./format.js";

const EVERY = 60_000;
const TOO_FEW = 30; // answers of which an estimate says anything

function useFigures() {
  const [figures, setFigures] = useState(null);
  const [problem, setProblem] = useState("");
  useEffect(() => {
    let gone = false;
    const load = async () => {
      try {
        const told = await get("api/morning");
        if (!gone) setFigures(told);
        if (!gone) setProblem("");
      } catch (error) {
        if (!gone) setProblem(error.message);
      }
    };
    load();
    const timer = setInterval(() => document.visibilityState === "visible" && load(), EVERY);
    return () => {
      gone = true;
      clearInterval(timer);
    };
  }, []);
  return { figures, problem };
}

const clock = (iso, timezone) =>
  iso &&
  new Intl.DateTimeFormat("zh-CN", { hour: "2-digit", minute: "2-digit", hourCycle: "h23", timeZone: timezone }).format(
    new Date(iso),
  );

/** A share with its interval, all of them on one scale. */
function Interval({ low, value, high, name }) {
  const at = (share) => 100 * share;
  return html`<div class="interval">
    <svg role="img" aria-label=${`${name} ${percent(value)}，95% 区间 ${percent(low)} 到 ${percent(high)}`} viewBox="0 0 100 12" preserveAspectRatio="none">
      <rect class="interval-track" x="0" y="4" width="100" height="4" /><rect class="interval-range" x=${at(low)} y="2" width=${Math.max(0.6, at(high) - at(low))} height="8" />
      <rect class="interval-value" x=${Math.min(99, at(value))} y="0" width="1" height="12" /></svg>
    <p aria-hidden="true"><span>0%</span><span>95% 区间 ${percent(low)} – ${percent(high)}</span><span>100%</span></p>
  </div>`;
}

function Figure({ title, value, note, testid, children, big }) {
  return html`<div class=${`figure${big ? " is-big" : ""}`}><dt>${title}</dt><dd class="figure-value" data-testid=${testid}>${value}</dd>${children}<dd class="figure-note">${note}</dd></div>`;
}

function progress(figures, me) {
  if (!figures.left) return { value: "已完成", note: "今天的图片都看完了。" };
  const done = clock(figures.done_by, me.timezone);
  if (!done) return { value: "—", note: "过去两周没有人审核过，还估不出来。" };
  const later = asLocal(new Date(figures.done_by), me.timezone).slice(0, 10);
  const value = later === figures.date ? done : `${day(later, "")} ${done}`;
  return { value, note: `按 ${day(figures.pace_of, me.today)}的速度：每小时 ${number(figures.per_hour)} 张` };
}

const inThousand = (share) => number(Math.max(0, Math.round(1000 * (1 - share))));

function auditSentence({ rate, low, high, answered, asked }) {
  if (!answered) return asked ? `抽出了 ${number(asked)} 个自动标签，还没有人看过。` : "还没有抽查的图片。";
  if (answered < TOO_FEW) return `近 28 天才抽查了 ${number(answered)} 个自动标签，太少了，还说明不了什么。`;
  const waiting = asked > answered ? `，还有 ${number(asked - answered)} 个没看` : "";
  return `近 28 天抽查了 ${number(answered)} 个自动标签${waiting}。估计每 1,000 个里约有 ${inThousand(rate)} 个错（95% 置信区间：${inThousand(high)} 到 ${inThousand(low)} 个）。`;
}

function agreementSentence({ rate, answered }) {
  if (!answered) return "近 7 天还没有答案。";
  return `近 7 天人看过的 ${number(answered)} 张难图里，模型的第一个标签有 ${number(Math.round(rate * answered))} 张是对的。`;
}

function Measured({ title, share, sentence, testid }) {
  return html`<${Figure} title=${title} testid=${testid} value=${share.answered ? percent(share.rate) : "—"} note=${sentence}>
    ${share.answered > 0 && html`<dd><${Interval} low=${share.low} value=${share.rate} high=${share.high} name=${title} /></dd>`}
  <//>`;
}

function Figures({ figures, me }) {
  const end = progress(figures, me);
  const whole = figures.left + figures.done_today;
  return html`<dl class="figures">
      <${Figure} big title="待审" testid="morning-left" value=${number(figures.left)} note=${figures.disputed ? `其中 ${number(figures.disputed)} 张两人意见不同，等第三人定` : whole ? `今天已看完 ${percent(figures.done_today / whole)}` : "没有图片在等"} />
      <${Figure} big title="今日已完成" testid="morning-done" value=${number(figures.done_today)} note=${`昨天一共 ${number(figures.done_yesterday)} 张`} />
      <${Figure} big title="预计完成" testid="morning-eta" value=${end.value} note=${end.note} />
    </dl>
    <dl class="figures is-measured">
      <${Measured} title="自动标签抽查准确率" testid="morning-precision" share=${figures.audit} sentence=${auditSentence(figures.audit)} />
      <${Measured} title="与模型一致率" testid="morning-agreement" share=${figures.agreement} sentence=${agreementSentence(figures.agreement)} />
      <${Measured} title="人与人一致率" testid="morning-people" share=${figures.people} sentence=${figures.people.answered ? `近 28 天有 ${number(figures.people.answered)} 张图给两个人各看了一遍，互相看不到答案。` : "近 28 天还没有两个人都看过的图片。"} />
    </dl>`;
}

const NIGHTS = {
  unfinished: (night) =>
    `昨夜的打标还没有做完：${number(night.images)} 张图片，共 ${number(night.shards)} 批，做完了 ${number(night.shards_done)} 批。后面的图片会陆续进来。`,
  absent: (night) => `${night.date} 的打标没有运行，待审的是以前留下的图片。请告诉管理员。`,
  unplanned: () => "没有设置定时打标，需要时请管理员手动运行。",
};

function People({ figures, me }) {
  const people = figures.by_person;
  const most = Math.max(1, ...people.map((person) => person.today));
  return html`<section aria-labelledby="people-title">
    <h2 id="people-title">每个人</h2>
    ${
      people.length
        ? html`<table class="people"><thead><tr><th scope="col">姓名</th><th scope="col" class="num">今天</th><td></td><th scope="col" class="num">昨天</th></tr></thead><tbody>
          ${people.map(
            (
              person,
            ) => html`<tr key=${person.person} class=${person.person === me.user ? "is-me" : ""}><th scope="row">${person.person}${person.person === me.user && html` <small>我</small>`}</th><td class="num">${number(person.today)}</td>
            <td class="bar-cell"><svg viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true"><rect class="interval-range" width=${(100 * person.today) / most} height="6" /></svg></td><td class="num soft">${number(person.yesterday)}</td></tr>`,
          )}
        </tbody></table>`
        : html`<p class="soft">今天和昨天都还没有人作答。</p>`
    }
  </section>`;
}

function Papers({ figures, me, onOpen, open }) {
  const reports = (figures.reports ?? []).map((date) => ({ name: day(date, me.today), path: `reports/${date}/` }));
  const diffs = (figures.tagdiffs ?? []).map(({ name, before, after, made_at }) => ({
    name: after ? `版本 ${before} → ${after} · ${moment(made_at, me.timezone)}` : name,
    path: `tagdiffs/${encodeURIComponent(name)}/`,
  }));
  const list = (title, papers, none) => html`<h3>${title}</h3>
    ${papers.length ? html`<ul>${papers.map((paper) => html`<li key=${paper.path}><button type="button" aria-current=${open?.path === paper.path ? "true" : undefined} onClick=${() => onOpen(paper)}>${paper.name}</button></li>`)}</ul>` : html`<p class="soft">${none}</p>`}`;
  return html`<nav class="papers" aria-label="日报和标签变化">${list("日报", reports, "还没有日报。")}${list("标签变化", diffs, "还没有标签变化报告。")}</nav>`;
}

export default function Morning({ app }) {
  const { me } = app;
  const { figures, problem } = useFigures();
  const [open, setOpen] = useState(null);
  if (!figures)
    return html`<div class="page"><p class="soft" role="status">${problem || "正在算今天早上的数字……"}</p></div>`;
  if (open)
    return html`<div class="pg-paper">
      <aside><button type="button" class="other back" onClick=${() => setOpen(null)}>← 返回今日概况</button><h2 class="hidden">报告</h2><${Papers} figures=${figures} me=${me} open=${open} onOpen=${setOpen} /></aside>
      <iframe title=${open.name} src=${url(open.path)}></iframe>
    </div>`;
  return html`<div class="pg-morning">
    <h1>${day(figures.date ?? me.today, "")}概况</h1>
    ${problem && html`<p class="problem" role="alert">数字没有刷新，仍是上一次的：${problem}</p>`}
    ${NIGHTS[figures.night?.state] && html`<p class="night">${NIGHTS[figures.night.state](figures.night)}</p>`}
    ${figures.stuck > 0 && html`<p class="night">另有 ${number(figures.stuck)} 张要换一个人再看，但能审核的人都已经看过。请告诉管理员。</p>`}
    <${Figures} figures=${figures} me=${me} />
    <div class="morning-columns"><${People} figures=${figures} me=${me} /><section aria-labelledby="papers-title"><h2 id="papers-title">昨夜的报告</h2><${Papers} figures=${figures} me=${me} onOpen=${setOpen} /></section></div>
  </div>`;
}
