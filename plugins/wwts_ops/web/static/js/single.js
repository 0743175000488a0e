// One picture at a time: look, press a key, the next one is there.
import { html, useEffect, useMemo, useReducer, useRef, useState } from "../vendor/htm-preact.js";
import { get } from "./api.js";
import { actionOf, freshDraft, outcome, past, SHARED_SKUS, told } from "./answer.js";
import { Alike, Strip } from "./alike.js";
import { Empty } from "./empty.js";
import { uuid } from "./format.js";
import { useKeys } from "./keys.js";
import * as outbox from "./outbox.js";
import { NoneDialog, RejectDialog, SharedDialog } from "./questions.js";
import { Panel } from "./panel.js";
import { Peek } from "./peek.js";
import { Photo } from "./picture.js";
import { Queue } from "./queue.js";

export default function Page({ app }) {
  const look = useLook(app);
  const { queue, item, dialog } = look;
  const [Filters, setFilters] = useState(null);
  useEffect(() => {
    import("./filters.js").then(
      (module) => setFilters(() => module.default),
      (error) => console.error(error),
    );
  }, []);
  return html`<div class="filterbar">${Filters && html`<${Filters} app=${app} />`}</div>
    ${item ? html`<${Look} look=${look} app=${app} />` : html`<${Empty} app=${app} queue=${queue} />`}
    ${dialog?.kind === "reject" && html`<${RejectDialog} reasons=${app.me.reasons} look=${look} />`}
    ${dialog?.kind === "none" && html`<${NoneDialog} me=${app.me} look=${look} text=${dialog.text} />`}
    ${dialog?.kind === "shared" && html`<${SharedDialog} dialog=${dialog} look=${look} me=${app.me} />`}
    ${dialog?.kind === "alike" && html`<${Alike} look=${look} />`}`;
}

function Look({ look, app }) {
  const { item, draft } = look;
  const zoomer = useRef(null);
  useKeys(shortcuts(look, zoomer, app.may));
  return html`<div class="look">
    <section class="left" aria-label="图片">
      <${Photo} item=${item} original=${draft.original} zoomer=${zoomer} onState=${look.setPicture}
        onZoom=${() => draft.original || look.set({ original: true })} />
      <div class="tools">
        <button type="button" class="tool" aria-keyshortcuts="z" onClick=${() => zoomer.current.toggle()}>放大<kbd aria-hidden="true">z</kbd></button>
        <button type="button" class="tool" aria-keyshortcuts="o" aria-pressed=${draft.original ? "true" : "false"} data-testid="original"
          onClick=${() => look.set({ original: !draft.original })}>${draft.original ? "缩略图" : "原图"}<kbd aria-hidden="true">o</kbd></button>
      </div>
      ${item.copies > 1 && html`<span class="copies">同图 ${item.copies} 张${item.skus > 1 ? ` · ${item.skus} 个商品` : ""}</span>`}
      <${Strip} look=${look} may=${app.may} />
    </section>
    <${Panel} look=${look} app=${app} />
  </div>`;
}

function shortcuts(look, zoomer, may) {
  const { draft, set, item } = look;
  const looking = {
    z: () => zoomer.current.toggle(),
    "+": () => zoomer.current.by(1.4),
    "=": () => zoomer.current.by(1.4),
    "-": () => zoomer.current.by(1 / 1.4),
    ArrowLeft: () => (may || zoomer.current.zoomed() ? zoomer.current.pan(80, 0) : look.queue.step(-1)),
    ArrowRight: () => (may || zoomer.current.zoomed() ? zoomer.current.pan(-80, 0) : look.queue.step(1)),
    ArrowUp: () => zoomer.current.pan(0, 80),
    ArrowDown: () => zoomer.current.pan(0, -80),
    o: () => set({ original: !draft.original }),
    a: () => look.open("alike"),
  };
  if (!may) return looking;
  const choices = Object.fromEntries(item.tags.slice(0, 5).map((tag, index) => [String(index + 1), () => look.choose(tag)]));
  return {
    ...looking,
    ...choices,
    Enter: look.confirm,
    Space: look.confirm,
    "/": () => look.search(""),
    letter: (event) => look.search(event.key.toLowerCase()),
    0: () => look.open("none"),
    x: () => look.open("reject"),
    s: look.skip,
    u: look.undo,
    "mod+z": look.undo,
    c: () => document.querySelector('[data-testid="comment"]')?.focus(),
    b: () => set({ badcase: !draft.badcase }),
    n: () => set({ never: !draft.never }),
  };
}

