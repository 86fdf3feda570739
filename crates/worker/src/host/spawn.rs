//! The thread that starts workers. It lives as long as the supervisor: the kernel kills workers when the thread that
//! started them ends (prctl(2), PR_SET_PDEATHSIG).

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Resource, Rlimit, geteuid};

use super::cgroup::{self, WorkerCgroup};
use super::{DelegatedCgroup, Executable, ProgramMaker, RoleConfig};
use crate::frame::channel;
use crate::guest::VERB;
use crate::limits::{ADDRESS_SPACE_EXTRA, NOFILE, STACK_BYTES};
use crate::setup::{Namespaces, Setup, VERSION};
use crate::sys::{Launch, LaunchedProcess, ProcessIdentity};
use crate::{ConfinementGap, SandboxLayer, SealedMemfd, WorkerError, WorkerRole, encode};

/// Name of worker processes.
const PROCESS_NAME: &str = "alknet";
/// Id of the user and the group of workers whose host is root: `nobody`, on every system.
const NOBODY: u32 = 65_534;

/// A job of the thread.
#[derive(Debug)]
pub(super) enum SpawnJob {
    /// The last worker of the role has ended.
    Forget(WorkerRole),
    Remove(WorkerCgroup),
    Start {
        worker: u64,
        role: Box<RoleConfig>,
    },
}

/// A worker that has executed and has not yet set up its layers.
#[derive(Debug)]
pub(super) struct SpawnedWorker {
    pub(super) process: LaunchedProcess,
    pub(super) channel: OwnedFd,
    pub(super) output: OwnedFd,
    pub(super) leaf: Option<WorkerCgroup>,
    pub(super) gaps: Vec<ConfinementGap>,
}

/// Starts workers.
#[derive(Debug)]
pub(super) struct Spawner {
    program: WorkerProgram,
    programs: HashMap<WorkerRole, WorkerProgram>,
    null: OwnedFd,
    cgroup: Option<DelegatedCgroup>,
    heartbeat_ms: u64,
    /// What this kernel and this user allow, found at the first start.
    trial_result: Option<SpawnTrial>,
}

/// The result of the trials.
#[derive(Clone, Debug, Default)]
struct SpawnTrial {
    namespaces: Namespaces,
    /// Whether a worker of root can be the user `nobody` outside its namespace.
    unprivileged: bool,
    gaps: Vec<ConfinementGap>,
}

impl Spawner {
    pub(super) fn new(
        executable: Executable,
        programs: Vec<(WorkerRole, Executable)>,
        cgroup: Option<DelegatedCgroup>,
        heartbeat_ms: u64,
    ) -> Result<Self, WorkerError> {
        Ok(Self {
            program: WorkerProgram::open(executable)?,
            programs: programs
                .into_iter()
                .map(|(role, executable)| Ok((role, WorkerProgram::open(executable)?)))
                .collect::<Result<_, WorkerError>>()?,
            null: File::open("/dev/null")
                .map_err(WorkerError::Supervisor)?
                .into(),
            cgroup,
            heartbeat_ms,
            trial_result: None,
        })
    }

    /// Works until the supervisor has ended.
    pub(super) fn run(
        mut self,
        jobs: &Receiver<SpawnJob>,
        report: impl Fn(u64, Result<SpawnedWorker, String>),
    ) {
        while let Ok(job) = jobs.recv() {
            match job {
                SpawnJob::Forget(role) => self.program(role).forget(),
                SpawnJob::Remove(leaf) => leaf.remove(),
                SpawnJob::Start { worker, role } => report(worker, self.start(worker, &role)),
            }
        }
    }

    fn program(&mut self, role: WorkerRole) -> &mut WorkerProgram {
        self.programs.get_mut(&role).unwrap_or(&mut self.program)
    }

