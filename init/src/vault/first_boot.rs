//! The first boot: the words, the vault from them, and the slots that open it.

use std::time::Instant;

use alknet_core::config::{VaultInit, VaultSection, VaultUnlock};
use alknet_handover::AgeRecipient;
use alknet_provisioning::{ConfigOrigin, MediaSecrets};
use alknet_tpm::{TpmError, TpmPin};
use alknet_vault::audit::{AuditEvent, SlotName};
use alknet_vault::slots::{
    Argon2Params, FirstBootPermissions, Kek, KmsParams, NewSlot, NewVault, OpenAlkv, SeedKey,
    SlotError, VaultId, attempt, calibrate, memory_cap_kib,
};
use alknet_vault::{Entropy, PathIndex, SecretStr, VaultError, WordCount};

use super::open::memory_kib;
use super::{
    EscrowClient, UnlockCredentials, UnlockPrompt, VaultHandle, VaultWait, WordsAge, WordsAgeStage,
    WordsSource, generations, wait_for_randomness,
};
use crate::{log::InitLog, tpm};

/// What determines a first boot.
#[derive(Debug)]
pub(crate) struct FirstBoot<'a> {
    pub(crate) config: &'a VaultSection,
    /// The source of that configuration.
    pub(crate) from: &'a ConfigOrigin,
    pub(crate) media: &'a MediaSecrets,
    pub(crate) offer: &'a UnlockCredentials,
    /// The machine's name, if one is configured.
    pub(crate) name: Option<&'a str>,
    /// The client that asks another node to keep a share.
    pub(crate) escrow: &'a EscrowClient,
}

/// A vault that is on no disk yet.
#[derive(Debug)]
pub(crate) struct NewVaultFile {
    open: OpenAlkv,
    /// New words, which the owner should write down.
    words: Option<SecretStr>,
}

impl NewVaultFile {
    /// The opened vault, as PID 1 will write it.
    pub(crate) fn open(&self) -> &OpenAlkv {
        &self.open
    }
}

