//! One identity, or an operation's rights on its behalf: the queue, the worker and the tensors.

use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use alknet_call::Ctx;
use alknet_compute_wire::{ComputeAck, ComputeRequest, ComputeUpload, GpuWorkerInfo};
use alknet_worker::{
    Bytes32, CallLimits, CborBody, FrameBlob, SessionNotice, WorkerCallError, WorkerLease,
    WorkerReply, WorkerRequest, WorkerRole, WorkerSession,
};
use bytes::Bytes;
use futures_util::FutureExt;
use sha2::{Digest, Sha256};
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore, oneshot};

use crate::compute::{ComputeInner, lock};
use crate::copies::CopiedTensors;
use crate::error::{Error, Result};
use crate::limits::{PARSED_BYTES_MAX, QUEUE_MAX, WALL_TIME};
use crate::tensor_table::TensorTable;

/// Whose requests share a worker, handles and a queue.
///
/// Code that takes over a worker has the tensors of all its requests. So what an operation asks for on an identity's
/// behalf, by its author's rights, does not share them with what the identity asks for itself and by its own scripts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TenantKey {
    /// The identity, or the connection of an unknown peer.
    identity: String,
    /// A digest of what the calling operation may do; `None` for a request from outside and for a script that came with
    /// one.
    rights: Option<Bytes32>,
}

impl TenantKey {
    pub(crate) fn from_ctx(ctx: &Ctx) -> Self {
        // Callers without an identity share nothing with each other, so each connection is a tenant of its own.
        let identity = ctx.identity().map_or_else(
            || format!("connection {}", ctx.conn().id),
            |who| who.id.to_string(),
        );
        let authority = ctx.calling_authority();
        let is_of_other = ctx.internal() && !authority.is_some_and(|own| own.is_requesters);
        // The debug output of an authority says all that it holds, and the author in its label.
        let digest = || {
            let rights = format!("{authority:?}");
            Bytes32(Sha256::digest(rights).into())
        };
        Self {
            identity,
            rights: is_of_other.then(digest),
        }
    }

    /// Whether an operation asks on the identity's behalf.
    pub(crate) const fn is_below(&self) -> bool {
        self.rights.is_some()
    }

    /// Whether both are of one identity.
    pub(crate) fn is_beside(&self, other: &Self) -> bool {
        self.identity == other.identity
    }
}

/// A tenant with its worker, its handles and its queue of requests.
#[derive(Debug)]
pub(crate) struct Tenant {
    key: TenantKey,
    /// Permits of the queue: one request runs, the others wait.
    permits: Arc<Semaphore>,
    worker_slot: Arc<tokio::sync::Mutex<WorkerSlot>>,
    tensor_table: Mutex<TensorTable>,
    used: Mutex<Instant>,
}

/// The worker of an identity. One request at a time holds the slot.
#[derive(Debug, Default)]
pub(crate) struct WorkerSlot {
    live: Option<LiveWorker>,
}

/// A running worker.
#[derive(Debug)]
struct LiveWorker {
    session: WorkerSession,
    info: Arc<GpuWorkerInfo>,
}

/// Bytes that will be sent to a worker.
#[derive(Clone, Debug)]
pub(crate) enum UploadData {
    Bytes(Bytes),
    CopiedTensors(Arc<CopiedTensors>),
}

/// A request that is ready to be sent.
#[derive(Debug)]
pub(crate) struct PreparedRequest {
    pub(crate) body: CborBody,
    pub(crate) uploads: Vec<(u64, UploadData)>,
    pub(crate) limits: CallLimits,
    pub(crate) operation: Option<Bytes32>,
    /// The most bytes that the response may have.
    pub(crate) answer_bytes: u64,
}

impl Tenant {
    pub(crate) fn new(key: TenantKey) -> Self {
        let now = Instant::now();
        Self {
            key,
            // One permit more than the queue, for the request that runs.
            permits: Arc::new(Semaphore::new(QUEUE_MAX + 1)),
            worker_slot: Arc::default(),
            tensor_table: Mutex::new(TensorTable::new(now)),
            used: Mutex::new(now),
        }
    }

