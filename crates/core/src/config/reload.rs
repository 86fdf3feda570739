//! Replaces the configuration while the node runs.
//!
//! The node takes a document as a whole or not at all: it parses it, checks it in itself and against the
//! administrator who brings it, builds its tables, and then puts them in place at once. The response names what
//! cannot change while the node runs, so that the administrator does not take it for changed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use arc_swap::ArcSwap;
use serde::Serialize;
use thiserror::Error;
use tokio::sync::watch;

use crate::identities::{Identities, IdentityEntries};
use crate::identity::{Identity, IdentityKind, PeerId, PeerKey, ScopeSet};

use super::entries::admin_id;
use super::{ConfigError, HttpSection, HubSection, NodeConfig, NodeSection, UpdateSection};

/// The scope whose holders may change the configuration.
const ADMIN: &str = "admin";
/// Least similarity (Jaro-Winkler) at which a known scope is offered for an unknown one. Scopes begin alike, which
/// raises the similarity of those that mean something else.
const SIMILAR_SCOPE_MIN: f64 = 0.85;

/// The configuration in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DynamicConfig {
    /// The generation: 1 is the configuration with which the node started.
    pub generation: u64,
    /// The document. Values that cannot change while the node runs are those that the next start uses.
    pub config: NodeConfig,
    /// The source of the document.
    pub source: ConfigSource,
    /// Keys whose values wait for the next start.
    pub restart_required: Vec<&'static str>,
}

/// The source of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfigSource {
    /// The file changed.
    File,
    /// An operation, whose caller has this name.
    Operation(String),
    /// The process received SIGHUP.
    Signal,
    /// The start.
    Start,
}

impl ConfigSource {
    /// The name of the identity that made the change, if an identity did.
    #[must_use]
    pub fn author(&self) -> Option<&str> {
        match self {
            Self::Operation(by) => Some(by),
            Self::File | Self::Signal | Self::Start => None,
        }
    }
}

impl fmt::Display for ConfigSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File => f.write_str("file"),
            Self::Operation(by) => write!(f, "operation by {by}"),
            Self::Signal => f.write_str("signal"),
            Self::Start => f.write_str("start"),
        }
    }
}

/// A document that is to come into force.
#[derive(Clone, Debug)]
pub struct ConfigChange<'a> {
    /// The TOML document.
    pub document: &'a [u8],
    /// The source of the document.
    pub source: ConfigSource,
    /// The generation from which the document was made. The node refuses it if another one is in force.
    pub generation: Option<u64>,
    /// Whether the node only reports what would happen.
    pub dry_run: bool,
    /// The administrator who brings the document, with the key that it proved: it must not lose its own rights.
    pub admin: Option<(Arc<Identity>, Option<PeerKey>)>,
}

impl<'a> ConfigChange<'a> {
    /// A document from a source to which only the owner of the machine can write.
    #[must_use]
    pub const fn of_owner(document: &'a [u8], source: ConfigSource) -> Self {
        Self {
            document,
            source,
            generation: None,
            dry_run: false,
            admin: None,
        }
    }
}

/// The result of a document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ConfigApplyResult {
    /// The generation in force.
    pub generation: u64,
    /// Whether the node only reported what would happen.
    pub dry_run: bool,
    /// Whether the document differs from the one in force.
    pub changed: bool,
    /// Keys whose new values wait for the next start.
    pub restart_required: Vec<&'static str>,
    /// Entries that are allowed and probably mistakes.
    pub warnings: Vec<ConfigWarning>,
    /// The identities that the document adds, changes and removes.
    pub peers: ChangedIds,
}

/// Names of identities by how they changed: peers, `admin…`, `key:…`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ChangedIds {
    /// New ones.
    pub added: Vec<String>,
    /// Those whose entry differs.
    pub changed: Vec<String>,
    /// Those that have no entry any more.
    pub removed: Vec<String>,
}

/// An entry of a document that is allowed and probably a mistake. It displays as one line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ConfigWarning {
    /// The name of the entry.
    pub id: String,
    /// What looks wrong about it.
    pub what: String,
}

