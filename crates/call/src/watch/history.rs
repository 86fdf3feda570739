//! What operations there are, and what changed lately.
//!
//! A watcher keeps nothing but the number of the last change that it heard of. What it needs to hear of the changes
//! since then is kept here once for all watchers, within [`WATCH_HISTORY_BYTES`]: names, and the rules that they had
//! before. A watcher that is further behind gets the whole list of the source that changed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;

use alknet_core::PeerId;

use super::RegistryChange;
use crate::access::AccessControl;
use crate::error::CallError;
use crate::limits::{PEERS_MAX, WATCH_HISTORY_BYTES};
use crate::spec::OperationSpec;

/// Sources that are kept at most: this node, every peer attached, and as many that are gone.
const SOURCES_MAX: usize = 1 + 2 * PEERS_MAX;
/// Bytes that one operation in a step counts for beside its name and its rule.
const ENTRY_BYTES: usize = 64;
/// Bytes that a step counts for beside what is in it.
const STEP_BYTES: usize = 128;

/// Whether a watcher may hear of operations with this rule.
pub(super) type Shows<'a> = &'a dyn Fn(&AccessControl) -> bool;

/// The operations of this node and of its peers, and their last changes.
#[derive(Debug, Default)]
pub(super) struct RegistryHistory {
    /// By whose they are: `None` are this node's own.
    sources: BTreeMap<Option<PeerId>, OperationSource>,
    /// Whose change each number is, of those that some source still has.
    order: BTreeMap<u64, Option<PeerId>>,
    last: u64,
    /// The last change of a peer that is gone and forgotten.
    forgotten: u64,
}

impl RegistryHistory {
    /// The number of the last change.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// The hash of the node's own operations.
    pub(super) fn registry(&self) -> &str {
        let own = self.sources.get(&None);
        own.map_or("", |own| &own.registry)
    }

    /// The operations of a source are these from now on. Returns whether that is a change.
    pub(super) fn set<'a>(
        &mut self,
        whose: Option<&PeerId>,
        registry: &str,
        specs: impl IntoIterator<Item = &'a OperationSpec>,
    ) -> bool {
        let rule = |spec: &'a OperationSpec| (spec.name.as_str(), &spec.access_control);
        let rules: BTreeMap<_, _> = specs.into_iter().map(rule).collect();
        let whose = whose.cloned();
        if !self.sources.contains_key(&whose) && rules.is_empty() && registry.is_empty() {
            return false;
        }
        let serial = self.last + 1;
        let source = self.sources.entry(whose.clone()).or_default();
        if !source.set(serial, registry, &rules) {
            return false;
        }
        self.last = serial;
        self.order.insert(serial, whose);
        self.trim();
        self.forget_gone();
        true
    }

    /// Forgets changes until the rest is within bounds, the oldest of the source with most first: a source that changes
    /// much takes nothing from the others.
    fn trim(&mut self) {
        let mut bytes: usize = self.sources.values().map(|source| source.bytes).sum();
        while bytes > WATCH_HISTORY_BYTES {
            let largest = self.sources.values_mut().max_by_key(|source| source.bytes);
            let Some(largest) = largest else {
                return;
            };
            bytes -= largest.bytes;
            if let Some(serial) = largest.forget_oldest() {
                self.order.remove(&serial);
            }
            bytes += largest.bytes;
        }
    }

    /// Forgets peers that are gone, those that went first before others, where there are too many.
    fn forget_gone(&mut self) {
        while self.sources.len() > SOURCES_MAX {
            let gone = self.sources.iter().filter(|(whose, source)| {
                whose.is_some() && source.rules.is_empty() && source.registry.is_empty()
            });
            let first = gone.min_by_key(|(_, source)| source.last());
            let Some(first) = first.map(|(whose, _)| whose.clone()) else {
                return;
            };
            if let Some(source) = self.sources.remove(&first) {
                self.forgotten = self.forgotten.max(source.last());
                for step in source.steps {
                    self.order.remove(&step.serial);
                }
            }
        }
    }

    /// What a watcher hears next that has heard of every change up to number `seen`, which is moved on. Several changes
    /// of one source in a row are one. `lists` says whether it hears of peers.
    pub(super) fn next(
        &self,
        seen: &mut u64,
        shows: Shows<'_>,
        lists: bool,
    ) -> Option<Result<RegistryChange, CallError>> {
        if lists && *seen < self.forgotten {
            *seen = self.last;
            let message = "more has changed than the node keeps for a watcher; subscribe again";
            return Some(Err(CallError::unavailable(message)));
        }
        loop {
            let since = self.order.range((Excluded(*seen), Unbounded));
            let mut since = since.filter(|(_, whose)| lists || whose.is_none());
            let Some((first, whose)) = since.next() else {
                *seen = self.last;
                return None;
            };
            let in_a_row = since.take_while(|(_, other)| *other == whose);
            let to = in_a_row.last().map_or(*first, |(serial, _)| *serial);
            let from = std::mem::replace(seen, to);
            let source = self.sources.get(whose);
            let change = source.and_then(|source| source.change(from, to, shows));
            if let Some(change) = change {
                return Some(Ok(RegistryChange {
                    peer: whose.clone(),
                    ..change
                }));
            }
        }
    }
}

