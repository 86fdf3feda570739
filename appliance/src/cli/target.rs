//! NODE on the command line: which node a verb is for, and how it is reached.

use std::io::ErrorKind;
use std::path::Path;

use alknet_core::PeerAddr;
use clap::Args;

use super::node_book::{NodeAddress, NodeBook};
use super::node_caller::NodeCaller;
use super::{CommandError, CommandExit, DialArgs, StateArgs, dial};
use crate::node::ServeFile;

/// What a user may write in the place of NODE, for messages.
const FORMS: &str = "a name of 'alknet node list', KEY@HOST:PORT, or PEER@HUB";

/// Digits of a key of 32 bytes in hexadecimal.
const KEY_HEX_LEN: usize = 64;
/// Characters of such a key in base32 without padding (RFC 4648 section 6).
const KEY_BASE32_LEN: usize = 52;

/// Which node, and how it is reached.
#[derive(Clone, Debug, Args)]
pub(crate) struct NodeArgs {
    /// The node: a name of 'alknet node list', KEY@HOST:PORT, HOST[:PORT] of a node with a public
    /// certificate, or PEER@HUB [default: the node of 'alknet node use', else the one that 'alknet
    /// serve' runs with this state directory]
    #[arg(value_name = "NODE")]
    pub(crate) node: Option<String>,
    #[command(flatten)]
    pub(crate) peer: HubPeerArgs,
    #[command(flatten)]
    pub(crate) dial: DialArgs,
    /// What the user may have meant instead, for the error of a NODE that cannot be reached.
    #[arg(skip)]
    pub(crate) meant: Option<String>,
}

/// Which peer of a hub.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct HubPeerArgs {
    /// NODE is a hub: call this peer of the hub, by its id or its name there.
    #[arg(long = "peer", id = "peer_of_hub", value_name = "NAME")]
    pub(crate) peer: Option<String>,
    /// NODE is a peer of this hub: call it through the hub.
    #[arg(long, value_name = "HUB", conflicts_with = "peer_of_hub")]
    pub(crate) via: Option<String>,
}

/// Where a request goes: the node that is dialled, and the peer of it that the request is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodeRoute {
    /// The dialled node as the user calls it.
    pub(crate) name: String,
    /// The dialled node.
    pub(crate) target: PeerAddr,
    /// The peer of the dialled node that is asked in its place.
    pub(crate) peer: Option<String>,
    /// What to add to an error of a dial: the text may have been meant as a name, or as another word.
    hint: Option<String>,
}

impl HubPeerArgs {
    /// Whether a peer of a hub is named.
    pub(crate) fn is_some(&self) -> bool {
        self.peer.is_some() || self.via.is_some()
    }
}

impl NodeRoute {
    /// To a node that has a name here.
    #[cfg(test)]
    pub(super) fn by_name(name: &str, target: PeerAddr) -> Self {
        Self {
            name: name.to_owned(),
            target,
            peer: None,
            hint: None,
        }
    }

    /// To a peer of a hub.
    #[cfg(test)]
    pub(super) fn behind_hub(hub: &str, target: PeerAddr, peer: &str) -> Self {
        Self {
            name: hub.to_owned(),
            target,
            peer: Some(peer.to_owned()),
            hint: None,
        }
    }

    /// The node as every command line takes it, also one with another state directory and no names.
    pub(crate) fn without_names(&self) -> String {
        match &self.peer {
            Some(peer) => format!("{peer}@{}", self.target),
            None => self.target.to_string(),
        }
    }

    /// The node as the command line takes it again.
    pub(crate) fn as_argument(&self) -> String {
        match &self.peer {
            Some(peer) => format!("{peer}@{}", self.name),
            None => self.name.clone(),
        }
    }

    /// The dialled node, for what travels on a connection of its own and is not passed on by a hub.
    ///
    /// # Errors
    /// The node is behind a hub.
    pub(crate) fn direct(self, what: &str) -> Result<PeerAddr, CommandError> {
        match self.peer {
            None => Ok(self.target),
            Some(peer) => Err(CommandError::usage(format!(
                "'{peer}' is behind the hub '{}', and a hub does not pass on {what}: give KEY@HOST:PORT",
                self.name
            ))),
        }
    }

    /// What to say of a text that may have been meant as a name, and that no node has.
    pub(crate) fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// The error of a dial of this route, with what was taken for the node and what may have been meant.
    pub(super) fn explained(&self, mut error: CommandError) -> CommandError {
        if error.code == "PIN_MISMATCH" {
            error.further.push(self.other_key());
        }
        if let Some(hint) = &self.hint {
            // A misspelt name is the likelier mistake, so that the error of the dial comes behind it.
            error.message = format!(
                "'{}' was taken for a NODE: {hint}; as the name of a host: {}",
                self.name, error.message
            );
        }
        error
    }