impl fmt::Display for ConfigWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.id, self.what)
    }
}

/// Why the node refuses a document.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ApplyError {
    /// Another change of the configuration came first.
    #[error(
        "generation {actual} is in force, not {expected}: look at what changed, then apply to that"
    )]
    Conflict {
        /// The generation from which the change was made.
        expected: u64,
        /// The generation in force.
        actual: u64,
    },
    /// All mistakes of the document; never empty.
    #[error("the document has {} mistakes; the first: {}", .0.len(), first(.0))]
    Refused(Vec<ConfigError>),
}

fn first(errors: &[ConfigError]) -> String {
    errors.first().map_or_else(String::new, ToString::to_string)
}

/// Overrides values of the document with options, such as those of the command line.
type Overlay = dyn Fn(&mut NodeConfig) + Send + Sync;

/// Says which scopes something on the node asks for at this moment.
type RequestedScopes = dyn Fn() -> BTreeSet<String> + Send + Sync;

/// The configuration in force, and the one way to change it.
pub struct ReloadHandle {
    current: ArcSwap<DynamicConfig>,
    identities: Arc<Identities>,
    /// The configuration at the start, with which values that cannot change are compared.
    started: NodeConfig,
    overlay: Box<Overlay>,
    scopes: OnceLock<Box<RequestedScopes>>,
    generation: watch::Sender<u64>,
    /// The entries of the document in force. The lock is held while the node takes the next document.
    entries: Mutex<IdentityEntries>,
}

impl ReloadHandle {
    /// Starts with `config`, whose entries `identities` already has.
    #[must_use]
    pub fn new(config: NodeConfig, identities: Arc<Identities>) -> Self {
        Self {
            entries: Mutex::new(config.entries()),
            current: ArcSwap::from_pointee(DynamicConfig {
                generation: 1,
                config: config.clone(),
                source: ConfigSource::Start,
                restart_required: Vec::new(),
            }),
            identities,
            started: config,
            overlay: Box::new(|_| ()),
            scopes: OnceLock::new(),
            generation: watch::Sender::new(1),
        }
    }

    /// Sets options that override every document, as those of a command line do.
    #[must_use]
    pub fn with_overlay(
        mut self,
        overlay: impl Fn(&mut NodeConfig) + Send + Sync + 'static,
    ) -> Self {
        self.overlay = Box::new(overlay);
        self
    }

    /// What says which scopes something on this node asks for at the moment: granting another is warned about from
    /// now on. A scope that ends in `*` stands for all that begin so. Counts once; before it nothing is warned about.
    pub fn know_scopes(&self, scopes: impl Fn() -> BTreeSet<String> + Send + Sync + 'static) {
        self.scopes.get_or_init(|| Box::new(scopes));
    }

    /// A warning for each of these scopes that nothing on this node asks for, with the scope that is most like it.
    /// `id` names what they were granted to.
    #[must_use]
    pub fn scope_warnings(&self, id: &str, granted: &ScopeSet) -> Vec<ConfigWarning> {
        let Some(asked) = self.scopes.get() else {
            return Vec::new();
        };
        unasked_scopes(&asked(), id, granted)
    }

    /// Puts a document in force, as a whole or not at all.
    ///
    /// # Errors
    /// The document has mistakes, shuts out the administrator who brings it, or was made from another generation.
    pub fn apply(&self, change: &ConfigChange<'_>) -> Result<ConfigApplyResult, ApplyError> {
        // The lock is held to the end: two documents are never applied at the same time.
        let mut known = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let current = self.current.load_full();
        // Two administrators may edit at the same time: the second one must see the change of the first before it
        // overwrites it.
        if let Some(expected) = change.generation.filter(|it| *it != current.generation) {
            return Err(ApplyError::Conflict {
                expected,
                actual: current.generation,
            });
        }
        let mut config = NodeConfig::parse(change.document).map_err(ApplyError::Refused)?;
        (self.overlay)(&mut config);
        let mut entries = config.entries();
        entries.admins = keep_names(&known.admins, &entries.admins);
        self.check_lockout(&entries, change)?;
        let next = DynamicConfig {
            generation: current.generation + 1,
            restart_required: static_keys(&self.started, &config),
            source: change.source.clone(),
            config,
        };
        let mut applied = ConfigApplyResult {
            generation: current.generation,
            dry_run: change.dry_run,
            changed: next.config != current.config,
            restart_required: next.restart_required.clone(),
            warnings: self.warnings(&known, &entries),
            peers: changed_ids(&known, &entries),
        };
        // A document that changes nothing gets no generation, so that watchers see only real changes.
        if applied.changed && !change.dry_run {
            applied.generation = next.generation;
            known.clone_from(&entries);
            self.put_in_place(entries, next);
        }
        Ok(applied)
    }

