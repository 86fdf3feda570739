//! The directory of a vault, and opening the vault in it.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use alknet_vault::audit::{AuditError, AuditEvent, AuditLog};
use alknet_vault::credentials::VaultCredentials;
use alknet_vault::slots::{
    Attempts, FileCopyStorage, KeySlot, LoadedCopies, OpenAlkv, SeedKey, SlotError, SlotId,
    SlotType, UnlockKey, VaultCopies, memory_cap_kib,
};
use alknet_vault::{SecretStr, Vault};

use crate::args::{VaultOpenArgs, WordsArgs};
use crate::progress::ProgressMessage;
use crate::recorder::{AuditRecorder, name_of};
use crate::{SecretPrompt, VaultCliError};

/// Attempts at a passphrase that a person at a terminal has before the command ends.
const ATTEMPTS: u32 = 10;
/// The file that a command locks while it uses the folder.
const LOCK: &str = "lock";
/// Longest `seed.key` that is read, in bytes, with room for white space.
const SEED_KEY_BYTES_MAX: u64 = 4096;

/// The directory; while it is locked, no other command uses it.
pub(crate) struct VaultDir {
    dir: PathBuf,
    /// Whether this command made the folder.
    is_new: bool,
    /// Closing the file releases the lock.
    _lock: Option<File>,
}

