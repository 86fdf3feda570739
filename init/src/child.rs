//! The node's process: the one binary executed again, unprivileged, with a control channel at
//! descriptor 3. Its standard error goes to the log.

use std::{
    fs, io,
    os::{
        fd::{AsRawFd, BorrowedFd, OwnedFd},
        unix::{net::UnixStream as StdStream, process::CommandExt},
    },
    process::{Command, Stdio},
    time::Duration,
};

use nix::{
    fcntl::OFlag,
    sys::{
        signal::{Signal, kill},
        time::TimeSpec,
    },
    time::ClockId,
    unistd::{Pid, pipe2},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf, pipe},
    },
    sync::mpsc,
    task::JoinHandle,
};

use crate::{
    InitError,
    control::{InitMessage, LINE_BYTES_MAX, NODE_FD, NodeMessage, UPDATE_FD, VAULT_FD},
    data::NODE_UID,
    groups,
    log::{InitLog, LogAuthor, MESSAGE_BYTES_MAX, TARGET_NODE, split_priority},
    machine::MachineEvent,
    vault::VaultHandle,
};

/// Maximum number of messages that wait for the node. A node that does not read them also stops
/// answering health questions.
const WAITING_MAX: usize = 64;
/// Maximum number of log records that are sent before other messages have their turn.
const RECORDS_BATCH: usize = 64;
/// Under memory pressure the kernel kills the node before PID 1, and after the node's workers.
const OOM_SCORE_ADJ: &str = "-500";
/// How long PID 1 waits for the last lines of an ended node.
const LAST_LINES_MAX: Duration = Duration::from_millis(200);
/// How long the node may be silent within a bundle: longer than it waits for the sender of one.
pub(crate) const BUNDLE_SILENT_MAX: Duration = Duration::from_secs(900);
/// How often the thread that reads a bundle looks whether it is still wanted, while the node is silent.
const BUNDLE_LOOK: Duration = Duration::from_secs(2);
/// Process name of the node.
const NODE_NAME: &str = "alknet";

/// A running node. Dropping it closes the control channel.
#[derive(Debug)]
pub(crate) struct NodeProcess {
    pid: Pid,
    life: u64,
    messages: mpsc::Sender<NodeMessage>,
    /// PID 1's end of the stream with update bundles.
    bundles: StdStream,
    output: JoinHandle<()>,
}

impl NodeProcess {
    /// Starts the node of life `life`. Lives count from 1.
    pub(crate) fn spawn(
        life: u64,
        vault: &VaultHandle,
        log: &InitLog,
        events: mpsc::Sender<MachineEvent>,
    ) -> Result<Self, InitError> {
        let (ours, theirs) = StdStream::pair().map_err(InitError::Spawn)?;
        let (bundles, updates) = StdStream::pair().map_err(InitError::Spawn)?;
        bundles
            .set_read_timeout(Some(BUNDLE_LOOK))
            .map_err(InitError::Spawn)?;
        let (output, input) =
            pipe2(OFlag::O_CLOEXEC).map_err(|error| InitError::Spawn(error.into()))?;
        if let Err(error) = groups::clear_workers() {
            log.warn(error);
        }
        let pid =
            execute((&theirs, &updates), vault.descriptor(), input).map_err(InitError::Spawn)?;
        // PID 1 lowers the score: the child would need CAP_SYS_RESOURCE to do it after it gave up
        // root.
        let score = fs::write(format!("/proc/{pid}/oom_score_adj"), OOM_SCORE_ADJ);
        if let Err(error) = score {
            tracing::debug!(%error, "the node keeps its default memory score");
        }
        ours.set_nonblocking(true).map_err(InitError::Spawn)?;
        let stream = UnixStream::from_std(ours).map_err(InitError::Spawn)?;
        let output = pipe::Receiver::from_owned_fd(output).map_err(InitError::Spawn)?;
        let (reader, writer) = stream.into_split();
        let (messages, queue) = mpsc::channel(WAITING_MAX);
        tokio::spawn(read_control(reader, life, events));
        tokio::spawn(write_control(writer, life, queue, log.clone()));
        Ok(Self {
            pid,
            life,
            messages,
            bundles,
            output: tokio::spawn(read_output(output, life, log.clone())),
        })
    }

    pub(crate) const fn pid(&self) -> Pid {
        self.pid
    }

