//! Puts sessions into workers, and starts workers for sessions.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::starting::workers_to_come;
use super::{LeaseWaiter, OpenSession, StartBackoff, WorkerSupervisor};
use crate::host::WorkerLease;
use crate::host::config::TenantShares;
use crate::host::handle::{LEASE_CHARGE, OpenedSession};
use crate::host::pool::{StartingFor, WorkerPool};
use crate::host::spawn::SpawnJob;
use crate::host::worker::WorkerState;
use crate::limits::{
    LOG_BYTES_PER_S, MESSAGES_WAITING_MAX, SESSIONS_MAX, START_PAUSE_MAX, START_PAUSE_MIN,
};
use crate::setup::ConfinementReport;
use crate::{Bind, Bytes32, Sandbox, WorkerEndReason, WorkerError, WorkerRole};

/// Checks that a role may have these folders, and that their names are plain and unique.
pub(in crate::host) fn check_binds(role: WorkerRole, binds: &[Bind]) -> Result<(), WorkerError> {
    if !binds.is_empty() && !role.may_have_binds() {
        return Err(WorkerError::BindsRefused(role));
    }
    let mut names = HashSet::new();
    for bind in binds {
        bind.check()?;
        // Each name is a folder in the sandbox, and the second would cover the first.
        if !names.insert(&bind.name) {
            return Err(WorkerError::BindName(bind.name.clone()));
        }
    }
    Ok(())
}

impl WorkerSupervisor {
    pub(super) fn open(
        &mut self,
        mut lease: WorkerLease,
        reply: oneshot::Sender<Result<OpenedSession, WorkerError>>,
    ) {
        // One worker cannot be halved.
        lease.lent &= self.config.workers_lent_max() > 0;
        self.forget_given_up();
        let found = self.find(&lease);
        if let Ok(WorkerChoice::Later(_)) | Err(WorkerError::Overloaded) = found {
            self.claim(&lease);
        }
        match found {
            Ok(WorkerChoice::Now(worker)) => self.hand_over(worker, lease, reply),
            Ok(WorkerChoice::Later(worker)) => self.waiting.push(LeaseWaiter {
                lease,
                worker,
                reply,
            }),
            Err(error) => {
                // The caller may have gone.
                let _ = reply.send(Err(error));
            }
        }
        self.fill();
    }

    /// Notes that the lease takes, or wants, a worker that its tenant does not have yet. This comes before the answer:
    /// a lease that is answered later finds it.
    fn claim(&mut self, lease: &WorkerLease) {
        self.claims += 1;
        lease.claims(self.claims);
    }

    fn find(&mut self, lease: &WorkerLease) -> Result<WorkerChoice, WorkerError> {
        let role = lease.role;
        if self.ending.is_some() {
            return Err(WorkerError::Stopped);
        }
        let relieved = self.relieved.get(&lease.tenant);
        // Without the pause the tenant's new sessions would fill the memory that the relief freed.
        if relieved.is_some_and(|relieved| relieved.again && relieved.until > self.now()) {
            return Err(WorkerError::Relieved);
        }
        // The operator decides which roles a node runs.
        let Some(config) = self.config.role(role) else {
            return Err(WorkerError::NotConfigured(role));
        };
        let mut config = config.clone();
        config.binds.extend(lease.binds.iter().cloned());
        check_binds(role, &config.binds)?;
        self.used.insert(role);
        if let Some(worker) = self.assign_for_caller(lease)? {
            return Ok(WorkerChoice::Now(worker));
        }
        // This comes before the share: a worker that the tenant has already takes no more of it.
        if let Some(worker) = self.pool.assign_own(lease) {
            return Ok(WorkerChoice::Now(worker));
        }
        // A tenant that asked for many workers could otherwise keep all of them.
        self.keep_to_share(lease)?;
        if let Some(worker) = self.pool.assign(lease) {
            self.claim(lease);
            return Ok(WorkerChoice::Now(worker));
        }
        // A role whose workers fail at their start would otherwise start a process for each request.
        if self.paused(role) {
            let sandbox = self
                .pauses
                .get(&role)
                .and_then(|pause| pause.sandbox.clone());
            if let Some(sandbox) = sandbox {
                let minimum = self.config.minimum;
                return Err(WorkerError::Policy { minimum, sandbox });
            }
            let why = "the last one did not; it is tried again in a while".to_owned();
            return Err(WorkerError::Start { role, why });
        }
        let reserved = !lease.binds.is_empty();
        // A starting worker that no other session waits for will do.
        if !reserved && self.pool.free(role) >= self.wanted(role, Some(lease)) {
            self.hand_surplus_start(lease);
            return Ok(WorkerChoice::Later(None));
        }
        self.evict_idle()?;
        let worker = self.begin_start(config, reserved);
        self.pool.start_for(worker, StartingFor::lease(lease));
        Ok(WorkerChoice::Later(reserved.then_some(worker)))
    }