    /// The configuration in force.
    #[must_use]
    pub fn current(&self) -> Arc<DynamicConfig> {
        self.current.load_full()
    }

    /// The configuration with which the node runs while `current` is in force: values that cannot change before the
    /// next start are those of this start.
    #[must_use]
    pub fn running(&self, current: &DynamicConfig) -> NodeConfig {
        current.config.clone().running_as(&self.started)
    }

    /// Receives the generation of each configuration that comes into force.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    fn put_in_place(&self, entries: IdentityEntries, next: DynamicConfig) {
        let generation = next.generation;
        // The order matters: a watcher that sees the new generation finds its rights and its document in place.
        self.identities.replace_config(entries);
        self.current.store(Arc::new(next));
        self.generation.send_replace(generation);
    }

    /// Refuses a document after which the administrator who brings it could not bring the next one.
    fn check_lockout(
        &self,
        entries: &IdentityEntries,
        change: &ConfigChange<'_>,
    ) -> Result<(), ApplyError> {
        let Some((identity, key)) = &change.admin else {
            return Ok(());
        };
        let by_key = key.filter(|_| identity.kind == IdentityKind::Peer);
        let stays = match by_key {
            Some(key) => self
                .identities
                .preview(entries, &key)
                .is_some_and(|would_be| would_be.scopes.allows(ADMIN)),
            // The token of an administrator is in the store, and no document removes it.
            None => !entries.holds(&identity.id),
        };
        if stays {
            return Ok(());
        }
        Err(ApplyError::Refused(vec![ConfigError {
            path: "node.admin_keys".to_owned(),
            line: None,
            what: format!(
                "'{}', who applies this, would no longer administer the node",
                identity.id
            ),
            fix: "list your own key, or let another administrator apply it".to_owned(),
        }]))
    }

    /// Warnings about `entries`, which come in the place of `before`.
    fn warnings(&self, before: &IdentityEntries, entries: &IdentityEntries) -> Vec<ConfigWarning> {
        let peers = entries
            .peers
            .iter()
            .map(|p| (p.peer_id.to_string(), &p.scopes));
        let keys = entries
            .api_keys
            .iter()
            .map(|k| (k.id().to_string(), &k.scopes));
        let hidden = self.identities.hidden_by(entries).into_iter();
        let mut warnings: Vec<_> = hidden
            .map(|(id, what)| ConfigWarning {
                id: id.to_string(),
                what: format!("{what}; the configuration wins"),
            })
            .collect();
        let uncovered = self.identities.uncovered_by(before, entries).into_iter();
        warnings.extend(uncovered.map(|(id, what)| ConfigWarning {
            id: id.to_string(),
            what: format!("{what}; remove that entry, too, if it is not to count"),
        }));
        if let Some(asked) = self.scopes.get() {
            let asked = asked();
            for (id, scopes) in peers.chain(keys) {
                warnings.extend(unasked_scopes(&asked, &id, scopes));
            }
        }
        warnings
    }
}

/// A warning for each of `granted` that is not among those that something asks for.
fn unasked_scopes(asked: &BTreeSet<String>, id: &str, granted: &ScopeSet) -> Vec<ConfigWarning> {
    let granted = Vec::<String>::from(granted.clone()).into_iter();
    let unasked = granted.filter(|scope| !asked.iter().any(|known| is_granted_by(known, scope)));
    let warning = |scope: String| {
        let meant = match nearest_scope(asked, &scope) {
            Some(known) => format!("; did you mean '{known}'?"),
            None => String::new(),
        };
        ConfigWarning {
            id: id.to_owned(),
            what: format!("nothing on this node asks for the scope '{scope}'{meant}"),
        }
    };
    unasked.map(warning).collect()
}

