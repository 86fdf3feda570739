//! How far an operation reaches.

use std::collections::{BTreeMap, BTreeSet};

use alknet_core::PeerId;

/// A set of operation names. `fs/*` holds everything below `fs/`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NameSet {
    exact: BTreeSet<Box<str>>,
    below: BTreeSet<Box<str>>,
}

impl NameSet {
    /// Whether `name` is in the set.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.exact.contains(name)
            || name
                .match_indices('/')
                .any(|(at, _)| self.below.contains(&name[..=at]))
    }

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.below.is_empty()
    }

    /// Adds a name, or everything below one.
    pub fn insert(&mut self, name: &str) {
        let name = name.trim_start_matches('/');
        match name.strip_suffix('*') {
            // `fs*` would hold names of other namespaces: it is a name that no operation has.
            Some(below) if below.ends_with('/') => self.below.insert(below.into()),
            _ => self.exact.insert(name.into()),
        };
    }

    /// Whether everything in `other` is in this set, too.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        let parents = |name: &str| {
            let ends: Vec<_> = name.match_indices('/').map(|(at, _)| at).collect();
            ends.into_iter().any(|at| self.below.contains(&name[..=at]))
        };
        other.exact.iter().all(|name| self.contains(name))
            && other.below.iter().all(|below| parents(below))
    }
}

impl<S: AsRef<str>> FromIterator<S> for NameSet {
    fn from_iter<I: IntoIterator<Item = S>>(names: I) -> Self {
        let mut set = Self::default();
        names.into_iter().for_each(|name| set.insert(name.as_ref()));
        set
    }
}

/// Which operations an operation may call, and where. An empty one reaches nothing.
///
/// Reachability is not permission: a reachable operation is still subject to its access control, checked against the
/// calling operation's [`CompositionAuthority`](crate::CompositionAuthority).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScopedPeerEnv {
    ops: NameSet,
    peer_pinned: BTreeMap<PeerId, NameSet>,
    routed: RoutedReach,
    /// Whether it leaves out what only operations of the node are meant to call.
    leaves_internal: bool,
}

/// Which operations an operation reaches on a peer that its call names, where the authority holds the scope for the
/// way there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum RoutedReach {
    Everything,
    Names(NameSet),
    #[default]
    Nothing,
}

impl RoutedReach {
    fn contains(&self, operation: &str) -> bool {
        match self {
            Self::Everything => true,
            Self::Names(names) => names.contains(operation),
            Self::Nothing => false,
        }
    }

    /// Whether everything in `other` is in this as well.
    fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Everything, _) | (_, Self::Nothing) => true,
            (Self::Names(own), Self::Names(other)) => own.covers(other),
            _ => false,
        }
    }
}

impl ScopedPeerEnv {
    /// Reaches these operations, whichever node serves them.
    pub fn new<S: AsRef<str>>(ops: impl IntoIterator<Item = S>) -> Self {
        Self {
            ops: ops.into_iter().collect(),
            ..Self::default()
        }
    }

    /// Reaches `operation` on one peer only.
    #[must_use]
    pub fn pinned(mut self, peer: PeerId, operation: &str) -> Self {
        self.peer_pinned.entry(peer).or_default().insert(operation);
        self
    }

    /// Reaches one more operation, whichever node serves it.
    #[must_use]
    pub fn with(mut self, operation: &str) -> Self {
        self.ops.insert(operation);
        self
    }

    /// Reaches everything that an attached peer serves as well, by calls that name the peer, as far as the
    /// [`CompositionAuthority`](crate::CompositionAuthority) has the scope `peer:route:` with the peer's id. A
    /// request from outside that names the peer needs the same scope.
    #[must_use]
    pub fn with_routing(mut self) -> Self {
        self.routed = RoutedReach::Everything;
        self
    }

    /// Like `with_routing`, for these operations alone.
    #[must_use]
    pub fn with_routing_to<S: AsRef<str>>(mut self, ops: impl IntoIterator<Item = S>) -> Self {
        let names: NameSet = ops.into_iter().collect();
        self.routed = match names.is_empty() {
            true => RoutedReach::Nothing,
            false => RoutedReach::Names(names),
        };
        self
    }

    /// Leaves out the internal operations of this node whose access control is open. They are meant for operations that
    /// name them in their reach; code that a caller sends reaches whole namespaces, and no reviewer agreed to what it
    /// calls. A session's own operations stay within reach.
    #[must_use]
    pub fn without_internal(mut self) -> Self {
        self.leaves_internal = true;
        self
    }

    /// Whether it leaves them out.
    #[must_use]
    pub fn leaves_internal(&self) -> bool {
        self.leaves_internal
    }

    /// Its reach on peers that it pins, or by calls that name the peer, without the operations that it reaches
    /// everywhere.
    pub(crate) fn on_peers_alone(&self) -> Self {
        Self {
            ops: NameSet::default(),
            peer_pinned: self.peer_pinned.clone(),
            routed: self.routed.clone(),
            leaves_internal: self.leaves_internal,
        }
    }

    /// Whether a call that names a peer reaches `operation` there by the scope for the way.
    pub(crate) fn routes(&self, operation: &str) -> bool {
        self.routed.contains(operation)
    }

    /// Whether it reaches `operation` on this peer by name, and not with every other node.
    pub(crate) fn pins(&self, operation: &str, peer: &PeerId) -> bool {
        let names = self.peer_pinned.get(peer);
        names.is_some_and(|names| names.contains(operation))
    }