    /// Refuses another worker to a tenant that has its share, or will have it once the workers are ready for which
    /// its sessions wait, or that start for callers that gave up. Its workers without a session make room first.
    fn keep_to_share(&mut self, lease: &WorkerLease) -> Result<(), WorkerError> {
        let tenant = &lease.tenant;
        let waiting = self.waiting.iter().map(|waiting| &waiting.lease);
        let own: Vec<_> = waiting.filter(|other| other.tenant == *tenant).collect();
        let lent = own.iter().filter(|other| other.lent).copied();
        let lent = workers_to_come(lent.chain([lease]), |role| {
            self.pool.starting_for(tenant, role, true)
        });
        let all = workers_to_come(own.into_iter().chain([lease]), |role| {
            self.pool.starting_for(tenant, role, false)
        });
        if lease.lent {
            self.keep_to(lent, self.config.workers_lent_max(), |pool| {
                (pool.lent_by(tenant), pool.evictable_lent_by(tenant))
            })?;
        }
        self.keep_to(all, self.config.workers_of_tenant_max(), |pool| {
            (pool.of_tenant(tenant), pool.evictable_of(tenant))
        })
    }

    /// A worker in which calls of the tenant's callers run already, for a lease of such a caller.
    ///
    /// # Errors
    /// The caller has its share of these workers. Each worker in which something runs for a caller counts, also if
    /// another caller's lease opened it: otherwise two callers could keep all of them.
    fn assign_for_caller(&mut self, lease: &WorkerLease) -> Result<Option<u64>, WorkerError> {
        let Some(caller) = lease.caller.as_deref().filter(|_| lease.lent) else {
            return Ok(None);
        };
        if let Some(worker) = self.pool.assign_beside(lease, caller, false) {
            return Ok(Some(worker));
        }
        let own = self.workers_of_caller(&lease.tenant, caller, Some(lease));
        self.keep_to_share_of_caller(own)?;
        if let Some(worker) = self.pool.assign_beside(lease, caller, true) {
            return Ok(Some(worker));
        }
        let all = self.workers_of_callers(&lease.tenant, Some(lease));
        self.keep_for_first_callers(own, all)?;
        Ok(None)
    }

    /// Counts the worker of a session for a caller whose call is to run there, until
    /// [`discharge`](Self::discharge).
    pub(super) fn charge(&mut self, sid: u64, id: u64, caller: String) -> Result<(), WorkerError> {
        // A call into a session that has ended fails by itself.
        let Some(number) = self.sessions.get(&sid).map(|open| open.worker) else {
            return Ok(());
        };
        let Some(tenant) = self.pool.lender(number) else {
            return Ok(());
        };
        if !self.pool.serves(number, &caller) {
            let own = self.workers_of_caller(tenant, &caller, None) + 1;
            self.keep_to_share_of_caller(own)?;
            if !self.pool.is_busy(number) {
                let all = self.workers_of_callers(tenant, None) + 1;
                self.keep_for_first_callers(own, all)?;
            }
        }
        self.pool.charge(number, &caller);
        if let Some(open) = self.sessions.get_mut(&sid) {
            open.charges.push((id, caller));
        }
        Ok(())
    }