    pub(crate) const fn key(&self) -> &TenantKey {
        &self.key
    }

    /// The identity whose share of the node's memory counts.
    pub(crate) fn identity(&self) -> &str {
        &self.key.identity
    }

    /// The request for a worker, which no other tenant has.
    pub(crate) fn lease(&self) -> WorkerLease {
        let lease = WorkerLease::new(WorkerRole::Gpu, self.identity());
        match self.key.rights {
            Some(rights) => lease.with_rights(rights),
            None => lease,
        }
    }

    /// Takes a permit of the queue.
    pub(crate) fn permit(&self) -> Result<OwnedSemaphorePermit> {
        let permit = Arc::clone(&self.permits).try_acquire_owned();
        permit.map_err(|_| {
            Error::Overloaded(format!("{QUEUE_MAX} requests of this identity are waiting"))
        })
    }

    /// Waits until the worker is free.
    pub(crate) async fn worker_slot(&self) -> OwnedMutexGuard<WorkerSlot> {
        Arc::clone(&self.worker_slot).lock_owned().await
    }

    pub(crate) fn tensor_table<T>(&self, work: impl FnOnce(&mut TensorTable) -> T) -> T {
        work(&mut lock(&self.tensor_table))
    }

    pub(crate) fn touch(&self) {
        *lock(&self.used) = Instant::now();
    }

    /// Whether the table of identities can drop this one: no request runs or waits, and the budget is whole.
    pub(crate) fn is_idle(&self) -> bool {
        let free = self.permits.available_permits() > QUEUE_MAX;
        free && self.tensor_table(|tensor_table| tensor_table.is_settled(Instant::now()))
    }

    /// Ends expired leases, and the worker once it is unused, until the identity is dropped.
    pub(crate) fn look_after(self: &Arc<Self>, inner: &Arc<ComputeInner>) {
        let tenant = Arc::clone(self);
        let tick = inner.settings.tick;
        // The task does not keep the node's state alive, so it ends with it.
        let inner = Arc::downgrade(inner);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(tick).await;
                if tenant.check(&inner).await {
                    return;
                }
            }
        });
    }

    /// Returns whether the task can end.
    async fn check(self: &Arc<Self>, inner: &Weak<ComputeInner>) -> bool {
        let Some(inner) = inner.upgrade() else {
            return true;
        };
        let settings = &inner.settings;
        let now = Instant::now();
        self.tensor_table(|tensor_table| tensor_table.expire(now, settings.orphan_lease));
        // A request that holds the worker keeps it in use, and has removed garbage when it began.
        let Ok(mut worker_slot) = Arc::clone(&self.worker_slot).try_lock_owned() else {
            return false;
        };
        let unused = now.saturating_duration_since(*lock(&self.used)) >= settings.idle;
        if unused && self.tensor_table(|tensor_table| tensor_table.is_empty()) {
            // Dropping the session ends the worker.
            worker_slot.live = None;
            self.tensor_table(TensorTable::lose_all);
        }
        worker_slot.tidy(self).await;
        let over = worker_slot.live.is_none();
        drop(worker_slot);
        over && inner.forget(self)
    }
}

impl WorkerSlot {
    /// The worker's description, if there is a worker. A worker that has died is removed, with its tensors.
    pub(crate) fn info(&mut self, tenant: &Tenant) -> Option<Arc<GpuWorkerInfo>> {
        let live = self.live.as_mut()?;
        // Workers send no notices in sessions, so a value of `None` means that the worker has ended.
        if let Some(None) = live.session.next().now_or_never() {
            self.lose(tenant);
        }
        self.live.as_ref().map(|live| Arc::clone(&live.info))
    }

    /// Installs a new worker.
    pub(crate) fn seat(&mut self, session: WorkerSession) {
        let info = Arc::default();
        self.live = Some(LiveWorker { session, info });
    }

    pub(crate) fn learn(&mut self, info: &Arc<GpuWorkerInfo>) {
        if let Some(live) = &mut self.live {
            live.info = Arc::clone(info);
        }
    }

    fn lose(&mut self, tenant: &Tenant) {
        self.live = None;
        tenant.tensor_table(TensorTable::lose_all);
    }