/// The operations of this node or of one peer, and who may hear of each.
#[derive(Debug, Default)]
struct OperationSource {
    registry: Arc<str>,
    rules: BTreeMap<Arc<str>, Arc<AccessControl>>,
    /// What changed, oldest first. Only of the first it may be forgotten what.
    steps: VecDeque<HistoryStep>,
    /// Bytes of the steps.
    bytes: usize,
}

/// One change.
#[derive(Debug)]
struct HistoryStep {
    serial: u64,
    /// `None` where that is forgotten.
    before: Option<ReplacedOperations>,
}

/// What a change replaced.
#[derive(Debug)]
struct ReplacedOperations {
    registry: Arc<str>,
    /// Of each operation that was changed: `None` where there was none of the name.
    rules: BTreeMap<Arc<str>, Option<Arc<AccessControl>>>,
    bytes: usize,
}

impl ReplacedOperations {
    fn new(registry: Arc<str>, rules: BTreeMap<Arc<str>, Option<Arc<AccessControl>>>) -> Self {
        let bytes = |(name, rule): (&Arc<str>, &Option<Arc<AccessControl>>)| {
            let rule = rule.as_ref().map_or(0, |rule| rule.kept_bytes());
            ENTRY_BYTES + name.len() + rule
        };
        Self {
            bytes: STEP_BYTES + registry.len() + rules.iter().map(bytes).sum::<usize>(),
            registry,
            rules,
        }
    }
}

impl OperationSource {
    /// The number of its last change.
    fn last(&self) -> u64 {
        self.steps.back().map_or(0, |step| step.serial)
    }

    fn set(&mut self, serial: u64, registry: &str, rules: &BTreeMap<&str, &AccessControl>) -> bool {
        let (mut now, mut before) = (BTreeMap::new(), BTreeMap::new());
        for (&name, &rule) in rules {
            match self.rules.get_key_value(name) {
                Some((name, same)) if **same == *rule => {
                    now.insert(Arc::clone(name), Arc::clone(same));
                }
                found => {
                    let name = found.map_or_else(|| name.into(), |(name, _)| Arc::clone(name));
                    before.insert(Arc::clone(&name), found.map(|(_, rule)| Arc::clone(rule)));
                    now.insert(name, Arc::new(rule.clone()));
                }
            }
        }
        let gone = self
            .rules
            .iter()
            .filter(|(name, _)| !now.contains_key(*name));
        before.extend(gone.map(|(name, rule)| (Arc::clone(name), Some(Arc::clone(rule)))));
        if before.is_empty() && *self.registry == *registry {
            return false;
        }
        let registry = std::mem::replace(&mut self.registry, registry.into());
        let before = ReplacedOperations::new(registry, before);
        self.rules = now;
        self.bytes += before.bytes;
        self.steps.push_back(HistoryStep {
            serial,
            before: Some(before),
        });
        true
    }

