// All enabled labels, searched in the browser as one types: by Chinese name, synonym, full pinyin, initials (any mix of
// both: "hongj", "hjiu"), English, id and category. 20,000 labels take some milliseconds a key.
import { get } from "./api.js";

const held = new Map();

/** Loads the labels of a taxonomy version (once); resolves to what `search` and `byId` use. */
export function load(version) {
  if (!held.has(version)) {
    const loading = get(`api/labels/${encodeURIComponent(version)}`).then((told) => use(told.labels)).then(warm);
    loading.catch(() => held.delete(version)); // the next call tries again
    held.set(version, loading);
  }
  return held.get(version);
}

/** The first search of all would be slow: the browser compiles what runs often. */
function warm(known) {
  const run = () => ["a", "一"].forEach((text) => search(text));
  if (globalThis.requestIdleCallback) requestIdleCallback(run, { timeout: 3000 });
  else setTimeout(run, 500);
  return known;
}

let index = [];
let ids = new Map();

const AT_ONCE = 1000; // rows; more would make a key wait

/** Makes `rows` (as GET /api/labels gives them) the labels that are searched; resolves to their number. */
export async function use(rows) {
  const made = [];
  for (let at = 0; at < rows.length; at += AT_ONCE) {
    if (at) await new Promise((resolve) => setTimeout(resolve));
    made.push(...rows.slice(at, at + AT_ONCE).map(entry));
  }
  index = made;
  ids = new Map(index.map((one) => [one.label.label_id, one]));
  narrowed = { asked: "", found: [] };
  return index.length;
}

/** {label_id, label_zh, label_en, synonyms, category_path} or undefined. */
export const byId = (id) => ids.get(id)?.label;

export const count = () => index.length;

const fold = (text) => (text ?? "").normalize("NFKC").toLowerCase().trim();
const list = (value) => (Array.isArray(value) ? value : (value ?? "").split(/[|;；]/)).map((one) => one.trim()).filter(Boolean);

/** English with its words apart, however they are joined: "t-shirt" and "t_shirt" are "t shirt". */
const spaced = (text) => text.replaceAll(/[_-]+/g, " ").trim();

/** Emoji and their modifiers: decoration of a name that nobody types and that makes it no longer. */
const EMOJI = /[\p{Extended_Pictographic}\p{Emoji_Modifier}\p{Regional_Indicator}\u200d\ufe0e\ufe0f\u20e3]/gu;
const HAN = /\p{Script=Han}/u;

function entry([label_id, label_zh, label_en, synonyms, category_path, pinyin]) {
  const names = list(synonyms);
  const written = fold(label_zh);
  const zh = written.replace(EMOJI, "").trim() || written;
  const spoken = list(pinyin).map(said);
  return {
    label: { label_id, label_zh, label_en: label_en ?? "", synonyms: names, category_path: category_path ?? "" },
    zh,
    written: written === zh ? "" : written,
    others: names.map(fold),
    english: spaced(fold(label_en)),
    id: fold(label_id),
    path: fold(category_path),
    length: Math.min(zh.length, 30) / 100, // the shorter of two equally good names
    // Names come before synonyms, and those without a Chinese character have no pinyin.
    spoken: HAN.test(zh) ? spoken[0] : undefined,
    spokenOthers: HAN.test(zh) ? spoken.slice(1) : spoken,
  };
}

