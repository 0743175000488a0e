// What people answered and the server has not acknowledged yet. Every entry lies in localStorage under a key of its
// own until then, so a reload, a lost connection or a killed server loses nothing; answer ids make a second sending
// harmless. Entries go out in the order they were made, one request at a time. Tabs tell each other what became of
// entries: that a key is gone says nothing, people clear their site data. What was refused for good stays on a list
// until the person has read it.
import { ApiError, send, speakFor } from "./api.js";

const MOST = 100; // actions of one request; the server takes 200 within 256 KiB
const WAITS_MS = [1000, 2000, 4000, 8000, 15_000, 30_000];
const CAREFUL = 3; // failures in a row after which entries go one by one, so that none holds up the others
const MOST_REFUSED = 200;

const results = new Set();
const undone = new Set();
const changes = new Set();
const tabs = typeof BroadcastChannel === "function" ? new BroadcastChannel("wwts.outbox") : null;
let prefix = null;
let refusals = null;
let entries = [];
let refused = [];
let sending = false;
let failures = 0;
let trouble = null;
let timer = 0;
let order = 0;
let made = 0;
const about = new Map(); // of what was said on this page, by its id: which pictures it is about
let durable = true;

/** The store of one person: what another one left unsent in this browser is never sent in this one's name. */
export function open(user) {
  // "|" is in no encoded name: whose name begins with another's shares no key with them.
  prefix = `wwts.outbox.${encodeURIComponent(user)}|`;
  refusals = `wwts.refused.${encodeURIComponent(user)}|`;
  speakFor(user);
  entries = stored(prefix, (one) => one.kind === "undo" || Boolean(one.action?.answer_id));
  refused = stored(refusals, (one) => typeof one.message === "string");
  changed();
  flush();
}

