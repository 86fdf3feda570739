// A document of automerge's JavaScript package, which the test drives: a line of JSON for each request, and one for each
// answer. Arguments: the folder of the package, and the writer of the document in hexadecimal digits.
"use strict";

const readline = require("node:readline");

const [folder, actor] = process.argv.slice(2);
const automerge = require(`${folder}/dist/cjs/fullfat_node.cjs`);

let doc = automerge.init({ actor });
let state = automerge.initSyncState();

const encoded = (bytes) => Buffer.from(bytes).toString("base64");
// Not a Buffer: the package takes arrays of bytes alone for bytes.
const decoded = (text) => new Uint8Array(Buffer.from(text, "base64"));

const requests = {
  // Puts values in one change.
  put({ entries }) {
    doc = automerge.change(doc, (map) => {
      for (const [path, value] of Object.entries(entries)) {
        map[path] = decoded(value);
      }
    });
    return {};
  },
  // Takes in a message of the peer.
  receive({ message }) {
    [doc, state] = automerge.receiveSyncMessage(doc, state, decoded(message));
    return {};
  },
  // The next message for the peer, and whether both have the same.
  generate() {
    let message;
    [state, message] = automerge.generateSyncMessage(doc, state);
    const own = [...automerge.getHeads(doc)].sort().join();
    const theirs = [...(state.theirHeads ?? ["none"])].sort().join();
    return { message: message ? encoded(message) : null, equal: own === theirs };
  },
  // Another connection, which begins with what was stored of the last one.
  reconnect() {
    state = automerge.decodeSyncState(automerge.encodeSyncState(state));
    return {};
  },
  // All values of each path.
  show() {
    const entries = {};
    for (const path of Object.keys(doc)) {
      const all = automerge.getConflicts(doc, path);
      entries[path] = (all ? Object.values(all) : [doc[path]]).map(encoded).sort();
    }
    return { entries };
  },
  // The whole document, written and read back.
  reload() {
    doc = automerge.load(automerge.save(doc), { actor });
    return {};
  },
};

readline.createInterface({ input: process.stdin }).on("line", (line) => {
  const request = JSON.parse(line);
  const answer = requests[request.do](request);
  process.stdout.write(`${JSON.stringify(answer)}\n`);
});
