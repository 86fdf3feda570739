//! The handles of the node: the workers, a session, a running call. None of their methods blocks: the supervisor's
//! thread does the work, and answers whatever the async executor is doing.

use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc as std_mpsc};
use std::task::{Context, Poll};

use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::{mpsc, oneshot};

use super::config::TenantShares;
use super::request::{SessionNotice, WorkerRequest};
use super::spawn::Spawner;
use super::stats::StatsCounter;
use super::supervisor::{self, WorkerSupervisor};
use super::worker::ReplyTo;
use super::{
    CallLimits, DescriptorPermit, DescriptorQuota, WorkerLease, WorkerStats, WorkersConfig,
};
use crate::limits::OUT_BYTES_MAX;
use crate::{
    Bytes32, CallStats, FromWorkerMessage, Sandbox, ToWorkerMessage, WorkerCallError, WorkerError,
    WorkerReply, encode,
};

/// A command to the supervisor.
#[derive(Debug)]
pub(super) enum SupervisorCommand {
    Abort {
        sid: u64,
        id: u64,
    },
    Call {
        sid: u64,
        id: u64,
        frame: EncodedFrame,
        limits: CallLimits,
        operation: Option<Bytes32>,
        farewell: bool,
        reply: ReplyTo,
    },
    Charge(ChargeRequest),
    Close {
        sid: u64,
    },
    Discharge {
        sid: u64,
        id: u64,
    },
    Kill {
        sid: u64,
    },
    Open {
        lease: WorkerLease,
        reply: oneshot::Sender<Result<OpenedSession, WorkerError>>,
    },
    Release {
        operation: Bytes32,
        reply: oneshot::Sender<bool>,
    },
    Relieve {
        least: u64,
        reply: oneshot::Sender<usize>,
    },
    Shutdown {
        done: Option<oneshot::Sender<()>>,
    },
    Started {
        worker: u64,
        born: Result<super::spawn::SpawnedWorker, String>,
    },
    Tell {
        sid: u64,
        frame: EncodedFrame,
        /// The call or subscription of the worker that ends with this message.
        ends: Option<u64>,
    },
}

/// The number of the charge that a session's lease brings: calls and further charges count from one.
pub(super) const LEASE_CHARGE: u64 = 0;

/// A request to count the worker of a session for a caller.
#[derive(Debug)]
pub(super) struct ChargeRequest {
    pub(super) sid: u64,
    pub(super) id: u64,
    pub(super) caller: String,
    pub(super) reply: oneshot::Sender<Result<(), WorkerError>>,
}

/// A frame that is ready to be sent.
#[derive(Debug)]
pub(super) struct EncodedFrame {
    pub(super) bytes: Vec<u8>,
    pub(super) fds: Vec<OwnedFd>,
    #[allow(dead_code)] // held until the frame was sent
    pub(super) permit: Option<DescriptorPermit>,
}

/// A session that was opened.
#[derive(Debug)]
pub(super) struct OpenedSession {
    pub(super) sid: u64,
    pub(super) pid: i32,
    pub(super) inbox: mpsc::Receiver<(FromWorkerMessage, Vec<OwnedFd>)>,
    /// Bytes that wait in the inbox.
    pub(super) unread: Arc<AtomicUsize>,
    pub(super) waiting: Arc<AtomicUsize>,
    pub(super) descriptors: DescriptorQuota,
    pub(super) sandbox: Sandbox,
}

/// A message with its descriptors.
type Message = (FromWorkerMessage, Vec<OwnedFd>);

impl OpenedSession {
    /// Counts the bytes of a message that was read, so that others have room.
    fn took(&self, next: Option<Message>) -> Option<Message> {
        if let Some((message, _)) = &next {
            self.unread.fetch_sub(message.bytes(), Ordering::Relaxed);
        }
        next
    }
}

