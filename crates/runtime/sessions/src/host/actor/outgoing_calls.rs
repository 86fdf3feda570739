//! Handles the script's requests: calls, subscriptions, and registrations of its own operations.

use std::os::fd::OwnedFd;
use std::time::Duration;

use alknet_call::limits::OPERATION_BYTES_MAX;
use alknet_call::{Env, ErrorCode};
use alknet_runtime::{OpError, RecorderTicket, RuntimeCode, ScriptFailure};
use alknet_worker::{Bytes32, CborBody, FrameBlob, SessionNotice, WorkerReply};
use serde_json::Value;

use super::{CONTINUE, Next, PROTOCOL_VIOLATION, SessionActor};
use crate::host::capability_calls;
use crate::host::exported_operations;
use crate::host::failure::{op_error, op_fault};
use crate::host::memory::{MemoryReservation, ReadRefusal};
use crate::host::outgoing::{self, AnswerDescriptors, OutgoingCall, OutgoingReply};
use crate::wire::{self, HostMessage, SessionOffer, WireCallOptions};

/// An input with its bytes, and the reservation of the node's memory for it.
struct ScriptCallInput {
    value: Value,
    tail: Option<Vec<u8>>,
    held: Vec<MemoryReservation>,
}

impl SessionActor {
    /// Begins a call or a subscription of the script.
    pub(super) fn begin_outgoing(
        &mut self,
        id: u64,
        op: &str,
        subscribes: bool,
        (input, opts): (FrameBlob, CborBody),
        fds: Vec<OwnedFd>,
    ) -> Next {
        // The script could not distinguish two answers with the same number.
        if self.outgoing.has(id) {
            return PROTOCOL_VIOLATION;
        }
        let Ok(mut opts) = wire::read::<WireCallOptions>(&opts) else {
            return PROTOCOL_VIOLATION;
        };
        let name = op.trim_start_matches('/');
        self.sessions.count_call_out();
        // Refused requests count too, because they cost the node work.
        let calls = self.shared.count_out(name);
        if name.len() > OPERATION_BYTES_MAX {
            // The frame of the answer could not hold such a name twice.
            let error = OpError::new("NOT_FOUND", "no operation has a name of that length");
            return self.refuse(id, &error, None);
        }
        let read = self.input(input, &mut opts, &fds);
        let ScriptCallInput { value, tail, held } = match read {
            Ok(read) => read,
            Err(refused) => {
                if let Some(record) = &self.record {
                    record.leave_out();
                }
                self.excuse(refused);
                return self.refuse(id, &refused.error("input"), None);
            }
        };
        let course = self.course();
        let env = course.map(|(_, env)| env.clone());
        let call = course.map_or(0, |(call, _)| call);
        let has_bytes = tail.is_some() || opts.map;
        let noted = self.note(env.as_ref(), name, &value, &opts, has_bytes);
        if calls > self.calls_max {
            let error = OpError::new("QUOTA_EXCEEDED", "the calls of the session are used up");
            return self.refuse(id, &error, noted.as_ref());
        }
        let Some(env) = env else {
            let text = "no call of the session runs, so there is no caller to act for";
            return self.refuse(id, &OpError::new("ABORTED", text), noted.as_ref());
        };
        let peer = opts.options.peer.as_deref();
        let is_act = capability_calls::is_act(name);
        if is_act && (subscribes || peer.is_some() || has_bytes) {
            let error = OpError::new("INVALID_INPUT", "an act is called here, with JSON alone");
            return self.refuse(id, &error, noted.as_ref());
        }
        // The session's own operations need no grant.
        let is_own = is_act || peer.is_none() && self.offered.contains(name);
        if !is_own && let Err(error) = self.reach.check(&env, name, peer, &value) {
            if error.code == ErrorCode::Overloaded {
                env.excuse();
            }
            return self.refuse(id, &op_error(&error, name), noted.as_ref());
        }
        // A grant may be a pattern that any text fits.
        self.shared
            .note_called(name, || is_act || outgoing::exists(&env, name, &opts));
        let outgoing = OutgoingCall {
            id,
            call,
            name: name.to_owned(),
            input: value,
            opts,
            tail,
            held,
            env,
            capabilities: is_act.then(|| self.capabilities.clone()),
            noted,
        };
        self.outgoing.begin(outgoing, subscribes);
        CONTINUE
    }

