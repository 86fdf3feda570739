//! Calls of a script through the registry.
//!
//! Each call runs in a task of its own, so that a slow operation delays nothing else. Its result returns to the
//! session's task, which alone exchanges messages with the worker.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use alknet_call::{
    CallBody, CallError, CallOutput, Env, ErrorCode, InvokeOptions, PeerRef, Provenance,
    ResolvedOperation,
};
use alknet_core::Capabilities;
use alknet_runtime::limits::{JSON_BYTES, RECORDED_BYTES_MAX};
use alknet_runtime::{OpError, OperationSchemas, RecorderTicket, RuntimeCode, SecretMarks};
use alknet_worker::limits::INLINE_BYTES_MAX;
use alknet_worker::{
    DescriptorPermit, DescriptorQuota, FrameBlob, SessionNotice, WorkerEvent, WorkerReply,
};
use futures_util::StreamExt;
use serde_json::Value;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::AbortHandle;

use super::TensorFiles;
use super::capability_calls;
use super::failure::{op_error, op_fault};
use super::memory::MemoryReservation;
use crate::limits::UNACKNOWLEDGED;
use crate::wire::{self, JsonText, WireCallOptions, WireReply};

/// The operation whose answer may be a file.
const MAPPED: &str = "tensor/open";

/// The prefix of operations whose answers state their time on the GPU.
const COMPUTE: &str = "compute/";

/// More bytes than a frame has around the value and the tail of an answer.
const AROUND_VALUE_BYTES: usize = 256;

/// The `variant` of an answer that a shader computed.
const WGSL: &[u8] = br#""wgsl""#;

/// A request of a script.
pub(super) struct OutgoingCall {
    pub(super) id: u64,
    /// The call into the session that it belongs to.
    pub(super) call: u64,
    /// The name without a leading slash.
    pub(super) name: String,
    pub(super) input: Value,
    pub(super) opts: WireCallOptions,
    /// The bytes that `{"$bin": …}` in the input refers to.
    pub(super) tail: Option<Vec<u8>>,
    /// The reservations last as long as the call runs.
    pub(super) held: Vec<MemoryReservation>,
    pub(super) env: Env,
    /// The capabilities for a capability action; `None` for a call of an operation.
    pub(super) capabilities: Option<Capabilities>,
    /// The recorder's ticket for the result.
    pub(super) noted: Option<RecorderTicket>,
}

/// A result, or a part of one.
pub(super) enum OutgoingReply {
    /// An answer with its time on the GPU.
    Reply(u64, WorkerReply, AnswerDescriptors, Duration),
    Item(u64, FrameBlob, AnswerDescriptors),
    End(u64),
}

/// The descriptors of an answer, and the permit to send them to the worker.
#[derive(Default)]
pub(super) struct AnswerDescriptors {
    pub(super) fds: Vec<OwnedFd>,
    pub(super) permit: Option<DescriptorPermit>,
}

impl OutgoingReply {
    pub(super) const fn id(&self) -> u64 {
        match self {
            Self::Reply(id, ..) | Self::Item(id, ..) | Self::End(id) => *id,
        }
    }

    /// The time on the GPU.
    pub(super) const fn gpu(&self) -> Duration {
        match self {
            Self::Reply(.., gpu) => *gpu,
            Self::Item(..) | Self::End(_) => Duration::ZERO,
        }
    }

    /// The form for the worker.
    pub(super) fn into_notice(self) -> (SessionNotice, AnswerDescriptors) {
        match self {
            Self::Reply(id, reply, fds, _) => (SessionNotice::Reply { id, reply }, fds),
            Self::Item(id, blob, fds) => {
                let event = WorkerEvent::Item(blob);
                (SessionNotice::Event { id, event }, fds)
            }
            Self::End(id) => {
                let event = WorkerEvent::End;
                (
                    SessionNotice::Event { id, event },
                    AnswerDescriptors::default(),
                )
            }
        }
    }
}