    /// Counts the worker of a session no longer for the caller of this charge.
    pub(super) fn discharge(&mut self, sid: u64, id: u64) {
        let Some(open) = self.sessions.get_mut(&sid) else {
            return;
        };
        // A refused charge is not there.
        if let Some(at) = open.charges.iter().position(|(charge, _)| *charge == id) {
            let (_, caller) = open.charges.swap_remove(at);
            self.pool.release_caller(open.worker, &caller);
        }
    }

    /// Number of the tenant's workers in which something runs for this caller, or will once they are ready; `also`
    /// counts with those that wait.
    fn workers_of_caller(&self, tenant: &str, caller: &str, also: Option<&WorkerLease>) -> usize {
        let waiting = self.lent_waiting(tenant);
        let own = waiting.filter(|lease| lease.caller.as_deref() == Some(caller));
        self.pool.lent_to(tenant, caller) + workers_for(own.chain(also))
    }

    /// Like `workers_of_caller`, for all callers.
    fn workers_of_callers(&self, tenant: &str, also: Option<&WorkerLease>) -> usize {
        let waiting = self.lent_waiting(tenant);
        self.pool.lent_in_use(tenant) + workers_for(waiting.chain(also))
    }

    /// The waiting leases for callers of the tenant's operations.
    fn lent_waiting(&self, tenant: &str) -> impl Iterator<Item = &WorkerLease> {
        let waiting = self.waiting.iter().map(|waiting| &waiting.lease);
        waiting.filter(move |lease| lease.lent && lease.tenant == tenant)
    }

    fn keep_to_share_of_caller(&self, own: usize) -> Result<(), WorkerError> {
        match own > self.config.workers_of_caller_max() {
            true => Err(WorkerError::CallerShare),
            false => Ok(()),
        }
    }

    /// Keeps the last workers for callers that have none. `own` and `all` count the worker that is wanted.
    fn keep_for_first_callers(&self, own: usize, all: usize) -> Result<(), WorkerError> {
        let kept = self.config.workers_of_first_callers();
        match own > 1 && all + kept > self.config.workers_lent_max() {
            // Not the tenant's: to end idle sessions would give this caller nothing.
            true => Err(WorkerError::CallerShare),
            false => Ok(()),
        }
    }

    /// Ends workers without a session until `wanted` more fit into `most`. `of` returns how many there are, and one
    /// without a session.
    fn keep_to(
        &mut self,
        wanted: usize,
        most: usize,
        of: impl Fn(&WorkerPool) -> (usize, Option<u64>),
    ) -> Result<(), WorkerError> {
        loop {
            let (has, idle) = of(&self.pool);
            if has + wanted <= most {
                return Ok(());
            }
            self.end(
                idle.ok_or(WorkerError::TenantShare)?,
                WorkerEndReason::Idle,
                "",
            );
        }
    }

    /// Ends a worker without a session if the limit of workers is reached.
    fn evict_idle(&mut self) -> Result<(), WorkerError> {
        while self.pool.len() >= self.config.workers_max {
            // Only a worker without a session may end for another tenant's request.
            let Some(idle) = self.pool.evictable() else {
                return Err(WorkerError::Overloaded);
            };
            self.end(idle, WorkerEndReason::Idle, "");
        }
        Ok(())
    }

    fn begin_start(&mut self, config: crate::host::RoleConfig, reserved: bool) -> u64 {
        let worker = self.pool.add(config.role, reserved);
        self.starting
            .insert(worker, (config.role, !config.binds.is_empty()));
        let mut role = Box::new(config);
        role.memory_bytes = self.config.memory_of(role.role, 0);
        // The spawner lives as long as this thread.
        let _ = self.jobs.send(SpawnJob::Start { worker, role });
        worker
    }

    /// Number of workers of the role that the waiting leases, and `also`, will take.
    fn wanted(&self, role: WorkerRole, also: Option<&WorkerLease>) -> usize {
        let waiting = self.waiting.iter();
        let waiting = waiting.filter(|waiting| waiting.worker.is_none());
        let leases = waiting.map(|waiting| &waiting.lease).chain(also);
        workers_for(leases.filter(|lease| lease.role == role))
    }

