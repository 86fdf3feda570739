//! What a machine will measure when it starts an image, computed from the image's bytes.
//!
//! systemd-stub extends PCR 11: for each section of the unified image that it knows, in its own
//! order, by the name with a zero byte and by the contents. The firmware extends PCR 4: that it
//! turned to a boot option, that it is done with itself, that options before led to nothing, and
//! the Authenticode digest of each program that it loaded (TCG's PC client platform firmware
//! profile). PCR 12 is the stub's as well, and empty: it holds what came from beside the image,
//! which is nothing.

mod pe;

use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::choice::BESIDE_THE_IMAGE;
use crate::limits::{BOOTED_PROGRAMS_MAX, FAILED_OPTIONS_MAX, PE_BYTES_MAX, PE_SECTIONS_MAX};
use crate::pcr::EMPTY;
use crate::{PcrChoice, PcrValues};

pub use pe::PeImage;

/// The sections that systemd-stub 257 measures, in its order.
const MEASURED: [&str; 10] = [
    ".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".uname", ".sbat",
    ".pcrpkey",
];
/// Sections of which that stub takes one of several, by the machine that it runs on.
const CHOSEN: [&str; 4] = [".profile", ".dtbauto", ".hwids", ".efifw"];
/// How a stub names itself, in its section `.sdmagic`.
const STUB_IS: &[u8] = b"systemd-stub ";
/// The stub whose behaviour is known here.
const STUB_VERSION: &[u8] = b"257";

const CALLING: &[u8] = b"Calling EFI Application from Boot Option";
const RETURNING: &[u8] = b"Returning from EFI Application from Boot Option";
const SEPARATOR: &[u8] = &[0; 4];

/// SHA-256 of a program's file, which a person can compute as well. PCRs hold other digests of it.
#[must_use]
pub fn file_digest(program: &[u8]) -> [u8; 32] {
    Sha256::digest(program).into()
}

/// Why nothing can be predicted of a program.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PredictError {
    /// The file is cut short, or its parts lie on or outside each other.
    #[error("this is no whole EFI program: {0}")]
    Form(&'static str),
    /// A program that this project does not build.
    #[error("{0}")]
    Unpredictable(String),
    /// The program is longer than a bootable one may be.
    #[error("the program has {0} bytes, more than {PE_BYTES_MAX}")]
    TooLarge(usize),
    /// There are more programs than a machine starts one after the other.
    #[error("{0} programs are given; 1 to {BOOTED_PROGRAMS_MAX} are started")]
    TooMany(usize),
    /// A table that no program needs.
    #[error("the program has {0} sections, more than {PE_SECTIONS_MAX}")]
    TooManySections(usize),
}

/// A PCR of the SHA-256 bank, as it is extended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PredictedPcr([u8; 32]);

impl PredictedPcr {
    const START: Self = Self([0; 32]);

    fn extend(self, digest: &[u8; 32]) -> Self {
        let mut hash = Sha256::new();
        hash.update(self.0);
        hash.update(digest);
        Self(hash.finalize().into())
    }

    fn measure(self, event: &[u8]) -> Self {
        self.extend(&Sha256::digest(event).into())
    }
}

/// PCR 11 after the stub of this unified kernel image started its kernel.
///
/// # Errors
/// The file is no such image, has another stub than systemd's 257, or sections that the stub
/// chooses among.
pub fn predict_pcr11(uki: &[u8]) -> Result<[u8; 32], PredictError> {
    let mut pcr = PredictedPcr::START;
    for (name, content) in measured_sections(uki)? {
        // The stub measures the name with its NUL, then the contents (systemd-stub(7)).
        pcr = pcr.measure(format!("{name}\0").as_bytes()).measure(content);
    }
    Ok(pcr.0)
}

/// The sections of a unified kernel image that its stub measures, by name and contents, in the stub's order.
///
/// # Errors
/// The errors of [`predict_pcr11`].
pub fn measured_sections(uki: &[u8]) -> Result<Vec<(&'static str, &[u8])>, PredictError> {
    let pe = PeImage::parse(uki)?;
    check_stub(&pe)?;
    let chosen = CHOSEN.iter().find(|name| pe.has(name));
    if let Some(name) = chosen {
        let why = format!("what of section {name} is measured, the machine decides");
        return Err(PredictError::Unpredictable(why));
    }
    let mut sections = Vec::new();
    for name in MEASURED {
        // A section without contents counts as missing.
        if let Some(content) = pe.section(name)?.filter(|content| !content.is_empty()) {
            sections.push((name, content));
        }
    }
    Ok(sections)
}

