//! The acts of a probe and its reports: the language between the tests and the hostile worker.

use alknet_worker::CborBody;
use serde::{Deserialize, Serialize};

/// The variable of a probe's environment that says how its start goes: [`START_SLEEPS`], or for how many milliseconds it
/// computes before it is ready.
pub(crate) const START_VARIABLE: &str = "ALKNET_PROBE_START";
/// It never becomes ready, and uses no processor time.
pub(crate) const START_SLEEPS: &str = "sleeps";

/// One act.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum ProbeAct {
    /// SIGABRT by way of the C library.
    Abort,
    /// Touches this many bytes of new memory and keeps them.
    Allocate(u64),
    /// Waits this many milliseconds and reports that the GPU does nothing for the call in them.
    Compile(u64),
    /// Calls the host and answers with the host's reply.
    Ask(String),
    /// Sends this many heartbeats of a call that the host never began.
    Beats(u64),
    /// SIGBUS: reads a map beyond the end of its memory.
    Bus,
    /// Closes the channel and stays alive.
    CloseChannel,
    /// Stops the control thread, so that nothing is read, and answers. For hosts that want heartbeats rarely.
    Deaf,
    /// Sends this many messages of its session, each with as many descriptors as a frame may have.
    Descriptors(u64),
    /// Returns its input.
    Echo(CborBody),
    /// Ends the first thread of its process, a moment later, and answers.
    EndFirstThread,
    /// Ends with this status.
    Exit(i32),
    /// Opens this many calls to the host at once.
    Flood(u64),
    /// Sends these bytes as if they were a frame.
    Garbage(Vec<u8>),
    /// What it found before the last layer of its sandbox was in place.
    Inside,
    /// The number of the host's descriptors that it kept, and the bytes of memory behind them.
    Kept,
    /// Logs this many lines of this many bytes.
    Log(u64, usize),
    /// Sends a frame with more descriptors than a frame may have.
    ManyDescriptors,
    /// Panics in the thread of the call.
    Panic,
    /// Reads a file.
    Read(String),
    /// Answers a call that the host did not make.
    ResultUnasked,
    /// SIGSEGV: writes to an address without memory.
    Segv,
    /// The same after this many milliseconds in one system call.
    SegvAfter(u64),
    /// Touches this many bytes of new shareable memory, and keeps them; reports the error number.
    Share(u64),
    /// Stops the control thread, so that no heartbeat comes.
    Silence,
    /// Waits in one system call.
    Sleep(u64),
    /// Works; ends early on request, if it obeys.
    Spin { obeys: bool },
    /// Sends this many messages of this many bytes at once.
    Tell(u64, usize),
    /// Starts up to this many threads that stay, and reports how many there are.
    Threads(u64),
    /// Tries a system call and reports the error number; zero means that it worked.
    Try(ProbeSyscall),
    /// Sends a value of this size back, in sealed memory where the size requires it.
    Value(usize),
    /// Writes a file.
    Write(String),
}

/// A system call to try.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum ProbeSyscall {
    Bpf,
    Connect,
    Exec,
    Fork,
    KillEverybody,
    KillParent(i32),
    MapExec,
    Mount,
    Open,
    /// The call of this number on the host's socket, with `MSG_OOB` among its flags.
    OutOfBand(i64),
    ProtectExec,
    Ptrace(i32),
    Setns,
    Signal(i32),
    Socket,
    Stat,
    Thread,
    Unshare,
}

/// The outcome of an act.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum ProbeReply {
    Errno(i32),
    Inside(ProbeView),
    Text(String),
}

/// A worker's report of its surroundings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ProbeView {
    pub(crate) arguments: Vec<String>,
    pub(crate) descriptors: Vec<i32>,
    pub(crate) environment: Vec<String>,
    pub(crate) folder: String,
    pub(crate) pid: u32,
    pub(crate) root: Vec<String>,
}