    fn start(&mut self, worker: u64, role: &RoleConfig) -> Result<SpawnedWorker, String> {
        let say = |what: &str, error: &dyn std::fmt::Display| format!("{what}: {error}");
        let program = self.program(role.role).get();
        let program = program.map_err(|error| say("its program", &error))?;
        let SpawnTrial {
            namespaces,
            unprivileged,
            mut gaps,
        } = self.trial_result();
        // Root's workers are the user `nobody`, unless they need folders that only root can read.
        let unprivileged = unprivileged && role.binds.is_empty();
        let identity = identity(unprivileged && namespaces.user);
        let become_user = (unprivileged && !namespaces.user).then_some(NOBODY);
        if identity == ProcessIdentity::Own && become_user.is_none() && geteuid().is_root() {
            let why = "it runs as root, whose folders it needs";
            gaps.push(ConfinementGap::new(SandboxLayer::UnprivilegedUser, why));
        }
        let (ours, theirs) = UnixStream::pair().map_err(|error| say("socket", &error))?;
        let setup = Setup {
            version: VERSION,
            role: role.role,
            namespaces,
            become_user,
            binds: role.binds.clone(),
            heartbeat_ms: self.heartbeat_ms,
        };
        let frame = encode(&setup, 0).map_err(|error| say("setup", &error))?;
        channel::send_all(&ours, &frame, &[]).map_err(|error| say("setup", &error))?;
        let (output, input) =
            pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).map_err(|e| say("pipe", &e))?;
        let arguments = [PROCESS_NAME, VERB, "--role", role.role.name()].map(plain);
        let environment = environment(role)?;
        let mut limits = limits(role);
        // The kernel counts the threads of this worker alone only if the worker has users of its own.
        if namespaces.user && counts_by_namespace() {
            limits.push((Resource::Nproc, both(role.pids.into())));
        }
        let attempt = |cgroup: Option<BorrowedFd<'_>>| {
            let launch = Launch {
                executable: Some(program.as_fd()),
                arguments: &arguments,
                environment: &environment,
                null: self.null.as_fd(),
                output: input.as_fd(),
                host: theirs.as_fd(),
                limits: &limits,
                huge_pages: role.role.wants_huge_pages(),
                namespaces,
                identity,
                cgroup,
            };
            launch.start()
        };
        let mut leaf = self.leaf(worker, role, &mut gaps);
        let mut started = attempt(leaf.as_ref().map(WorkerCgroup::folder));
        if let Err(error) = &started
            && let Some(refused) = leaf.take()
        {
            // A group that accepts no process must not keep every worker from starting.
            let none = cgroup::none(&format!("not into the group: {error}"));
            refused.remove();
            started = attempt(None);
            gaps.retain(|gap| !none.iter().any(|none| none.layer == gap.layer));
            gaps.extend(none);
        }
        match started {
            Ok(process) => Ok(SpawnedWorker {
                process,
                channel: ours.into(),
                output,
                leaf,
                gaps,
            }),
            Err(error) => {
                if let Some(leaf) = leaf {
                    leaf.remove();
                }
                Err(error.to_string())
            }
        }
    }

    fn leaf(
        &self,
        worker: u64,
        role: &RoleConfig,
        gaps: &mut Vec<ConfinementGap>,
    ) -> Option<WorkerCgroup> {
        let Some(parent) = &self.cgroup else {
            gaps.extend(cgroup::none("no cgroup was given"));
            return None;
        };
        let name = format!("worker-{}-{worker}", std::process::id());
        match WorkerCgroup::make(parent, &name, role, gaps) {
            Ok(leaf) => Some(leaf),
            Err(error) => {
                gaps.extend(cgroup::none(&format!("no group could be made: {error}")));
                None
            }
        }
    }

    fn trial_result(&mut self) -> SpawnTrial {
        if let Some(known) = &self.trial_result {
            return known.clone();
        }
        let trial_result = self.run_trials();
        self.trial_result = Some(trial_result.clone());
        trial_result
    }

    /// Tries from the most to the least: a user namespace brings the right to the other ones, and without it only
    /// root has that. In the user namespace of a container, root may not be able to map the user `nobody`.
    fn run_trials(&self) -> SpawnTrial {
        let has = |name: &str| Path::new("/proc/self/ns").join(name).exists();
        let all = Namespaces {
            ipc: has("ipc"),
            mount: has("mnt"),
            net: has("net"),
            pid: has("pid"),
            user: has("user"),
        };
        let without_user = Namespaces { user: false, ..all };
        let root = geteuid().is_root();
        let mut why = None;
        let mut trial_result = SpawnTrial::default();
        for (namespaces, unprivileged) in [(all, root), (all, false), (without_user, root)] {
            match self.trial(namespaces, identity(unprivileged && namespaces.user)) {
                Ok(()) => {
                    trial_result.namespaces = namespaces;
                    trial_result.unprivileged = unprivileged;
                    break;
                }
                // The first error says most, because it is about the full set.
                Err(error) => why = why.or(Some(error)),
            }
        }
        let why = why.unwrap_or_else(|| "the kernel has none".to_owned());
        let Namespaces {
            ipc,
            mount,
            net,
            pid,
            user,
        } = trial_result.namespaces;
        let layers = [
            (ipc, SandboxLayer::IpcNamespace),
            (mount, SandboxLayer::MountNamespace),
            (net, SandboxLayer::NetNamespace),
            (pid, SandboxLayer::PidNamespace),
            (user, SandboxLayer::UserNamespace),
        ];
        let missing = layers.into_iter().filter(|(stands, _)| !stands);
        trial_result.gaps = missing
            .map(|(_, layer)| ConfinementGap::new(layer, &why))
            .collect();
        // Without a user namespace a worker of root can still become the user `nobody` by itself.
        trial_result.unprivileged |= root && !user;
        trial_result
    }

    fn trial(&self, namespaces: Namespaces, identity: ProcessIdentity) -> Result<(), String> {
        let null = self.null.as_fd();
        let launch = Launch {
            executable: None,
            arguments: &[],
            environment: &[],
            null,
            output: null,
            host: null,
            limits: &[],
            huge_pages: true,
            namespaces,
            identity,
            cgroup: None,
        };
        launch.start().map(drop).map_err(|error| error.to_string())
    }
}

