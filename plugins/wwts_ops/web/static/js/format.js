// How numbers, times and people's answers are written, on every page alike.

export const KINDS = {
  confirm: "标签正确",
  correct: "改了标签",
  wrong_unknown: "都不对",
  reject_image: "图片有问题",
  retract: "撤销",
};
export const DECISIONS = { review: "没把握", forced_review: "强制审核", audit: "抽查" };

export { number, percent } from "./ui.js";

/** 0.876 as 88%. */
export const whole = (share) => (share == null ? "—" : `${Math.round(share * 100)}%`);

/** A moment (ISO 8601) at the shop's own clock: 11月22日 08:41. */
export function moment(iso, timezone) {
  const at = new Date(iso);
  if (!iso || Number.isNaN(at.getTime())) return iso || "—";
  const parts = {
    month: "long",
    day: "numeric",
    hour: "2-digit",
    minute: "2-digit",
    hourCycle: "h23",
    timeZone: timezone,
  };
  return new Intl.DateTimeFormat("zh-CN", parts).format(at);
}

/** 2026-11-22 as 11月22日, with 今天 and 昨天 named. */
export function day(date, today) {
  const [, month, dayOfMonth] = date.split("-").map(Number);
  if (!dayOfMonth) return date;
  const text = `${month}月${dayOfMonth}日`;
  if (date === today) return `${text}（今天）`;
  return today && new Date(today) - new Date(date) === 86_400_000 ? `${text}（昨天）` : text;
}

export const levels = (path) => (path ? path.split(" > ") : []);
export const zh = new Intl.Collator("zh-CN", { numeric: true });

/** Order of a tree as it is read: a category, what lies in it, the next one. */
export function byPath(one, other) {
  const [these, those] = [levels(one), levels(other)];
  const at = these.findIndex((level, depth) => level !== those[depth]);
  if (at < 0) return these.length - those.length;
  return those[at] === undefined ? 1 : zh.compare(these[at], those[at]);
}

/** What a picture is called: its title, else the name of its file. */
export const titleOf = ({ title, image_id }) => title || image_id.split(/[\\/]/).at(-1) || image_id;

/** A path that exists, for the field that asks for one: the deepest of the first. */
export const examplePath = (paths) => paths.find((path, place) => !paths[place + 1]?.startsWith(`${path} > `)) ?? "";

export const leaf = (path) => levels(path).at(-1) || "";
export const uuid = () =>
  crypto.randomUUID?.() ??
  [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

/** What a clock in `timezone` shows at `at`, as inputs of type datetime-local want it. */
export function asLocal(at, timezone) {
  const format = new Intl.DateTimeFormat("sv-SE", { dateStyle: "short", timeStyle: "short", timeZone: timezone });
  return format.format(at).replace(" ", "T");
}

/** The moment (ISO 8601, UTC) at which a clock in `timezone` shows `local` (of a datetime-local input); null when none. */
export function fromLocal(local, timezone) {
  const asUtc = Date.parse(`${local}Z`);
  if (Number.isNaN(asUtc)) return null;
  const ahead = Date.parse(`${asLocal(new Date(asUtc), timezone)}Z`) - Math.floor(asUtc / 60_000) * 60_000;
  return new Date(asUtc - ahead).toISOString();
}

/** Synonyms as people write them, one after the other, as the taxonomy keeps them. */
export const synonyms = (text) =>
  text
    .split(/[|、，,；;\n]/)
    .map((one) => one.trim())
    .filter(Boolean)
    .join("|");