/// All requests of a session that are in progress.
pub(super) struct OutgoingCalls {
    replies: mpsc::UnboundedSender<OutgoingReply>,
    files: Files,
    /// For the descriptors of answers: a worker that does not read makes the calls wait, and not the node open more.
    descriptors: DescriptorQuota,
    open: HashMap<u64, OpenOutgoingCall>,
}

struct OpenOutgoingCall {
    task: AbortHandle,
    /// The call into the session that the request belongs to.
    call: u64,
    /// Permits for the items that may be sent.
    window: Arc<Semaphore>,
    /// The ticket of a subscription, which may end at any item.
    noted: Option<RecorderTicket>,
}

impl OutgoingCalls {
    pub(super) fn new(
        replies: mpsc::UnboundedSender<OutgoingReply>,
        files: Files,
        descriptors: DescriptorQuota,
    ) -> Self {
        Self {
            replies,
            files,
            descriptors,
            open: HashMap::new(),
        }
    }

    pub(super) fn has(&self, id: u64) -> bool {
        self.open.contains_key(&id)
    }

    /// The call into the session that a request belongs to, until the script has given it up or got its last answer.
    pub(super) fn call_of(&self, id: u64) -> Option<u64> {
        self.open.get(&id).map(|open| open.call)
    }

    pub(super) fn begin(&mut self, outgoing: OutgoingCall, subscribes: bool) {
        let (id, of) = (outgoing.id, outgoing.call);
        let replies = self.replies.clone();
        let window = Arc::new(Semaphore::new(UNACKNOWLEDGED));
        let noted = outgoing.noted.clone().filter(|_| subscribes);
        let descriptors = self.descriptors.clone();
        let task = match subscribes {
            true => tokio::spawn(follow(outgoing, replies, Arc::clone(&window), descriptors)),
            false => {
                let files = self
                    .files
                    .clone()
                    .filter(|_| outgoing.opts.map && outgoing.name == MAPPED);
                tokio::spawn(async move {
                    let (reply, fds, gpu) = call(outgoing, files, &descriptors).await;
                    // A session that has ended receives nothing.
                    let _ = replies.send(OutgoingReply::Reply(id, reply, fds, gpu));
                })
            }
        };
        let task = task.abort_handle();
        let open = OpenOutgoingCall {
            task,
            call: of,
            window,
            noted,
        };
        self.open.insert(id, open);
    }

    /// Whether the script still waits for this; its last answer ends the wait.
    pub(super) fn ends(&mut self, reply: &OutgoingReply) -> bool {
        match reply {
            OutgoingReply::Item(id, ..) => self.open.contains_key(id),
            OutgoingReply::Reply(id, ..) | OutgoingReply::End(id) => self.open.remove(id).is_some(),
        }
    }

    /// Handles the script's report that it took items, which cannot be more than were sent.
    pub(super) fn allow(&self, id: u64, items: usize) {
        if let Some(open) = self.open.get(&id) {
            let most = UNACKNOWLEDGED.saturating_sub(open.window.available_permits());
            open.window.add_permits(items.min(most));
        }
    }

    /// Gives a request up. Returns whether it was in progress.
    pub(super) fn give_up(&mut self, id: u64) -> bool {
        let Some(open) = self.open.remove(&id) else {
            return false;
        };
        open.task.abort();
        if let Some(noted) = open.noted {
            noted.left();
        }
        true
    }

    pub(super) fn give_up_all(&mut self) {
        for (_, open) in self.open.drain() {
            open.task.abort();
        }
    }
}

impl Drop for OutgoingCalls {
    fn drop(&mut self) {
        self.give_up_all();
    }
}

type Files = Option<Arc<dyn TensorFiles>>;

async fn call(
    outgoing: OutgoingCall,
    files: Files,
    descriptors: &DescriptorQuota,
) -> (WorkerReply, AnswerDescriptors, Duration) {
    let (name, noted) = (outgoing.name.clone(), outgoing.noted.clone());
    let mut gpu = Duration::ZERO;
    let computes = computes_here(&outgoing);
    let answered = try_call(outgoing, files, descriptors, computes.then_some(&mut gpu)).await;
    match answered {
        Ok((blob, fds)) => (WorkerReply::Ok(blob), fds, gpu),
        Err(error) => {
            let error = op_error(&error, &name);
            if let Some(noted) = noted {
                noted.failed(&error);
            }
            let none = AnswerDescriptors::default();
            (WorkerReply::Err(op_fault(&error)), none, gpu)
        }
    }
}

