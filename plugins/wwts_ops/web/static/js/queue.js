// The pictures that are leased to this reader: taken some ahead, renewed while they wait, given back when left.
import { get, send } from "./api.js";
import * as outbox from "./outbox.js";
import { prefetch } from "./picture.js";
import { onReturn, within } from "./presence.js";

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
    this.answered = new Set();
    const lease = leaseSeconds * 1000;
    // Nobody looks at what stands in a tab that was left: others may have it. Who comes back keeps what is still theirs.
    this.renewing = setInterval(() => within(lease) && this.renew(), Math.max(20_000, lease / 3));
    this.unreturn = onReturn(lease, () => this.renew());
    this.asking = setInterval(() => this.phase === "others" && this.refill(), LOOK_AGAIN_MS);
    // Counted with answers still on their way, "left" may have been too high.
    this.unlisten = outbox.onChange(() => this.phase === "others" && outbox.state().pending === 0 && this.refill());
    this.leaving = () => this.release([...this.contents(), ...this.skipped.slice(-1)]); // the others were given back
    addEventListener("pagehide", this.leaving);
    addEventListener("online", (this.back = () => this.refill()));
    addEventListener("pageshow", (this.shownAgain = (event) => event.persisted && this.renew()));
    this.refill();
  }

  close() {
    this.closed = true;
    clearInterval(this.renewing);
    clearInterval(this.asking);
    clearTimeout(this.retry);
    this.unlisten();
    this.unreturn();
    removeEventListener("pagehide", this.leaving);
    removeEventListener("online", this.back);
    removeEventListener("pageshow", this.shownAgain);
    this.leaving();
  }

  get current() {
    return this.items[0] ?? null;
  }

  contents() {
    return this.items.map((item) => item.content);
  }

  async refill() {
    if (this.phase === "forbidden" || this.taking || this.closed || this.items.length > REFILL_BELOW) return;
    this.taking = true;
    clearTimeout(this.retry);
    try {
      const held = [...this.contents(), ...outbox.contents(), ...[...this.skipped].reverse()].slice(0, MOST_HELD);
      const told = await send("api/take", { filters: this.filters, count: AHEAD + 1 - this.items.length, held });
      if (this.closed) return this.release(told.items.map((item) => item.content));
      this.take(told);
    } catch (error) {
      this.failed(error);
    } finally {
      this.taking = false;
    }
    this.changed();
  }

  take({ items, left }) {
    const known = new Set([...this.contents(), ...outbox.contents(), ...this.skipped]);
    this.items.push(...items.filter((item) => !known.has(item.content) && !this.answered.has(item.content)));
    this.left = left;
    this.error = null;
    this.phase = this.items.length ? "ready" : this.skipped.length ? "skipped" : left > outbox.contents().length ? "others" : "done";
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
    this.answered.delete(item.content);
    this.skipped = this.skipped.filter((content) => content !== item.content);
    this.items = [item, ...this.items.filter((other) => other.content !== item.content)];
    this.phase = "ready";
    this.ready(this.items);
    this.changed();
  }

  /** Items come right after the shown one. */
  insert(items) {
    for (const item of items) this.answered.delete(item.content);
    this.items.splice(1, 0, ...items);
    this.ready(this.items);
    this.changed();
  }

  /** What the server says of items that wait here now. */
  update(items) {
    const newer = new Map(items.map((item) => [item.content, item]));
    this.items = this.items.map((item) => newer.get(item.content) ?? item);
    this.changed();
  }

  drop(content) {
    this.items = this.items.filter((item) => item.content !== content);
    this.next();
  }

  /** Shows the skipped ones after all. */
  again() {
    this.skipped = [];
    this.phase = "loading";
    this.changed();
    this.refill();
  }

  async renew() {
    if (!this.items.length) return;
    const asked = this.contents();
    try {
      const mine = new Set((await send("api/renew", { contents: asked })).contents);
      const lost = asked.filter((content) => !mine.has(content));
      if (!lost.length) return;
      this.lost?.(lost);
      this.items = this.items.filter((item) => !lost.includes(item.content));
      this.next();
    } catch (error) {
      this.error = error; // the leases outlive a short break; later answers are checked by revision anyway
    }
  }

  release(contents) {
    // Left alone when it fails: leases end by themselves.
    if (contents.length) send("api/release", { contents }).catch((error) => console.debug(error));
  }
}

const NOTHING = { siblings: [], alike: [], opinions: null };
