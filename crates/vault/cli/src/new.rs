//! Makes a vault: of new words, of existing words, or as the successor of a vault whose words
//! leaked.

use std::cell::OnceCell;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Instant;

use alknet_vault::audit::AuditEvent;
use alknet_vault::credentials::VaultCredentials;
use alknet_vault::slots::{
    Argon2Params, NewSlot, NewVault, OpenAlkv, SeedKey, VaultId, attempt, calibrate,
};
use alknet_vault::{
    Entropy, KeyPurpose, SecretStr, Successor, SuccessorError, Vault, VaultError, WordCount, limits,
};
use data_encoding::HEXLOWER;
use serde_json::json;

use crate::args::{CostArgs, ImportArgs, InitArgs, MigrateArgs, NewArgs, SlotArg};
use crate::progress::ProgressMessage;
use crate::prompt::NO_TERMINAL;
use crate::vault_dir::{OpenVaultDir, VaultDir, cap_kib, now_s};
use crate::{SecretPrompt, VaultCli, VaultCliError};

/// The number of words that the user must type back.
const CONFIRMED: usize = 3;
/// The number of attempts for each of these words.
const TRIES: usize = 3;

impl VaultCli<'_> {
    pub(crate) fn init(&mut self, args: &InitArgs) -> Result<(), VaultCliError> {
        if args.new.passphrase_stdin {
            self.ask.use_stdin();
        }
        let vault_dir = VaultDir::fresh(&args.new.vault_dir.dir)?;
        let words = Entropy::generate(count(&args.words))?;
        let made = self.make(&args.new, &words).map_err(of_new_words)?;
        // The words are shown before the vault is written, so no vault exists without words on
        // paper.
        self.show_words(&words)?;
        self.finish_new(vault_dir, made, AuditEvent::Created, Some(&words))
    }

    pub(crate) fn import(&mut self, args: &ImportArgs) -> Result<(), VaultCliError> {
        if args.mnemonic_stdin || args.new.passphrase_stdin {
            self.ask.use_stdin();
        }
        let vault_dir = VaultDir::fresh(&args.new.vault_dir.dir)?;
        let words = typed_words(self.ask)?;
        let made = self.make(&args.new, &words)?;
        self.finish_new(vault_dir, made, AuditEvent::Imported, None)
    }

    pub(crate) fn migrate(&mut self, args: &MigrateArgs) -> Result<(), VaultCliError> {
        let old = OpenVaultDir::open(&args.open, self.ask)?;
        let vault_dir = VaultDir::fresh(&args.to)?;
        let words = Entropy::generate(count(&args.words))?;
        let vault = NewVault {
            device: old.alkv.alkv().device(),
            ..NewVault::new(copy(&words)?, now_s())
        };
        let made = self.with_slots(vault, &args.slots, args.cost)?;
        self.show_words(&words)?;
        // The new vault has no recorder: its first event is that of its creation below.
        let next = Vault::locked_as(made.alkv.alkv().device(), None);
        next.unlock(made.alkv.entropy(), made.alkv.passphrase())?;
        // The vault itself is written last, because a directory without one can be used again.
        let records = match old.vault_dir.records()? {
            Some(records) => {
                let to = VaultCredentials::open(&vault_dir.path("credentials"))?;
                records.hand_over(&old.vault, &next, &to)?
            }
            None => 0,
        };
        let stated = Successor::state(&old.vault, &next, now_s())?;
        write_file(
            &vault_dir.path("successor.json"),
            stated.to_text().as_bytes(),
            0o644,
        )?;
        let seed = vault_dir.path("seed.key");
        made.write_seed(&seed)?;
        vault_dir.copies().create(&made.alkv)?;
        let opened = OpenVaultDir::made(vault_dir, made.alkv, AuditEvent::Created)?;
        let id = opened.alkv.alkv().uuid().to_string();
        opened.finish()?;
        old.record(AuditEvent::Migrated {
            to: stated.new_key(),
        });
        old.finish()?;
        let key = |key: [u8; 32]| format!("ed25519:{}", HEXLOWER.encode(&key));
        let (from, to) = (key(stated.old()), key(stated.new_key()));
        let mut value = json!({ "vault": id, "old": &from, "new": &to, "records": records });
        value["words"] = self.words_value(&words);
        let text = format!("vault {id}\nwas   {from}\nis    {to}\n{records} records moved");
        self.print(&value, &text)
    }

    pub(crate) fn successor(&mut self, file: &Path) -> Result<(), VaultCliError> {
        let long = || VaultCliError::from(SuccessorError::TooLong);
        // The size is checked before the file is read, because a user may name any file.
        let meta = std::fs::metadata(file).map_err(VaultCliError::file(file))?;
        if meta.len() > limits::MAX_SUCCESSOR_BYTES as u64 {
            return Err(long());
        }
        let text = std::fs::read(file).map_err(VaultCliError::file(file))?;
        let stated = Successor::parse(&text)?;
        let key = |key: [u8; 32]| format!("ed25519:{}", HEXLOWER.encode(&key));
        let (old, new) = (key(stated.old()), key(stated.new_key()));
        let value = json!({ "old": &old, "new": &new, "t": stated.time_s() });
        self.print(
            &value,
            &format!("was {old}\nis  {new}\nt   {}", stated.time_s()),
        )
    }

    fn make(&mut self, args: &NewArgs, words: &Entropy) -> Result<UnsavedVault, VaultCliError> {
        let passphrase = match args.bip39_passphrase {
            true => new_secret(self.ask, "passphrase of the words")?,
            false => SecretStr::empty(),
        };
        let vault = NewVault {
            passphrase,
            device: args.device,
            ..NewVault::new(copy(words)?, now_s())
        };
        self.with_slots(vault, &args.slots, args.cost)
    }

    /// Makes the vault with its slots in memory.
    fn with_slots(
        &mut self,
        vault: NewVault,
        slots: &[SlotArg],
        cost: CostArgs,
    ) -> Result<UnsavedVault, VaultCliError> {
        if slots.is_empty() {
            return Err(VaultCliError::Usage("a vault needs a slot".to_owned()));
        }
        let mut typed = Vec::with_capacity(slots.len());
        for (at, kind) in slots.iter().enumerate() {
            if slots[..at].contains(kind) && *kind != SlotArg::Passphrase {
                // Several passphrases are useful; two slots of another type would have the same
                // key.
                let text = "a second slot of that type opens by the same means; name it once";
                return Err(VaultCliError::Usage(text.to_owned()));
            }
            typed.push(match kind {
                SlotArg::Passphrase => Some(new_secret(self.ask, "new passphrase")?),
                _ => None,
            });
        }
        // Measuring takes seconds, so it runs only if a slot needs the cost, and after everything that can be missing.
        let cost = match slots.contains(&SlotArg::Passphrase) {
            true => chosen_cost(cost)?,
            false => Argon2Params::DEFAULT,
        };
        let _slow = ProgressMessage::new("making the slots");
        let seed = OnceCell::new();
        let slot = |at: usize, id| new_slot(slots[at], typed[at].as_ref(), &seed, id, cost);
        let mut alkv = OpenAlkv::create_for(vault, |id| slot(0, id))?;
        for at in 1..slots.len() {
            let id = alkv.alkv().uuid();
            alkv.add(slot(at, id)?)?;
        }
        Ok(UnsavedVault {
            alkv,
            seed: seed.into_inner(),
        })
    }

    fn finish_new(
        &mut self,
        vault_dir: VaultDir,
        made: UnsavedVault,
        event: AuditEvent,
        words: Option<&Entropy>,
    ) -> Result<(), VaultCliError> {
        // The seed is written before the vault, because a slot without its key could not be opened.
        made.write_seed(&vault_dir.path("seed.key"))?;
        vault_dir.copies().create(&made.alkv)?;
        let opened = OpenVaultDir::made(vault_dir, made.alkv, event)?;
        let node = opened.vault.signer(KeyPurpose::NodeIdentity)?.public();
        let node = format!("ed25519:{}", HEXLOWER.encode(&node));
        let id = opened.alkv.alkv().uuid().to_string();
        let sealed = opened.alkv.alkv().is_sealed();
        opened.finish()?;
        let mut value = json!({ "vault": id, "node": node, "sealed": sealed });
        if let Some(words) = words {
            value["words"] = self.words_value(words);
        }
        let warning = match sealed {
            true => "",
            false => "\nUNSEALED: its key lies beside it; for development only",
        };
        self.print(&value, &format!("vault {id}\nnode  {node}{warning}"))
    }

    fn words_value(&self, words: &Entropy) -> serde_json::Value {
        match self.json {
            true => json!(words.phrase().expose()),
            false => serde_json::Value::Null,
        }
    }

    /// Shows new words, and returns once the person at the terminal has typed some of them back. In
    /// JSON mode the words are a part of the result instead.
    fn show_words(&mut self, words: &Entropy) -> Result<(), VaultCliError> {
        if self.json {
            return Ok(());
        }
        let phrase = words.phrase();
        let all: Vec<&str> = phrase.expose().split(' ').collect();
        writeln!(
            self.out,
            "These words are the vault. Write them on paper now; later only 'alknet vault words show' and the \
             passphrase show them.\n"
        )?;
        for (row, four) in all.chunks(4).enumerate() {
            for (at, word) in four.iter().enumerate() {
                write!(self.out, "{:>4}  {word:10}", row * 4 + at + 1)?;
            }
            writeln!(self.out)?;
        }
        writeln!(self.out)?;
        self.out.flush()?;
        // A program cannot write on paper; it reads the words from standard output.
        if !self.ask.is_person() {
            return Ok(());
        }
        for position in positions(all.len())? {
            let mut tries = 0;
            loop {
                let typed = self.ask.secret(&format!("word {}", position + 1))?;
                if typed.expose().trim().eq_ignore_ascii_case(all[position]) {
                    break;
                }
                tries += 1;
                if tries == TRIES {
                    let text = "the words are not on paper; no vault was made";
                    return Err(VaultCliError::Denied(text.to_owned()));
                }
                self.ask
                    .tell("that is another word (Ctrl-C gives up; no vault was made)");
            }
        }
        // Clears the screen and its scrollback, so that the words cannot be read there later.
        self.ask.tell("\x1b[H\x1b[2J\x1b[3J");
        Ok(())
    }
}

