// The pictures that are leased to this reader: taken some ahead, renewed while they wait, given back when left.
import { get, send } from "./api.js";
import * as outbox from "./outbox.js";
import { prefetch } from "./picture.js";
import { keep } from "./presence.js";

const AHEAD = 10; // items held besides the shown one; their pictures are fetched and decoded
const REFILL_BELOW = 7;
export const MOST_HELD = 1000; // the server takes no more
const LOOK_AGAIN_MS = 20_000;

/** Items with what belongs to them. `changed()` is called after every change; read `items`, `phase`, `error` then. */
export class Shelf {
  constructor(filters, changed) {
    Object.assign(this, { filters, changed, items: [], left: null, phase: "loading", error: null, skipped: [] });
    this.details = new Map();
    this.taking = false;
    this.closed = false;
  }

  /** Pictures of all these, and what belongs to the first few. */
  ready(items) {
    for (const item of items) if (item.has_picture) prefetch(item.content);
    for (const item of items.slice(0, 3)) this.detail(item);
  }

  /** Siblings, look-alikes and opinions of an item: fetched once, null until they are there. */
  detail(item) {
    if (!item.siblings && !item.near && item.state !== "disputed") return NOTHING;
    const kept = this.details.get(item.content);
    if (kept !== undefined) return kept;
    this.details.set(item.content, null);
    get(`api/items/${item.content}`).then(
      (told) => this.learned(item, { siblings: told.siblings ?? [], alike: told.alike ?? [], opinions: told.opinions ?? null }),
      (error) => this.learned(item, { ...NOTHING, error }),
    );
    return null;
  }

  learned(item, detail) {
    this.details.set(item.content, detail);
    for (const other of [...detail.siblings, ...detail.alike].slice(0, 8)) prefetch(other.content);
    this.changed();
  }
}

/** What this reader answers. */
export class Queue extends Shelf {
  constructor(filters, { lease_seconds: leaseSeconds }, changed) {
    super(filters, changed);
    this.answered = new Set(); // since the server was last asked for items
    this.unknown = []; // left to somebody who knows their label
    this.leaving = () => this.release([...this.contents(), ...this.skipped.slice(-1)]); // the others were given back
    this.unkeep = keep(leaseSeconds * 1000, { renew: () => this.renew(), leave: this.leaving });
    this.asking = setInterval(() => ["others", "skipped"].includes(this.phase) && this.refill(), LOOK_AGAIN_MS);
    // Counted with answers still on their way, "left" may have been wrong.
    this.unlisten = outbox.onChange(() => !this.items.length && outbox.state().pending === 0 && this.refill());
    addEventListener("online", (this.back = () => this.refill()));
    this.refill();
  }

  close() {
    this.closed = true;
    this.unkeep();
    clearInterval(this.asking);
    clearTimeout(this.retry);
    this.unlisten();
    removeEventListener("online", this.back);
    this.leaving();
  }

  get current() {
    return this.items[0] ?? null;
  }

  contents() {
    return this.items.map((item) => item.content);
  }

  /** What this person does not want to see again until nothing else is left, the newest skip last. */
  aside() {
    return [...this.unknown, ...this.skipped];
  }

  async refill() {
    if (this.phase === "forbidden" || this.taking || this.closed || this.items.length > REFILL_BELOW) return;
    this.taking = true;
    this.answered.clear();
    const unsure = outbox.state().pending > 0;
    clearTimeout(this.retry);
    try {
      const held = [...this.contents(), ...outbox.contents(), ...this.aside().reverse()].slice(0, MOST_HELD);
      const told = await send("api/take", { filters: this.filters, count: AHEAD + 1 - this.items.length, held });
      if (this.closed) return this.release(told.items.map((item) => item.content));
      this.take(told);
    } catch (error) {
      this.failed(error);
    } finally {
      this.taking = false;
    }
    this.changed();
    if (unsure && !this.items.length && !this.error && outbox.state().pending === 0) this.refill();
  }

  take({ items, left }) {
    // Only what happened after the server was asked: whatever else it gives is to be looked at (again).
    const known = new Set([...this.contents(), ...outbox.contents(), ...this.aside(), ...this.answered]);
    this.items.push(...items.filter((item) => !known.has(item.content)));
    this.left = left;
    this.error = null;
    const waiting = left > outbox.contents().length;
    this.phase = this.items.length ? "ready" : !waiting ? "done" : this.aside().length ? "skipped" : "others";
    this.ready(this.items);
  }