/// Whether the answer may state a time on this node's GPU.
fn computes_here(outgoing: &OutgoingCall) -> bool {
    outgoing.name.starts_with(COMPUTE)
        && options(&outgoing.name, &outgoing.opts)
            .ok()
            .and_then(|options| outgoing.env.find(&outgoing.name, &options))
            .is_some_and(|found| is_here(&found))
}

/// Whether a call reaches an operation of this node itself. Even a call without a peer reaches a peer if this node
/// lacks the operation, and the statements of peers and imported servers do not count.
fn is_here(found: &ResolvedOperation) -> bool {
    found.peer().is_none() && found.provenance() == Provenance::Local
}

/// The source of the file for a tensor that a script wants to map. There is one only if this node's own operation
/// decides who reads the tensor: a peer may allow anything, and the file would be this node's.
fn mappable(
    env: &Env,
    name: &str,
    options: &InvokeOptions,
    files: Files,
) -> Result<Files, CallError> {
    match env.find(name, options) {
        Some(found) if is_here(&found) => Ok(files),
        Some(_) => Err(CallError::invalid_input(
            "only tensors of this node can be mapped; the call reaches another node or a server",
        )),
        // The call itself will fail. If a peer serves the operation by then, nothing is mapped.
        None => Ok(None),
    }
}

/// The time on the GPU that an answer states. The function makes no tree of the answer, which may be longer than a
/// script may take; that is checked later.
fn on_gpu(answer: &CallBody) -> Duration {
    let variant = answer.member("variant");
    let by_shader = variant.is_some_and(|variant| variant.raw() == WGSL);
    let time = answer.member(if by_shader { "ms" } else { "gpu_ms" });
    let millis = time.and_then(|time| time.parse::<f64>().ok());
    // An invalid duration counts as no time, because nothing else depends on this value.
    Duration::try_from_secs_f64(millis.unwrap_or_default() / 1e3).unwrap_or_default()
}

async fn try_call(
    outgoing: OutgoingCall,
    files: Files,
    descriptors: &DescriptorQuota,
    gpu: Option<&mut Duration>,
) -> Result<(FrameBlob, AnswerDescriptors), CallError> {
    if let Some(capabilities) = &outgoing.capabilities {
        let answer = capability_calls::act(capabilities, &outgoing.name, &outgoing.input);
        let answer = answer.inspect_err(|error| {
            if error.code == ErrorCode::Unavailable {
                outgoing.env.note_vacancy();
            }
        })?;
        let packed = pack(&CallBody::json(&answer)?, descriptors).await?;
        if let Some(noted) = &outgoing.noted {
            noted.answered(&answer, None);
        }
        return Ok(packed);
    }
    let options = options(&outgoing.name, &outgoing.opts)?;
    let OutgoingCall {
        name,
        input,
        opts,
        tail,
        held: _held,
        env,
        noted,
        ..
    } = outgoing;
    let files = match opts.map {
        true => mappable(&env, &name, &options, files)?,
        false => None,
    };
    let source = files.as_ref().and_then(|_| input.get("src").cloned());
    // Both the value and the text stay in memory: the operation needs one, and its schema the other.
    let input = CallBody::from(match tail {
        Some(tail) => CallOutput::Mixed(input, tail.into()),
        None => CallOutput::Value(input),
    });
    let began = Instant::now();
    let answer = env.invoke_body(&name, input, &options).await;
    if let Some(gpu) = gpu {
        *gpu = match &answer {
            Ok(answer) => on_gpu(answer),
            // The operation stopped there after it had used all of its time.
            Err(error) if is_gpu_timeout(error) => began.elapsed(),
            Err(_) => Duration::ZERO,
        };
    }
    let answer = answer?;
    match (files, source) {
        (Some(files), Some(source)) => {
            let permit = descriptors.reserve().await;
            let file = files.open(&env, source).await?;
            pack_file(&answer, file.into(), permit)
        }
        _ if opts.map => Err(CallError::unavailable("this node maps no stored tensors")),
        _ => {
            let packed = pack(&answer, descriptors).await?;
            if let Some(noted) = noted {
                note(&noted, &answer);
            }
            Ok(packed)
        }
    }
}

