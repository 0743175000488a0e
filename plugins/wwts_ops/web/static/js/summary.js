// What waits under some filters: one request shared by all who ask for the same, kept right while people answer.

import { useEffect, useState } from "../vendor/htm-preact.js";
import { get, query as asQuery } from "./api.js";
import { onResult } from "./outbox.js";

const KEYS = ["dates", "categories", "labels", "decisions", "reasons", "states"];
const EVERY = 30_000;
const AFTER_AN_ANSWER = 700;

const asked = new Map(); // query -> {listeners, data, error, loading, again}
let soon = 0;

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
    entry.data = await get(`api/summary${key}`);
    entry.error = null;
  } catch (error) {
    entry.error = error;
  } finally {
    entry.loading = false;
  }
  for (const listener of entry.listeners) listener();
  if (entry.again) {
    entry.again = false;
    await load(key);
  }
}

/** Counts again, soon: several answers in a row make one request. */
export function refresh() {
  clearTimeout(soon);
  soon = setTimeout(() => [...asked.keys()].forEach(load), AFTER_AN_ANSWER);
}

onResult(refresh);
setInterval(() => document.visibilityState === "visible" && [...asked.keys()].forEach(load), EVERY);

/** {data, error}: the summary under `filters`; data of before stays until the new one is there. */
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
    load(key);
    return () => {
      entry.listeners.delete(listener);
      if (!entry.listeners.size) asked.delete(key);
    };
  }, [key]);
  return { data: asked.get(key)?.data ?? last, error: asked.get(key)?.error ?? null };
}
