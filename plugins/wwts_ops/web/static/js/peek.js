// For those who may look and not answer: the same pictures, leased to nobody, forwards and backwards.
import { get, query } from "./api.js";
import { Shelf } from "./queue.js";

const AT_ONCE = 40;
const FROM = 8; // so many before the end, more are fetched
const MOST = 100; // contents in one address; longer ones are cut or refused on the way

export class Peek extends Shelf {
  constructor(filters, changed) {
    super(filters, changed);
    this.at = 0;
    this.ended = false;
    this.refill();
  }

  close() {
    this.closed = true;
  }

  get current() {
    return this.items[this.at] ?? null;
  }

  /** Whether there is one before (-1) or after (1). */
  leads(by) {
    return this.items[this.at + by] !== undefined;
  }

  step(by) {
    if (!this.leads(by)) return;
    this.at += by;
    this.ready(this.items.slice(this.at, this.at + FROM));
    this.changed();
    if (this.items.length - this.at <= FROM) this.refill();
  }

  async refill() {
    if (this.taking || this.closed || this.ended) return;
    this.taking = true;
    try {
      const held = this.items.map((item) => item.content).slice(-MOST);
      this.take(await get(`api/peek${query({ ...this.filters, count: AT_ONCE, held })}`));
    } catch (error) {
      this.error = error;
      if (!this.items.length) this.phase = error.status === 403 ? "forbidden" : "error";
    } finally {
      this.taking = false;
    }
    if (!this.closed) this.changed();
  }

  take({ items, left }) {
    const known = new Set(this.items.map((item) => item.content));
    const fresh = items.filter((item) => !known.has(item.content));
    this.ended = fresh.length === 0;
    this.items.push(...fresh);
    this.left = left;
    this.error = null;
    this.phase = this.items.length ? "ready" : "done";
    this.ready(this.items.slice(this.at, this.at + FROM));
  }
}
