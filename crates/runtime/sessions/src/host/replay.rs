//! Sessions whose calls are answered in the worker from a record, so that they reach nothing.

use std::sync::Arc;
use std::time::Instant;

use alknet_runtime::{IsolateWork, RecordedCall, RuntimeCode, ScriptFailure};
use alknet_worker::{Bytes32, CallLimits, CallStats, WorkerLease, WorkerReply};
use serde_json::Value;

use super::failure::{of_call, of_fault, of_worker};
use super::memory::ReadRefusal;
use super::opening::first_frame;
use super::session::request;
use super::{ScriptSessions, SessionSpec};
use crate::wire::CallResult;

/// The result of a replay.
#[derive(Clone, Debug, PartialEq)]
pub struct ReplayOutcome {
    /// The value of the last step; a step that fails is the last one.
    pub result: Result<Value, ScriptFailure>,
    /// The fuel of that step, in ticks.
    pub ticks: u64,
}

impl ScriptSessions {
    /// Performs all steps in one fresh session that can call nothing: `record` has the answers to
    /// its calls, and any other call fails with `NOT_FOUND`. The session has no identity, and its
    /// worker gets no modules except those of `spec`.
    pub async fn replay(
        self: &Arc<Self>,
        spec: SessionSpec,
        steps: Vec<IsolateWork>,
        record: Vec<RecordedCall>,
    ) -> ReplayOutcome {
        let mut stats = CallStats::default();
        let result = self.replay_steps(spec, steps, record, &mut stats).await;
        ReplayOutcome {
            result,
            ticks: stats.ticks,
        }
    }

    async fn replay_steps(
        self: &Arc<Self>,
        mut spec: SessionSpec,
        steps: Vec<IsolateWork>,
        record: Vec<RecordedCall>,
        stats: &mut CallStats,
    ) -> Result<Value, ScriptFailure> {
        spec.check()?;
        let bundle = Bytes32(spec.bundle());
        // The tenant is named by the code that runs, so that no worker holds the code of two
        // replays.
        let tenant = format!("replay {}", blake3::Hash::from(bundle.0).to_hex());
        let place = self.admit(&tenant, &spec)?;
        let worker = self
            .workers
            .open(WorkerLease::new(self.config.role, tenant).granted(spec.memory()))
            .await;
        let mut worker = worker.map_err(|error| of_worker(&error))?;
        let (opening, fds) =
            first_frame(&mut spec, Vec::new(), Some(record), bundle).map_err(|error| {
                ScriptFailure::new(
                    RuntimeCode::Limit,
                    format!("the session cannot be sent: {error}"),
                )
            })?;
        worker.tell(opening, fds).map_err(|error| of_call(&error))?;
        place.shared.set_worker(worker.pid(), worker.sid());
        let limits = CallLimits {
            wall: spec.limits.wall,
            cpu: Some(spec.limits.runtime.cpu),
            gpu: Some(spec.limits.gpu),
        };
        let mut value = Value::Null;
        for step in steps {
            let began = Instant::now();
            // A crash counts against no operation: an attacker may replay the code of another identity, with a record
            // of its own.
            let mut call = worker.call(request(step)?, limits, None);
            let answer = loop {
                tokio::select! {
                    answer = &mut call => break answer,
                    // No task needs the worker's other messages, and they would accumulate unread.
                    Some(_) = worker.next() => {}
                }
            };
            let answer = answer.map_err(|error| of_call(&error))?;
            *stats = answer.stats;
            place
                .shared
                .count_ended(Some(answer.stats), began.elapsed());
            value = match answer.reply {
                WorkerReply::Ok(blob) => {
                    let read = place.shared.memory().open::<CallResult>(blob, &answer.fds);
                    let (done, _held) = read.map_err(|refused| {
                        let text = refused.error("result").message;
                        match refused {
                            // Others use the memory, so this says nothing about the code.
                            ReadRefusal::Full => ScriptFailure::no_capacity(text),
                            ReadRefusal::TooMuch => ScriptFailure::new(RuntimeCode::Quota, text),
                            ReadRefusal::Wrong => ScriptFailure::new(RuntimeCode::WorkerLost, text),
                        }
                    })?;
                    done.value.0
                }
                WorkerReply::Err(fault) => return Err(of_fault(&fault)),
            };
        }
        Ok(value)
    }
}