    /// Reads an input and its bytes. The memory counts twice: for the value that the grants are checked with, and for
    /// the text that is passed on.
    fn input(
        &self,
        input: FrameBlob,
        opts: &mut WireCallOptions,
        fds: &[OwnedFd],
    ) -> Result<ScriptCallInput, ReadRefusal> {
        let memory = self.shared.memory();
        let (input, mut held) = memory.open::<wire::Json>(input, fds)?;
        held.twice()?;
        let mut all = vec![held];
        let tail = match opts.tail.take() {
            Some(tail) => {
                let (bytes, held) = memory.bytes(tail, fds)?;
                all.push(held);
                Some(bytes)
            }
            None => None,
        };
        Ok(ScriptCallInput {
            value: input.0,
            tail,
            held: all,
        })
    }

    /// Records a request if the session is recorded, without what the operation's schemas mark as secret.
    fn note(
        &self,
        env: Option<&Env>,
        name: &str,
        input: &Value,
        opts: &WireCallOptions,
        has_bytes: bool,
    ) -> Option<RecorderTicket> {
        let record = self.record.as_ref()?;
        // A record has only plain values.
        if has_bytes {
            record.leave_out();
            return None;
        }
        let marks = match capability_calls::is_act(name) {
            true => capability_calls::marks(name),
            false => env.and_then(|env| outgoing::marks(env, name, opts)),
        };
        Some(record.begin(name, input, marks))
    }

    /// Answers a request that is refused.
    pub(super) fn refuse(
        &mut self,
        id: u64,
        error: &OpError,
        noted: Option<&RecorderTicket>,
    ) -> Next {
        if let Some(noted) = noted {
            noted.failed(error);
        }
        let reply = WorkerReply::Err(op_fault(error));
        match self
            .worker
            .tell(SessionNotice::Reply { id, reply }, Vec::new())
        {
            Ok(()) => CONTINUE,
            Err(_) => PROTOCOL_VIOLATION,
        }
    }

    /// Passes an operation's answer to the script.
    pub(super) fn pass_on(&mut self, reply: OutgoingReply) -> Next {
        // The call is looked up first, because the last answer removes the entry.
        let of = self.outgoing.call_of(reply.id());
        if !self.outgoing.ends(&reply) {
            // The script gave the request up meanwhile.
            return CONTINUE;
        }
        if let Some(call) = of {
            self.spend(call, reply.gpu());
        }
        let id = reply.id();
        let (notice, AnswerDescriptors { fds, permit }) = reply.into_notice();
        let last = matches!(notice, SessionNotice::Reply { .. });
        if self.worker.tell_reserved(notice, fds, permit).is_ok() {
            return CONTINUE;
        }
        // The answer is too large for a frame, or the worker does not read.
        let error = OpError::new("INVALID_OUTPUT", "the answer cannot be sent to the script");
        // The script would wait for the lost item, so its subscription ends.
        if !last {
            self.outgoing.give_up(id);
        }
        self.refuse(id, &error, None)
    }

    /// Counts GPU time against a call into the session, and ends the call if it used too much.
    fn spend(&mut self, call: u64, time: Duration) {
        if time.is_zero() {
            return;
        }
        self.shared.count_gpu(time);
        // If the call has ended, the time still counts for the session.
        let Some(running) = self.running.iter_mut().find(|running| running.id == call) else {
            return;
        };
        let Some(left) = running.gpu_left.checked_sub(time) else {
            if let Some(stop) = running.stop.take() {
                let text = "the call took more time on the GPU than it may";
                // The call may have ended at this moment.
                let _ = stop.send(ScriptFailure::new(RuntimeCode::GpuTimeout, text));
            }
            return;
        };
        running.gpu_left = left;
    }

    pub(super) fn register(&mut self, spec: &CborBody, _script: Bytes32) -> Next {
        let registered = match self
            .shared
            .memory()
            .read_registered::<SessionOffer>(spec.as_bytes())
        {
            Err(refused) => {
                self.excuse(refused);
                Err(refused.error("specification"))
            }
            Ok((offer, held)) => {
                let name = format!("js/{}", offer.name);
                exported_operations::registration(&self.weak_session, offer, held)
                    .and_then(|one| {
                        self.layer
                            .replace(one)
                            .map_err(exported_operations::refused)
                    })
                    .map(|()| self.offered.insert(name))
                    .map(drop)
            }
        };
        match self.tell(&HostMessage::Registered(registered)) {
            Ok(()) => CONTINUE,
            Err(()) => PROTOCOL_VIOLATION,
        }
    }
}
