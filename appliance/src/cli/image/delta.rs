//! `alknet image bundle --from`: the bundles with deltas, beside the one with the whole program.

use std::path::{Path, PathBuf};

use alknet_delta::{library_version, make_delta};
use alknet_image::ProgramParts;
use alknet_image_write::minisign::MinisignKey;
use alknet_update::{DeltaInfo, UpdateTarget, delta_file_name};

use super::bundle::NamedProgram;
use crate::cli::CommandError;

/// Digits of the base's SHA-256 in the name of a target, which is short.
const NAME_DIGITS: usize = 16;

/// A delta, and the program that it starts from.
pub(super) struct ProgramDelta {
    pub(super) target: UpdateTarget,
    pub(super) bytes: Vec<u8>,
    /// SHA-256 of the program that it starts from, in hex.
    pub(super) base: String,
}

impl ProgramDelta {
    /// The file of the bundle with it: a machine that runs the base asks a channel for this name.
    pub(super) fn path(&self, beside: &Path) -> PathBuf {
        beside.with_file_name(delta_file_name(&self.base))
    }
}

/// Makes a delta from each of these programs to the one with this name. With a key, each of them has to be signed by it.
pub(super) fn deltas(
    from: &[PathBuf],
    name: &str,
    program: &[u8],
    key: Option<&MinisignKey>,
) -> Result<Vec<ProgramDelta>, CommandError> {
    // A program that has no parts to unpack needs none for a bundle without deltas.
    if from.is_empty() {
        return Ok(Vec::new());
    }
    let new = ProgramParts::unpack(program);
    let new = new.map_err(|why| CommandError::usage(format!("{name} has no deltas: {why}")))?;
    // Making a delta takes a minute, so all bases are looked at first.
    let mut bases: Vec<String> = Vec::new();
    for what in from {
        let old = DeltaOrigin::read(what, program, key)?;
        // The base is the name of the file, so one bundle would overwrite the other.
        if bases.contains(&old.base) {
            return Err(old.refused(&"another --from is the same program"));
        }
        bases.push(old.base);
    }
    let origins = from
        .iter()
        .map(|what| DeltaOrigin::read(what, program, key));
    origins.map(|old| old?.delta(name, &new)).collect()
}

/// A program that a delta starts from.
struct DeltaOrigin {
    path: PathBuf,
    program: Vec<u8>,
    /// Its SHA-256, in hex.
    base: String,
}

impl DeltaOrigin {
    /// Reads what `--from` names. It is another program than that of the bundle.
    fn read(what: &Path, program: &[u8], key: Option<&MinisignKey>) -> Result<Self, CommandError> {
        let old = NamedProgram::read(what, key)?;
        let origin = Self {
            path: old.path,
            program: old.content,
            base: old.sha256,
        };
        if origin.program == program {
            return Err(origin.refused(&"it is the program of the bundle itself"));
        }
        Ok(origin)
    }

    fn refused(&self, why: &dyn std::fmt::Display) -> CommandError {
        let path = self.path.display();
        CommandError::usage(format!("no delta starts from {path}: {why}"))
    }

    /// Makes the delta to the program with this name.
    fn delta(self, name: &str, new: &ProgramParts<'_>) -> Result<ProgramDelta, CommandError> {
        let parts = ProgramParts::unpack(&self.program).map_err(|why| self.refused(&why))?;
        let made = make_delta(&parts.as_old(), &new.as_new());
        let bytes = made.map_err(|why| self.refused(&why))?;
        let info = DeltaInfo {
            target: name.to_owned(),
            base: self.base.clone(),
            library: library_version(),
            blocks: Vec::new(),
        };
        let file = format!("alknet.from_{}.delta", &self.base[..NAME_DIGITS]);
        let target = UpdateTarget::describe_delta(&file, info, &mut &*bytes);
        Ok(ProgramDelta {
            target: target.map_err(|why| self.refused(&why))?,
            bytes,
            base: self.base,
        })
    }
}