    /// How another key of the node is pinned, for a user who knows that it changed.
    fn other_key(&self) -> String {
        let (name, at) = (&self.name, self.target.address());
        // An address has a sign that no name has.
        match name.contains(['@', ':', '.']) {
            true => format!("To pin another key of this node, write the key in front: KEY@{at}"),
            false => format!(
                "To pin another key of this node: alknet node remove {name}, then alknet node add {name} KEY@{at}"
            ),
        }
    }
}

impl NodeArgs {
    /// Where the requests of this verb go.
    ///
    /// # Errors
    /// No node is named, none is the default and none runs here; or a text is no node.
    pub(crate) fn route(&self) -> Result<NodeRoute, CommandError> {
        let names = NodeNames::load(&self.dial.state);
        let route = names.route(self.node.as_deref(), &self.peer)?;
        let mut route = route.ok_or_else(no_node)?;
        if let (Some(hint), Some(meant)) = (&mut route.hint, &self.meant) {
            hint.push_str("; ");
            hint.push_str(meant);
        }
        Ok(route)
    }

    /// Dials, runs `work`, says goodbye.
    ///
    /// # Errors
    /// The errors of [`route`](Self::route), of the dial and of `work`.
    pub(crate) fn reached(
        &self,
        work: impl AsyncFnOnce(&NodeCaller) -> Result<CommandExit, CommandError>,
    ) -> Result<CommandExit, CommandError> {
        dial::reached(&self.route()?, &self.dial, work)
    }

    /// Whether the word in the place of NODE is a node for certain, and not another word behind which NODE was
    /// left out.
    pub(crate) fn is_known(&self) -> bool {
        let names = NodeNames::load(&self.dial.state);
        self.node.as_deref().is_some_and(|word| names.is_node(word))
    }

    /// Takes the word of a verb that cannot do without it and that stands behind NODE. A single word is that
    /// word, and NODE was left out.
    ///
    /// # Errors
    /// The word is missing. `what` names it, and `from` says where a user finds it.
    pub(crate) fn with_word<W: From<String>>(
        mut self,
        word: Option<W>,
        what: &str,
        from: &str,
    ) -> Result<(Self, W), CommandError> {
        if let Some(word) = word {
            return Ok((self, word));
        }
        let missing =
            |behind: &str| CommandError::usage(format!("{what} is missing{behind}: {from}"));
        let Some(only) = self.node.take() else {
            return Err(missing(""));
        };
        let names = NodeNames::load(&self.dial.state);
        if names.is_node(&only) {
            return Err(missing(&format!(" behind the node '{only}'")));
        }
        Ok((self, W::from(only)))
    }
}

/// What names of nodes mean for one command. What cannot be read is an error only for a command that needs it:
/// an address is dialled without.
pub(crate) struct NodeNames {
    book: Result<NodeBook, CommandError>,
    /// The node that runs here, by its target.
    local: Result<Option<String>, CommandError>,
}

impl NodeNames {
    /// The names of a state directory.
    pub(crate) fn load(state: &StateArgs) -> Self {
        let dir = state.dir();
        Self {
            book: dir.clone().and_then(|dir| NodeBook::load(&dir)),
            local: dir.and_then(|dir| local_target(&dir)),
        }
    }

    fn book(&self) -> Result<&NodeBook, CommandError> {
        self.book.as_ref().map_err(Clone::clone)
    }

    /// Whether a word is a node, and no file, operation or id.
    pub(crate) fn is_node(&self, word: &str) -> bool {
        let is_named = self.book().is_ok_and(|book| book.get(word).is_some());
        is_named || (word.contains('@') && word.parse::<PeerAddr>().is_ok())
    }

    /// The node of a text.
    ///
    /// # Errors
    /// The text is no node.
    pub(crate) fn resolve(&self, text: &str) -> Result<NodeRoute, CommandError> {
        // As the console of a machine shows it, in the code that is scanned.
        let text = text.strip_prefix("alknet:").unwrap_or(text);
        if let Some((peer, hub)) = worker_of(text)? {
            return self.behind(hub, peer);
        }
        // No name here has any of these, so that it is an address.
        if text.contains(['@', ':', '.']) {
            return dialled(text, text);
        }
        let book = self.book()?;
        match book.get(text).map(|node| &node.at) {
            Some(NodeAddress::Direct { target }) => dialled(text, target),
            Some(NodeAddress::Behind { hub, peer }) => self.behind(hub, peer),
            // A host of the local network may have a name of one label, so that the name is dialled.
            None => dialled(text, text).map(|route| NodeRoute {
                hint: Some(book.no_such(text)),
                ..route
            }),
        }
    }

    /// A peer of a hub.
    fn behind(&self, hub: &str, peer: &str) -> Result<NodeRoute, CommandError> {
        let hub = self.resolve(hub)?;
        if let Some(other) = &hub.peer {
            return Err(CommandError::usage(format!(
                "'{other}' is behind the hub '{}', which passes on for no second hub",
                hub.name
            )));
        }
        if peer.is_empty() {
            return Err(CommandError::usage("a peer of a hub has a name"));
        }
        Ok(NodeRoute {
            peer: Some(peer.to_owned()),
            ..hub
        })
    }