    fn paused(&self, role: WorkerRole) -> bool {
        let now = self.now();
        self.pauses
            .get(&role)
            .is_some_and(|pause| pause.until > now)
    }

    /// Starts as many workers as are to be ready or starting.
    pub(super) fn fill(&mut self) {
        self.forget_given_up();
        for at in 0..self.config.roles.len() {
            let config = &self.config.roles[at];
            let idle = if self.used.contains(&config.role) {
                config.min_idle
            } else {
                0
            };
            let wanted = idle + self.wanted(config.role, None);
            let missing = wanted.saturating_sub(self.pool.free(config.role));
            let config = config.clone();
            if missing == 0 || self.paused(config.role) || self.ending.is_some() {
                continue;
            }
            let mut starts_for = self.missing_starts(config.role).into_iter();
            for _ in 0..missing {
                if self.pool.len() < self.config.workers_max {
                    let worker = self.begin_start(config.clone(), false);
                    // A worker beyond those that leases wait for is kept ready for any tenant.
                    if let Some(tenant) = starts_for.next() {
                        self.pool.start_for(worker, tenant);
                    }
                }
            }
        }
    }

    /// Handles a worker whose sandbox is set up.
    pub(super) fn ready(&mut self, number: u64, confined: ConfinementReport) {
        let Some(worker) = self.workers.get_mut(&number) else {
            return;
        };
        let role = worker.role;
        let mut gaps = std::mem::take(&mut worker.gaps);
        gaps.extend(confined.gaps);
        let sandbox = Sandbox::from_gaps(gaps, role.rights(worker.binds));
        let known = self.count().now.sandbox.insert(role, sandbox.clone());
        // The log gets one line per role and change, and not one per worker.
        if known.as_ref() != Some(&sandbox) {
            tracing::info!(%role, level = %sandbox.level, gaps = ?sandbox.gaps, "worker sandbox");
        }
        if let Some(worker) = self.workers.get_mut(&number) {
            worker.state = WorkerState::Ready;
            worker.was_ready = true;
        }
        if sandbox.level < self.config.minimum {
            self.too_low(number, role, sandbox);
            return;
        }
        self.sandboxes.insert(number, sandbox);
        // A worker of the role has started: the next failure begins with the shortest pause.
        self.pauses.remove(&role);
        self.pool.ready(number);
        self.forget_given_up();
        self.serve();
        self.pool.forget_start(number);
        self.note_surplus(number, role);
    }

    /// Handles a worker below the required level. The next one would not be above it.
    fn too_low(&mut self, number: u64, role: WorkerRole, sandbox: Sandbox) {
        let until = self.now().saturating_add(us(START_PAUSE_MAX));
        let minimum = self.config.minimum;
        self.refuse(number, role, || WorkerError::Policy {
            minimum,
            sandbox: sandbox.clone(),
        });
        let pause = StartBackoff {
            until,
            next: START_PAUSE_MAX,
            sandbox: Some(sandbox),
        };
        self.pauses.insert(role, pause);
        self.end(
            number,
            WorkerEndReason::Start,
            "its sandbox level is too low",
        );
    }

    /// Gives workers to the callers that wait.
    pub(super) fn serve(&mut self) {
        let mut at = 0;
        while at < self.waiting.len() {
            let waiting = &self.waiting[at];
            let found = match waiting.worker {
                Some(own) => self.pool.bind(own, &waiting.lease).then_some(own),
                None => self.pool.assign(&waiting.lease),
            };
            match found {
                Some(worker) => {
                    let waiting = self.waiting.remove(at);
                    if waiting.worker.is_none() {
                        self.pool.trade_start(worker, &waiting.lease);
                    }
                    self.hand_over(worker, waiting.lease, waiting.reply);
                }
                // A later request of another tenant may fit where this one does not.
                None => at += 1,
            }
        }
    }

