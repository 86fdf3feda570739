"use strict";
// Puts in place what the node says has changed. What somebody is reading with the keyboard or has
// selected is left alone until they are done.
const live = document.getElementById("live");
const say = (text) => { if (live.textContent !== text) live.textContent = text; };

function isBusy(section) {
  if (section.contains(document.activeElement)) return true;
  const selection = document.getSelection();
  return selection !== null && !selection.isCollapsed && selection.containsNode(section, true);
}

function replace(section, html) {
  const open = [...section.querySelectorAll("details[open]")].map((one) => one.id);
  const at = [...section.querySelectorAll(".scroll")].map((one) => [one.scrollLeft, one.scrollTop]);
  section.innerHTML = html;
  for (const id of open) document.getElementById(id)?.setAttribute("open", "");
  section.querySelectorAll(".scroll").forEach((one, n) => {
    if (at[n]) [one.scrollLeft, one.scrollTop] = at[n];
  });
}

let waiting = {};
function show() {
  for (const [id, html] of Object.entries(waiting)) {
    const section = document.getElementById(id);
    if (section && isBusy(section)) continue;
    if (section) replace(section, html);
    delete waiting[id];
  }
}

// Parts that come or go change the page itself.
function isOther(ids) {
  const shown = [...document.querySelectorAll("main > section")].map((one) => one.id);
  return shown.join() !== ids.join();
}

const source = new EventSource("/status/events");
source.addEventListener("open", () => say("Live"));
source.addEventListener("error", () => {
  const over = source.readyState === EventSource.CLOSED;
  say(over ? "Not live: reload the page" : "Not connected; trying again");
});
source.addEventListener("update", (event) => {
  const told = JSON.parse(event.data);
  if (isOther(told.ids)) { source.close(); location.reload(); return; }
  Object.assign(waiting, told.sections);
  show();
  const state = document.getElementById("state");
  if (state.textContent !== told.state) state.textContent = told.state;
  state.dataset.well = told.well;
  const at = document.getElementById("at");
  if (at && told.at) at.textContent = at.dateTime = told.at;
  say("Live");
});
// The session is over: what may be seen now is for the node to say.
source.addEventListener("over", () => { source.close(); location.reload(); });
document.addEventListener("focusout", () => setTimeout(show));
document.addEventListener("selectionchange", () => { if (document.getSelection()?.isCollapsed) show(); });