/// The known scope that is most like this one; of a family, the member that ends as this one does.
fn nearest_scope(asked: &BTreeSet<String>, scope: &str) -> Option<String> {
    let likeness = |known: &String| match known.strip_suffix('*') {
        None => (strsim::jaro_winkler(known, scope), known.clone()),
        Some(family) => {
            // As many segments as the family names.
            let last = family.matches(':').count().checked_sub(1);
            let colon = last.and_then(|last| scope.match_indices(':').nth(last));
            let (head, rest) = scope.split_at(colon.map_or(scope.len(), |(at, _)| at + 1));
            let member = match rest.is_empty() {
                true => known.clone(),
                false => format!("{family}{rest}"),
            };
            (strsim::jaro_winkler(family, head), member)
        }
    };
    let near = asked.iter().map(likeness);
    let near = near.filter(|(likeness, _)| *likeness >= SIMILAR_SCOPE_MIN);
    let nearest = near.max_by(|a, b| a.0.total_cmp(&b.0));
    nearest.map(|(_, known)| known)
}

/// Whether a grant of `granted`, a scope or a pattern, matches `known`, a scope or a family of scopes that an
/// operation requires.
#[must_use]
pub fn is_granted_by(known: &str, granted: &str) -> bool {
    match (known.strip_suffix('*'), granted.strip_suffix('*')) {
        (Some(family), _) if granted.starts_with(family) => true,
        (_, Some(prefix)) => known.starts_with(prefix),
        _ => known == granted,
    }
}

impl fmt::Debug for ReloadHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReloadHandle")
            .field("generation", &self.current.load().generation)
            .finish_non_exhaustive()
    }
}

impl NodeConfig {
    /// This document, with every value that cannot change while a node runs taken from `running`.
    #[must_use]
    pub fn running_as(self, running: &Self) -> Self {
        let admin_keys = self.node.admin_keys;
        Self {
            // Sockets, devices and processes of these sections are opened at the start only.
            listen: running.listen.clone(),
            network: running.network.clone(),
            tls: running.tls.clone(),
            iroh: running.iroh.clone(),
            promotion: running.promotion.clone(),
            runtime: running.runtime.clone(),
            compute: running.compute.clone(),
            fs: running.fs.clone(),
            vault: running.vault.clone(),
            credentials: running.credentials.clone(),
            operations: running.operations.clone(),
            version: running.version,
            // The administrators are the only part of the section that takes effect at once.
            node: NodeSection {
                admin_keys,
                ..running.node.clone()
            },
            peers: self.peers,
            api_keys: self.api_keys,
            limits: self.limits,
            log: self.log,
            http: HttpSection {
                enabled: running.http.enabled,
                h3: running.http.h3,
                port80: running.http.port80,
                websocket: running.http.websocket,
                page: running.http.page,
                site: running.http.site.clone(),
                mcp: running.http.mcp.clone(),
                import: running.http.import.clone(),
                ..self.http
            },
            hub: HubSection {
                enabled: running.hub.enabled,
                disclose: running.hub.disclose,
                ..self.hub
            },
            join: self.join,
            // PID 1 takes the keys at its start. The rest is the node's.
            update: UpdateSection {
                keys: running.update.keys.clone(),
                threshold: running.update.threshold,
                ..self.update
            },
        }
    }
}

