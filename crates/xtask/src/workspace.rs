//! The build folder that all clones on this machine share.
//!
//! Every clone builds in the [mirror], so that the next clone can use what was compiled, and only
//! differences are compiled again. A lock prevents two clones from building at once.

#[cfg(test)]
mod tests;

use std::env;
use std::ffi::c_int;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, IsTerminal, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, SystemTime};

use crate::git::git;
use crate::last_use::{BuildSet, LastUse};
use crate::locks::{self, Sharing};
use crate::mirror::{self, BringBackResult, MirrorChanges, MirrorRecord};
use crate::progress::BoardRow;
use crate::{c_flags, cache, memory, rustc};

/// This clone and where it builds.
#[derive(Clone, Debug)]
pub struct Workspace {
    root: PathBuf,
    cache: PathBuf,
    triple: String,
    /// How many builds compile at the same time, with cargo's.
    builds: usize,
    /// The lock while it is held. Every cargo inherits it.
    held: Arc<Mutex<Weak<File>>>,
}

/// Keeps every other clone waiting until this is dropped and every cargo that was started meanwhile
/// has ended, with its compilers.
#[derive(Debug)]
pub struct BuildLock {
    _file: Arc<File>,
    stamp: PathBuf,
    changes: MirrorChanges,
    left_out: Vec<PathBuf>,
    record: Mutex<MirrorRecord>,
}

impl BuildLock {
    /// The differences between this clone and the one that built last.
    #[must_use]
    pub const fn changes(&self) -> MirrorChanges {
        self.changes
    }

    /// Files of the clone that were not copied: untracked, and larger than
    /// [`mirror::LARGEST_UNTRACKED`].
    #[must_use]
    pub fn left_out(&self) -> &[PathBuf] {
        &self.left_out
    }
}

impl Drop for BuildLock {
    fn drop(&mut self) {
        // Without the stamp, a clock that is set back may cost a build that is not fresh, as in
        // plain cargo.
        let _ = stamp(&self.stamp, SystemTime::now());
    }
}

/// How far the clock may be behind the last build without a warning. Two machines that share a disk
/// may differ this much.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);

/// The environment variable of cargo for the number of jobs, unless its arguments have it.
const JOBS_VARIABLE: &str = "CARGO_BUILD_JOBS";

/// `F_SETFD` of `fcntl(2)`.
const SET_DESCRIPTOR_FLAGS: c_int = 2;

unsafe extern "C" {
    fn fcntl(descriptor: c_int, command: c_int, ...) -> c_int;
}

/// Seconds of a day.
const DAY_SECONDS: u64 = 86_400;

impl Workspace {
    /// The clone at `root`, with heavy outputs in `cache`, whose links are resolved.
    pub fn new(root: &Path, cache: &Path) -> Result<Self, String> {
        let root = fs::canonicalize(root)
            .map_err(|error| format!("cannot find the clone at {}: {error}", root.display()))?;
        Ok(Self {
            root,
            cache: cache::resolve(cache)?,
            triple: host_triple()?,
            builds: 1,
            held: Arc::default(),
        })
    }

    /// The clone's folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of heavy outputs.
    #[must_use]
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// Makes and marks the cache, or refuses it, as [`cache::open`].
    pub fn open_cache(&self) -> Result<(), String> {
        let opened = cache::open(&self.root, &self.cache)?;
        if opened == self.cache {
            return Ok(());
        }
        Err(format!(
            "{} was replaced by a link to {} while this command ran: run it again",
            self.cache.display(),
            opened.display()
        ))
    }

    /// The folder in the cache with this clone's content while it builds.
    #[must_use]
    pub fn mirror(&self) -> PathBuf {
        self.cache.join(cache::MIRROR)
    }

    /// Cargo's target folder.
    #[must_use]
    pub fn target(&self) -> PathBuf {
        self.cache.join(cache::TARGET)
    }

    /// The host's name in cargo's target folder.
    #[must_use]
    pub fn triple(&self) -> &str {
        &self.triple
    }

    /// Sets how many builds compile at the same time from now on: cargo's, and those of other
    /// programs.
    pub fn compile_beside(&mut self, builds: usize) {
        self.builds = builds;
    }

    /// How many jobs one of these builds starts, for the memory that is available now.
    #[must_use]
    pub fn jobs(&self) -> usize {
        memory::jobs(self.builds)
    }

    /// The path of a built executable.
    #[must_use]
    pub fn executable(&self, name: &str) -> PathBuf {
        self.target().join(&self.triple).join("release").join(name)
    }

    /// A cargo command that runs in the mirror and builds into the shared folder. The caller holds
    /// the [lock](Self::claim), and so do cargo and its compilers: if the caller is killed, the
    /// folder is free only after they end.
    #[must_use]
    pub fn cargo(&self, subcommand: &str) -> Command {
        self.cargo_in(subcommand, &self.mirror(), &self.target())
    }

