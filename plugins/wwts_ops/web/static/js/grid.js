// Fifty pictures of one predicted label at a time: mark the wrong ones, done. The fastest way through a good model's output.

import { html, useEffect, useMemo, useRef, useState } from "../vendor/htm-preact.js";
import { Filters } from "./filters.js";
import { number } from "./format.js";
import { Closer, useSeen } from "./grid_board.js";
import { sent, useLabels, useLeases, useOutcomes, usePrefetch } from "./grid_data.js";
import { Fix, Shared } from "./grid_fix.js";
import { NONE, contentsOf } from "./grid_lease.js";
import { GridLook } from "./grid_look.js";
import { tick, ticked, untick } from "./grid_ticks.js";
import { Labels, Leaving, Marking } from "./grid_views.js";
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
  const [board, setBoard] = useState({ items: null, turn: 0 }); // turn: another one for other pictures, not for fewer
  const [wrong, setWrong] = useState(() => new Set());
  const [cursor, setCursor] = useState(0);
  const [looked, setLooked] = useState(null);
  const [fixing, setFixing] = useState(null);
  const [leaving, setLeaving] = useState(null); // what to do once it is said what becomes of the marks
  const [problem, setProblem] = useState("");
  const [last, setLast] = useState(null);
  const asked = useRef(0);
  const { items } = board;
  const summary = useSummary(useMemo(() => ({ ...filters, labels: [], states: ["open"] }), [filters]));
  const labels = useLabels(summary.data, filters);
  const seen = useSeen(board.turn);
  const outcomes = useOutcomes(app);
  // Whoever leaves with marked pictures not labelled yet leaves them first in the queue: nothing marked is lost.
  const unsaid = useRef(null);
  unsaid.current = fixing && (() => marked(fixing.left));
  useEffect(() => {
    const leave = () => {
      unsaid.current?.();
      unsaid.current = null;
    };
    addEventListener("pagehide", leave);
    return () => {
      removeEventListener("pagehide", leave);
      leave();
    };
  }, []);
  const leases = useLeases(me, (contents) => fixing || dropped(contents));
  usePrefetch(leases, label, filters, board);

  const put = (found) => setBoard(({ turn }) => ({ items: found, turn: turn + 1 }));
  const show = (wanted, found) => {
    const marks = wanted ? ticked(me.user, wanted) : NONE;
    put(found);
    setWrong(new Set(contentsOf(found).filter((content) => marks.has(content))));
    setCursor(0);
    setLooked(null);
    setProblem("");
    leases.show(found);
  };
  /** `further`: labels to go on to when there is nothing of this one that a grid may show. */
  const load = async (wanted, further = NONE) => {
    const turn = ++asked.current;
    put(null);
    try {
      let found = await leases.take(wanted, filters);
      if (!found.length && outbox.state().pending) {
        await sent();
        found = await leases.take(wanted, filters);
      }
      if (turn !== asked.current) return leases.tidy();
      if (found.length || !further.length) return show(wanted, found);
      setLabel(further[0]);
      return load(further[0], further.slice(1));
    } catch (error) {
      if (turn !== asked.current) return leases.tidy();
      show(wanted, NONE);
      setProblem(error.message);
    }
    return undefined;
  };
  /** Others have these now: the rest of the board stays as it is, with its marks. */
  const dropped = (contents) => {
    if (!items) return undefined;
    const left = items.filter((item) => !contents.includes(item.content));
    if (!left.length) {
      app.toast("离开太久，这一屏已经交给别人了，换上还没人看的。");
      return load(label);
    }
    app.toast(`离开太久，有 ${number(contents.length)} 张已经交给别人了，其余的还在。`);
    setBoard({ ...board, items: left });
    setWrong(new Set(contentsOf(left).filter((content) => wrong.has(content))));
    setCursor(Math.min(cursor, left.length - 1));
    setLooked(null);
    return leases.show(left);
  };
  const choose = (wanted, further) => {
    if (fixing) later(fixing.left);
    setLabel(wanted);
    load(wanted, further);
  };
  /** Marks on the board are not passed over: it is asked what becomes of them. */
  const leave = (go) => (wrong.size && items && !fixing ? setLeaving({ go }) : go());
  const pick = (wanted) => (wanted.id === label?.id ? choose(wanted) : leave(() => choose(wanted)));
  const narrow = (chosen) => leave(() => app.setFilters(chosen));
  const advance = () => {
    setFixing(null);
    const out = new Set(outbox.contents());
    const found = leases.next.filter((item) => !out.has(item.content));
    asked.current += 1;
    if (found.length) show(label, found);
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
    leases.answered(right);
    const batch = {
      label,
      items: items.filter((item) => right.includes(item) || left.includes(item)), // the others come again
      wrong,
      right: right.length,
      ids: outcomes.submit(right, "confirm", { labels: [label.id] }),
    };
    if (left.length) {
      leases.show(left);
      setFixing({ batch, left });
      setLast(batch);
      return;
    }
    told(batch);
    advance();
  };
  /** These were marked and are said, of the board's label: the marks have done their work. */
  const said = (those, kind, more) => {
    untick(me.user, label, contentsOf(those));
    leases.answered(those);
    return outcomes.submit(those, kind, more);
  };
  const marked = (those) => said(those, "wrong_unknown", { later: true });
  const later = (left) => {
    fixing.batch.ids.push(...marked(left));
    told(fixing.batch);
    setFixing(null);
  };
  const correct = (chosen, picked) => {
    fixing.batch.ids.push(...said(chosen, "correct", { labels: [picked.label_id] }));
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
    tick(me.user, batch.label, batch.wrong);
    setLabel(batch.label);
    asked.current += 1;
    if (forgotten.length === batch.ids.length) return show(batch.label, batch.items);
    put(null);
    leases.show(NONE);
    const stop = outbox.onUndone((results, back, ids) => {
      if (!ids.some((id) => batch.ids.includes(id))) return;
      stop();
      const fresh = new Map(back.map((item) => [item.content, item]));
      show(
        batch.label,
        batch.items.map((item) => fresh.get(item.content) ?? item),
      );
      refresh();
    });
    return undefined;
  };
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
    else if (label) {
      setLabel(null);
      asked.current += 1;
      show(null, NONE);
    }
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
    (becomes ? tick : untick)(me.user, label, contents);
  };
  const saveMarks = () => {
    const left = items.filter((item) => wrong.has(item.content));
    told({ label, items: left, wrong, right: 0, ids: marked(left) });
  };
  const look = (place, hovering) => {
    if (!hovering) setCursor(place);
    setLooked(items?.[place] ?? null);
  };
  return html`<div class="pg-grid">
    <${Filters} app=${{ ...app, setFilters: narrow }} without=${["labels"]} />
    ${
      leaving &&
      html`<${Leaving} count=${wrong.size} onStay=${() => setLeaving(null)} onLeave=${(settle) => {
        setLeaving(null);
        settle();
        leaving.go();
      }} onSave=${saveMarks} onForget=${() => untick(me.user, label, wrong)} />`
    }
    <div class="grid-columns">
      <aside class="grid-side">
        <${Labels} labels=${labels} chosen=${label} error=${summary.error} onChoose=${pick} />
        ${!fixing && html`<${Closer} item=${looked ?? items?.[cursor]} />`}
      </aside>
      <div class="grid-main">
        ${
          !fixing &&
          outcomes.shared.length > 0 &&
          html`<${Shared} asked=${outcomes.shared} onLeave=${() => {
            leases.give(outcomes.shared.map(({ item }) => item.content));
            outcomes.setShared(NONE);
          }}
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
            : html`<${Marking} ...${{ label, labels, board, wrong, seen, cursor, problem, onToggle: toggle, onLook: look, onDone: done, onChoose: pick, onBack: last && back, onAgain: () => load(label) }} />`
        }
      </div>
    </div>
  </div>`;
}