/// All workers of a node. Clones share them. When the last clone and the last session are dropped, the workers end.
#[derive(Clone, Debug)]
pub struct Workers(Arc<WorkersInner>);

#[derive(Debug)]
struct WorkersInner {
    supervisor: SupervisorHandle,
    calls: AtomicU64,
    stats: Arc<Mutex<StatsCounter>>,
    drain: std::time::Duration,
    shares: TenantShares,
}

/// The handle by which commands reach the supervisor.
#[derive(Clone, Debug)]
pub(super) struct SupervisorHandle {
    commands: std_mpsc::Sender<SupervisorCommand>,
    wake: Arc<OwnedFd>,
}

impl SupervisorHandle {
    /// Sends a command. Returns false if the supervisor has ended.
    pub(super) fn send(&self, command: SupervisorCommand) -> bool {
        // The command is queued before the wake, so that the supervisor finds it.
        let sent = self.commands.send(command).is_ok();
        // The counter is far from full, and a supervisor that has ended needs no wake.
        let _ = rustix::io::write(&*self.wake, &1_u64.to_ne_bytes());
        sent
    }
}

impl Workers {
    /// Starts the supervisor. The first worker is started when the first session is opened.
    ///
    /// # Errors
    /// The executable cannot be opened, a folder's name is not valid, or the kernel refuses a thread or a descriptor.
    pub fn start(config: WorkersConfig) -> Result<Self, WorkerError> {
        for role in &config.roles {
            supervisor::check_binds(role.role, &role.binds)?;
        }
        let setup = |error: rustix::io::Errno| WorkerError::Supervisor(error.into());
        let (commands, queue) = std_mpsc::channel();
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let wake = Arc::new(eventfd(0, flags).map_err(setup)?);
        let handle = SupervisorHandle { commands, wake };
        let stats = Arc::new(Mutex::default());
        let heartbeat = u64::try_from(config.heartbeat.as_millis()).unwrap_or(u64::MAX);
        let mut config = config;
        let executable = std::mem::replace(&mut config.executable, super::Executable::This);
        let programs = std::mem::take(&mut config.programs);
        let cgroup = config.cgroup.clone();
        let spawner = Spawner::new(executable, programs, cgroup, heartbeat)?;
        let (jobs, jobs_received) = std_mpsc::channel();
        let starter = handle.clone();
        thread("worker-spawner", move || {
            spawner.run(&jobs_received, |worker, born| {
                starter.send(SupervisorCommand::Started { worker, born });
            });
        })?;
        let (wake, drain, shares) = (handle.wake.clone(), config.drain, config.tenant_shares());
        let supervisor = WorkerSupervisor::new(config, queue, wake, jobs, Arc::clone(&stats))?;
        thread("worker-supervisor", move || supervisor.run())?;
        Ok(Self(Arc::new(WorkersInner {
            supervisor: handle,
            calls: AtomicU64::new(0),
            stats,
            drain,
            shares,
        })))
    }

    /// Opens a session in a worker, in a warm one if there is one.
    ///
    /// # Errors
    /// No worker is available: see [`WorkerError`].
    pub async fn open(&self, lease: WorkerLease) -> Result<WorkerSession, WorkerError> {
        let (reply, answer) = oneshot::channel();
        if !self
            .0
            .supervisor
            .send(SupervisorCommand::Open { lease, reply })
        {
            return Err(WorkerError::Stopped);
        }
        let opened = answer.await.map_err(|_| WorkerError::Stopped)??;
        Ok(WorkerSession {
            workers: self.clone(),
            opened,
        })
    }

    /// Number of workers that these leases of one tenant may get together, where it has `has` workers of their kind:
    /// either all of them are [lent](WorkerLease::lent), or none is. Leases that can share a worker count as one, and
    /// those of one caller as no more than the workers that one caller may have.
    #[must_use]
    pub fn claimed(&self, leases: &[WorkerLease], has: usize) -> usize {
        supervisor::workers_claimed(leases, has, self.0.shares)
    }

