//! The lock on a node's state directory, which one process has at a time.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::cli::CommandError;

/// Name of the file that is locked, and that has the process id of the lock's holder. The file
/// stays when the process ends, and the lock does not.
const LOCK_FILE: &str = "serve.lock";
/// Maximum number of digits of a process id.
const PID_BYTES_MAX: u64 = 20;

/// The lock on a folder. Without it, two processes with the same key would each serve a part of the
/// requests, and overwrite each other's state.
#[derive(Debug)]
pub(crate) struct StateLock {
    _file: Flock<File>,
}

impl StateLock {
    /// Takes the lock. Makes the folder if it does not exist.
    ///
    /// # Errors
    /// Another process has the lock, and the error names it. The folder cannot be made or opened.
    pub(crate) fn take(state_dir: &Path) -> Result<Self, CommandError> {
        let shown = state_dir.display();
        let failed =
            |error: io::Error| CommandError::local(format!("cannot lock {shown}: {error}"));
        let mut made = DirBuilder::new();
        made.recursive(true).mode(0o700);
        made.create(state_dir).map_err(failed)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).mode(0o600);
        let path = state_dir.join(LOCK_FILE);
        let file = options.open(&path).map_err(failed)?;
        // The kernel releases the lock when the process ends, so that a crash leaves no lock
        // behind.
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut file) => {
                note(&mut file).map_err(failed)?;
                Ok(Self { _file: file })
            }
            Err((mut file, Errno::EWOULDBLOCK)) => Err(CommandError::usage(format!(
                "{} serves from {shown} already: stop it, or give another --state",
                holder(&mut file)
            ))),
            Err((_, error)) => Err(failed(error.into())),
        }
    }
}

/// Writes the process id into the file.
fn note(file: &mut File) -> io::Result<()> {
    // The id of an earlier process may be longer.
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    writeln!(file, "{}", std::process::id())
}

fn holder(file: &mut File) -> String {
    let mut text = String::new();
    // The holder may have taken the lock and not have written its id yet.
    let _ = file.take(PID_BYTES_MAX).read_to_string(&mut text);
    match text.trim().parse::<u32>() {
        Ok(pid) => format!("process {pid}"),
        Err(_) => "another process".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_one_process_s_until_that_ends() {
        let folder = tempfile::tempdir().expect("a folder");
        let place = folder.path().join("new/state");
        let lock = StateLock::take(&place).expect("it is free");
        let refused = StateLock::take(&place).expect_err("it is taken");
        let own = format!("process {} serves from", std::process::id());
        assert!(refused.message.starts_with(&own), "{refused}");
        drop(lock);
        drop(StateLock::take(&place).expect("it was given back"));
        std::fs::write(place.join(LOCK_FILE), "nonsense").expect("ours");
        assert!(
            StateLock::take(&place).is_ok(),
            "what it says is not what counts"
        );
    }
}
