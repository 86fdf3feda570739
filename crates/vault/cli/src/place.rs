//! The directory of a vault, and how it is opened.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use alknet_vault::audit::{AuditError, AuditLog, Event};
use alknet_vault::credentials::Credentials;
use alknet_vault::slots::{
    Attempts, Copies, FileArea, Found, Key, OpenAlkv, SeedKey, Slot, SlotError, SlotId, SlotType,
    memory_cap_kib,
};
use alknet_vault::{SecretStr, Vault};

use crate::args::{OpenArgs, WordsArgs};
use crate::progress::Slow;
use crate::recorder::{Recorder, name_of};
use crate::{Ask, CliError};

/// How often somebody at a terminal may mistype a passphrase before the command ends.
const ATTEMPTS: u32 = 10;
/// Bytes of a seed.key, with room for white space.
const SEED_KEY_BYTES_MAX: u64 = 4096;

/// The directory, which no other command uses meanwhile.
pub(crate) struct Place {
    dir: PathBuf,
    /// Unlocked when it is closed.
    _lock: Option<File>,
}

impl Place {
    /// A directory that is only read.
    pub(crate) fn look(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            _lock: None,
        }
    }

    /// A directory with a vault.
    pub(crate) fn existing(dir: &Path) -> Result<Self, CliError> {
        let place = Self::look(dir);
        place.load()?;
        Self::locked(dir)
    }

    /// A directory that gets one.
    pub(crate) fn fresh(dir: &Path) -> Result<Self, CliError> {
        make_dir(dir)?;
        let place = Self::locked(dir)?;
        match place.copies().load()? {
            None => Ok(place),
            Some(_) => Err(SlotError::Exists.into()),
        }
    }

    fn locked(dir: &Path) -> Result<Self, CliError> {
        let path = dir.join("lock");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let lock = options.mode(0o600).open(&path);
        let lock = lock.map_err(CliError::file(&path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self {
                dir: dir.to_owned(),
                _lock: Some(lock),
            }),
            Err(TryLockError::WouldBlock) => {
                let text = format!("another command is using {}", dir.display());
                Err(CliError::Local(text))
            }
            Err(TryLockError::Error(error)) => Err(CliError::file(&path)(error)),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(crate) fn copies(&self) -> Copies<FileArea> {
        let file = |name| FileArea::file(self.path(name));
        Copies::new(file("vault.a"), file("vault.b"))
    }

    pub(crate) fn load(&self) -> Result<Found, CliError> {
        let found = self.copies().load()?;
        found.ok_or_else(|| {
            let dir = self.dir.display();
            CliError::Usage(format!("there is no vault in {dir}; 'init' makes one"))
        })
    }

    /// The sealed records, if there are any.
    pub(crate) fn records(&self) -> Result<Option<Credentials>, CliError> {
        let path = self.path("credentials");
        let there = path.join("current").try_exists();
        match there.map_err(CliError::file(&path))? {
            true => Ok(Some(Credentials::open(&path)?)),
            false => Ok(None),
        }
    }

    pub(crate) fn save(&self, open: &OpenAlkv) -> Result<(), CliError> {
        Ok(self.copies().save(open)?)
    }

    pub(crate) fn seed_key(&self, said: Option<&Path>) -> Result<Option<SeedKey>, CliError> {
        let own = self.path("seed.key");
        let path = said.unwrap_or(&own);
        let read = fs::metadata(path).and_then(|meta| match meta.len() {
            0..=SEED_KEY_BYTES_MAX => fs::read_to_string(path),
            _ => Err(ErrorKind::FileTooLarge.into()),
        });
        let seed = match read {
            Ok(text) => {
                let text = SecretStr::from_string(text);
                SeedKey::parse(text.expose()).map_err(CliError::from)
            }
            Err(error) if said.is_none() && error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => Err(CliError::file(path)(error)),
        };
        match seed {
            // Nobody asked for it, but may wonder why it does not open the vault.
            Err(error) if said.is_none() => {
                writeln!(std::io::stderr(), "{} is not used: {error}", path.display()).ok();
                Ok(None)
            }
            seed => seed.map(Some),
        }
    }
}

/// A vault that is open, with the log of what happens to it.
pub(crate) struct Opened {
    pub(crate) place: Place,
    pub(crate) alkv: OpenAlkv,
    pub(crate) vault: Vault,
    recorder: Recorder,
}

impl Opened {
    /// Opens the vault of a directory: by its seed, by the key beside it, or by a passphrase.
    pub(crate) fn open(args: &OpenArgs, ask: &mut dyn Ask) -> Result<Self, CliError> {
        let place = Place::existing(&args.place.dir)?;
        if args.passphrase_stdin {
            ask.use_stdin();
        }
        let found = place.load()?;
        let recorder = Recorder::new();
        let alkv = match unattended(&place, &found, args.seed_key.as_deref(), &recorder)? {
            Some(alkv) => alkv,
            None => typed(&found, None, &recorder, ask)?,
        };
        Self::of(place, &found, alkv, recorder, ask)
    }

    /// Opens it by a passphrase, whatever else would open it; of one slot, or of any.
    pub(crate) fn open_typed(
        args: &OpenArgs,
        slot: Option<SlotId>,
        ask: &mut dyn Ask,
    ) -> Result<Self, CliError> {
        let place = Place::existing(&args.place.dir)?;
        if args.passphrase_stdin {
            ask.use_stdin();
        }
        let found = place.load()?;
        let typed_into = |slot: &Slot| slot.kind() == SlotType::Passphrase;
        if !found.newest.slots().iter().any(typed_into) {
            let text = "this is for whoever types a passphrase, and no slot has one";
            return Err(CliError::Denied(text.to_owned()));
        }
        let recorder = Recorder::new();
        let alkv = typed(&found, slot, &recorder, ask)?;
        Self::of(place, &found, alkv, recorder, ask)
    }

    fn of(
        place: Place,
        found: &Found,
        alkv: OpenAlkv,
        recorder: Recorder,
        ask: &mut dyn Ask,
    ) -> Result<Self, CliError> {
        if found.damaged.is_some() || found.other.is_some() {
            place.save(&alkv)?;
            ask.tell("one copy of the vault was damaged or older, and is written again");
        }
        let slot = alkv
            .alkv()
            .slots()
            .iter()
            .find(|slot| slot.id() == alkv.opened_by());
        if let Some(slot) = slot {
            recorder.record(Event::Unlocked(name_of(slot)));
        }
        let device = alkv.alkv().device();
        let vault = Vault::locked_as(device, Some(Box::new(recorder.clone())));
        vault.unlock(alkv.entropy(), alkv.passphrase())?;
        if let Some(records) = place.records()? {
            vault.use_versions(records.versions()?)?;
        }
        Ok(Self {
            place,
            alkv,
            vault,
            recorder,
        })
    }

    /// A vault that was just made.
    pub(crate) fn made(place: Place, alkv: OpenAlkv, event: Event) -> Result<Self, CliError> {
        let recorder = Recorder::new();
        recorder.record(event);
        let device = alkv.alkv().device();
        let vault = Vault::locked_as(device, Some(Box::new(recorder.clone())));
        vault.unlock(alkv.entropy(), alkv.passphrase())?;
        Ok(Self {
            place,
            alkv,
            vault,
            recorder,
        })
    }

    /// Writes the vault with what was changed, and remembers why.
    pub(crate) fn save(&mut self, event: Event) -> Result<(), CliError> {
        self.place.save(&self.alkv)?;
        self.recorder.record(event);
        Ok(())
    }

    pub(crate) fn record(&self, event: Event) {
        self.recorder.record(event);
    }

    /// The sealed records, which are begun if there are none.
    pub(crate) fn records(&self) -> Result<Credentials, CliError> {
        Ok(Credentials::open(&self.place.path("credentials"))?)
    }

    /// Writes the log. What was done stays done if that fails, which is said.
    pub(crate) fn finish(self) -> Result<(), CliError> {
        let dir = self.place.path("audit");
        make_dir(&dir)?;
        let mut log = match AuditLog::open(&dir) {
            // What is broken is kept and goes on being found; what happens now is not lost for it.
            Err(AuditError::Broken { .. }) => {
                let text = "the end of the log is broken; it is put aside and another is begun";
                writeln!(std::io::stderr(), "{text}").ok();
                AuditLog::begin_anew(&dir)?
            }
            log => log?,
        };
        let mut pending = self.recorder.lock();
        Ok(pending.flush(&mut log, &self.vault)?)
    }
}

/// A vault of words that were typed, without a directory.
pub(crate) fn offline(args: &WordsArgs, ask: &mut dyn Ask) -> Result<Vault, CliError> {
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

/// Tries what needs nobody.
fn unattended(
    place: &Place,
    found: &Found,
    said: Option<&Path>,
    recorder: &Recorder,
) -> Result<Option<OpenAlkv>, CliError> {
    let has = |kind| found.newest.slots().iter().any(|slot| slot.kind() == kind);
    if has(SlotType::Provisioning)
        && let Some(seed) = place.seed_key(said)?
    {
        match found.open(&mut Key::Seed(&seed)) {
            Ok(alkv) => return Ok(Some(alkv)),
            Err(error) => {
                recorder.failed(found, SlotType::Provisioning);
                // A seed that lies there by chance does not keep anybody from typing.
                if said.is_some()
                    || !matches!(error, SlotError::OtherVault(_) | SlotError::WrongKey(_))
                {
                    return Err(error.into());
                }
            }
        }
    }
    if has(SlotType::None) {
        return Ok(Some(found.open(&mut Key::Stored)?));
    }
    Ok(None)
}

/// Asks for passphrases until one opens a slot.
fn typed(
    found: &Found,
    slot: Option<SlotId>,
    recorder: &Recorder,
    ask: &mut dyn Ask,
) -> Result<OpenAlkv, CliError> {
    let fits = |slot: &Slot| slot.kind() == SlotType::Passphrase;
    if !found.newest.slots().iter().any(fits) {
        let text = "nothing here opens this vault: its slots need the node, or a seed.key";
        return Err(CliError::Locked(text.to_owned()));
    }
    let begun = Instant::now();
    let mut waited = Duration::ZERO;
    let mut attempts = Attempts::default();
    loop {
        let wait = attempts.wait(begun.elapsed() + waited);
        if !wait.is_zero() {
            ask.tell(&format!(
                "wrong {} times; wait {} s",
                attempts.wrong(),
                wait.as_secs().max(1)
            ));
            ask.pause(wait);
            waited += wait;
        }
        let passphrase = ask.secret("passphrase")?;
        let mut key = Key::Passphrase {
            passphrase: &passphrase,
            cap_kib: cap_kib(),
        };
        let slow = Slow::new("opening the vault");
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
        if !ask.is_person() || attempts.wrong() >= ATTEMPTS {
            return Err(CliError::WrongPassphrase);
        }
        ask.tell("wrong passphrase");
    }
}

/// Seconds since 1970.
pub(crate) fn now_s() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap_or_default().as_secs()
}

/// How much memory Argon2id may take here: a quarter of what there is.
pub(crate) fn cap_kib() -> u32 {
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = info.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total.and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok());
    memory_cap_kib(kib.unwrap_or(0))
}

/// A directory that only its owner reads.
pub(crate) fn make_dir(path: &Path) -> Result<(), CliError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(CliError::file(path))
}