impl FirstBoot<'_> {
    /// The slots to make: the configured ones, or else the best that this machine can have.
    fn slots(&self, log: &InitLog) -> Result<Vec<VaultUnlock>, VaultWait> {
        if !self.config.unlock.is_empty() {
            return Ok(self.config.unlock.clone());
        }
        // One slot, and no medium's key beside it that the configuration did not request: an
        // attacker may have left that key.
        if tpm::is_usable(log).map_err(|error| no_tpm(&error))? {
            return Ok(vec![VaultUnlock::Tpm2]);
        }
        Ok(vec![match self.asks_for_seed()? {
            true => VaultUnlock::Provisioning,
            false => VaultUnlock::None,
        }])
    }

    /// Whether a key is to open the vault although `vault.unlock` is empty: this holds if the key
    /// lies where the configuration comes from.
    ///
    /// # Errors
    /// There is a key only elsewhere, which may be an attacker's.
    fn asks_for_seed(&self) -> Result<bool, VaultWait> {
        let keys = &self.media.seed_keys;
        if keys.iter().any(|found| found.source == *self.from) {
            return Ok(true);
        }
        let Some(found) = keys.first() else {
            return Ok(false);
        };
        Err(VaultWait::new(
            UnlockPrompt::Nothing,
            "vault-waits",
            format!(
                "{} has a seed.key, and neither vault.unlock nor the medium of the configuration asks for one",
                found.source
            ),
            "remove the medium; or set vault.unlock to [\"provisioning\"] if the key is this node's",
        ))
    }

    /// The key that a medium has for this machine. There is no vault yet, so this is the first key.
    fn seed(&self) -> Option<&SeedKey> {
        self.media.seed_keys.first().map(|found| &found.key)
    }

    /// The sources of keys that differ, of which only one can be the owner's.
    fn rival_seeds(&self) -> Option<String> {
        let keys = &self.media.seed_keys;
        let texts: Vec<_> = keys.iter().map(|found| found.key.to_text()).collect();
        let same = texts
            .windows(2)
            .all(|two| two[0].expose() == two[1].expose());
        let sources = keys.iter().map(|found| found.source.to_string());
        (!same).then(|| sources.collect::<Vec<_>>().join(", "))
    }

    /// The sources of words that differ, of which only one can have the owner's. The order of the
    /// sources does not show which.
    fn rival_words(&self) -> Option<String> {
        let others = &self.media.other_words;
        let all = self.media.words.iter().chain(others);
        let sources = all.map(|found| found.source.to_string());
        (!others.is_empty()).then(|| sources.collect::<Vec<_>>().join(", "))
    }

    /// The vault that the key of a medium names, if the key is to open it.
    fn named_by_seed(&self, kinds: &[VaultUnlock]) -> Option<VaultId> {
        let has_seed = kinds.contains(&VaultUnlock::Provisioning);
        self.seed().filter(|_| has_seed).map(SeedKey::vault)
    }

    /// Whether a user types a PIN at every start, besides what the TPM measures.
    fn wants_pin(&self, kinds: &[VaultUnlock]) -> bool {
        self.config.tpm_pin && kinds.contains(&VaultUnlock::Tpm2)
    }

    /// The PIN that the user typed for it.
    fn pin(&self) -> Result<Option<TpmPin>, TpmError> {
        let typed = self.offer.new_pin.as_ref();
        let typed = typed.filter(|_| self.config.tpm_pin);
        typed
            .map(|pin| TpmPin::new(SecretStr::from(pin.expose())))
            .transpose()
    }

    /// The slot whose share another node has taken, and its vault.
    fn shared(&self, kinds: &[VaultUnlock], log: &InitLog) -> Result<UnboundKmsSlot, VaultWait> {
        let Some(kms) = &self.config.kms else {
            return Err(VaultWait::new(
                UnlockPrompt::Nothing,
                "vault-waits",
                "nothing says which node keeps a share of the key",
                "add [vault.kms] to the configuration, or leave kms out of vault.unlock",
            ));
        };
        randomness(log)?;
        let seed = self.named_by_seed(kinds);
        let (vault, params, kek) = self.escrow.deposited(kms, self.name, seed)?;
        Ok(UnboundKmsSlot { vault, params, kek })
    }

    /// The words, and whether they are new.
    fn words(&self) -> Result<(Entropy, bool), VaultWait> {
        let fresh = || {
            Entropy::generate(WordCount::TwentyFour)
                .map(|words| (words, true))
                .map_err(failed)
        };
        let copy = |words: &Entropy| {
            let again = Entropy::parse(words.phrase().expose());
            again.map_err(failed)
        };
        match (&self.media.words, self.config.init) {
            // No other words lie beside them: `create` has checked that.
            (Some(words), VaultInit::Provisioned) => Ok((copy(&words.entropy)?, false)),
            // An attacker who left the medium would have the words of this node for ever.
            (Some(words), _) => Err(VaultWait::new(
                UnlockPrompt::Nothing,
                "vault-waits",
                format!(
                    "{} has words, and vault.init does not ask for those of a medium",
                    words.source
                ),
                "remove the medium; or set vault.init to \"provisioned\" if the words are this node's",
            )),
            (None, VaultInit::Provisioned) => Err(VaultWait::new(
                UnlockPrompt::Nothing,
                "vault-waits",
                "no medium with the words of this node is attached",
                "attach the medium that 'alknet provision' wrote; it is looked for every 3 seconds",
            )),
            (None, VaultInit::Prompt) => match &self.offer.words {
                Some(WordsSource::Make) => fresh(),
                Some(WordsSource::These(words)) => Ok((copy(words)?, false)),
                None => Err(VaultWait::new(
                    UnlockPrompt::Words,
                    "vault-waits",
                    "this node has no words yet",
                    "type the words of an earlier node on the console, or press Enter for new ones",
                )),
            },
            (None, _) => fresh(),
        }
    }
}

/// A slot of type `kms` before there is a vault.
#[derive(Debug)]
struct UnboundKmsSlot {
    vault: VaultId,
    params: KmsParams,
    kek: Kek,
}

/// Makes the vault of a machine that has none. It is not written yet.
pub(crate) fn create(first: &FirstBoot<'_>, log: &InitLog) -> Result<NewVaultFile, VaultWait> {
    let kinds = first.slots(log)?;
    require_media(first, &kinds)?;
    // The share takes a while and is kept, so the console asks for typed secrets after it.
    let shared = kinds
        .contains(&VaultUnlock::Kms)
        .then(|| first.shared(&kinds, log))
        .transpose()?;
    randomness(log)?;
    let (entropy, is_new) = first.words()?;
    // Typed secrets come last: an attacker may type them while the machine waits for the owner's
    // medium.
    require_typed(first, &kinds)?;
    let words = is_new.then(|| entropy.phrase());
    let by_tpm = kinds.contains(&VaultUnlock::Tpm2);
    let vault = NewVault {
        passphrase: match &first.media.words {
            Some(words) => SecretStr::from(words.passphrase.expose()),
            None => SecretStr::empty(),
        },
        // The configuration has no larger number.
        device: PathIndex::new(first.config.device).unwrap_or_default(),
        pending: FirstBootPermissions {
            words: is_new,
            ..FirstBootPermissions::ALL
        },
        first_count: by_tpm.then(generations::first_count).flatten(),
        ..NewVault::new(entropy, now_s())
    };
    let open = with_slots(vault, &kinds, first, shared, log)?;
    Ok(NewVaultFile { open, words })
}

