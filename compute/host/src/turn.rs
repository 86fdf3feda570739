//! A caller's turn at its worker.

use std::sync::Arc;
use std::time::{Duration, Instant};

use alknet_call::{CallError, Ctx};
use alknet_compute_wire::limits::INLINE_BYTES_MAX as FRAME_BYTES_MAX;
use alknet_compute_wire::{ByteSource, ComputeRequest, GpuWorkerInfo, ResultSink};
use alknet_worker::{Bytes32, CallLimits, CborBody};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, oneshot};

use crate::compute::Compute;
use crate::copies::CopiedTensors;
use crate::error::{Error, Result};
use crate::limits::{
    ANSWER_BYTES_BESIDES, INLINE_BYTES_MAX, PARSED_BYTES_MAX, READ_BYTES_MAX, REFERENCED_BESIDES,
    WALL_TIME,
};
use crate::tenant::{PreparedRequest, Tenant, UploadData, WorkerSlot};
use crate::tensor::{TensorArg, TensorSpec};
use crate::tensor_table::{HandleUser, TensorTable};

/// A request's turn at the worker of its identity: no other request has the worker while it lasts. Dropping it drops
/// the tensors that it made and did not keep.
#[derive(Debug)]
pub(crate) struct WorkerTurn {
    compute: Compute,
    tenant: Arc<Tenant>,
    /// `None` while a request is with the worker.
    worker_slot: Option<OwnedMutexGuard<WorkerSlot>>,
    _permit: OwnedSemaphorePermit,
    ctx: Ctx,
    info: Arc<GpuWorkerInfo>,
    uploads: Vec<(u64, UploadData)>,
    /// Numbers and bytes of the tensors that this turn makes.
    fresh: Vec<(u64, u64)>,
}

/// A resolved tensor of a request.
#[derive(Clone, Debug)]
pub(crate) struct Operand {
    pub(crate) source: ByteSource,
    pub(crate) kind: TensorSpec,
}

/// The wall time of a request whose caller would wait for `wanted`; `gpu` is its limit of time on the GPU if it has
/// copies of stored tensors. The worker, which may have been taken over, reports what part of a request is time on
/// the GPU, so copies get a limit of wall time as well.
fn wall_time(wanted: Duration, gpu: Option<Duration>) -> Duration {
    gpu.map_or(wanted, |gpu| {
        wanted.min(gpu.saturating_add(REFERENCED_BESIDES))
    })
}

/// A request with its uploads and limits, as it goes to the worker. `wanted` is the time for which its caller would
/// wait, and `gpu_time` the limit of time on the GPU.
fn prepared(
    ask: &ComputeRequest,
    uploads: Vec<(u64, UploadData)>,
    operation: Option<Bytes32>,
    (wanted, gpu_time): (Duration, Duration),
) -> Result<PreparedRequest> {
    // The node makes these requests itself, and they take longer on a slow processor.
    let own = matches!(ask, ComputeRequest::Info | ComputeRequest::Measure { .. });
    let gpu = (!own).then_some(gpu_time);
    let holds_copies = uploads.iter().any(|(_, data)| data.is_stored());
    Ok(PreparedRequest {
        body: CborBody::encode(ask)?,
        limits: CallLimits {
            wall: wall_time(wanted, gpu.filter(|_| holds_copies)),
            // The worker's threads use several seconds of processor time in one second.
            cpu: None,
            gpu,
        },
        uploads,
        operation,
        answer_bytes: match ask {
            ComputeRequest::Read { .. } => READ_BYTES_MAX + ANSWER_BYTES_BESIDES,
            _ => PARSED_BYTES_MAX,
        },
    })
}

/// Parses a worker's response. Its lists have limits, so that it takes little more memory than its bytes.
fn parsed<T: DeserializeOwned>(answer: Vec<u8>) -> Result<T> {
    Ok(CborBody::from_cbor(answer).read()?)
}

/// The form in which a caller wants a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ResultForm {
    Handle,
    Inline,
}

impl WorkerTurn {
    pub(crate) async fn begin(compute: &Compute, tenant: Arc<Tenant>, ctx: &Ctx) -> Result<Self> {
        let permit = tenant.permit()?;
        tenant.touch();
        let mut worker_slot = tenant.worker_slot().await;
        let info = worker_slot.info(&tenant);
        let opened = if info.is_none() {
            Some(compute.0.workers.open(tenant.lease()).await?)
        } else {
            worker_slot.tidy(&tenant).await;
            None
        };
        let fresh = opened.is_some();
        if let Some(session) = opened {
            worker_slot.seat(session);
        }
        let mut turn = Self {
            compute: compute.clone(),
            tenant,
            worker_slot: Some(worker_slot),
            _permit: permit,
            ctx: ctx.clone(),
            info: info.unwrap_or_default(),
            uploads: Vec::new(),
            fresh: Vec::new(),
        };
        if fresh {
            let info: Arc<GpuWorkerInfo> = Arc::new(turn.ask(&ComputeRequest::Info, None).await?);
            compute.learn(&info);
            if let Some(worker_slot) = &mut turn.worker_slot {
                worker_slot.learn(&info);
            }
            turn.info = info;
        }
        Ok(turn)
    }