/// PCR 4 after firmware tried `failed` boot options that did not start, and then started one whose
/// programs load each other in this order: every program that firmware was asked to load, with the
/// kernel inside a unified image ([`booted`]).
///
/// # Errors
/// One is no EFI program, or there is more than the limits allow.
pub fn predict_pcr4(failed: u8, programs: &[&[u8]]) -> Result<[u8; 32], PredictError> {
    if failed > FAILED_OPTIONS_MAX {
        let why = format!("more than {FAILED_OPTIONS_MAX} boot options that led to nothing");
        return Err(PredictError::Unpredictable(why));
    }
    Ok(pcr4(failed, &digests(programs)?).0)
}

/// How many boot options that did not start this machine tried before it started these programs, by
/// the PCR 4 that it has. `None` if it started something else. It will do the same with the next
/// image.
///
/// # Errors
/// The errors of [`predict_pcr4`].
pub fn failed_options(pcr_4: &[u8; 32], programs: &[&[u8]]) -> Result<Option<u8>, PredictError> {
    let digests = digests(programs)?;
    Ok((0..=FAILED_OPTIONS_MAX).find(|failed| pcr4(*failed, &digests).0 == *pcr_4))
}

fn digests(programs: &[&[u8]]) -> Result<Vec<[u8; 32]>, PredictError> {
    if !(1..=BOOTED_PROGRAMS_MAX).contains(&programs.len()) {
        return Err(PredictError::TooMany(programs.len()));
    }
    programs
        .iter()
        .map(|program| authenticode(program))
        .collect()
}

fn pcr4(failed: u8, digests: &[[u8; 32]]) -> PredictedPcr {
    // TCG PC Client Platform Firmware Profile: the boot attempt, then the separator, then each
    // program.
    let first = PredictedPcr::START.measure(CALLING).measure(SEPARATOR);
    let ready = (0..failed).fold(first, |pcr, _| pcr.measure(RETURNING).measure(CALLING));
    digests.iter().fold(ready, |pcr, digest| pcr.extend(digest))
}

/// An image that is to be started in place of the running one.
#[derive(Clone, Copy, Debug)]
pub struct ProgramUpdate<'a> {
    /// The programs before either, in the order of their loading: a boot loader, or nothing.
    pub loaders: &'a [&'a [u8]],
    /// The unified image that this machine started.
    pub running: &'a [u8],
    /// The image that it is to start.
    pub next: &'a [u8],
}

impl ProgramUpdate<'_> {
    /// The values of the chosen PCRs that will differ from `now`, to seal to
    /// ([`crate::ExpectedPcrs::Predicted`]) before the machine starts the next image.
    ///
    /// # Errors
    /// The errors of [`predict_pcr11`] and [`predict_pcr4`]. `Unpredictable` if PCR 4 shows that something
    /// other than `running` was started, or PCR 12 that it did not start alone.
    pub fn predict(&self, choice: &PcrChoice, now: &PcrValues) -> Result<PcrValues, PredictError> {
        // PCR 7 is not predicted and keeps its present value: an update changes no key of Secure Boot.
        let mut values = PcrValues::new();
        if choice.pcrs().contains(&11) {
            values.insert(11, predict_pcr11(self.next)?);
        }
        if choice.pcrs().contains(&4) {
            let of = |image| Ok([self.loaders, booted(image)?.as_slice()].concat());
            let found = match now.get(&4) {
                Some(pcr_4) => failed_options(pcr_4, &of(self.running)?)?,
                None => None,
            };
            // If the firmware started something else before, its way to the next image is not known either.
            let failed = found.ok_or_else(other_start)?;
            values.insert(4, predict_pcr4(failed, &of(self.next)?)?);
        }
        if choice.pcrs().contains(&BESIDE_THE_IMAGE) {
            require_alone(now)?;
            values.insert(BESIDE_THE_IMAGE, EMPTY);
        }
        Ok(values)
    }
}

/// What firmware and the stub measure of a unified kernel image. It stands for the image where two of them would take too
/// much memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MeasuredImage {
    pcr_11: [u8; 32],
    programs: [[u8; 32]; 2],
}

impl MeasuredImage {
    /// Computes what is measured of an image.
    ///
    /// # Errors
    /// The errors of [`predict_pcr11`] and [`booted`].
    pub fn read(uki: &[u8]) -> Result<Self, PredictError> {
        let [image, kernel] = booted(uki)?;
        Ok(Self {
            pcr_11: predict_pcr11(uki)?,
            programs: [authenticode(image)?, authenticode(kernel)?],
        })
    }

