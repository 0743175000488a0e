// Which pictures of a label somebody has marked and not yet saved: kept in this tab over a reload, another page and
// another label, under the person's name.

const key = (user, label) => `wwts.ticks.${encodeURIComponent(user)}|${label.id}`;

/** Contents that are marked; a new set. */
export function ticked(user, label) {
  try {
    return new Set(JSON.parse(sessionStorage.getItem(key(user, label))) ?? []);
  } catch {
    return new Set(); // nothing may be kept here, or what is kept is no list
  }
}

function keep(user, label, contents) {
  try {
    if (contents.size) sessionStorage.setItem(key(user, label), JSON.stringify([...contents]));
    else sessionStorage.removeItem(key(user, label));
  } catch {
    // The marks then last until the board is left.
  }
}

export const tick = (user, label, contents) => keep(user, label, new Set([...ticked(user, label), ...contents]));

export function untick(user, label, contents) {
  const rest = ticked(user, label);
  for (const content of contents) rest.delete(content);
  keep(user, label, rest);
}
