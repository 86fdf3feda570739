//! The present operations, and their last changes.
//!
//! A watcher stores only the number of the last change that it received. This module stores the changes since then
//! once for all watchers, within [`WATCH_HISTORY_BYTES`] and [`WATCH_STEPS_MAX`]: names, and their rules before and
//! after. A watcher that is further behind gets the whole list of the source that changed.
//!
//! Each change has its state before and after, so that a watcher that is behind goes through each change once,
//! whatever came after it. It takes the missed changes in turns, and goes through them after it released the lock.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;

use alknet_core::PeerId;

use super::RegistryChange;
use crate::access::AccessControl;
use crate::limits::{PEERS_MAX, WATCH_HISTORY_BYTES, WATCH_STEPS_MAX};
use crate::spec::OperationSpec;

/// The limit of sources: this node, every attached peer, and as many that are gone.
const SOURCES_MAX: usize = 1 + 2 * PEERS_MAX;
/// Operations of the changes that a watcher takes in one turn, after which other tasks have theirs. A turn has more
/// only where one change has more by itself, which an import bounds, or where the watcher gets a whole list.
pub(super) const TURN_OPERATIONS_MAX: usize = 1024;
/// Bytes that one operation in a step counts for, apart from its name and its rule.
const ENTRY_BYTES: usize = 80;
/// Bytes that a step counts for, apart from its contents.
const STEP_BYTES: usize = 128;

/// Whether a watcher may see operations with this rule.
pub(super) type AccessFilter<'a> = &'a dyn Fn(&AccessControl) -> bool;

/// The sources whose whole lists a watcher still gets after its scopes changed.
pub(super) enum ListsDue {
    None,
    All,
    /// Those behind this one, in the order of the history.
    After(Option<PeerId>),
}

/// The operations of this node and of its peers, and their last changes.
#[derive(Debug, Default)]
pub(super) struct RegistryHistory {
    /// By the peer that serves them: `None` are this node's own.
    sources: BTreeMap<Option<PeerId>, OperationSource>,
    /// The source of each change, of those that some source still has.
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

