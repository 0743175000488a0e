// Small pieces that every page uses.
import { html, useLayoutEffect, useRef } from "../vendor/htm-preact.js";
import { useKeys } from "./keys.js";

/** 12345 as "12,345"; nothing known as "—". */
export const number = (value) => (value === null || value === undefined ? "—" : Math.round(value).toLocaleString("zh-CN"));

/** 0.876 as "87.6%"; rounding never claims a certainty that is not there. */
export function percent(share, digits = 1) {
  if (share === null || share === undefined) return "—";
  const shown = (share * 100).toFixed(digits);
  return `${Number(shown) === 100 && share < 1 ? (100 - 10 ** -digits).toFixed(digits) : shown}%`;
}

/** A key as it is drawn on buttons. Decoration: the button says its key with aria-keyshortcuts. */
export const Key = ({ children }) => html`<kbd aria-hidden="true">${children}</kbd>`;

/**
 * A modal dialog in the page (the frame allows no windows). keys: shortcuts while it is open; no others work.
 * wait: milliseconds in which keys are deaf, for dialogs that appear while somebody types ahead.
 */
export function Dialog({ title, children, onClose, keys = {}, wait = 0, wide = false, testid }) {
  const box = useRef(null);
  const since = useRef(performance.now());
  const deaf = (handler) => (event) => performance.now() - since.current >= wait && handler(event);
  useKeys(Object.fromEntries(Object.entries({ Escape: onClose, ...keys }).map(([key, handler]) => [key, deaf(handler)])), {
    modal: true,
    writing: ["Escape"],
  });
  useLayoutEffect(() => {
    const before = document.activeElement;
    const dialog = box.current;
    dialog.showModal();
    // Not the first button, as browsers do: an Enter too many would press it.
    if (!dialog.contains(document.activeElement) || document.activeElement.matches("button")) dialog.focus();
    return () => {
      dialog.close();
      if (before instanceof HTMLElement && before.isConnected) before.focus();
    };
  }, []);
  const outside = (event) => event.target === box.current && performance.now() - since.current > 300 && onClose();
  return html`<dialog ref=${box} class=${wide ? "wide" : ""} aria-label=${title} data-testid=${testid} tabindex="-1"
    onCancel=${(event) => { event.preventDefault(); onClose(); }} onMouseDown=${outside}>
    <div class="inside"><h2>${title}</h2>${children}</div>
  </dialog>`;
}

/** Whom to ask for the right to answer. */
export const ReadOnly = ({ me }) => html`<p class="readonly" data-testid="readonly">您可以翻看，不能作答。想参与审核，请让管理员把“${me.user}”加入审核人员名单（WWTS_REVIEWERS）。</p>`;

/** A calm page for when there is nothing to do, or something is in the way. */
export const Notice = ({ title, children, actions, drawing = "picture" }) => html`<div class="notice" role="status">
  <svg width="72" height="72" viewBox="0 0 64 64" aria-hidden="true">
    ${drawing === "done"
      ? html`<circle cx="32" cy="32" r="23" /><path d="M21 33l8 8 15-17" />`
      : drawing === "cut"
        ? html`<path d="M14 40a10 10 0 0 1 2-19 14 14 0 0 1 27-2 11 11 0 0 1 7 20" /><path d="M26 36l12 12M38 36L26 48" />`
        : html`<rect x="8" y="14" width="48" height="38" rx="3" /><circle cx="22" cy="27" r="4.5" /><path d="M9 47l16-13 10 8 8-6 12 10" />`}
  </svg>
  <h2>${title}</h2>
  ${children}
  ${actions && html`<div class="row">${actions}</div>`}
</div>`;