    /// Processor time of the node, in milliseconds. 0 for an ended node.
    pub(crate) fn computed(&self) -> u64 {
        let clock = ClockId::pid_cpu_clock_id(self.pid);
        let time = clock.and_then(ClockId::now).unwrap_or(TimeSpec::new(0, 0));
        Duration::from(time)
            .as_millis()
            .try_into()
            .unwrap_or(u64::MAX)
    }

    pub(crate) const fn life(&self) -> u64 {
        self.life
    }

    /// PID 1's end of the stream with update bundles, for a thread that reads it.
    pub(crate) fn bundles(&self) -> io::Result<StdStream> {
        self.bundles.try_clone()
    }

    /// Sends a message without waiting. Returns whether the queue had room.
    pub(crate) fn send(&self, message: NodeMessage) -> bool {
        self.messages.try_send(message).is_ok()
    }

    /// Waits until the last lines of the ended node are in the log. If another process still holds
    /// the other end of the pipe, the wait ends after a time.
    pub(crate) async fn last_lines(self) {
        // After the end or the timeout alike, the log has the lines that arrived.
        let _ = tokio::time::timeout(LAST_LINES_MAX, self.output).await;
    }

    pub(crate) fn signal(&self, signal: Signal) {
        // A process that has just ended fails this, and PID 1 is about to collect it.
        let _ = kill(self.pid, signal);
    }
}

/// Forks and executes. PID 1 collects every child, so this does not wait for it.
fn execute(
    (control, updates): (&StdStream, &StdStream),
    vault: Option<BorrowedFd<'_>>,
    output: OwnedFd,
) -> io::Result<Pid> {
    let streams = (control.as_raw_fd(), updates.as_raw_fd());
    let vault = vault.map(|area| area.as_raw_fd());
    let errors = output.try_clone()?;
    // This path is the running program, even if its file was replaced.
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0(NODE_NAME)
        .arg("node")
        // The kernel puts unknown words of its command line into the environment of PID 1
        // (admin-guide/kernel-parameters).
        .env_clear()
        .current_dir("/")
        .uid(NODE_UID)
        .gid(NODE_UID)
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors);
    // Without control groups the node runs all the same, and reports that its workers have no
    // limits.
    let group = groups::node_cgroup();
    let cgroup_procs = group.as_ref().map(AsRawFd::as_raw_fd);
    // SAFETY: between fork and exec the closure only makes system calls, and allocates no memory.
    let child =
        unsafe { command.pre_exec(move || confine(streams, vault, cgroup_procs)) }.spawn()?;
    i32::try_from(child.id())
        .map(Pid::from_raw)
        .map_err(io::Error::other)
}

/// Runs in the child: joins its control group, gives up gaining privileges, ends with PID 1, and
/// takes the control channel and the vault's memory.
fn confine(
    (control, updates): (i32, i32),
    vault: Option<i32>,
    group: Option<i32>,
) -> io::Result<()> {
    if let Some(group) = group {
        // "0" means the writing process. If the write fails, the node's workers have no groups, and
        // the node reports it. SAFETY: the descriptor is open, and the text lives as long as the
        // program.
        unsafe { libc::write(group, c"0".as_ptr().cast(), 1) };
    }
    // SAFETY: the calls take numbers only. The descriptor is open, and its copy belongs to the
    // node.
    unsafe {
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0))?;
        check(libc::setsid())?;
        // The originals may have the numbers that `dup2` assigns below, so they are moved first.
        let control = duplicate(control)?;
        let updates = duplicate(updates)?;
        let vault = vault.map(duplicate).transpose()?;
        check(libc::dup2(control, NODE_FD))?;
        check(libc::dup2(updates, UPDATE_FD))?;
        match vault {
            Some(area) => check(libc::dup2(area, VAULT_FD)),
            None => Ok(()),
        }
    }
}

/// Copies a descriptor to a number above those that the node uses. The copy is closed at exec.
fn duplicate(fd: i32) -> io::Result<i32> {
    duplicate_above(fd, UPDATE_FD)
}

/// Like `duplicate`, above another number.
pub(crate) fn duplicate_above(fd: i32, last: i32) -> io::Result<i32> {
    // SAFETY: the call takes numbers only.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, last + 1) };
    check(copy)?;
    Ok(copy)
}

