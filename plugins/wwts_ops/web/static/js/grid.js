// Fifty pictures of one predicted label at a time: mark the wrong ones, done. The fastest way through a good model's output.

import { html, useEffect, useMemo, useRef, useState } from "../vendor/htm-preact.js";
import { Filters } from "./filters.js";
import { number } from "./format.js";
import { Closer, useSeen } from "./grid_board.js";
import { NONE, sent, taken, useLabels, useLease, useOutcomes, usePrefetch } from "./grid_data.js";
import { Fix, Shared } from "./grid_fix.js";
import { GridLook } from "./grid_look.js";
import { Labels, Marking } from "./grid_views.js";
import { useKeys } from "./keys.js";
import * as outbox from "./outbox.js";
import { refresh, settled, useSummary } from "./summary.js";

const TRIED = 8; // labels that are tried to begin with: of some, two people must see each picture

export default function Page({ app }) {
  return app.may ? html`<${Grid} app=${app} />` : html`<${GridLook} app=${app} />`;
}

function Grid({ app }) {
  const { me, filters } = app;
  const [label, setLabel] = useState(null);
  const [items, setItems] = useState(null);
  const [wrong, setWrong] = useState(() => new Set());
  const [cursor, setCursor] = useState(0);
  const [looked, setLooked] = useState(null);
  const [fixing, setFixing] = useState(null);
  const [problem, setProblem] = useState("");
  const [last, setLast] = useState(null);
  const asked = useRef(0);
  const summary = useSummary(useMemo(() => ({ ...filters, labels: [], states: ["open"] }), [filters]));
  const labels = useLabels(summary.data, filters);
  const seen = useSeen(items ?? NONE);
  const release = useLease(items, me, () => fixing || again());
  const nextItems = usePrefetch(label, filters, items);
  const outcomes = useOutcomes(app);

  const show = (found, marked = new Set()) => {
    setItems(found);
    setWrong(marked);
    setCursor(0);
    setLooked(null);
    setProblem("");
  };
  /** `further`: labels to go on to when there is nothing of this one that a grid may show. */
  const load = async (wanted, further = NONE) => {
    const turn = ++asked.current;
    setItems(null);
    try {
      let found = await taken(wanted, filters, outbox.contents());
      if (!found.length && outbox.state().pending) {
        await sent();
        found = await taken(wanted, filters);
      }
      if (turn !== asked.current) return;
      if (found.length || !further.length) return show(found);
      setLabel(further[0]);
      return load(further[0], further.slice(1));
    } catch (error) {
      if (turn !== asked.current) return;
      show(NONE);
      setProblem(error.message);
    }
    return undefined;
  };
  const again = () => {
    app.toast("离开太久，有些图片已经交给别人了，换上还没人看的。");
    load(label);
  };
  const choose = (wanted, further) => {
    if (fixing) later(fixing.left);
    if (items?.length) release();
    setLabel(wanted);
    load(wanted, further);
  };
  const advance = () => {
    setFixing(null);
    const found = nextItems();
    asked.current += 1;
    if (found.length) show(found);
    else load(label);
  };
  const told = (batch) => {
    setLast(batch);
    const marked = batch.wrong.size ? `，${number(batch.wrong.size)} 张标错` : "";
    batch.hush = app.toast(`“${batch.label.name}”：${number(batch.right)} 张正确${marked}`, { undo: () => undo(batch) });
  };
  const done = () => {
    if (!items || fixing) return;
    const right = items.filter((item) => seen.seen.has(item.content) && !wrong.has(item.content));
    const left = items.filter((item) => wrong.has(item.content));
    if (!right.length && !left.length) return;
    const batch = {
      label,
      items,
      wrong,
      right: right.length,
      ids: outcomes.submit(right, "confirm", { labels: [label.id] }),
    };
    if (left.length) {
      setFixing({ batch, left });
      setLast(batch);
      return;
    }
    told(batch);
    advance();
  };
  const later = (left) => {
    fixing.batch.ids.push(...outcomes.submit(left, "wrong_unknown", { later: true }));
    told(fixing.batch);
    setFixing(null);
  };
  const correct = (chosen, picked) => {
    fixing.batch.ids.push(...outcomes.submit(chosen, "correct", { labels: [picked.label_id] }));
    const left = fixing.left.filter((item) => !chosen.includes(item));
    if (left.length) return setFixing({ ...fixing, left });
    told(fixing.batch);
    return advance();
  };
  const undo = (batch) => {
    if (batch.undone) return undefined;
    batch.undone = true;
    batch.hush?.();
    setLast(null);
    setFixing(null);
    outcomes.setShared(NONE);
    const forgotten = outbox.undo(batch.ids);
    settled(batch.label.id, -batch.ids.length);
    if (items?.length) release();
    setLabel(batch.label);
    asked.current += 1;
    if (forgotten.length === batch.ids.length) return show(batch.items, batch.wrong);
    setItems(null);
    const stop = outbox.onUndone((results, back, ids) => {
      if (!ids.some((id) => batch.ids.includes(id))) return;
      stop();
      const fresh = new Map(back.map((item) => [item.content, item]));
      show(
        batch.items.map((item) => fresh.get(item.content) ?? item),
        batch.wrong,
      );
      refresh();
    });
    return undefined;
  };
  // Whoever leaves with marked pictures not labelled yet leaves them first in the queue: nothing marked is lost.
  const leaving = useRef(null);
  leaving.current = fixing && (() => outcomes.submit(fixing.left, "wrong_unknown", { later: true }));
  useEffect(() => {
    const leave = () => {
      leaving.current?.();
      leaving.current = null;
    };
    addEventListener("pagehide", leave);
    return () => {
      removeEventListener("pagehide", leave);
      leave();
    };
  }, []);
  const before = useRef(filters);
  const narrowed = useRef(false);
  useEffect(() => {
    if (before.current !== filters) narrowed.current = true;
    before.current = filters;
  }, [filters]);
  useEffect(() => {
    // The first label to begin with; after other filters were set, the same one if any of it is left.
    if (!labels || fixing || (label && !narrowed.current)) return;
    narrowed.current = false;
    const same = label && labels.find((other) => other.id === label.id);
    if (same || labels.length) choose(same ?? labels[0], same ? NONE : labels.slice(1, TRIED));
    else if (label) setLabel(null);
  }, [labels]);
  const back = () => last && undo(last);
  useKeys({ Enter: () => done(), u: back, "mod+z": back });

  const toggle = (contents, becomes) => {
    const next = new Set(wrong);
    for (const content of contents) {
      if (becomes) next.add(content);
      else next.delete(content);
    }
    setWrong(next);
  };
  const look = (place, hovering) => {
    if (!hovering) setCursor(place);
    setLooked(items?.[place] ?? null);
  };
  return html`<div class="pg-grid">
    <${Filters} app=${app} without=${["labels"]} />
    <div class="grid-columns">
      <aside class="grid-side">
        <${Labels} labels=${labels} chosen=${label} error=${summary.error} onChoose=${choose} />
        ${!fixing && html`<${Closer} item=${looked ?? items?.[cursor]} />`}
      </aside>
      <div class="grid-main">
        ${
          !fixing &&
          outcomes.shared.length > 0 &&
          html`<${Shared} asked=${outcomes.shared} onLeave=${() => outcomes.setShared(NONE)}
            onConfirm=${(chosen) => {
              const ids = outcomes.insist(chosen);
              if (last) last.ids.push(...ids);
            }} />`
        }
        ${
          fixing
            ? html`<${Fix} items=${fixing.left} label=${label} onLabel=${correct} onLater=${(left) => {
                later(left);
                advance();
              }} />`
            : html`<${Marking} ...${{ label, labels, items, wrong, seen, cursor, problem, onToggle: toggle, onLook: look, onDone: done, onChoose: choose, onBack: last && back, onAgain: () => load(label) }} />`
        }
      </div>
    </div>
  </div>`;
}