    /// PCR 11 after the image started, and the digests of the image and of its kernel, to be kept for a later prediction.
    #[must_use]
    pub fn digests(&self) -> [[u8; 32]; 3] {
        let [image, kernel] = self.programs;
        [self.pcr_11, image, kernel]
    }

    /// The image with these [digests](Self::digests).
    #[must_use]
    pub fn from_digests([pcr_11, image, kernel]: [[u8; 32]; 3]) -> Self {
        Self {
            pcr_11,
            programs: [image, kernel],
        }
    }

    /// PCR 11 after its start. Two images with the same value have the same sections.
    #[must_use]
    pub fn pcr_11(&self) -> &[u8; 32] {
        &self.pcr_11
    }
}

/// An image that is to be started in place of the running one, without the bytes of either.
#[derive(Clone, Copy, Debug)]
pub struct ImageUpdate<'a> {
    /// The [digests](authenticode) of the programs before either, in the order of their loading.
    pub loaders: &'a [[u8; 32]],
    /// The image that this machine started.
    pub running: &'a MeasuredImage,
    /// The image that it is to start.
    pub next: &'a MeasuredImage,
}

impl ImageUpdate<'_> {
    /// Like [`ProgramUpdate::predict`].
    ///
    /// # Errors
    /// `Unpredictable` and `TooMany`, as there.
    pub fn predict(&self, choice: &PcrChoice, now: &PcrValues) -> Result<PcrValues, PredictError> {
        let mut values = PcrValues::new();
        if choice.pcrs().contains(&11) {
            values.insert(11, self.next.pcr_11);
        }
        if choice.pcrs().contains(&4) {
            // Firmware loads two programs for an image: the image, and the kernel in it.
            let count = self.loaders.len() + 2;
            if count > BOOTED_PROGRAMS_MAX {
                return Err(PredictError::TooMany(count));
            }
            let digests = |image: &MeasuredImage| [self.loaders, &image.programs].concat();
            let running = digests(self.running);
            let mut failed = 0..=FAILED_OPTIONS_MAX;
            let failed = now
                .get(&4)
                .and_then(|pcr_4| failed.find(|failed| pcr4(*failed, &running).0 == *pcr_4));
            let failed = failed.ok_or_else(other_start)?;
            values.insert(4, pcr4(failed, &digests(self.next)).0);
        }
        if choice.pcrs().contains(&BESIDE_THE_IMAGE) {
            require_alone(now)?;
            values.insert(BESIDE_THE_IMAGE, EMPTY);
        }
        Ok(values)
    }
}

fn other_start() -> PredictError {
    let why = "PCR 4 is not what starting the running image gives";
    PredictError::Unpredictable(why.into())
}

/// Refuses a start with something from beside the image: it may be meant for the running image alone.
fn require_alone(now: &PcrValues) -> Result<(), PredictError> {
    if now.get(&BESIDE_THE_IMAGE) == Some(&EMPTY) {
        return Ok(());
    }
    let why = "PCR 12 shows a command line or an add-on from beside the running image";
    Err(PredictError::Unpredictable(why.into()))
}

/// The programs that a unified kernel image stands for: itself, and the kernel in it.
///
/// # Errors
/// The errors of [`predict_pcr11`], and an image without a kernel.
pub fn booted(uki: &[u8]) -> Result<[&[u8]; 2], PredictError> {
    let pe = PeImage::parse(uki)?;
    check_stub(&pe)?;
    let kernel = pe.section(".linux")?;
    Ok([uki, kernel.ok_or(PredictError::Form("it has no kernel"))?])
}

/// The SHA-256 digest by which firmware knows a program: Authenticode's, without what a signature
/// changes.
///
/// # Errors
/// The file is no EFI program.
pub fn authenticode(program: &[u8]) -> Result<[u8; 32], PredictError> {
    Ok(PeImage::parse(program)?.authenticode())
}

/// Refuses other stubs, which measure other sections in another order.
fn check_stub(pe: &PeImage<'_>) -> Result<(), PredictError> {
    let magic = pe.section(".sdmagic")?.unwrap_or_default();
    let at = magic
        .windows(STUB_IS.len())
        .position(|part| part == STUB_IS);
    let version = at.map(|at| &magic[at + STUB_IS.len()..]);
    let known = version.is_some_and(|version| {
        let next = version.strip_prefix(STUB_VERSION);
        // 2571 would be another version.
        next.is_some_and(|next| next.first().is_none_or(|byte| !byte.is_ascii_digit()))
    });
    if known {
        return Ok(());
    }
    let why = "its stub is not systemd-stub 257, whose ways are known here";
    Err(PredictError::Unpredictable(why.into()))
}

#[cfg(test)]
mod tests;
