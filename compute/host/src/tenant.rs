//! One identity: its place in the queue, its worker, its tensors.

use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use alknet_compute_wire::{Ask, Info, Made, Upload};
use alknet_worker::{Blob, Body, CallError, CallLimits, Hash, Reply, Request, Session, Told};
use bytes::Bytes;
use futures_util::FutureExt;
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore, oneshot};

use crate::compute::{Inner, lock};
use crate::copies::Copied;
use crate::error::{Error, Result};
use crate::limits::{QUEUE_MAX, READ_BYTES_MAX, WALL_TIME};
use crate::shelf::Shelf;

/// Bytes of an answer: those of one read, and what is around them.
const ANSWER_BYTES_MAX: u64 = READ_BYTES_MAX + (64 << 10);

/// Somebody who computes.
#[derive(Debug)]
pub(crate) struct Tenant {
    name: String,
    /// One request is done, the others wait.
    places: Arc<Semaphore>,
    desk: Arc<tokio::sync::Mutex<Desk>>,
    shelf: Mutex<Shelf>,
    used: Mutex<Instant>,
}

/// The worker, for whoever has it.
#[derive(Debug, Default)]
pub(crate) struct Desk {
    live: Option<Live>,
}

/// A worker that is there.
#[derive(Debug)]
struct Live {
    session: Session,
    info: Arc<Info>,
}

/// Bytes on their way to a worker.
#[derive(Clone, Debug)]
pub(crate) enum Data {
    Bytes(Bytes),
    Copied(Arc<Copied>),
}

/// A request, ready to be sent.
#[derive(Debug)]
pub(crate) struct Sending {
    pub(crate) body: Body,
    pub(crate) uploads: Vec<(u64, Data)>,
    pub(crate) limits: CallLimits,
    pub(crate) operation: Option<Hash>,
}

impl Tenant {
    pub(crate) fn new(name: &str) -> Self {
        let now = Instant::now();
        Self {
            name: name.to_owned(),
            places: Arc::new(Semaphore::new(QUEUE_MAX + 1)),
            desk: Arc::default(),
            shelf: Mutex::new(Shelf::new(now)),
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
    pub(crate) async fn desk(&self) -> OwnedMutexGuard<Desk> {
        Arc::clone(&self.desk).lock_owned().await
    }

    pub(crate) fn shelf<T>(&self, work: impl FnOnce(&mut Shelf) -> T) -> T {
        work(&mut lock(&self.shelf))
    }

    pub(crate) fn touch(&self) {
        *lock(&self.used) = Instant::now();
    }

    /// Whether nothing would be missed.
    pub(crate) fn is_idle(&self) -> bool {
        let free = self.places.available_permits() > QUEUE_MAX;
        free && self.shelf(|shelf| shelf.is_settled(Instant::now()))
    }

    /// Ends leases, and the worker when there is no use for it, until nothing is left.
    pub(crate) fn look_after(self: &Arc<Self>, inner: &Arc<Inner>) {
        let tenant = Arc::clone(self);
        let tick = inner.settings.tick;
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
    async fn look(self: &Arc<Self>, inner: &Weak<Inner>) -> bool {
        let Some(inner) = inner.upgrade() else {
            return true;
        };
        let settings = &inner.settings;
        let now = Instant::now();
        self.shelf(|shelf| shelf.expire(now, settings.orphan_lease));
        // Whoever has the worker sees to these things too.
        let Ok(mut desk) = Arc::clone(&self.desk).try_lock_owned() else {
            return false;
        };
        let unused = now.saturating_duration_since(*lock(&self.used)) >= settings.idle;
        if unused && self.shelf(|shelf| shelf.is_empty()) {
            desk.live = None;
            self.shelf(Shelf::lose_all);
        }
        desk.tidy(self).await;
        let over = desk.live.is_none();
        drop(desk);
        over && inner.forget(self)
    }
}

impl Desk {
    /// What its worker said of itself, where there is one. One that died meanwhile is forgotten, and
    /// what it kept with it.
    pub(crate) fn info(&mut self, tenant: &Tenant) -> Option<Arc<Info>> {
        let live = self.live.as_mut()?;
        // Workers say nothing in sessions; the end of what they say is the end of the worker.
        if let Some(None) = live.session.next().now_or_never() {
            self.lose(tenant);
        }
        self.live.as_ref().map(|live| Arc::clone(&live.info))
    }

    /// Another worker.
    pub(crate) fn seat(&mut self, session: Session) {
        let info = Arc::default();
        self.live = Some(Live { session, info });
    }

    pub(crate) fn learn(&mut self, info: &Arc<Info>) {
        if let Some(live) = &mut self.live {
            live.info = Arc::clone(info);
        }
    }

    fn lose(&mut self, tenant: &Tenant) {
        self.live = None;
        tenant.shelf(Shelf::lose_all);
    }

    /// Lets the worker forget what nobody has a handle for.
    pub(crate) async fn tidy(&mut self, tenant: &Tenant) {
        if self.live.is_none() || !tenant.shelf(|shelf| shelf.has_garbage()) {
            return;
        }
        let buffers = tenant.shelf(Shelf::garbage);
        let Ok(body) = Body::of(&Ask::Drop { buffers }) else {
            return;
        };
        let sending = Sending {
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

    /// Asks, and waits for the answer or until the worker has stopped. `given_up` resolves when nobody
    /// wants the answer any more.
    pub(crate) async fn exchange(
        &mut self,
        tenant: &Tenant,
        sending: Sending,
        given_up: oneshot::Receiver<Made>,
    ) -> Result<Vec<u8>> {
        let Some(live) = &self.live else {
            return Err(Error::Lost("it ended".to_owned()));
        };
        // The worker has the memory until it has answered, also where the caller gave up. Then it is taken back, whatever
        // descriptors of it the worker keeps.
        let mut handed_over = Vec::new();
        for (number, data) in sending.uploads {
            let copied = data.copied()?;
            hand_over(&live.session, number, &copied)?;
            handed_over.push(copied);
        }
        let request = Request::Role { body: sending.body };
        let mut call = live
            .session
            .call(request, sending.limits, sending.operation);
        let answer = tokio::select! {
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
            Reply::Ok(blob) => Ok(blob.read(&answer.fds, ANSWER_BYTES_MAX)?),
            Reply::Err(fault) => {
                let error = Error::from_fault(fault);
                if let Error::DeviceLost(_) = error {
                    live.session.kill();
                    self.lose(tenant);
                }
                Err(error)
            }
        }
    }
}

impl Data {
    /// Whether it is a copy of a stored tensor.
    pub(crate) const fn is_stored(&self) -> bool {
        matches!(self, Self::Copied(_))
    }

    fn copied(self) -> Result<Arc<Copied>> {
        match self {
            Self::Bytes(bytes) => {
                let copied = Copied::of(&bytes).map(Arc::new);
                copied.map_err(|error| Error::Internal(error.to_string()))
            }
            Self::Copied(copied) => Ok(copied),
        }
    }
}

fn hand_over(session: &Session, number: u64, copied: &Copied) -> Result<()> {
    let fd = copied.hand_over();
    let fd = fd.map_err(|error| Error::Internal(error.to_string()))?;
    let len = copied.len();
    let blobs = vec![(number, Blob::Sealed { at: 0, len })];
    session.tell(Told::Role(Body::of(&Upload { blobs })?), vec![fd])?;
    Ok(())
}

/// Whether the worker is not there any more.
fn ends_worker(error: &CallError) -> bool {
    match error {
        CallError::Limit { killed, .. } => *killed,
        CallError::Lost(_) | CallError::SessionClosed => true,
        _ => false,
    }
}
