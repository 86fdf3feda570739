//! The isolate's host, which uses the bridge.

use std::sync::Arc;

use alknet_call::ValueSchema;
use alknet_runtime::{
    ConsoleLevel, EnvOperation, HostFuture, IsolateHost, Items, OpError, OpReply, RuntimeCode,
    ScriptCallOptions, ScriptRegistration, weight,
};
use alknet_worker::{CborBody, FromWorkerMessage, WorkerFrameError};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::answer::{deferred_reply, gone, unsendable};
use super::subscription::ScriptSubscription;
use super::{Bridge, PendingRegistration, Replied};
use crate::guest::lock;
use crate::limits::{ITEM_BYTES, LINES_BYTES, OWN_BYTES_MAX, UNACKNOWLEDGED};
use crate::wire::{self, GuestMessage, Json, SessionOffer, WireCallOptions};

/// A call of the isolate, which holds the bridge itself.
#[derive(Debug)]
pub(super) struct GuestOutgoingCall {
    pub(super) bridge: Arc<Bridge>,
    pub(super) id: u64,
    pub(super) done: bool,
}

impl Drop for GuestOutgoingCall {
    fn drop(&mut self) {
        if !self.done {
            self.bridge.give_up(self.id);
        }
    }
}

/// The host of an isolate.
#[derive(Debug)]
pub(in crate::guest) struct BridgeHost(pub(in crate::guest) Arc<Bridge>);

impl IsolateHost for BridgeHost {
    fn call(
        &self,
        path: &str,
        input: Value,
        options: ScriptCallOptions,
    ) -> HostFuture<Result<OpReply, OpError>> {
        let mut opts = WireCallOptions {
            options,
            ..WireCallOptions::default()
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
    ) -> HostFuture<Result<OpReply, OpError>> {
        let mut opts = WireCallOptions {
            map,
            ..WireCallOptions::default()
        };
        let tail = (!bytes.is_empty()).then_some(bytes);
        let begun = self.0.begin_call(path, &input, &mut opts, tail);
        await_reply(Arc::clone(&self.0), begun)
    }

    fn subscribe(&self, path: &str, input: Value, options: ScriptCallOptions) -> Items {
        match self.0.begin_subscription(path, &input, options) {
            Err(error) => Box::pin(futures_util::stream::iter([Err(error)])),
            Ok((id, events)) => {
                let outgoing = GuestOutgoingCall {
                    bridge: Arc::clone(&self.0),
                    id,
                    done: false,
                };
                Box::pin(ScriptSubscription::new(outgoing, events))
            }
        }
    }

    fn list(&self, prefix: &str) -> Vec<EnvOperation> {
        let has_prefix = |operation: &&EnvOperation| operation.path.starts_with(prefix);
        self.0
            .operations
            .iter()
            .filter(has_prefix)
            .cloned()
            .collect()
    }

    fn register(
        &self,
        registration: ScriptRegistration,
        script: [u8; 32],
    ) -> HostFuture<Result<(), OpError>> {
        let offer: SessionOffer = registration;
        // The schemas are compiled before the lock is taken, because that may take a while.
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
        state.registering.push_back(PendingRegistration {
            name: offer.name,
            input: Arc::new(input),
            waits,
        });
        let message = FromWorkerMessage::Register {
            sid: self.0.sid,
            spec,
            source_hash: alknet_worker::Bytes32(script),
        };
        self.0.send(&mut state, message, Vec::new());
        Box::pin(async move { answer.await.unwrap_or_else(|_| Err(gone())) })
    }

    fn emit(&self, entry: u64, item: Value) -> HostFuture<Result<(), OpError>> {
        let bridge = Arc::clone(&self.0);
        let serving =
            |state: &super::BridgeState| Some(Arc::clone(&state.serving.get(&entry)?.window));
        let window = serving(&lock(&self.0.state));
        // An item that weighs more than all permits would otherwise wait forever.
        let permits = (weight::estimate(&item) / ITEM_BYTES).clamp(1, UNACKNOWLEDGED);
        let permits = u32::try_from(permits).unwrap_or(1);
        Box::pin(async move {
            let Some(window) = window else {
                return Err(gone());
            };
            let Ok(permit) = window.acquire_many(permits).await else {
                return Err(gone());
            };
            // The permits return when the host reports that it took the item.
            permit.forget();
            let item = frameable(&Json(item))?;
            let mut state = lock(&bridge.state);
            let serving = state.serving.get_mut(&entry).ok_or_else(gone)?;
            serving.sent.push_back(permits);
            bridge.flush_locked(&mut state);
            bridge.tell(&mut state, &GuestMessage::Item(entry, item));
            Ok(())
        })
    }

    fn log(&self, level: ConsoleLevel, text: &str) {
        let mut state = lock(&self.0.state);
        state.lines_bytes += text.len() + 1;
        state.lines.push((level, text.to_owned()));
        if state.lines_bytes >= LINES_BYTES {
            self.0.flush_locked(&mut state);
        }
    }

    fn check(&self, schema: &Value, value: &Value) -> Result<(), String> {
        let schema =
            ValueSchema::new(schema).map_err(|error| format!("the schema is invalid: {error}"))?;
        schema.validate(value).map_err(|misfit| misfit.to_string())
    }
}

/// Compiles the schemas of an operation's inputs and outputs. That happens here and never in the node: a schema is a
/// program of the script, so it uses the memory and time of the script's own worker, which limits both.
fn compiled(offer: &SessionOffer) -> Result<ValueSchema, OpError> {
    let schema = |what: &str, schema: &Value| {
        ValueSchema::new(schema).map_err(|error| OpError {
            details: Box::new(json!({ "code": RuntimeCode::Limit.name() })),
            ..OpError::new(
                "INVALID_INPUT",
                format!("the schema of the {what}: {error}"),
            )
        })
    };
    schema("output", &offer.output)?;
    schema("input", &offer.input)
}

/// The CBOR form of a value, if it fits into a frame.
fn frameable<T: serde::Serialize>(value: &T) -> Result<CborBody, OpError> {
    let body = wire::body(value).map_err(|error| unsendable(&error))?;
    match body.as_bytes().len() {
        0..=OWN_BYTES_MAX => Ok(body),
        bytes => Err(unsendable(&WorkerFrameError::TooLong(bytes))),
    }
}

fn await_reply(
    bridge: Arc<Bridge>,
    begun: Result<(u64, oneshot::Receiver<Replied>), OpError>,
) -> HostFuture<Result<OpReply, OpError>> {
    let (id, answer) = match begun {
        Ok(begun) => begun,
        Err(error) => return Box::pin(std::future::ready(Err(error))),
    };
    let outgoing = GuestOutgoingCall {
        bridge,
        id,
        done: false,
    };
    Box::pin(async move {
        // The block moves the whole call: if it used only the flag, the call would be dropped here.
        let mut outgoing = outgoing;
        let answer = answer.await;
        outgoing.done = true;
        answer.map(deferred_reply).map_err(|_| gone())
    })
}
