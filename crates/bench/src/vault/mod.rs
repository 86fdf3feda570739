//! The vault, by itself and on machines.
//!
//! By itself: opening it by each type of slot that needs no machine, deriving and signing beside OpenSSL,
//! sealing and opening records, and refusing those that an attacker changed: an attacker who sees how long
//! that takes must not learn what was wrong. What takes microseconds is counted in processor time, as
//! OpenSSL's own measurement does, so that a machine with other work answers the same.

mod disk;
mod machines;
mod refusals;
mod share_server;

use std::collections::BTreeMap;
use std::hint::black_box;
use std::process::Command;
use std::time::{Duration, Instant};

use alknet_vault::slots::{Alkv, Argon2Params, NewSlot, NewVault, OpenAlkv, SeedKey, UnlockKey};
use alknet_vault::{
    BlobLabel, Entropy, KeyPurpose, SecretStr, SeedArea, Vault, VaultError, WordCount,
};

use alknet_tasks::context::XtaskContext;
use alknet_tasks::failure::{Result, TaskError};
use alknet_tasks::third_party;

use super::rows::{BenchRow, Goal, median};
use super::tensor::cpu_seconds;
use refusals::RefusalCases;

const BENCH: &str = "vault";
const PEER: &str = "openssl";

const MEGA: f64 = 1e6;

const UNLOCK_NONE: &str = "unlock, slot none";
const UNLOCK_PROVISIONING: &str = "unlock, slot provisioning";
const UNLOCK_PASSPHRASE: &str = "unlock, slot passphrase of 64 MiB and 3 passes";
const DERIVE_SIGN: &str = "derive the node's key and sign 32 bytes";
const SIGN: &str = "sign 32 bytes with a key that is held";
const SEAL: &str = "seal 1 KiB";
const OPEN: &str = "open 1 KiB";

/// How long each case runs in a round; OpenSSL gets the same time.
const ROUND: Duration = Duration::from_secs(1);
/// How many of the quick things are timed together.
const TOGETHER: u32 = 64;

/// Deriving and signing may take so long.
const DERIVE_SIGN_US: f64 = 100.0;
/// Sealing or opening 1 KiB may take so long.
const RECORD_US: f64 = 10.0;

/// Measures, each round one run of every case.
pub(super) fn run(cx: &mut XtaskContext, rounds: usize) -> Result<Vec<BenchRow>> {
    let openssl = third_party::openssl(cx)?;
    let stage = VaultBench::make().map_err(failed)?;
    let mut figures: BTreeMap<&str, Vec<VaultRun>> = BTreeMap::new();
    let mut signs = Vec::new();
    for _ in 0..rounds {
        for (case, run) in VaultBench::CASES {
            let took = stage.time(run)?;
            figures.entry(case).or_default().push(took);
        }
        signs.push(openssl_signs(&openssl)?);
    }
    let theirs = median(signs);
    let middle = |case: &str, part: fn(&VaultRun) -> f64| {
        let runs = figures.get(case).into_iter().flatten();
        median(runs.map(part).collect())
    };
    let us = |case: &str| middle(case, |run| run.cpu_us);
    let mut rows = Vec::new();
    for case in [UNLOCK_NONE, UNLOCK_PROVISIONING, UNLOCK_PASSPHRASE] {
        let wall = middle(case, |run| run.wall_us);
        rows.push(BenchRow::lower(BENCH, case, "ms", wall / 1e3));
        rows.push(BenchRow::lower(BENCH, case, "CPU ms", us(case) / 1e3));
    }
    for case in [DERIVE_SIGN, SIGN] {
        rows.push(BenchRow::higher(BENCH, case, "per CPU s", 1e6 / us(case)).beside(PEER, theirs));
    }
    let bounded = [
        (DERIVE_SIGN, DERIVE_SIGN_US),
        (SEAL, RECORD_US),
        (OPEN, RECORD_US),
    ];
    rows.extend(bounded.map(|(case, most)| {
        BenchRow::lower(BENCH, case, "CPU µs", us(case)).goal(Goal::Ours(most))
    }));
    rows.extend(refusals::rows(us));
    rows.extend(disk::rows(cx, rounds)?);
    rows.extend(machines::rows(cx, rounds)?);
    Ok(rows)
}

/// What is measured on.
struct VaultBench {
    alkv: Alkv,
    seed: SeedKey,
    passphrase: SecretStr,
    vault: Vault,
    signer: alknet_vault::Ed25519Signer,
    label: BlobLabel,
    plain: Vec<u8>,
    blob: alknet_vault::SealedBlob,
    refused: RefusalCases,
}

/// Does something so often; answers how often.
type Case = fn(&VaultBench) -> std::result::Result<u32, VaultError>;