pub(crate) fn check(outcome: libc::c_int) -> io::Result<()> {
    if outcome < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Reads messages, one line of JSON each. A line that is too long or does not parse ends the node.
async fn read_control(reader: OwnedReadHalf, life: u64, events: mpsc::Sender<MachineEvent>) {
    let mut reader = BufReader::new(reader);
    let reason = loop {
        match read_message(&mut reader).await {
            Ok(Some(message)) => {
                if events
                    .send(MachineEvent::Said { life, message })
                    .await
                    .is_err()
                {
                    return;
                }
            }
            Ok(None) => break "it closed its control channel".to_owned(),
            Err(error) => break error.to_string(),
        }
    };
    // The receiver ends only with the machine.
    let _ = events.send(MachineEvent::Lost { life, reason }).await;
}

async fn read_message<R>(reader: &mut R) -> io::Result<Option<InitMessage>>
where
    R: tokio::io::AsyncBufRead + Unpin,
{
    let mut line = Vec::new();
    let limit = LINE_BYTES_MAX as u64 + 1;
    let read = reader.take(limit).read_until(b'\n', &mut line).await?;
    if read == 0 {
        return Ok(None);
    }
    if read > LINE_BYTES_MAX {
        return Err(io::Error::other("it sent a line that is too long"));
    }
    serde_json::from_slice(&line)
        .map(Some)
        .map_err(|error| io::Error::other(format!("it sent a line that is not a message: {error}")))
}

/// Sends messages first, and then the log: from the oldest record that is kept, without those of
/// this node.
async fn write_control(
    mut writer: OwnedWriteHalf,
    life: u64,
    mut queue: mpsc::Receiver<NodeMessage>,
    log: InitLog,
) {
    // The first message is the start, and records may follow it.
    let Some(start) = queue.recv().await else {
        return;
    };
    let mut outcome = write_message(&mut writer, &start).await;
    let mut next = 0;
    let mut grown = log.follow();
    // The log has records from before this node. Without this mark they would wait for the next
    // one.
    grown.mark_changed();
    while outcome.is_ok() {
        outcome = tokio::select! {
            biased;
            message = queue.recv() => match message {
                Some(message) => write_message(&mut writer, &message).await,
                None => return,
            },
            _ = grown.changed() => write_records(&mut writer, life, &log, &mut next).await,
        };
        // The rest of a batch is sent in the next turn, so that a message in between is not late.
        if next < log.ring().next() {
            grown.mark_changed();
        }
    }
}

async fn write_records(
    writer: &mut OwnedWriteHalf,
    life: u64,
    log: &InitLog,
    next: &mut u64,
) -> io::Result<()> {
    let mut lines = Vec::new();
    // The lock ends before the write, which waits for the node.
    {
        let ring = log.ring();
        *next = ring.oldest().max(*next);
        for (author, record) in ring.since(*next).take(RECORDS_BATCH) {
            *next += 1;
            if *author != LogAuthor::Node(life) {
                let record = record.clone();
                encode(&mut lines, &NodeMessage::Log { record })?;
            }
        }
    }
    writer.write_all(&lines).await
}

async fn write_message(writer: &mut OwnedWriteHalf, message: &NodeMessage) -> io::Result<()> {
    let mut line = Vec::new();
    encode(&mut line, message)?;
    writer.write_all(&line).await
}

fn encode(out: &mut Vec<u8>, message: &NodeMessage) -> io::Result<()> {
    serde_json::to_writer(&mut *out, message)?;
    out.push(b'\n');
    Ok(())
}

/// How a record begins that has the next piece of a line.
const CONTINUES: &str = "…";

/// Lines of standard output and error go to the log; a longer line is cut into pieces.
async fn read_output(output: pipe::Receiver, life: u64, log: InitLog) {
    let mut reader = BufReader::new(output);
    let mut line = Vec::new();
    // The level of a line of which only the first pieces were read.
    let mut unfinished: Option<&str> = None;
    loop {
        line.clear();
        let mut piece = (&mut reader).take(MESSAGE_BYTES_MAX as u64);
        match piece.read_until(b'\n', &mut line).await {
            Ok(1..) => {}
            Ok(0) | Err(_) => return,
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end();
        // A client can have its own text in a line. Where that is cut, a level and a target in it must not begin a
        // record that looks like one of the node's.
        let (level, text) = match unfinished {
            Some(level) => (level, format!("{CONTINUES}{text}")),
            None => {
                let (level, text) = split_priority(text);
                (level, text.to_owned())
            }
        };
        unfinished = (!line.ends_with(b"\n")).then_some(level);
        if !text.is_empty() && text != CONTINUES {
            log.write_as(LogAuthor::Node(life), level, TARGET_NODE, &text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::MachineFacts;

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime")
            .block_on(work)
    }

    #[test]
    fn messages_are_read_and_bad_ones_refused() {
        block_on(async {
            let good = br#"{"t":"health","n":7,"ok":true,"detail":""}"#;
            let mut bytes = good.to_vec();
            bytes.extend_from_slice(b"\nnonsense\n");
            let mut reader = &bytes[..];
            let message = read_message(&mut reader).await.expect("a message");
            assert!(matches!(
                message,
                Some(InitMessage::Health { n: 7, ok: true, .. })
            ));
            assert!(read_message(&mut reader).await.is_err());
            assert!(matches!(read_message(&mut reader).await, Ok(None)));
        });
    }

    #[test]
    fn a_line_without_end_is_refused_and_not_stored() {
        block_on(async {
            let long = vec![b'x'; LINE_BYTES_MAX + 10];
            let error = read_message(&mut &long[..]).await.expect_err("too long");
            assert!(error.to_string().contains("too long"));
        });
    }

    #[test]
    fn the_node_gets_the_log_without_its_own_lines() {
        block_on(async {
            let log = InitLog::default();
            for number in 0..200 {
                log.info(number);
            }
            log.write_as(LogAuthor::Node(2), "info", TARGET_NODE, "mine");
            log.write_as(LogAuthor::Node(1), "info", TARGET_NODE, "last words");
            let (ours, theirs) = UnixStream::pair().expect("a pair");
            let (_keep, writer) = ours.into_split();
            let (messages, queue) = mpsc::channel(4);
            let start = NodeMessage::Facts {
                facts: Box::new(MachineFacts::default()),
            };
            messages.send(start).await.expect("there is room");
            tokio::spawn(write_control(writer, 2, queue, log.clone()));
            let mut lines = BufReader::new(theirs).lines();
            let first = lines.next_line().await.expect("readable").expect("a line");
            assert!(first.contains("\"facts\""));
            let mut texts = Vec::new();
            while texts.len() < 201 {
                let line = lines.next_line().await.expect("readable").expect("a line");
                match serde_json::from_str(&line).expect("a message") {
                    NodeMessage::Log { record } => texts.push(record.message),
                    other => panic!("a record, not {other:?}"),
                }
            }
            assert_eq!(texts[0], "0");
            assert_eq!(texts[200], "last words");
        });
    }

    #[test]
    fn output_becomes_records_with_levels() {
        block_on(async {
            let log = InitLog::default();
            let (output, input) = pipe2(OFlag::O_CLOEXEC).expect("a pipe");
            let mut bytes = b"<3>bad\n\nplain\xff\n".to_vec();
            bytes.extend(vec![b'y'; MESSAGE_BYTES_MAX + 1]);
            nix::unistd::write(&input, &bytes).expect("it fits the pipe");
            drop(input);
            let output = pipe::Receiver::from_owned_fd(output).expect("a pipe");
            read_output(output, 1, log.clone()).await;
            let ring = log.ring();
            let records: Vec<_> = ring.since(0).map(|(_, record)| record).collect();
            assert_eq!((&*records[0].level, &*records[0].message), ("error", "bad"));
            assert_eq!(records[1].message, "plain\u{fffd}");
            assert_eq!(records[2].message.len(), MESSAGE_BYTES_MAX);
            assert_eq!(records[3].message, "…y");
        });
    }

    /// A peer chooses how long its text is, and so what the second piece of the line begins with.
    #[test]
    fn the_rest_of_a_long_line_is_no_record_of_its_own() {
        block_on(async {
            let log = InitLog::default();
            let (output, input) = pipe2(OFlag::O_CLOEXEC).expect("a pipe");
            let mut bytes = b"<6>".to_vec();
            bytes.resize(MESSAGE_BYTES_MAX, b'y');
            bytes.extend(b"<3>tokens: token.make by=admin\n<4>next\n");
            nix::unistd::write(&input, &bytes).expect("it fits the pipe");
            drop(input);
            let output = pipe::Receiver::from_owned_fd(output).expect("a pipe");
            read_output(output, 1, log.clone()).await;
            let ring = log.ring();
            let records: Vec<_> = ring
                .since(0)
                .map(|(_, record)| (&*record.level, &*record.message))
                .collect();
            assert_eq!(
                records[1..],
                [
                    ("info", "…<3>tokens: token.make by=admin"),
                    ("warn", "next")
                ]
            );
        });
    }
}
