//! One identity: its place in the queue, its worker, its tensors.

use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use alknet_compute_wire::{ComputeAck, ComputeRequest, ComputeUpload, GpuWorkerInfo};
use alknet_worker::{
    Bytes32, CallLimits, CborBody, FrameBlob, SessionNotice, WorkerCallError, WorkerReply,
    WorkerRequest, WorkerSession,
};
use bytes::Bytes;
use futures_util::FutureExt;
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore, oneshot};

use crate::compute::{ComputeInner, lock};
use crate::copies::CopiedTensors;
use crate::error::{Error, Result};
use crate::limits::{QUEUE_MAX, READ_BYTES_MAX, WALL_TIME};
use crate::tensor_table::TensorTable;

/// Bytes of an answer: those of one read, and what is around them.
const ANSWER_BYTES_MAX: u64 = READ_BYTES_MAX + (64 << 10);

/// One identity with its worker, its handles and its queue of requests.
#[derive(Debug)]
pub(crate) struct Tenant {
    name: String,
    /// One request is done, the others wait.
    places: Arc<Semaphore>,
    worker_slot: Arc<tokio::sync::Mutex<WorkerSlot>>,
    tensor_table: Mutex<TensorTable>,
    used: Mutex<Instant>,
}

/// The worker of an identity. One request at a time holds the slot.
#[derive(Debug, Default)]
pub(crate) struct WorkerSlot {
    live: Option<LiveWorker>,
}

/// A worker that is there.
#[derive(Debug)]
struct LiveWorker {
    session: WorkerSession,
    info: Arc<GpuWorkerInfo>,
}

/// Bytes on their way to a worker.
#[derive(Clone, Debug)]
pub(crate) enum UploadData {
    Bytes(Bytes),
    CopiedTensors(Arc<CopiedTensors>),
}

/// A request, ready to be sent.
#[derive(Debug)]
pub(crate) struct PreparedRequest {
    pub(crate) body: CborBody,
    pub(crate) uploads: Vec<(u64, UploadData)>,
    pub(crate) limits: CallLimits,
    pub(crate) operation: Option<Bytes32>,
}

impl Tenant {
    pub(crate) fn new(name: &str) -> Self {
        let now = Instant::now();
        Self {
            name: name.to_owned(),
            // One more for the request that is being done.
            places: Arc::new(Semaphore::new(QUEUE_MAX + 1)),
            worker_slot: Arc::default(),
            tensor_table: Mutex::new(TensorTable::new(now)),
            used: Mutex::new(now),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// A place in the queue.
    pub(crate) fn place(&self) -> Result<OwnedSemaphorePermit> {
        let place = Arc::clone(&self.places).try_acquire_owned();
        place.map_err(|_| {
            Error::Overloaded(format!("{QUEUE_MAX} requests of this identity are waiting"))
        })
    }

    /// The worker, when it is free.
    pub(crate) async fn worker_slot(&self) -> OwnedMutexGuard<WorkerSlot> {
        Arc::clone(&self.worker_slot).lock_owned().await
    }

    pub(crate) fn tensor_table<T>(&self, work: impl FnOnce(&mut TensorTable) -> T) -> T {
        work(&mut lock(&self.tensor_table))
    }

    pub(crate) fn touch(&self) {
        *lock(&self.used) = Instant::now();
    }

    /// Whether nothing would be missed.
    pub(crate) fn is_idle(&self) -> bool {
        let free = self.places.available_permits() > QUEUE_MAX;
        free && self.tensor_table(|tensor_table| tensor_table.is_settled(Instant::now()))
    }

    /// Ends leases, and the worker when there is no use for it, until nothing is left.
    pub(crate) fn look_after(self: &Arc<Self>, inner: &Arc<ComputeInner>) {
        let tenant = Arc::clone(self);
        let tick = inner.settings.tick;
        // Not held: the task ends with what it looks after.
        let inner = Arc::downgrade(inner);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(tick).await;
                if tenant.look(&inner).await {
                    return;
                }
            }
        });
    }

    /// Returns whether it is done.
    async fn look(self: &Arc<Self>, inner: &Weak<ComputeInner>) -> bool {
        let Some(inner) = inner.upgrade() else {
            return true;
        };
        let settings = &inner.settings;
        let now = Instant::now();
        self.tensor_table(|tensor_table| tensor_table.expire(now, settings.orphan_lease));
        // A request that holds the worker keeps it in use, and tidied it when it began.
        let Ok(mut worker_slot) = Arc::clone(&self.worker_slot).try_lock_owned() else {
            return false;
        };
        let unused = now.saturating_duration_since(*lock(&self.used)) >= settings.idle;
        if unused && self.tensor_table(|tensor_table| tensor_table.is_empty()) {
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
    /// What its worker said of itself, where there is one. One that died meanwhile is forgotten, and
    /// what it kept with it.
    pub(crate) fn info(&mut self, tenant: &Tenant) -> Option<Arc<GpuWorkerInfo>> {
        let live = self.live.as_mut()?;
        // Workers say nothing in sessions; the end of what they say is the end of the worker.
        if let Some(None) = live.session.next().now_or_never() {
            self.lose(tenant);
        }
        self.live.as_ref().map(|live| Arc::clone(&live.info))
    }

    /// Another worker.
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

    /// Makes the worker forget the buffers that no handle refers to.
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
        };
        // A worker that fails at this is gone, and what was to be forgotten with it.
        let (_wanted, given_up) = oneshot::channel();
        let _: Result<Vec<u8>> = self.exchange(tenant, sending, given_up).await;
    }

    /// Asks, and waits for the answer or until the worker has stopped. `given_up` resolves when the
    /// caller has given up.
    pub(crate) async fn exchange(
        &mut self,
        tenant: &Tenant,
        sending: PreparedRequest,
        given_up: oneshot::Receiver<ComputeAck>,
    ) -> Result<Vec<u8>> {
        let Some(live) = &self.live else {
            return Err(Error::Lost("it ended".to_owned()));
        };
        // The worker has the memory until it has answered, also where the caller gave up. Then it is taken back, whatever
        // descriptors of it the worker keeps.
        let mut handed_over = Vec::new();
        for (number, data) in sending.uploads {
            let copied = data.copied()?;
            hand_over(&live.session, number, &copied).await?;
            handed_over.push(copied);
        }
        let request = WorkerRequest::Role { body: sending.body };
        let mut call = live
            .session
            .call(request, sending.limits, sending.operation);
        let answer = tokio::select! {
            // An answer that is there counts, also where the caller gave up meanwhile.
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
            WorkerReply::Ok(blob) => Ok(blob.read(&answer.fds, ANSWER_BYTES_MAX)?),
            WorkerReply::Err(fault) => {
                let error = Error::from_fault(fault);
                if let Error::DeviceLost(_) = error {
                    // The device is lost to this process: the next request has another worker.
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
    let place = Some(session.room().reserve().await);
    let fd = copied.hand_over();
    let fd = fd.map_err(|error| Error::Internal(error.to_string()))?;
    let len = copied.len();
    let blobs = vec![(number, FrameBlob::Sealed { at: 0, len })];
    session.tell_reserved(
        SessionNotice::Role(CborBody::encode(&ComputeUpload { blobs })?),
        vec![fd],
        place,
    )?;
    Ok(())
}

/// Whether the worker is not there any more.
fn ends_worker(error: &WorkerCallError) -> bool {
    match error {
        WorkerCallError::Limit { killed, .. } => *killed,
        WorkerCallError::Lost(_) | WorkerCallError::SessionClosed => true,
        _ => false,
    }
}