    /// The node of a text, or the peer that the options name behind it.
    ///
    /// # Errors
    /// The text is no node, a hub is behind a hub, or the text names a peer of another hub.
    pub(crate) fn route_to(
        &self,
        node: &str,
        peer: &HubPeerArgs,
    ) -> Result<NodeRoute, CommandError> {
        match (&peer.via, &peer.peer) {
            (Some(hub), _) => {
                // A worker that has a name here is called by its name at the hub.
                let named = self.book.as_ref().ok().and_then(|book| book.get(node));
                match named.map(|node| &node.at) {
                    Some(NodeAddress::Behind { hub: own, peer }) => {
                        let route = self.behind(hub, peer)?;
                        if !is_same_node(&route.target, &self.behind(own, peer)?.target) {
                            // The other hub may have a peer of that name, which is another machine.
                            return Err(CommandError::usage(format!(
                                "'{node}' is the peer '{peer}' of the hub '{own}' here, and not of '{hub}': \
                                 leave out --via, or write {peer}@{hub}"
                            )));
                        }
                        Ok(route)
                    }
                    _ => self.behind(hub, node),
                }
            }
            (None, Some(peer)) => self.behind(node, peer),
            (None, None) => self.resolve(node),
        }
    }

    /// Like `route_to`; of a command that names no node the default, or the one that runs here. `None` where there is
    /// neither.
    ///
    /// # Errors
    /// The errors of [`route_to`](Self::route_to).
    pub(crate) fn route(
        &self,
        node: Option<&str>,
        peer: &HubPeerArgs,
    ) -> Result<Option<NodeRoute>, CommandError> {
        if let (Some(hub), None) = (&peer.via, node) {
            return Err(CommandError::usage(format!(
                "--via {hub} leads to a peer of that hub: name the peer as NODE"
            )));
        }
        let node = match node {
            Some(node) => Some(node),
            None => self.default_name()?,
        };
        node.map(|node| self.route_to(node, peer)).transpose()
    }

    /// The node of a command that names none. The list comes first also where it is empty: it is refused in a folder
    /// that others may write, and the file of the node that runs here would be theirs as well.
    fn default_name(&self) -> Result<Option<&str>, CommandError> {
        // What the user chose counts before what happens to run.
        if let Some(name) = self.book()?.default_name() {
            return Ok(Some(name));
        }
        let local = self.local.as_ref().map_err(Clone::clone)?;
        Ok(local.as_deref())
    }
}

/// The target of the node that runs with this state directory, if one does.
fn local_target(dir: &Path) -> Result<Option<String>, CommandError> {
    match ServeFile::read(dir) {
        Ok(file) => Ok(Some(file.target)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(CommandError::local(format!("{error}; name a node"))),
    }
}

/// The error of a command for which there is no node.
pub(crate) fn no_node() -> CommandError {
    CommandError::usage(format!(
        "which node? Name one ({FORMS}), choose a default with 'alknet node use NAME', or start one here \
         with 'alknet serve'"
    ))
}

/// A text such as `kitchen@attic`: a peer, and the hub that it is behind. Keys have a colon.
///
/// # Errors
/// What stands for the peer is a key without the word before it. As the name of a peer it would pin nothing, and the
/// host behind it would be dialled by its public certificate alone.
pub(crate) fn worker_of(text: &str) -> Result<Option<(&str, &str)>, CommandError> {
    // A key has its kind and a colon before the sign, and a peer's name has no colon.
    let worker = text.split_once('@').filter(|(peer, _)| !peer.contains(':'));
    match worker {
        Some((peer, hub)) if is_bare_key(peer) => Err(CommandError::usage(format!(
            "'{peer}' is a key and no peer of a hub: write ed25519:{peer}@{hub}, with the word before the colon as \
             'alknet serve' and the console of a machine show it"
        ))),
        worker => Ok(worker),
    }
}

/// Whether a word is a key of 32 bytes, in hexadecimal digits or in base32. No hub makes such an id.
fn is_bare_key(word: &str) -> bool {
    let is_hex = || word.bytes().all(|b| b.is_ascii_hexdigit());
    let is_base32 = || {
        word.bytes()
            // The digits of base32 are 2 to 7 (RFC 4648, 6).
            .all(|b| b.is_ascii_alphabetic() || (b'2'..=b'7').contains(&b))
    };
    match word.len() {
        KEY_HEX_LEN => is_hex(),
        KEY_BASE32_LEN => is_base32(),
        _ => false,
    }
}

/// Whether two targets are one node: one has a key of the other, or, where none is pinned, the same address.
fn is_same_node(one: &PeerAddr, two: &PeerAddr) -> bool {
    if one.pins.is_empty() && two.pins.is_empty() {
        return one.address() == two.address();
    }
    one.pins.iter().any(|key| two.pins.contains(key))
}

fn dialled(name: &str, target: &str) -> Result<NodeRoute, CommandError> {
    Ok(NodeRoute {
        name: name.to_owned(),
        target: target.parse().map_err(CommandError::usage)?,
        peer: None,
        hint: None,
    })
}

#[cfg(test)]
mod tests;
