// What a grid needs of the server: its pictures, the next ones ahead of time, leases, and what became of its answers.

import { useEffect, useMemo, useRef, useState } from "../vendor/htm-preact.js";
import { send } from "./api.js";
import { picture, uuid } from "./format.js";
import * as outbox from "./outbox.js";
import { onReturn, within } from "./presence.js";
import { MOST_HELD } from "./queue.js";
import { settled } from "./summary.js";

export const COUNT = 50;
export const NONE = [];

const actionOf = (item, kind, more = {}) => ({
  answer_id: uuid(),
  content: item.content,
  revision: item.revision,
  kind,
  labels: [],
  reason: null,
  comment: null,
  also: [],
  shared_ok: false,
  badcase: false,
  never_regress: false,
  later: false,
  proposal: null,
  ...more,
});

/** The best pictures of the label, leased to us, other than those in `held` and those answered already. */
export async function taken(label, filters, held = NONE) {
  const narrowed = { ...filters, labels: [label.id], states: ["open"] };
  const { items } = held.length
    ? await send("api/take", { filters: narrowed, count: COUNT, held: held.slice(-MOST_HELD) })
    : await send("api/grid", { label_id: label.id, filters: { ...filters, labels: [] }, count: COUNT });
  const out = new Set([...held, ...outbox.contents()]);
  const free = items.filter((item) => !out.has(item.content));
  // Those that two people must see are not for the grid: back to the queue.
  const others = free.filter((item) => item.needed > 1 || item.state !== "open").map((item) => item.content);
  if (others.length) send("api/release", { contents: others }).catch(() => null);
  return free.filter((item) => !others.includes(item.content));
}

/** Resolves when nothing waits to be sent any more, or sending fails just now. */
export function sent() {
  return new Promise((resolve) => {
    const look = () => {
      const { pending, trouble } = outbox.state();
      if (pending && !trouble) return;
      stop();
      resolve();
    };
    const stop = outbox.onChange(look);
    look();
  });
}

/** Pictures of the label that come after those on the board; empty while the board's own are not answered yet. */
export function usePrefetch(label, filters, items) {
  const next = useRef({ label: null, items: NONE });
  useEffect(() => {
    if (!label || !items?.length) return undefined;
    let gone = false;
    next.current = { label: null, items: NONE };
    taken(
      label,
      filters,
      items.map((item) => item.content),
    )
      .then((found) => {
        if (gone) return;
        next.current = { label: label.id, items: found };
        for (const item of found) if (item.has_picture) new Image().src = picture(item.content);
      })
      .catch(() => null); // It is only a head start: the next grid is asked for anyway, and says what is wrong.
    return () => (gone = true);
  }, [label?.id, filters, items]);
  return () => {
    const found = next.current.label === label?.id ? next.current.items : NONE;
    next.current = { label: null, items: NONE };
    const out = new Set(outbox.contents());
    return found.filter((item) => !out.has(item.content));
  };
}

/**
 * Keeps what is on the board ours while somebody looks at it, and gives it back when it no longer is.
 * `lost(contents)`: what others took while nobody did.
 */
export function useLease(items, me, lost) {
  const held = useRef(new Set());
  const told = useRef(lost);
  told.current = lost;
  useEffect(() => {
    const contents = (items ?? NONE).map((item) => item.content);
    held.current = new Set(contents);
    if (!contents.length) return undefined;
    let gone = false;
    const lease = (me.lease_seconds ?? 300) * 1000;
    const renew = () => send("api/renew", { contents });
    const keep = () => within(lease) && renew().catch(() => null); // the next one will do, or the answer says so
    const back = () =>
      renew().then(
        (mine) => {
          const others = contents.filter((content) => !mine.contents.includes(content));
          if (!gone && others.length) told.current(others);
        },
        () => null,
      );
    const timer = setInterval(keep, Math.max(20_000, lease / 3));
    const stop = onReturn(lease, back);
    return () => {
      gone = true;
      clearInterval(timer);
      stop();
    };
  }, [items]);
  const release = (contents = [...held.current]) => {
    const free = contents.filter((content) => !outbox.contents().includes(content));
    if (free.length) send("api/release", { contents: free }).catch(() => null); // leases end by themselves
  };
  useEffect(() => () => release(), []);
  return release;
}

/** What became of the answers given here: those that are shared by many products, and those not taken. */
export function useOutcomes(app) {
  const [shared, setShared] = useState(NONE);
  const sentItems = useRef(new Map());
  const lost = useRef([]);
  const tellLost = () => {
    const found = lost.current.splice(0);
    const people = [...new Set(found.map((result) => result.by).filter(Boolean))].join("、");
    if (found.length) app.toast(`其中 ${found.length} 张刚刚已由${people || "别人"}处理，以先保存的为准。`);
  };
  useEffect(
    () =>
      outbox.onResult((result, action) => {
        const item = sentItems.current.get(result.answer_id);
        if (!item) return;
        if (result.status === "shared") setShared((before) => [...before, { item, action }]);
        if (result.status === "conflict") lost.current.push(result);
        if (result.status === "refused")
          app.toast(`“${item.title || item.image_id}”没有保存：${result.message}`, { tone: "bad" });
        if (lost.current.length) setTimeout(tellLost, 0);
      }),
    [],
  );
  const give = (items, actions) => {
    actions.forEach((action, place) => sentItems.current.set(action.answer_id, items[place]));
    outbox.submit(actions);
    if (items.length) settled(items[0].label_id, items.length);
    return actions.map((action) => action.answer_id);
  };
  const submit = (items, kind, more) =>
    give(
      items,
      items.map((item) => actionOf(item, kind, more)),
    );
  /** Says once more what was asked about, and forgets the rest. */
  const insist = (asked) => {
    setShared(NONE);
    return give(
      asked.map(({ item }) => item),
      asked.map(({ action }) => ({ ...action, answer_id: uuid(), shared_ok: true })),
    );
  };
  return { shared, setShared, submit, insist };
}

/** [{id, name, count}], most first; null until known. While people answer, labels keep their places under the pointer. */
export function useLabels(data, filters) {
  const places = useRef({ filters: null, order: new Map() });
  return useMemo(() => {
    if (!data) return null;
    if (places.current.filters !== filters) places.current = { filters, order: new Map() };
    const { order } = places.current;
    const found = (data.facets.label ?? NONE)
      .map(({ value, name, count }) => ({ id: value, name: name || value, count }))
      .filter((label) => label.id && label.count > 0)
      .sort(
        (one, other) => (order.get(one.id) ?? Infinity) - (order.get(other.id) ?? Infinity) || other.count - one.count,
      );
    for (const label of found) if (!order.has(label.id)) order.set(label.id, order.size);
    return found;
  }, [data]);
}
