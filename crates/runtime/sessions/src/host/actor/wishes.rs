//! What the script wants: calls, subscriptions, and operations of its own to be called by.

use std::os::fd::OwnedFd;
use std::time::Duration;

use alknet_call::limits::OPERATION_BYTES_MAX;
use alknet_call::{Env, ErrorCode};
use alknet_runtime::{Code, Failure, Noted, OpError};
use alknet_worker::{Blob, Body, Hash, Reply, Told};
use serde_json::Value;

use super::{Actor, LIES, Next, ON};
use crate::host::acts;
use crate::host::failure::{op_error, op_fault};
use crate::host::memory::{Held, Refused};
use crate::host::offered;
use crate::host::outgoing::{self, Said, Wish};
use crate::wire::{self, Down, Offer, Opts};

/// An input with the bytes beside it, and what they take of the node's memory.
struct Input {
    value: Value,
    tail: Option<Vec<u8>>,
    held: Vec<Held>,
}

impl Actor {
    /// A call or subscription of the script's.
    pub(super) fn wish(
        &mut self,
        id: u64,
        op: &str,
        subscribes: bool,
        (input, opts): (Blob, Body),
        fds: Vec<OwnedFd>,
    ) -> Next {
        if self.outgoing.has(id) {
            return LIES;
        }
        let Ok(mut opts) = wire::read::<Opts>(&opts) else {
            return LIES;
        };
        let name = op.trim_start_matches('/');
        self.sessions.count_call_out();
        let calls = self.shared.count_out(name);
        if name.len() > OPERATION_BYTES_MAX {
            // It would not fit twice into the frame of the answer.
            let error = OpError::new("NOT_FOUND", "no operation has a name of that length");
            return self.refuse(id, &error, None);
        }
        let read = self.input(input, &mut opts, &fds);
        let Input { value, tail, held } = match read {
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
            let text = "no call of the session runs, so there is nobody to call for";
            return self.refuse(id, &OpError::new("ABORTED", text), noted.as_ref());
        };
        let peer = opts.options.peer.as_deref();
        let is_act = acts::is_act(name);
        if is_act && (subscribes || peer.is_some() || has_bytes) {
            let error = OpError::new("INVALID_INPUT", "an act is called here, with JSON alone");
            return self.refuse(id, &error, noted.as_ref());
        }
        let is_own = is_act || peer.is_none() && self.offered.contains(name);
        if !is_own && let Err(error) = self.reach.check(&env, name, peer, &value) {
            if error.code == ErrorCode::Overloaded {
                env.excuse();
            }
            return self.refuse(id, &op_error(&error, name), noted.as_ref());
        }
        let wish = Wish {
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
        self.outgoing.begin(wish, subscribes);
        ON
    }

    /// Reads an input, with the bytes beside it. It is held as the value that grants are checked with, and
    /// as the text that it is passed on as.
    fn input(&self, input: Blob, opts: &mut Opts, fds: &[OwnedFd]) -> Result<Input, Refused> {
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
        Ok(Input {
            value: input.0,
            tail,
            held: all,
        })
    }

    /// Writes a wish down where the session is recorded, without what the operation's schemas mark as
    /// secret.
    fn note(
        &self,
        env: Option<&Env>,
        name: &str,
        input: &Value,
        opts: &Opts,
        has_bytes: bool,
    ) -> Option<Noted> {
        let record = self.record.as_ref()?;
        if has_bytes {
            record.leave_out();
            return None;
        }
        let marks = match acts::is_act(name) {
            true => acts::marks(name),
            false => env.and_then(|env| outgoing::marks(env, name, opts)),
        };
        Some(record.begin(name, input, marks))
    }

    /// The answer to a wish that goes nowhere.
    pub(super) fn refuse(&mut self, id: u64, error: &OpError, noted: Option<&Noted>) -> Next {
        if let Some(noted) = noted {
            noted.failed(error);
        }
        let reply = Reply::Err(op_fault(error));
        match self.worker.tell(Told::Reply { id, reply }, Vec::new()) {
            Ok(()) => ON,
            Err(_) => LIES,
        }
    }

    /// What an operation answered goes to the script.
    pub(super) fn pass_on(&mut self, said: Said) -> Next {
        let of = self.outgoing.call_of(said.id());
        if !self.outgoing.ends(&said) {
            // It was given up meanwhile.
            return ON;
        }
        if let Some(call) = of {
            self.spend(call, said.gpu());
        }
        let id = said.id();
        let (told, fds) = said.told();
        let last = matches!(told, Told::Reply { .. });
        if self.worker.tell(told, fds).is_ok() {
            return ON;
        }
        // Too much for a frame, or for a worker that does not read.
        let error = OpError::new("INVALID_OUTPUT", "the answer cannot be sent to the script");
        if !last {
            self.outgoing.give_up(id);
        }
        self.refuse(id, &error, None)
    }

    /// Counts time on the GPU against a call into the session, and ends it where that is too much.
    fn spend(&mut self, call: u64, time: Duration) {
        if time.is_zero() {
            return;
        }
        self.shared.count_gpu(time);
        let Some(running) = self.running.iter_mut().find(|running| running.id == call) else {
            return;
        };
        let Some(left) = running.gpu_left.checked_sub(time) else {
            if let Some(stop) = running.stop.take() {
                let text = "the call took more time on the GPU than it may";
                // It may have ended at this moment.
                let _ = stop.send(Failure::new(Code::GpuTimeout, text));
            }
            return;
        };
        running.gpu_left = left;
    }

    pub(super) fn register(&mut self, spec: &Body, _script: Hash) -> Next {
        let registered = match self.shared.memory().keep::<Offer>(spec.as_bytes()) {
            Err(refused) => {
                self.excuse(refused);
                Err(refused.error("specification"))
            }
            Ok((offer, held)) => {
                let name = format!("js/{}", offer.name);
                offered::registration(&self.entrance, offer, held)
                    .and_then(|one| self.layer.replace(one).map_err(offered::refused))
                    .map(|()| self.offered.insert(name))
                    .map(drop)
            }
        };
        match self.tell(&Down::Registered(registered)) {
            Ok(()) => ON,
            Err(()) => LIES,
        }
    }
}
