"""Why a change to the taxonomy is refused: in Chinese for the page, in English for a terminal."""

from __future__ import annotations

from wwts_ops.errors import WwtsError

_SENTENCES = {
    "no_taxonomy": (
        "There is no taxonomy yet; run `wwts init` first.",
        "还没有标签体系；请先运行一次 wwts init 或等第一晚打标完成。",
    ),
    "changed": (
        "Somebody else changed the taxonomy meanwhile; look at their change and try again.",
        "刚才有人修改了标签体系，您的修改没有保存；请刷新页面，查看对方的修改后再试。",
    ),
    "nothing": ("This changes nothing.", "没有任何改动。"),
    "unknown_label": (
        "There is no label {label}; see `wwts taxonomy list`.",
        "没有编号为 {label} 的标签；请刷新页面后重试。",
    ),
    "unknown_category": (
        "No label stands in category {path}; see `wwts taxonomy list`.",
        "没有类目“{path}”，或其中没有标签；请检查写法。",
    ),
    "bad_id": (
        "label_id {label!r} will not do: 1 to 200 characters without blanks.",
        "标签编号“{label}”不可用：须为 1 到 200 个字符，不含空格。",
    ),
    "twice": ("label_id {label} is taken; choose another.", "标签编号 {label} 已被使用，请换一个。"),
    "no_name": ("Label {label} has no Chinese name; fill it in.", "标签 {label} 没有中文名，请填写。"),
    "bad_text": (
        "Label {label}: {field} holds a control character, or is longer than {most} characters.",
        "标签“{label}”的{field_zh}含有控制字符，或超过 {most} 个字。",
    ),
    "bad_path": (
        "Category {path!r} must read 一级 > 二级 > 三级: one to three levels, none empty.",
        "类目“{path}”的写法不对：应为“一级 > 二级 > 三级”，一到三级，每级都不能为空。",
    ),
    "no_category": (
        "Label {label} would stand in no category; give it one.",
        "标签“{label}”不属于任何类目；请为它指定类目。",
    ),
    "duplicate": (
        "Category {path} would hold {name} twice ({label}); rename one, move it, or merge them.",
        "类目“{path}”下会出现重名标签“{name}”（{label}）；请改名、换类目，或把两个标签合并。",
    ),
    "maps_to_itself": ("Label {label} cannot map to itself.", "标签“{label}”不能合并或映射到它自己。"),
    "maps_to_missing": (
        "Label {label} maps to {target}, which does not exist.",
        "标签“{label}”要映射到的标签 {target} 不存在。",
    ),
    "maps_to_off": (
        "Label {label} maps to {target}, which is switched off; switch that on or map to another.",
        "标签“{label}”映射到“{target}”，而后者已停用；请先启用它，或改为映射到别的标签。",
    ),
    "maps_to_mapped": (
        "Label {label} maps to {target}, which itself maps to another; map to that one.",
        "标签“{label}”映射到“{target}”，而后者自己也映射到别的标签；请直接映射到最终的标签。",
    ),
    "cycle": (
        "Labels {label} and {target} would map to each other in a circle.",
        "标签“{label}”与“{target}”的映射成了循环。",
    ),
    "below_itself": (
        "Category {path} cannot move to {target}, which is below itself.",
        "类目“{path}”不能移到它自己下面（{target}）。",
    ),
    "file_kind": (
        "{file} has another suffix; labels come in .csv and .xlsx.",
        "“{file}”的格式不支持；请上传 .csv 或 .xlsx 文件。",
    ),
    "file_large": (
        "{file} is larger than {most} MiB, or unpacks to far more; split it.",
        "“{file}”太大：最多 {most} MB（解压后也有上限）；请分批导入。",
    ),
    "file_shape": (
        "{file} has more than {rows:,} rows or {columns} columns, empty ones counted; copy its labels to a new sheet.",
        "“{file}”超过 {rows:,} 行或 {columns} 列（空行、空列也算）；请只把标签所在的行列复制到新的表格再导入。",
    ),
    "file_unreadable": (
        "{detail}",
        "“{file}”无法读取：需要是完整的 CSV（UTF-8 或 GB18030）或 XLSX 文件，第一行为表头，包含 "
        "label_id、label_zh、label_en、synonyms_zh、category_path 五列；建议在导出的文件上修改。",
    ),
    "file_row": ("Row {line}: {problem}.", "第 {line} 行读不出来：列数与表头不符，或有无法识别的内容。"),
    "file_id": ("Row {line} has no label_id.", "第 {line} 行没有标签编号（label_id）。"),
    "file_twice": ("Row {line}: label {label} occurs twice.", "第 {line} 行：标签 {label} 在文件中出现了两次。"),
    "file_flag": (
        "Row {line}: {text!r} is neither true nor false.",
        "第 {line} 行：“{text}”应填 TRUE 或 FALSE（是 或 否）。",
    ),
}


class FaultError(WwtsError):
    """A change that is refused. As text it is Chinese; ``english`` says the same.

    Args:
        code: which fault; a key of the sentences.
        names: what the sentence speaks of.
    """

    def __init__(self, code: str, **names: object) -> None:
        english, chinese = _SENTENCES[code]
        super().__init__(chinese.format(**names))
        self.code = code
        self.english = english.format(**names)
