//! The layers of the sandbox, tried from inside and inspected from outside.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use alknet_test_support::{skip, skipped};
use alknet_worker::{
    Bind, ConfinementLevel, SandboxLayer, WorkerCallError, WorkerEndReason, WorkerError,
    WorkerLease, WorkerRole, Workers,
};

use crate::act::{ProbeAct, ProbeReply, ProbeSyscall, ProbeView};
use crate::host::{ask, block_on, config, errno, is_dead, open, probe, said, stat, until, workers};

const EPERM: i32 = libc::EPERM;

fn status(pid: i32, field: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    line.expect("the field")
        .trim_start_matches(':')
        .trim()
        .to_owned()
}

#[test]
fn nothing_outside_can_be_opened_reached_or_signalled() {
    let workers = workers();
    let host = i32::try_from(std::process::id()).expect("a number");
    for role in WorkerRole::ALL {
        let session = open(&workers, role, "hostile");
        for call in [
            ProbeSyscall::Connect,
            ProbeSyscall::Fork,
            ProbeSyscall::KillEverybody,
            ProbeSyscall::KillParent(host),
            ProbeSyscall::Open,
            ProbeSyscall::Signal(host),
            ProbeSyscall::Socket,
            ProbeSyscall::Stat,
        ] {
            assert_eq!(
                errno(&session, &ProbeAct::Try(call)),
                EPERM,
                "{role} {call:?}"
            );
        }
        let generates_code = matches!(role, WorkerRole::Gpu | WorkerRole::JsGpu);
        for call in [ProbeSyscall::MapExec, ProbeSyscall::ProtectExec] {
            let expected = if generates_code { 0 } else { EPERM };
            assert_eq!(
                errno(&session, &ProbeAct::Try(call)),
                expected,
                "{role} {call:?}"
            );
        }
        let threads = errno(&session, &ProbeAct::Try(ProbeSyscall::Thread));
        if role == WorkerRole::Js {
            assert_ne!(threads, 0, "no new threads for scripts");
        } else {
            assert_eq!(threads, 0, "{role} may have threads");
        }
    }
}

/// The answer to each act is an ordinary message over the same socket.
#[test]
fn no_worker_sends_or_reads_out_of_band() {
    let workers = workers();
    for role in WorkerRole::ALL {
        let session = open(&workers, role, "hostile");
        for call in [
            libc::SYS_recvfrom,
            libc::SYS_recvmsg,
            libc::SYS_sendmsg,
            libc::SYS_sendto,
        ] {
            let tried = ProbeAct::Try(ProbeSyscall::OutOfBand(call));
            assert_eq!(errno(&session, &tried), EPERM, "{role} {call}");
        }
    }
}

#[test]
fn what_no_honest_worker_asks_for_ends_it_at_once() {
    let workers = workers();
    let host = i32::try_from(std::process::id()).expect("a number");
    for call in [
        ProbeSyscall::Bpf,
        ProbeSyscall::Exec,
        ProbeSyscall::Mount,
        ProbeSyscall::Ptrace(host),
        ProbeSyscall::Setns,
        ProbeSyscall::Unshare,
    ] {
        let session = open(&workers, WorkerRole::Js, "hostile");
        match ask(&session, &ProbeAct::Try(call)) {
            Err(WorkerCallError::Lost(loss)) => {
                assert_eq!(loss.reason, WorkerEndReason::Violation, "{call:?}: {loss}");
                assert_eq!(loss.signal, Some(libc::SIGSYS));
            }
            other => panic!("{call:?}: {other:?}"),
        }
    }
}

#[test]
fn a_worker_finds_nothing_but_its_host() {
    let mut config = config();
    for role in &mut config.roles {
        role.environment = vec![("LP_NUM_THREADS".to_owned(), "1".to_owned())];
    }
    let workers = Workers::start(config).expect("a supervisor");
    let session = open(&workers, WorkerRole::Js, "a");
    let ProbeReply::Inside(inside) = said(ask(&session, &ProbeAct::Inside).expect("an answer"))
    else {
        panic!("what it found");
    };
    let expected = ProbeView {
        arguments: ["alknet", "worker", "--role", "js"]
            .map(str::to_owned)
            .to_vec(),
        descriptors: vec![0, 1, 2, 3],
        environment: vec!["LP_NUM_THREADS=1".to_owned()],
        folder: "/".to_owned(),
        pid: 1,
        root: Vec::new(),
    };
    assert_eq!(inside, expected);
}

