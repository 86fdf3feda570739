//! A worker for scripts as the node has it, in a program of its own: the tests start nothing else.

use std::process::ExitCode;

use alknet_worker::{WorkerRole, started_as_worker};

fn main() -> ExitCode {
    if !started_as_worker() {
        eprintln!("this is started by the tests");
        return ExitCode::FAILURE;
    }
    let role = std::env::args().nth(3).and_then(|role| role.parse().ok());
    alknet_sessions::guest::run(role.unwrap_or(WorkerRole::Js))
}