function said(text) {
  const syllables = fold(text).split(/[\s']+/);
  return { syllables, joined: syllables.join(""), initials: syllables.map((one) => one[0]).join("") };
}

/** What the last query matched: a longer one that begins with it can match nothing else. */
let narrowed = { asked: "", found: [] };

/** The best labels for what somebody typed: [[label, score]], best (highest score, at most 100) first. */
export function search(query, limit = 8) {
  const asked = fold(query);
  if (!asked) return [];
  const wanted = asked.split(/\s+/).map(term);
  const whole = term(asked.replaceAll(/\s+/g, ""));
  const pool = narrowed.asked && asked.startsWith(narrowed.asked) ? narrowed.found : index;
  const found = [];
  const best = [];
  for (const one of pool) {
    const score = matched(one, whole, wanted);
    if (score === 0) continue;
    found.push(one);
    place(best, [one.label, score - one.length], limit);
  }
  narrowed = { asked, found };
  return best;
}

/** "hong jiu" is one name with a gap; "wine red" and "红 酒" are two words that must both be there. */
function matched(one, whole, wanted) {
  const score = scored(one, whole);
  if (wanted.length === 1) return score;
  let least = 100;
  for (const word of wanted) {
    least = Math.min(least, scored(one, word));
    if (least === 0) return score;
  }
  return Math.max(score, least - 5);
}

/** Keeps the `limit` best, in order; of equal ones the one that came first. */
function place(best, hit, limit) {
  if (best.length === limit && best.at(-1)[1] >= hit[1]) return;
  let at = best.length;
  while (at > 0 && best[at - 1][1] < hit[1]) at -= 1;
  best.splice(at, 0, hit);
  if (best.length > limit) best.pop();
}

const term = (text) => ({ text, english: spaced(text), latin: /^[\x20-\x7e]+$/.test(text) });

function scored(one, { text, english, latin }) {
  const score = latin ? foreign(one, text, english) : 0;
  return score >= 86 ? score : Math.max(score, chinese(one, text)); // Chinese names hold Latin letters too
}

function chinese(one, asked) {
  if (one.zh === asked || one.written === asked) return 100;
  if (one.zh.startsWith(asked)) return 92;
  let best = one.zh.includes(asked) || one.written.includes(asked) ? 80 : 0;
  for (const other of one.others) {
    if (other === asked) best = Math.max(best, 95);
    else if (other.startsWith(asked)) best = Math.max(best, 76);
    else if (best < 70 && other.includes(asked)) best = 70;
  }
  return best || (one.path.includes(asked) ? 30 : 0);
}

/** What the pinyin of a synonym is worth, by what it is of a name: all of one comes first, then names in any place. */
const SYNONYM = { 94: 89, 86: 64, 66: 58, 0: 0 };

function foreign(one, asked, english) {
  if ((english && one.english === english) || one.id === asked) return 96;
  let best = one.spoken ? spoken(one.spoken, asked) : 0;
  if (best < SYNONYM[94]) for (const said of one.spokenOthers) best = Math.max(best, SYNONYM[spoken(said, asked)]);
  const at = best < 82 && english ? one.english.indexOf(english) : -1;
  if (at === 0) best = 82;
  else if (at > 0) best = Math.max(best, one.english[at - 1] === " " ? 74 : 40);
  return best > 0 ? best : one.id.startsWith(asked) ? 60 : 0;
}

/** How well `asked` abbreviates the syllables: whole 94, from the start 86, from a later syllable 66. */
function spoken({ syllables, joined, initials }, asked) {
  if (joined === asked || (initials === asked && asked.length > 1)) return 94;
  if (joined.startsWith(asked) || initials.startsWith(asked)) return 86;
  for (let start = initials.indexOf(asked[0]); start >= 0; start = initials.indexOf(asked[0], start + 1)) {
    if (abbreviates(syllables, start, asked, 0)) return start > 0 ? 66 : 86;
  }
  return 0;
}

/** Does `asked` from `at` on consist of beginnings (one letter or more each) of syllables from `from` on? */
function abbreviates(syllables, from, asked, at) {
  if (at === asked.length) return true;
  if (from === syllables.length) return false;
  const syllable = syllables[from];
  let most = 0;
  while (most < syllable.length && asked[at + most] === syllable[most]) most += 1;
  for (let taken = most; taken > 0; taken -= 1) {
    if (abbreviates(syllables, from + 1, asked, at + taken)) return true;
  }
  return false;
}

/** The synonym that `query` finds a label by, where it fits better than the label's name; else null. */
export function synonymOf(label, query) {
  const { text, latin } = term(fold(query).replaceAll(/\s+/g, ""));
  const written = label.synonyms.find((one) => fold(one).includes(text));
  const known = ids.get(label.label_id);
  if (written || !known || !latin || !text) return written ?? null;
  let [best, found] = [known.spoken ? spoken(known.spoken, text) : 0, null];
  label.synonyms.filter((one) => HAN.test(one)).forEach((one, place) => {
    const score = known.spokenOthers[place] ? spoken(known.spokenOthers[place], text) : 0;
    if (score > best) [best, found] = [score, one];
  });
  return found;
}

/** `text` cut at what matches `asked`: [before, hit, after], for showing why a label was found. */
export function marked(text, asked) {
  const wanted = fold(asked);
  const at = wanted ? text.toLowerCase().indexOf(wanted) : -1;
  return at < 0 ? [text, "", ""] : [text.slice(0, at), text.slice(at, at + wanted.length), text.slice(at + wanted.length)];
}

const RECENT = "wwts.recent";

/** The labels picked last in this browser, newest first: the next picture is often of the same kind. */
export function recent(limit = 6) {
  try {
    return JSON.parse(localStorage.getItem(RECENT) ?? "[]").map(byId).filter(Boolean).slice(0, limit);
  } catch {
    return [];
  }
}

export function remember(labelId) {
  try {
    const others = JSON.parse(localStorage.getItem(RECENT) ?? "[]").filter((one) => one !== labelId);
    localStorage.setItem(RECENT, JSON.stringify([labelId, ...others].slice(0, 20)));
  } catch {
    // A convenience only: without storage there is simply no list.
  }
}