    /// Counts the worker of a session for a caller whose call is to run there, until the charge is dropped. A worker
    /// of the tenant's own work counts for no caller.
    ///
    /// # Errors
    /// [`WorkerError::CallerShare`], as for a session that is opened for this caller; [`WorkerError::Stopped`].
    pub async fn charge(
        &self,
        sid: u64,
        caller: impl Into<String>,
    ) -> Result<CallerCharge, WorkerError> {
        let id = self.0.calls.fetch_add(1, Ordering::Relaxed) + 1;
        let (reply, answer) = oneshot::channel();
        // The charge exists before it is requested: it ends also if this future is dropped.
        let charge = self.charge_with(sid, id);
        let request = ChargeRequest {
            sid,
            id,
            caller: caller.into(),
            reply,
        };
        self.0.supervisor.send(SupervisorCommand::Charge(request));
        answer.await.map_err(|_| WorkerError::Stopped)??;
        Ok(charge)
    }

    /// The charge that the session's lease brought, so that it ends before the session.
    #[must_use]
    pub fn charge_of_lease(&self, sid: u64) -> CallerCharge {
        self.charge_with(sid, LEASE_CHARGE)
    }

    fn charge_with(&self, sid: u64, id: u64) -> CallerCharge {
        CallerCharge {
            workers: self.clone(),
            sid,
            id,
        }
    }

    /// The present numbers.
    #[must_use]
    pub fn stats(&self) -> WorkerStats {
        let stats = self.0.stats.lock();
        stats.unwrap_or_else(PoisonError::into_inner).snapshot()
    }

    /// Releases an operation from quarantine, for all tenants. Returns whether it was in quarantine.
    pub async fn release(&self, operation: Bytes32) -> bool {
        let (reply, answer) = oneshot::channel();
        self.0
            .supervisor
            .send(SupervisorCommand::Release { operation, reply });
        answer.await.unwrap_or(false)
    }

    /// Called when the machine has too little memory left. Ends the largest workers of the tenant whose workers hold
    /// most of it together, until those hold no more than the next tenant's, or than `least` bytes. At the second
    /// time within a minute that tenant gets no worker for a minute. Returns how many ended.
    pub async fn relieve(&self, least: u64) -> usize {
        let (reply, answer) = oneshot::channel();
        self.0
            .supervisor
            .send(SupervisorCommand::Relieve { least, reply });
        answer.await.unwrap_or(0)
    }

    /// Ends every worker, and waits until they have ended. Calls end with `shutdown`.
    pub async fn shutdown(&self) {
        let (done, gone) = oneshot::channel();
        if self
            .0
            .supervisor
            .send(SupervisorCommand::Shutdown { done: Some(done) })
        {
            // An error means that the supervisor has ended already, which is the goal.
            let _ = gone.await;
        }
    }
}

impl Drop for WorkersInner {
    fn drop(&mut self) {
        self.supervisor
            .send(SupervisorCommand::Shutdown { done: None });
    }
}

/// A worker counts for a caller until this is dropped.
#[derive(Debug)]
pub struct CallerCharge {
    workers: Workers,
    sid: u64,
    id: u64,
}

impl Drop for CallerCharge {
    fn drop(&mut self) {
        let (sid, id) = (self.sid, self.id);
        let discharge = SupervisorCommand::Discharge { sid, id };
        // A supervisor that has ended counts nothing.
        let _ = self.workers.0.supervisor.send(discharge);
    }
}

/// A session in a worker. Dropping it closes it and gives up its calls.
#[derive(Debug)]
pub struct WorkerSession {
    workers: Workers,
    opened: OpenedSession,
}

impl WorkerSession {
    /// Its number, which all its messages have.
    #[must_use]
    pub const fn sid(&self) -> u64 {
        self.opened.sid
    }