#[test]
fn the_kernel_shows_the_layers_of_the_sandbox() {
    let workers = workers();
    let session = open(&workers, WorkerRole::Js, "a");
    let pid = session.pid();
    for field in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status(pid, field), "0000000000000000", "{field}");
    }
    assert_eq!(status(pid, "NoNewPrivs"), "1");
    assert_eq!(status(pid, "Seccomp"), "2");
    let user = status(pid, "Uid");
    assert!(user.split_whitespace().all(|id| id != "0"), "{user}");
    let mut namespaces = vec!["ipc", "mnt", "net", "pid"];
    if user_namespaces() {
        namespaces.push("user");
    } else {
        skipped("user namespaces", "only the other layers are checked");
    }
    for namespace in namespaces {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{namespace}")).ok();
        let (theirs, ours) = (of(&pid.to_string()), of("self"));
        // A process that may not inspect sees nothing, which is confinement as well.
        assert!(theirs.is_none() || theirs != ours, "{namespace}");
    }
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("it lives");
    let limit = |name: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name));
        let mut words = line.expect("the limit").split_whitespace();
        (
            words.next().map(str::to_owned),
            words.next().map(str::to_owned),
        )
    };
    for (name, value) in [
        ("Max core file size", "0"),
        ("Max open files", "64"),
        ("Max stack size", "8388608"),
        ("Max cpu time", "3600"),
        ("Max locked memory", "0"),
    ] {
        let value = Some(value.to_owned());
        assert_eq!(limit(name), (value.clone(), value), "{name}");
    }
    assert_ne!(limit("Max address space").0.as_deref(), Some("unlimited"));
    let sandbox = session.sandbox();
    println!("{} {:?}", sandbox.level, sandbox.gaps);
    let groups = [
        SandboxLayer::CgroupCpu,
        SandboxLayer::CgroupMemory,
        SandboxLayer::CgroupPids,
    ];
    let others = sandbox.gaps.iter().map(|gap| &gap.layer);
    let others: Vec<_> = others.filter(|layer| !groups.contains(layer)).collect();
    let gone: Vec<_> = (!user_namespaces())
        .then_some(&SandboxLayer::UserNamespace)
        .into_iter()
        .collect();
    assert_eq!(others, gone, "{:?}", sandbox.gaps);
    assert_eq!(
        sandbox.level,
        ConfinementLevel::Partial,
        "no cgroup was given"
    );
}

#[test]
fn bound_folders_are_all_there_is_and_read_only_unless_said() {
    let workers = workers();
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["objects", "quarantine", "other"] {
        let path = folder.path().join(name);
        fs::create_dir(&path).expect("a folder");
        fs::write(path.join("file"), name).expect("a file");
    }
    let bind = |name: &str, writable| Bind {
        source: folder.path().join(name).display().to_string(),
        name: name.to_owned(),
        writable,
    };
    let lease = WorkerLease::new(WorkerRole::Git, "a")
        .with(bind("objects", false))
        .with(bind("quarantine", true));
    let session = block_on(workers.open(lease)).expect("a session");
    let text = |act: &ProbeAct| said(ask(&session, act).expect("an answer"));
    let path = |name: &str| format!("/{name}/file");
    assert_eq!(
        text(&ProbeAct::Read(path("objects"))),
        ProbeReply::Text("objects".to_owned())
    );
    assert_eq!(
        text(&ProbeAct::Write(path("objects"))),
        ProbeReply::Errno(libc::EROFS)
    );
    assert_eq!(
        text(&ProbeAct::Write(path("quarantine"))),
        ProbeReply::Text(String::new())
    );
    assert_eq!(
        text(&ProbeAct::Write("/file".to_owned())),
        ProbeReply::Errno(libc::EROFS)
    );
    for outside in [
        "/other/file",
        "/etc/passwd",
        "/proc/1/stat",
        "/objects/../../etc/passwd",
    ] {
        assert_eq!(
            text(&ProbeAct::Read(outside.to_owned())),
            ProbeReply::Errno(libc::ENOENT),
            "{outside}"
        );
    }
    let written = fs::read_to_string(folder.path().join("quarantine/file")).expect("there");
    assert_eq!(written, "by the worker");
    // A worker with foreign source gets no folder at all.
    let refused =
        block_on(workers.open(WorkerLease::new(WorkerRole::Js, "a").with(bind("objects", false))));
    assert!(
        matches!(refused, Err(WorkerError::BindsRefused(WorkerRole::Js))),
        "{refused:?}"
    );
    let refused =
        block_on(workers.open(WorkerLease::new(WorkerRole::Git, "a").with(bind("..", false))));
    assert!(
        matches!(refused, Err(WorkerError::BindName(_))),
        "{refused:?}"
    );
}

