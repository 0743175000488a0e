// Edits of the taxonomy as the server takes them, and how a diff reads.

/** What a form changed of a label, as changes. `before`: the label, or null for a new one; `after`: the form. */
export function changesOf(before, after) {
  if (!before) {
    const { label_zh, label_en, synonyms_zh, category_path, forced_review } = after;
    return [{ op: "add", label_zh, label_en, synonyms_zh, category_path, forced_review }];
  }
  const label_id = before.label_id;
  const changes = [];
  if (after.label_zh !== before.label_zh || after.label_en !== before.label_en) {
    changes.push({ op: "rename", label_id, label_zh: after.label_zh, label_en: after.label_en });
  }
  if (after.synonyms_zh !== before.synonyms_zh)
    changes.push({ op: "synonyms", label_id, synonyms_zh: after.synonyms_zh });
  if (after.category_path !== before.category_path)
    changes.push({ op: "move", label_ids: [label_id], category_path: after.category_path });
  if (after.forced_review !== before.forced_review)
    changes.push({ op: "force", label_ids: [label_id], forced_review: after.forced_review });
  if (after.maps_to !== before.maps_to) changes.push({ op: "map", label_id, maps_to: after.maps_to });
  if (after.enabled !== before.enabled) changes.push({ op: "enable", label_ids: [label_id], enabled: after.enabled });
  return changes;
}

export const merge = (label_id, into) => [{ op: "merge", label_ids: [label_id], into }];
export const moveCategory = (category_path, to) => [{ op: "move_category", category_path, to }];
export const forceCategory = (category_path, forced_review) => [{ op: "force_category", category_path, forced_review }];

const FIELDS = {
  label_zh: "名称",
  label_en: "英文名",
  synonyms_zh: "同义词",
  category_path: "类目",
  forced_review: "强制审核",
  enabled: "启用",
  maps_to: "映射到",
  added: "新标签",
  removed: "删去",
  forced_by: "强制审核的原因",
  forced_category: "整类强制审核",
};

export const fieldName = (field) => FIELDS[field] ?? field;

/** A value of a diff for reading. `name(label_id)`: what a label is called. */
export function shownValue(field, value, name) {
  if (value === "true") return "是";
  if (value === "false") return "否";
  if (value == null || value === "") return "（无）";
  if (field === "maps_to") return name(value);
  if (field === "forced_by")
    return value === "forced_label" ? "因为标签" : `因为类目 ${value.replace("forced_category:", "")}`;
  if (field === "synonyms_zh") return String(value).replaceAll("|", "、");
  return String(value);
}

/** {label_zh: 2, added: 1} as "名称 2，新标签 1". */
export const countsText = (counts) =>
  Object.entries(counts ?? {})
    .map(([field, count]) => `${fieldName(field)} ${count.toLocaleString("zh-CN")}`)
    .join("，");
