//! The nodes that this computer calls by names of its own: those of `alknet node add`, and the hubs that
//! `alknet enroll` joined.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use alknet_core::{PeerAddr, PeerKey};
use nix::fcntl::OFlag;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::CommandError;
use super::identity::{refuse_foreign, unreadable};
use super::name_hint::{name_list, nearest_name};
use crate::writers::own_user;

/// File of the nodes inside the state directory.
const NODES_FILE: &str = "nodes.json";
/// The file of earlier versions, which had the hubs alone. It is read, and goes with the first change.
const HUBS_FILE: &str = "hubs.json";
/// The file that a process locks while it changes the nodes.
const LOCK_FILE: &str = "nodes.lock";
/// Permission bits of these files: the nodes that a user deals with are the user's own matter.
const FILE_MODE: u32 = 0o600;
/// Bytes of the longest file that is read: 1000 nodes take some 300,000, and a larger file is no list of nodes.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// Characters of a name: a label of DNS has as many (RFC 1035 section 2.3.4).
const NAME_CHARS_MAX: usize = 63;
/// What a hub is called here that says nothing usable.
const HUB: &str = "hub";
/// Words that stand in the place of a node's name on the command line.
const RESERVED: [&str; 13] = [
    "add",
    "any",
    "help",
    "list",
    "localhost",
    "promote",
    "proposals",
    "propose",
    "remove",
    "rollback",
    "set",
    "show",
    "use",
];

/// The nodes of a state directory, and which of them a command means that names none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeBook {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    default: Option<String>,
    #[serde(default)]
    nodes: BTreeMap<String, NamedNode>,
}

/// A node with a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NamedNode {
    /// How it is reached.
    #[serde(flatten)]
    pub(crate) at: NodeAddress,
    /// Of a hub that was joined: which of its peers the key of this computer is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) peer_id: Option<String>,
    /// Of a hub that was joined: what it calls that peer.
    #[serde(default, rename = "name", skip_serializing_if = "Option::is_none")]
    pub(crate) peer_name: Option<String>,
}

/// How a named node is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum NodeAddress {
    /// By a connection of its own.
    Direct {
        /// As the command line takes it: `KEY@HOST:PORT`, or `HOST:PORT`.
        target: String,
    },
    /// As a peer of a hub, which passes calls on.
    Behind {
        /// The name of the hub in this list.
        hub: String,
        /// Its id or its name there.
        peer: String,
    },
}

/// The list of earlier versions.
#[derive(Default, Deserialize)]
struct EarlierHubs {
    #[serde(default)]
    hubs: BTreeMap<String, NamedNode>,
}

impl NamedNode {
    /// A node at a target.
    pub(crate) fn direct(target: &PeerAddr) -> Self {
        Self {
            at: NodeAddress::Direct {
                target: target.to_string(),
            },
            peer_id: None,
            peer_name: None,
        }
    }

    /// A peer of the hub that this list has by that name.
    pub(crate) fn behind(hub: &str, peer: &str) -> Self {
        Self {
            at: NodeAddress::Behind {
                hub: hub.to_owned(),
                peer: peer.to_owned(),
            },
            peer_id: None,
            peer_name: None,
        }
    }

    /// Whether both are the same node: their keys are equal, or, where one pins no key, their addresses.
    fn is_same(&self, other: &Self) -> bool {
        match (&self.at, &other.at) {
            (NodeAddress::Direct { target: one }, NodeAddress::Direct { target: two }) => {
                let key = |target: &str| target.split_once('@').map(|(key, _)| key.to_owned());
                let keys = key(one).zip(key(two));
                keys.map_or(one == two, |(one, two)| one == two)
            }
            (one, two) => one == two,
        }
    }
}

impl NodeBook {
    /// Reads the nodes of a state directory; there are none where no file is.
    ///
    /// # Errors
    /// A file is damaged or cannot be read; another user of this computer can have written it, or put another one
    /// into the directory.
    pub(crate) fn load(dir: &Path) -> Result<Self, CommandError> {
        match fs::metadata(dir) {
            Ok(about) => refuse_foreign(dir, &about, own_user())?,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(failed(dir, error)),
        }
        // In this order: a process that replaces the earlier file has written the other one before it removes
        // the earlier one, so that no entry is in neither.
        let earlier: EarlierHubs = read(&dir.join(HUBS_FILE))?;
        let mut book: Self = read(&dir.join(NODES_FILE))?;
        for (name, hub) in earlier.hubs {
            book.nodes.entry(name).or_insert(hub);
        }
        Ok(book)
    }

