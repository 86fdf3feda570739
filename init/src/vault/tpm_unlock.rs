//! Slots of type `tpm2`: the unattended ones, and those that need a PIN.

use std::fs::File;

use alknet_tpm::{TpmError, TpmPin, TpmSource};
use alknet_vault::SecretStr;
use alknet_vault::audit::{AuditEvent, SlotName};
use alknet_vault::slots::{
    Alkv, Kek, KekError, KekRequest, KekSource, KeySlot, LoadedCopies, OpenAlkv, SlotParams,
    SlotType, UnlockKey,
};

use super::{UnlockCredentials, VaultHandle};
use crate::{log::InitLog, tpm};

/// Whether that slot needs a PIN.
pub(super) fn wants_pin(slot: &KeySlot) -> bool {
    matches!(slot.params(), SlotParams::Tpm2(params) if params.pin())
}

/// Opens by a slot without a PIN, or returns why none opens.
pub(super) fn unattended(found: &LoadedCopies) -> Result<OpenAlkv, String> {
    open(found, None)
}

/// Opens by a slot with this PIN, or returns why none opens.
pub(super) fn with_pin(found: &LoadedCopies, pin: &SecretStr) -> Result<OpenAlkv, String> {
    open(found, self::pin(Some(pin))?)
}

/// Opens one slot with this PIN, or returns why it does not open.
pub(super) fn slot_with_pin(
    vault: &Alkv,
    slot: &KeySlot,
    pin: &SecretStr,
) -> Result<OpenAlkv, String> {
    let mut source = tpm::source(self::pin(Some(pin))?).map_err(|error| error.to_string())?;
    let opened = vault.open(
        slot.id(),
        &mut UnlockKey::Source(SlotType::Tpm2, &mut source),
    );
    opened.map_err(|error| match source.take_error() {
        Some(refused) => refused.to_string(),
        None => error.to_string(),
    })
}

/// Checks a typed text as a PIN of a TPM.
pub(super) fn pin(typed: Option<&SecretStr>) -> Result<Option<TpmPin>, String> {
    let pin = typed.map(|typed| TpmPin::new(SecretStr::from(typed.expose())));
    pin.transpose().map_err(|error| error.to_string())
}

/// Whether the TPM would give the key of that slot for the right PIN. The TPM gets no PIN here, so
/// that it counts no wrong one.
pub(super) fn check(slot: &KeySlot) -> Result<(), TpmError> {
    let mut source = tpm::source(None)?;
    match slot.params() {
        SlotParams::Tpm2(params) => source.tpm().check(params),
        _ => Ok(()),
    }
}

/// Why the console does not ask for a PIN now: the TPM would not take the right one either. `None`
/// if a PIN helps.
pub(super) fn obstacle(vault: &Alkv) -> Option<TpmError> {
    let mut first = None;
    for slot in vault.slots().iter().filter(|slot| wants_pin(slot)) {
        match check(slot) {
            Ok(()) => return None,
            // Other slots may be for another image. The reason of a slot that only has to wait says
            // more.
            Err(error @ TpmError::LockedOut(_)) => first = Some(error),
            Err(error) => first = first.or(Some(error)),
        }
    }
    first
}

/// Replaces slots that open whatever command line comes from beside the image. Returns whether the
/// vault has to be written.
pub(crate) fn cover(
    open: &mut OpenAlkv,
    vault: &VaultHandle,
    offer: &UnlockCredentials,
    log: &InitLog,
) -> bool {
    let before = open.alkv().clone();
    if !before.slots().iter().any(is_uncovered) {
        return false;
    }
    let pin = pin(offer.pin.as_ref()).ok().flatten();
    let done = tpm::open()
        .map_err(Into::into)
        .and_then(|mut tpm| tpm.cover_slots(open, pin.as_ref()));
    let kind = SlotType::Tpm2;
    match done {
        Ok(done) => {
            for (old, new) in done {
                log.warn(format_args!(
                    "slot {new} of the TPM is in the place of slot {old}, which opened with any command \
                     line from beside the image"
                ));
                let events = vault.events();
                events.add(AuditEvent::SlotAdded(SlotName { kind, id: new }));
                events.add(AuditEvent::SlotRemoved(SlotName { kind, id: old }));
            }
        }
        Err(error) => log.error(format_args!(
            "a slot of the TPM opens with any command line from beside the image, and cannot be replaced: \
             {error}"
        )),
    }
    // This also holds after an error: slots that were replaced before it have to be written.
    open.alkv() != &before
}

fn is_uncovered(slot: &KeySlot) -> bool {
    matches!(slot.params(), SlotParams::Tpm2(params) if alknet_tpm::PcrChoice::is_uncovered(params.pcrs()))
}

fn open(found: &LoadedCopies, pin: Option<TpmPin>) -> Result<OpenAlkv, String> {
    let typed = pin.is_some();
    let source = tpm::source(pin).map_err(|error| error.to_string())?;
    let mut kek_source = TpmKekSource {
        source,
        typed,
        refusals: Vec::new(),
    };
    let opened = found.open(&mut UnlockKey::Source(SlotType::Tpm2, &mut kek_source));
    opened.map_err(|error| match kek_source.refusals.as_slice() {
        [] => error.to_string(),
        refusals => refusals.join("; "),
    })
}

/// A key source for slots with a PIN if the user typed one, and for the others if not.
struct TpmKekSource {
    source: TpmSource<File>,
    typed: bool,
    /// Each reason once.
    refusals: Vec<String>,
}

impl KekSource for TpmKekSource {
    fn kek(&mut self, request: KekRequest<'_>) -> Result<Kek, KekError> {
        let wants = matches!(request.params, SlotParams::Tpm2(params) if params.pin());
        // A typed PIN must not be tried at a slot without one, nor the reverse: the TPM counts
        // wrong ones.
        if wants != self.typed {
            return Err(KekError::Absent);
        }
        let answer = self.source.kek(request);
        if let Some(error) = self.source.take_error() {
            let text = error.to_string();
            if !self.refusals.contains(&text) {
                self.refusals.push(text);
            }
        }
        answer
    }
}
