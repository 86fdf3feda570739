//! What a probe is asked to do, and what it says about it: the language between the tests and the
//! hostile worker.

use alknet_worker::CborBody;
use serde::{Deserialize, Serialize};

/// One thing to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum ProbeAct {
    /// SIGABRT by way of the C library.
    Abort,
    /// Touches this many bytes of new memory and keeps them.
    Allocate(u64),
    /// Waits this many milliseconds in which it says that the GPU does nothing for the call.
    Compile(u64),
    /// Calls the host and answers with what it said.
    Ask(String),
    /// SIGBUS: reads a map behind the end of its memory.
    Bus,
    /// Closes the channel and lives on.
    CloseChannel,
    /// Gives back what it gets.
    Echo(CborBody),
    /// Ends with this status.
    Exit(i32),
    /// Opens this many calls to the host at once.
    Flood(u64),
    /// Sends these bytes as if they were a frame.
    Garbage(Vec<u8>),
    /// What it found before its last wall closed.
    Inside,
    /// How many descriptors it kept of those that the host handed it, and how many bytes of memory those hold.
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
    /// SIGSEGV: writes where nothing is.
    Segv,
    /// Touches this many bytes of new memory that could be shared, and keeps them; tells the error number.
    Share(u64),
    /// Stops the control thread, so that no heartbeat comes.
    Silence,
    /// Waits in one system call.
    Sleep(u64),
    /// Works; ends early when told to, if it obeys.
    Spin { obeys: bool },
    /// Sends this many messages of this many bytes at once.
    Tell(u64, usize),
    /// Starts up to this many threads that stay, and tells how many there are.
    Threads(u64),
    /// Tries a system call and tells the error number; zero means that it worked.
    Try(ProbeSyscall),
    /// Sends a value this large back, in sealed memory where that is due.
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
    ProtectExec,
    Ptrace(i32),
    Setns,
    Signal(i32),
    Socket,
    Stat,
    Thread,
    Unshare,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum ProbeReply {
    Errno(i32),
    Inside(ProbeView),
    Text(String),
}

/// What a worker finds around itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ProbeView {
    pub(crate) arguments: Vec<String>,
    pub(crate) descriptors: Vec<i32>,
    pub(crate) environment: Vec<String>,
    pub(crate) folder: String,
    pub(crate) pid: u32,
    pub(crate) root: Vec<String>,
}