/// The kernel refuses the list: as where it has no seccomp.
#[test]
fn a_worker_without_its_list_of_system_calls_gets_no_session() {
    let output = Command::new(probe()).arg("unfiltered").output();
    let output = output.expect("it starts");
    let told = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    let expected = "E_POLICY the sandbox is process-only where at least partial is required: \
                    Some(ConfinementGap { layer: Seccomp,";
    assert!(told.starts_with(expected), "{told} {errors}");
}

#[test]
fn a_level_below_the_required_one_is_refused() {
    let mut config = config();
    config.minimum = ConfinementLevel::Full;
    let workers = Workers::start(config).expect("a supervisor");
    let refused = block_on(workers.open(WorkerLease::new(WorkerRole::Js, "a")));
    let Err(error @ WorkerError::Policy { .. }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(error.code(), "E_POLICY");
    assert!(error.to_string().contains("partial"), "{error}");
}

/// A worker does not outlive its host, however the host ends.
#[test]
fn a_host_that_is_killed_takes_its_workers_along() {
    let mut host = Command::new(probe())
        .arg("host")
        .stdout(Stdio::piped())
        .spawn()
        .expect("a host");
    let mut line = String::new();
    let output = host.stdout.take().expect("its output");
    std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line).expect("a line");
    let pid: i32 = line
        .split(' ')
        .next()
        .and_then(|pid| pid.parse().ok())
        .expect("a number");
    assert!(stat(pid).is_some());
    host.kill().expect("it lived");
    host.wait().expect("it is collected");
    until("the worker is gone", || is_dead(pid));
}

/// The last line of a host's report: level and gaps.
fn report(command: &mut Command) -> (String, String) {
    let output = command.output().expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let mut words = text
        .trim_end()
        .rsplit('\n')
        .next()
        .unwrap_or_default()
        .split(' ');
    let level = words.nth(1).map(str::to_owned);
    let gaps = words.next().unwrap_or_default().to_owned();
    (level.unwrap_or_else(|| panic!("{text} {errors}")), gaps)
}

const GROUPS: &str = "CgroupCpu,CgroupMemory,CgroupPids";
/// The layers that an ordinary user lacks without user namespaces.
const NEEDS_USER_NAMESPACES: &str =
    "EmptyRoot,IpcNamespace,MountNamespace,NetNamespace,PidNamespace,UserNamespace";

/// Whether this process can use user namespaces: it cannot in a `chroot`, and where an administrator switched them
/// off. Other layers are in place then, and the tests check those.
fn user_namespaces() -> bool {
    let mut tried = Command::new("unshare");
    let tried = tried.args(["--user", "true"]).stderr(Stdio::null());
    tried.status().expect("util-linux is there").success()
}

/// No cgroup was given, and the host looks at each thread of a worker in order to know whether it waits.
#[test]
fn threads_are_limited_without_a_cgroup() {
    if !user_namespaces() {
        skip!(
            "user namespaces",
            "the kernel would count the threads of the whole machine"
        );
    }
    let workers = workers();
    let session = open(&workers, WorkerRole::Gpu, "hostile");
    let ProbeReply::Text(started) =
        said(ask(&session, &ProbeAct::Threads(1000)).expect("an answer"))
    else {
        panic!("a number");
    };
    let started: u32 = started.parse().expect("a number");
    assert!((1..=64).contains(&started), "{started}");
}

