use std::env;
use std::os::unix::fs::PermissionsExt;
use std::process::Child;
use std::sync::mpsc::{self, Receiver};

use alknet_test_support::deadline;

use super::*;
use crate::progress::Board;

/// Passes the test's folder to the process that [`Claiming::start`] starts.
const HELPER: &str = "XTASK_TEST_FOLDER";

/// How long a process may take to print something on an idle machine.
const DEADLINE: Duration = Duration::from_secs(300);

/// The tests start programs from there, so no other user may have made the folder.
fn folders() -> (PathBuf, Workspace) {
    let base = tempfile::tempdir()
        .expect("a folder of this test's own")
        .keep();
    let clone = base.join("clone");
    fs::create_dir_all(&clone).expect("ours");
    fs::write(clone.join("file"), "content").expect("the folder is ours");
    let workspace = Workspace::new(&clone, &base.join("cache")).expect("the folder exists");
    (base, workspace)
}

#[test]
fn the_mirror_follows_the_clone_that_builds() {
    let (base, one) = folders();
    fs::create_dir_all(base.join("other")).expect("ours");
    fs::write(base.join("other/file"), "other content").expect("ours");
    let two = Workspace::new(&base.join("other"), one.cache()).expect("the folder exists");
    let content = || fs::read_to_string(one.mirror().join("file")).expect("it was copied");
    assert_eq!(one.claim().expect("it is free").changes().written, 1);
    assert_eq!(content(), "content");
    assert_eq!(two.claim().expect("it is free").changes().written, 1);
    assert_eq!(content(), "other content");
    assert_eq!(
        two.claim().expect("it is free").changes(),
        MirrorChanges::default()
    );
    fs::remove_dir_all(base).expect("the folder is ours");
}

#[test]
fn what_cargo_compiles_is_read_with_and_without_colours() {
    let coloured = "\u{1b}[1m\u{1b}[32m   Compiling\u{1b}[0m serde v1.0.228";
    for line in ["   Compiling serde v1.0.228", coloured] {
        assert_eq!(package_in(line).as_deref(), Some("compiling serde"));
    }
    assert_eq!(package_in("warning: unused variable"), None);
    assert_eq!(package_in(""), None);
}

#[test]
fn what_cargo_says_of_a_failure_comes_back() {
    let folder = tempfile::tempdir().expect("a folder of this test's own");
    let board = Board::new(&folder.path().join("no-history"));
    let row = board.start("test");
    let mut fails = Command::new("sh");
    fails.args([
        "-c",
        "echo '   Compiling a v1' >&2; echo 'error: b' >&2; exit 101",
    ]);
    let text = compile(&mut fails, &row).expect_err("it fails");
    assert!(
        text.starts_with("error: b\n") && text.contains("101"),
        "{text}"
    );
    let said = compile(Command::new("echo").arg("a message"), &row);
    assert_eq!(said.as_deref(), Ok("a message\n"));
}

#[test]
fn cargo_runs_in_the_mirror_with_the_compilers_front() {
    let (base, workspace) = folders();
    let cargo = workspace.cargo("build");
    assert_eq!(cargo.get_current_dir(), Some(workspace.mirror().as_path()));
    let front = cargo
        .get_envs()
        .find(|(name, _)| *name == "RUSTC_WORKSPACE_WRAPPER");
    let front = front.and_then(|(_, path)| path).map(PathBuf::from);
    assert_eq!(front, Some(rustc::path(workspace.cache())));
    fs::remove_dir_all(base).expect("the folder is ours");
}

/// Cargo runs the build scripts of C libraries again if a variable differs, and then compiles all
/// that needs them.
#[test]
fn every_cargo_of_the_cache_gives_c_compilers_the_same_flags() {
    let (base, workspace) = folders();
    let flags = |cargo: &Command| {
        let variables = cargo.get_envs();
        let flags = variables.filter(|(name, _)| name.to_string_lossy().contains("FLAGS_"));
        let flags = flags.map(|(name, value)| format!("{name:?}={value:?}"));
        flags.collect::<Vec<_>>()
    };
    let expected = flags(&workspace.cargo("build"));
    let text = expected.join(" ");
    for folder in [workspace.mirror(), workspace.target()] {
        let map = format!("-ffile-prefix-map={}=", folder.display());
        assert_eq!(text.matches(&map).count(), 2, "C and C++: {text}");
    }
    assert_eq!(flags(&workspace.cargo("test")), expected);
    let named = workspace.cargo_in("build", &workspace.mirror(), &workspace.target());
    assert_eq!(flags(&named), expected);
    fs::create_dir_all(base.join("other")).expect("ours");
    let other = Workspace::new(&base.join("other"), workspace.cache()).expect("the folder exists");
    assert_eq!(flags(&other.cargo("build")), expected, "of another clone");
    let elsewhere = workspace.cargo_in("build", &base.join("tree"), &base.join("built"));
    assert_ne!(flags(&elsewhere), expected);
    fs::remove_dir_all(base).expect("the folder is ours");
}

/// The process that [`Claiming::start`] starts: claims, prints that, and runs cargo.
fn claim_and_build(base: &Path) -> ! {
    let workspace = Workspace::new(&base.join("clone"), &base.join("cache")).expect("the folders");
    let lock = workspace.claim().expect("it is free in the end");
    eprintln!("claimed");
    let status = workspace.cargo("build").status().expect("it starts");
    drop(lock);
    std::process::exit(status.code().unwrap_or(1))
}

/// A process that claims a workspace, and what it prints.
struct Claiming {
    child: Child,
    lines: Receiver<String>,
}