impl VaultBench {
    const CASES: [(&str, Case); 11] = [
        (UNLOCK_NONE, |stage| stage.unlock(0, &mut UnlockKey::Stored)),
        (UNLOCK_PROVISIONING, |stage| {
            stage.unlock(1, &mut UnlockKey::Seed(&stage.seed))
        }),
        (UNLOCK_PASSPHRASE, |stage| {
            let mut key = UnlockKey::Passphrase {
                passphrase: &stage.passphrase,
                cap_kib: CAP_KIB,
            };
            stage.unlock(2, &mut key)
        }),
        (DERIVE_SIGN, |stage| {
            often(|| {
                let signer = stage.vault.signer(KeyPurpose::NodeIdentity)?;
                black_box(signer.sign(&[7; 32])?);
                Ok(())
            })
        }),
        (SIGN, |stage| {
            often(|| {
                black_box(stage.signer.sign(&[7; 32])?);
                Ok(())
            })
        }),
        (SEAL, |stage| {
            often(|| {
                black_box(stage.vault.seal(&stage.label, &stage.plain)?);
                Ok(())
            })
        }),
        (OPEN, |stage| {
            often(|| {
                black_box(stage.vault.open(&stage.label, &stage.blob)?);
                Ok(())
            })
        }),
        (refusals::MOVED, |stage| {
            often(|| stage.refused.moved(&stage.vault))
        }),
        (refusals::CUT, |stage| {
            often(|| stage.refused.cut(&stage.vault))
        }),
        (refusals::VERSION, |stage| {
            often(|| stage.refused.version(&stage.vault))
        }),
        (refusals::DAMAGED, |stage| {
            often(|| stage.refused.damaged(&stage.vault))
        }),
    ];

    fn make() -> std::result::Result<Self, VaultError> {
        let words = Entropy::generate(WordCount::TwentyFour)?;
        let mut open = OpenAlkv::create(NewVault::new(words, 0), NewSlot::None)?;
        let seed = SeedKey::generate(open.alkv().uuid())?;
        open.add(NewSlot::Provisioning(&seed))?;
        let passphrase = SecretStr::from("correct horse battery staple");
        open.add(NewSlot::Passphrase {
            passphrase: &passphrase,
            cost: Argon2Params::DEFAULT,
            cap_kib: CAP_KIB,
        })?;
        // As a node has it: in memory that it shares with PID 1.
        let vault = match SeedArea::create() {
            Ok(area) => Vault::over(area, None),
            Err(_) => Vault::locked(),
        };
        vault.unlock(open.entropy(), open.passphrase())?;
        let label = "cred:bench".parse()?;
        let plain = vec![0x5a; 1024];
        let blob = vault.seal(&label, &plain)?;
        Ok(Self {
            alkv: open.alkv().clone(),
            seed,
            passphrase,
            signer: vault.signer(KeyPurpose::NodeIdentity)?,
            refused: RefusalCases::from_record(&blob, &label)?,
            blob,
            vault,
            label,
            plain,
        })
    }

    /// From the file's text to a vault that derives, as at a start.
    fn unlock(&self, slot: usize, key: &mut UnlockKey<'_>) -> std::result::Result<u32, VaultError> {
        let text = self.alkv.to_text();
        let alkv = Alkv::parse(text.as_bytes())?;
        let open = alkv.open(alkv.slots()[slot].id(), key)?;
        let vault = Vault::locked();
        vault.unlock(open.entropy(), open.passphrase())?;
        black_box(&vault);
        Ok(1)
    }

    /// What one time takes, over about a second.
    fn time(&self, case: Case) -> Result<VaultRun> {
        let (begun, before) = (Instant::now(), cpu_seconds()?);
        let mut times = 0;
        // Once in any case: Argon2id may take longer than a round.
        while times == 0 || begun.elapsed() < ROUND {
            times += case(self).map_err(failed)?;
        }
        let each = |seconds: f64| seconds * 1e6 / f64::from(times);
        Ok(VaultRun {
            wall_us: each(begun.elapsed().as_secs_f64()),
            cpu_us: each(cpu_seconds()? - before),
        })
    }
}

/// Microseconds by the clock and of processors.
#[derive(Clone, Copy)]
struct VaultRun {
    wall_us: f64,
    cpu_us: f64,
}

/// Enough for the default cost.
const CAP_KIB: u32 = 64 << 10;

fn often(
    mut act: impl FnMut() -> std::result::Result<(), VaultError>,
) -> std::result::Result<u32, VaultError> {
    (0..TOGETHER).try_for_each(|_| act()).map(|()| TOGETHER)
}

/// Signatures a second of OpenSSL's own measurement.
fn openssl_signs(openssl: &std::path::Path) -> Result<f64> {
    let seconds = ROUND.as_secs().to_string();
    let output = Command::new(openssl)
        .args(["speed", "-seconds", &seconds, "ed25519"])
        .output()
        .map_err(TaskError::io("run openssl"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    signs_of(&text).ok_or_else(|| TaskError::Step {
        what: "openssl speed".into(),
        how: format!("it printed no table: {text}"),
        log: None,
    })
}

/// The last but one column of its last line: seconds to sign, to verify, and of each how many a second.
fn signs_of(text: &str) -> Option<f64> {
    // With its bracket: lines of progress name it without one.
    let line = text.lines().find(|line| line.contains("Ed25519)"))?;
    let columns: Vec<_> = line.split_whitespace().collect();
    columns.get(columns.len().checked_sub(2)?)?.parse().ok()
}

fn failed(error: VaultError) -> TaskError {
    TaskError::Step {
        what: "the vault".into(),
        how: error.to_string(),
        log: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openssl_s_table_is_read() {
        let text = "                              sign    verify    sign/s verify/s\n \
                    253 bits EdDSA (Ed25519)   0.0000s   0.0001s  25313.0   9001.0\n";
        assert_eq!(signs_of(text), Some(25313.0));
        assert_eq!(signs_of("no table"), None);
    }

    #[test]
    fn every_case_does_something() {
        let stage = VaultBench::make().expect("made");
        for (case, run) in VaultBench::CASES {
            assert!(run(&stage).is_ok_and(|times| times > 0), "{case}");
        }
    }
}
