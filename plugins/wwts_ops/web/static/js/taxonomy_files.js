// The taxonomy as a file: importing with a look at the differences first; and how it came to be what it is.

import { html, useState } from "../vendor/htm-preact.js";
import { get, send } from "./api.js";
import { moment, number } from "./format.js";
import { Waiting, useGot } from "./records_parts.js";
import { countsText } from "./taxonomy_changes.js";
import { Diff } from "./taxonomy_forms.js";

const LARGEST = 6 * 2 ** 20; // bytes; in base64 they fit into the 8 MiB that the server takes

const asBase64 = (file) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });

export function Import({ version, name, onApplied, onReload }) {
  const [file, setFile] = useState(null);
  const [told, setTold] = useState(null);
  const [error, setError] = useState(null);
  const [busy, setBusy] = useState(false);
  const ask = async (chosen, dry_run) => {
    setBusy(true);
    setError(null);
    try {
      return await send(
        "api/taxonomy/import",
        { name: chosen.name, data: chosen.data, expected: version, dry_run },
        "POST",
        { patience: 120_000 },
      );
    } catch (failed) {
      setError(failed);
      return null;
    } finally {
      setBusy(false);
    }
  };
  const choose = async (event) => {
    const [picked] = event.target.files;
    setTold(null);
    setError(null);
    if (!picked) return;
    if (picked.size > LARGEST) return setError(new Error("文件太大，最多 6 MB。"));
    const chosen = { name: picked.name, data: await asBase64(picked) };
    setFile(chosen);
    setTold(await ask(chosen, true));
  };
  const apply = async () => {
    const done = await ask(file, false);
    if (done) onApplied(done.count);
  };
  const changed = error && error.status === 409;
  return html`<section class="edit">
    <h2>导入</h2>
    <p class="soft">先导出，用 Excel 改好，再从这里导入。先看有哪些改动，点“生效”之前什么都不会变。</p>
    <label class="file">选择文件<input type="file" accept=".csv,.xlsx" data-testid="taxonomy-file" onChange=${choose} /></label>
    ${busy && html`<p class="soft" role="status">正在核对……</p>`}
    ${error && html`<p class="problem" role="alert">${changed ? "刚刚有别人改了标签体系。" : error.message}${changed && html` <button type="button" class="link" onClick=${onReload}>取最新版本</button>`}</p>`}
    ${
      told &&
      html`<h3>${told.count ? `${number(told.count)} 处改动` : "和现在的一样"}</h3><div class="wide"><${Diff} diff=${told.diff} count=${told.count} name=${name} /></div>
      <p class="edit-actions"><button type="button" class="main" data-testid="taxonomy-import-apply" disabled=${busy || !told.diff.length} onClick=${apply}>生效（新版本）</button></p>`
    }
  </section>`;
}

/** One version; what it changed is asked for when it is opened. */
function Version({ version, me, name }) {
  const [told, setTold] = useState(null);
  const [problem, setProblem] = useState("");
  const open = (event) => {
    if (!event.currentTarget.open || told) return;
    const asked = new URLSearchParams({ before: version.previous, after: version.version });
    get(`api/taxonomy/diff?${asked}`).then(setTold, (error) => setProblem(error.message));
  };
  const changed = Object.values(version.counts).some((count) => count > 0);
  return html`<li><p><b>${version.author || "（没有记下是谁）"}</b> <span class="faint">${moment(version.made_at, me.timezone)}</span></p>
    <p class="soft">${changed ? countsText(version.counts) : version.previous ? "没有改动" : `最初的 ${number(version.labels)} 个标签`}</p>
    ${
      changed &&
      version.previous &&
      html`<details onToggle=${open}><summary>看改动</summary>
      ${problem && html`<p class="problem" role="alert">${problem}</p>`}
      ${told ? html`<div class="wide"><${Diff} diff=${told.diff} count=${told.count} name=${name} /></div>` : !problem && html`<p class="soft">正在打开……</p>`}</details>`
    }
    <p class="faint"><code>${version.version}</code></p></li>`;
}

export function History({ me, name }) {
  const { data, problem, reload } = useGot("api/taxonomy/history");
  return html`<section class="edit"><h2>历史</h2><p class="soft">每次改动都是一个新版本；图片上的标签记着打标时用的版本。</p>
    ${!data && html`<${Waiting} problem=${problem} onAgain=${reload} />`}
    <ol class="versions">${(data?.versions ?? []).map((version) => html`<${Version} key=${version.version} version=${version} me=${me} name=${name} />`)}</ol>
  </section>`;
}
