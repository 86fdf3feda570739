//! What an isolate holds: its host, over the bridge.

use std::sync::Arc;

use alknet_call::Schema;
use alknet_runtime::{
    BoxFuture, CallOptions, Code, Host, Items, Level, OpError, Operation, Registration, Reply,
    weight,
};
use alknet_worker::{Body, FrameError, FromWorker};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::answer::{answered, gone, op_error, unsendable};
use super::following::Following;
use super::{Bridge, Registering, Replied};
use crate::guest::lock;
use crate::limits::{ITEM_BYTES, LINES_BYTES, OWN_BYTES_MAX, UNACKNOWLEDGED};
use crate::wire::{self, Json, Offer, Opts, Up};

/// What the isolate holds is the bridge itself.
#[derive(Debug)]
pub(super) struct Wish {
    pub(super) bridge: Arc<Bridge>,
    pub(super) id: u64,
    pub(super) done: bool,
}

impl Drop for Wish {
    fn drop(&mut self) {
        if !self.done {
            self.bridge.give_up(self.id);
        }
    }
}

/// What an isolate holds.
#[derive(Debug)]
pub(in crate::guest) struct Side(pub(in crate::guest) Arc<Bridge>);

impl Host for Side {
    fn call(
        &self,
        path: &str,
        input: Value,
        options: CallOptions,
    ) -> BoxFuture<Result<Reply, OpError>> {
        let mut opts = Opts {
            options,
            ..Opts::default()
        };
        let begun = self.0.begin_call(path, &input, &mut opts, None);
        await_reply(Arc::clone(&self.0), begun)
    }

    fn call_with_bytes(
        &self,
        path: &str,
        input: Value,
        bytes: Bytes,
        map: bool,
    ) -> BoxFuture<Result<Reply, OpError>> {
        let mut opts = Opts {
            map,
            ..Opts::default()
        };
        let tail = (!bytes.is_empty()).then_some(bytes);
        let begun = self.0.begin_call(path, &input, &mut opts, tail);
        await_reply(Arc::clone(&self.0), begun)
    }

    fn subscribe(&self, path: &str, input: Value, options: CallOptions) -> Items {
        match self.0.begin_subscription(path, &input, options) {
            Err(error) => Box::pin(futures_util::stream::iter([Err(error)])),
            Ok((id, events)) => {
                let wish = Wish {
                    bridge: Arc::clone(&self.0),
                    id,
                    done: false,
                };
                Box::pin(Following::new(wish, events))
            }
        }
    }

    fn list(&self, prefix: &str) -> Vec<Operation> {
        let fits = |operation: &&Operation| operation.path.starts_with(prefix);
        self.0.operations.iter().filter(fits).cloned().collect()
    }

    fn register(
        &self,
        registration: Registration,
        script: [u8; 32],
    ) -> BoxFuture<Result<(), OpError>> {
        let offer: Offer = registration;
        let ready = compiled(&offer).and_then(|input| Ok((frameable(&offer)?, input)));
        let (spec, input) = match ready {
            Ok(ready) => ready,
            Err(error) => return Box::pin(std::future::ready(Err(error))),
        };
        let (waits, answer) = oneshot::channel();
        let mut state = lock(&self.0.state);
        if state.closed {
            return Box::pin(std::future::ready(Err(gone())));
        }
        self.0.flush_locked(&mut state);
        state.registering.push_back(Registering {
            name: offer.name,
            input: Arc::new(input),
            waits,
        });
        let message = FromWorker::Register {
            sid: self.0.sid,
            spec,
            source_hash: alknet_worker::Hash(script),
        };
        self.0.send(&mut state, message, Vec::new());
        Box::pin(async move { answer.await.unwrap_or_else(|_| Err(gone())) })
    }

    fn emit(&self, entry: u64, item: Value) -> BoxFuture<Result<(), OpError>> {
        let bridge = Arc::clone(&self.0);
        let serving = |state: &super::State| Some(Arc::clone(&state.serving.get(&entry)?.room));
        let room = serving(&lock(&self.0.state));
        let permits = (weight::of(&item) / ITEM_BYTES).clamp(1, UNACKNOWLEDGED);
        let permits = u32::try_from(permits).unwrap_or(1);
        Box::pin(async move {
            let Some(room) = room else { return Err(gone()) };
            let Ok(permit) = room.acquire_many(permits).await else {
                return Err(gone());
            };
            // Given back when the host says that an item was taken.
            permit.forget();
            let item = frameable(&Json(item))?;
            let mut state = lock(&bridge.state);
            let serving = state.serving.get_mut(&entry).ok_or_else(gone)?;
            serving.sent.push_back(permits);
            bridge.flush_locked(&mut state);
            bridge.tell(&mut state, &Up::Item(entry, item));
            Ok(())
        })
    }

    fn log(&self, level: Level, text: &str) {
        let mut state = lock(&self.0.state);
        state.lines_bytes += text.len() + 1;
        state.lines.push((level, text.to_owned()));
        if state.lines_bytes >= LINES_BYTES {
            self.0.flush_locked(&mut state);
        }
    }

    fn check(&self, schema: &Value, value: &Value) -> Result<(), String> {
        let schema = Schema::new(schema).map_err(|error| format!("the schema is none: {error}"))?;
        schema.validate(value).map_err(|misfit| misfit.to_string())
    }
}

/// The schema of an operation's inputs, and that of its outputs looked at. They are compiled and evaluated here
/// and never in the node: a schema is a program of the script's, and so takes the memory and the time of the
/// script's own worker, which has a limit for both.
fn compiled(offer: &Offer) -> Result<Schema, OpError> {
    let schema = |what: &str, schema: &Value| {
        Schema::new(schema).map_err(|error| OpError {
            details: Box::new(json!({ "code": Code::Limit.name() })),
            ..OpError::new(
                "INVALID_INPUT",
                format!("the schema of the {what}: {error}"),
            )
        })
    };
    schema("output", &offer.output)?;
    schema("input", &offer.input)
}

/// What goes within a frame.
fn frameable<T: serde::Serialize>(value: &T) -> Result<Body, OpError> {
    let body = wire::body(value).map_err(|error| unsendable(&error))?;
    match body.as_bytes().len() {
        0..=OWN_BYTES_MAX => Ok(body),
        bytes => Err(unsendable(&FrameError::TooLong(bytes))),
    }
}

fn await_reply(
    bridge: Arc<Bridge>,
    begun: Result<(u64, oneshot::Receiver<Replied>), OpError>,
) -> BoxFuture<Result<Reply, OpError>> {
    let (id, answer) = match begun {
        Ok(begun) => begun,
        Err(error) => return Box::pin(std::future::ready(Err(error))),
    };
    let wish = Wish {
        bridge,
        id,
        done: false,
    };
    Box::pin(async move {
        // As a whole: a block that took only the flag would drop the wish here and now.
        let mut wish = wish;
        let answer = answer.await;
        wish.done = true;
        let (reply, fds) = answer.map_err(|_| gone())?;
        match reply {
            alknet_worker::Reply::Ok(blob) => answered(blob, &fds),
            alknet_worker::Reply::Err(fault) => Err(op_error(&fault)),
        }
    })
}
