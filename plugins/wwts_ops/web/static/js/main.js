// The shell: who is signed in, which page is shown, what is left, what is not saved yet.
import { createContext, html, render, useContext, useEffect, useErrorBoundary, useMemo, useRef, useState } from "../vendor/htm-preact.js";
import { get, onOtherPerson, onSignedOut, pictureUrl } from "./api.js";
import { Help } from "./help.js";
import { useKeys } from "./keys.js";
import * as labels from "./labels.js";
import * as outbox from "./outbox.js";
import Single from "./single.js";
import { opened, recount, useSummary } from "./summary.js";
import { Notice, number } from "./ui.js";

const TABS = [
  { route: "look", name: "逐张审核", page: async () => Single },
  { route: "grid", name: "批量核对", page: async () => (await import("./grid.js")).default },
  { route: "morning", name: "今日概况", page: async () => (await import("./morning.js")).default },
  { route: "taxonomy", name: "标签体系", page: async () => (await import("./taxonomy.js")).default },
  { route: "records", name: "操作记录", page: async () => (await import("./records.js")).default },
];
const EVERYTHING = { dates: [], categories: [], labels: [], decisions: [], reasons: [], states: [] };
const TOAST_MS = 6000;
const SIGN_IN_MS = 4000; // between two looks whether somebody has signed in, perhaps in another tab

const AppContext = createContext(null);

/**
 * {me, filters, setFilters(filters), toast(message, {undo, tone}), may (answers), admin, counts {left, done, mine},
 * recount() (asks the server anew), go(route), help()}.
 */
export const useApp = () => useContext(AppContext);