    /// Like [`cargo`](Self::cargo), in another copy of the tree, and into the target folder
    /// `target`.
    #[must_use]
    pub fn cargo_in(&self, subcommand: &str, tree: &Path, target: &Path) -> Command {
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command
            .current_dir(tree)
            .arg(subcommand)
            .env("CARGO_TARGET_DIR", target)
            .env("RUSTC_WORKSPACE_WRAPPER", rustc::path(&self.cache))
            .env_remove("CARGO_BUILD_TARGET_DIR");
        c_flags::add(&mut command, &self.triple, tree, target);
        let (jobs, processors) = (self.jobs(), thread::available_parallelism());
        let is_less = processors.is_ok_and(|processors| jobs < processors.get());
        // The user's own setting wins.
        if is_less && env::var_os(JOBS_VARIABLE).is_none() {
            command.env(JOBS_VARIABLE, jobs.to_string());
        }
        if let Some(day) = self.commit_day() {
            command.env("ALKNET_BUILD_TIME", day);
        }
        if let Some(lock) = self.held().upgrade() {
            inherit(&mut command, lock);
        }
        command
    }

    /// Builds a program of the workspace, shows on the board which package is compiled, and records
    /// the units it uses. The caller holds the [lock](Self::claim).
    pub fn build(&self, program: &str, set: BuildSet, row: &BoardRow) -> Result<PathBuf, String> {
        let mut cargo = self.cargo("build");
        // As part of the whole workspace, so that libraries keep the same features.
        cargo
            .args(["--release", "--workspace", "--bin", program])
            .arg("--message-format=json-render-diagnostics");
        let messages = compile(&mut cargo, row)?;
        self.record(set, &messages)?;
        Ok(self.executable(program))
    }

    /// Records which compiled units a build used, from cargo's messages.
    pub fn record(&self, set: BuildSet, messages: &str) -> Result<(), String> {
        // The caller may become another program by exec, which drops no lock.
        let stamped = stamp(&self.cache.join(cache::BUILD_STAMP), SystemTime::now());
        let recorded =
            stamped.and_then(|()| LastUse::for_target(&self.target()).note(set, messages));
        recorded.map_err(|error| self.io_error("write into", &error))
    }

    /// Copies into the clone what cargo, or a test, changed in the mirror since `lock` was taken:
    /// manifests, `Cargo.lock`, formatted sources, snapshots.
    pub fn bring_back(&self, lock: &BuildLock) -> Result<BringBackResult, String> {
        let mut record = lock.record.lock().unwrap_or_else(PoisonError::into_inner);
        let brought = mirror::bring_back(&self.root, &self.mirror(), &mut record);
        brought.map_err(|error| {
            format!(
                "cannot copy what cargo changed in {} into this clone: {error}",
                self.mirror().display()
            )
        })
    }

    /// The day of the commit that is built, in seconds since 1970. The clock of a machine that runs
    /// it cannot be earlier. A day, so that two commits of one day share what they compile.
    fn commit_day(&self) -> Option<String> {
        let mut log = git(&self.root);
        log.args(["log", "-1", "--format=%ct"]);
        let output = log.output().ok().filter(|output| output.status.success())?;
        let seconds: u64 = String::from_utf8(output.stdout).ok()?.trim().parse().ok()?;
        Some((seconds - seconds % DAY_SECONDS).to_string())
    }

    /// Takes the build folder for this clone: waits for other builds, then updates the mirror.
    /// Refuses a cache in which files of others would be overwritten.
    pub fn claim(&self) -> Result<BuildLock, String> {
        self.open_cache()?;
        fs::create_dir_all(self.target()).map_err(|error| self.io_error("create", &error))?;
        let file = self.lock().map_err(|error| self.io_error("lock", &error))?;
        let file = Arc::new(file);
        let stamp_file = self.cache.join(cache::BUILD_STAMP);
        let newest = stamped(&stamp_file).map_err(|error| self.io_error("read", &error))?;
        self.warn_of_clock(newest);
        let mirror = self.mirror();
        let synced = mirror::sync(&self.root, &mirror, &self.cache, newest).map_err(|error| {
            let (root, mirror) = (self.root.display(), mirror.display());
            format!("cannot copy {root} to {mirror}: {error}")
        })?;
        // Files that were just written may have a later time than this.
        let second = Duration::from_secs(u64::from(synced.changes.written > 0));
        stamp(&stamp_file, SystemTime::now().max(newest + second))
            .map_err(|error| self.io_error("write into", &error))?;
        *self.held() = Arc::downgrade(&file);
        Ok(BuildLock {
            _file: file,
            stamp: stamp_file,
            changes: synced.changes,
            left_out: synced.left_out,
            record: Mutex::new(synced.record),
        })
    }

