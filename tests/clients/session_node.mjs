// Runs session.js in Node: `node session_node.mjs FACTS [ws]`, with Node's own WebSocket or that of ws.
import { suite } from "./session.js";

const facts = JSON.parse(process.argv[2]);
const { Alknet, CallError } = await import(facts.module);
const WebSocket = facts.ws ? (await import(facts.ws)).default : globalThis.WebSocket;
for (const name of await suite(Alknet, CallError, facts, { WebSocket })) console.log("ok", name);
process.exit(0);