    /// Changes the nodes of a state directory. Changes of several processes come after each other, each on what
    /// the one before left.
    ///
    /// # Errors
    /// What `change` refuses, after which the file is as before; and those of the disk.
    pub(crate) fn change<T>(
        dir: &Path,
        change: impl FnOnce(&mut Self) -> Result<T, CommandError>,
    ) -> Result<T, CommandError> {
        let _turn = lock(dir)?;
        let mut book = Self::load(dir)?;
        let earlier = dir.join(HUBS_FILE);
        if earlier.exists() {
            // Before the change: a node that it removes would come back with the earlier file.
            book.store(dir)?;
            match fs::remove_file(&earlier) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(failed(&earlier, error));
                }
                _ => {}
            }
        }
        let changed = change(&mut book)?;
        book.store(dir)?;
        Ok(changed)
    }

    /// The node of this name.
    pub(crate) fn get(&self, name: &str) -> Option<&NamedNode> {
        self.nodes.get(name)
    }

    /// Where the node with this key is, if a name here pins it.
    pub(crate) fn target_of(&self, key: &PeerKey) -> Option<PeerAddr> {
        let mut targets = self.nodes.values().filter_map(|node| match &node.at {
            NodeAddress::Direct { target } => target.parse::<PeerAddr>().ok(),
            NodeAddress::Behind { .. } => None,
        });
        targets.find(|target| target.pins.contains(key))
    }

    /// Every node, by name.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = (&str, &NamedNode)> {
        self.nodes.iter().map(|(name, node)| (name.as_str(), node))
    }

    /// The name of the node that a command means which names none.
    pub(crate) fn default_name(&self) -> Option<&str> {
        self.default.as_deref()
    }

    /// Names a node.
    ///
    /// # Errors
    /// The name is another node's, or no name; a hub is missing or is itself behind a hub.
    pub(crate) fn add(&mut self, name: &str, node: NamedNode) -> Result<(), CommandError> {
        check_name(name)?;
        if let NodeAddress::Behind { hub, .. } = &node.at {
            match self.nodes.get(hub).map(|hub| &hub.at) {
                Some(NodeAddress::Direct { .. }) => {}
                Some(NodeAddress::Behind { .. }) => {
                    let text = format!(
                        "'{hub}' is behind a hub itself, which passes on for no second one"
                    );
                    return Err(CommandError::usage(text));
                }
                None => return Err(self.unknown(hub)),
            }
        }
        match self.nodes.get_mut(name) {
            Some(known) if known.is_same(&node) => known.at = node.at,
            Some(_) => {
                let text = format!(
                    "'{name}' is another node already: remove it with 'alknet node remove {name}', \
                     or choose another name"
                );
                return Err(CommandError::usage(text));
            }
            None => drop(self.nodes.insert(name.to_owned(), node)),
        }
        Ok(())
    }

    /// Remembers a hub that was joined: under `wanted`; else under the name that it `suggests`, where that is
    /// free or its own; else under another one. Returns the name.
    ///
    /// # Errors
    /// The wanted name is another node's.
    pub(crate) fn remember(
        &mut self,
        wanted: Option<&str>,
        suggests: Option<&str>,
        hub: NamedNode,
    ) -> Result<String, CommandError> {
        let is_free = |name: &str| self.nodes.get(name).is_none_or(|node| node.is_same(&hub));
        let name = match (wanted, suggests) {
            (Some(name), _) if is_free(name) => name.to_owned(),
            (Some(name), _) => {
                let text = format!("'{name}' is another node already: choose another --hub NAME");
                return Err(CommandError::usage(text));
            }
            (None, Some(name)) if is_free(name) => name.to_owned(),
            (None, _) => {
                let more = (2..).map(|n: u32| format!("{HUB}-{n}"));
                let mut names = std::iter::once(HUB.to_owned()).chain(more);
                names
                    .find(|name| is_free(name))
                    .unwrap_or_else(|| HUB.to_owned())
            }
        };
        self.nodes.insert(name.clone(), hub);
        Ok(name)
    }

    /// Forgets a node. Returns whether it was the default.
    ///
    /// # Errors
    /// No node has this name, or others are reached through it.
    pub(crate) fn remove(&mut self, name: &str) -> Result<bool, CommandError> {
        if !self.nodes.contains_key(name) {
            return Err(self.unknown(name));
        }
        let is_through =
            |node: &NamedNode| matches!(&node.at, NodeAddress::Behind { hub, .. } if hub == name);
        let through: Vec<_> = self.nodes().filter(|(_, node)| is_through(node)).collect();
        if let [(first, _), ..] = through.as_slice() {
            let text = format!("'{first}' is reached through '{name}': remove '{first}' first");
            return Err(CommandError::usage(text));
        }
        self.nodes.remove(name);
        let was_default = self.default.as_deref() == Some(name);
        if was_default {
            self.default = None;
        }
        Ok(was_default)
    }

    /// Which node a command means from now on that names none; `None`: none.
    ///
    /// # Errors
    /// There is no node of this name.
    pub(crate) fn set_default(&mut self, name: Option<&str>) -> Result<(), CommandError> {
        if let Some(name) = name.filter(|name| !self.nodes.contains_key(*name)) {
            return Err(self.unknown(name));
        }
        self.default = name.map(str::to_owned);
        Ok(())
    }

    /// The error for a name that no node has.
    pub(crate) fn unknown(&self, name: &str) -> CommandError {
        CommandError::usage(self.no_such(name))
    }

    /// The text of [`unknown`](Self::unknown).
    pub(crate) fn no_such(&self, name: &str) -> String {
        if self.nodes.is_empty() {
            return format!(
                "no node is called '{name}' here: 'alknet node add {name} KEY@HOST:PORT' names one"
            );
        }
        let names = || self.nodes.keys().map(String::as_str);
        let meant = match nearest_name(names(), name) {
            Some(near) => format!("did you mean '{near}'? Known are"),
            None => "known are".to_owned(),
        };
        format!(
            "no node is called '{name}' here; {meant} {}",
            name_list(names())
        )
    }

    fn store(&self, dir: &Path) -> Result<(), CommandError> {
        let path = dir.join(NODES_FILE);
        let text = serde_json::to_vec_pretty(self).map_err(CommandError::local)?;
        alknet_durable::replace(&path, &text, FILE_MODE).map_err(|error| failed(&path, error))
    }
}