/// The same executable as another user: as on a laptop, and as the appliance's node.
#[test]
fn an_ordinary_user_gets_the_same_sandbox() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("ours");
    let copy = folder.path().join("probe");
    fs::copy(probe(), &copy).expect("a copy");
    let mut command = Command::new("setpriv");
    if is_root() {
        command.args(["--reuid", "1000", "--regid", "1000", "--clear-groups"]);
    }
    command.arg("--no-new-privs").arg(&copy).arg("report");
    let (level, gaps) = report(&mut command);
    let gone = if user_namespaces() {
        GROUPS.to_owned()
    } else {
        skipped(
            "user namespaces",
            "an ordinary user goes without most layers",
        );
        format!("{GROUPS},{NEEDS_USER_NAMESPACES}")
    };
    assert_eq!((&*level, &*gaps), ("partial", &*gone));
}

/// Where user namespaces are switched off: root makes the others itself; every other user lacks them and reports
/// that.
#[test]
fn without_user_namespaces_the_level_says_what_is_missing() {
    let off = "echo 0 > /proc/sys/user/max_user_namespaces && exec \"$@\"";
    let there_are = user_namespaces();
    let confined = || {
        let mut command = Command::new(if there_are { "unshare" } else { "env" });
        if there_are {
            command.args(["--user", "--map-root-user", "sh", "-c", off, "sh"]);
        }
        command
    };
    let (level, gaps) = report(confined().arg(probe()).arg("report"));
    assert_eq!(level, "partial");
    assert!(
        gaps.contains("UserNamespace") && !gaps.contains("MountNamespace"),
        "{gaps}"
    );
    let mut command = confined();
    command.args([
        "setpriv",
        "--bounding-set=-all",
        "--inh-caps=-all",
        "--securebits=+noroot",
    ]);
    let (level, gaps) = report(command.arg(probe()).arg("report"));
    assert_eq!(level, "partial", "the filter still holds");
    for layer in [
        "EmptyRoot",
        "MountNamespace",
        "NetNamespace",
        "PidNamespace",
    ] {
        assert!(gaps.contains(layer), "{gaps}");
    }
    assert!(
        !gaps.contains("Seccomp") && !gaps.contains("Capabilities"),
        "{gaps}"
    );
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}

/// Where the host can make a group, workers are in one of their own, which ends with them.
#[test]
fn a_cgroup_of_its_own_is_made_and_removed() {
    let Some(parent) = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
        .into_iter()
        .find(|path| fs::metadata(format!("{path}/cgroup.procs")).is_ok())
    else {
        skip!("cgroup2", "no hierarchy is mounted below /sys/fs/cgroup");
    };
    let group = format!("{parent}/alknet-test-{}", std::process::id());
    if let Err(error) = fs::create_dir(&group) {
        skip!("cgroup2", "this user may not make a group: {error}");
    }
    let mut config = config();
    config.cgroup = Some(alknet_worker::DelegatedCgroup {
        path: group.clone().into(),
    });
    let workers = Workers::start(config).expect("a supervisor");
    let session = open(&workers, WorkerRole::Js, "a");
    let own = fs::read_to_string(format!("/proc/{}/cgroup", session.pid())).expect("it lives");
    assert!(
        own.contains(&format!("alknet-test-{}/worker-", std::process::id())),
        "{own}"
    );
    println!("{} {:?}", session.sandbox().level, session.sandbox().gaps);
    let act = ProbeAct::Spin { obeys: false };
    let quick = std::time::Duration::from_millis(100);
    let call = session.call(crate::host::request(&act), crate::host::limits(quick), None);
    assert!(call.wait().is_err());
    block_on(workers.shutdown());
    drop((session, workers));
    let folders = || {
        let entries = fs::read_dir(&group).into_iter().flatten().flatten();
        entries.filter(|entry| entry.path().is_dir()).count()
    };
    until("its groups are removed", || folders() == 0);
    fs::remove_dir(&group).expect("it is empty");
}