function useRoute() {
  const read = () => TABS.find(({ route }) => location.hash.replace(/^#\/?/, "").split("/")[0] === route)?.route ?? "look";
  const [route, setRoute] = useState(read);
  useEffect(() => {
    const changed = () => setRoute(read());
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, []);
  return route;
}

function useOutbox() {
  const [state, setState] = useState(outbox.state);
  useEffect(() => outbox.onChange(() => setState(outbox.state())), []);
  return state;
}

function useOnline() {
  const [online, setOnline] = useState(navigator.onLine);
  useEffect(() => {
    const changed = () => setOnline(navigator.onLine);
    addEventListener("online", changed);
    addEventListener("offline", changed);
    return () => {
      removeEventListener("online", changed);
      removeEventListener("offline", changed);
    };
  }, []);
  return online;
}

/** Messages, the newest last; the same one twice is one. `toast` returns what takes the message away early. */
function useToasts() {
  const [toasts, setToasts] = useState([]);
  const serial = useRef(0);
  const close = (id) => setToasts((all) => all.filter((one) => one.id !== id));
  const toast = (message, { undo = null, tone = "" } = {}) => {
    const id = (serial.current += 1);
    setToasts((all) => [...all.filter((one) => one.message !== message), { id, message, undo, tone }].slice(-3));
    setTimeout(close, TOAST_MS, id);
    return () => close(id);
  };
  return [toasts, useMemo(() => toast, []), close];
}

/** What the server counted last, less what was answered here since. */
function useCounts(filters) {
  const { data } = useSummary(filters);
  const { made, pending } = useOutbox();
  const base = useRef(null);
  if (base.current?.counted !== data?.counted) base.current = { counted: data?.counted, made: made - pending };
  if (!data) return { left: null, done: null, mine: null, perHour: null };
  const more = made - base.current.made;
  return { left: Math.max(0, data.left - more), done: data.done_today + more, mine: data.mine_today + more, perHour: data.per_hour };
}

const filtersOf = (me) => `wwts.filters.${encodeURIComponent(me.user)}`;

const remembered = (me) => {
  try {
    const kept = JSON.parse(sessionStorage.getItem(filtersOf(me)));
    if (kept) return { ...EVERYTHING, ...kept };
  } catch {
    // Nothing kept, or nothing may be kept: what the person looks after.
  }
  return { ...EVERYTHING, categories: me.categories ?? [] };
};

function Shell({ me }) {
  const route = useRoute();
  const [filters, keep] = useState(() => remembered(me));
  const [toasts, toast, close] = useToasts();
  const [help, setHelp] = useState(false);
  const counts = useCounts(filters);
  const setFilters = (chosen) => {
    keep(chosen);
    try {
      sessionStorage.setItem(filtersOf(me), JSON.stringify(chosen));
    } catch {
      // The choice then lasts until the page is left.
    }
  };
  const app = {
    me, filters, setFilters, toast, counts, recount,
    may: me.role !== "viewer",
    admin: me.role === "admin",
    go: (to) => { location.hash = `#/${to}`; },
    help: () => setHelp(true),
  };
  useKeys({ "?": () => setHelp(true) });
  useEffect(opened, [route]);
  // Opened from Airflow's menu, the page would hear no key before a click: the focus is still on the menu's link.
  useEffect(() => document.getElementById("stage")?.focus({ preventScroll: true }), []);
  return html`<${AppContext.Provider} value=${app}>
    <a class="skip" href="#stage" onClick=${(event) => { event.preventDefault(); document.getElementById("stage")?.focus(); }}>跳到正文</a>
    <${Header} app=${app} route=${route} />
    <${Banner} />
    <main id="stage" tabindex=${route === "morning" ? 0 : -1} class=${`page ${route}`}><${Routed} key=${route} route=${route} app=${app} /></main>
    <${Toasts} toasts=${toasts} close=${close} />
    ${help && html`<${Help} may=${app.may} onClose=${() => setHelp(false)} />`}
  <//>`;
}

function Header({ app, route }) {
  const { left, done, mine } = app.counts;
  const share = left === null || done + left === 0 ? 0 : done / (done + left);
  return html`<header class="bar">
    <h1>图片审核</h1>
    <nav aria-label="页面">${TABS.map((tab) => html`<a key=${tab.route} href=${`#/${tab.route}`}
      aria-current=${tab.route === route ? "page" : undefined}>${tab.name}</a>`)}</nav>
    ${app.may && html`<${Saving} /><${Refused} />`}
    <dl class="tally">
      <div title=${pace(app.counts)}><dt>待审</dt><dd data-testid="left-count">${number(left)}</dd></div>
      <div title=${mine === null ? "" : `其中我审核 ${number(mine)} 张`}><dt>今天完成</dt><dd data-testid="done-today">${number(done)}</dd></div>
    </dl>
    <button type="button" class="quiet round" aria-label="快捷键说明" aria-keyshortcuts="?" title="快捷键（?）" data-testid="help" onClick=${app.help}>?</button>
    <svg class="progress" preserveAspectRatio="none" viewBox="0 0 1 1" aria-hidden="true"><rect width=${share} height="1" /></svg>
  </header>`;
}

function pace({ left, perHour }) {
  if (!left || !perHour) return "";
  const hours = left / perHour;
  return `按现在每小时 ${number(perHour)} 张的速度，大约还要 ${hours < 1 ? `${Math.ceil(hours * 60)} 分钟` : `${hours.toFixed(1)} 小时`}`;
}

/** What the server will not have, until the person has read it: in every tab, and after a reload. */
function Refused() {
  const { refused } = useOutbox();
  if (!refused.length) return null;
  return html`<details class="refused" data-testid="refused"><summary>${refused.length} 条没有被接受</summary>
    <div class="refused-list" role="note"><ul>${refused.map((one) => html`<li key=${one.key}>
      ${one.content && html`<img src=${pictureUrl(one.content)} alt="" />`}<span>${one.kind === "undo" ? "撤销：" : ""}${one.message}</span></li>`)}</ul>
    ${refused.some((one) => one.kind === "answer") && html`<p class="soft">这些图片没有记下您的答案，还在队列里。</p>`}
    <button type="button" class="main" data-testid="refused-dismiss" onClick=${outbox.dismiss}>知道了</button></div></details>`;
}

function Saving() {
  const { pending, trouble } = useOutbox();
  // A quick save is not worth a flicker: it is told only when it takes its time.
  const [slow, setSlow] = useState(false);
  useEffect(() => {
    if (!pending) return setSlow(false);
    const timer = setTimeout(() => setSlow(true), 800);
    return () => clearTimeout(timer);
  }, [pending > 0]);
  const told = trouble ? `${pending} 条未保存，正在重试` : `正在保存 ${pending} 条……`;
  const shown = pending > 0 && (slow || trouble);
  return html`<p class=${`saving ${shown && trouble ? "late" : ""}`} role="status" data-testid="pending" data-pending=${pending}>
    ${shown ? told : html`<svg viewBox="0 0 16 16" aria-hidden="true"><path d="M3 8.5l3.2 3.2L13 5" /></svg>已全部保存`}</p>`;
}

function Banner() {
  const online = useOnline();
  const { pending, trouble, durable } = useOutbox();
  const refused = trouble && (trouble.status === 403 || trouble.status === 401);
  if ((online && !trouble) || trouble?.code === "other_person") return null; // that has a veil of its own
  const kept = durable ? "答案先存在这台电脑上，关掉页面也不会丢" : "请先不要关闭本页：答案还没有保存";
  return html`<p class="banner" role="status" data-testid="banner">${
    refused
      ? `服务器没有接受保存：${trouble.message}${pending ? `还有 ${pending} 条答案，${kept}；重新登录后自动提交。` : ""}`
      : `${!online ? "网络断开了" : trouble.status ? `服务器暂时没有保存（${trouble.message.replace(/。$/, "")}）` : "暂时连不上服务器"}，已载入的图片可以继续审核。${kept}，恢复后自动提交。`
  }</p>`;
}

function Toasts({ toasts, close }) {
  return html`<div class="toasts" role="status" aria-live="polite" data-testid="toast">
    ${toasts.map((one) => html`<div key=${one.id} class=${`toast ${one.tone}`}>
      <span>${one.message}</span>
      ${one.undo && html`<button type="button" class="link" onClick=${() => { close(one.id); one.undo(); }}>撤销</button>`}
      <button type="button" class="link faint" aria-label="关闭提示" onClick=${() => close(one.id)}>×</button>
    </div>`)}
  </div>`;
}

function Routed({ route, app }) {
  const [page, setPage] = useState(() => (route === "look" ? { Page: Single } : null));
  const [fault, reset] = useErrorBoundary((error) => console.error(error));
  useEffect(() => {
    let gone = false;
    TABS.find((tab) => tab.route === route).page().then(
      (Page) => gone || setPage({ Page }),
      (error) => gone || (console.error(error), setPage({ error })),
    );
    return () => { gone = true; };
  }, []);
  if (fault || page?.error) {
    return html`<${Notice} title="这一页打不开" drawing="cut" actions=${html`<button type="button" class="main" onClick=${() => (fault ? reset() : location.reload())}>再试一次</button>`}>
      <p>已经作出的答案不会丢。如果反复出现，请把下面这句话告诉管理员：</p><p><code>${String((fault ?? page.error).message)}</code></p><//>`;
  }
  return page ? html`<${page.Page} app=${app} />` : html`<p class="waiting" role="status">正在打开……</p>`;
}

function Start() {
  const [me, setMe] = useState(null);
  const [error, setError] = useState(null);
  const [out, setOut] = useState(false);
  const [other, setOther] = useState(null);
  const begin = async () => {
    setError(null);
    try {
      const told = await get("api/me");
      if (told.role !== "viewer") outbox.open(told.user);
      setMe(told);
      labels.load(told.taxonomy_version).catch((failed) => console.error(failed));
    } catch (failed) {
      setError(failed);
    }
  };
  useEffect(() => {
    begin();
    return onSignedOut(setOut);
  }, []);
  const back = (told) => {
    // Somebody else's answers must not go out under this name, nor the other way round.
    if (me && told.user !== me.user) return outbox.state().pending ? setOther(told.user) : location.reload();
    setOther(null);
    if (me) outbox.flush();
    else begin();
  };
  useEffect(() => onOtherPerson(() => get("api/me").then(back, (failed) => console.debug(failed))), [me]);
  useEffect(() => {
    const known = (told) => {
      back(told);
      labels.load(told.taxonomy_version).catch((failed) => console.error(failed)); // somebody may have added labels
    };
    const seen = () => me && document.visibilityState === "visible" && get("api/me").then(known, (failed) => console.debug(failed));
    document.addEventListener("visibilitychange", seen);
    return () => document.removeEventListener("visibilitychange", seen);
  }, [me]);
  if (me) return html`<${Shell} me=${me} />${out ? html`<${SignIn} back=${back} />` : other && html`<${Other} me=${me} now=${other} back=${back} />`}`;
  if (out || error?.status === 401) return html`<${SignIn} back=${back} />`;
  if (error) {
    return html`<${Notice} title="打不开审核页" drawing="cut" actions=${html`<button type="button" class="main" onClick=${begin}>再试一次</button>`}><p>${error.message}</p><//>`;
  }
  return html`<div class="bar" aria-busy="true"><h1>图片审核</h1></div><div class="skeleton-page" aria-hidden="true"><div class="shimmer"></div><div class="shimmer"></div></div>`;
}

/** Asks now and then who is signed in; nobody answers what the veil hides. */
function useVeil(back) {
  useKeys({}, { modal: true });
  useEffect(() => {
    const timer = setInterval(() => get("api/me").then(back, (failed) => console.debug(failed)), SIGN_IN_MS);
    return () => clearInterval(timer);
  });
}

function Other({ me, now, back }) {
  useVeil(back);
  const { pending } = useOutbox();
  return html`<div class="veil" data-testid="other-person"><${Notice} title="登录的人换了" drawing="cut"
  actions=${html`<button type="button" class="main" onClick=${() => location.reload()}>以${now}继续</button>`}>
  <p>现在登录的是${now}；${me.user}还有 ${pending} 条未保存。</p><p>它们存在这台电脑上，${me.user}重新登录后会自动提交。</p><//></div>`;
}

/** Signing in is Airflow's: the whole window has to go there, and the frame may not send it. */
function SignIn({ back }) {
  useVeil(back);
  return html`<div class="veil" data-testid="signed-out"><${Notice} title="登录已过期" drawing="cut"
  actions=${html`<button type="button" class="main" onClick=${() => location.reload()}>我已登录，继续</button>`}>
  <p>请刷新整个浏览器页面（F5），按 Airflow 的提示重新登录。</p><p>还没保存的答案都在这台电脑上，登录后会自动提交。</p><//></div>`;
}

render(html`<${Start} />`, document.getElementById("app"));
