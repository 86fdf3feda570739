//! Slots of type `tpm2`: those that need nobody, and those that want a PIN.

use std::fs::File;

use alknet_tpm::{Pin, TpmError, TpmSource};
use alknet_vault::SecretStr;
use alknet_vault::audit::{Event, SlotName};
use alknet_vault::slots::{
    Alkv, Found, Kek, KekError, KekRequest, KekSource, Key, OpenAlkv, Slot, SlotParams, SlotType,
};

use super::{Keeper, Offer};
use crate::{log::Log, tpm};

/// Whether that slot wants a PIN.
pub(super) fn wants_pin(slot: &Slot) -> bool {
    matches!(slot.params(), SlotParams::Tpm2(params) if params.pin())
}

/// Opens by a slot that needs nobody, or says why none does.
pub(super) fn unattended(found: &Found) -> Result<OpenAlkv, String> {
    open(found, None)
}

/// Opens by a slot that wants this PIN, or says why none does.
pub(super) fn with_pin(found: &Found, pin: &SecretStr) -> Result<OpenAlkv, String> {
    open(found, self::pin(Some(pin))?)
}

/// Opens one slot that wants this PIN, or says why not.
pub(super) fn slot_with_pin(
    vault: &Alkv,
    slot: &Slot,
    pin: &SecretStr,
) -> Result<OpenAlkv, String> {
    let mut source = tpm::source(self::pin(Some(pin))?).map_err(|error| error.to_string())?;
    let opened = vault.open(slot.id(), &mut Key::Source(SlotType::Tpm2, &mut source));
    opened.map_err(|error| match source.take_error() {
        Some(refused) => refused.to_string(),
        None => error.to_string(),
    })
}

/// What was typed, as a TPM takes it, or why it takes it not.
pub(super) fn pin(typed: Option<&SecretStr>) -> Result<Option<Pin>, String> {
    let pin = typed.map(|typed| Pin::new(SecretStr::from(typed.expose())));
    pin.transpose().map_err(|error| error.to_string())
}

/// Whether the TPM would give the key of that slot, to whoever has the PIN. It is not told any, so that
/// none is counted.
pub(super) fn check(slot: &Slot) -> Result<(), TpmError> {
    let mut source = tpm::source(None)?;
    match slot.params() {
        SlotParams::Tpm2(params) => source.tpm().check(params),
        _ => Ok(()),
    }
}

/// Why nobody has to be asked for a PIN now: the TPM would not take the right one either. `None` where a
/// PIN helps.
pub(super) fn obstacle(vault: &Alkv) -> Option<TpmError> {
    let mut first = None;
    for slot in vault.slots().iter().filter(|slot| wants_pin(slot)) {
        match check(slot) {
            Ok(()) => return None,
            // Other slots may be for another image; the one that only has to wait says more.
            Err(error @ TpmError::LockedOut(_)) => first = Some(error),
            Err(error) => first = first.or(Some(error)),
        }
    }
    first
}

/// Replaces slots that open whatever command line comes from beside the image, and says whether the
/// vault has to be written.
pub(crate) fn cover(open: &mut OpenAlkv, keeper: &Keeper, offer: &Offer, log: &Log) -> bool {
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
                let events = keeper.events();
                events.add(Event::SlotAdded(SlotName { kind, id: new }));
                events.add(Event::SlotRemoved(SlotName { kind, id: old }));
            }
        }
        Err(error) => log.error(format_args!(
            "a slot of the TPM opens with any command line from beside the image, and cannot be made anew: \
             {error}"
        )),
    }
    open.alkv() != &before
}

fn is_uncovered(slot: &Slot) -> bool {
    matches!(slot.params(), SlotParams::Tpm2(params) if alknet_tpm::PcrChoice::is_uncovered(params.pcrs()))
}

fn open(found: &Found, pin: Option<Pin>) -> Result<OpenAlkv, String> {
    let typed = pin.is_some();
    let source = tpm::source(pin).map_err(|error| error.to_string())?;
    let mut asked = Asked {
        source,
        typed,
        refusals: Vec::new(),
    };
    let opened = found.open(&mut Key::Source(SlotType::Tpm2, &mut asked));
    opened.map_err(|error| match asked.refusals.as_slice() {
        [] => error.to_string(),
        refusals => refusals.join("; "),
    })
}

/// Answers for slots that want a PIN where one was typed, and for the others where not.
struct Asked {
    source: TpmSource<File>,
    typed: bool,
    /// Each of them once.
    refusals: Vec<String>,
}

impl KekSource for Asked {
    fn kek(&mut self, request: KekRequest<'_>) -> Result<Kek, KekError> {
        let wants = matches!(request.params, SlotParams::Tpm2(params) if params.pin());
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
