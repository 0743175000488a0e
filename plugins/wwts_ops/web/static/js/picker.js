// The search box over all labels: a combobox driven by the keyboard.
import { html, useEffect, useLayoutEffect, useMemo, useRef, useState } from "../vendor/htm-preact.js";
import { composing } from "./keys.js";
import { marked, recent, remember, search, synonymOf } from "./labels.js";

let boxes = 0;

/**
 * onPick(label): {label_id, label_zh, label_en, synonyms, category_path}. onCancel(): Escape, which empties the box too.
 * initial: text to begin with. focus: take the focus when mounted (and when the value of `focus` changes).
 * onPropose(text): offered below the hits when given. testid: data-testid of the input, "search" unless told.
 */
export function LabelPicker({ onPick, onCancel, onPropose, initial = "", focus = false, placeholder, testid, disabled, extra }) {
  const [text, setText] = useState(initial);
  const [at, setAt] = useState(-1);
  const [open, setOpen] = useState(false);
  const input = useRef(null);
  const name = useMemo(() => `labels-${(boxes += 1)}`, []);
  const hits = useMemo(() => (text.trim() ? search(text, 8).map(([label]) => label) : open ? recent() : []), [text, open]);
  useLayoutEffect(() => {
    if (focus !== false && input.current) {
      setText(initial);
      setAt(initial ? 0 : -1);
      input.current.focus();
    }
  }, [focus]);
  useEffect(() => {
    document.getElementById(`${name}-${at}`)?.scrollIntoView({ block: "nearest" });
  }, [at]);

  const reset = () => {
    setText("");
    setAt(-1);
    setOpen(false);
  };
  const pick = (label) => {
    remember(label.label_id);
    reset();
    onPick(label);
  };
  const write = (event) => {
    // The key that leads here, pressed once more, is no part of a name; an IME makes "、" of it.
    if (!event.isComposing && /^[/／、]/.test(event.target.value)) event.target.value = event.target.value.replace(/^[/／、]+/, "");
    setText(event.target.value);
    setAt(event.target.value.trim() ? 0 : -1);
    setOpen(true);
  };
  const keydown = (event) => {
    if (composing(event)) return;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      setOpen(true);
      if (hits.length) setAt((at + (event.key === "ArrowDown" ? 1 : -1 + (at < 0)) + hits.length) % hits.length);
    } else if (event.key === "Enter") {
      event.preventDefault();
      if (!event.repeat && hits[at]) pick(hits[at]);
    } else if (event.key === "Escape") {
      if (!onCancel && !text && !open) return; // there is nothing here to leave: what lies around it may close
      event.preventDefault();
      event.stopPropagation();
      reset();
      onCancel?.();
    }
  };
  const shown = open && (hits.length > 0 || text.trim() !== "");
  return html`<div class="picker">
    <svg class="glass" viewBox="0 0 20 20" aria-hidden="true"><circle cx="8.5" cy="8.5" r="5.5" /><path d="M13 13l4.5 4.5" /></svg>
    <input ref=${input} type="text" role="combobox" autocomplete="off" spellcheck=${false} data-testid=${testid ?? "search"}
      aria-label="搜索全部标签" aria-expanded=${shown ? "true" : "false"} aria-controls=${name} aria-autocomplete="list"
      aria-activedescendant=${shown && hits[at] ? `${name}-${at}` : undefined} disabled=${disabled}
      placeholder=${placeholder ?? "搜索全部标签：中文、拼音、首字母或英文"} value=${text}
      onInput=${write} onKeyDown=${keydown} onFocus=${() => setOpen(true)} onBlur=${() => setOpen(false)} />
    ${extra}
    <div class="hits" hidden=${!shown}>
      ${!text.trim() && html`<p class="hint">最近用过</p>`}
      <ul id=${name} role="listbox" aria-label="找到的标签">
        ${hits.map((label, index) => html`<${Hit} key=${label.label_id} id=${`${name}-${index}`} label=${label} text=${text}
          chosen=${index === at} onPick=${pick} />`)}
      </ul>
      ${text.trim() && !hits.length && html`<p class="hint">没有找到“${text.trim()}”。换个说法试试，或用拼音首字母。</p>`}
      ${text.trim() && onPropose && html`<button type="button" class="link" onMouseDown=${(event) => event.preventDefault()}
        onClick=${() => { const asked = text.trim(); reset(); onPropose(asked); }}>提议新标签“${text.trim()}”…</button>`}
    </div>
    <p class="hidden" role="status">${shown && text.trim() ? `找到 ${hits.length} 个标签` : ""}</p>
  </div>`;
}

function Hit({ id, label, text, chosen, onPick }) {
  const [before, hit, after] = marked(label.label_zh, text);
  const other = hit ? null : synonymOf(label, text);
  const english = !hit && !other && marked(label.label_en, text)[1] ? label.label_en : null;
  // Not onClick: the box would lose the focus first, and the list with it.
  const press = (event) => {
    event.preventDefault();
    if (event.button === 0) onPick(label);
  };
  return html`<li id=${id} role="option" aria-selected=${chosen ? "true" : "false"} onMouseDown=${press}>
    <span class="name">${before}<mark>${hit}</mark>${after}${(other ?? english) && html`<small>${other ? "又名 " : ""}${other ?? english}</small>`}</span>
    <span class="path">${label.category_path}</span>
  </li>`;
}