/// Refuses what is no name of a node: a name has no character that an address or an operation has, so that it
/// cannot be mistaken for one of them.
///
/// # Errors
/// The text is no name.
pub(crate) fn check_name(name: &str) -> Result<(), CommandError> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let letter = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
    if !letter || name.len() > NAME_CHARS_MAX || !name.bytes().all(plain) {
        let text = format!(
            "a node is called 1 to {NAME_CHARS_MAX} of a-z, 0-9 and '-' here, a letter first: not '{name}'"
        );
        return Err(CommandError::usage(text));
    }
    if RESERVED.contains(&name) {
        let text = format!("'{name}' has another meaning on the command line: choose another name");
        return Err(CommandError::usage(text));
    }
    Ok(())
}

/// The first label of what a node calls itself, where that can be a name here: a node that calls itself by
/// another machine's host name must not be dialled in that machine's place.
pub(crate) fn first_label(name: &str) -> Option<&str> {
    let first = name.split('.').next().unwrap_or_default();
    check_name(first).ok().map(|()| first)
}

fn read<T: Default + DeserializeOwned>(path: &Path) -> Result<T, CommandError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(T::default()),
        Err(error) => return Err(unreadable(path, &error)),
    };
    // Of the file that was opened: another one may have its name by now.
    let about = file.metadata().map_err(|error| failed(path, error))?;
    refuse_foreign(path, &about, own_user())?;
    let mut bytes = Vec::new();
    let read = file.take(FILE_BYTES_MAX).read_to_end(&mut bytes);
    read.map_err(|error| failed(path, error))?;
    serde_json::from_slice(&bytes)
        .map_err(|error| failed(path, format!("{error}: correct or delete it")))
}

/// Held until the file is dropped. Waits: another process holds it for as long as a file takes to write.
fn lock(dir: &Path) -> Result<File, CommandError> {
    let path = dir.join(LOCK_FILE);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false);
    // A link would have a file made at its end, and a pipe would be waited for.
    options.custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits());
    let file = options.mode(FILE_MODE).open(&path);
    let file = file.map_err(|error| failed(&path, error))?;
    file.lock().map_err(|error| failed(&path, error))?;
    Ok(file)
}

