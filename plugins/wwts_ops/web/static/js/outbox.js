// What people answered and the server has not acknowledged yet. Every entry lies in localStorage under a key of its
// own until then, so a reload, a lost connection or a killed server loses nothing; answer ids make a second sending
// harmless. Entries go out in the order they were made, one request at a time.
import { send } from "./api.js";

const MOST = 100; // actions of one request; the server takes 200 within 256 KiB
const WAITS_MS = [1000, 2000, 4000, 8000, 15_000, 30_000];

const results = new Set();
const undone = new Set();
const changes = new Set();
let prefix = null;
let entries = [];
let sending = false;
let failures = 0;
let trouble = null;
let timer = 0;
let order = 0;
let made = 0;
let durable = true;

/** The store of one person: what another one left unsent in this browser is never sent in this one's name. */
export function open(user) {
  prefix = `wwts.outbox.${user}.`;
  entries = stored();
  changed();
  flush();
}

function stored() {
  const found = [];
  try {
    for (const key of Object.keys(localStorage).filter((name) => name.startsWith(prefix))) {
      const entry = parsed(localStorage.getItem(key));
      if (entry) found.push({ ...entry, key });
    }
  } catch {
    durable = false;
  }
  return found.sort((one, other) => one.at - other.at || one.order - other.order);
}

function parsed(text) {
  try {
    const entry = JSON.parse(text);
    return entry?.kind === "undo" || entry?.action?.answer_id ? entry : null;
  } catch {
    return null;
  }
}

function add(kind, id, rest) {
  order += 1;
  const entry = { kind, id, at: Date.now(), order, ...rest, key: `${prefix}${kind}.${id}` };
  try {
    localStorage.setItem(entry.key, JSON.stringify({ ...entry, key: undefined }));
  } catch {
    durable = false; // storage full or forbidden: kept in memory, and the page asks before it is left
  }
  entries.push(entry);
}

function drop(gone) {
  for (const entry of gone) {
    try {
      localStorage.removeItem(entry.key);
    } catch {
      durable = false;
    }
  }
  entries = entries.filter((entry) => !gone.includes(entry));
}

/** Takes actions over: remembered at once, sent as soon as possible. */
export function submit(actions) {
  for (const action of actions) add("answer", action.answer_id, { action });
  made += pictures(actions);
  changed();
  flush();
}

/** Takes answers back. Those not sent yet are simply forgotten; returns their actions. The others go to the server. */
export function undo(answerIds) {
  const waiting = entries.filter((entry) => entry.kind === "answer" && !entry.sent && answerIds.includes(entry.id));
  drop(waiting);
  const forgotten = waiting.map((entry) => entry.action);
  made -= pictures(forgotten);
  for (const id of answerIds.filter((one) => !forgotten.some((action) => action.answer_id === one))) {
    add("undo", id, {});
    made -= 1;
  }
  changed();
  flush();
  return forgotten;
}

/** `callback(result, action)` for each answer that the server has dealt with. */
export function onResult(callback) {
  results.add(callback);
  return () => results.delete(callback);
}

/** `callback(results, items, answerIds)` for what was taken back; ids: those asked for, without their `also`. */
export function onUndone(callback) {
  undone.add(callback);
  return () => undone.delete(callback);
}

/** `callback()` whenever `state()` may have changed. */
export function onChange(callback) {
  changes.add(callback);
  return () => changes.delete(callback);
}

const pictures = (actions) => actions.reduce((sum, action) => sum + 1 + (action.also?.length ?? 0), 0);

/**
 * pending: entries not acknowledged; trouble: the error of the last attempt, or null; durable: survives a reload;
 * made: pictures answered on this page since it was opened, less those taken back.
 */
export const state = () => ({ pending: entries.length, trouble, durable, made });

/** Contents with an answer on its way: not to be taken again. */
export const contents = () =>
  entries.filter((entry) => entry.kind === "answer").flatMap(({ action }) => [action.content, ...(action.also ?? [])]);

/** The last action that is still on its way, or null. */
export const newest = () => entries.filter((entry) => entry.kind === "answer").at(-1)?.action ?? null;

function changed() {
  for (const callback of changes) callback();
}

/** Sends what waits, now. */
export function flush() {
  clearTimeout(timer);
  if (sending || prefix === null || !entries.length) return;
  sending = true;
  // A microtask: what is submitted in the same breath goes in one request.
  queueMicrotask(round);
}

async function round() {
  const batch = next();
  for (const entry of batch) entry.sent = true;
  try {
    if (batch.length) await deliver(batch);
    failures = 0;
    trouble = null;
  } catch (error) {
    trouble = error;
    failures += 1;
  } finally {
    sending = false;
  }
  changed();
  if (!entries.length) return;
  if (trouble) timer = setTimeout(flush, WAITS_MS[Math.min(failures, WAITS_MS.length) - 1]);
  else flush();
}

/** The oldest entries of one kind. Another tab of the same person may have settled some meanwhile. */
function next() {
  if (durable) entries = entries.filter((entry) => localStorage.getItem(entry.key) !== null);
  const kind = entries[0]?.kind;
  const end = entries.findIndex((entry) => entry.kind !== kind);
  return entries.slice(0, end < 0 ? MOST : Math.min(end, MOST));
}

async function deliver(batch) {
  try {
    await request(batch);
  } catch (error) {
    // 401 and 403 pass when somebody signs in again; anything else below 500 stays wrong however often it is sent.
    if (error.passing || error.status === 401 || error.status === 403) throw error;
    if (batch.length > 1) {
      for (const entry of batch) await deliver([entry]);
      return;
    }
    drop(batch);
    told(batch, [{ answer_id: batch[0].id, status: "refused", message: error.message, by: null }]);
  }
}

async function request(batch) {
  if (batch[0].kind === "undo") {
    const ids = batch.map((entry) => entry.id);
    const answer = await send("api/undo", { answer_ids: ids });
    drop(batch);
    for (const callback of undone) callback(answer.results, answer.items ?? [], ids);
    return;
  }
  const answer = await send("api/answers", { actions: batch.map((entry) => entry.action) });
  drop(batch);
  told(batch, answer.results);
}

function told(batch, all) {
  const actions = new Map(batch.map((entry) => [entry.id, entry.action ?? null]));
  for (const result of all) {
    // Answers for `also` have ids of their own; only those of this page's actions are reported.
    if (actions.has(result.answer_id)) {
      for (const callback of results) callback(result, actions.get(result.answer_id));
    }
  }
}

addEventListener("online", () => flush());
document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && flush());
addEventListener("beforeunload", (event) => {
  if (!durable && entries.length) event.preventDefault();
});
