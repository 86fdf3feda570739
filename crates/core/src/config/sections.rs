//! The sections of the document and the rules between their values.

use std::collections::HashMap;
use std::net::IpAddr;

use toml::de::DeTable;

use super::error::quote;
use super::principals::{self, IdentityClaims};
use super::read::{ConfigDiagnostics, ConfigTable, ConfigValue};
use super::{
    CONFIG_VERSION, ComputeSection, HttpSection, HubSection, IrohSection, LinkConfig, LinkMethod,
    ListenConfig, NodeConfig, NodeSection, PromotionSection, RuntimeSection, TlsSection,
    UpdateSection, VaultSection, computing, credentials, fs, http, hub, iroh, promotion, tls,
    tuning, update, values, vault,
};

pub(super) fn node_config(table: &DeTable<'_>, notes: &mut ConfigDiagnostics<'_>) -> NodeConfig {
    let mut top = ConfigTable::new("", 0..0, table);
    let mut holders = IdentityClaims::default();
    let listen = top.key("listen").and_then(|value| value.section(notes));
    let node = top.key("node").and_then(|value| value.section(notes));
    let listen = listen.map_or_else(ListenConfig::default, |section| {
        listen_config(section, notes)
    });
    // These are read first, because other sections refer to credentials by name.
    let entries = top.list("credentials", notes);
    let credentials = credentials::names(&entries);
    let node = node.map_or_else(NodeSection::default, |section| {
        node_section(section, &mut holders, notes)
    });
    let network = links(&top.list("network", notes), notes);
    let peers = principals::peers(&top.list("peers", notes), &mut holders, notes);
    let api_keys = principals::api_keys(&top.list("api_keys", notes), &mut holders, notes);
    let limits = tuning::limits(top.key("limits"), notes);
    let log = tuning::log(top.key("log"), notes);
    let tls = top
        .key("tls")
        .and_then(|value| value.section(notes))
        .map_or_else(TlsSection::default, |section| tls::section(section, notes));
    let is_named = node.name.is_some() || node.domain.is_some() || !tls.acme.domains.is_empty();
    let mut config = NodeConfig {
        node,
        network,
        peers,
        api_keys,
        limits,
        log,
        tls,
        http: top
            .key("http")
            .and_then(|value| value.section(notes))
            .map_or_else(HttpSection::default, |section| {
                http::section(section, (&credentials, is_named), notes)
            }),
        hub: top
            .key("hub")
            .and_then(|value| value.section(notes))
            .map_or_else(HubSection::default, |section| hub::section(section, notes)),
        join: hub::joins(&top.list("join", notes), &mut holders, notes),
        iroh: top
            .key("iroh")
            .and_then(|value| value.section(notes))
            .map_or_else(IrohSection::default, |section| {
                iroh::section(section, listen.port, notes)
            }),
        promotion: top
            .key("promotion")
            .and_then(|value| value.section(notes))
            .map_or_else(PromotionSection::default, |section| {
                promotion::section(section, notes)
            }),
        runtime: top
            .key("runtime")
            .and_then(|value| value.section(notes))
            .map_or_else(RuntimeSection::default, |section| {
                computing::runtime(section, notes)
            }),
        compute: top
            .key("compute")
            .and_then(|value| value.section(notes))
            .map_or_else(ComputeSection::default, |section| {
                computing::compute(section, notes)
            }),
        fs: fs::section(top.key("fs"), notes),
        vault: top
            .key("vault")
            .and_then(|value| value.section(notes))
            .map_or_else(VaultSection::default, |section| {
                vault::section(section, notes)
            }),
        update: top
            .key("update")
            .and_then(|value| value.section(notes))
            .map_or_else(UpdateSection::default, |section| {
                update::section(section, notes)
            }),
        credentials: Vec::new(),
        operations: Vec::new(),
        version: top
            .key("version")
            .and_then(|value| value.number(1..=CONFIG_VERSION, notes)),
        listen,
    };
    let granted = top.list("operations", notes);
    config.credentials = credentials::credentials(&entries, notes);
    config.operations = credentials::operations(&granted, &credentials, notes);
    top.finish(notes);
    config
}

/// The version of the document, if it is newer than this program.
pub(super) fn newer(table: &DeTable<'_>) -> Option<(u64, std::ops::Range<usize>)> {
    let value = table.get("version")?;
    let number = value.get_ref().as_integer()?;
    // TOML writes whole numbers in other bases as well.
    let number = u64::from_str_radix(number.as_str(), number.radix()).ok()?;
    (number > u64::from(CONFIG_VERSION)).then(|| (number, value.span()))
}

fn listen_config(
    mut section: ConfigTable<'_, '_>,
    notes: &mut ConfigDiagnostics<'_>,
) -> ListenConfig {
    let mut listen = ListenConfig::default();
    if let Some(port) = section.key("port").and_then(|value| value.port(notes)) {
        listen.port = port;
    }
    if let Some(value) = section.key("addrs") {
        let before = notes.count();
        let addrs = each(&value.list(notes), values::address, notes);
        // A list whose entries are all invalid has its diagnostics already.
        if addrs.is_empty() && notes.count() == before {
            value.report(
                notes,
                "the list is empty, so nothing would be served",
                "leave the key out to listen on every address",
            );
        }
        // After a mistake the default addresses stay, so that an administrator can reach the node.
        if notes.count() == before {
            listen.addrs = addrs;
        }
    }
    section.finish(notes);
    listen
}