/// A command that makes new words reads none, and has no option for it.
fn of_new_words(error: VaultCliError) -> VaultCliError {
    match error {
        VaultCliError::Usage(text) if text.starts_with(NO_TERMINAL) => {
            VaultCliError::Usage(NO_TERMINAL.to_owned())
        }
        error => error,
    }
}

/// A vault that exists only in memory.
struct UnsavedVault {
    alkv: OpenAlkv,
    seed: Option<SeedKey>,
}

impl UnsavedVault {
    fn write_seed(&self, path: &Path) -> Result<(), VaultCliError> {
        match &self.seed {
            Some(seed) => write_file(path, seed.to_text().expose().as_bytes(), 0o600),
            None => Ok(()),
        }
    }
}

/// A slot of this kind; the seed of a provisioning slot is stored in `seed`.
pub(crate) fn new_slot<'a>(
    kind: SlotArg,
    typed: Option<&'a SecretStr>,
    seed: &'a OnceCell<SeedKey>,
    vault: VaultId,
    cost: Argon2Params,
) -> Result<NewSlot<'a>, VaultError> {
    Ok(match (kind, typed) {
        (SlotArg::Passphrase, Some(passphrase)) => NewSlot::Passphrase {
            passphrase,
            cost,
            cap_kib: cap_kib(),
        },
        (SlotArg::Provisioning, _) => {
            let fresh = SeedKey::generate(vault)?;
            NewSlot::Provisioning(seed.get_or_init(|| fresh))
        }
        _ => NewSlot::None,
    })
}

