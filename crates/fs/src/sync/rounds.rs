//! Rounds of sessions with the peers of synchronised buckets: when something is new here, and after a pause.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use alknet_core::PeerId;
use alknet_store::{BucketName, ContentFetchMode, ContentHash, SyncableBranch};
use tokio::sync::Semaphore;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::error::{ByeCode, SyncError};
use super::limits::{
    AWAITED_FAILURES_MAX, AWAITED_FETCHES_MAX, BRANCHES_MAX, DIALS_MAX, FETCHES_TIME_MAX,
    GATHER_TIME, PAUSE_MAX, PAUSE_MIN, PAUSE_SHORT, ROUND_SESSIONS_MAX, SESSION_TIME_MAX,
};
use super::opening::{PeerLink, SyncDialer};
use super::pauses::pause_after;
use super::records::SyncTarget;
use super::service::SyncService;
use crate::rights::FsRight;

impl SyncService {
    /// Keeps every synchronised bucket the same as those of the peers that the node can dial and that may synchronise it,
    /// until the node stops. A session begins when the branch has commits that the peer has not heard of, and `pause` after
    /// the one before. After an error the pause doubles each time.
    ///
    /// Nothing happens before the store is opened for the first time.
    pub async fn keep_synced(&self, dialer: Arc<dyn SyncDialer>, pause: Duration) {
        let mut closing = self.files().closing();
        let rounds = SyncRounds {
            service: self.clone(),
            dialer,
            pause,
            attempts: HashMap::new(),
            running: JoinSet::new(),
            busy: HashMap::new(),
            permits: Arc::new(Semaphore::new(DIALS_MAX)),
        };
        tokio::select! {
            () = rounds.run() => {}
            _ = closing.wait_for(|is_closing| *is_closing) => {}
        }
    }
}

/// The last session of this node with a peer about a branch.
#[derive(Clone, Copy, Debug)]
struct SyncAttempt {
    failures: u32,
    /// Number of the last commit of the branch before it.
    head_seq: u64,
    /// When it ended.
    ended: Instant,
    /// When the next session is due if nothing is new; after a failure, not before.
    next: Instant,
}

/// The sessions of this node.
struct SyncRounds {
    service: SyncService,
    dialer: Arc<dyn SyncDialer>,
    pause: Duration,
    attempts: HashMap<SyncTarget, SyncAttempt>,
    running: JoinSet<Vec<EndedTarget>>,
    /// Peers with a task, which has their sessions one after the other, and what these are about.
    busy: HashMap<Id, (PeerId, Vec<DueTarget>)>,
    permits: Arc<Semaphore>,
}

/// A session that is due.
#[derive(Clone, Debug)]
struct DueTarget {
    target: SyncTarget,
    /// Number of the last commit of the branch.
    head_seq: u64,
}

/// What of an error decides when the peer is asked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SessionFailure {
    /// A person has to change something first.
    Lasting,
    /// It passes by itself.
    Passing,
}

