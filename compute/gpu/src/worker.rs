//! `worker`: computes for a node, in a sandbox (`docs/workers.md`).
//!
//! One thread handles one request after the other: the device has one queue, and the node sends a worker no second
//! request before the first is answered. The node kills a worker whose request does not end. A panic ends the worker
//! too, because its state is unknown afterwards.

mod buffers;
mod clock;
mod dispatch;
mod engine;
mod fault;
mod matmul;
mod measure;
mod memory;
mod nesting;
mod order;
mod sha256;
mod shader;
mod templates;
mod trust;

use std::process::ExitCode;
use std::time::Instant;

use alknet_compute_wire::{ComputeRequest, ComputeUpload};
use alknet_worker::{
    CborBody, FrameBlob, Guest, GuestCall, GuestInput, ToWorkerMessage, WorkerReply, WorkerRole,
};

use self::clock::GpuClock;
use self::engine::GpuWorkerState;
use self::fault::{GpuFault, GpuResult};
pub(crate) use self::order::arranged;
pub(crate) use self::templates::MatmulPlan;
use crate::error::{Error, Result};

/// Stack of the thread that handles requests, which parses nested shaders.
const STACK_BYTES: usize = 64 << 20;

/// Variable with the name of the one driver to use; `none` names no driver.
const DRIVER: &str = "ALKNET_GPU_DRIVER";

/// Arguments of `worker`, which the node gives.
#[derive(Debug, clap::Args)]
pub(crate) struct GpuWorkerArgs {
    /// The kind of worker
    #[arg(long, default_value = "gpu")]
    role: String,
}

/// Runs until the node ends the worker.
pub(crate) fn run(arguments: &GpuWorkerArgs, started: Instant) -> Result<ExitCode> {
    let role: WorkerRole =
        (arguments.role.parse()).map_err(|error| Error::Worker(format!("{error}")))?;
    if role != WorkerRole::Gpu {
        return Err(Error::Worker(format!("this program is no {role} worker")));
    }
    let wanted = std::env::var(DRIVER).ok();
    end_at_a_panic();
    let worker = |error: alknet_worker::GuestError| Error::Worker(error.to_string());
    let entered = alknet_worker::enter(role).map_err(worker)?;
    let (_guest, ()) = entered
        .seal(|guest| {
            let (guest, state) = (
                guest.clone(),
                GpuWorkerState::start(started, wanted.as_deref()),
            );
            std::thread::Builder::new()
                .name("requests".to_owned())
                .stack_size(STACK_BYTES)
                .spawn(move || take_all(&guest, state))
                .map(drop)
        })
        .map_err(worker)?;
    loop {
        std::thread::park();
    }
}

fn end_at_a_panic() {
    let print_panic = std::panic::take_hook();
    // The default hook prints the message first, so that the node's log has it.
    std::panic::set_hook(Box::new(move |panic| {
        print_panic(panic);
        std::process::abort();
    }));
}

fn take_all(guest: &Guest, mut state: GpuWorkerState) -> ! {
    loop {
        let GuestInput {
            message, fds, call, ..
        } = guest.next();
        let sid = match &message {
            ToWorkerMessage::Close { sid, .. }
            | ToWorkerMessage::Run { sid, .. }
            | ToWorkerMessage::Tell { sid, .. } => *sid,
            _ => 0,
        };
        match (message, call) {
            (ToWorkerMessage::Run { body, .. }, Some(call)) => {
                let here = call.on_this_thread();
                let outcome = take(guest, &call, &mut state, &body);
                drop(here);
                // Uploads belong to one request, so unused ones are dropped with it.
                state.forget_uploads(sid);
                answer(guest, &call, outcome, state.bytes());
            }
            (ToWorkerMessage::Close { .. }, call) => {
                state.close(sid);
                if let Some(call) = call {
                    answer(guest, &call, Ok(Vec::new()), 0);
                }
            }
            (ToWorkerMessage::Tell { body, .. }, _) => {
                // A failure here shows in the request that misses the upload.
                if let Ok(upload) = body.read::<ComputeUpload>() {
                    state.upload(sid, upload, &fds);
                }
            }
            (_, Some(call)) => {
                let outcome = Err(GpuFault::internal("this worker has no such request"));
                answer(guest, &call, outcome, 0);
            }
            // An abort of a call that has ended, or the begin of a session.
            (_, None) => {}
        }
    }
}

fn take(
    guest: &Guest,
    call: &GuestCall,
    state: &mut GpuWorkerState,
    body: &CborBody,
) -> GpuResult<Vec<u8>> {
    let ask: ComputeRequest = body
        .read()
        .map_err(|error| GpuFault::internal(&format!("no request: {error}")))?;
    // The caller may have aborted the request while it waited behind another one.
    if call.is_aborted() {
        return Err(GpuFault::aborted());
    }
    call.progress(0, state.bytes());
    let clock = GpuClock::for_call(guest, call);
    clock.runs(|| state.perform(call, clock, ask))
}

fn answer(guest: &Guest, call: &GuestCall, outcome: GpuResult<Vec<u8>>, bytes: u64) {
    let mut fds = Vec::new();
    // Long results go into sealed memory beside the frame.
    let packed = outcome.and_then(|bytes| {
        FrameBlob::pack(bytes, &mut fds).map_err(|error| GpuFault::internal(&error.to_string()))
    });
    let reply = match packed {
        Ok(blob) => WorkerReply::Ok(blob),
        Err(failed) => WorkerReply::Err(failed.fault()),
    };
    if let Err(error) = guest.finish(call, reply, fds, 0, bytes) {
        // The kernel refused the descriptor. A host that is gone ends this process.
        let failed = GpuFault::internal(&format!("the answer cannot be sent: {error}"));
        let _ = guest.finish(call, WorkerReply::Err(failed.fault()), Vec::new(), 0, bytes);
    }
}