impl Claiming {
    /// In the folder `base`, with the shell script `cargo` as cargo.
    fn start(base: &Path, cargo: &str) -> Self {
        let program = base.join("cargo");
        fs::write(&program, format!("#!/bin/sh\n{cargo}\n")).expect("the folder is ours");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("ours");
        let mut child = Command::new(env::current_exe().expect("this program has a path"))
            .args([
                "--exact",
                "--nocapture",
                "workspace::tests::a_second_clone_waits_and_says_for_which",
            ])
            .env(HELPER, base)
            .env("CARGO", &program)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let stderr = child.stderr.take().expect("it is piped");
        let (say, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                // The test may be over.
                let _ = say.send(line);
            }
        });
        Self { child, lines }
    }

    /// The next line that contains `text`.
    fn line(&self, text: &str) -> String {
        let mut said = Vec::new();
        loop {
            match self.lines.recv_timeout(deadline(DEADLINE)) {
                Ok(line) if line.contains(text) => return line,
                Ok(line) => said.push(line),
                Err(error) => panic!("{error}: no line with {text:?}, only {said:?}"),
            }
        }
    }

    /// Ends it with SIGKILL.
    fn kill(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it was killed");
    }
}

impl Drop for Claiming {
    fn drop(&mut self) {
        // It has ended, unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lock_file(workspace: &Workspace) -> File {
    File::open(workspace.cache().join(cache::BUILD_LOCK)).expect("the lock exists")
}

#[test]
fn a_second_clone_waits_and_says_for_which() {
    if let Some(base) = env::var_os(HELPER) {
        claim_and_build(Path::new(&base));
    }
    let (base, workspace) = folders();
    let held = workspace.claim().expect("nothing was built yet");
    assert!(lock_file(&workspace).try_lock().is_err());
    let mut second = Claiming::start(&base, "exit 0");
    let line = second.line("waiting for another clone that is building or testing: ");
    let holder = format!("clone (process {}) ...", std::process::id());
    assert!(line.contains(&holder), "{line}");
    drop(held);
    second.line("claimed");
    assert!(second.child.wait().expect("it ends").success());
    fs::remove_dir_all(base).expect("the folder is ours");
}

#[test]
fn a_killed_command_leaves_the_build_folder_to_its_compilers() {
    let (base, workspace) = folders();
    // `exec` and `wait` keep the processes whose numbers are printed.
    let script = "echo cargo $$ >&2; sh -c 'echo compiler $$ >&2; exec sleep 600' & wait";
    let mut command = Claiming::start(&base, script);
    let number = |what: &str| command.line(what).replace(what, "");
    let [cargo, compiler] = ["cargo ", "compiler "].map(number);
    let is_free = || lock_file(&workspace).try_lock().is_ok();
    let kill = |process: &str| {
        let status = Command::new("kill").args(["-KILL", process]).status();
        assert!(status.expect("kill is installed").success());
    };
    command.kill();
    let free_beside_cargo = is_free();
    kill(&cargo);
    let free_beside_compiler = is_free();
    kill(&compiler);
    assert!(!free_beside_cargo && !free_beside_compiler);
    // Waits until the processes end.
    lock_file(&workspace).lock().expect("they do not keep it");
    fs::remove_dir_all(base).expect("the folder is ours");
}

#[test]
fn deleting_the_target_folder_frees_no_lock() {
    let (base, workspace) = folders();
    let held = workspace.claim().expect("nothing was built yet");
    fs::remove_dir_all(workspace.target()).expect("it is ours");
    assert!(lock_file(&workspace).try_lock().is_err());
    drop(held);
    fs::remove_dir_all(base).expect("the folder is ours");
}

#[test]
fn the_stamp_never_goes_back() {
    let (base, workspace) = folders();
    drop(workspace.claim().expect("nothing was built yet"));
    let file = workspace.cache().join(cache::BUILD_STAMP);
    let ahead = SystemTime::now() + Duration::from_secs(3600);
    stamp(&file, ahead).expect("ours");
    fs::write(base.join("clone/file"), "changed").expect("ours");
    drop(workspace.claim().expect("it is free"));
    let modified = fs::metadata(workspace.mirror().join("file")).and_then(|data| data.modified());
    let modified = modified.expect("it was copied");
    assert!(modified > ahead);
    assert!(stamped(&file).expect("it is there") >= modified);
    fs::remove_dir_all(base).expect("the folder is ours");
}

#[test]
fn a_cache_with_files_of_others_is_not_claimed() {
    let (base, workspace) = folders();
    fs::create_dir_all(workspace.mirror()).expect("ours");
    let thesis = workspace.mirror().join("thesis.txt");
    fs::write(&thesis, "years of work").expect("ours");
    let text = workspace.claim().expect_err("it would be emptied");
    assert!(text.contains("was not made by alknet"), "{text}");
    assert!(thesis.exists());
    fs::remove_dir_all(base).expect("the folder is ours");
}

#[test]
fn what_cargo_changes_under_a_lock_comes_back() {
    let (base, workspace) = folders();
    let lock = workspace.claim().expect("nothing was built yet");
    fs::write(workspace.mirror().join("file"), "formatted").expect("ours");
    let brought = workspace.bring_back(&lock).expect("both are ours");
    assert_eq!(brought.files, [PathBuf::from("file")]);
    let content = fs::read_to_string(base.join("clone/file"));
    assert_eq!(content.expect("it is there"), "formatted");
    fs::remove_dir_all(base).expect("the folder is ours");
}