    /// The device that the worker computes with.
    pub(crate) fn info(&self) -> &Arc<GpuWorkerInfo> {
        &self.info
    }

    /// Sends a request to the worker. If the worker crashes, the crash counts against `operation`.
    pub(crate) async fn ask<T: DeserializeOwned>(
        &mut self,
        ask: &ComputeRequest,
        operation: Option<Bytes32>,
    ) -> Result<T> {
        let answer = self.exchange(ask, operation).await?;
        parsed(answer)
    }

    /// The same for responses that are plain bytes. If the caller aborts half-way, the worker aborts the request, and
    /// the next turn begins once the worker has stopped.
    pub(crate) async fn exchange(
        &mut self,
        ask: &ComputeRequest,
        operation: Option<Bytes32>,
    ) -> Result<Vec<u8>> {
        let lost = || Error::Internal("a request came to no end".to_owned());
        let left = |deadline: tokio::time::Instant| {
            deadline.saturating_duration_since(tokio::time::Instant::now())
        };
        let times = (
            self.ctx.deadline().map_or(WALL_TIME, left),
            self.compute.0.settings.gpu_time,
        );
        let uploads = std::mem::take(&mut self.uploads);
        let sending = prepared(ask, uploads, operation, times)?;
        let mut worker_slot = self.worker_slot.take().ok_or_else(lost)?;
        let tenant = Arc::clone(&self.tenant);
        let (sender, outcome) = oneshot::channel();
        let (wanted, given_up) = oneshot::channel();
        // The request runs in a task of its own, which waits for the worker even if the caller is gone.
        tokio::spawn(async move {
            let result = worker_slot.exchange(&tenant, sending, given_up).await;
            // If the caller has aborted, the send fails and drops the worker's lock, so the next request has its
            // turn.
            let _ = sender.send((worker_slot, result));
        });
        let (worker_slot, result) = outcome.await.map_err(|_| lost())?;
        drop(wanted);
        self.worker_slot = Some(worker_slot);
        self.tenant.touch();
        result
    }

    /// Resolves and copies the tensors to which a request refers. A request that waits for its turn has no copies,
    /// and one whose turn it is gets room for all of them before the first is made.
    ///
    /// # Errors
    /// As `tensor/open`, and if all copies together are too large.
    pub(crate) async fn resolve(&mut self, args: &mut [&mut TensorArg]) -> Result<()> {
        let (mut named, mut copies, mut bytes) = (Vec::new(), Vec::new(), 0_u64);
        for arg in args.iter_mut() {
            if let TensorArg::Ref(reference) = &**arg {
                let (referenced, kind) = self.compute.find(&self.ctx, reference).await?;
                bytes = bytes.saturating_add(kind.bytes());
                copies.push(referenced.copy);
                named.push((arg, kind));
            }
        }
        if named.is_empty() {
            return Ok(());
        }
        let claim = self.compute.reserve_copies(&self.tenant, bytes).await?;
        // The claim moves to the thread that copies: a caller that aborts does not stop the copying, which holds its
        // room until it ends.
        let copying = tokio::task::spawn_blocking(move || {
            let claim = Arc::new(claim);
            let copied = copies.into_iter().map(|copy| {
                let memory = copy()?;
                Ok(CopiedTensors::stored(memory, &claim))
            });
            copied.collect::<std::result::Result<Vec<_>, CallError>>()
        });
        let copied = copying
            .await
            .map_err(|error| Error::Internal(error.to_string()))?;
        for ((arg, kind), copied) in named.into_iter().zip(copied?) {
            if kind.bytes() != copied.len() {
                let why = "a stored tensor of another length".to_owned();
                return Err(Error::Internal(why));
            }
            **arg = TensorArg::Stored(Arc::new(copied), kind);
        }
        Ok(())
    }

