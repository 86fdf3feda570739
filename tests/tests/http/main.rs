//! HTTP for browsers, programs and attackers: `alknet serve` on this host.

mod accesslog;
mod acme;
mod browser;
mod checked;
mod credentials;
mod first_import;
mod gateway;
mod hidden;
mod hostile;
mod imports;
mod judges;
mod mcp;
mod metrics;
mod page;
mod pictures;
mod service;
mod site;
mod stored;
mod tensors;
mod test_node;
mod three;
mod timing;
mod upstream;
mod websocket;