fn is_gpu_timeout(error: &CallError) -> bool {
    let code = error
        .details
        .as_ref()
        .and_then(|details| details.get("code"));
    code.and_then(Value::as_str) == Some(RuntimeCode::GpuTimeout.name())
}

/// An answer with the file that it names, in the form of the frames.
fn pack_file(
    answer: &CallBody,
    file: OwnedFd,
    permit: DescriptorPermit,
) -> Result<(FrameBlob, AnswerDescriptors), CallError> {
    let (mut fds, permit) = (vec![file], Some(permit));
    let answer = WireReply::File(value(answer)?, 0);
    let blob = wire::blob(&answer, &mut fds).map_err(|error| unsendable(&error))?;
    Ok((blob, AnswerDescriptors { fds, permit }))
}

/// An answer in the form of the frames. A large one waits for its permit before memory is made for it.
async fn pack(
    answer: &CallBody,
    descriptors: &DescriptorQuota,
) -> Result<(FrameBlob, AnswerDescriptors), CallError> {
    let value = value(answer)?;
    let bytes = answer.raw().len() + answer.tail().len() + AROUND_VALUE_BYTES;
    let permit = match bytes > INLINE_BYTES_MAX {
        true => Some(descriptors.reserve().await),
        false => None,
    };
    let mut fds = Vec::new();
    let answer = match answer.tail() {
        tail if tail.is_empty() => WireReply::Json(value),
        tail => {
            let blob =
                FrameBlob::pack(tail.to_vec(), &mut fds).map_err(|error| unsendable(&error))?;
            WireReply::Mixed(value, blob)
        }
    };
    let blob = wire::blob(&answer, &mut fds).map_err(|error| unsendable(&error))?;
    Ok((blob, AnswerDescriptors { fds, permit }))
}

/// Records an answer, unless it is too long for a record: recording makes a value of it.
fn note(noted: &RecorderTicket, answer: &CallBody) {
    if answer.raw().len() > RECORDED_BYTES_MAX {
        return noted.leave_out();
    }
    let tail = answer.tail();
    noted.answered(answer.value(), (!tail.is_empty()).then_some(tail));
}

/// The same for an item of a subscription.
fn note_item(noted: &RecorderTicket, item: &CallBody) {
    if item.raw().len() > RECORDED_BYTES_MAX {
        return noted.leave_out();
    }
    let tail = item.tail();
    noted.yielded(item.value(), (!tail.is_empty()).then_some(tail));
}

/// The answer for the script, of which the node makes no value.
fn value(answer: &CallBody) -> Result<JsonText<'_>, CallError> {
    match answer.raw().len() <= JSON_BYTES {
        true => Ok(JsonText(answer.raw())),
        false => Err(CallError::new(
            ErrorCode::InvalidOutput,
            "the answer is longer than a script may take",
        )),
    }
}

fn unsendable(error: &alknet_worker::WorkerFrameError) -> CallError {
    CallError::internal(format!("the answer cannot be sent to the script: {error}"))
}

fn options(name: &str, opts: &WireCallOptions) -> Result<InvokeOptions, CallError> {
    let own = &opts.options;
    let peer = own.peer.as_deref().map(str::parse).transpose();
    Ok(InvokeOptions {
        peer: peer
            .map_err(|_| CallError::not_found(name))?
            .map(PeerRef::Specific),
        timeout: own.timeout_ms.map(Duration::from_millis),
        idempotency_key: own.idempotency_key.clone(),
        ..InvokeOptions::default()
    })
}