    /// Opens a session in a worker that the pool has chosen.
    fn hand_over(
        &mut self,
        number: u64,
        lease: WorkerLease,
        reply: oneshot::Sender<Result<OpenedSession, WorkerError>>,
    ) {
        let now = self.now();
        let granted = lease.memory;
        self.next_session += 1;
        let sid = self.next_session;
        let Some(worker) = self.workers.get_mut(&number) else {
            self.pool.release(number, now);
            if let Some(caller) = &lease.caller {
                self.pool.release_caller(number, caller);
            }
            let _ = reply.send(Err(WorkerError::Stopped));
            return;
        };
        worker.sessions.push(sid);
        worker.granted = worker.granted.saturating_add(granted);
        worker.allow_memory(self.config.memory_of(worker.role, worker.granted));
        let (inbox, messages) = mpsc::channel(MESSAGES_WAITING_MAX);
        let unread = Arc::<AtomicUsize>::default();
        let opened = OpenedSession {
            sid,
            pid: worker.pid(),
            inbox: messages,
            unread: Arc::clone(&unread),
            waiting: worker.waiting.clone(),
            descriptors: worker.descriptors.clone(),
            sandbox: self
                .sandboxes
                .get(&number)
                .cloned()
                .unwrap_or_else(|| Sandbox::from_gaps(Vec::new(), worker.role.rights(false))),
        };
        let open = OpenSession {
            worker: number,
            granted,
            charges: lease
                .caller
                .map(|caller| (LEASE_CHARGE, caller))
                .into_iter()
                .collect(),
            inbox,
            unread,
            calls_out: HashSet::new(),
            log: (LOG_BYTES_PER_S, now),
            aborted: false,
        };
        self.sessions.insert(sid, open);
        self.count().now.sessions = self.sessions.len() as u64;
        if reply.send(Ok(opened)).is_err() {
            // The caller has given up.
            self.close(sid);
        }
    }

    /// Forgets a worker that has ended, or never started. With the last one of its role the spawner drops a program
    /// that can be made again.
    pub(super) fn forget(&mut self, number: u64, role: WorkerRole) {
        self.pool.remove(number);
        if !self.pool.has(role) {
            // The spawner lives as long as this thread.
            let _ = self.jobs.send(SpawnJob::Forget(role));
        }
    }

    /// Handles a worker that did not become ready.
    pub(super) fn start_failed(&mut self, number: u64, role: WorkerRole, why: &str) {
        let pause = self
            .pauses
            .get(&role)
            .map_or(START_PAUSE_MIN, |pause| pause.next);
        let until = self.now().saturating_add(us(pause));
        // Each failure doubles the pause: a broken role must not keep the spawner busy.
        let next = (pause * 2).min(START_PAUSE_MAX);
        let pause = StartBackoff {
            until,
            next,
            sandbox: None,
        };
        self.pauses.insert(role, pause);
        self.refuse(number, role, || WorkerError::Start {
            role,
            why: why.to_owned(),
        });
    }

    /// Refuses the callers that wait for this worker, or for any of its role.
    fn refuse(&mut self, number: u64, role: WorkerRole, error: impl Fn() -> WorkerError) {
        let (mine, others) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|waiting| match waiting.worker {
                // A request with folders waits for the one worker that has them bound.
                Some(own) => own == number,
                None => waiting.lease.role == role,
            });
        self.waiting = others;
        let mine: Vec<LeaseWaiter> = mine;
        for waiting in mine {
            let _ = waiting.reply.send(Err(error()));
        }
    }
}

/// Number of new workers that these sessions take: those of one tenant with equal rights share theirs, unless they want
/// to be alone.
pub(super) fn workers_for<'a>(leases: impl Iterator<Item = &'a WorkerLease>) -> usize {
    let mut alone = 0;
    let mut together: HashMap<(WorkerRole, &str, bool, Option<Bytes32>), usize> = HashMap::new();
    for lease in leases {
        // No other session may see the folders that are bound for this one.
        if lease.alone || !lease.binds.is_empty() {
            alone += 1;
        } else {
            *together
                .entry((lease.role, lease.tenant.as_str(), lease.lent, lease.rights))
                .or_default() += 1;
        }
    }
    let of_one = SESSIONS_MAX as usize;
    let shared = together.values().map(|sessions| sessions.div_ceil(of_one));
    alone + shared.sum::<usize>()
}