/// The cost of an attempt: as the arguments state it, or measured to take half a second to one
/// second on this computer.
pub(crate) fn chosen_cost(args: CostArgs) -> Result<Argon2Params, VaultCliError> {
    if let Some(cost) = args.chosen().map_err(VaultCliError::Usage)? {
        return Ok(cost);
    }
    let _slow = ProgressMessage::new("measuring this computer");
    let cap_kib = cap_kib();
    let measured = calibrate(cap_kib, |cost| {
        let begun = Instant::now();
        attempt(cost, cap_kib)?;
        Ok(begun.elapsed())
    });
    Ok(measured?)
}

/// A new secret: a person types it twice, a program supplies it once.
pub(crate) fn new_secret(
    ask: &mut dyn SecretPrompt,
    what: &str,
) -> Result<SecretStr, VaultCliError> {
    loop {
        let secret = ask.secret(what)?;
        if secret.is_empty() {
            if ask.is_person() {
                // A person can type another one; a program would repeat the empty one for ever.
                ask.tell("an empty one protects nothing");
                continue;
            }
            return Err(VaultCliError::Usage(format!("an empty {what}")));
        }
        if !ask.is_person() || ask.secret(&format!("{what} again"))?.expose() == secret.expose() {
            return Ok(secret);
        }
        ask.tell("those were two different ones");
    }
}

/// Existing words. A person may correct a mistake; a program may not.
pub(crate) fn typed_words(ask: &mut dyn SecretPrompt) -> Result<Entropy, VaultCliError> {
    loop {
        let typed = ask.secret("recovery words")?;
        match Entropy::parse(typed.expose()) {
            Ok(words) => return Ok(words),
            Err(error) if ask.is_person() => ask.tell(&error.to_string()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Writes a file and syncs it to the disk.
pub(crate) fn write_file(path: &Path, bytes: &[u8], mode: u32) -> Result<(), VaultCliError> {
    let io = VaultCliError::file(path);
    let mut options = OpenOptions::new();
    // The mode is set at creation, so that no other user can open the file before a chmod(2).
    options.write(true).create(true).truncate(true).mode(mode);
    let mut file = options.open(path).map_err(&io)?;
    file.write_all(bytes).map_err(&io)?;
    file.sync_all().map_err(&io)
}

fn count(words: &str) -> WordCount {
    match words {
        "12" => WordCount::Twelve,
        _ => WordCount::TwentyFour,
    }
}

/// An explicit function, because secrets have no `Clone`.
fn copy(words: &Entropy) -> Result<Entropy, VaultCliError> {
    Ok(Entropy::from_bytes(words.bytes())?)
}

/// The positions of the words to type back, chosen at random without repetition.
fn positions(words: usize) -> Result<Vec<usize>, VaultCliError> {
    let mut chosen = Vec::with_capacity(CONFIRMED);
    while chosen.len() < CONFIRMED.min(words) {
        let mut byte = [0];
        let filled = getrandom::fill(&mut byte);
        filled.map_err(|_| VaultCliError::from(VaultError::NoRandomness))?;
        // 120 is a multiple of both numbers of words, and bytes from 240 on are rejected, so each
        // position is equally likely.
        let position = usize::from(byte[0] % 120) % words;
        if byte[0] < 240 && !chosen.contains(&position) {
            chosen.push(position);
        }
    }
    chosen.sort_unstable();
    Ok(chosen)
}