fn node_section(
    mut section: ConfigTable<'_, '_>,
    holders: &mut IdentityClaims,
    notes: &mut ConfigDiagnostics<'_>,
) -> NodeSection {
    let name = section.key("name");
    let domain = section.key("domain");
    let admin_keys = section.list("admin_keys", notes);
    let stateless = section.key("stateless");
    let node = NodeSection {
        name: name.and_then(|value| value.parsed(notes, values::host_name)),
        domain: domain.and_then(|value| value.parsed(notes, values::domain)),
        admin_keys: admin_keys
            .iter()
            .filter_map(|value| holders.key(value, notes))
            .collect(),
        time_servers: each(
            &section.list("time_servers", notes),
            values::time_server,
            notes,
        ),
        stateless: stateless
            .and_then(|value| value.bool(notes))
            .unwrap_or_default(),
    };
    section.finish(notes);
    node
}

/// The entries without mistakes.
fn links(entries: &[ConfigValue<'_, '_>], notes: &mut ConfigDiagnostics<'_>) -> Vec<LinkConfig> {
    let mut seen: HashMap<String, String> = HashMap::new();
    let mut links = Vec::new();
    for entry in entries {
        let before = notes.count();
        let link = entry
            .section(notes)
            .and_then(|section| link(entry, section, notes));
        let Some(link) = link else { continue };
        if let Some(first) = seen.insert(link.matches.clone(), entry.path.clone()) {
            let what = format!("{} has an entry already, {first}", quote(&link.matches));
            entry.report(notes, what, "keep one of the two");
        }
        if notes.count() == before {
            links.push(link);
        }
    }
    links
}

fn link(
    entry: &ConfigValue<'_, '_>,
    mut section: ConfigTable<'_, '_>,
    notes: &mut ConfigDiagnostics<'_>,
) -> Option<LinkConfig> {
    let matches = section.required("match", "\"eth0\"", notes);
    let method = section.key("method");
    let addresses = section.list("addresses", notes);
    let gateways = section.list("gateways", notes);
    let dns = section.list("dns", notes);
    section.finish(notes);
    let method = match method {
        Some(value) => value.parsed(notes, values::link_method),
        None => Some(LinkMethod::Auto),
    };
    let link = LinkConfig {
        matches: matches
            .and_then(|value| value.parsed(notes, values::link_match))
            .unwrap_or_default(),
        method: method.unwrap_or_default(),
        addresses: static_addresses(&addresses, notes),
        gateways: static_gateways(&gateways, notes),
        dns: each(&dns, values::address, notes),
    };
    static_rules(entry, &link, method?, notes);
    Some(link)
}

fn static_addresses(
    entries: &[ConfigValue<'_, '_>],
    notes: &mut ConfigDiagnostics<'_>,
) -> Vec<String> {
    let mut seen = Vec::new();
    let mut addresses = Vec::new();
    for entry in entries {
        let Some(address) = entry.parsed(notes, values::prefix) else {
            continue;
        };
        if seen.contains(&address) {
            let what = format!("{address} is listed twice");
            entry.report(notes, what, "keep one of the two");
        }
        seen.push(address);
        addresses.extend(entry.text(notes).map(str::to_owned));
    }
    addresses
}

fn static_gateways(
    entries: &[ConfigValue<'_, '_>],
    notes: &mut ConfigDiagnostics<'_>,
) -> Vec<IpAddr> {
    let mut gateways: Vec<IpAddr> = Vec::new();
    for entry in entries {
        let Some(gateway) = entry.parsed(notes, values::address) else {
            continue;
        };
        let same_family = |other: &&IpAddr| other.is_ipv4() == gateway.is_ipv4();
        if let Some(other) = gateways.iter().find(same_family) {
            let what = format!("{other} is the router of this family already");
            entry.report(notes, what, "list at most one router per family");
        }
        gateways.push(gateway);
    }
    gateways
}

fn static_rules(
    entry: &ConfigValue<'_, '_>,
    link: &LinkConfig,
    method: LinkMethod,
    notes: &mut ConfigDiagnostics<'_>,
) {
    let given = !link.addresses.is_empty() || !link.gateways.is_empty();
    match method {
        LinkMethod::Static if link.addresses.is_empty() => entry.report(
            notes,
            "a static card needs an address",
            "add addresses = [\"192.0.2.10/24\"]",
        ),
        LinkMethod::Auto if given => entry.report(
            notes,
            "addresses and gateways are only for a static card",
            "add method = \"static\", or leave them out",
        ),
        LinkMethod::Off if given => entry.report(
            notes,
            "a card that is off has no addresses",
            "leave addresses and gateways out",
        ),
        LinkMethod::Auto | LinkMethod::Off | LinkMethod::Static => {}
    }
}

/// The elements that `parse` accepts.
pub(super) fn each<T>(
    entries: &[ConfigValue<'_, '_>],
    parse: impl Fn(&str) -> Result<T, values::ConfigDiagnostic>,
    notes: &mut ConfigDiagnostics<'_>,
) -> Vec<T> {
    entries
        .iter()
        .filter_map(|entry| entry.parsed(notes, &parse))
        .collect()
}
