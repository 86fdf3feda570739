//! A worker for scripts as the node has it, in a program of its own: the tests start nothing else.
//!
//! A copy with another name is a worker that an attacker has taken over: it runs no script.

use std::process::ExitCode;

use alknet_worker::{
    CborBody, FromWorkerMessage, GuestError, WorkerFault, WorkerReply, WorkerRole, enter,
    started_as_worker,
};

fn main() -> ExitCode {
    if !started_as_worker() {
        eprintln!("this is started by the tests");
        return ExitCode::FAILURE;
    }
    let program = std::env::current_exe().unwrap_or_default();
    let taken_over = match program.file_name().and_then(|name| name.to_str()) {
        Some("claims-abort") => serve(true),
        Some("breaks-protocol") => serve(false),
        _ => {
            let role = std::env::args().nth(3).and_then(|role| role.parse().ok());
            return alknet_sessions::guest::run(role.unwrap_or(WorkerRole::Js));
        }
    };
    eprintln!("{taken_over:?}");
    ExitCode::FAILURE
}

/// Answers each call that it was ended from outside, or with a message that makes no sense.
fn serve(claims_abort: bool) -> Result<(), GuestError> {
    let entered = enter(WorkerRole::Js)?;
    let (guest, ()) = entered.seal(|_| Ok::<_, String>(()))?;
    loop {
        let Some(call) = guest.next().call else {
            continue;
        };
        if claims_abort {
            let fault = WorkerFault {
                code: "E_ABORT".to_owned(),
                message: "the call was ended from outside".to_owned(),
                details: CborBody::default(),
            };
            guest.finish(&call, WorkerReply::Err(fault), Vec::new(), 0, 0)?;
        } else {
            let message = FromWorkerMessage::Tell {
                sid: call.sid(),
                body: CborBody::from_cbor(vec![0xf6]),
            };
            guest.send(&message, Vec::new())?;
        }
    }
}
