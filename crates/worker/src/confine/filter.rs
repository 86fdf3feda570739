//! The system calls that a worker may make.
//!
//! A call has one of three outcomes. A call on the list is made. A call that no honest worker makes (tracing,
//! mounting, loading a module, executing) ends the process at once with SIGSYS: an attacker has taken over a worker
//! that makes it, and the host must know. Every other call fails with `EPERM`: libraries probe for files and settings
//! that they can do without, and a worker that died of a probe would put the operation into quarantine. `clone3`
//! fails with `ENOSYS`, because its flags are in memory, which no filter can read; the C library then uses `clone`,
//! whose flags can be compared.

use std::collections::BTreeMap;
use std::fmt;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter_all_threads, sock_filter,
};

use crate::Rights;

/// Calls that every role may make: memory, waiting, clocks, and the worker's own descriptors.
const COMMON: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_ftruncate,
    libc::SYS_futex,
    libc::SYS_getcpu,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_getuid,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_memfd_create,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_sigaltstack,
    libc::SYS_write,
    libc::SYS_writev,
];

/// The older forms of these, which only x86-64 has.
#[cfg(target_arch = "x86_64")]
const COMMON_OLD: &[i64] = &[libc::SYS_epoll_wait, libc::SYS_poll, libc::SYS_time];
#[cfg(not(target_arch = "x86_64"))]
const COMMON_OLD: &[i64] = &[];

/// Calls that a new thread makes first. Roles without threads may make them as well: a thread of the warm-up may not
/// have come so far when the filter takes effect, and the C library ends a process in which they fail.
const THREADS: &[i64] = &[
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
];

/// Calls on files below the root, for a root with bound folders.
const FILES: &[i64] = &[
    libc::SYS_copy_file_range,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fchmod,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fsync,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_linkat,
    libc::SYS_mkdirat,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_readlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_statx,
    libc::SYS_sync_file_range,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
];

#[cfg(target_arch = "x86_64")]
const FILES_OLD: &[i64] = &[
    libc::SYS_access,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_open,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_rmdir,
    libc::SYS_stat,
    libc::SYS_unlink,
];
#[cfg(not(target_arch = "x86_64"))]
const FILES_OLD: &[i64] = &[];

/// Calls that end a worker.
const NEVER: &[i64] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_chroot,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_finit_module,
    libc::SYS_fsopen,
    libc::SYS_init_module,
    libc::SYS_io_uring_setup,
    libc::SYS_kcmp,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pivot_root,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
];

/// Flags with which the C library starts a thread: all resources are shared, and none is new.
const THREAD_FLAGS: i32 = libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID;

/// Commands of `fcntl` that are left: none that makes the kernel send signals.
const FCNTL: &[i32] = &[
    libc::F_ADD_SEALS,
    libc::F_DUPFD_CLOEXEC,
    libc::F_GETFD,
    libc::F_GETFL,
    libc::F_GET_SEALS,
    libc::F_SETFD,
    libc::F_SETFL,
];

/// Codes of instructions of the filter machine (bpf(2)): load a word, jump if equal, return.
const LOAD_WORD: u16 = 0x20;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

/// The filter could not be made or installed.
#[derive(Debug)]
pub(crate) struct FilterError(String);

