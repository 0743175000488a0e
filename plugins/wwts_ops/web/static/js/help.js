// All keys, on one sheet.
import { html } from "../vendor/htm-preact.js";
import { Dialog } from "./ui.js";

const GROUPS = [
  ["回答", [
    [["1", "–", "5"], "选第几个标签"],
    [["Enter", "空格"], "确认第一个标签"],
    [["/"], "搜索其他标签"],
    [["0"], "都不对"],
    [["x"], "图片有问题"],
    [["s"], "跳过这张"],
    [["u", "Ctrl+Z"], "撤销上一步"],
  ]],
  ["附加", [
    [["a"], "挑选同款和相似图片，一起回答"],
    [["c"], "写备注"],
    [["b"], "收为坏例"],
    [["n"], "以后不许再错"],
  ]],
  ["看图", [
    [["z"], "放大（看原图）／还原"],
    [["滚轮", "+", "−"], "缩放"],
    [["拖动", "方向键"], "移动放大的图"],
    [["o"], "看原图"],
  ]],
  ["批量核对", [
    [["空格"], "标错／取消"],
    [["方向键"], "移动，按住 Shift 连选"],
    [["Enter"], "完成这一屏"],
    [["u"], "撤销上一屏"],
  ]],
  ["其他", [
    [["?"], "打开本页"],
    [["Esc"], "关闭、返回"],
  ]],
];

/** For those who only look. */
const LOOKING = [
  ["翻看", [
    [["→"], "下一张"],
    [["←"], "上一张"],
    [["a"], "放大看同款和相似图片"],
  ]],
  ...GROUPS.filter(([title]) => title === "看图" || title === "其他"),
];

export function Help({ may, onClose }) {
  return html`<${Dialog} title="快捷键" onClose=${onClose} keys=${{ "?": onClose }} wide testid="help-sheet">
    <div class="keys">${(may ? GROUPS : LOOKING).map(([title, rows]) => html`<section key=${title}><h3>${title}</h3><dl>
      ${rows.map(([keys, meaning]) => html`<div><dt>${keys.map((key) => (key === "–" ? "–" : html`<kbd>${key}</kbd>`))}</dt><dd>${meaning}</dd></div>`)}
    </dl></section>`)}</div>
    <p class="soft">输入文字时（包括中文输入法）快捷键不起作用，按 Esc 回到图片。按住不放只算一次。</p>
    <div class="row end"><button type="button" class="main" onClick=${onClose}>知道了</button></div>
  <//>`;
}
