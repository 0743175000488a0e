// What waits under some filters: one request shared by all who ask for the same, kept right while people answer.

import { useEffect, useState } from "../vendor/htm-preact.js";
import { get, query as asQuery } from "./api.js";
import { onResult, onUndone } from "./outbox.js";

const KEYS = ["dates", "categories", "labels", "decisions", "reasons", "states"];
const EVERY = 30_000;
// Counting thousands of items costs the server some tens of milliseconds: the page counts its own answers itself and
// asks anew no oftener than this.
const AT_MOST_EVERY = 15_000;
const FRESH = 2000; // two parts of a page that ask for the same one after the other are told the same

const asked = new Map(); // query -> {listeners, data, error, loading, again, at}
let soon = 0;
let counted = 0;

/** The filters as a query, in one order whatever order they were set in. */
const query = (filters) => asQuery(Object.fromEntries(KEYS.map((key) => [key, filters[key] ?? []])));

async function load(key) {
  const entry = asked.get(key);
  if (!entry) return;
  if (entry.loading) {
    entry.again = true;
    return;
  }
  entry.loading = true;
  try {
    entry.data = { ...(await get(`api/summary${key}`)), counted: (counted += 1) };
    entry.error = null;
  } catch (error) {
    entry.error = error;
  } finally {
    entry.loading = false;
    entry.at = performance.now();
  }
  tell(entry);
  if (entry.again) {
    entry.again = false;
    await load(key);
  }
}

const tell = (entry) => {
  for (const listener of entry.listeners) listener();
};
const age = ({ at }) => performance.now() - (at ?? -Infinity);

/** Counts again what was counted so long ago, in milliseconds. */
function renew(than) {
  for (const [key, entry] of asked) if (!entry.loading && age(entry) >= than) load(key);
}

/** Counts again when the last count is old enough; any number of answers meanwhile make one request. */
export function refresh() {
  if (soon) return;
  const youngest = Math.min(AT_MOST_EVERY, ...[...asked.values()].map(age));
  soon = setTimeout(() => {
    soon = 0;
    renew(FRESH);
  }, Math.max(1000, AT_MOST_EVERY - youngest));
}

/** Counts again for a page that is opened. */
export const opened = () => renew(FRESH);

/** Counts again at once: after something that moves many items. */
export function recount() {
  [...asked.keys()].forEach(load);
}

/** Until the next count: so many (less than none: more) of a label wait no longer. */
export function settled(labelId, count) {
  for (const entry of asked.values()) {
    if (!entry.data) continue;
    const label = entry.data.facets.label.map((one) => (one.value === labelId ? { ...one, count: one.count - count } : one));
    entry.data = { ...entry.data, facets: { ...entry.data.facets, label } };
    tell(entry);
  }
}

onResult(refresh);
onUndone(refresh);
setInterval(() => document.visibilityState === "visible" && renew(AT_MOST_EVERY), EVERY);

/** {data, error}: the summary under `filters`; data of before stays until the new one is there. `data.counted` tells
 * one count of the server's from the next. */
export function useSummary(filters) {
  const key = query(filters);
  const [, draw] = useState(0);
  const [last, setLast] = useState(null);
  useEffect(() => {
    const entry = asked.get(key) ?? { listeners: new Set(), data: null, error: null };
    const listener = () => {
      if (entry.data) setLast(entry.data);
      draw((count) => count + 1);
    };
    asked.set(key, entry);
    entry.listeners.add(listener);
    if (entry.data) listener();
    if (!entry.loading && age(entry) >= FRESH) load(key);
    return () => {
      entry.listeners.delete(listener);
      if (!entry.listeners.size) asked.delete(key);
    };
  }, [key]);
  return { data: asked.get(key)?.data ?? last, error: asked.get(key)?.error ?? null };
}