    /// Turns a tensor of a request into an operand.
    pub(crate) fn operand(&mut self, arg: TensorArg) -> Result<Operand> {
        match arg {
            TensorArg::Handle {
                handle,
                dtype,
                shape,
            } => {
                let (number, kind) = self.find(&handle)?;
                // A caller may repeat type and shape beside a handle; then they must be the handle's.
                let other = dtype.is_some_and(|dtype| dtype != kind.dtype);
                if other || shape.is_some_and(|shape| shape != kind.shape) {
                    return Err(Error::Shape(format!(
                        "the handle's tensor is {:?} of {}",
                        kind.shape,
                        kind.dtype.name()
                    )));
                }
                let source = ByteSource::Buffer(number);
                Ok(Operand { source, kind })
            }
            TensorArg::Inline(bytes, kind) => {
                let source = self.source(UploadData::Bytes(bytes));
                Ok(Operand { source, kind })
            }
            TensorArg::Stored(copied, kind) => {
                let source = self.source(UploadData::CopiedTensors(copied));
                Ok(Operand { source, kind })
            }
            TensorArg::Ref(_) => Err(Error::Internal("a reference was not looked up".to_owned())),
        }
    }

    /// Number and type of a handle's tensor.
    pub(crate) fn find(&mut self, handle: &str) -> Result<(u64, TensorSpec)> {
        let (user, until) = (self.user(), self.until());
        self.tenant
            .tensor_table(|tensor_table| tensor_table.find(handle, user, until))
    }

    /// Bytes for the next request: small ones within it, others uploaded ahead of it.
    pub(crate) fn source(&mut self, data: UploadData) -> ByteSource {
        if let UploadData::Bytes(bytes) = &data
            && bytes.len() <= FRAME_BYTES_MAX
        {
            return ByteSource::Bytes(Bytes::clone(bytes));
        }
        let number = self.tenant.tensor_table(TensorTable::number);
        self.uploads.push((number, data));
        ByteSource::Upload(number)
    }

    /// The sink of a result of this type: as the caller wants it, or by its length.
    pub(crate) fn sink(
        &mut self,
        kind: &TensorSpec,
        wanted: Option<ResultForm>,
    ) -> Result<ResultSink> {
        let small = kind.bytes() <= INLINE_BYTES_MAX as u64;
        match wanted {
            Some(ResultForm::Inline) if !small => Err(Error::TooLarge(format!(
                "{} bytes; at most {INLINE_BYTES_MAX} come inline, others as handles",
                kind.bytes()
            ))),
            Some(ResultForm::Inline) => Ok(ResultSink::Answer),
            None if small => Ok(ResultSink::Answer),
            None | Some(ResultForm::Handle) => Ok(ResultSink::Buffer(self.number(kind)?)),
        }
    }

    /// A number for a tensor that this turn makes, if there is room for it.
    pub(crate) fn number(&mut self, kind: &TensorSpec) -> Result<u64> {
        let bytes = self.fresh.iter().map(|(_, bytes)| bytes).sum::<u64>() + kind.bytes();
        let (more, most) = (self.fresh.len() + 1, self.compute.0.settings.tenant_bytes);
        let number = self.tenant.tensor_table(|tensor_table| {
            tensor_table.check_quota(more, bytes, most, Instant::now())?;
            Ok::<_, Error>(tensor_table.number())
        })?;
        self.fresh.push((number, kind.bytes()));
        Ok(number)
    }

    /// A handle for a tensor that this turn made, in the form of responses.
    pub(crate) fn make_handle(&mut self, number: u64, kind: &TensorSpec) -> Result<Value> {
        let (user, until) = (self.user(), self.until());
        let handle = (self.tenant).tensor_table(|tensor_table| {
            tensor_table.make_handle(number, kind.clone(), user, until)
        })?;
        // A tensor with a handle is no longer dropped with the turn.
        self.fresh.retain(|(fresh, _)| *fresh != number);
        Ok(json!({
            "handle": handle,
            "dtype": kind.dtype.name(),
            "shape": kind.shape,
            "expires_ms": u64::try_from(self.lease().as_millis()).unwrap_or(u64::MAX),
        }))
    }

    /// Ends a handle.
    pub(crate) async fn drop_handle(&mut self, handle: &str) -> Result<()> {
        self.tenant
            .tensor_table(|tensor_table| tensor_table.drop_handle(handle))?;
        if let Some(worker_slot) = &mut self.worker_slot {
            worker_slot.tidy(&self.tenant).await;
        }
        Ok(())
    }

    /// The lease of a handle from now on.
    pub(crate) fn lease(&self) -> Duration {
        self.compute.0.settings.lease
    }

    fn until(&self) -> Instant {
        Instant::now() + self.lease()
    }

    fn user(&self) -> HandleUser {
        HandleUser::new(self.ctx.caller())
    }
}

impl Drop for WorkerTurn {
    fn drop(&mut self) {
        let numbers = self.fresh.drain(..).map(|(number, _)| number);
        self.tenant
            .tensor_table(|tensor_table| tensor_table.discard(numbers));
        self.tenant.touch();
    }
}

