//! HTTP as browsers, programs and those who mean no good meet it: `alknet serve` on this host.

mod browser;
mod gateway;
mod hidden;
mod hostile;
mod mcp;
mod page;
mod place;
mod service;
mod site;
mod three;
mod web;
mod websocket;
