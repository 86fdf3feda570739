//! Ctrl-C while a disk is written: a message that says what the disk is worth now.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::{CommandError, CommandExit, output};

/// Ends the process at a signal, until the last step of the work.
pub(super) struct InterruptNotice {
    finishing: Arc<AtomicBool>,
}

impl InterruptNotice {
    /// Waits for signals from now on. `text` says what an interrupted disk is worth.
    pub(super) fn watch(text: String, json: bool) -> Result<Self, CommandError> {
        let finishing = Arc::new(AtomicBool::new(false));
        let last = Arc::clone(&finishing);
        let (ready, begun) = sync_channel(1);
        let work = move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let mut interrupt = signal(SignalKind::interrupt())?;
                let mut terminate = signal(SignalKind::terminate())?;
                // The work that starts now may be interrupted at once.
                ready.send(()).ok();
                loop {
                    wait(&mut interrupt, &mut terminate).await;
                    if !last.load(Ordering::Acquire) {
                        break;
                    }
                    output::note("alknet: the disk is being finished, which takes a moment");
                }
                std::io::Result::Ok(())
            })?;
            let error = CommandError::new(CommandExit::Aborted, "ABORTED", text);
            // The line of the progress does not end by itself.
            output::note("");
            output::failure(&error, json);
            // A write that waits for the disk cannot be interrupted otherwise.
            std::process::exit(i32::from(CommandExit::Aborted as u8));
        };
        let started = thread::Builder::new()
            .name("interrupts".into())
            .spawn(move || -> std::io::Result<()> { work() });
        started.map_err(|error| CommandError::local(format!("cannot start a thread: {error}")))?;
        // Without signals, Ctrl-C ends the process without a message, and the disk is the same.
        begun.recv().ok();
        Ok(Self { finishing })
    }

    /// The disk is made bootable now: a signal no longer ends the process.
    pub(super) fn finishing(&self) {
        self.finishing.store(true, Ordering::Release);
    }
}

async fn wait(interrupt: &mut Signal, terminate: &mut Signal) {
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