    /// Forgets what its oldest change was. Returns the number of one that nothing tells of any more.
    fn forget_oldest(&mut self) -> Option<u64> {
        let is_forgotten = self.steps.front().is_some_and(|step| step.before.is_none());
        let gone = match is_forgotten {
            true => self.steps.pop_front(),
            false => None,
        };
        let oldest = self.steps.front_mut();
        if let Some(before) = oldest.and_then(|step| step.before.take()) {
            self.bytes -= before.bytes;
        }
        gone.map(|step| step.serial)
    }

    /// What became of the changes after number `from` up to number `to`.
    fn change(&self, from: u64, to: u64, shows: Shows<'_>) -> Option<RegistryChange> {
        let within = |step: &&HistoryStep| from < step.serial && step.serial <= to;
        if self
            .steps
            .iter()
            .filter(within)
            .any(|step| step.before.is_none())
        {
            return Some(self.whole(to, shows));
        }
        let (before, after) = (self.replaced_since(from), self.replaced_since(to));
        let (mut added, mut removed) = (Vec::new(), Vec::new());
        // What was not replaced since `from` is as it was.
        for (&name, &rule) in &before {
            let was = rule.is_some_and(shows);
            let is = self.rule_in(&after, name).is_some_and(shows);
            match (was, is) {
                (false, true) => added.push(name.to_owned()),
                (true, false) => removed.push(name.to_owned()),
                _ => {}
            }
        }
        let (earlier, registry) = (self.registry_at(from), self.registry_at(to));
        let is_same = added.is_empty() && removed.is_empty() && earlier == registry;
        (!is_same).then(|| RegistryChange {
            registry: registry.to_owned(),
            added,
            removed,
            ..RegistryChange::default()
        })
    }

    /// Everything that was there after change `to`.
    fn whole(&self, to: u64, shows: Shows<'_>) -> RegistryChange {
        let after = self.replaced_since(to);
        let mut names: BTreeSet<_> = self.rules.keys().map(AsRef::as_ref).collect();
        names.extend(after.keys().copied());
        names.retain(|name| self.rule_in(&after, name).is_some_and(shows));
        RegistryChange {
            registry: self.registry_at(to).to_owned(),
            added: names.into_iter().map(str::to_owned).collect(),
            whole: true,
            ..RegistryChange::default()
        }
    }

    /// The rules that changes after number `serial` replaced, as they were after that one; `None` where there was no
    /// operation of the name.
    fn replaced_since(&self, serial: u64) -> Replaced<'_> {
        let mut replaced = Replaced::new();
        for before in self.since(serial) {
            for (name, rule) in &before.rules {
                // The oldest change has the rule of that time.
                replaced.entry(name).or_insert(rule.as_deref());
            }
        }
        replaced
    }

    fn rule_in<'s>(&'s self, replaced: &Replaced<'s>, name: &str) -> Option<&'s AccessControl> {
        match replaced.get(name) {
            Some(rule) => *rule,
            None => self.rules.get(name).map(AsRef::as_ref),
        }
    }

    fn registry_at(&self, serial: u64) -> &str {
        let replaced = self.since(serial).next();
        replaced.map_or(&self.registry, |before| &before.registry)
    }

    /// What the changes after number `serial` replaced, oldest first.
    fn since(&self, serial: u64) -> impl Iterator<Item = &ReplacedOperations> {
        let first = self.steps.partition_point(|step| step.serial <= serial);
        let since = self.steps.range(first..);
        since.filter_map(|step| step.before.as_ref())
    }
}

/// Rules as they were, by the names of their operations.
type Replaced<'s> = BTreeMap<&'s str, Option<&'s AccessControl>>;

#[cfg(test)]
impl RegistryHistory {
    pub(super) fn kept_bytes(&self) -> usize {
        self.sources.values().map(|source| source.bytes).sum()
    }

    pub(super) fn sources(&self) -> usize {
        self.sources.len()
    }

    pub(super) fn rule(&self, peer: &PeerId, name: &str) -> Option<std::sync::Weak<AccessControl>> {
        let source = self.sources.get(&Some(peer.clone()))?;
        source.rules.get(name).map(Arc::downgrade)
    }
}
