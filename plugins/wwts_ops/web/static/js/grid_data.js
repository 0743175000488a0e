// What a grid needs of the server: its pictures, the next ones ahead of time, leases, and what became of its answers.

import { useEffect, useMemo, useRef, useState } from "../vendor/htm-preact.js";
import { pictureUrl } from "./api.js";
import { uuid } from "./format.js";
import { Leases, NONE, contentsOf } from "./grid_lease.js";
import * as outbox from "./outbox.js";
import { settled } from "./summary.js";

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

/** The leases of this page; `lost(contents)` as in `Leases`. */
export function useLeases(me, lost) {
  const told = useRef(lost);
  told.current = lost;
  const leases = useMemo(() => new Leases(me, (contents) => told.current(contents)), []);
  useEffect(() => {
    leases.open();
    return () => leases.close();
  }, []);
  return leases;
}

/** Takes the pictures of the label that come after those on the board, and fetches them; anew for each board. */
export function usePrefetch(leases, label, filters, { items, turn }) {
  useEffect(() => {
    if (!label || !items?.length) return undefined;
    let gone = false;
    const ready = (found) => {
      if (gone) return leases.tidy();
      for (const item of found) if (item.has_picture) new Image().src = pictureUrl(item.content);
      return leases.prepare(found);
    };
    // It is only a head start: the next grid is asked for anyway, and says what is wrong.
    leases.take(label, filters, contentsOf(items)).then(ready, () => leases.tidy());
    return () => {
      gone = true;
      leases.prepare(NONE);
    };
  }, [label?.id, filters, turn]);
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