    /// Replaces the operations of a source. Returns whether that is a change.
    pub(super) fn set<'a>(
        &mut self,
        owner: Option<&PeerId>,
        registry: &str,
        specs: impl IntoIterator<Item = &'a OperationSpec>,
    ) -> bool {
        let rule = |spec: &'a OperationSpec| (spec.name.as_str(), &spec.access_control);
        let rules: BTreeMap<_, _> = specs.into_iter().map(rule).collect();
        let owner = owner.cloned();
        if !self.sources.contains_key(&owner) && rules.is_empty() && registry.is_empty() {
            return false;
        }
        let serial = self.last + 1;
        let source = self.sources.entry(owner.clone()).or_default();
        if !source.set(serial, registry, &rules) {
            return false;
        }
        let forgotten = source.forget_beyond(WATCH_STEPS_MAX);
        self.last = serial;
        self.order.insert(serial, owner);
        if let Some(forgotten) = forgotten {
            self.order.remove(&forgotten);
        }
        self.trim();
        self.forget_gone();
        true
    }

    /// Forgets changes until the rest is within bounds, the oldest of the largest source first: a source that changes
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

    /// Forgets peers that are gone where there are too many, in the order in which they went.
    fn forget_gone(&mut self) {
        while self.sources.len() > SOURCES_MAX {
            let gone = self.sources.iter().filter(|(owner, source)| {
                owner.is_some() && source.rules.is_empty() && source.registry.is_empty()
            });
            let first = gone.min_by_key(|(_, source)| source.last());
            // Every other source is attached, and the table of peers bounds those.
            let Some(first) = first.map(|(owner, _)| owner.clone()) else {
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

    /// The next changes for a watcher that has received every change up to number `seen`, which this moves on. It
    /// takes several changes of one source in a row together, up to [`TURN_OPERATIONS_MAX`]. `lists` says whether the
    /// watcher gets changes of peers.
    pub(super) fn next(&self, seen: &mut u64, lists: bool) -> HistoryTurn {
        // The missed changes may include removed operations, which no present list shows.
        if lists && *seen < self.forgotten {
            *seen = self.last;
            return HistoryTurn::Forgotten;
        }
        let Some((owner, to)) = self.in_a_row(*seen, lists) else {
            *seen = self.last;
            return HistoryTurn::UpToDate;
        };
        let source = self.sources.get(&owner);
        let (last, missed) = source.map_or_else(Default::default, |it| it.missed(*seen, to));
        // Every turn moves the watcher on.
        *seen = last.max(*seen + 1);
        HistoryTurn::Missed(MissedChanges { owner, ..missed })
    }

    /// The whole list of the next source that is due, and that source. `lists` as for [`next`](Self::next).
    pub(super) fn next_whole(
        &self,
        due: &ListsDue,
        lists: bool,
    ) -> Option<(Option<PeerId>, MissedChanges)> {
        let after = match due {
            ListsDue::None => return None,
            ListsDue::All => Unbounded,
            ListsDue::After(owner) => Excluded(owner),
        };
        let mut sources = self.sources.range((after, Unbounded));
        let (owner, source) = sources.next()?;
        // The node's own operations are first in the order.
        if owner.is_some() && !lists {
            return None;
        }
        let missed = MissedChanges {
            owner: owner.clone(),
            steps: Vec::new(),
            whole: Some(source.whole(source.steps.len())),
        };
        Some((owner.clone(), missed))
    }

    /// The source of the first change after number `seen`, and the last of its changes before one of another source.
    fn in_a_row(&self, seen: u64, lists: bool) -> Option<(Option<PeerId>, u64)> {
        if !lists {
            // The changes of peers do not concern this watcher, however many there are.
            let last = self.sources.get(&None)?.last();
            return (last > seen).then_some((None, last));
        }
        let mut since = self.order.range((Excluded(seen), Unbounded));
        let (first, owner) = since.next()?;
        let in_a_row = since.take_while(|(_, other)| *other == owner);
        let to = in_a_row.last().map_or(*first, |(serial, _)| *serial);
        Some((owner.clone(), to))
    }
}

/// The next work of a watcher.
pub(super) enum HistoryTurn {
    /// The missed changes may include a change of a peer that the node has forgotten.
    Forgotten,
    /// Go through these.
    Missed(MissedChanges),
    /// No new change: the reader waits.
    UpToDate,
}

/// Changes of one source in a row. A watcher goes through them without the lock.
#[derive(Debug, Default)]
pub(super) struct MissedChanges {
    owner: Option<PeerId>,
    /// Oldest first; empty where one of them is forgotten.
    steps: Vec<Arc<ReplacedOperations>>,
    whole: Option<WholeSource>,
}

/// The state of a source after the last of some changes.
#[derive(Debug)]
struct WholeSource {
    registry: Arc<str>,
    /// The present operations.
    rules: Arc<SourceRules>,
    /// The changes after those, oldest first.
    later: Vec<Arc<ReplacedOperations>>,
}

impl MissedChanges {
    /// The event for the watcher; `None` where the changes do not concern it.
    pub(super) fn change(self, shows: AccessFilter<'_>) -> Option<RegistryChange> {
        let change = match &self.whole {
            Some(whole) => Some(whole.change(shows)),
            None => self.difference(shows),
        };
        change.map(|change| RegistryChange {
            peer: self.owner,
            ..change
        })
    }

    fn difference(&self, shows: AccessFilter<'_>) -> Option<RegistryChange> {
        let (first, last) = (self.steps.first()?, self.steps.last()?);
        // The first and the last change of each operation.
        let mut rules = BTreeMap::<&str, (&ReplacedRule, &ReplacedRule)>::new();
        for (name, rule) in self.steps.iter().flat_map(|step| &step.rules) {
            let known = rules.entry(name);
            known
                .and_modify(|(_, last)| *last = rule)
                .or_insert((rule, rule));
        }
        let (mut added, mut removed) = (Vec::new(), Vec::new());
        for (name, (first, last)) in rules {
            let was = first.before.as_deref().is_some_and(shows);
            let is = last.after.as_deref().is_some_and(shows);
            match (was, is) {
                (false, true) => added.push(name.to_owned()),
                (true, false) => removed.push(name.to_owned()),
                _ => {}
            }
        }
        let is_same = added.is_empty() && removed.is_empty() && first.before == last.after;
        (!is_same).then(|| RegistryChange {
            registry: String::from(&*last.after),
            added,
            removed,
            ..RegistryChange::default()
        })
    }
}

impl WholeSource {
    fn change(&self, shows: AccessFilter<'_>) -> RegistryChange {
        let mut rules: BTreeMap<&str, Option<&AccessControl>> = BTreeMap::new();
        for (name, rule) in self.later.iter().flat_map(|step| &step.rules) {
            // The oldest change has the rule of that time.
            rules.entry(name).or_insert(rule.before.as_deref());
        }
        for (name, rule) in &*self.rules {
            rules.entry(name).or_insert(Some(&**rule));
        }
        let shown = rules
            .into_iter()
            .filter(|(_, rule)| rule.is_some_and(shows));
        RegistryChange {
            registry: String::from(&*self.registry),
            added: shown.map(|(name, _)| name.to_owned()).collect(),
            whole: true,
            ..RegistryChange::default()
        }
    }
}

/// Operations of a source by name, and the rule of each.
type SourceRules = BTreeMap<Arc<str>, Arc<AccessControl>>;

/// The operations of this node or of one peer.
#[derive(Debug, Default)]
struct OperationSource {
    registry: Arc<str>,
    rules: Arc<SourceRules>,
    /// The changes, oldest first. Only the first may have lost its contents.
    steps: VecDeque<HistoryStep>,
    /// Bytes of the steps.
    bytes: usize,
}

/// One change.
#[derive(Debug)]
struct HistoryStep {
    serial: u64,
    /// `None` where the contents are forgotten.
    replaced: Option<Arc<ReplacedOperations>>,
}

/// The rules before and after a change.
#[derive(Debug)]
struct ReplacedOperations {
    /// The hash before the change.
    before: Arc<str>,
    /// The hash after the change.
    after: Arc<str>,
    /// The rules of each changed operation.
    rules: BTreeMap<Arc<str>, ReplacedRule>,
    bytes: usize,
}

/// A replaced rule. `None` stands for no operation of the name.
#[derive(Debug)]
struct ReplacedRule {
    before: Option<Arc<AccessControl>>,
    /// The next change of the name has it as its earlier rule, or it is in force: it takes no room of its own.
    after: Option<Arc<AccessControl>>,
}

impl ReplacedOperations {
    fn new(before: Arc<str>, after: Arc<str>, rules: BTreeMap<Arc<str>, ReplacedRule>) -> Self {
        let bytes = |(name, rule): (&Arc<str>, &ReplacedRule)| {
            let rule = rule.before.as_ref().map_or(0, |rule| rule.kept_bytes());
            ENTRY_BYTES + name.len() + rule
        };
        Self {
            bytes: STEP_BYTES + before.len() + rules.iter().map(bytes).sum::<usize>(),
            before,
            after,
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
        let (mut now, mut replaced) = (SourceRules::new(), BTreeMap::new());
        for (&name, &rule) in rules {
            match self.rules.get_key_value(name) {
                Some((name, same)) if **same == *rule => {
                    now.insert(Arc::clone(name), Arc::clone(same));
                }
                found => {
                    let name = found.map_or_else(|| name.into(), |(name, _)| Arc::clone(name));
                    let rule = Arc::new(rule.clone());
                    let of_name = ReplacedRule {
                        before: found.map(|(_, rule)| Arc::clone(rule)),
                        after: Some(Arc::clone(&rule)),
                    };
                    replaced.insert(Arc::clone(&name), of_name);
                    now.insert(name, rule);
                }
            }
        }
        let gone = self.rules.iter();
        let gone = gone.filter(|(name, _)| !now.contains_key(*name));
        replaced.extend(gone.map(|(name, rule)| {
            let of_name = ReplacedRule {
                before: Some(Arc::clone(rule)),
                after: None,
            };
            (Arc::clone(name), of_name)
        }));
        // An import often reads what the node has already: watchers need no notice of that.
        if replaced.is_empty() && *self.registry == *registry {
            return false;
        }
        let before = std::mem::replace(&mut self.registry, registry.into());
        let replaced = ReplacedOperations::new(before, Arc::clone(&self.registry), replaced);
        self.rules = Arc::new(now);
        self.bytes += replaced.bytes;
        self.steps.push_back(HistoryStep {
            serial,
            replaced: Some(Arc::new(replaced)),
        });
        true
    }

    /// Forgets the contents of its oldest change. Returns the number of a change of which nothing is left.
    fn forget_oldest(&mut self) -> Option<u64> {
        let gone = match self.is_first_forgotten() {
            true => self.steps.pop_front(),
            false => None,
        };
        let oldest = self.steps.front_mut();
        if let Some(replaced) = oldest.and_then(|step| step.replaced.take()) {
            self.bytes -= replaced.bytes;
        }
        gone.map(|step| step.serial)
    }

    /// Forgets the oldest change where there are more than `most`, of which the last is new. Returns as
    /// [`forget_oldest`](Self::forget_oldest).
    fn forget_beyond(&mut self, most: usize) -> Option<u64> {
        let known = self.steps.len() - usize::from(self.is_first_forgotten());
        match known > most {
            true => self.forget_oldest(),
            false => None,
        }
    }

    fn is_first_forgotten(&self) -> bool {
        let first = self.steps.front();
        first.is_some_and(|step| step.replaced.is_none())
    }

    /// Its changes after number `from` up to number `to`, as far as one turn goes, and the number of the last of
    /// them.
    fn missed(&self, from: u64, to: u64) -> (u64, MissedChanges) {
        let index_after = |serial| self.steps.partition_point(|step| step.serial <= serial);
        let (start, end) = (index_after(from), index_after(to));
        let mut missed = MissedChanges::default();
        // The oldest missed change is forgotten: only the whole list is exact.
        if start == 0 && end > 0 && self.is_first_forgotten() {
            missed.whole = Some(self.whole(end));
            return (to, missed);
        }
        let (mut last, mut operations) = (to, 0);
        for step in self.steps.range(start..end) {
            let Some(replaced) = &step.replaced else {
                continue;
            };
            operations += replaced.rules.len();
            // At least one change a turn: otherwise a large one would block the watcher.
            if operations > TURN_OPERATIONS_MAX && !missed.steps.is_empty() {
                break;
            }
            missed.steps.push(Arc::clone(replaced));
            last = step.serial;
        }
        (last, missed)
    }

    /// The state before the step with the index `end`.
    fn whole(&self, end: usize) -> WholeSource {
        let later = self.steps.range(end..);
        let later: Vec<_> = later.filter_map(|step| step.replaced.clone()).collect();
        let registry = later.first().map_or(&self.registry, |step| &step.before);
        WholeSource {
            registry: Arc::clone(registry),
            rules: Arc::clone(&self.rules),
            later,
        }
    }
}

#[cfg(test)]
impl RegistryHistory {
    pub(super) fn kept_bytes(&self) -> usize {
        self.sources.values().map(|source| source.bytes).sum()
    }

    pub(super) fn sources(&self) -> usize {
        self.sources.len()
    }

    /// The changes whose contents are still known.
    pub(super) fn kept_steps(&self) -> usize {
        let steps = self.sources.values().flat_map(|source| &source.steps);
        steps.filter(|step| step.replaced.is_some()).count()
    }

    pub(super) fn rule(&self, peer: &PeerId, name: &str) -> Option<std::sync::Weak<AccessControl>> {
        let source = self.sources.get(&Some(peer.clone()))?;
        source.rules.get(name).map(Arc::downgrade)
    }
}

#[cfg(test)]
impl MissedChanges {
    /// The operations that the watcher goes through, counted as often as it does.
    pub(super) fn operations(&self) -> usize {
        let whole = self.whole.iter();
        let now: usize = whole.clone().map(|whole| whole.rules.len()).sum();
        let steps = whole.flat_map(|whole| &whole.later).chain(&self.steps);
        now + steps.map(|step| step.rules.len()).sum::<usize>()
    }
}
