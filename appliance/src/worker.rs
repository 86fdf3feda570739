//! `alknet worker`: a process that the node started for what it does not trust. No verb for people: it
//! speaks to its host and to nobody else.

use std::process::ExitCode;

use alknet_worker::Role;

/// What a command line that no host wrote ends with.
const USAGE: u8 = 2;

/// Becomes a worker of the role on the command line, as `alknet worker --role ROLE`.
pub(crate) fn run() -> ExitCode {
    let role = std::env::args().nth(3).map(|name| name.parse::<Role>());
    match role {
        Some(Ok(Role::Js)) => alknet_sessions::guest::run(Role::Js),
        // Role gpu has a program of its own; nothing asks for the others yet.
        _ => {
            eprintln!("this program has no worker of that role");
            ExitCode::from(USAGE)
        }
    }
}
