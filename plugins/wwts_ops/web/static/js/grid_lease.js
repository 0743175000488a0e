// The pictures of a grid that are leased to us: those on the board, and the next ones. All others are given back.

import { send } from "./api.js";
import * as outbox from "./outbox.js";
import { keep } from "./presence.js";
import { MOST_HELD } from "./queue.js";

export const COUNT = 50;
export const NONE = [];

export const contentsOf = (items) => items.map((item) => item.content);

export class Leases {
  /** `lost(contents)`: others have these of the board now. */
  constructor({ lease_seconds: seconds }, lost) {
    Object.assign(this, { lost, lease: seconds * 1000, board: NONE, next: NONE, taking: 0, closed: false });
    this.ours = new Set();
    this.given = Promise.resolve();
  }

  open() {
    this.unkeep = keep(this.lease, { renew: () => this.renew(), leave: () => this.give([...this.ours]) });
  }

  close() {
    this.closed = true;
    this.unkeep();
    this.tidy();
  }

  /** The best pictures of the label other than those in `held` and those answered already. Whoever takes, tidies. */
  async take(label, filters, held = NONE) {
    this.taking += 1;
    try {
      await this.given; // what is on its way back must not be ours again before it arrives
      const body = { label_id: label.id, filters: { ...filters, labels: [] }, count: COUNT };
      const { items } = await send("api/grid", { ...body, held: [...held, ...outbox.contents()].slice(0, MOST_HELD) });
      for (const { content } of items) this.ours.add(content);
      const out = new Set([...held, ...outbox.contents()]);
      return items.filter(({ content }) => !out.has(content));
    } finally {
      this.taking -= 1;
    }
  }

  /** These are on the board now; so they are ours. */
  show(items) {
    this.board = items;
    for (const { content } of items) this.ours.add(content);
    this.tidy();
  }

  /** These come after those on the board. */
  prepare(items) {
    this.next = items;
    this.tidy();
  }

  /** These were answered: the server ends their leases. */
  answered(items) {
    for (const { content } of items) this.ours.delete(content);
  }

  /** Gives back what is neither on the board nor next; once all that was asked for is there. */
  tidy() {
    if (this.taking && !this.closed) return;
    const kept = new Set(this.closed ? NONE : contentsOf([...this.board, ...this.next]));
    const others = [...this.ours].filter((content) => !kept.has(content));
    for (const content of others) this.ours.delete(content);
    this.give(others);
  }

  give(contents) {
    // Left alone when it fails: leases end by themselves.
    if (contents.length) this.given = send("api/release", { contents }).catch((error) => console.debug(error));
  }

  async renew() {
    const asked = contentsOf([...this.board, ...this.next]).filter((content) => this.ours.has(content));
    if (!asked.length) return;
    try {
      const mine = new Set((await send("api/renew", { contents: asked })).contents);
      const gone = new Set(asked.filter((content) => !mine.has(content) && this.ours.has(content)));
      for (const content of gone) this.ours.delete(content);
      this.next = this.next.filter(({ content }) => !gone.has(content));
      const lost = contentsOf(this.board).filter((content) => gone.has(content));
      if (lost.length && !this.closed) this.lost(lost);
    } catch (error) {
      console.debug(error); // the leases outlive a short break; later answers are checked by revision anyway
    }
  }
}
