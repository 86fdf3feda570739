//! `alknet worker`: a process that the node starts for code that it does not trust. The verb is not for people: the
//! process speaks to its host alone.

use std::process::ExitCode;

use alknet_worker::WorkerRole;

/// What a command line that no host wrote ends with.
const USAGE: u8 = 2;

/// Becomes a worker of the role on the command line, as `alknet worker --role ROLE`.
pub(crate) fn run() -> ExitCode {
    let role = std::env::args()
        .nth(3)
        .map(|name| name.parse::<WorkerRole>());
    match role {
        Some(Ok(WorkerRole::Js)) => alknet_sessions::guest::run(WorkerRole::Js),
        // Role gpu has a program of its own; nothing asks for the others yet.
        _ => {
            eprintln!("this program has no worker of that role");
            ExitCode::from(USAGE)
        }
    }
}