    /// Makes the worker drop the buffers that no handle refers to.
    pub(crate) async fn tidy(&mut self, tenant: &Tenant) {
        if self.live.is_none() || !tenant.tensor_table(|tensor_table| tensor_table.has_garbage()) {
            return;
        }
        let buffers = tenant.tensor_table(TensorTable::garbage);
        let Ok(body) = CborBody::encode(&ComputeRequest::Drop { buffers }) else {
            return;
        };
        let sending = PreparedRequest {
            body,
            uploads: Vec::new(),
            limits: CallLimits {
                wall: WALL_TIME,
                cpu: None,
                gpu: None,
            },
            operation: None,
            answer_bytes: PARSED_BYTES_MAX,
        };
        // If the worker fails, it is gone with the buffers that it should drop.
        let (_wanted, given_up) = oneshot::channel();
        let _: Result<Vec<u8>> = self.exchange(tenant, sending, given_up).await;
    }

    /// Sends a request, and waits for the response or until the worker has stopped. `given_up` resolves when the
    /// caller has aborted.
    pub(crate) async fn exchange(
        &mut self,
        tenant: &Tenant,
        sending: PreparedRequest,
        given_up: oneshot::Receiver<ComputeAck>,
    ) -> Result<Vec<u8>> {
        let Some(live) = &self.live else {
            return Err(Error::Lost("it ended".to_owned()));
        };
        // The worker has the memory until it has answered, even if the caller aborted. Then the node takes the memory
        // back, whatever descriptors the worker keeps.
        let mut handed_over = Vec::new();
        for (number, data) in sending.uploads {
            let copied = data.copied()?;
            hand_over(&live.session, number, &copied).await?;
            handed_over.push(copied);
        }
        let answer_bytes = sending.answer_bytes;
        let request = WorkerRequest::Role { body: sending.body };
        let mut call = live
            .session
            .call(request, sending.limits, sending.operation);
        let answer = tokio::select! {
            // A response that has arrived counts, even if the caller aborted meanwhile.
            biased;
            answer = &mut call => answer,
            _ = given_up => {
                call.abort();
                (&mut call).await
            }
        };
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                if ends_worker(&error) {
                    self.lose(tenant);
                }
                return Err(error.into());
            }
        };
        match answer.reply {
            WorkerReply::Ok(blob) => Ok(blob.read(&answer.fds, answer_bytes)?),
            WorkerReply::Err(fault) => {
                let error = Error::from_fault(fault);
                if let Error::DeviceLost(_) = error {
                    // The device is lost for this process; the next request gets another worker.
                    live.session.kill();
                    self.lose(tenant);
                }
                Err(error)
            }
        }
    }
}

impl UploadData {
    /// Whether it is a copy of a stored tensor.
    pub(crate) const fn is_stored(&self) -> bool {
        matches!(self, Self::CopiedTensors(_))
    }

    fn copied(self) -> Result<Arc<CopiedTensors>> {
        match self {
            Self::Bytes(bytes) => {
                let copied = CopiedTensors::from_bytes(&bytes).map(Arc::new);
                copied.map_err(|error| Error::Internal(error.to_string()))
            }
            Self::CopiedTensors(copied) => Ok(copied),
        }
    }
}

async fn hand_over(session: &WorkerSession, number: u64, copied: &CopiedTensors) -> Result<()> {
    // A worker that does not read ends, which makes room as well.
    let permit = Some(session.descriptor_quota().reserve().await);
    let fd = copied.hand_over();
    let fd = fd.map_err(|error| Error::Internal(error.to_string()))?;
    let len = copied.len();
    let blobs = vec![(number, FrameBlob::Sealed { at: 0, len })];
    session.tell_reserved(
        SessionNotice::Role(CborBody::encode(&ComputeUpload { blobs })?),
        vec![fd],
        permit,
    )?;
    Ok(())
}

/// Whether the worker has ended.
fn ends_worker(error: &WorkerCallError) -> bool {
    match error {
        WorkerCallError::Limit { killed, .. } => *killed,
        WorkerCallError::Lost(_) | WorkerCallError::SessionClosed => true,
        _ => false,
    }
}