    fn held(&self) -> MutexGuard<'_, Weak<File>> {
        // The value is always replaced as a whole.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> io::Result<File> {
        let path = self.cache.join(cache::BUILD_LOCK);
        let mut file = locks::take(&path, Sharing::Exclusive, |holder| {
            eprintln!("waiting for another clone that is building or testing: {holder} ...");
        })?;
        // For a waiting user: which clone and which process hold the lock.
        let holder = format!("{} (process {})\n", self.root.display(), std::process::id());
        file.set_len(0)?;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(holder.as_bytes())?;
        Ok(file)
    }

    fn warn_of_clock(&self, newest: SystemTime) {
        let behind = newest.duration_since(SystemTime::now()).unwrap_or_default();
        if behind > CLOCK_TOLERANCE {
            eprintln!(
                "the clock is {} behind the last build: until it has caught up, each command compiles \
                 again what changed; to end that, delete {}, {} and {} in {}",
                crate::progress::span(behind),
                cache::MIRROR,
                cache::TARGET,
                cache::BUILD_STAMP,
                self.cache.display()
            );
        }
    }

    fn io_error(&self, verb: &str, error: &io::Error) -> String {
        format!(
            "cannot {verb} the build folder {}: {error}; make it writable or set ALKNET_CACHE",
            self.target().display()
        )
    }
}

/// Makes the program that `command` starts, and its children, keep the lock. Other programs of this
/// process do not get it, because a long-lived one, such as a machine, would keep it as long.
fn inherit(command: &mut Command, lock: Arc<File>) {
    let keep = move || {
        // SAFETY: fcntl may be called between fork and exec. The closure owns the file, so the
        // descriptor is open, and F_SETFD without FD_CLOEXEC takes an int.
        if unsafe { fcntl(lock.as_raw_fd(), SET_DESCRIPTOR_FLAGS, 0 as c_int) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    };
    // SAFETY: the closure allocates nothing and takes no lock.
    unsafe { command.pre_exec(keep) };
}

/// The time of the stamp file, which no artefact is newer than. 1970 before the first build.
fn stamped(file: &Path) -> io::Result<SystemTime> {
    match fs::metadata(file) {
        Ok(data) => data.modified(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(SystemTime::UNIX_EPOCH),
        Err(error) => Err(error),
    }
}

/// Sets the stamp file's time to `time`, unless it has a later one.
fn stamp(file: &Path, time: SystemTime) -> io::Result<()> {
    let time = time.max(stamped(file)?);
    let opened = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(file)?;
    opened.set_modified(time)
}

/// Runs cargo, and shows on the board which package it compiles. Returns its standard output. On
/// failure, the text contains its standard error.
fn compile(cargo: &mut Command, row: &BoardRow) -> Result<String, String> {
    if io::stderr().is_terminal() {
        cargo.env("CARGO_TERM_COLOR", "always");
    }
    let spawned = cargo
        .env("CARGO_TERM_PROGRESS_WHEN", "never")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = spawned.map_err(|error| format!("cannot run cargo: {error}"))?;
    let stdout = child.stdout.take();
    // Both streams are read at once. Otherwise cargo would block when the unread pipe is full.
    let messages = thread::spawn(move || stdout.map(io::read_to_string));
    let mut errors = String::new();
    if let Some(stderr) = child.stderr.take() {
        for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line);
            match package_in(&line) {
                Some(package) => row.say(&package),
                None => {
                    errors += &line;
                    errors.push('\n');
                }
            }
        }
    }
    let status = child
        .wait()
        .map_err(|error| format!("cannot wait for cargo: {error}"))?;
    if status.success() {
        let messages = messages.join().ok().flatten();
        return messages
            .unwrap_or_else(|| Ok(String::new()))
            .map_err(|error| format!("cannot read what cargo says: {error}"));
    }
    Err(format!(
        "{errors}cargo could not build this ({status}): its messages are above"
    ))
}

/// The package in a line of cargo's progress, with or without colours.
fn package_in(line: &str) -> Option<String> {
    const DOINGS: [&str; 6] = [
        "Compiling",
        "Downloaded",
        "Downloading",
        "Checking",
        "Locking",
        "Fresh",
    ];
    let mut plain = String::new();
    let mut rest = line;
    // Colours are escapes that end with `m`.
    while let Some((before, after)) = rest.split_once('\u{1b}') {
        plain += before;
        rest = after.split_once('m').map_or("", |(_, rest)| rest);
    }
    plain += rest;
    let mut words = plain.split_whitespace();
    let doing = words.next().filter(|word| DOINGS.contains(word))?;
    Some(format!(
        "{} {}",
        doing.to_lowercase(),
        words.next().unwrap_or_default()
    ))
}

fn host_triple() -> Result<String, String> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc)
        .arg("-vV")
        .output()
        .map_err(|error| format!("cannot run rustc: {error}; install Rust from rustup.rs"))?;
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .find_map(|line| line.strip_prefix("host: ").map(str::to_owned))
        .ok_or_else(|| "rustc -vV names no host".to_owned())
}
