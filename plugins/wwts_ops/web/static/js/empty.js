// When there is no picture to show: done, filtered away, with others, skipped, or out of reach.
import { html } from "../vendor/htm-preact.js";
import { Notice, number } from "./ui.js";

const NONE = { dates: [], categories: [], labels: [], decisions: [], reasons: [], states: [] };

export function Empty({ app, queue }) {
  const { phase, error } = queue;
  if (phase === "loading") return html`<${Skeleton} />`;
  if (phase === "forbidden") return html`<${Forbidden} app=${app} error=${error} />`;
  if (phase === "error") {
    return html`<${Notice} title="暂时取不到图片" drawing="cut" actions=${html`<button type="button" class="main" onClick=${() => queue.refill()}>再试一次</button>`}>
      <p>${error.message}</p><p class="soft">${error.passing ? "正在自动重试，已作出的答案不会丢。" : "如果反复出现，请联系管理员。"}</p><//>`;
  }
  if (phase === "skipped") {
    return html`<${Notice} title="只剩您放下的图片了" actions=${html`<button type="button" class="main" data-testid="again" onClick=${() => queue.again()}>再看一遍</button>`}>
      <p>您跳过或留到稍后的有 ${number(queue.aside().length)} 张，其余的已审核完，或正有人在看。</p><//>`;
  }
  if (phase === "others") {
    return html`<${Notice} title="剩下的正有人在看"><p>还有 ${number(app.counts.left ?? queue.left)} 张在同事手里；放回来的会自动出现在这里。</p><//>`;
  }
  return html`<${Done} app=${app} />`;
}

function Done({ app }) {
  const { done, mine } = app.counts;
  const filtered = Object.values(app.filters).some((values) => values.length);
  const actions = html`${filtered && html`<button type="button" class="main" data-testid="clear-filters" onClick=${() => app.setFilters(NONE)}>看全部待审图片</button>`}
    <a class=${filtered ? "other" : "main"} href="#/morning">看今日概况</a>`;
  return html`<${Notice} title=${filtered ? "这部分审核完了" : "全部审核完了"} drawing="done" actions=${actions}>
    <p>${filtered ? "按现在的筛选，没有图片在等。" : "辛苦了。新的图片会在今晚打标之后出现。"}</p>
    ${done !== null && html`<dl class="result"><div><dt>今天大家完成</dt><dd>${number(done)}<small>张</small></dd></div><div><dt>其中我审核</dt><dd>${number(mine)}<small>张</small></dd></div></dl>`}
  <//>`;
}

const Forbidden = ({ app, error }) => html`<${Notice} title="您目前只能查看" actions=${html`<a class="main" href="#/morning">看今日概况</a>`}>
  <p data-testid="readonly">${error?.message && app.may ? error.message : `想参与审核，请让管理员把“${app.me.user}”加入审核人员名单（WWTS_REVIEWERS）。`}</p>
  <p class="soft">今日概况、标签体系和操作记录都可以看。</p><//>`;

const Skeleton = () => html`<div class="look" aria-busy="true" aria-label="正在载入">
  <section class="left"><div class="well"><div class="shimmer"></div></div><div class="strip"></div></section>
  <aside class="panel">${[28, 56, 44, 56, 56, 56, 56, 56].map((height, index) => html`<div key=${index} class="shimmer line" style=${{ height: `${height}px` }}></div>`)}</aside>
</div>`;
