"use strict";
// Replaces the sections that the node says have changed. A section that has the focus, or in which the reader has
// selected something, stays as it is until the reader is done.
const live = document.getElementById("live");

// Times come in UTC. The reader gets them in the zone of the browser, with the zone's name, and in UTC as a title.
function localise(root) {
  const two = (number) => String(number).padStart(2, "0");
  for (const time of root.querySelectorAll("time[datetime]")) {
    const at = new Date(time.dateTime);
    if (Number.isNaN(at.getTime())) continue;
    const day = [at.getFullYear(), at.getMonth() + 1, at.getDate()].map(two).join("-");
    const clock = [at.getHours(), at.getMinutes(), at.getSeconds()].map(two).join(":");
    const parts = new Intl.DateTimeFormat([], { timeZoneName: "short" }).formatToParts(at);
    const zone = parts.find((part) => part.type === "timeZoneName").value;
    const text = `${day} ${clock} ${zone}`;
    if (time.textContent !== text) time.textContent = text;
    time.title = time.dateTime;
  }
}

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
  localise(section);
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

// A page that has other sections than the node says is loaded again.
function isOther(ids) {
  const shown = [...document.querySelectorAll("main > section")].map((one) => one.id);
  return shown.join() !== ids.join();
}

localise(document);
const source = new EventSource("/status/events");
source.addEventListener("open", () => say("Live"));
source.addEventListener("error", () => {
  const over = source.readyState === EventSource.CLOSED;
  say(over ? "Updates ended: reload the page" : "Connection lost: trying again");
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
  if (at && told.at) at.dateTime = told.at;
  localise(document.querySelector("header"));
  say("Live");
});
// The session is over: the node decides what the reader may see now.
source.addEventListener("over", () => { source.close(); location.reload(); });
document.addEventListener("focusout", () => setTimeout(show));
document.addEventListener("selectionchange", () => { if (document.getSelection()?.isCollapsed) show(); });
