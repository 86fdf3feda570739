// Runs session.js in Node, with Node's own WebSocket or with the package `ws`. The input is a JSON object of facts.
import { readFileSync } from "node:fs";
import { suite } from "./session.js";

const facts = JSON.parse(readFileSync(0, "utf8"));
const { Alknet, CallError } = await import(facts.module);
const WebSocket = facts.ws ? (await import(facts.ws)).default : globalThis.WebSocket;
for (const name of await suite(Alknet, CallError, facts, { WebSocket })) console.log("ok", name);
process.exit(0);