// Whoever types ahead means the picture that was there: after a change that they did not make, keys are deaf for so long.
const STARTLED_MS = 700;

/** The state of the page and everything one can do on it. */
function useLook(app) {
  const [, draw] = useReducer((count) => count + 1, 0);
  const [dialog, setDialog] = useState(null);
  const [last, setLast] = useState(null);
  const [searching, setSearching] = useState({ count: 0, text: "" });
  const key = JSON.stringify(app.filters);
  const queue = useMemo(() => (app.may ? new Queue(app.filters, app.me, draw) : new Peek(app.filters, draw)), [key]);
  useEffect(() => () => queue.close(), [queue]);
  const item = queue.current;
  const picture = useRef("loading");
  const deafUntil = useRef(0);
  const look = { app, queue, item, draft: draftOf(item), dialog, last, setLast, searching, draw };
  Object.assign(look, {
    set: (change) => { Object.assign(draftOf(queue.current), change); draw(); },
    setPicture: (state) => { picture.current = state; },
    /** The picture or its labels changed by themselves: what was being said was said of another. */
    startled: () => {
      deafUntil.current = performance.now() + STARTLED_MS;
      if (dialog && dialog.kind !== "shared") look.shut();
    },
    deaf: () => performance.now() < deafUntil.current,
    open: (kind, more = {}) => {
      if (look.deaf() && kind !== "shared") return;
      if (kind === "alike" && !item.siblings && !item.near) app.toast("这张没有同款或相似的图片。");
      else if (app.may || kind === "alike") setDialog({ kind, ...more });
    },
    shut: () => { setDialog(null); focusStage(); },
    search: (text) => setSearching({ count: searching.count + 1, text }),
  });
  Object.assign(look, answering(look, picture), backwards(look));
  useResults(look, queue);
  return look;
}

const MOST_DRAFTS = 200;
const drafts = new Map();

/** What was chosen for an item besides its label; still there when an answer to it is taken back. */
function draftOf(item) {
  if (!item) return freshDraft(null);
  if (!drafts.has(item.content)) drafts.set(item.content, freshDraft(item));
  for (const old of [...drafts.keys()].slice(0, Math.max(0, drafts.size - MOST_DRAFTS))) drafts.delete(old);
  return drafts.get(item.content);
}

function answering(look, picture) {
  const { app, queue } = look;
  /** Records the answer and shows the next picture. change: fields of the action besides those of the draft. */
  const answer = (change) => {
    const item = queue.current;
    if (!item || !app.may || look.deaf()) return;
    if (picture.current === "loading") return app.toast("图片还没显示出来，请看到图片再回答。");
    if (item.skus > SHARED_SKUS && !change.shared_ok && change.kind !== "reject_image") {
      return look.open("shared", { item, change, message: null });
    }
    give(item, change);
  };
  const give = (item, change) => {
    const action = actionOf(item, draftOf(item), change, uuid());
    past.push({ item, action, labelZh: change.label_zh });
    look.setLast({ item, text: told(action, item, change.label_zh), action });
    outbox.submit([action]);
    if (action.later) queue.leave(action.also);
    else queue.advance(action.also);
    look.shut();
  };
  return {
    answer,
    give,
    confirm: () => (queue.current?.label_id ? answer({ kind: "confirm" }) : app.toast("模型没有给出标签，请搜索一个，或按 0。")),
    choose: (tag) => answer(tag.label_id === queue.current?.label_id ? { kind: "confirm" } : { kind: "correct", labels: [tag.label_id], label_zh: tag.label_zh }),
    skip: () => {
      const item = queue.current;
      if (!item || look.deaf()) return;
      past.push({ item, action: null });
      look.setLast({ item, text: "已跳过", action: null });
      queue.skip();
      look.shut();
    },
  };
}