impl fmt::Display for FilterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<E: std::error::Error> From<E> for FilterError {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

/// Installs the filter on every thread of the process, for good.
pub(crate) fn install(rights: Rights) -> Result<(), FilterError> {
    let program = program(rights, std::process::id())?;
    Ok(apply_filter_all_threads(&program)?)
}

/// The whole program: first the calls with an outcome of their own, whatever their arguments, then the list.
fn program(rights: Rights, pid: u32) -> Result<BpfProgram, FilterError> {
    let mut program = vec![sock_filter {
        code: LOAD_WORD,
        jt: 0,
        jf: 0,
        // The first word that a filter sees is the number of the call.
        k: 0,
    }];
    // A filter sees numbers and no memory (Documentation/userspace-api/seccomp_filter.rst of the kernel).
    answer(&mut program, libc::SYS_clone3, errno(libc::ENOSYS));
    for call in NEVER {
        answer(&mut program, *call, SeccompAction::KillProcess);
    }
    let list: BpfProgram = SeccompFilter::new(
        rules(rights, pid)?,
        errno(libc::EPERM),
        SeccompAction::Allow,
        std::env::consts::ARCH.try_into()?,
    )?
    .try_into()?;
    // Jumps are relative, and the list begins by loading the words that it compares.
    program.extend(list);
    Ok(program)
}

const fn errno(number: i32) -> SeccompAction {
    SeccompAction::Errno(number.unsigned_abs())
}

/// The two instructions "if it is this call, return that".
fn answer(program: &mut BpfProgram, call: i64, action: SeccompAction) {
    let k = u32::try_from(call).unwrap_or(u32::MAX);
    program.push(sock_filter {
        code: JUMP_IF_EQUAL,
        jt: 0,
        jf: 1,
        k,
    });
    program.push(sock_filter {
        code: RETURN,
        jt: 0,
        jf: 0,
        k: action.into(),
    });
}

fn rules(rights: Rights, pid: u32) -> Result<BTreeMap<i64, Vec<SeccompRule>>, FilterError> {
    let mut rules = BTreeMap::new();
    let mut allow = |calls: &[i64]| rules.extend(calls.iter().map(|call| (*call, Vec::new())));
    allow(COMMON);
    allow(COMMON_OLD);
    allow(THREADS);
    if rights.files {
        allow(FILES);
        allow(FILES_OLD);
    }
    if rights.exec_memory {
        // Generated code needs pages that become executable.
        allow(&[libc::SYS_mmap, libc::SYS_mprotect, libc::SYS_fallocate]);
    } else {
        let not_executable = || {
            let mask = SeccompCmpOp::MaskedEq(u64::from(libc::PROT_EXEC.unsigned_abs()));
            when(2, mask, 0)
        };
        rules.insert(libc::SYS_mmap, vec![not_executable()?]);
        rules.insert(libc::SYS_mprotect, vec![not_executable()?]);
    }
    // Without this right `clone` is on no list, and fails with EPERM.
    if rights.threads {
        let flags = u64::from(THREAD_FLAGS.unsigned_abs());
        rules.insert(libc::SYS_clone, vec![when(0, SeccompCmpOp::Eq, flags)?]);
    }
    // A thread may signal only its own process: without a process namespace a number could be another process's.
    rules.insert(
        libc::SYS_tgkill,
        vec![when(0, SeccompCmpOp::Eq, u64::from(pid))?],
    );
    // The worker may only read limits, and only its own.
    let ask = SeccompRule::new(vec![equal(0, 0)?, equal(2, 0)?])?;
    rules.insert(libc::SYS_prlimit64, vec![ask]);
    let fcntl = FCNTL.iter().map(|command| {
        let command = u64::from(command.unsigned_abs());
        when(1, SeccompCmpOp::Eq, command)
    });
    rules.insert(libc::SYS_fcntl, fcntl.collect::<Result<_, _>>()?);
    // Out-of-band bytes of Unix sockets are a rarely used part of the kernel, in which attackers found a way out of a
    // sandbox (CVE-2025-38236). No honest worker sends or reads them.
    let in_band = |argument| {
        let mask = SeccompCmpOp::MaskedEq(u64::from(libc::MSG_OOB.unsigned_abs()));
        when(argument, mask, 0)
    };
    for call in [libc::SYS_sendmsg, libc::SYS_recvmsg] {
        rules.insert(call, vec![in_band(2)?]);
    }
    for call in [libc::SYS_sendto, libc::SYS_recvfrom] {
        rules.insert(call, vec![in_band(3)?]);
    }
    // The standard library makes a descriptor non-blocking by this call.
    rules.insert(
        libc::SYS_ioctl,
        vec![when(1, SeccompCmpOp::Eq, libc::FIONBIO)?],
    );
    Ok(rules)
}

/// A rule that allows the call if this holds for the lower half of one argument: flags and commands have 32 bits.
fn when(argument: u8, op: SeccompCmpOp, value: u64) -> Result<SeccompRule, FilterError> {
    let one = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, op, value)?;
    Ok(SeccompRule::new(vec![one])?)
}

fn equal(argument: u8, value: u64) -> Result<SeccompCondition, FilterError> {
    let whole = SeccompCmpArgLen::Qword;
    Ok(SeccompCondition::new(
        argument,
        whole,
        SeccompCmpOp::Eq,
        value,
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::WorkerRole;

    /// Longest program the kernel takes, instructions.
    const PROGRAM_MAX: usize = 4096;

    #[test]
    fn every_role_has_a_program_that_the_kernel_takes() {
        for role in WorkerRole::ALL {
            for binds in [false, true] {
                let program = program(role.rights(binds), 1).expect("a program");
                assert!(program.len() < PROGRAM_MAX, "{role}: {}", program.len());
            }
        }
    }

    #[test]
    fn what_is_never_asked_for_is_on_no_list() {
        let all = [COMMON, COMMON_OLD, THREADS, FILES, FILES_OLD].concat();
        for call in NEVER {
            assert!(!all.contains(call), "{call}");
        }
        for call in [libc::SYS_socket, libc::SYS_connect, libc::SYS_kill] {
            assert!(!all.contains(&call), "{call}");
        }
    }

    #[test]
    fn scripts_cannot_start_threads_or_open_paths() {
        let rules = rules(WorkerRole::Js.rights(true), 1).expect("rules");
        for call in [libc::SYS_clone, libc::SYS_openat, libc::SYS_newfstatat] {
            assert!(!rules.contains_key(&call), "{call}");
        }
        assert!(!rules[&libc::SYS_mmap].is_empty(), "mmap has a condition");
    }
}