impl VaultDir {
    /// A directory for reading, without a lock.
    pub(crate) fn unlocked(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            is_new: false,
            _lock: None,
        }
    }

    /// A directory with a vault.
    pub(crate) fn existing(dir: &Path) -> Result<Self, VaultCliError> {
        // The vault is loaded before the lock is taken, so that a folder without a vault gets no
        // lock file.
        let vault_dir = Self::unlocked(dir);
        vault_dir.load()?;
        Self::locked(dir)
    }

    /// A directory for a new vault.
    pub(crate) fn fresh(dir: &Path) -> Result<Self, VaultCliError> {
        let is_new = !dir.try_exists().map_err(VaultCliError::file(dir))?;
        make_dir(dir)?;
        let mut vault_dir = Self::locked(dir)?;
        vault_dir.is_new = is_new;
        match vault_dir.copies().load()? {
            None => Ok(vault_dir),
            Some(_) => Err(VaultCliError::Denied(format!(
                "{} has a vault already: move the folder away, or give another --dir",
                dir.display()
            ))),
        }
    }

    fn locked(dir: &Path) -> Result<Self, VaultCliError> {
        let path = dir.join(LOCK);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let lock = options.mode(0o600).open(&path);
        let lock = lock.map_err(VaultCliError::file(&path))?;
        // Two commands that write the copies at once would each lose the other's change.
        match lock.try_lock() {
            Ok(()) => Ok(Self {
                dir: dir.to_owned(),
                is_new: false,
                _lock: Some(lock),
            }),
            Err(TryLockError::WouldBlock) => {
                let text = format!("another command is using {}", dir.display());
                Err(VaultCliError::Local(text))
            }
            Err(TryLockError::Error(error)) => Err(VaultCliError::file(&path)(error)),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(crate) fn copies(&self) -> VaultCopies<FileCopyStorage> {
        let file = |name| FileCopyStorage::file(self.path(name));
        VaultCopies::new(file("vault.a"), file("vault.b"))
    }

    pub(crate) fn load(&self) -> Result<LoadedCopies, VaultCliError> {
        let found = self.copies().load()?;
        found.ok_or_else(|| {
            let dir = self.dir.display();
            VaultCliError::Usage(format!(
                "there is no vault in {dir}; 'alknet vault init' makes one"
            ))
        })
    }

    /// The sealed records, if the directory has some.
    pub(crate) fn records(&self) -> Result<Option<VaultCredentials>, VaultCliError> {
        let path = self.path("credentials");
        let there = path.join("current").try_exists();
        match there.map_err(VaultCliError::file(&path))? {
            true => Ok(Some(VaultCredentials::open(&path)?)),
            false => Ok(None),
        }
    }

    pub(crate) fn save(&self, open: &OpenAlkv) -> Result<(), VaultCliError> {
        Ok(self.copies().save(open)?)
    }

    pub(crate) fn seed_key(&self, named: Option<&Path>) -> Result<Option<SeedKey>, VaultCliError> {
        let own = self.path("seed.key");
        let path = named.unwrap_or(&own);
        // The size is checked first, so that a device or a huge file named by mistake is not read
        // into memory.
        let read = fs::metadata(path).and_then(|meta| match meta.len() {
            0..=SEED_KEY_BYTES_MAX => fs::read_to_string(path),
            _ => Err(ErrorKind::FileTooLarge.into()),
        });
        let seed = match read {
            Ok(text) => {
                let text = SecretStr::from_string(text);
                SeedKey::parse(text.expose()).map_err(VaultCliError::from)
            }
            Err(error) if named.is_none() && error.kind() == ErrorKind::NotFound => {
                return Ok(None);
            }
            Err(error) => Err(VaultCliError::file(path)(error)),
        };
        match seed {
            // The user did not name this file, but may wonder why it does not open the vault. The result is dropped,
            // because an error about standard error cannot be shown.
            Err(error) if named.is_none() => {
                writeln!(std::io::stderr(), "{} is not used: {error}", path.display()).ok();
                Ok(None)
            }
            seed => seed.map(Some),
        }
    }
}

impl Drop for VaultDir {
    /// A command that made no vault leaves no folder behind.
    fn drop(&mut self) {
        let has_only_lock = || {
            let mut entries = fs::read_dir(&self.dir).ok()?;
            Some(entries.all(|entry| entry.is_ok_and(|entry| entry.file_name() == LOCK)))
        };
        if self.is_new && has_only_lock() == Some(true) {
            // Errors are dropped: an empty folder that stays does no harm.
            fs::remove_file(self.path(LOCK)).ok();
            fs::remove_dir(&self.dir).ok();
        }
    }
}

/// An open vault with the log of its events.
pub(crate) struct OpenVaultDir {
    pub(crate) vault_dir: VaultDir,
    pub(crate) alkv: OpenAlkv,
    pub(crate) vault: Vault,
    recorder: AuditRecorder,
}

impl OpenVaultDir {
    /// Opens the vault of a directory: by its seed, by the key stored beside it, or by a
    /// passphrase.
    pub(crate) fn open(
        args: &VaultOpenArgs,
        ask: &mut dyn SecretPrompt,
    ) -> Result<Self, VaultCliError> {
        let vault_dir = VaultDir::existing(&args.vault_dir.dir)?;
        if args.passphrase_stdin {
            ask.use_stdin();
        }
        let found = vault_dir.load()?;
        let recorder = AuditRecorder::new();
        let alkv = match unattended(&vault_dir, &found, args.seed_key.as_deref(), &recorder)? {
            Some(alkv) => alkv,
            None => typed(&found, None, &recorder, ask)?,
        };
        Self::with_vault_file(vault_dir, &found, alkv, recorder, ask)
    }

    /// Opens the vault by a passphrase, even if it would open without one; by that of `slot` if it
    /// is named.
    pub(crate) fn open_typed(
        args: &VaultOpenArgs,
        slot: Option<SlotId>,
        ask: &mut dyn SecretPrompt,
    ) -> Result<Self, VaultCliError> {
        let vault_dir = VaultDir::existing(&args.vault_dir.dir)?;
        if args.passphrase_stdin {
            ask.use_stdin();
        }
        let found = vault_dir.load()?;
        let has_passphrase = |slot: &KeySlot| slot.kind() == SlotType::Passphrase;
        if !found.newest.slots().iter().any(has_passphrase) {
            let text = "this needs a slot with a passphrase, and the vault has none";
            return Err(VaultCliError::Denied(text.to_owned()));
        }
        let recorder = AuditRecorder::new();
        let alkv = typed(&found, slot, &recorder, ask)?;
        Self::with_vault_file(vault_dir, &found, alkv, recorder, ask)
    }

    fn with_vault_file(
        vault_dir: VaultDir,
        found: &LoadedCopies,
        alkv: OpenAlkv,
        recorder: AuditRecorder,
        ask: &mut dyn SecretPrompt,
    ) -> Result<Self, VaultCliError> {
        if found.damaged.is_some() || found.other.is_some() {
            vault_dir.save(&alkv)?;
            ask.tell("one copy of the vault was damaged or older, and is written again");
        }
        let slot = alkv
            .alkv()
            .slots()
            .iter()
            .find(|slot| slot.id() == alkv.opened_by());
        if let Some(slot) = slot {
            recorder.record(AuditEvent::Unlocked(name_of(slot)));
        }
        let device = alkv.alkv().device();
        let vault = Vault::locked_as(device, Some(Box::new(recorder.clone())));
        vault.unlock(alkv.entropy(), alkv.passphrase())?;
        if let Some(records) = vault_dir.records()? {
            // Records below the lowest allowed version must be refused from now on.
            vault.use_versions(records.versions()?)?;
        }
        Ok(Self {
            vault_dir,
            alkv,
            vault,
            recorder,
        })
    }

    /// Opens a vault that was just made.
    pub(crate) fn made(
        vault_dir: VaultDir,
        alkv: OpenAlkv,
        event: AuditEvent,
    ) -> Result<Self, VaultCliError> {
        let recorder = AuditRecorder::new();
        recorder.record(event);
        let device = alkv.alkv().device();
        let vault = Vault::locked_as(device, Some(Box::new(recorder.clone())));
        vault.unlock(alkv.entropy(), alkv.passphrase())?;
        Ok(Self {
            vault_dir,
            alkv,
            vault,
            recorder,
        })
    }

    /// Writes the changed vault, and records the event.
    pub(crate) fn save(&mut self, event: AuditEvent) -> Result<(), VaultCliError> {
        self.vault_dir.save(&self.alkv)?;
        self.recorder.record(event);
        Ok(())
    }

    pub(crate) fn record(&self, event: AuditEvent) {
        self.recorder.record(event);
    }

    /// The sealed records, which are created if there are none.
    pub(crate) fn records(&self) -> Result<VaultCredentials, VaultCliError> {
        Ok(VaultCredentials::open(&self.vault_dir.path("credentials"))?)
    }

    /// Writes the log. If that fails, the command reports it, but its change stays.
    pub(crate) fn finish(self) -> Result<(), VaultCliError> {
        let dir = self.vault_dir.path("audit");
        make_dir(&dir)?;
        let mut log = match AuditLog::open(&dir) {
            // A broken log is set aside, where `verify` still finds it, and the events of now go
            // into a new one.
            Err(AuditError::Broken { .. }) => {
                let text = "the end of the log is broken; it is put aside and another is begun";
                // As above.
                writeln!(std::io::stderr(), "{text}").ok();
                AuditLog::restart_chain(&dir)?
            }
            log => log?,
        };
        let mut pending = self.recorder.lock();
        Ok(pending.flush(&mut log, &self.vault)?)
    }
}

/// The vault of typed words, without a directory.
pub(crate) fn offline(
    args: &WordsArgs,
    ask: &mut dyn SecretPrompt,
) -> Result<Vault, VaultCliError> {
    if args.mnemonic_stdin {
        ask.use_stdin();
    }
    let words = crate::new::typed_words(ask)?;
    let passphrase = match args.bip39_passphrase {
        true => ask.secret("passphrase of the words")?,
        false => SecretStr::empty(),
    };
    let vault = Vault::locked_as(args.device, None);
    vault.unlock(&words, &passphrase)?;
    Ok(vault)
}

/// Tries the slots that open without a person.
fn unattended(
    vault_dir: &VaultDir,
    found: &LoadedCopies,
    named: Option<&Path>,
    recorder: &AuditRecorder,
) -> Result<Option<OpenAlkv>, VaultCliError> {
    let has = |kind| found.newest.slots().iter().any(|slot| slot.kind() == kind);
    if has(SlotType::Provisioning)
        && let Some(seed) = vault_dir.seed_key(named)?
    {
        match found.open(&mut UnlockKey::Seed(&seed)) {
            Ok(alkv) => return Ok(Some(alkv)),
            Err(error) => {
                recorder.failed(found, SlotType::Provisioning);
                // A seed that does not belong to this vault must not keep the owner from typing a
                // passphrase.
                if named.is_some()
                    || !matches!(error, SlotError::OtherVault(_) | SlotError::WrongKey(_))
                {
                    return Err(error.into());
                }
            }
        }
    }
    if has(SlotType::None) {
        return Ok(Some(found.open(&mut UnlockKey::Stored)?));
    }
    Ok(None)
}

/// Asks for passphrases until one opens a slot.
fn typed(
    found: &LoadedCopies,
    slot: Option<SlotId>,
    recorder: &AuditRecorder,
    ask: &mut dyn SecretPrompt,
) -> Result<OpenAlkv, VaultCliError> {
    let has_passphrase = |slot: &KeySlot| slot.kind() == SlotType::Passphrase;
    if !found.newest.slots().iter().any(has_passphrase) {
        let text = "nothing here opens this vault: its slots need the node, or a seed.key";
        return Err(VaultCliError::Locked(text.to_owned()));
    }
    let begun = Instant::now();
    let mut waited = Duration::ZERO;
    let mut attempts = Attempts::default();
    loop {
        let wait = attempts.wait(begun.elapsed() + waited);
        if !wait.is_zero() {
            ask.tell(&format!(
                "wrong {} times; wait {} s",
                attempts.wrong_count(),
                wait.as_secs().max(1)
            ));
            ask.pause(wait);
            // The waits are added up by hand: a test does not really wait, and the clock would then
            // demand more.
            waited += wait;
        }
        let passphrase = ask.secret("passphrase")?;
        let mut key = UnlockKey::Passphrase {
            passphrase: &passphrase,
            cap_kib: cap_kib(),
        };
        let slow = ProgressMessage::new("opening the vault");
        let opened = match slot {
            Some(id) => found.newest.open(id, &mut key),
            None => found.open(&mut key),
        };
        drop(slow);
        match opened {
            Ok(alkv) => return Ok(alkv),
            Err(SlotError::WrongKey(_)) => {}
            Err(error) => return Err(error.into()),
        }
        recorder.failed(found, SlotType::Passphrase);
        attempts.failed(begun.elapsed() + waited);
        if !ask.is_person() || attempts.wrong_count() >= ATTEMPTS {
            return Err(VaultCliError::WrongPassphrase);
        }
        ask.tell("wrong passphrase");
    }
}

/// Seconds since 1970.
pub(crate) fn now_s() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap_or_default().as_secs()
}

/// Memory in KiB that Argon2id may use on this computer: a quarter of it.
pub(crate) fn cap_kib() -> u32 {
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = info.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total.and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok());
    memory_cap_kib(kib.unwrap_or(0))
}

/// Makes a directory that only its owner can read.
pub(crate) fn make_dir(path: &Path) -> Result<(), VaultCliError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(VaultCliError::file(path))
}