/// Waits for the media that the vault is made of or opens by, and for the removal of those that contradict them.
fn require_media(first: &FirstBoot<'_>, kinds: &[VaultUnlock]) -> Result<(), VaultWait> {
    if kinds.contains(&VaultUnlock::Provisioning) && first.seed().is_none() {
        return Err(VaultWait::new(
            UnlockPrompt::Nothing,
            "vault-waits",
            "no medium with a seed.key is attached",
            "attach the medium that 'alknet provision' wrote; it is looked for every 3 seconds",
        ));
    }
    if kinds.contains(&VaultUnlock::Provisioning)
        && let Some(sources) = first.rival_seeds()
    {
        return Err(VaultWait::new(
            UnlockPrompt::Nothing,
            "vault-waits",
            format!(
                "there are several seed.keys ({sources}), and one of them is to open the vault"
            ),
            "leave the medium attached that 'alknet provision' wrote for this machine, and no other",
        ));
    }
    if first.config.init == VaultInit::Provisioned
        && let Some(sources) = first.rival_words()
    {
        // This check precedes leaving a share with another node. An attacker's words would be those
        // of this node for ever.
        return Err(VaultWait::new(
            UnlockPrompt::Nothing,
            "vault-waits",
            format!(
                "there are different words ({sources}), and the vault is to be made of one of them"
            ),
            "leave the medium attached that has the words of this node, and take the other one away",
        ));
    }
    Ok(())
}

/// Waits for a PIN and a passphrase, if the vault opens by them.
fn require_typed(first: &FirstBoot<'_>, kinds: &[VaultUnlock]) -> Result<(), VaultWait> {
    if first.wants_pin(kinds) && first.offer.new_pin.is_none() {
        // Without a usable TPM the console does not ask for a PIN.
        if let Err(error) = tpm::connect() {
            return Err(no_tpm(&error));
        }
        return Err(VaultWait::new(
            UnlockPrompt::NewPin,
            "vault-waits",
            "the vault needs a PIN",
            "type one on the console",
        ));
    }
    if kinds.contains(&VaultUnlock::Passphrase) && first.offer.new_passphrase.is_none() {
        return Err(VaultWait::new(
            UnlockPrompt::NewPassphrase,
            "vault-waits",
            "the vault needs a passphrase",
            "type one on the console",
        ));
    }
    Ok(())
}

fn randomness(log: &InitLog) -> Result<(), VaultWait> {
    if wait_for_randomness(log) {
        return Ok(());
    }
    Err(VaultWait::new(
        UnlockPrompt::Nothing,
        "vault-waits",
        "the kernel has no randomness to make a key of",
        "give the virtual machine a random number device (virtio-rng), or wait",
    ))
}

/// The words as a file of age, if the configuration names a recipient.
fn hand_over(words: &SecretStr, to: &[String]) -> Result<Option<String>, VaultWait> {
    if to.is_empty() {
        return Ok(None);
    }
    let to: Result<Vec<AgeRecipient>, _> = to.iter().map(|one| one.parse()).collect();
    let sealed = to.and_then(|to| alknet_handover::encrypt(words.expose().as_bytes(), &to));
    sealed.map(Some).map_err(failed)
}

impl VaultHandle {
    /// The vault was written and read back, so its words count from now on.
    pub(crate) fn adopt(
        &self,
        made: NewVaultFile,
        words_to: &[String],
    ) -> Result<OpenAlkv, VaultWait> {
        let NewVaultFile { open, words } = made;
        self.events().add(match &words {
            Some(_) => AuditEvent::Created,
            None => AuditEvent::Imported,
        });
        for slot in open.alkv().slots() {
            let (kind, id) = (slot.kind(), slot.id());
            self.events()
                .add(AuditEvent::SlotAdded(SlotName { kind, id }));
        }
        self.admit(&open).map_err(failed)?;
        match words {
            Some(words) => self.present(words, words_to)?,
            None => self.words_are_kept(),
        }
        Ok(open)
    }

