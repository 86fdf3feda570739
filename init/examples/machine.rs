//! The smallest machine: PID 1 with a node that serves nothing, to try PID 1 by itself.
//!
//! The node reports that it is ready, answers health questions and prints the messages of PID 1 to
//! standard error. The kernel's command line may have `example=WORD,WORD`. The node does one word
//! every two seconds: `wait`, `segv`, `mute`, `exit`, `poweroff`, `reboot`, or a fault of PID 1. A
//! restarted node ignores the words.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::{fd::FromRawFd, unix::net::UnixStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use alknet_init::control::{
    InitMessage, NODE_FD, NodeMessage, NodeStatus, PowerAction, SelfCallResult,
};

/// Whether the node has stopped answering health questions.
static MUTE: AtomicBool = AtomicBool::new(false);

fn main() {
    if std::process::id() == 1 {
        alknet_init::run();
    }
    // SAFETY: PID 1 gave this process its end of the socket pair at that descriptor.
    let channel = unsafe { UnixStream::from_raw_fd(NODE_FD) };
    let writer = Arc::new(Mutex::new(
        channel.try_clone().expect("descriptors are left"),
    ));
    let say = move |message: &InitMessage| {
        let mut line = serde_json::to_vec(message).expect("messages are JSON");
        line.push(b'\n');
        let mut writer = writer.lock().expect("no thread panics while writing");
        writer.write_all(&line).expect("PID 1 listens");
    };
    for line in BufReader::new(channel).lines() {
        let line = line.expect("PID 1 speaks UTF-8");
        match serde_json::from_str(&line).expect("PID 1 speaks JSON") {
            NodeMessage::Start {
                facts, state_dir, ..
            } => {
                eprintln!("start in {state_dir}, stages {:?}", facts.boot_stages);
                say(&InitMessage::Ready {
                    status: NodeStatus::default(),
                });
                let say = say.clone();
                if facts.node_restarts == 0 {
                    thread::spawn(move || follow_script(say));
                }
            }
            NodeMessage::Health { .. } if MUTE.load(Ordering::Relaxed) => {}
            NodeMessage::Health { n } => say(&InitMessage::Health {
                n,
                ok: true,
                detail: String::new(),
            }),
            NodeMessage::CallItself => say(&InitMessage::CalledItself {
                result: SelfCallResult::Answered,
            }),
            NodeMessage::ConfigKept { .. }
            | NodeMessage::Facts { .. }
            | NodeMessage::Log { .. }
            | NodeMessage::StorageChecked { .. }
            | NodeMessage::UpdateAnswer { .. }
            | NodeMessage::VaultEvents { .. } => {}
            NodeMessage::Drain { .. } => return,
        }
    }
}

fn follow_script(say: impl Fn(&InitMessage)) {
    let command_line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let script = command_line
        .split_whitespace()
        .find_map(|word| word.strip_prefix("example="));
    for word in script.unwrap_or_default().split(',') {
        thread::sleep(Duration::from_secs(2));
        let by = "the example".to_owned();
        match word {
            "" | "wait" => {}
            "segv" => {
                // SAFETY: the call removes the runtime's handler, and this process then sends the
                // signal to itself.
                unsafe {
                    libc::signal(libc::SIGSEGV, libc::SIG_DFL);
                    libc::raise(libc::SIGSEGV);
                }
            }
            "exit" => std::process::exit(7),
            "mute" => MUTE.store(true, Ordering::Relaxed),
            "poweroff" => say(&InitMessage::Power {
                action: PowerAction::Poweroff,
                by,
            }),
            "reboot" => say(&InitMessage::Power {
                action: PowerAction::Reboot,
                by,
            }),
            kind => say(&InitMessage::Fault {
                kind: kind.to_owned(),
            }),
        }
    }
}
