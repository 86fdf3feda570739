//! `[[peers]]` and `[[api_keys]]`: the clients that may connect. No two entries share a name, a key or a token.

use std::collections::{BTreeMap, HashMap};

use data_encoding::HEXLOWER;
use jiff::Timestamp;

use crate::identity::{PeerId, PeerKey};
use crate::token::KeyId;

use super::error::quote;
use super::read::{ConfigDiagnostics, ConfigTable, ConfigValue};
use super::sections::each;
use super::tuning::CONNECTIONS;
use super::{ApiKeyConfig, PeerConfig, values};

/// The entries without mistakes.
pub(super) fn peers(
    entries: &[ConfigValue<'_, '_>],
    holders: &mut IdentityClaims,
    notes: &mut ConfigDiagnostics<'_>,
) -> Vec<PeerConfig> {
    correct(entries, notes, |section, notes| {
        peer(section, holders, notes)
    })
}

/// The entries without mistakes.
pub(super) fn api_keys(
    entries: &[ConfigValue<'_, '_>],
    holders: &mut IdentityClaims,
    notes: &mut ConfigDiagnostics<'_>,
) -> Vec<ApiKeyConfig> {
    correct(entries, notes, |section, notes| {
        api_key(section, holders, notes)
    })
}

pub(super) fn correct<T>(
    entries: &[ConfigValue<'_, '_>],
    notes: &mut ConfigDiagnostics<'_>,
    mut read: impl FnMut(ConfigTable<'_, '_>, &mut ConfigDiagnostics<'_>) -> Option<T>,
) -> Vec<T> {
    let mut all = Vec::new();
    for entry in entries {
        let before = notes.count();
        let Some(section) = entry.section(notes) else {
            continue;
        };
        let one = read(section, notes);
        // An entry with a mistake is left out as a whole: the rest of it could mean something else.
        if notes.count() == before {
            all.extend(one);
        }
    }
    all
}

fn peer(
    mut section: ConfigTable<'_, '_>,
    holders: &mut IdentityClaims,
    notes: &mut ConfigDiagnostics<'_>,
) -> Option<PeerConfig> {
    let id = section.required("peer_id", "\"a-name\"", notes);
    let tokens = section.key("tokens");
    // A peer without tokens can prove itself only by a key.
    let keys = match tokens {
        Some(_) => section.key("keys"),
        None => section.required("keys", "[\"ed25519:…\"]", notes),
    };
    let about = GrantFields::from_section(&mut section, notes);
    let addresses = section.list("addresses", notes);
    let display_name = section.key("display_name");
    let enabled = section.key("enabled");
    let max_connections = section.key("max_connections");
    section.finish(notes);
    let id = id.and_then(|value| holders.peer_id(&value, notes));
    let before = notes.count();
    let held = listed(keys.as_ref(), notes, |value, notes| {
        holders.key(value, notes)
    });
    let tokens_held = listed(tokens.as_ref(), notes, |value, notes| {
        holders.token(value, notes)
    });
    // A list whose entries are all invalid has its diagnostics already.
    let nothing = held.is_empty() && tokens_held.is_empty() && notes.count() == before;
    if let Some(value) = keys.or(tokens).filter(|_| nothing) {
        let what = "a peer needs a key or a token";
        value.report(notes, what, "list at least one");
    }
    Some(PeerConfig {
        keys: held,
        tokens: tokens_held,
        scopes: about.scopes,
        resources: about.resources,
        addresses: each(&addresses, values::peer_address, notes),
        display_name: display_name.and_then(|value| value.parsed(notes, values::line)),
        // An invalid value keeps the peer out.
        enabled: enabled.is_none_or(|value| value.bool(notes).unwrap_or(false)),
        expires: about.expires,
        max_connections: max_connections.and_then(|value| value.number(CONNECTIONS, notes)),
        peer_id: id?,
    })
}

fn api_key(
    mut section: ConfigTable<'_, '_>,
    holders: &mut IdentityClaims,
    notes: &mut ConfigDiagnostics<'_>,
) -> Option<ApiKeyConfig> {
    let key_id = section.required("key_id", "\"a1b2c3d4\"", notes);
    let sha256 = section.required("sha256", "\"<64 hex>\"", notes);
    let about = GrantFields::from_section(&mut section, notes);
    let description = section.key("description");
    section.finish(notes);
    let key_id = key_id.and_then(|value| {
        let key_id = value.parsed(notes, values::key_id)?;
        holders.token_name(key_id, &value, notes)
    });
    let sha256 = sha256.and_then(|value| value.parsed(notes, values::sha256));
    Some(ApiKeyConfig {
        scopes: about.scopes,
        resources: about.resources,
        description: description.and_then(|value| value.parsed(notes, values::line)),
        expires: about.expires,
        key_id: key_id?.to_string(),
        sha256: HEXLOWER.encode(&sha256?),
    })
}

/// The fields that peers and tokens share.
struct GrantFields {
    scopes: Vec<String>,
    resources: BTreeMap<String, Vec<String>>,
    expires: Option<Timestamp>,
}

impl GrantFields {
    fn from_section(section: &mut ConfigTable<'_, '_>, notes: &mut ConfigDiagnostics<'_>) -> Self {
        let scopes = section.list("scopes", notes);
        let resources = section.key("resources");
        let expires = section.key("expires");
        Self {
            scopes: each(&scopes, values::scope, notes),
            resources: resources.map_or_else(BTreeMap::new, |value| held(&value, notes)),
            expires: expires.and_then(|value| value.parsed(notes, values::moment)),
        }
    }
}

/// A table of lists: resources by type.
fn held(
    table: &ConfigValue<'_, '_>,
    notes: &mut ConfigDiagnostics<'_>,
) -> BTreeMap<String, Vec<String>> {
    let mut all = BTreeMap::new();
    for (kind, value) in table.entries(notes) {
        match values::resource(kind) {
            Ok(kind) => {
                let names = each(&value.list(notes), values::resource, notes);
                all.insert(kind, names);
            }
            Err(values::ConfigDiagnostic { what, fix }) => value.report(notes, what, fix),
        }
    }
    all
}

/// The elements of a list that `hold` accepts.
fn listed(
    list: Option<&ConfigValue<'_, '_>>,
    notes: &mut ConfigDiagnostics<'_>,
    mut hold: impl FnMut(&ConfigValue<'_, '_>, &mut ConfigDiagnostics<'_>) -> Option<String>,
) -> Vec<String> {
    let list = list.map(|value| value.list(notes)).unwrap_or_default();
    list.iter().filter_map(|one| hold(one, notes)).collect()
}

/// The entry that holds each key, token and peer id: each belongs to one entry.
#[derive(Default)]
pub(super) struct IdentityClaims {
    keys: HashMap<PeerKey, String>,
    tokens: HashMap<KeyId, String>,
    ids: HashMap<PeerId, String>,
}

impl IdentityClaims {
    pub(super) fn key(
        &mut self,
        value: &ConfigValue<'_, '_>,
        notes: &mut ConfigDiagnostics<'_>,
    ) -> Option<String> {
        let key = value.parsed(notes, values::parse_peer_key)?;
        // With two holders of one key the identity of a connection would be ambiguous.
        if let Some(first) = self.keys.get(&key) {
            let what = format!("this key is listed already, at {first}");
            value.report(notes, what, "a key belongs to one peer, and once");
            return None;
        }
        self.keys.insert(key, value.path.clone());
        Some(key.to_string())
    }

    fn token(
        &mut self,
        value: &ConfigValue<'_, '_>,
        notes: &mut ConfigDiagnostics<'_>,
    ) -> Option<String> {
        let hash = value.parsed(notes, values::token_hash)?;
        self.token_name(hash.key_id, value, notes)?;
        Some(hash.to_string())
    }

    fn token_name(
        &mut self,
        key_id: KeyId,
        value: &ConfigValue<'_, '_>,
        notes: &mut ConfigDiagnostics<'_>,
    ) -> Option<KeyId> {
        if let Some(first) = self.tokens.get(&key_id) {
            let what = format!("the token {key_id} is listed already, at {first}");
            value.report(notes, what, "a token belongs to one holder, and once");
            return None;
        }
        self.tokens.insert(key_id, value.path.clone());
        Some(key_id)
    }

    pub(super) fn peer_id(
        &mut self,
        value: &ConfigValue<'_, '_>,
        notes: &mut ConfigDiagnostics<'_>,
    ) -> Option<String> {
        let id = value.parsed(notes, values::peer_id)?;
        // Hubs that the node joins are peers as well, so that their names are in this table too.
        if let Some(first) = self.ids.get(&id) {
            let what = format!("{} is taken already, at {first}", quote(id.as_str()));
            value.report(notes, what, "put all keys of a peer into one entry");
            return None;
        }
        self.ids.insert(id.clone(), value.path.clone());
        Some(id.as_str().to_owned())
    }
}