function backwards(look) {
  const { app, queue } = look;
  const show = (item, waiting) => {
    // The server gives the item a new revision; until it is known, an answer goes without.
    queue.putBack(waiting ? { ...item, revision: null } : item);
    look.setLast(null);
    look.shut();
  };
  const undo = async () => {
    const step = past.pop();
    if (!step) return undoEarlier();
    if (!step.action) return show(step.item, false);
    const forgotten = outbox.undo([step.action.answer_id]);
    show(step.item, forgotten.length === 0);
    queue.reopen(step.action.also);
  };
  /** After a reload: the newest answer of this person, not sent yet or at the server. */
  const undoEarlier = async () => {
    try {
      const unsent = outbox.newest();
      if (unsent) {
        const { item } = await get(`api/items/${unsent.content}`);
        const before = queue.current;
        show(item, outbox.undo([unsent.answer_id]).length === 0);
        return queue.noticed(before);
      }
      const { answers } = await get("api/history?count=20");
      const newest = answers.find((one) => !one.retracted && one.kind !== "retract");
      if (!newest) return app.toast("没有可以撤销的操作。");
      outbox.undo([newest.answer_id]);
    } catch (error) {
      app.toast(error.message, { tone: "bad" });
    }
  };
  return { undo };
}

function useResults(look, queue) {
  const now = useRef(null);
  now.current = look;
  useEffect(() => outbox.onResult((result, action) => heard(now.current, result, action)), []);
  useEffect(() => outbox.onUndone((...told) => takenBack(now.current, ...told)), []);
  queue.startled = () => now.current.startled();
  queue.altered = () => {
    now.current.startled();
    now.current.app.toast("这张图片的标签刚刚有更新，请再看一眼。");
  };
  queue.lost = (contents) => {
    if (contents.includes(queue.current?.content)) now.current.app.toast("这张图片放得太久，已经交给别人了。");
  };
}

function heard(look, result, action) {
  const mine = past.find((step) => step.action?.answer_id === result.answer_id);
  const again = () => {
    forget(result.answer_id);
    if (action) look.queue.reopen([action.content, ...action.also]);
  };
  if (result.status === "saved" || result.status === "held") {
    if (result.status === "held" && action) look.queue.reopen(action.also); // they wait for a look of their own
    if (mine) settled(look, result, mine);
  } else if (result.status === "shared" && mine) {
    again();
    // People type ahead: the dialog is deaf for a moment, so that no key meant for another picture answers it.
    const change = { ...action, label_zh: mine.labelZh };
    look.open("shared", { item: mine.item, change, message: result.message, wait: STARTLED_MS });
  } else if (result.status === "conflict") {
    again();
    look.app.toast(result.message || `${result.by ?? "别人"}刚刚已经审核了这张图片，以对方的答案为准。`);
  } else if (result.status === "refused") {
    again();
    look.app.toast(result.message || "有一条答案没有被接受。", { tone: "bad" });
    if (mine) look.queue.insert([mine.item]);
  }
}

/** Says no more than what the server did: in the line of the last answer, and in a message if that line is gone. */
function settled(look, result, mine) {
  const { text, notice } = outcome(result, mine);
  const shown = look.last?.action?.answer_id === result.answer_id;
  if (shown) look.setLast({ ...look.last, text });
  if (notice && (!shown || mine.action.also.length)) look.app.toast(notice);
}

function forget(answerId) {
  const at = past.findIndex((step) => step.action?.answer_id === answerId);
  if (at >= 0) past.splice(at, 1);
}

/** ids: what was asked for; the results name what was answered along with them too. */
function takenBack(look, results, items, ids) {
  const known = new Set(look.queue.contents());
  look.queue.update(items);
  for (const result of results.filter((one) => one.status === "refused" || one.status === "conflict")) {
    look.app.toast(result.message || "这一步已经不能撤销了。", { tone: "bad" });
    if (known.has(result.content)) look.queue.drop(result.content);
  }
  const asked = new Set(results.filter((one) => ids.includes(one.answer_id)).map((one) => one.content));
  const missing = items.filter((one) => !known.has(one.content) && one.state !== "done");
  look.queue.insert(missing.filter((one) => !asked.has(one.content)));
  const before = look.queue.current;
  for (const item of missing.filter((one) => asked.has(one.content))) look.queue.putBack(item);
  look.queue.noticed(before);
}

function focusStage() {
  // Not on a button: Enter would press it instead of confirming the next picture.
  document.getElementById("stage")?.focus({ preventScroll: true });
}
