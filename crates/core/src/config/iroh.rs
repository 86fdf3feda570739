//! `[iroh]`: the node's protocols for peers that dial its key with iroh.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::dial::PeerAddr;

use super::error::quote;
use super::read::{ConfigDiagnostics, ConfigTable};
use super::sections::each;
use super::values::ConfigDiagnostic;

/// Most relays: the node has a connection to one, and measures the latency of all.
const RELAYS_MAX: usize = 8;

/// `[iroh]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct IrohSection {
    /// Whether iroh endpoints are served.
    pub enabled: bool,
    /// The UDP port, which is another one than `listen.port`; a free one where none is named.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub port: Option<u16>,
    /// Relays to be reached through, `https://relay.example.org`.
    #[schemars(length(max = 8), inner(regex(pattern = r"^https://[^/]+/?$")))]
    pub relays: Vec<String>,
}

pub(super) fn section(
    mut section: ConfigTable<'_, '_>,
    listen_port: u16,
    notes: &mut ConfigDiagnostics<'_>,
) -> IrohSection {
    let enabled = section.key("enabled").and_then(|value| value.bool(notes));
    let port = section.key("port");
    let relays = section.list("relays", notes);
    if let Some(beyond) = relays.get(RELAYS_MAX) {
        let what = format!("there are more than {RELAYS_MAX} relays");
        beyond.report(notes, what, "leave some out");
    }
    section.finish(notes);
    let number = port.as_ref().and_then(|value| value.port(notes));
    // Iroh needs a UDP socket of its own, and the one port has UDP of that number already.
    if let Some(value) = port.filter(|_| number == Some(listen_port)) {
        let what = format!("{listen_port} is the one port, listen.port");
        value.report(notes, what, "name another one, or leave the key out");
    }
    IrohSection {
        enabled: enabled.unwrap_or(false),
        port: number,
        relays: each(&relays, relay, notes),
    }
}

fn relay(text: &str) -> Result<String, ConfigDiagnostic> {
    let address = text.strip_prefix("https://");
    let address = address.map(|rest| rest.strip_suffix('/').unwrap_or(rest));
    let address = address.and_then(|address| address.parse::<PeerAddr>().ok());
    if address.is_some_and(|address| address.pins.is_empty()) {
        return Ok(text.to_owned());
    }
    Err(ConfigDiagnostic::new(
        format!("{} is no relay", quote(text)),
        "write https:// and a host, with its port where that is not 443".to_owned(),
    ))
}