impl SyncRounds {
    async fn run(mut self) {
        self.service.files().first_opening().await;
        loop {
            // Before the branches are read: a commit in between is seen by one of both.
            let events = match self.service.files().opened() {
                Ok(Some(lease)) => Some(lease.db().last_event()),
                _ => None,
            };
            let next = self.begin_due().await;
            let changed = async {
                if let Some(mut events) = events
                    && events.changed().await.is_ok()
                {
                    sleep(GATHER_TIME).await;
                } else {
                    // The store is not open: the time decides.
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = changed => {}
                () = sleep_until(next) => {}
                Some(done) = self.running.join_next_with_id() => self.note(done),
            }
        }
    }

    /// Begins the sessions that are due, and returns when the next one is.
    async fn begin_due(&mut self) -> Instant {
        let now = Instant::now();
        let mut next = now + self.pause;
        let Some(branches) = self.branches().await else {
            return next;
        };
        let busy = self.busy.values().map(|(peer, _)| peer.clone());
        let busy: HashSet<PeerId> = busy.collect();
        let mut due: BTreeMap<PeerId, Vec<DueTarget>> = BTreeMap::new();
        let mut known = HashSet::new();
        for peer in self.dialer.peers() {
            let Some(identity) = self.dialer.identity(&peer) else {
                continue;
            };
            let allowed = branches
                .iter()
                .filter(|it| FsRight::Sync.is_allowed(&identity.scopes, &it.bucket));
            for branch in allowed {
                let target = SyncTarget {
                    bucket: branch.bucket.clone(),
                    branch: branch.branch.clone(),
                    peer: peer.clone(),
                };
                let head_seq = branch.head_seq;
                let at = self.due_at(&target, head_seq, now);
                known.insert(target.clone());
                let target = DueTarget { target, head_seq };
                match (busy.contains(&peer), at <= now) {
                    // Looked at again when the task of the peer ends.
                    (true, _) => {}
                    (false, true) => due.entry(peer.clone()).or_default().push(target),
                    (false, false) => next = next.min(at),
                }
            }
        }
        self.attempts.retain(|target, _| known.contains(target));
        for (peer, targets) in due {
            let ended = |due: &DueTarget| Some(self.attempts.get(&due.target)?.ended);
            let (targets, others) = take_turns(targets, ended);
            self.begin(peer, targets, others);
        }
        next
    }

    /// The branches that are synchronised. `None` if they cannot be read now.
    async fn branches(&self) -> Option<Vec<SyncableBranch>> {
        let lease = self.service.files().opened().ok()??;
        let read = lease.read(|tx| tx.syncable_branches(BRANCHES_MAX)).await;
        match read {
            Ok(branches) => Some(branches),
            Err(error) => {
                tracing::debug!(%error, "the synchronised branches were not read");
                None
            }
        }
    }

    /// When a session is due.
    fn due_at(&self, target: &SyncTarget, head_seq: u64, now: Instant) -> Instant {
        let Some(attempt) = self.attempts.get(target) else {
            return now;
        };
        // Also a peer's session may have brought both to the same.
        let equal_seq = self.service.records().equal_seq(target);
        let seen_seq = equal_seq.unwrap_or_default().max(attempt.head_seq);
        match attempt.failures == 0 && head_seq > seen_seq {
            true => now,
            false => attempt.next,
        }
    }

    /// Begins the task of a peer.
    fn begin(&mut self, peer: PeerId, targets: Vec<DueTarget>, others: Vec<DueTarget>) {
        let task = PeerRound {
            service: self.service.clone(),
            dialer: Arc::clone(&self.dialer),
            peer: peer.clone(),
            targets: targets.clone(),
            others,
        };
        let permits = Arc::clone(&self.permits);
        let started = self.running.spawn(async move {
            // Closed never: the sessions of this node wait for each other.
            let _permit = permits.acquire_owned().await;
            task.run().await
        });
        self.busy.insert(started.id(), (peer, targets));
    }

    /// Notes how the sessions of a peer ended.
    fn note(&mut self, done: Result<(Id, Vec<EndedTarget>), JoinError>) {
        let now = Instant::now();
        let ended = match done {
            Ok((id, ended)) => {
                self.busy.remove(&id);
                ended
            }
            Err(error) => {
                let (peer, targets) = self.busy.remove(&error.id()).unzip();
                tracing::error!(?peer, "the sessions with a peer ended with a panic");
                let targets = targets.unwrap_or_default().into_iter();
                let failed = |target| (target, Some(SessionFailure::Lasting));
                targets.map(failed).collect()
            }
        };
        for (DueTarget { target, head_seq }, failure) in ended {
            let before = self.attempts.get(&target).map_or(0, |it| it.failures);
            let failures = failure.map_or(0, |_| before.saturating_add(1));
            let pause = match failure {
                None => self.pause,
                Some(SessionFailure::Lasting) => pause_after(failures, PAUSE_MIN, PAUSE_MAX),
                Some(SessionFailure::Passing) => pause_after(failures, PAUSE_SHORT, self.pause),
            };
            let attempt = SyncAttempt {
                failures,
                head_seq,
                ended: now,
                next: now + pause,
            };
            self.attempts.insert(target, attempt);
        }
    }
}

/// What was due with a peer, and how its session failed, if it did.
type EndedTarget = (DueTarget, Option<SessionFailure>);

/// Parts the sessions that are due with a peer into those of its next round and the others. Each bucket gets a turn before
/// another one gets its second, and in each the branch goes first whose last session ended first.
fn take_turns(
    mut due: Vec<DueTarget>,
    ended: impl Fn(&DueTarget) -> Option<Instant>,
) -> (Vec<DueTarget>, Vec<DueTarget>) {
    // What had no session yet is first of all.
    due.sort_by_cached_key(ended);
    let mut turns: HashMap<BucketName, usize> = HashMap::new();
    let counted = due.into_iter().map(|due| {
        let turn = turns.entry(due.target.bucket.clone()).or_default();
        *turn += 1;
        (*turn, due)
    });
    let mut ordered: Vec<_> = counted.collect();
    // Stable: within a turn the order of before stays.
    ordered.sort_by_key(|(turn, _)| *turn);
    let mut ordered: Vec<_> = ordered.into_iter().map(|(_, due)| due).collect();
    let others = ordered.split_off(ordered.len().min(ROUND_SESSIONS_MAX));
    (ordered, others)
}

/// The sessions with one peer, one after the other.
struct PeerRound {
    service: SyncService,
    dialer: Arc<dyn SyncDialer>,
    peer: PeerId,
    targets: Vec<DueTarget>,
    /// Sessions that are due as well, and have their turn in a later round.
    others: Vec<DueTarget>,
}

impl PeerRound {
    async fn run(self) -> Vec<EndedTarget> {
        let mut link = PeerLink::dialled(&*self.dialer, &self.peer);
        let mut ended = Vec::new();
        let mut is_reachable = true;
        for due in &self.targets {
            let failure = match is_reachable {
                true => self.sync(&mut link, &due.target).await,
                false => Some(SessionFailure::Passing),
            };
            is_reachable &= link.is_reachable();
            ended.push((due.clone(), failure));
        }
        drop(link);
        if !is_reachable {
            // They would only dial the same peer again at once.
            let others = self.others.into_iter();
            ended.extend(others.map(|due| (due, Some(SessionFailure::Passing))));
        }
        ended
    }