fn failed(path: &Path, error: impl std::fmt::Display) -> CommandError {
    CommandError::local(format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::thread;

    use super::*;

    fn node(key: u8) -> NamedNode {
        let key = PeerKey::Ed25519([key; 32]);
        NamedNode::direct(&format!("{key}@192.0.2.7:443").parse().expect("a target"))
    }

    fn hub(key: u8) -> NamedNode {
        NamedNode {
            peer_id: Some("p1".to_owned()),
            peer_name: Some("laptop".to_owned()),
            ..node(key)
        }
    }

    fn book(nodes: &[(&str, NamedNode)]) -> NodeBook {
        let mut book = NodeBook::default();
        for (name, node) in nodes {
            book.add(name, node.clone()).expect("a name");
        }
        book
    }

    #[test]
    fn hubs_are_remembered_by_names_of_their_own() {
        let mut book = NodeBook::default();
        let mut remember = |wanted, suggests, key| book.remember(wanted, suggests, hub(key));
        let named = |name: &str| Ok(name.to_owned());
        assert_eq!(remember(Some("attic"), None, 1), named("attic"));
        assert_eq!(remember(Some("attic"), Some("b"), 1), named("attic"));
        assert!(remember(Some("attic"), None, 2).is_err());
        assert_eq!(remember(None, Some("attic"), 2), named("hub"));
        assert_eq!(remember(None, None, 3), named("hub-2"));
        assert_eq!(remember(None, Some("cellar"), 4), named("cellar"));
    }

    #[test]
    fn a_name_is_one_node_s() {
        let mut book = book(&[("edge-1", node(1))]);
        let again = book.add("edge-1", node(1));
        assert_eq!(again, Ok(()), "it says the same");
        let moved = NamedNode::direct(
            &node(1)
                .target()
                .replace("192.0.2.7", "192.0.2.9")
                .parse()
                .expect("a target"),
        );
        book.add("edge-1", moved.clone()).expect("the same key");
        assert_eq!(book.get("edge-1"), Some(&moved));
        let other = book.add("edge-1", node(2)).expect_err("another key");
        assert!(other.message.contains("another node"), "{other}");
        assert_eq!(book.get("edge-1"), Some(&moved));
    }

    impl NamedNode {
        fn target(&self) -> &str {
            match &self.at {
                NodeAddress::Direct { target } => target,
                NodeAddress::Behind { peer, .. } => panic!("{peer} is behind a hub"),
            }
        }
    }

    #[test]
    fn a_worker_has_a_hub_that_is_known() {
        let mut book = book(&[("attic", hub(1))]);
        let worker = NamedNode::behind("attic", "kitchen");
        book.add("kitchen", worker).expect("the hub is known");
        let unknown = book.add("hall", NamedNode::behind("cellar", "hall"));
        let unknown = unknown.expect_err("no such hub").message;
        assert!(unknown.contains("'cellar'") && unknown.contains("attic, kitchen"));
        let second = book.add("hall", NamedNode::behind("kitchen", "hall"));
        assert!(second.is_err(), "a hub behind a hub");
        let refused = book.remove("attic").expect_err("kitchen is behind it");
        assert!(refused.message.contains("'kitchen'"), "{refused}");
        assert_eq!(book.remove("kitchen"), Ok(false));
        assert_eq!(book.remove("attic"), Ok(false));
    }

    #[test]
    fn the_default_is_a_node_that_is_there() {
        let mut book = book(&[("attic", hub(1)), ("edge-1", node(2))]);
        let refused = book.set_default(Some("cellar")).expect_err("no such node");
        assert!(refused.message.contains("attic, edge-1"), "{refused}");
        book.set_default(Some("edge-1")).expect("it is there");
        assert_eq!(book.remove("attic"), Ok(false));
        assert_eq!(book.default_name(), Some("edge-1"));
        assert_eq!(book.remove("edge-1"), Ok(true));
        assert_eq!(book.default_name(), None);
    }

    #[test]
    fn node_names_differ_from_addresses_and_verbs() {
        for good in ["a", "edge-1", "z9"] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        let long = "a".repeat(64);
        for bad in [
            "", "Edge", "1a", "-a", "a.b", "a:b", "a/b", "a@b", "a_b", "ä", &long,
        ] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        for verb in RESERVED {
            assert!(check_name(verb).is_err(), "{verb}");
        }
    }

    /// A hub that calls itself by another machine's host name must not be dialled in that machine's place.
    #[test]
    fn what_a_hub_calls_itself_is_one_label() {
        assert_eq!(first_label("hub.example.org"), Some("hub"));
        for bad in [
            "",
            "Hub",
            "localhost",
            "127.0.0.1",
            "[::1]",
            "-a",
            "a_b",
            "localhost.x",
        ] {
            assert_eq!(first_label(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_file_is_its_owner_s_and_says_the_same_again() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let all = [
            ("attic", hub(1)),
            ("edge-1", node(2)),
            ("kitchen", NamedNode::behind("attic", "kitchen")),
        ];
        NodeBook::change(dir.path(), |book| {
            for (name, node) in &all {
                book.add(name, node.clone())?;
            }
            book.set_default(Some("kitchen"))
        })
        .expect("a writable directory");
        let read = NodeBook::load(dir.path()).expect("its own file");
        let mut expected = book(&all);
        expected.set_default(Some("kitchen")).expect("it is there");
        assert_eq!(read, expected);
        let about = fs::metadata(dir.path().join(NODES_FILE)).expect("there");
        assert_eq!(about.permissions().mode() & 0o777, 0o600);
        fs::write(dir.path().join(NODES_FILE), "{").expect("a writable directory");
        let damaged = NodeBook::load(dir.path()).expect_err("no JSON").message;
        assert!(damaged.contains(NODES_FILE), "{damaged}");
    }

    #[test]
    fn hubs_of_an_earlier_version_are_there_until_they_are_removed() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let [hubs, nodes] = [HUBS_FILE, NODES_FILE].map(|name| dir.path().join(name));
        let key = PeerKey::Ed25519([7; 32]);
        let target = format!("{key}@hub:443");
        let entry = serde_json::json!({ "target": target, "peer_id": "p1", "name": "ada" });
        let text = serde_json::json!({ "hubs": { "attic": entry, "cellar": entry } });
        fs::write(&hubs, text.to_string()).expect("a writable directory");
        let read = NodeBook::load(dir.path()).expect("both files");
        let attic = read.get("attic").expect("it is remembered");
        assert_eq!(
            (
                attic.target(),
                attic.peer_id.as_deref(),
                attic.peer_name.as_deref()
            ),
            (target.as_str(), Some("p1"), Some("ada"))
        );
        NodeBook::change(dir.path(), |book| book.remove("attic")).expect("it is there");
        assert!(!hubs.exists() && nodes.exists());
        let read = NodeBook::load(dir.path()).expect("one file");
        assert!(read.get("attic").is_none() && read.get("cellar").is_some());
    }

    #[test]
    fn what_is_refused_changes_nothing() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        NodeBook::change(dir.path(), |book| book.add("edge-1", node(1))).expect("writable");
        let refused = NodeBook::change(dir.path(), |book| {
            book.add("edge-2", node(2))?;
            book.remove("edge-3")
        });
        assert!(refused.is_err());
        let read = NodeBook::load(dir.path()).expect("its own file");
        assert_eq!(read, book(&[("edge-1", node(1))]));
    }

    #[test]
    fn names_that_others_can_have_written_are_not_used() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        NodeBook::change(dir.path(), |book| book.add("edge-1", node(1))).expect("writable");
        let file = dir.path().join(NODES_FILE);
        let earlier = dir.path().join(HUBS_FILE);
        fs::write(&earlier, "{}").expect("a writable directory");
        for (path, own) in [
            (dir.path(), 0o700),
            (file.as_path(), 0o600),
            (earlier.as_path(), 0o600),
        ] {
            let allow = |mode| {
                let allowed = fs::set_permissions(path, fs::Permissions::from_mode(mode));
                allowed.expect("it is ours");
            };
            allow(own | 0o022);
            let refused = NodeBook::load(dir.path()).expect_err("others may write it");
            let named = path.display().to_string();
            assert!(refused.message.starts_with(&named), "{refused}");
            assert!(NodeBook::change(dir.path(), |_| Ok(())).is_err(), "{named}");
            allow(own);
            assert!(NodeBook::load(dir.path()).is_ok(), "{named}");
        }
    }

    #[test]
    fn of_changes_at_the_same_time_none_is_lost() {
        const WRITERS: u8 = 8;
        let dir = tempfile::tempdir().expect("a temporary directory");
        thread::scope(|scope| {
            for key in 0..WRITERS {
                let dir = dir.path();
                scope.spawn(move || {
                    for n in 0..4 {
                        let name = format!("n-{key}-{n}");
                        NodeBook::change(dir, |book| book.add(&name, node(key)))
                            .expect("a writable directory");
                    }
                });
            }
        });
        let read = NodeBook::load(dir.path()).expect("its own file");
        assert_eq!(read.nodes().count(), usize::from(WRITERS) * 4);
    }
}