    /// Process id of the worker, in the host's process namespace.
    #[must_use]
    pub const fn pid(&self) -> i32 {
        self.opened.pid
    }

    /// The confinement of its worker.
    #[must_use]
    pub const fn sandbox(&self) -> &Sandbox {
        &self.opened.sandbox
    }

    /// Calls the worker. The call runs from now on, also if the caller does not wait for it; dropping the returned
    /// future gives it up. A crash counts against `operation`, if one is named.
    pub fn call(
        &self,
        request: WorkerRequest,
        limits: CallLimits,
        operation: Option<Bytes32>,
    ) -> WorkerCall {
        let id = self.workers.0.calls.fetch_add(1, Ordering::Relaxed) + 1;
        self.begin(id, limits, operation, false, |fds| {
            request.message(self.sid(), id, fds)
        })
    }

    /// Lets a service dispose of itself, within [`WorkersConfig::drain`]. The result is what it hands to its successor. The
    /// session cannot be used after that.
    #[must_use]
    pub fn drain(&self) -> WorkerCall {
        let id = self.workers.0.calls.fetch_add(1, Ordering::Relaxed) + 1;
        let limits = CallLimits {
            wall: self.workers.0.drain,
            cpu: None,
            gpu: None,
        };
        let sid = self.sid();
        let close = ToWorkerMessage::Close { sid, id: Some(id) };
        self.begin(id, limits, None, true, |_| Ok(close))
    }

    /// Sends the worker a message that it does not answer.
    ///
    /// # Errors
    /// The message makes no valid frame, or the worker does not read.
    pub fn tell(&self, notice: SessionNotice, fds: Vec<OwnedFd>) -> Result<(), WorkerCallError> {
        self.tell_reserved(notice, fds, None)
    }

    /// The quota of frames with descriptors, for senders that can wait.
    #[must_use]
    pub fn descriptor_quota(&self) -> DescriptorQuota {
        self.opened.descriptors.clone()
    }

    /// Like [`Self::tell`], with a permit that was reserved in [`Self::descriptor_quota`].
    ///
    /// # Errors
    /// The errors of [`Self::tell`].
    pub fn tell_reserved(
        &self,
        notice: SessionNotice,
        fds: Vec<OwnedFd>,
        permit: Option<DescriptorPermit>,
    ) -> Result<(), WorkerCallError> {
        let (message, ends) = notice.message(self.sid());
        let frame = self.frame(&message, fds, permit)?;
        let sid = self.sid();
        if !self
            .workers
            .0
            .supervisor
            .send(SupervisorCommand::Tell { sid, frame, ends })
        {
            return Err(WorkerCallError::SessionClosed);
        }
        Ok(())
    }

    /// The next message of the worker in this session; `None` once the worker has ended.
    pub async fn next(&mut self) -> Option<(FromWorkerMessage, Vec<OwnedFd>)> {
        let next = self.opened.inbox.recv().await;
        self.opened.took(next)
    }

    /// A message that the worker has sent already.
    pub fn try_next(&mut self) -> Option<(FromWorkerMessage, Vec<OwnedFd>)> {
        let next = self.opened.inbox.try_recv().ok();
        self.opened.took(next)
    }

    /// Kills the worker, with every session in it.
    pub fn kill(&self) {
        let sid = self.sid();
        self.workers
            .0
            .supervisor
            .send(SupervisorCommand::Kill { sid });
    }