    /// Whether `operation` is reachable: here (`None`), or on a peer, whatever the authority.
    #[must_use]
    pub fn reaches(&self, operation: &str, peer: Option<&PeerId>) -> bool {
        self.ops.contains(operation) || peer.is_some_and(|peer| self.pins(operation, peer))
    }

    /// Whether everything `other` reaches, this one reaches, too.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        let nothing = NameSet::default();
        let pinned = |(peer, names): (&PeerId, &NameSet)| {
            let own = self.peer_pinned.get(peer).unwrap_or(&nothing);
            // An operation that is reached everywhere is reached on this peer as well.
            let mut both = self.ops.clone();
            both.exact.extend(own.exact.iter().cloned());
            both.below.extend(own.below.iter().cloned());
            both.covers(names)
        };
        self.ops.covers(&other.ops)
            && other.peer_pinned.iter().all(pinned)
            && self.routed.covers(&other.routed)
            && (!self.leaves_internal || other.leaves_internal)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn peer(id: &str) -> PeerId {
        id.parse().expect("a peer id")
    }

    #[test]
    fn names_match_exactly_or_below_a_star() {
        let set: NameSet = ["a/b", "fs/*", "/x/y/*"].into_iter().collect();
        assert!(set.contains("a/b") && set.contains("fs/read") && set.contains("fs/a/b"));
        assert!(set.contains("x/y/z"));
        assert!(!set.contains("a/c") && !set.contains("fs") && !set.contains("fsx/read"));
        assert!(!set.contains("x/z") && !NameSet::default().contains("a/b"));
        // A lone star does not stand for everything.
        assert!(!["*"].into_iter().collect::<NameSet>().contains("a/b"));
    }

    #[test]
    fn a_pinned_operation_is_reached_on_its_peer_only() {
        let scope = ScopedPeerEnv::new(["a/b"]).pinned(peer("w1"), "c/d");
        assert!(scope.reaches("a/b", None) && scope.reaches("a/b", Some(&peer("w2"))));
        assert!(scope.reaches("c/d", Some(&peer("w1"))));
        assert!(!scope.reaches("c/d", Some(&peer("w2"))) && !scope.reaches("c/d", None));
    }

    #[test]
    fn a_scope_covers_what_reaches_no_further() {
        let wide = ScopedPeerEnv::new(["fs/*", "a/b"]).pinned(peer("w1"), "c/d");
        assert!(wide.covers(&ScopedPeerEnv::default()));
        assert!(wide.covers(&ScopedPeerEnv::new(["fs/read", "fs/deep/*"])));
        assert!(wide.covers(&ScopedPeerEnv::default().pinned(peer("w1"), "c/d")));
        assert!(wide.covers(&ScopedPeerEnv::default().pinned(peer("w9"), "a/b")));
        assert!(!wide.covers(&ScopedPeerEnv::new(["a/*"])));
        assert!(!wide.covers(&ScopedPeerEnv::new(["c/d"])));
        assert!(!wide.covers(&ScopedPeerEnv::default().pinned(peer("w2"), "c/d")));
    }

    #[test]
    fn what_is_routed_is_reached_by_its_scope_alone() {
        let all = ScopedPeerEnv::new(["a/b"]).with_routing();
        let some = ScopedPeerEnv::default().with_routing_to(["c/*"]);
        assert!(all.routes("c/d") && some.routes("c/d") && !some.routes("a/b"));
        let w1 = peer("w1");
        assert!(!all.reaches("c/d", Some(&w1)) && !some.reaches("c/d", Some(&w1)));
        assert!(!all.reaches("c/d", None) && !some.reaches("c/d", None));
        let wider = ScopedPeerEnv::default().with_routing_to(["c/d", "e/f"]);
        assert!(all.covers(&some) && all.covers(&wider) && some.covers(&some));
        assert!(!some.covers(&wider) && !some.covers(&all));
        assert!(!ScopedPeerEnv::new(["c/*"]).covers(&some));
        assert!(some.covers(&ScopedPeerEnv::default().with_routing_to(["c/d"])));
        let nothing = ScopedPeerEnv::default();
        assert_eq!(nothing.clone().with_routing_to([""; 0]), nothing);
    }

    #[test]
    fn what_leaves_internal_operations_out_covers_nothing_that_reaches_them() {
        let all = ScopedPeerEnv::new(["a/*"]);
        let some = all.clone().without_internal();
        assert!(all.covers(&some) && some.covers(&some) && !some.covers(&all));
        assert!(some.on_peers_alone().leaves_internal());
    }

    proptest! {
        #[test]
        fn a_covering_scope_reaches_all_that_a_covered_one_does(
            wide in vec("[ab]/([ab]/)?[ab*]", 0..4),
            narrow in vec("[ab]/([ab]/)?[ab*]", 0..4),
            pinned in vec("[ab]/([ab]/)?[ab*]", 0..2),
            name in "[ab]/([ab]/)?[ab]",
        ) {
            let wide = ScopedPeerEnv::new(wide);
            let pin = |scope: ScopedPeerEnv, name: &String| scope.pinned(peer("w"), name);
            let narrow = pinned.iter().fold(ScopedPeerEnv::new(narrow), pin);
            if wide.covers(&narrow) {
                for at in [None, Some(&peer("w")), Some(&peer("v"))] {
                    prop_assert!(!narrow.reaches(&name, at) || wide.reaches(&name, at));
                }
            }
        }
    }
}