const fn identity(unprivileged: bool) -> ProcessIdentity {
    if unprivileged {
        return ProcessIdentity::Other(NOBODY);
    }
    ProcessIdentity::Own
}

/// The environment of a worker, without any variable of the host.
fn environment(role: &RoleConfig) -> Result<Vec<CString>, String> {
    let named = role.environment.iter().map(|(name, value)| {
        CString::new(format!("{name}={value}")).map_err(|_| format!("{name} holds a null"))
    });
    named.collect()
}

/// Resource limits of the process, which hold with or without a cgroup.
fn limits(role: &RoleConfig) -> Vec<(Resource, Rlimit)> {
    let address_space = role.memory_bytes.saturating_add(ADDRESS_SPACE_EXTRA);
    vec![
        (Resource::As, both(address_space)),
        (Resource::Core, both(0)),
        (Resource::Cpu, both(role.cpu_seconds)),
        (Resource::Memlock, both(0)),
        (Resource::Nofile, both(NOFILE)),
        (Resource::Stack, both(STACK_BYTES)),
    ]
}

const fn both(value: u64) -> Rlimit {
    Rlimit {
        current: Some(value),
        maximum: Some(value),
    }
}

/// Whether the kernel counts the processes of a user in each user namespace for itself. Kernels before 5.14 count all
/// of the machine, so that the host's own would use up the limit of a worker.
fn counts_by_namespace() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    counts_processes_by_namespace(&release)
}

fn counts_processes_by_namespace(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut number = || numbers.next().and_then(|text| text.parse::<u32>().ok());
    (number(), number()) >= (Some(5), Some(14))
}

/// A C string of the crate's own texts, none of which holds a null.
fn plain(text: &str) -> CString {
    CString::new(text).unwrap_or_default()
}

/// A program, and whether it is in memory.
#[derive(Debug)]
enum WorkerProgram {
    Made {
        make: ProgramMaker,
        made: Option<Arc<OwnedFd>>,
    },
    There(Arc<OwnedFd>),
}

impl WorkerProgram {
    fn open(executable: Executable) -> Result<Self, WorkerError> {
        let running = || File::open("/proc/self/exe");
        let opened = match executable {
            Executable::Copied => running().and_then(copy),
            Executable::File(path) => File::open(path).map(OwnedFd::from),
            Executable::Made(make) => return Ok(Self::Made { make, made: None }),
            Executable::Memory(sealed) => Ok(sealed.into()),
            Executable::This => running().map(OwnedFd::from),
        };
        let fd = opened.map_err(WorkerError::Executable)?;
        Ok(Self::There(Arc::new(fd)))
    }

    fn get(&mut self) -> io::Result<Arc<OwnedFd>> {
        match self {
            Self::Made { make, made } => {
                let fd = match made.take() {
                    Some(fd) => fd,
                    None => Arc::new(make.make()?.into()),
                };
                *made = Some(Arc::clone(&fd));
                Ok(fd)
            }
            Self::There(fd) => Ok(Arc::clone(fd)),
        }
    }

    /// Drops a program that can be made again.
    fn forget(&mut self) {
        if let Self::Made { made, .. } = self {
            *made = None;
        }
    }
}

fn copy(mut from: File) -> io::Result<OwnedFd> {
    let sealed = SealedMemfd::program(|memory| io::copy(&mut from, memory).map(drop))?;
    Ok(sealed.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_kernels_count_the_processes_of_all_namespaces_together() {
        for (release, is_counted_apart) in [
            ("5.11.0-27-generic", false),
            ("5.13.19", false),
            ("5.14.0-503.el9.x86_64", true),
            ("6.18.44\n", true),
            ("", false),
        ] {
            let counted = counts_processes_by_namespace(release);
            assert_eq!(counted, is_counted_apart, "{release}");
        }
    }
}