    fn begin(
        &self,
        id: u64,
        limits: CallLimits,
        operation: Option<Bytes32>,
        farewell: bool,
        message: impl FnOnce(&mut Vec<OwnedFd>) -> Result<ToWorkerMessage, WorkerCallError>,
    ) -> WorkerCall {
        let (reply, answer) = oneshot::channel();
        let sid = self.sid();
        let mut fds = Vec::new();
        let frame = message(&mut fds).and_then(|message| self.frame(&message, fds, None));
        match frame {
            Err(error) => {
                // The receiver exists, so that this does not fail.
                let _ = reply.send(Err(error));
            }
            Ok(frame) => {
                let command = SupervisorCommand::Call {
                    sid,
                    id,
                    frame,
                    limits,
                    operation,
                    farewell,
                    reply,
                };
                self.workers.0.supervisor.send(command);
            }
        }
        WorkerCall {
            supervisor: self.workers.0.supervisor.clone(),
            sid,
            id,
            answer: Some(answer),
        }
    }

    fn frame(
        &self,
        message: &ToWorkerMessage,
        fds: Vec<OwnedFd>,
        permit: Option<DescriptorPermit>,
    ) -> Result<EncodedFrame, WorkerCallError> {
        let bytes = encode(message, fds.len())?;
        let waiting = &self.opened.waiting;
        // Two callers at once may exceed the bound by a frame.
        if waiting.load(Ordering::Relaxed) + bytes.len() > OUT_BYTES_MAX {
            return Err(WorkerCallError::Busy);
        }
        let permit = self.opened.descriptors.permit(&fds, permit)?;
        waiting.fetch_add(bytes.len(), Ordering::Relaxed);
        Ok(EncodedFrame { bytes, fds, permit })
    }
}

impl Drop for WorkerSession {
    fn drop(&mut self) {
        let sid = self.sid();
        self.workers
            .0
            .supervisor
            .send(SupervisorCommand::Close { sid });
    }
}

/// A running call. It resolves to the worker's result, or to the reason for its absence.
#[derive(Debug)]
pub struct WorkerCall {
    supervisor: SupervisorHandle,
    sid: u64,
    id: u64,
    answer: Option<oneshot::Receiver<Result<WorkerAnswer, WorkerCallError>>>,
}

impl WorkerCall {
    /// Its number, as the worker knows it.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.id
    }

    /// Asks the worker to stop the call, which then ends within the grace period of an abort, with or without a
    /// result.
    pub fn abort(&self) {
        let (sid, id) = (self.sid, self.id);
        self.supervisor.send(SupervisorCommand::Abort { sid, id });
    }

    /// Blocks until the result, outside of any async executor.
    ///
    /// # Errors
    /// The errors of the future.
    pub fn wait(mut self) -> Result<WorkerAnswer, WorkerCallError> {
        let answer = self.answer.take();
        let answer = answer.and_then(|answer| answer.blocking_recv().ok());
        answer.unwrap_or(Err(WorkerCallError::SessionClosed))
    }
}

impl Future for WorkerCall {
    type Output = Result<WorkerAnswer, WorkerCallError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(answer) = &mut self.answer else {
            return Poll::Ready(Err(WorkerCallError::SessionClosed));
        };
        let Poll::Ready(answer) = Pin::new(answer).poll(context) else {
            return Poll::Pending;
        };
        self.answer = None;
        Poll::Ready(answer.unwrap_or(Err(WorkerCallError::SessionClosed)))
    }
}

impl Drop for WorkerCall {
    fn drop(&mut self) {
        // If the result is there already, nothing runs that could be aborted.
        if self
            .answer
            .as_mut()
            .is_some_and(|answer| answer.try_recv().is_err())
        {
            self.abort();
        }
    }
}

/// The result of a call.
#[derive(Debug)]
pub struct WorkerAnswer {
    /// The result itself. It may be a fault of the operation.
    pub reply: WorkerReply,
    /// The descriptors of the result.
    pub fds: Vec<OwnedFd>,
    /// The cost of the call, by the worker's own account.
    pub stats: CallStats,
    /// Whether the host had asked the worker to stop another call of the same session, or to close the session: only
    /// then may an honest worker answer that it stopped this call.
    pub beside_abort: bool,
}

fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), WorkerError> {
    let started = std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work);
    started.map(drop).map_err(WorkerError::Supervisor)
}