  failed(error) {
    this.error = error;
    if (!this.items.length) this.phase = error.status === 403 ? "forbidden" : "error";
    if (error.passing && !this.closed) this.retry = setTimeout(() => this.refill(), 5000);
  }

  /** The shown item is dealt with; so are `others`, wherever they wait. */
  advance(others = []) {
    const gone = new Set([this.items[0]?.content, ...others]);
    for (const content of gone) this.answered.add(content);
    this.items = this.items.filter((item) => !gone.has(item.content));
    this.next();
  }

  /** The shown item and `others` are left to somebody who knows their label. */
  leave(others = []) {
    this.unknown.push(this.items[0].content, ...others);
    this.advance(others);
  }

  /** These are to be looked at as if they had not been answered or skipped. */
  wanted(contents) {
    for (const content of contents) this.answered.delete(content);
    const others = (content) => !contents.includes(content);
    this.unknown = this.unknown.filter(others);
    this.skipped = this.skipped.filter(others);
  }

  /** What was not recorded after all comes again, should the server still want it. */
  reopen(contents) {
    this.wanted(contents);
    this.refill();
  }

  skip() {
    const [item, ...rest] = this.items;
    // The one before can no longer be called back by a single undo: others may have it now.
    this.release(this.skipped.slice(-1));
    this.skipped.push(item.content);
    this.items = rest;
    this.next();
  }

  next() {
    if (!this.items.length) this.phase = "loading";
    this.ready(this.items);
    this.changed();
    this.refill();
  }

  /** An item is shown (again), before all others. */
  putBack(item) {
    this.wanted([item.content]);
    this.items = [item, ...this.items.filter((other) => other.content !== item.content)];
    this.phase = "ready";
    this.ready(this.items);
    this.changed();
  }

  /** Items come right after the shown one. */
  insert(items) {
    if (!items.length) return;
    const before = this.current;
    const contents = items.map((item) => item.content);
    this.wanted(contents);
    const others = this.items.slice(1).filter((item) => !contents.includes(item.content));
    this.items = [...this.items.slice(0, 1), ...items.filter((item) => item.content !== before?.content), ...others];
    this.phase = "ready";
    this.ready(this.items);
    this.noticed(before);
    this.changed();
  }

  /** What the server says of items that wait here now. */
  update(items) {
    const newer = new Map(items.map((item) => [item.content, item]));
    const other = this.items.filter((item) => newer.has(item.content) && newer.get(item.content).revision !== item.revision);
    for (const { content } of other) this.details.delete(content);
    this.items = this.items.map((item) => (other.includes(item) ? newer.get(item.content) : item));
    this.ready(this.items);
    this.changed();
  }

  drop(content) {
    const before = this.current;
    this.items = this.items.filter((item) => item.content !== content);
    this.noticed(before);
    this.next();
  }

  /** `startled()`: another picture is shown, and it was not the person who turned to it. */
  noticed(before) {
    if (this.current?.content !== before?.content) this.startled?.();
  }

  /** Shows what was put aside after all. */
  again() {
    this.unknown = [];
    this.skipped = [];
    this.phase = "loading";
    this.changed();
    this.refill();
  }

  async renew() {
    // One without a revision waits until its answer is taken back: it is nobody's until then.
    const asked = this.items.filter((item) => item.revision !== null).map((item) => item.content);
    if (!asked.length) return;
    try {
      this.renewed(asked, await send("api/renew", { contents: asked }));
    } catch (error) {
      this.error = error; // the leases outlive a short break; later answers are checked by revision anyway
    }
  }

  renewed(asked, { contents, items }) {
    const before = this.current;
    // Nothing of what is taken back meanwhile: of that the answer to the undo tells.
    const fixed = new Set(this.items.filter((item) => item.revision !== null).map((item) => item.content));
    const lost = asked.filter((content) => fixed.has(content) && !contents.includes(content));
    this.update(items.filter((item) => fixed.has(item.content)));
    if (before && this.current.content === before.content && this.current.revision !== before.revision) this.altered?.();
    if (!lost.length) return;
    this.lost?.(lost);
    this.items = this.items.filter((item) => !lost.includes(item.content));
    this.noticed(before);
    this.next();
  }

  release(contents) {
    // Left alone when it fails: leases end by themselves.
    if (contents.length) send("api/release", { contents }).catch((error) => console.debug(error));
  }
}

const NOTHING = { siblings: [], alike: [], opinions: null };