/** What lies under the keys that begin so, in the order in which it was put there. */
function stored(beginning, valid) {
  const found = [];
  try {
    for (const key of Object.keys(localStorage).filter((name) => name.startsWith(beginning))) {
      const one = parsed(localStorage.getItem(key));
      if (one && valid(one)) found.push({ ...one, key });
    }
  } catch {
    durable = false;
  }
  return found.sort((one, other) => one.at - other.at || one.order - other.order);
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

function add(kind, id, rest) {
  order += 1;
  const entry = { kind, id, at: Date.now(), order, ...rest, key: `${prefix}${kind}.${id}` };
  keep(entry);
  entries.push(entry);
}

function keep(entry) {
  try {
    localStorage.setItem(entry.key, JSON.stringify({ ...entry, key: undefined, sent: undefined }));
  } catch {
    durable = false; // storage full or forbidden: kept in memory, and the page asks before it is left
  }
}

/** What was cleared away while it waits is put back. */
function keepAll() {
  try {
    for (const entry of entries) if (localStorage.getItem(entry.key) === null) keep(entry);
  } catch {
    durable = false;
  }
}

function forget(gone) {
  for (const { key } of gone) {
    try {
      localStorage.removeItem(key);
    } catch {
      durable = false;
    }
  }
}

function drop(gone) {
  forget(gone);
  entries = entries.filter((entry) => !gone.includes(entry));
}

/** Takes actions over: remembered at once, sent as soon as possible. */
export function submit(actions) {
  for (const action of actions) {
    about.set(action.answer_id, picturesOf(action));
    add("answer", action.answer_id, { action });
  }
  made += pictures(actions);
  changed();
  flush();
}

/** Takes answers back. Those not sent yet are simply forgotten; returns their actions. The others go to the server. */
export function undo(answerIds) {
  const waiting = entries.filter((entry) => entry.kind === "answer" && !entry.sent && answerIds.includes(entry.id));
  drop(waiting);
  tell(waiting, null);
  const forgotten = waiting.map((entry) => entry.action);
  made -= pictures(forgotten);
  for (const id of answerIds.filter((one) => !forgotten.some((action) => action.answer_id === one))) {
    add("undo", id, { about: about.get(id) ?? null });
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

const picturesOf = (action) => [action.content, ...(action.also ?? [])];
const pictures = (actions) => actions.reduce((sum, action) => sum + picturesOf(action).length, 0);

/**
 * pending: entries not acknowledged; trouble: the error of the last attempt, or null; durable: survives a reload;
 * made: pictures answered on this page since it was opened, less those taken back; refused: what the server will not
 * have, oldest first, until it is dismissed: [{id, content, message, key}], content null where it is not known.
 */
export const state = () => ({ pending: entries.length, trouble, durable, made, refused });

/** The person has read what was refused. */
export function dismiss() {
  const gone = refused;
  forget(gone);
  refused = [];
  tell([], null, gone);
  changed();
}

/** Contents with an answer on its way: not to be taken again. */
export const contents = () =>
  entries.filter((entry) => entry.kind === "answer").flatMap(({ action }) => picturesOf(action));

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
  if (trouble?.code === "other_person") return; // until they are back: `flush`
  if (trouble) timer = setTimeout(flush, WAITS_MS[Math.min(failures, WAITS_MS.length) - 1]);
  else flush();
}

/** The oldest entries of one kind; after failures one at a time, another one each time. */
function next() {
  keepAll();
  if (failures >= CAREFUL) {
    return entries.length ? [foremost(entries[failures % entries.length])] : [];
  }
  const kind = entries[0]?.kind;
  const end = entries.findIndex((entry) => entry.kind !== kind);
  return entries.slice(0, end < 0 ? MOST : Math.min(end, MOST));
}

/** What must go before `entry`, or itself: what is about a picture of its own keeps its order. */
function foremost(entry) {
  const older = entries.slice(0, entries.indexOf(entry)).find((one) => precedes(one, entry));
  return older ? foremost(older) : entry;
}

function precedes(one, entry) {
  if (one.id === entry.id) return true; // nothing can be taken back before it was said
  const [its, own] = [one, entry].map(({ action, about: known }) => (action ? picturesOf(action) : (known ?? null)));
  // What is taken back without it being known what it was about may be about anything.
  return its === null || (own ?? []).some((content) => its.includes(content));
}

async function deliver(batch) {
  try {
    await request(batch);
  } catch (error) {
    // A batch that is too large, or of which one entry is malformed, passes in parts.
    if (batch.length > 1 && (error.final || error.status === 413)) {
      for (const entry of batch) await deliver([entry]);
      return;
    }
    // All else passes: signing in again, a server that is mended. It is kept and sent again, however long that takes.
    if (!error.final) throw error;
    finish(batch, { results: [{ answer_id: batch[0].id, status: "refused", message: error.message, by: null }] });
  }
}

async function request(batch) {
  const answer =
    batch[0].kind === "undo"
      ? await send("api/undo", { answer_ids: batch.map((entry) => entry.id) })
      : await send("api/answers", { actions: batch.map((entry) => entry.action) });
  // Somebody in between may answer 200 with something else.
  if (!Array.isArray(answer.results)) throw new ApiError(502, "strange", "服务器的回答不完整，请稍后再试。");
  finish(batch, answer);
}

/** The server has dealt with these: here, in other tabs, and in what lies in the store. */
function finish(sent, answer) {
  const batch = sent.filter((entry) => entries.includes(entry)); // another tab may have been told before us
  if (!batch.length) return;
  tell(batch, answer, note(batch, answer.results));
  settle(batch, answer);
}

function settle(batch, answer) {
  drop(batch);
  if (batch[0]?.kind === "undo") {
    const ids = batch.map((entry) => entry.id);
    for (const callback of undone) callback(answer.results, answer.items ?? [], ids);
  } else told(batch, answer.results);
}

/** Remembers refusals of these entries; one that was answered after all needs no further word: those are given back. */
function note(batch, all) {
  const known = new Map(batch.map((entry) => [entry.id, entry]));
  const mine = all.filter((result) => known.has(result.answer_id));
  const good = new Set(mine.filter((one) => one.status === "saved" || one.status === "held").map((one) => one.content));
  const old = refused.filter((one) => good.has(one.content));
  forget(old);
  refused = refused.filter((one) => !old.includes(one));
  for (const result of mine.filter((one) => one.status === "refused")) {
    order += 1;
    const { kind, action } = known.get(result.answer_id);
    const content = action?.content ?? (result.content || null);
    const one = { id: result.answer_id, kind, content, message: result.message, at: Date.now(), order };
    one.key = `${refusals}${kind}.${one.id}`;
    keep(one);
    refused.push(one);
  }
  forget(refused.slice(0, -MOST_REFUSED));
  refused = refused.slice(-MOST_REFUSED);
  return old;
}

const keys = (some) => some.map((one) => one.key);

/** Tells this person's other tabs that these entries are settled (answer null: forgotten, unsent), and what is refused. */
function tell(batch, answer, gone = []) {
  // All in the message: what lies in localStorage reaches another tab later than this does.
  if (batch.length || gone.length) tabs?.postMessage({ refusals, keys: keys(batch), answer, refused, gone: keys(gone) });
}

function heard({ data }) {
  if (data.refusals !== refusals || refusals === null) return;
  const all = new Map([...refused, ...data.refused].map((one) => [one.key, one]));
  refused = [...all.values()].filter((one) => !data.gone.includes(one.key));
  const theirs = entries.filter((entry) => data.keys.includes(entry.key));
  if (data.answer && theirs.length) settle(theirs, data.answer);
  else if (theirs.length) {
    const late = theirs.filter((entry) => entry.sent && entry.kind === "answer");
    drop(theirs);
    for (const entry of late) add("undo", entry.id, { about: picturesOf(entry.action) }); // on its way already, from here: taken back after it
  }
  changed();
  flush();
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

tabs?.addEventListener("message", heard);
addEventListener("online", () => flush());
document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && flush());
addEventListener("beforeunload", (event) => {
  if (!durable && entries.length) event.preventDefault();
});