/// Number of workers that these leases of one tenant may get together, where it has `has` workers of their kind: either
/// all of them are lent, or none is. One caller's leases count no more than the workers that one caller may have.
pub(in crate::host) fn workers_claimed(
    leases: &[WorkerLease],
    has: usize,
    shares: TenantShares,
) -> usize {
    let together = workers_for(leases.iter());
    // One worker cannot be halved.
    if shares.lent == 0 || !leases.iter().any(WorkerLease::is_lent) {
        return together.min(shares.of_tenant.saturating_sub(has));
    }
    let mut of_callers: BTreeMap<Option<&str>, Vec<&WorkerLease>> = BTreeMap::new();
    for lease in leases {
        let caller = lease.caller.as_deref();
        of_callers.entry(caller).or_default().push(lease);
    }
    let each = of_callers.into_iter().map(|(caller, own)| {
        let most = caller.map_or(usize::MAX, |_| shares.of_caller);
        workers_for(own.into_iter()).min(most)
    });
    // Sessions of two callers may share a worker.
    let each = each.sum::<usize>().min(together);
    each.min(shares.lent.saturating_sub(has))
}

/// The choice of a worker for a session.
enum WorkerChoice {
    /// Into this worker.
    Now(u64),
    /// One that is starting: this one, or any.
    Later(Option<u64>),
}

fn us(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sessions at once with folders of their own: were they counted as one worker, a tenant would get as many as it
    /// likes.
    #[test]
    fn sessions_with_folders_are_counted_alone() {
        let plain = || WorkerLease::new(WorkerRole::Git, "a");
        let bind = |name: &str| Bind {
            source: "/data".to_owned(),
            name: name.to_owned(),
            writable: false,
        };
        let with = |name: &str| plain().with(bind(name));
        let count = |leases: &[WorkerLease]| workers_for(leases.iter());
        assert_eq!(count(&[with("objects"), with("objects"), with("other")]), 3);
        assert_eq!(count(&[with("objects"), plain(), plain()]), 2);
        assert_eq!(count(&[plain(), plain(), plain().alone()]), 2);
        let many: Vec<_> = (0..=SESSIONS_MAX).map(|_| plain()).collect();
        assert_eq!(count(&many), 2);
        // What others have run is beside the tenant's own.
        assert_eq!(count(&[plain(), plain().lent(), plain().lent()]), 2);
        let with = |digest| plain().with_rights(Bytes32([digest; 32]));
        assert_eq!(count(&[with(1), with(1), with(2), plain()]), 3);
    }

    /// Were each of them counted, a caller could keep the author's other callers from a worker by calls that are about
    /// to be refused.
    #[test]
    fn leases_claim_no_more_workers_than_they_can_get() {
        let shares = TenantShares {
            of_tenant: 16,
            lent: 8,
            of_caller: 4,
        };
        let own =
            |digest| WorkerLease::new(WorkerRole::Js, "ada").with_rights(Bytes32([digest; 32]));
        let lent = |caller: &str, digest| own(digest).lent().for_caller(caller);
        let claim = |leases: &[WorkerLease], has| workers_claimed(leases, has, shares);
        let calls: Vec<_> = (0..20).map(|_| lent("mallory", 1)).collect();
        assert_eq!(claim(&calls, 0), 2, "sixteen share a worker");
        let many = |caller: &str, first: u8| -> Vec<_> {
            (first..first + 10)
                .map(|digest| lent(caller, digest))
                .collect()
        };
        assert_eq!(claim(&many("mallory", 0), 0), 4, "a caller's share");
        let others = [lent("mallory", 1), lent("bob", 1)];
        assert_eq!(claim(&others, 0), 1, "two callers share a worker");
        let others = [many("mallory", 0), many("bob", 10), many("eve", 20)].concat();
        assert_eq!(claim(&others, 0), 8, "the share of all callers");
        assert_eq!(claim(&others, 7), 1, "beside those that they have");
        let scripts: Vec<_> = (0..20).map(own).collect();
        assert_eq!(claim(&scripts, 0), 16, "the author's own share");
        assert_eq!(claim(&[], 0), 0);
    }
}