/// Keys that differ and take effect only at the next start.
fn static_keys(running: &NodeConfig, next: &NodeConfig) -> Vec<&'static str> {
    let (node, new) = (&running.node, &next.node);
    let keys = [
        ("listen.port", running.listen.port != next.listen.port),
        ("listen.addrs", running.listen.addrs != next.listen.addrs),
        ("node.name", node.name != new.name),
        ("node.domain", node.domain != new.domain),
        ("node.time_servers", node.time_servers != new.time_servers),
        ("node.stateless", node.stateless != new.stateless),
        ("network", running.network != next.network),
        ("tls", running.tls != next.tls),
        ("http.enabled", running.http.enabled != next.http.enabled),
        ("http.h3", running.http.h3 != next.http.h3),
        ("http.port80", running.http.port80 != next.http.port80),
        (
            "http.websocket",
            running.http.websocket != next.http.websocket,
        ),
        ("http.page", running.http.page != next.http.page),
        ("http.site", running.http.site != next.http.site),
        ("http.mcp", running.http.mcp != next.http.mcp),
        ("http.import", running.http.import != next.http.import),
        ("hub.enabled", running.hub.enabled != next.hub.enabled),
        ("hub.disclose", running.hub.disclose != next.hub.disclose),
        ("iroh", running.iroh != next.iroh),
        ("promotion", running.promotion != next.promotion),
        ("runtime", running.runtime != next.runtime),
        ("compute", running.compute != next.compute),
        ("fs", running.fs != next.fs),
        ("vault", running.vault != next.vault),
        ("credentials", running.credentials != next.credentials),
        ("operations", running.operations != next.operations),
        ("update.keys", running.update.keys != next.update.keys),
        (
            "update.threshold",
            running.update.threshold != next.update.threshold,
        ),
    ];
    let differ = keys.into_iter().filter(|(_, differs)| *differs);
    differ.map(|(key, _)| key).collect()
}

/// Administrators are numbered in the order of the list, but a known one keeps its name: connections are made in that
/// name, and the administrator before it in the list may go.
fn keep_names(known: &[(PeerId, PeerKey)], listed: &[(PeerId, PeerKey)]) -> Vec<(PeerId, PeerKey)> {
    let kept_names: Vec<_> = listed
        .iter()
        .map(|(_, key)| known.iter().find(|(_, held)| held == key))
        .collect();
    let taken_names: BTreeSet<_> = kept_names
        .iter()
        .flatten()
        .map(|(id, _)| id.clone())
        .collect();
    let mut free = (0..)
        .filter_map(|n| admin_id(n).ok())
        .filter(|id| !taken_names.contains(id));
    let name = |(kept, (_, key)): (Option<&(PeerId, PeerKey)>, &(PeerId, PeerKey))| {
        let id = kept.map(|(id, _)| id.clone()).or_else(|| free.next())?;
        Some((id, *key))
    };
    kept_names
        .into_iter()
        .zip(listed)
        .filter_map(name)
        .collect()
}

fn changed_ids(before: &IdentityEntries, after: &IdentityEntries) -> ChangedIds {
    let (before, after) = (by_id(before), by_id(after));
    let mut ids = ChangedIds::default();
    for (id, entry) in &after {
        match before.get(id) {
            None => ids.added.push(id.clone()),
            Some(earlier) if earlier != entry => ids.changed.push(id.clone()),
            Some(_) => {}
        }
    }
    let gone = before.keys().filter(|id| !after.contains_key(*id));
    ids.removed = gone.cloned().collect();
    ids
}

/// One source with a single entry for each identity, so that entries of every kind can be compared.
fn by_id(entries: &IdentityEntries) -> BTreeMap<String, IdentityEntries> {
    let admins = entries.admins.iter().map(|(id, key)| {
        let admins = vec![(id.clone(), *key)];
        (
            id.to_string(),
            IdentityEntries {
                admins,
                ..IdentityEntries::default()
            },
        )
    });
    let peers = entries.peers.iter().map(|peer| {
        let peers = vec![peer.clone()];
        (
            peer.peer_id.to_string(),
            IdentityEntries {
                peers,
                ..IdentityEntries::default()
            },
        )
    });
    let keys = entries.api_keys.iter().map(|key| {
        let api_keys = vec![key.clone()];
        (
            key.id().to_string(),
            IdentityEntries {
                api_keys,
                ..IdentityEntries::default()
            },
        )
    });
    admins.chain(peers).chain(keys).collect()
}

#[cfg(test)]
mod tests;
