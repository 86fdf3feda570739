//! The seed in memory that two processes share: this program is started a second time, with the area
//! as its standard input, which is how a descriptor gets through an exec without anything unsafe.

use std::io::{BufRead, BufReader, Lines};
use std::os::fd::AsFd;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use alknet_test_support::{eventually, skipped};
use alknet_vault::{
    AreaError, AreaKind, Ed25519Signer, Entropy, KeyPurpose, SecretStr, SeedArea, Vault, VaultState,
};

/// Every line of the other process that is meant begins so; the test harness prints others.
const SAID: &str = "other: ";

/// The test that is started as the other process.
const NAME: &str = "area::an_area_differs_from_other_descriptors";

fn words() -> Entropy {
    Entropy::from_bytes(&[3; 32]).expect("32 bytes")
}

/// Waits until the other process did something to the vault.
fn noticed(vault: &Vault) -> alknet_vault::StateChange {
    let limit = Duration::from_secs(60);
    eventually("the other process does something", limit, || vault.notice())
}

fn node(vault: &Vault) -> Ed25519Signer {
    vault.signer(KeyPurpose::NodeIdentity).expect("open")
}

fn say(what: impl std::fmt::Display) {
    println!("\n{SAID}{what}");
}

/// The other process is this test, started again with an area as its standard input. The test itself has
/// another standard input, which is no area.
#[test]
fn an_area_differs_from_other_descriptors() {
    let inherited = std::io::stdin().as_fd().try_clone_to_owned();
    match SeedArea::from_fd(inherited.expect("standard input is open")) {
        Ok(area) => be_the_other_process(area),
        Err(error) => assert!(matches!(error, AreaError::NotAnArea(_)), "{error}"),
    }
}

fn be_the_other_process(area: SeedArea) {
    say(area.kind().name());
    let vault = Vault::over(area, None);
    // It is open already, as for a node that is started again.
    let key = node(&vault);
    say(data_encoding::HEXLOWER.encode(&key.public()));
    let locked = noticed(&vault);
    assert_eq!(locked.state, VaultState::Locked);
    assert!(vault.signer(KeyPurpose::NodeIdentity).is_err());
    say(format_args!("locked, signs {}", key.sign(b"x").is_ok()));
    let hard = noticed(&vault);
    assert!(hard.revoked);
    say(format_args!(
        "locked hard, signs {}",
        key.sign(b"x").is_ok()
    ));
    while noticed(&vault).state == VaultState::Locked {}
    node(&vault);
    vault.lock();
    say("locked it");
}

struct Other {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Other {
    fn start(area: &SeedArea) -> Self {
        let fd = area.fd().expect("it is shared").try_clone_to_owned();
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", NAME, "--nocapture"])
            .stdin(fd.expect("a descriptor"))
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let stdout = child.stdout.take().expect("piped");
        let lines = BufReader::new(stdout).lines();
        Self { child, lines }
    }

    fn says(&mut self) -> String {
        let mut said = self.lines.by_ref().map(|line| line.expect("text"));
        let said = said.find_map(|line| line.strip_prefix(SAID).map(str::to_owned));
        said.expect("it goes on")
    }
}

#[test]
fn what_one_process_locks_is_locked_in_the_other() {
    for kind in [AreaKind::Secret, AreaKind::Sealed] {
        let area = match SeedArea::create_as(kind) {
            Err(error) if kind == AreaKind::Secret => {
                skipped("memfd_secret", format_args!("only the other kind: {error}"));
                continue;
            }
            area => std::sync::Arc::new(area.expect("every kernel has this kind")),
        };
        let vault = Vault::over(std::sync::Arc::clone(&area), None);
        vault.unlock(&words(), &SecretStr::empty()).expect("locked");
        let public = data_encoding::HEXLOWER.encode(&node(&vault).public());

        let mut other = Other::start(&area);
        assert_eq!(other.says(), area.kind().name());
        assert_eq!(other.says(), public);
        vault.lock();
        assert_eq!(other.says(), "locked, signs true");
        vault.lock_hard();
        assert_eq!(other.says(), "locked hard, signs false");
        vault.unlock(&words(), &SecretStr::empty()).expect("locked");
        assert_eq!(other.says(), "locked it");
        assert!(other.child.wait().expect("it ends").success());
        assert_eq!(vault.state(), VaultState::Locked);
        assert!(vault.notice().is_some());
        assert!(vault.signer(KeyPurpose::NodeIdentity).is_err());
    }
}

#[test]
fn a_process_that_is_killed_leaves_the_vault_as_it_is() {
    let area = std::sync::Arc::new(SeedArea::create().expect("every kernel has one"));
    let vault = Vault::over(std::sync::Arc::clone(&area), None);
    vault.unlock(&words(), &SecretStr::empty()).expect("locked");
    for _ in 0..3 {
        let mut other = Other::start(&area);
        assert_eq!(other.says(), area.kind().name());
        other.says();
        other.child.kill().expect("it runs");
        other.child.wait().expect("it ends");
        node(&vault);
    }
}