    async fn sync(&self, link: &mut PeerLink<'_>, target: &SyncTarget) -> Option<SessionFailure> {
        let session = timeout(SESSION_TIME_MAX, self.service.sync_target(link, target)).await;
        let late = |_| {
            let late = SyncError::refused(ByeCode::Timeout, "the session takes too long");
            self.service.records().note_failure(target, &late);
            Err(late)
        };
        match session.unwrap_or_else(late) {
            Ok(_) => {
                // What has arrived by then stays. The changes that were made meanwhile come first.
                let fetches = self.fetch_awaited(target);
                timeout(FETCHES_TIME_MAX, fetches).await.ok();
                None
            }
            Err(error) if error.is_lasting() => Some(SessionFailure::Lasting),
            Err(_) => Some(SessionFailure::Passing),
        }
    }

    /// Fetches contents that no session has fetched: there were too many, or the peer did not have them then.
    async fn fetch_awaited(&self, target: &SyncTarget) {
        let Some(fetcher) = self.service.fetcher() else {
            return;
        };
        let hashes = self.awaited(target).await.unwrap_or_default();
        let mut failures = 0;
        for hash in hashes {
            if failures >= AWAITED_FAILURES_MAX {
                return;
            }
            match fetcher.fetch(&target.bucket, hash, &self.peer).await {
                Ok(()) => failures = 0,
                Err(error) => {
                    failures += 1;
                    tracing::debug!(%hash, peer = %self.peer, "a content was not fetched: {error}");
                }
            }
        }
    }

    /// Contents that the bucket waits for, if it fetches them at once.
    async fn awaited(&self, target: &SyncTarget) -> Option<Vec<ContentHash>> {
        // Another part of them each time, so that a few that no peer has do not keep the others waiting.
        let mut from = [0; 32];
        getrandom::fill(&mut from).ok()?;
        let from = ContentHash::new(from);
        let lease = self.service.files().opened().ok()??;
        let bucket = target.bucket.clone();
        let read = lease.read(move |tx| {
            let bucket = tx.bucket_by_name(&bucket)?;
            match bucket.sync.fetch {
                ContentFetchMode::Eager => {
                    tx.awaited_contents(bucket.id, from, AWAITED_FETCHES_MAX)
                }
                ContentFetchMode::Lazy | ContentFetchMode::None => Ok(Vec::new()),
            }
        });
        read.await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(bucket: &str, branch: usize) -> DueTarget {
        let target = SyncTarget {
            bucket: bucket.parse().expect("a name"),
            branch: format!("b{branch}").parse().expect("a name"),
            peer: "bob".parse().expect("a name"),
        };
        DueTarget {
            target,
            head_seq: 1,
        }
    }

    fn shown(due: &[DueTarget]) -> Vec<String> {
        let shown = due
            .iter()
            .map(|due| format!("{}@{}", due.target.bucket, due.target.branch));
        shown.collect()
    }

    /// The attack: sessions about the branches of one bucket that go on for hours.
    #[test]
    fn a_bucket_with_many_branches_waits_for_its_turn() {
        let crowd = (0..10 * ROUND_SESSIONS_MAX).map(|branch| due("archive", branch));
        let all = crowd.chain([due("docs", 0), due("zoo", 0)]).collect();
        let (round, others) = take_turns(all, |_| None);
        assert_eq!(round.len(), ROUND_SESSIONS_MAX);
        assert_eq!(shown(&round[..3]), ["archive@b0", "docs@b0", "zoo@b0"]);
        assert_eq!(others.len(), 9 * ROUND_SESSIONS_MAX + 2);
        // The others follow in the next round, also if the first ones are due again.
        let now = Instant::now();
        let had_turn: HashSet<SyncTarget> = round.iter().map(|due| due.target.clone()).collect();
        let all = round.into_iter().chain(others).collect();
        let ended = |due: &DueTarget| had_turn.contains(&due.target).then_some(now);
        let (next, _) = take_turns(all, ended);
        let again = next.iter().filter(|due| had_turn.contains(&due.target));
        assert_eq!(
            shown(&next[..1]),
            [format!("archive@b{}", ROUND_SESSIONS_MAX - 2)]
        );
        // The other two buckets have no other branch.
        assert_eq!(again.count(), 2);
    }
}