#[cfg(test)]
mod tests {
    use alknet_compute_wire::limits::{BINDINGS_MAX, FEATURES_MAX};
    use alknet_compute_wire::{DispatchReply, GpuAdapter};

    use super::*;
    use crate::limits::GPU_TIME;

    #[test]
    fn an_answer_of_many_short_parts_is_refused_before_it_is_parsed() {
        // What a worker that an attacker took over may answer: an empty output takes three bytes, and forty once it is
        // parsed. A name of a feature takes one, and twenty-four.
        let outputs = |count: usize| {
            let outputs: Vec<(u32, Bytes)> = vec![(0, Bytes::new()); count];
            let reply = DispatchReply {
                outputs,
                gpu_ms: 0.0,
                jit_ms: 0.0,
            };
            CborBody::encode(&reply).expect("CBOR").into_bytes()
        };
        let features = |count: usize| {
            let adapter = GpuAdapter {
                features: vec![String::new(); count],
                ..GpuAdapter::default()
            };
            let info = GpuWorkerInfo {
                adapter: Some(adapter),
                ..GpuWorkerInfo::default()
            };
            CborBody::encode(&info).expect("CBOR").into_bytes()
        };
        let reply = |bytes| parsed::<DispatchReply>(bytes);
        let info = |bytes| parsed::<GpuWorkerInfo>(bytes);
        for count in [BINDINGS_MAX + 1, 1 << 20] {
            let error = reply(outputs(count)).expect_err("too many outputs");
            assert!(
                error.to_string().contains("more than 16 elements"),
                "{error}"
            );
        }
        for count in [FEATURES_MAX + 1, 1 << 20] {
            let error = info(features(count)).expect_err("too many features");
            assert!(
                error.to_string().contains("more than 128 elements"),
                "{error}"
            );
        }
        let most = reply(outputs(BINDINGS_MAX)).expect("as many as a shader has");
        assert_eq!(most.outputs.len(), BINDINGS_MAX);
        info(features(FEATURES_MAX)).expect("as many as a device has");
    }

    #[test]
    fn only_an_answer_that_is_bytes_may_be_long() {
        let limit = |ask: &ComputeRequest| {
            let sending = prepared(ask, Vec::new(), None, (WALL_TIME, GPU_TIME));
            sending.expect("a request").answer_bytes
        };
        let read = ComputeRequest::Read {
            buffer: 1,
            offset: 0,
            len: 3,
        };
        assert_eq!(limit(&read), READ_BYTES_MAX + ANSWER_BYTES_BESIDES);
        assert_eq!(limit(&ComputeRequest::Info), PARSED_BYTES_MAX);
        // A tensor for each binding fits.
        let outputs = (0..16).map(|at| (at, Bytes::from(vec![7; INLINE_BYTES_MAX])));
        let reply = DispatchReply {
            outputs: outputs.collect(),
            gpu_ms: 0.0,
            jit_ms: 0.0,
        };
        let bytes = CborBody::encode(&reply).expect("CBOR").into_bytes();
        assert!(bytes.len() as u64 <= PARSED_BYTES_MAX);
        assert_eq!(parsed::<DispatchReply>(bytes).expect("a reply"), reply);
    }

    #[test]
    fn copies_of_stored_tensors_are_held_for_a_bounded_time() {
        let bytes = || UploadData::Bytes(Bytes::from_static(b"abc"));
        let copy = || {
            let copied = CopiedTensors::from_bytes(b"abc").expect("memory");
            UploadData::CopiedTensors(Arc::new(copied))
        };
        let ask = ComputeRequest::Read {
            buffer: 1,
            offset: 0,
            len: 3,
        };
        // The limits with which a request with these uploads goes to the worker.
        let limits = |uploads: Vec<UploadData>, wanted: Duration, gpu_time: Duration| {
            let uploads = (1..).zip(uploads).collect();
            let sending = prepared(&ask, uploads, None, (wanted, gpu_time));
            sending.expect("a request").limits
        };
        let longest = Duration::from_secs(600);
        let without = limits(vec![bytes()], longest, GPU_TIME);
        assert_eq!((without.wall, without.gpu), (longest, Some(GPU_TIME)));
        let held = limits(vec![bytes(), copy()], longest, GPU_TIME);
        let most = GPU_TIME + REFERENCED_BESIDES;
        assert_eq!((held.wall, held.gpu), (most, Some(GPU_TIME)));
        // A request without a deadline of its own has no less.
        assert_eq!(limits(vec![copy()], WALL_TIME, GPU_TIME).wall, WALL_TIME);
        let short = Duration::from_secs(1);
        assert_eq!(limits(vec![copy()], short, GPU_TIME).wall, short);
        assert_eq!(limits(vec![copy()], longest, Duration::MAX).wall, longest);
    }
}