/// Whether a call reaches an operation.
pub(super) fn exists(env: &Env, name: &str, opts: &WireCallOptions) -> bool {
    options(name, opts).is_ok_and(|options| env.find(name, &options).is_some())
}

/// What the operation that a call reaches marks as secret; `None` if the call reaches none.
pub(super) fn marks(env: &Env, name: &str, opts: &WireCallOptions) -> Option<SecretMarks> {
    let found = env.find(name, &options(name, opts).ok()?)?;
    Some(SecretMarks::within(Arc::new(ResolvedSchemas(found))))
}

/// The schemas of an operation that a call reaches. Those of a script's operation use the session's memory as long as
/// this exists.
#[derive(Debug)]
struct ResolvedSchemas(ResolvedOperation);

impl OperationSchemas for ResolvedSchemas {
    fn input(&self) -> &Value {
        &self.0.spec().input_schema
    }

    fn output(&self) -> &Value {
        &self.0.spec().output_schema
    }

    fn errors(&self) -> Vec<(&str, &Value)> {
        let errors = self.0.spec().error_schemas.iter();
        errors
            .map(|error| (error.code.as_str(), &error.schema))
            .collect()
    }
}

async fn follow(
    outgoing: OutgoingCall,
    replies: mpsc::UnboundedSender<OutgoingReply>,
    window: Arc<Semaphore>,
    descriptors: DescriptorQuota,
) {
    let (id, name, noted) = (outgoing.id, outgoing.name.clone(), outgoing.noted.clone());
    let last = match try_follow(outgoing, &replies, &window, &descriptors).await {
        Ok(()) => {
            if let Some(noted) = noted {
                noted.left();
            }
            OutgoingReply::End(id)
        }
        Err(error) => {
            let error: OpError = op_error(&error, &name);
            if let Some(noted) = noted {
                noted.failed(&error);
            }
            OutgoingReply::Reply(
                id,
                WorkerReply::Err(op_fault(&error)),
                AnswerDescriptors::default(),
                Duration::ZERO,
            )
        }
    };
    // A session that has ended receives nothing.
    let _ = replies.send(last);
}

async fn try_follow(
    outgoing: OutgoingCall,
    replies: &mpsc::UnboundedSender<OutgoingReply>,
    window: &Semaphore,
    descriptors: &DescriptorQuota,
) -> Result<(), CallError> {
    let options = options(&outgoing.name, &outgoing.opts)?;
    let input = CallBody::from(CallOutput::Value(outgoing.input));
    let mut items = outgoing.env.follow(&outgoing.name, input, &options)?;
    loop {
        // No code closes the semaphore.
        let Ok(permit) = window.acquire().await else {
            return Ok(());
        };
        let Some(item) = items.next().await else {
            return Ok(());
        };
        // The permit returns when the script has taken an item.
        permit.forget();
        let item = item?;
        let (blob, fds) = pack(&item, descriptors).await?;
        if let Some(noted) = &outgoing.noted {
            note_item(noted, &item);
        }
        if replies
            .send(OutgoingReply::Item(outgoing.id, blob, fds))
            .is_err()
        {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(answer: String) -> Duration {
        on_gpu(&CallBody::from_text(answer.into()))
    }

    #[test]
    fn the_time_on_the_gpu_is_read_without_a_tree() {
        let ms = Duration::from_millis(7);
        assert_eq!(time(r#"{"outputs":{},"gpu_ms":7}"#.to_owned()), ms);
        assert_eq!(time(r#"{"variant":"wgsl","ms":7.0}"#.to_owned()), ms);
        assert_eq!(
            time(r#"{"variant":"host","ms":7}"#.to_owned()),
            Duration::ZERO
        );
        assert_eq!(time(r#"{"gpu_ms":-7}"#.to_owned()), Duration::ZERO);
        assert_eq!(time(r#"{"gpu_ms":[7,7]}"#.to_owned()), Duration::ZERO);
        // No tree can be made of this one.
        assert_eq!(time(r#"{"outputs":1e999,"gpu_ms":7}"#.to_owned()), ms);
    }
}
