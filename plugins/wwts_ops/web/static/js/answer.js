// What an answer is made of, and what was done on this page: for undo.

/** More products than this behind one picture: probably a placeholder, so the page asks first (the server does too). */
export const SHARED_SKUS = 20;

/** Steps of this visit, the newest last: {item, action, labelZh}, action null for a skip. Outlives a change of page. */
export const past = [];

/** What is chosen for an item besides its label. */
export const freshDraft = (item) => ({
  content: item?.content ?? null, comment: "", badcase: false, never: false, also: new Set(), original: false,
});

const LABELLED = new Set(["confirm", "correct"]);

/** The action for the server. change: {kind, labels, label_zh (for telling), reason, shared_ok, later, proposal}. */
export function actionOf(item, draft, change, answerId) {
  const labelled = LABELLED.has(change.kind);
  return {
    answer_id: answerId,
    content: item.content,
    revision: item.revision,
    kind: change.kind,
    labels: change.labels ?? [],
    reason: change.reason ?? null,
    comment: draft.comment.trim() || null,
    also: [...draft.also],
    shared_ok: change.shared_ok ?? false,
    // Only an answer that names what is right can be learned from as a bad case.
    badcase: labelled && (draft.badcase || draft.never),
    never_regress: labelled && draft.never,
    later: change.later ?? false,
    proposal: change.proposal ?? null,
  };
}

/** What was answered, in a few words. */
export function told(action, item, labelZh) {
  const more = action.also.length ? `，连同 ${action.also.length} 张` : "";
  if (action.kind === "confirm") return `已确认${said(action, item, labelZh)}${more}`;
  if (action.kind === "correct") return `已改为${said(action, item, labelZh)}${more}`;
  if (action.kind === "reject_image") return `已标为${said(action, item, labelZh)}${more}`;
  if (action.proposal) return `已提议${said(action, item, labelZh)}${more}`;
  return `${action.later ? "已记为都不对，稍后再标" : "已记为都不对"}${more}`;
}

function said(action, item, labelZh) {
  if (action.kind === "reject_image") return "图片有问题";
  if (action.proposal) return `新标签“${action.proposal.label_zh}”`;
  if (action.kind === "wrong_unknown") return "都不对";
  return `“${action.kind === "confirm" ? item.label_zh : labelZh}”`;
}

/**
 * The same once the server has spoken: {text, notice}. notice: what it says besides that all was saved, or "". Where
 * one look is enough, a `held` one was a blind second look: nothing may tell whoever gave it.
 */
export function outcome(result, { action, item, labelZh }) {
  const blind = result.status === "held" && item.needed < 2;
  const plain = result.status === "saved" && !action.also.length;
  if (plain || blind) return { text: told({ ...action, also: [] }, item, labelZh), notice: "" };
  return { text: `${said(action, item, labelZh)}，${result.message}`, notice: result.message };
}
