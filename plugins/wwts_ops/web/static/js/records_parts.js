// What the parts of the records page share: what is read from the server, and thumbnails.

import { html, useEffect, useState } from "../vendor/htm-preact.js";
import { get, pictureUrl } from "./api.js";

/** {data, problem, reload}: what `path` answers; asked again when it changes. */
export function useGot(path) {
  const [data, setData] = useState(null);
  const [problem, setProblem] = useState("");
  const [turn, setTurn] = useState(0);
  useEffect(() => {
    let gone = false;
    get(path)
      .then((told) => gone || (setData(told), setProblem("")))
      .catch((error) => gone || setProblem(error.message));
    return () => (gone = true);
  }, [path, turn]);
  return { data, problem, reload: () => setTurn((before) => before + 1) };
}

export const Waiting = ({ problem, onAgain }) =>
  problem
    ? html`<p class="problem" role="alert">${problem} <button type="button" class="link" onClick=${onAgain}>再试一次</button></p>`
    : html`<p class="soft" role="status">正在打开……</p>`;

/** A thumbnail that may be missing. */
export function Thumbnail({ content, title = "" }) {
  const [broken, setBroken] = useState(!content);
  return html`<span class="pic">${broken ? html`<span class="cell-none">没有图片</span>` : html`<img src=${pictureUrl(content)} alt=${title} loading="lazy" decoding="async" onError=${() => setBroken(true)} />`}</span>`;
}
