//! `alknet worker`: a process that the node starts for code that it does not trust. It is not a
//! command for people: the process speaks only to the node that started it.

use std::process::ExitCode;

use alknet_worker::WorkerRole;

/// Exit code for a command line that no node wrote.
const USAGE: u8 = 2;

/// Becomes a worker of the role on the command line: `alknet worker --role ROLE`.
pub(crate) fn run() -> ExitCode {
    let role = std::env::args()
        .nth(3)
        .map(|name| name.parse::<WorkerRole>());
    match role {
        Some(Ok(WorkerRole::Js)) => alknet_sessions::guest::run(WorkerRole::Js),
        // The role `gpu` has a program of its own, and the node starts no other role yet.
        _ => {
            eprintln!("this program has no worker of that role");
            ExitCode::from(USAGE)
        }
    }
}