    /// New words are encrypted to the recipients that the configuration names, and count as kept
    /// once that file is on the disk. Without recipients they wait for the owner at the console.
    pub(crate) fn present(&self, words: SecretStr, to: &[String]) -> Result<(), VaultWait> {
        let text = hand_over(&words, to)?;
        let mut state = self.state();
        state.words_kept = false;
        state.words = text.is_none().then_some(words);
        let stage = WordsAgeStage::Made;
        state.words_age = text.map(|text| WordsAge { text, stage });
        Ok(())
    }
}

fn with_slots(
    vault: NewVault,
    kinds: &[VaultUnlock],
    first: &FirstBoot<'_>,
    shared: Option<UnboundKmsSlot>,
    log: &InitLog,
) -> Result<OpenAlkv, VaultWait> {
    let mut made: Option<OpenAlkv> = None;
    let mut vault = Some(vault);
    // A medium's key and another node's share are of one vault that is named already.
    let seed = first.named_by_seed(kinds);
    let named = shared.as_ref().map(|shared| shared.vault).or(seed);
    for kind in kinds {
        let mut put = |slot: NewSlot<'_>| match (&mut made, vault.take()) {
            (Some(open), _) => open.add(slot).map(drop),
            (none, Some(vault)) => {
                *none = Some(match named {
                    Some(named) => OpenAlkv::create_as(named, vault, |_| Ok(slot))?,
                    None => OpenAlkv::create(vault, slot)?,
                });
                Ok(())
            }
            (None, None) => Err(VaultError::NoRandomness),
        };
        let done = match kind {
            VaultUnlock::Kms => match &shared {
                Some(shared) => put(NewSlot::Kms(shared.params.clone(), &shared.kek)),
                // `create` has requested all of them before.
                None => continue,
            },
            VaultUnlock::None => put(NewSlot::None),
            VaultUnlock::Passphrase => {
                let cap_kib = memory_cap_kib(memory_kib());
                let passphrase = first.offer.new_passphrase.as_ref();
                let Some(passphrase) = passphrase else {
                    continue;
                };
                log.info("finding out what a passphrase may cost on this machine");
                let cost = cost(cap_kib).map_err(failed)?;
                put(NewSlot::Passphrase {
                    passphrase,
                    cost,
                    cap_kib,
                })
            }
            VaultUnlock::Provisioning => match first.seed() {
                Some(seed) => put(NewSlot::Provisioning(seed)),
                None => continue,
            },
            VaultUnlock::Tpm2 => {
                let pin = first.pin();
                let sealed = pin.and_then(|pin| tpm::seal(pin.as_ref()));
                let (kek, params) = sealed.map_err(|error| no_tpm(&error))?;
                put(NewSlot::Tpm2(params, &kek))
            }
        };
        done.map_err(failed)?;
    }
    made.ok_or_else(|| failed(SlotError::Form("no slot was asked for")))
}

/// The cost that takes half a second to a second here. Tests of the commands make and open dozens
/// of slots, and take the cheapest.
pub(super) fn cost(cap_kib: u32) -> Result<Argon2Params, SlotError> {
    if cfg!(test) {
        return Ok(Argon2Params::FLOOR);
    }
    calibrate(cap_kib, |cost| {
        let begun = Instant::now();
        attempt(cost, cap_kib)?;
        Ok(begun.elapsed())
    })
}

fn no_tpm(error: &TpmError) -> VaultWait {
    let hint = match error {
        TpmError::FromBeside => {
            "remove the options of the firmware's boot entry, strings of SMBIOS, and files beside the image, and \
             restart"
        }
        TpmError::Unanswered => {
            "it is asked again every 3 seconds; if it never answers, restart the machine, or say in vault.unlock \
             what is to open the vault"
        }
        TpmError::NotMeasured(_) => {
            "start the machine by UEFI with its TPM support on; or say in vault.unlock what is to open the vault"
        }
        TpmError::OwnerPassword => {
            "clear the TPM in the firmware's setup, or take the password away; or say in vault.unlock what is to open \
             the vault"
        }
        _ => "give the machine a TPM 2.0, or leave tpm2 out of vault.unlock",
    };
    let text = format!("the TPM does not take the key: {error}");
    VaultWait::new(UnlockPrompt::Nothing, "vault-waits", text, hint)
}

fn failed(error: impl std::fmt::Display) -> VaultWait {
    VaultWait::new(
        UnlockPrompt::Nothing,
        "vault-waits",
        format!("the vault cannot be made: {error}"),
        "it is tried again; see the log",
    )
}

fn now_s() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or(0)
}
